"""The best combination of a sweep, or member of a population, written as the folder of a run."""

import json
import warnings
from pathlib import Path

import jax
import numpy as np

from purerl.experience.metrics import Metrics
from purerl.records.errors import ConfigError, RunError
from purerl.records.files import reason, sealed, write_whole
from purerl.records.types import PyTree
from purerl.runs.folder import (
    CONFIG,
    METRICS,
    POLICIES,
    SUMMARY,
    config_text,
    curves_of_output,
    summarize,
    updates_gone_through,
    write_policies,
)
from purerl.runs.report import Report
from purerl.runs.sinks import csv_sink
from purerl.runs.view import BEST
from purerl.sweeps.evolution import EvolveResult
from purerl.sweeps.plan import Values
from purerl.sweeps.result import SweepResult
from purerl.training.config import TrainConfig
from purerl.training.describe import describe, versions
from purerl.training.loop import RunState


def write_best(result: SweepResult, run_dir: Path) -> None:
    """Writes the combination with the highest mean return, all its seeds, into `run_dir/best`:
    config, metrics, summary and policies, for `read_run` and the command to read.

    Warns where it can't be written: the sweep is done, and its slices are saved.

    Args:
        result: of the whole sweep. Without an episode that ended, nothing is written.
        run_dir: the sweep's folder.
    """
    if not result.has_returns:
        return
    best, seeds = result.best(), result.plan.seeds
    first = best.member // len(seeds) * len(seeds)
    outs: list[PyTree] = [result.member(first + i) for i in range(len(seeds))]
    _try_to_write(run_dir, result.config(first), seeds, outs, best.hyperparams)


def write_evolved(result: EvolveResult, run_dir: Path) -> None:
    """Writes the best member of a population into `run_dir/best`, as `write_best` does: metrics are
    those of its lineage, and config and `best` have its last hyperparameters.

    Args:
        result: of the whole evolution. Without a fitness, nothing is written.
        run_dir: its folder.
    """
    if not result.has_fitness:
        return
    best = result.best()
    values = {name: float(best.schedule[name][-1]) for name in result.names}
    config = result.config(best.member)
    _try_to_write(run_dir, config, (best.member,), [best.output], values)


def _try_to_write(
    run_dir: Path, config: TrainConfig, seeds: tuple[int, ...], outs: list[PyTree], values: Values
) -> None:
    try:
        _write(run_dir / BEST, config, seeds, outs, values)
    except (ConfigError, RunError, OSError) as error:
        warnings.warn(f"the best agent isn't in {run_dir}: {reason(error)}", stacklevel=4)


def _write(
    folder: Path,
    config: TrainConfig,
    seeds: tuple[int, ...],
    outs: list[PyTree],
    values: Values,
) -> None:
    (folder / POLICIES).mkdir(parents=True, exist_ok=True)
    for seed, out in zip(seeds, outs, strict=True):
        write_policies(folder, (seed,), out)
    metrics: Metrics = jax.tree.map(lambda *xs: np.stack(xs), *(out.metrics for out in outs))
    whole = outs[0].replace(metrics=metrics, state=_counts(outs))
    stop, steps = updates_gone_through(whole), whole.steps_per_update
    # The time of a single member isn't known.
    took = (np.nan, np.nan)
    report = Report(0, stop, stop, steps, metrics, *took, seeds, whole.log_every)
    csv_sink(folder / METRICS)(report)
    _write_text(folder / CONFIG, config_text(config))
    about = {"seeds": list(seeds), "finished": True, "best": describe(values)}
    about["curves"] = curves_of_output(seeds, whole)
    summary = summarize(config, whole) | about | {"versions": versions()}
    _write_text(folder / SUMMARY, json.dumps(sealed(summary), indent=2) + "\n")


def _counts(outs: list[PyTree]) -> RunState:
    """The state of the first run, with what the summary has of it from all."""
    states: list[RunState] = [out.state for out in outs]
    bests = [x.best and x.best._replace(agent=None, obs_stats=None) for x in states]
    best, solved = (
        jax.tree.map(lambda *xs: np.stack(xs), *trees)
        for trees in (bests, [x.solved for x in states])
    )
    num_updates: PyTree = np.array([int(x.num_updates) for x in states])
    return states[0]._replace(num_updates=num_updates, best=best, solved=solved)


def _write_text(file: Path, text: str) -> None:
    write_whole(file, lambda opened: opened.write(text.encode()))
