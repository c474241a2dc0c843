"""`purerl plot`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from purerl.cli import Parser
from purerl.records.errors import ConfigError, RunError

if TYPE_CHECKING:
    from purerl.runs.curves import Curves

EPILOG = """\
Curves are interquartile means over seeds with a 95 % bootstrap band (Agarwal et al. 2021).

Examples:
  purerl plot runs/CartPole-v1-ppo-1
  purerl plot runs/CartPole-v1-ppo-1 runs/CartPole-v1-dqn-1 --x seconds --out curves.pdf
  purerl plot runs/CartPole-v1-* --compare
"""


def add_plot(parser: Parser, argv: Sequence[str]) -> None:
    """The arguments of `plot`."""
    del argv
    parser.epilog = EPILOG
    parser.add_argument(
        "runs", metavar="RUN", nargs="*", help="their folders (the newest in runs/)"
    )
    parser.add_argument("--out", metavar="FILE", help="a .png, .pdf or .svg (RUN/curve.png)")
    parser.add_argument("--x", default="steps", metavar="AXIS", help="steps (default) or seconds")
    parser.add_argument("--compare", action="store_true", help="final returns, and who is better")


def run_plot(args: argparse.Namespace, console: Console) -> int:
    """Draws curves, or a comparison."""
    from purerl.cli.training import newest_run
    from purerl.plots import figures
    from purerl.plots.runs import plot_comparison, plot_curves

    folders = [Path(run) for run in args.runs] or [newest_run()]
    if args.x not in ("steps", "seconds"):
        raise ConfigError(f"--x: got {args.x!r}, expected steps or seconds")
    if args.compare and len(folders) < 2:
        raise ConfigError("--compare: expected two runs or more")
    name = "comparison.png" if args.compare else "curves.png"
    out = Path(args.out or (folders[0] / "curve.png" if len(folders) == 1 else name))
    figures.check_path(out)
    curves = _read(folders)
    if args.compare:
        plot_comparison(curves, out)
    else:
        plot_curves(curves, out, x=args.x)
    console.print(f"{out}", soft_wrap=True)
    return 0


def _read(folders: list[Path]) -> list["Curves"]:
    """Reads curves. Of several folders, such as `runs/*`, those without curves are left out, with
    a line on standard error. Raises RunError where none has any, and for missing folders."""
    from purerl.runs.view import apart, read_run

    shown, left = {}, []
    for folder in dict.fromkeys(folders):
        try:
            shown[folder] = read_run(folder)
        except RunError as error:
            if len(folders) == 1 or not folder.exists():
                raise
            left.append(error)
    if not shown:
        raise left[0]
    for unusable in left:
        print(f"purerl: left out: {unusable}", file=sys.stderr)
    there = [folder for folder in folders if folder in shown]
    return apart(there, [shown[folder] for folder in there])
