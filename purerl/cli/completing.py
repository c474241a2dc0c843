"""`purerl --install-completion`: completion by the shell, from a script that is written once.

The script knows commands, flags, agents and environments, so that completing starts no Python.
"""

import os
from importlib import import_module
from pathlib import Path
from typing import Any

from purerl.agents import AGENTS
from purerl.cli import COMMANDS, Parser
from purerl.cli.flags import PARTS, add_config_flags
from purerl.envs import env_names, suites
from purerl.records.errors import ConfigError, suggest
from purerl.records.files import write_bytes

# Where each shell looks, below the home, and what may be missing in its configuration.
SHELLS = {
    "bash": (
        ".local/share/bash-completion/completions/purerl",
        "without the package bash-completion, add to ~/.bashrc:\n  source {file}",
    ),
    "zsh": (
        ".zfunc/_purerl",
        "if it isn't there, add to ~/.zshrc:\n  fpath+=~/.zfunc; autoload -Uz compinit && compinit",
    ),
    "fish": (".config/fish/completions/purerl.fish", ""),
}
FILES = ("run", "runs", "target", "config", "preset", "out", "run_dir", "metrics")


def install_completion(shell: str | None) -> int:
    """Writes the script of a shell, and prints where; returns the exit code.

    Args:
        shell: "bash", "zsh" or "fish"; None for that of the environment variable SHELL.

    Raises:
        ConfigError: another shell.
        RunError: the script can't be written.
    """
    name = shell or Path(os.environ.get("SHELL", "")).name or "unknown"
    if name not in SHELLS:
        raise ConfigError(f"--install-completion: got {name!r}; {suggest(name, SHELLS)}")
    place, hint = SHELLS[name]
    file = Path.home() / place
    text = completion_script(name)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--install-completion: can't make {file.parent}: {error}") from None
    write_bytes(file, text.encode(), "the completion")
    print(f"{file}: new shells of {name} complete purerl")
    if hint:
        print(hint.format(file=file))
    return 0


def completion_script(shell: str) -> str:
    """The text of a shell's script."""
    try:
        import shtab
    except ImportError:
        raise ConfigError("--install-completion: needs shtab: pip install shtab") from None
    root = Parser("purerl")
    root.add_argument("--version", action="store_true", help="print it")
    commands: Any = root.add_subparsers(parser_class=Parser)
    envs = list(env_names())
    for suite in suites.SUITES:
        envs += suites.names(suite)
    for name, (module, text) in COMMANDS.items():
        parser = commands.add_parser(name, help=text)
        getattr(import_module(f"purerl.cli.{module}"), f"add_{name.replace('-', '_')}")(parser, [])
        parser.usage = parser.epilog = None
        _add_flags_of_all_agents(parser)
        for action in parser._actions:
            if action.dest == "env":
                action.choices = envs
            elif action.dest in PARTS:
                action.choices = list(PARTS[action.dest])
            elif action.dest in FILES:
                action.complete = shtab.FILE
    written: str = shtab.complete(root, shell=shell)
    return written


def _add_flags_of_all_agents(parser: Parser) -> None:
    """Adds the flags that agents have but for the first, to a parser that has those of one."""
    if "--no-preset" not in parser._option_string_actions or "--lr" not in str(parser._actions):
        return
    for agent in AGENTS:
        other = Parser()
        add_config_flags(other, ["--agent", agent])
        for action in other._actions:
            if not set(action.option_strings) & parser._option_string_actions.keys():
                parser._add_action(action)
