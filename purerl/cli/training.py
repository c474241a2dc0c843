"""`purerl train` and `purerl resume`."""

import argparse
import contextlib
import itertools
import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console

from purerl.accelerator.machine import use_cores_for_members
from purerl.accelerator.members import Layout
from purerl.cli import INTERRUPTED, Parser
from purerl.cli.flags import (
    add_config_flags,
    check_integer,
    config_from,
    integers,
    spelled_out,
)
from purerl.records.errors import ConfigError, RunError
from purerl.records.fields import check_path
from purerl.records.files import reason
from purerl.records.folders import refuse_links
from purerl.runs.chunks import check_size
from purerl.runs.console import console_sink, show_curve, solved_text
from purerl.runs.fit import Interrupted, fit
from purerl.runs.folder import CONFIG, METRICS, RUN, SUMMARY, read_summary
from purerl.runs.sinks import Sink, tensorboard_sink, wandb_sink
from purerl.runs.videos import refuse_host_films
from purerl.runs.view import (
    BEST,
    KINDS,
    WINNER,
    RunView,
)
from purerl.training.config import TrainConfig
from purerl.training.named import env_name, is_code, named_env, refuse_code

RUNS, EVENTS = Path("runs"), "tensorboard"
EPILOG = """\
A run's folder has its config, metrics, checkpoints, policies, TensorBoard events and learning
curve. Ctrl-C saves; purerl resume continues, with the same result as without the stop.

Examples:
  purerl train CartPole-v1 --seeds 8
  purerl train Pendulum-v1 --agent ddpg --noise ornstein_uhlenbeck --noise.sigma 0.3
  purerl train CartPole-v1 --env.gravity 1.6 --env.length 'uniform(0.25, 1.0)'
  purerl train my_module:MyEnv --lr 3e-4 --num-envs 64 --hidden 128,128 --normalize-obs
  purerl train --config runs/CartPole-v1-ppo-1/config.toml --seeds 100,101,102
"""


def add_train(parser: Parser, argv: Sequence[str]) -> None:
    """The arguments of `train`."""
    parser.epilog = EPILOG
    parser.usage = "purerl train ENV [--agent NAME] [--seeds N] [--FIELD VALUE ...]"
    parser.add_argument("env", metavar="ENV", nargs="?", help="see purerl envs, or module:name")
    parser.add_argument("--seeds", default="1", metavar="N", help="how many, or which: 3,7,12 (1)")
    parser.add_argument("--run-dir", metavar="DIR", help="by default a new one in runs/")
    parser.add_argument("--init", metavar="RUN", help="start from its policies, or a .policy file")
    _add_log_flags(parser)
    add_config_flags(parser, argv)


def _add_log_flags(parser: Parser) -> None:
    add = parser.add_argument
    add("--report-every", type=float, default=2.0, metavar="S", help="seconds, about (2)")
    add("--checkpoint-every", type=float, default=30.0, metavar="S", help="seconds (30)")
    add("--no-tensorboard", action="store_true", help="write no TensorBoard events")
    add("--wandb", metavar="PROJECT", help="log to Weights & Biases as well")
    text = "steps of a seed from one video to the next, in TensorBoard and W&B"
    add("--render-every", type=int, metavar="N", help=text)


def run_train(args: argparse.Namespace, console: Console) -> int:
    """Trains."""
    seeds = integers("--seeds", args.seeds)  # first, since a config takes seconds to check
    number = seeds if isinstance(seeds, int) else len(seeds)
    if number > 1:
        use_cores_for_members()
    config, preset = config_from(args)
    check_size(config.make_loop(), Layout.of(number, config.num_devices).on_a_device)
    if preset:
        name = preset["agent"]["name"]
        kept = [x for x in spelled_out(preset) if x in spelled_out(config.to_mapping())]
        listed = ", ".join(kept) or "the agent's defaults"
        console.print(
            f"preset for {config.env.spec.name} and {name}: {listed} (--no-preset for none)"
        )
    with chosen_folder(args, config) as folder:
        return _train(config, seeds, folder, args, console, init=args.init)


@contextlib.contextmanager
def chosen_folder(args: argparse.Namespace, config: TrainConfig, kind: str = "") -> Iterator[Path]:
    """The folder of --run-dir, or a new one in runs/, which is removed again, if nothing is in it,
    where an argument turns out to be wrong, or a file can't be read."""
    if args.run_dir is not None:
        yield check_path("--run-dir", args.run_dir)
        return
    folder = new_folder(config, kind)
    try:
        yield folder
    except (ConfigError, RunError):
        with contextlib.suppress(OSError):  # something is in it
            folder.rmdir()
        raise


def new_folder(config: TrainConfig, kind: str = "") -> Path:
    """Creates the first folder of runs/ENV-agent-1, -2, ... that doesn't exist, for this process
    alone.

    Raises:
        RunError: it can't be created.
    """
    env = re.sub(r"[^\w.-]+", "-", config.env.spec.name)
    stem = "-".join(filter(None, (env, type(config.agent).__name__.lower(), kind)))
    for i in itertools.count(1):
        folder = RUNS / f"{stem}-{i}"
        try:
            RUNS.mkdir(exist_ok=True)
            folder.mkdir()  # succeeds in one of two processes
        except FileExistsError:
            if RUNS.is_dir():
                continue
            raise RunError(f"can't make {folder}: {RUNS} is a file") from None
        except OSError as error:
            raise RunError(f"can't make {folder}: {reason(error)}") from None
        return folder
    raise AssertionError


def interrupted(console: Console, args: argparse.Namespace, folder: Path, saved: str) -> int:
    """Prints what is saved and the line that continues, after Ctrl-C; returns the exit code."""
    words = list(args.argv)
    while "--run-dir" in words:
        at = words.index("--run-dir")
        del words[at : at + 2]
    words = [word for word in words if not word.startswith("--run-dir=")]
    line = shlex.join(["purerl", *words, "--run-dir", str(folder)])
    console.print(f"interrupted; {saved} are saved; to continue:\n  {line}", soft_wrap=True)
    return INTERRUPTED


def add_resume(parser: Parser, argv: Sequence[str]) -> None:
    """The arguments of `resume`."""
    del argv
    parser.add_argument("run", metavar="RUN", nargs="?", help="its folder (the newest in runs/)")
    parser.add_argument(
        "--total-timesteps", type=float, metavar="N", help="a new length of the run"
    )
    parser.add_argument("--env", metavar="MODULE:NAME", help="the environment, where it is yours")
    parser.add_argument("--eval-env", metavar="MODULE:NAME", help="that of evaluations, likewise")
    _add_log_flags(parser)


def run_resume(args: argparse.Namespace, console: Console) -> int:
    """Continues a run."""
    folder = Path(args.run) if args.run else newest_run()
    for marker, (kind, command, _) in KINDS.items():
        if (folder / marker).exists():
            raise RunError(
                f"{folder} is a {kind}'s folder: purerl {command} continues it by the same command "
                f"with --run-dir {folder}"
            )
    if not (folder / RUN).exists():
        raise RunError(f"{folder} is no run's folder: it has no {RUN}")
    run = RunView(folder)
    seeds, hyperparams = run.given_seeds, run.hyperparams
    if seeds is not None and len(seeds) > 1:
        use_cores_for_members()
    mapping = run.read_config()
    refuse_code(mapping, {"eval_env": args.eval_env}, folder / CONFIG)
    there = mapping.get("eval_env")
    if args.eval_env is not None and (there is None or env_name(there) != args.eval_env):
        known = "none" if there is None else repr(env_name(there))
        raise ConfigError(f"--eval-env: got {args.eval_env!r}, expected that of the run, {known}")
    if args.env is not None:
        mapping["env"] = named_env(mapping.get("env"), args.env)
    elif is_code(mapping.get("env")):
        name = env_name(mapping["env"])
        raise ConfigError(f"--env: expected --env {name}, whose code this run needs")
    elif "env" not in mapping:
        raise ConfigError(
            f"env: that of {folder} has no form in {CONFIG}, since no name makes it: continue by "
            "purerl.fit, from Python"
        )
    if args.total_timesteps is not None:
        mapping["total_timesteps"] = args.total_timesteps
    elif mapping.get("total_timesteps") != run.total_timesteps:  # the rest of it `fit` compares
        raise RunError(
            f"{folder / CONFIG} has total_timesteps={mapping.get('total_timesteps')}, and the run "
            f"{run.total_timesteps}: --total-timesteps N says how long it is to be"
        )
    config = TrainConfig.from_mapping(mapping)
    return _train(config, seeds, folder, args, console, hyperparams, resume=True)


def newest_run() -> Path:
    """The last written folder of training in runs/. Raises RunError where there is none."""
    runs = {file.parent for name in (RUN, *KINDS) for file in RUNS.glob(f"*/{name}")}
    if not runs:
        raise RunError("there is no run in runs/: name a run's folder")
    return max(sorted(runs), key=written_at)


def written_at(folder: Path) -> float:
    """Time of the last write into a folder by training, not by plots."""
    names = (RUN, CONFIG, METRICS, SUMMARY, "checkpoints", *KINDS, "table.csv", BEST, WINNER)
    files = [*(folder / name for name in names), *folder.glob("group-*.npz")]
    times = []
    for file in files:
        with contextlib.suppress(OSError):  # not there, or removed meanwhile
            times.append(file.stat().st_mtime)
    return max(times, default=0.0)


def _train(
    config: TrainConfig,
    seeds: int | list[int] | None,
    folder: Path,
    args: argparse.Namespace,
    console: Console,
    hyperparams: dict | None = None,
    resume: bool | None = None,
    init: str | None = None,
) -> int:
    if args.render_every is not None:
        _check_videos(config, args)
    live = console_sink(config, seeds, folder, console)
    sinks: list[Sink] = [live]
    if not args.no_tensorboard:
        refuse_links(folder, [], [EVENTS])
        sinks.append(tensorboard_sink(folder / EVENTS, render_every=args.render_every))
    if args.wandb:
        wandb = wandb_sink(project=args.wandb, name=folder.name, render_every=args.render_every)
        sinks.append(wandb)
    options = {"report_every": args.report_every, "checkpoint_every": args.checkpoint_every}
    code = 0
    with live:
        try:
            out = fit(
                config,
                folder,
                seeds=seeds,
                hyperparams=hyperparams,
                init=init,
                resume=resume,
                callback=sinks,
                **options,
            )
        except Interrupted as error:
            if error.output is None:
                raise
            out, code = error.output, INTERRUPTED
    show_curve(console, out.metrics, out.timesteps)
    if config.stop_at_return is not None:
        console.print(solved_text(out, config.stop_at_return))
    if out.metrics.num_episodes.any():
        draw(folder)
    summary = read_summary(folder)
    if summary["finished"]:
        late = "interrupted when the run had finished; " if code else ""
        console.print(f"{late}all of it is in {folder}/", soft_wrap=True)
        return code
    console.print(
        f"interrupted after {summary['timesteps']:,} steps of each seed, which are saved; "
        f"to continue:\n  purerl resume {folder}",
        soft_wrap=True,
    )
    return code


def _check_videos(config: TrainConfig, args: argparse.Namespace) -> None:
    """Raises ConfigError unless videos can be made, and something shows them."""
    check_integer("--render-every", args.render_every, 1)
    refuse_host_films(config.make_loop().eval_env, "--render-every")
    if args.no_tensorboard and not args.wandb:
        raise ConfigError("--render-every: is for TensorBoard and W&B, and got --no-tensorboard")


def draw(folder: Path) -> None:
    """Draws `curve.png` in a run's folder."""
    from purerl.plots.runs import plot_curves
    from purerl.runs.view import read_run

    plot_curves([read_run(folder)], folder / "curve.png")
