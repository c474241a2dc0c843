"""`load_sweep`: a sweep's folder read back, also during training and after a kill."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from purerl.records.errors import ConfigError, RunError
from purerl.records.fields import check_path
from purerl.records.files import reason, seal_of
from purerl.records.types import Plain
from purerl.runs.folder import CONFIG
from purerl.runs.view import (
    KINDS,
    SWEEP,
    TUNE,
    WINNER,
    marker_of,
    read_json,
    read_toml,
)
from purerl.sweeps.plan import Plan, Values, plan_of
from purerl.sweeps.result import Effort, SweepResult
from purerl.sweeps.store import Store, describe_sweep
from purerl.sweeps.sweep import Job
from purerl.training.config import TrainConfig
from purerl.training.describe import differences
from purerl.training.named import env_name, is_code, named_env


def load_sweep(path: str | os.PathLike[str], env: object = None) -> SweepResult:
    """A sweep from its folder: all members that are trained, as `sweep` returns them.

    Nothing is written there, so that it may be read while it trains, after a kill, and from a disk
    that is read-only. Members that aren't trained yet have NaN for returns and 0 steps in the
    table, and no output. Of a search's folder (`purerl.tune`) it is the winner, with fresh seeds.

    Args:
        path: the folder.
        env: the environment that it trains in, or its `module:name`, if that is the user's code.

    Raises:
        ConfigError: the environment's code is missing.
        RunError: it is no sweep's folder, is damaged, or what it sweeps isn't all in its files:
            the program that began it calls `sweep` with the same arguments instead.
    """
    try:
        return read_sweep(check_path("path", path), env)
    except ConfigError as error:
        raise ConfigError(str(error).replace("--env", "env")) from None


def read_sweep(folder: Path, env: object) -> SweepResult:
    """As `load_sweep`, with errors in the words of the command."""
    if (folder / TUNE).exists():
        folder /= WINNER
    about = read_json(folder / SWEEP)
    if about is None:
        raise RunError(f"{folder} is no sweep's folder: it has no {SWEEP}{_of_what(folder)}")
    plan, keep_buffer = _read_plan(folder, about, env)
    store = Store(folder, seal_of(about), read_only=True)
    results = Job(plan, store, None, keep_buffer, False).load()
    done = np.zeros(plan.num_members, bool)
    for result, trained in results:
        done[result.group.members] = trained
    return SweepResult(plan, [result for result, _ in results], Effort(), done)


def _of_what(folder: Path) -> str:
    """What a folder is of, if it is another kind's, for a message."""
    marker = marker_of(folder)
    return "" if marker is None else f"; it is a {KINDS[marker].noun}'s, which keeps its best alone"


def _read_plan(folder: Path, about: Mapping[str, Plain], env: object) -> tuple[Plan, bool]:
    """The plan that a folder's description is of, and whether buffers are kept."""
    file = folder / SWEEP
    try:
        names, seeds = tuple(about["names"]), tuple(about["seeds"])
        combinations: list[Values] = [dict(values) for values in about["combinations"]]
        keep_buffer = bool(about["keep_buffer"])
        if not isinstance(about["config"], dict):
            raise ValueError("its config is no object")
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(f"{file} is damaged: {reason(error)}") from None
    for name, value in ((n, x[n]) for n in ("env", "eval_env") for x in combinations if n in x):
        if is_code(value):
            raise RunError(
                f"{file} has {name}={env_name(value)}, which is code that would be run: the "
                "program that began it calls sweep with the same arguments, and gets what is there"
            )
    config = _read_config(folder, env)
    try:
        plan = plan_of(config, names, combinations, seeds)
    except ConfigError as error:
        raise RunError(f"{folder} holds a sweep of what has no form in files: {error}") from None
    here: dict[str, Any] = describe_sweep(plan, keep_buffer)
    here["versions"] = about.get("versions")
    # The user may name the environment anew, and code for evaluations isn't run.
    same = ["eval_env", *(["env"] if env is not None else [])]
    here["config"] = {**here["config"], **{n: about["config"].get(n) for n in same}}
    differing = next(differences(dict(about), here), None)
    if differing is not None:
        raise RunError(
            f"{folder} holds a sweep that isn't all in its {CONFIG} ({differing}): the program "
            "that began it calls sweep with the same arguments, and gets what is there"
        )
    return plan, keep_buffer


def _read_config(folder: Path, env: object) -> TrainConfig:
    """The config that all members have in common."""
    file = folder / CONFIG
    try:
        mapping = read_toml(file)
    except FileNotFoundError:
        raise RunError(
            f"{folder} has no {CONFIG}, as of an earlier version: the same sweep with this folder "
            "writes it"
        ) from None
    except (OSError, ValueError) as error:
        raise RunError(f"{file} is damaged: {reason(error)}") from None
    named = mapping.get("env")
    if named is None or is_code(named):
        if env is None:
            raise ConfigError(
                "--env: missing, since no name makes the sweep's environment: give yours"
                if named is None
                else f"--env: expected --env {env_name(named)}, whose code is yours"
            )
        mapping["env"] = named_env(named, env) if isinstance(env, str) else env
    if is_code(mapping.get("eval_env")):  # which results don't need
        mapping["eval_env"] = None
    return TrainConfig.from_mapping(mapping)
