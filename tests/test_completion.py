"""Completion by the shell: what bash offers, from a script that starts no Python."""

import re
import shutil
import subprocess

import pytest

from purerl.cli import main

pytest.importorskip("shtab")

COMPLETE = """
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
_shtab_purerl purerl "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
printf '%s\\n' "${COMPREPLY[@]}"
"""


def test_bash_completes_commands_flags_agents_and_environments(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SHELL", "/bin/bash")
    assert main(["--install-completion"]) == 0
    file = tmp_path / ".local/share/bash-completion/completions/purerl"
    assert str(file) in capsys.readouterr().out

    def offered(*words):
        argv = ["bash", "-c", COMPLETE, "bash", str(file), "purerl", *words]
        done = subprocess.run(
            argv, capture_output=True, text=True, timeout=250, env={"PATH": "/usr/bin:/bin"}
        )
        assert done.stderr == ""
        return set(done.stdout.split())

    assert {"train", "tune"} <= offered("t")
    assert "CartPole-v1" in offered("train", "CartP")
    assert "brax/ant" in offered("train", "brax/a")
    assert offered("train", "--agent", "d") == {"ddpg", "dqn"}
    assert offered("agents", "pp") == {"ppo"}
    assert "--member" in offered("eval", "--mem")
    assert "--target-update-every" in offered("train", "--target-u")  # of DQN alone


def offered_by_fish(home, line):
    # fish reads completions of commands that are there
    argv = ["fish", "-c", "complete -C $argv[1]", line]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=250, env=environ(home))
    return {row.split("\t")[0] for row in done.stdout.splitlines()}


ZSH = """
zmodload zsh/zpty
zpty shell zsh -f -i
zpty -w shell 'PROMPT=; fpath+=~/.zfunc; autoload -Uz compinit; compinit -u; print READY'
zpty -r -m shell out '*READY*READY*'
zpty -w -n shell "$1"$'\\t\\t'
sleep 2
while zpty -r -t shell out; do print -r -- "$out"; done
zpty -d shell
"""


def offered_by_zsh(home, line):
    argv = ["zsh", "-f", "-c", ZSH, "zsh", line]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=250, env=environ(home))
    return set(re.findall(r"[\w/.-]+", done.stdout))


def environ(home):
    return {"PATH": f"{home}:/usr/bin:/bin", "HOME": str(home), "TERM": "dumb", "COLUMNS": "200"}


OTHER_SHELLS = {
    "fish": (".config/fish/completions/purerl.fish", offered_by_fish),
    "zsh": (".zfunc/_purerl", offered_by_zsh),
}


@pytest.mark.parametrize("shell", OTHER_SHELLS)
def test_other_shells(shell, tmp_path, monkeypatch, capsys):
    place, offered = OTHER_SHELLS[shell]
    monkeypatch.setenv("HOME", str(tmp_path))
    assert main(["--install-completion", shell]) == 0
    assert "CartPole-v1" in (tmp_path / place).read_text()
    assert main(["--install-completion", "bsh"]) == 2
    assert "did you mean 'bash'" in capsys.readouterr().err
    if shutil.which(shell) is None:
        pytest.skip(f"the script is written; there is no {shell} to try it")
    (tmp_path / "purerl").write_text("#!/bin/sh\n")
    (tmp_path / "purerl").chmod(0o755)
    assert {"train", "tune"} <= offered(tmp_path, "purerl t")
    assert "CartPole-v1" in offered(tmp_path, "purerl train CartP")
    assert {"ddpg", "dqn"} <= offered(tmp_path, "purerl train CartPole-v1 --agent d")
    assert "--member" in offered(tmp_path, "purerl eval --mem")
