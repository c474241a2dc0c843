"""Completion by the shell: what bash offers, from a script that starts no Python."""

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
            argv, capture_output=True, text=True, timeout=60, env={"PATH": "/usr/bin:/bin"}
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


@pytest.mark.parametrize(("shell", "place"), [("zsh", ".zfunc/_purerl"),
                         ("fish", ".config/fish/completions/purerl.fish")])  # fmt: skip
def test_other_shells(shell, place, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert main(["--install-completion", shell]) == 0
    assert "CartPole-v1" in (tmp_path / place).read_text()
    assert main(["--install-completion", "bsh"]) == 2
    assert "did you mean 'bash'" in capsys.readouterr().err
