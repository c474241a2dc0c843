"""`purerl plot`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console

from purerl.cli import Parser
from purerl.cli.members import (
    MEMBER_BEST,
    add_member_flag,
    combination_label,
    read_members,
)
from purerl.records.errors import ConfigError, RunError
from purerl.runs.view import marker_of
from purerl.sweeps.view import read_sweep

if TYPE_CHECKING:
    from purerl.runs.curves import Curves

EPILOG = """\
Curves are interquartile means over seeds with a 95 % bootstrap band (Agarwal et al. 2021).

Examples:
  purerl plot runs/CartPole-v1-ppo-1
  purerl plot runs/CartPole-v1-ppo-1 runs/CartPole-v1-dqn-1 --x seconds --out curves.pdf
  purerl plot runs/CartPole-v1-* --compare
  purerl plot runs/CartPole-v1-ppo-sweep-1 --slices
  purerl plot runs/CartPole-v1-ppo-sweep-1 --member lr=3e-4 --y log/speed
"""


def add_plot(parser: Parser, argv: Sequence[str]) -> None:
    """The arguments of `plot`."""
    del argv
    parser.epilog = EPILOG
    parser.add_argument(
        "runs", metavar="RUN", nargs="*", help="their folders (the newest in runs/)"
    )
    parser.add_argument("--out", metavar="FILE", help="a .png, .pdf or .svg (RUN/curve.png)")
    parser.add_argument("--x", metavar="AXIS", help="steps (default) or seconds")
    parser.add_argument("--y", metavar="NAME", help="return (default), eval_return, or a metric")
    add_member_flag(parser)
    parser.add_argument("--env", metavar="MODULE:NAME", help="of a sweep, where it is yours")
    parser.add_argument("--compare", action="store_true", help="final returns, and who is better")
    parser.add_argument("--slices", action="store_true", help="of a sweep: returns by each field")


def run_plot(args: argparse.Namespace, console: Console) -> int:
    """Draws curves, or a comparison."""
    from purerl.cli.training import newest_run
    from purerl.plots import figures
    from purerl.plots.runs import plot_comparison, plot_curves

    folders = [Path(run) for run in args.runs] or [newest_run()]
    _check(args, folders)
    name = "comparison.png" if args.compare else "curves.png"
    alone = "slices.png" if args.slices else "curve.png"
    out = Path(args.out or (folders[0] / alone if len(folders) == 1 else name))
    figures.check_path(out)
    if args.slices:
        from purerl.plots.sweeps import plot_slices

        plot_slices(read_sweep(folders[0], args.env), path=out)
    elif args.compare:
        plot_comparison(_read(folders, args.member, args.env), out, y=args.y or "return")
    else:
        x, y = args.x or "steps", args.y or "return"
        plot_curves(_read(folders, args.member, args.env), out, x=x, y=y)
    console.print(f"{out}", soft_wrap=True)
    return 0


def _check(args: argparse.Namespace, folders: list[Path]) -> None:
    """Raises ConfigError for flags that don't fit each other, or would do nothing."""
    if args.x not in (None, "steps", "seconds"):
        raise ConfigError(f"--x: got {args.x!r}, expected steps or seconds")
    if args.compare and len(folders) < 2:
        raise ConfigError("--compare: expected two runs or more")
    if args.slices and (args.compare or len(folders) > 1):
        raise ConfigError("--slices: expected one sweep, without --compare")
    picture = "--compare" if args.compare else "--slices" if args.slices else None
    for flag, given in (("--x", args.x), ("--y", args.y if args.slices else None)):
        if picture and given is not None:
            raise ConfigError(
                f"{flag}: got {given!r}, expected without {picture}, which shows what runs end at"
            )
    if args.slices and args.member != MEMBER_BEST:
        raise ConfigError(f"--member: got {args.member!r}, expected without --slices")
    if args.env is not None and not args.slices and args.member == MEMBER_BEST:
        raise ConfigError("--env: is for --slices and --member of a sweep, which need its code")


def _read(folders: list[Path], member: str, env: str | None) -> list["Curves"]:
    """Reads curves. Of several folders, such as `runs/*`, those without curves are left out, with
    a line on standard error. Raises RunError where none has any, and for missing folders."""
    from purerl.runs.view import apart, read_run

    shown, left = [], []
    for folder in dict.fromkeys(folders):
        try:
            several = member != MEMBER_BEST and marker_of(folder) is not None
            curves = _members(folder, member, env) if several else [read_run(folder)]
            shown += [(folder, curve) for curve in curves]
        except RunError as error:
            if len(folders) == 1 or not folder.exists():
                raise
            left.append(error)
    if not shown:
        raise left[0]
    for unusable in left:
        print(f"purerl: left out: {unusable}", file=sys.stderr)
    return apart([folder for folder, _ in shown], [curve for _, curve in shown])


def _members(folder: Path, member: str, env: str | None) -> list["Curves"]:
    """Curves of the chosen members of a sweep, one for each combination."""
    from purerl.plots.sweeps import member_curves

    result, members = read_members(folder, member, env)
    seeds = len(result.plan.seeds)
    groups: dict[int, list[int]] = {}
    for i in members:
        groups.setdefault(i // seeds, []).append(i)
    return [
        member_curves(result, combination_label(result, places[0]), np.array(sorted(places)))
        for places in groups.values()
    ]
