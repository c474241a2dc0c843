"""What the folders of runs, sweeps, populations and searches hold, in a line each."""

import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from purerl.records.errors import RunError
from purerl.records.folders import LOCK, is_locked
from purerl.runs.folder import RUN
from purerl.runs.view import KINDS, RunView, marker_of, read_json


class Status(NamedTuple):
    """What a folder holds.

    Attributes:
        name: of the folder.
        kind: "run", "sweep", "population" or "search".
        env, agent: their names; None if they can't be read.
        best: the hyperparameters of the best in words; "" for a run.
        seeds: number of seeds, of several runs that of the best.
        timesteps: environment steps of each seed so far.
        total_timesteps: of the finished run; None if `max_episodes` ends it, or it isn't known.
        final_return: the mean over seeds; None if it isn't known.
        state: that of `RunView`, or "damaged"; of several runs "running", "finished" or
            "unfinished".
        problem: why it is damaged.
    """

    name: str
    kind: str
    env: str | None = None
    agent: str | None = None
    best: str = ""
    seeds: int | None = None
    timesteps: int | None = None
    total_timesteps: int | None = None
    final_return: float | None = None
    state: str = "damaged"
    problem: str | None = None


def list_folders(root: Path) -> list[Path]:
    """The folders of runs and the like in a folder; or the folder alone, if it is one.

    Raises:
        RunError: it can't be listed.
    """

    def is_one(folder: Path) -> bool:
        return (folder / RUN).is_file() or marker_of(folder) is not None

    if is_one(root):
        return [root]
    try:
        return [Path(x.path) for x in os.scandir(root) if x.is_dir() and is_one(Path(x.path))]
    except OSError as error:
        raise RunError(f"{root} can't be listed: {error.strerror}") from None


def status_of(folder: Path) -> Status:
    """What a folder of `list_folders` holds; damage is in the answer."""
    marker = marker_of(folder)
    kind = "run" if marker is None else KINDS[marker].noun
    status = Status(folder.absolute().name, kind)
    try:
        if marker is not None and is_locked(folder / LOCK):
            return status._replace(**_described(folder / marker), state="running")
        if marker is not None and not (folder / KINDS[marker].best).is_dir():
            return status._replace(**_described(folder / marker), state="unfinished")
        view = RunView(folder)
        known = np.array([x for x in view.final_returns() if x is not None], float)
        return status._replace(
            env=view.env,
            agent=view.agent,
            best=view.label,
            seeds=len(view.seeds),
            timesteps=view.reached_timesteps,
            total_timesteps=view.total_timesteps if marker is None else None,
            final_return=float(known.mean()) if known.size else None,
            state=view.state,
        )
    except RunError as error:
        return status._replace(problem=str(error))


def _described(file: Path) -> dict[str, Any]:
    """What is known of several runs whose best isn't known yet."""
    plain: Any = read_json(file) or {}
    config, seeds = plain.get("config"), plain.get("seeds")
    known = config if isinstance(config, dict) else {}
    env, agent = (x if isinstance(x := known.get(n), dict) else {} for n in ("env", "agent"))
    return {
        "env": env.get("env"),
        "agent": agent.get("class"),
        "seeds": len(seeds) if isinstance(seeds, list) else None,
    }
