"""`purerl ls` and `purerl watch`."""

import argparse
import json
from collections.abc import Sequence
from http.server import ThreadingHTTPServer
from pathlib import Path

from rich.console import Console
from rich.table import Table

from purerl.cli import INTERRUPTED, Parser
from purerl.cli.flags import check_integer
from purerl.cli.training import RUNS, newest_run, written_at
from purerl.records.errors import RunError
from purerl.records.files import reason

# Of the page, where it is free.
PORT = 7007


def add_ls(parser: Parser, argv: Sequence[str]) -> None:
    """The arguments of `ls`."""
    del argv
    parser.epilog = "Example:\n  purerl ls runs --json"
    parser.add_argument("folder", nargs="?", metavar="FOLDER", help="that holds them (runs)")
    parser.add_argument("--json", action="store_true", help="for programs")


def run_ls(args: argparse.Namespace, console: Console) -> int:
    """Lists what is in a folder, the newest first."""
    from purerl.runs.status import list_folders, status_of

    root = Path(args.folder or RUNS)
    if args.folder is None and not root.exists():
        raise RunError(f"there is no folder {RUNS} here: purerl train makes it, or name another")
    found = [status_of(x) for x in sorted(list_folders(root), key=written_at, reverse=True)]
    if args.json:
        print(json.dumps([x._asdict() for x in found], indent=2))
        return 0
    if not found:
        console.print(f"{root} holds no run", soft_wrap=True)
        return 0
    heads = ("name", "kind", "environment", "agent", "seeds", "steps", "return", "state")
    table = Table(*heads, box=None, pad_edge=False)
    for column in table.columns[4:7]:
        column.justify = "right"
    for column in (table.columns[0], table.columns[5], table.columns[-1]):
        column.no_wrap = True
    for x in found:
        steps = "-" if x.timesteps is None else f"{x.timesteps:,}"
        if x.state not in ("finished", "damaged") and x.total_timesteps:
            steps += f" of {x.total_timesteps:,}"
        result = "-" if x.final_return is None else f"{x.final_return:.1f}"
        cells = (x.env or "-", x.agent or "-", str(x.seeds or "-"), steps, result, x.state)
        table.add_row(x.name, x.kind, *cells)
    console.print(table)
    for x in found:
        if x.problem:
            console.print(f"{x.name}: {x.problem}", soft_wrap=True)
    return 0


def add_watch(parser: Parser, argv: Sequence[str]) -> None:
    """The arguments of `watch`."""
    del argv
    parser.epilog = (
        "The page is for this machine alone, reads the folders and writes nothing. From another\n"
        f"one: ssh -L {PORT}:127.0.0.1:{PORT} HOST\n\n"
        "Example:\n  purerl watch runs/CartPole-v1-ppo-1 runs/CartPole-v1-dqn-1"
    )
    parser.add_argument(
        "runs", metavar="RUN", nargs="*", help="their folders (the newest in runs/)"
    )
    parser.add_argument(
        "--port", type=int, metavar="N", help=f"of the page ({PORT}, or a free one)"
    )


def run_watch(args: argparse.Namespace, console: Console) -> int:
    """Serves the page until Ctrl-C."""
    check_integer("--port", args.port, 1, 65_535)
    folders = list(dict.fromkeys(Path(run) for run in args.runs)) or [newest_run()]
    with _server(folders, args.port) as server:
        address = f"http://127.0.0.1:{server.server_port}/"
        console.print(f"{address}  ({', '.join(map(str, folders))})", soft_wrap=True)
        console.print("Ctrl-C ends this page; training goes on")
        try:
            server.serve_forever(poll_interval=0.2)
        except KeyboardInterrupt:
            console.print("the page is closed")
            return INTERRUPTED
    return 0


def _server(folders: Sequence[Path], port: int | None) -> ThreadingHTTPServer:
    """A server on a port; without one on the usual, or where that is taken, on a free one."""
    from purerl.runs.watch import make_server

    try:
        return make_server(folders, PORT if port is None else port)
    except OSError as error:
        if port is None:
            return make_server(folders, 0)
        raise RunError(f"--port: {port} can't be had: {reason(error)}") from None
