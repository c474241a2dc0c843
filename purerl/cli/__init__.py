"""The `purerl` command."""

import argparse
import contextlib
import os
import re
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

import jax

from purerl.accelerator.members import any_thread_runs
from purerl.cli.terminal import lasting_output, new_console
from purerl.envs.check import EnvError
from purerl.records.errors import ConfigError, RunError, suggest
from purerl.training.check import AgentError

FAILED, USAGE_ERROR, INTERRUPTED = 1, 2, 130
# Environment variable: where it is set, unexpected errors are shown with their traceback.
TRACEBACK = "PURERL_TRACEBACK"
# The module and the description of each command.
COMMANDS = {
    "train": ("training", "train an agent, with several seeds at once"),
    "resume": ("training", "continue a run that was stopped, or train it for longer"),
    "sweep": ("sweeping", "train over seeds and hyperparameters"),
    "tune": ("tuning", "search for hyperparameters, with Optuna"),
    "evolve": ("evolving", "train a population whose hyperparameters evolve"),
    "eval": ("playing", "evaluate the policies of a run"),
    "render": ("playing", "render an episode as a GIF or MP4"),
    "export": ("playing", "write a policy that runs without purerl"),
    "ls": ("looking", "list the runs in a folder, and how far they are"),
    "watch": ("looking", "show runs on a page while they train"),
    "plot": ("pictures", "learning curves of runs, or their comparison"),
    "envs": ("listing", "list the environments"),
    "agents": ("listing", "list the agents, and their hyperparameters"),
    "presets": ("listing", "list the hyperparameters that ship with the package"),
    "check-env": ("listing", "check an environment for mistakes"),
    "bench": ("listing", "measure how fast training is here"),
}
# A number, of which a negative one is a flag's value.
NUMBER = r"-?(\d[\d_]*\.?\d*|\.\d+)(e[+-]?\d+)?"
COMPLETING = "completing"  # the module of --install-completion


class UsageError(Exception):
    """An invalid command line."""


class Parser(argparse.ArgumentParser):
    """A parser with errors of one line, which have the nearest right spelling of a flag, and
    without abbreviations."""

    def __init__(self, prog: str | None = None, description: str | None = None) -> None:
        form = argparse.RawDescriptionHelpFormatter
        super().__init__(prog, None, description, formatter_class=form, allow_abbrev=False)
        # argparse takes -1e3 and -1,2 for flags.
        self._negative_number_matcher = re.compile(rf"^{NUMBER}(,{NUMBER})*$", re.IGNORECASE)

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see {self.prog} --help)")

    def parse(self, argv: Sequence[str]) -> argparse.Namespace:
        """Parses arguments. Raises UsageError, also for unknown ones."""
        args, unknown = self.parse_known_args(argv)
        if unknown:
            is_flag = unknown[0].startswith("--")
            word = unknown[0].partition("=")[0] if is_flag else unknown[0]
            listed = [x for x in self._actions if x.help != argparse.SUPPRESS]  # no aliases
            known = [flag for action in listed for flag in action.option_strings]
            hint = self._nearest(word, known) if is_flag else "expected flags, such as --seeds 4"
            self.error(f"{'no flag' if is_flag else 'unexpected argument'} {word!r}; {hint}")
        return args

    def _nearest(self, word: str, known: list[str]) -> str:
        spelled = {flag.lstrip("-").replace("-", "_"): flag for flag in known}
        hint = suggest(word.lstrip("-").replace("-", "_"), spelled)
        if hint.startswith("known: "):
            params = ", the environment's by purerl envs ENV" if "--env.NAME" in known else ""
            return f"known ones are listed by --help{params}"
        return re.sub(r"'(\w[\w.]*)'", lambda name: repr(spelled[name[1]]), hint)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command.

    Args:
        argv: arguments; None for those of the process.

    Returns:
        The exit code: 0; 1 where a file or folder fails, or an environment is invalid; 2 for a
        mistake in the arguments; 130 after Ctrl-C.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    with lasting_output(), _importing_from_here(argv):
        try:
            return _run(argv)
        except (RunError, EnvError, AgentError) as error:
            return _fail(error, FAILED)
        except (ConfigError, UsageError) as error:
            return _fail(error, USAGE_ERROR)
        except KeyboardInterrupt:
            return _fail("interrupted", INTERRUPTED)
        except BrokenPipeError:  # such as | head
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return FAILED
        except Exception as error:
            if TRACEBACK in os.environ:
                raise
            return _fail(_unforeseen(error), FAILED)


def command() -> NoReturn:
    """The process of the command: `main`, and the end of the process."""
    code = main()
    if any_thread_runs():  # after Ctrl-C, perhaps for minutes
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)
    sys.exit(code)


def _unforeseen(error: Exception) -> str:
    """The message of an unexpected error: of the system, of the user's code, or a bug."""
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
        return f"out of memory: {str(error) or 'no more is to be had'}"[:300]
    if isinstance(error, OSError) and error.strerror:
        named = f"{error.filename}: " if error.filename else ""
        return f"{named}{error.strerror}"
    ours = [x for x in traceback.extract_tb(error.__traceback__) if "site-packages" not in x[0]]
    where = f" (in {ours[-1].filename}, line {ours[-1].lineno})" if ours else ""
    text = f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"
    return f"{text}{where}; {TRACEBACK}=1 shows more"


@contextlib.contextmanager
def _importing_from_here(argv: Sequence[str]) -> Iterator[None]:
    """Imports from the working directory too, as `python -m` does, where an argument names an
    environment in a module: `module:name`. Otherwise files there could shadow packages."""
    form = r"^(--(eval-)?env=)?[^\W\d][\w.]*:[^\W\d]\w*$"
    named = any(re.search(form, word) for word in argv)
    if not named or "" in sys.path:
        yield
        return
    sys.path.insert(0, "")
    try:
        yield
    finally:
        sys.path.remove("")


def _run(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        _help()
        return 0 if argv else USAGE_ERROR
    if argv[0] == "--version":
        from purerl import __version__

        print(f"purerl {__version__}")
        return 0
    if argv[0] == "--install-completion":
        completing = import_module(f"purerl.cli.{COMPLETING}")
        installed: int = completing.install_completion(argv[1] if len(argv) > 1 else None)
        return installed
    if argv[0] not in COMMANDS:
        known = suggest(argv[0], COMMANDS)
        raise UsageError(f"no command {argv[0]!r}; {known} (see purerl --help)")
    name = argv[0]
    module = import_module(f"purerl.cli.{COMMANDS[name][0]}")
    parser = Parser(prog=f"purerl {name}", description=COMMANDS[name][1].capitalize() + ".")
    word = name.replace("-", "_")
    getattr(module, f"add_{word}")(parser, argv[1:])
    args = parser.parse(argv[1:])
    args.argv = argv
    _use_compile_cache()
    with _plain_warnings():
        return getattr(module, f"run_{word}")(args, new_console())


def _help() -> None:
    print("usage: purerl COMMAND ...\n\nReinforcement learning, whole on the accelerator.\n")
    for name, (_, text) in COMMANDS.items():
        print(f"  {name:<10} {text}")
    print("  --install-completion  of the shell: commands, flags, agents, environments")
    print("\npurerl COMMAND --help lists flags. For a start: purerl train CartPole-v1 --seeds 8")


def _fail(error: Exception | str, code: int) -> int:
    text = " ".join(str(error).split())
    print(f"purerl: {text}", file=sys.stderr)
    return code


def _use_compile_cache() -> None:
    """Keeps compiled programs on disk, so that the second run starts at once: in
    JAX_COMPILATION_CACHE_DIR, nowhere where that is empty, by default in the user's cache.
    """
    settings: Any = jax.config  # JAX 0.10 doesn't declare what it adds at run time
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ and not settings.jax_compilation_cache_dir:
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        jax.config.update("jax_compilation_cache_dir", str(Path(home) / "purerl" / "compiled"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


# JAX writes a compiled program in place: a killed process or a full disk leaves half of one.
DAMAGED_PROGRAM = re.compile(r"Error reading persistent compilation cache entry for '([\w.-]+)'")


def _forget_compiled(name: str) -> None:
    """Deletes what is kept of a damaged program, which JAX is about to compile: it doesn't write
    over a file that is there, so that each start would compile it again.
    """
    settings: Any = jax.config
    for path in Path(settings.jax_compilation_cache_dir).glob(f"{name}-*-cache"):
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def _plain_warnings() -> Iterator[None]:
    """Prints warnings in one line each, without their source line."""

    def show(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
        damaged = DAMAGED_PROGRAM.match(str(message))
        if damaged:
            _forget_compiled(damaged[1])
        elif issubclass(category, UserWarning):
            print(f"purerl: {' '.join(str(message).split())}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield
