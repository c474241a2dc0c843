"""`purerl plot`."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from purerl.errors import ConfigError, RunError
from purerl.host.cli import Parser

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
    """Draws."""
    from purerl.host.cli.training import newest_run
    from purerl.host.curves import read_runs
    from purerl.host.plotting import plot_comparison, plot_curves

    folders = [Path(run) for run in args.runs] or [newest_run()]
    if args.x not in ("steps", "seconds"):
        raise ConfigError(f"--x: got {args.x!r}, expected steps or seconds")
    if args.compare and len(folders) < 2:
        raise ConfigError("--compare: expected two runs or more")
    name = "comparison.png" if args.compare else "curves.png"
    out = Path(args.out or (folders[0] / "curve.png" if len(folders) == 1 else name))
    curves = read_runs(folders)
    try:
        if args.compare:
            plot_comparison(curves, out)
        else:
            plot_curves(curves, out, x=args.x)
    except OSError as error:
        raise RunError(f"can't write {out}: {error.strerror}") from error
    console.print(f"{out}", soft_wrap=True)
    return 0
