"""`tune`: a search for hyperparameters, in batches of trials: one vmapped program for each
combination of static values."""

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from purerl.records.errors import ConfigError, shown, suggest
from purerl.records.fields import check_count, check_path
from purerl.records.files import write_whole
from purerl.records.folders import LOCK, is_taken, locked, refuse_links
from purerl.runs.view import TUNE, WINNER
from purerl.sweeps.plan import check_base, plan_of
from purerl.sweeps.progress import Notify, progress
from purerl.sweeps.rungs import Rungs, Trainer
from purerl.sweeps.space import Space, read_space
from purerl.sweeps.store import claim
from purerl.sweeps.study import JOURNAL, PROGRESS, SAMPLERS, Study, check_optuna, quiet
from purerl.sweeps.sweep import sweep, written
from purerl.sweeps.tuned import TuneResult, best_trial
from purerl.training.config import TrainConfig
from purerl.training.describe import describe, versions
from purerl.training.train import check_seed, list_seeds

PRESET, TABLE = "best.toml", "table.csv"
FORMAT = 1


class Search(NamedTuple):
    """A search's arguments, checked."""

    config: TrainConfig
    space: Space
    trials: int
    seeds: tuple[int, ...]
    fresh: tuple[int, ...]
    batch: int
    rungs: Rungs
    sampler: str
    seed: int

    def describe(self) -> dict[str, object]:
        """Its identity in plain values: equal for the same search alone."""
        space = {
            name: {"draw": type(draw).__name__, **describe(vars(draw))}
            for name, draw in self.space.draws.items()
        }
        rest = self._asdict() | {"config": describe(self.config), "space": space}
        rest["rungs"] = describe(vars(self.rungs))
        return {"format": FORMAT, **rest, "versions": {**versions(), "optuna": version("optuna")}}


def tune(
    config: TrainConfig | Mapping[str, object],
    space: Mapping[str, object] | None = None,
    *,
    trials: int = 48,
    seeds: int | Sequence[int] = 2,
    fresh_seeds: int | Sequence[int] = 16,
    batch: int = 16,
    rungs: int | None = None,
    reduction: int = 3,
    sampler: str = "tpe",
    seed: int = 0,
    run_dir: str | os.PathLike[str] | None = None,
    verbose: bool | None = None,
) -> TuneResult:
    """Searches for the hyperparameters with the highest return, with Optuna.

    Trials are asked for in batches; a batch is trained at once, all its trials with all seeds, laid
    over the devices or cores as `sweep` lays them, in one program for each combination of static
    values. By successive halving the lower part of a batch leaves on each rung; those who stay
    train on as they would have without the others. The score is the mean over seeds of the final
    return, or of the last evaluation where the config has `eval_every`, as in `SweepResult.table`.
    Where no episode ended in the last tenth of the rows so far, the newest row with one counts; a
    trial whose score is older for that, or which has none yet, isn't taken to be worse than others:
    beside the best as many of those stay, at most. One without any return since its numbers weren't
    finite is the worst. At the end the trial with the highest score is trained again with fresh
    seeds: its score is the best of many, and too good by chance.

    Args:
        config: common to all trials; a mapping as for `make_train`.
        space: draws by field, `Uniform`, `LogUniform`, `Choice`, or lists of values; names as of
            `sweep`, such as `lr`, `num_envs` or `env.gravity`. None for the agent's usual space.
        trials: how many.
        seeds: of each trial: how many (0, 1, ...), or a sequence of seeds.
        fresh_seeds: of the winner's measurement: how many, following the others; or a sequence.
        batch: trials asked for at once; the sampler learns from whole batches.
        rungs: R of successive halving; 1 trains every trial to its end, as environments of the host
            need. None for 3, on the host 1.
        reduction: one in so many trials of a rung stays, and trains so many times as long: with 3
            rungs a ninth, a third and the whole of the run, or up to the next evaluation.
        sampler: "tpe" (the tree-structured Parzen estimator, Bergstra et al. 2011) or "random".
        seed: of the sampler.
        run_dir: a folder with Optuna's journal of the trials, the winner's policies, and the winner
            as a preset, `best.toml`. The same call with the same folder continues there after a
            kill: finished batches aren't trained again, and the result is the same.
        verbose: None shows a progress bar on a terminal or in a notebook; True also prints
            lines elsewhere; False shows nothing.

    Needs Optuna (`pip install 'purerl[tune]'`). Between two rungs the states of a batch, with their
    buffers, are in the host's memory.

    Raises:
        ConfigError: an invalid name or value, or another search in `run_dir`. Raised before
            anything is compiled.
        RunError: the folder can't be written or read.
    """
    if verbose is not None and not isinstance(verbose, bool):
        raise ConfigError(f"verbose: got {shown(verbose)}, expected True or False or None")
    config = check_base(config)
    search = Search(
        config,
        read_space(config, space),
        check_count("trials", trials),
        *_seeds(seeds, fresh_seeds),
        check_count("batch", batch),
        Rungs(_num_rungs(config, rungs), check_count("reduction", reduction, at_least=2)),
        _sampler(sampler),
        check_seed("seed", seed),
    )
    check_optuna()
    with quiet(), _opened(run_dir, search) as (folder, name):
        return _search(search, folder, name, verbose)


def _seeds(
    seeds: int | Sequence[int], fresh_seeds: int | Sequence[int]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The seeds of trials, and those of the measurement. Raises ConfigError where one is both."""
    chosen = list_seeds(seeds)
    try:
        fresh = list_seeds(fresh_seeds)
    except ConfigError as error:
        raise ConfigError(str(error).replace("seeds:", "fresh_seeds:", 1)) from None
    if isinstance(fresh_seeds, int):
        first = max(chosen) + 1
        fresh = tuple((first + i) % 2**32 for i in range(len(fresh)))
    both = sorted(set(chosen) & set(fresh))
    if both:
        raise ConfigError(f"fresh_seeds: got {both[0]}, expected seeds that no trial has")
    return chosen, fresh


def _num_rungs(config: TrainConfig, rungs: int | None) -> int:
    on_host = config.make_loop().on_host
    if rungs is None:
        return 1 if on_host else 3
    rungs = check_count("rungs", rungs, at_most=10)
    if on_host and rungs > 1:
        raise ConfigError(
            f"rungs: got {rungs}, expected 1: {config.env.spec.name} is simulated on the host, "
            "where a run can't be left and taken up again"
        )
    return rungs


def _sampler(sampler: object) -> str:
    if sampler not in SAMPLERS:
        raise ConfigError(f"sampler: got {shown(sampler)}; {suggest(sampler, SAMPLERS)}")
    return str(sampler)


@contextlib.contextmanager
def _opened(
    run_dir: str | os.PathLike[str] | None, search: Search
) -> Iterator[tuple[Path | None, str]]:
    """The folder of a search, locked, and a hash of its description.

    Raises:
        ConfigError: something else is in it, or another search.
        RunError: it can't be written, or another process searches in it.
    """
    if run_dir is None:
        yield None, ""
        return
    path = check_path("run_dir", run_dir).absolute()
    is_taken(path, TUNE, "search")
    refuse_links(path, [TUNE, JOURNAL, PROGRESS, PRESET, TABLE], [WINNER])
    with contextlib.ExitStack() as exits:
        with written(path, "batches"):
            path.mkdir(parents=True, exist_ok=True)
            exits.enter_context(locked(path / LOCK))
            name = claim(path, TUNE, "search", search.describe())
        yield path, name


def _search(search: Search, folder: Path | None, name: str, verbose: bool | None) -> TuneResult:
    with _writing(folder):
        study = Study(search.space, search.sampler, search.seed, folder, name)
    trainer = Trainer.of(search.rungs, min(search.batch, search.trials), len(search.seeds))
    with progress(search.trials, verbose, "tune", "trials") as report:
        for start in range(study.batches * search.batch, search.trials, search.batch):
            _train_batch(search, study, trainer, start, report)
        report("done", search.trials)
    trials = tuple(study.trials())
    found, measured = best_trial(trials), None
    if found is not None:
        where = None if folder is None else folder / WINNER
        grid = {field: [value] for field, value in found.values.items()}
        measured = sweep(search.config, seeds=search.fresh, grid=grid, run_dir=where,
                         verbose=verbose)  # fmt: skip
    by = "final_return" if search.config.eval_every is None else "eval_return"
    result = TuneResult(
        search.config,
        search.space.draws,
        trials,
        measured,
        study.importance(),
        by,
        search.rungs.number,
        trainer.seconds,
        trainer.compile_seconds,
    )
    if folder is not None:
        with written(folder, "batches"):
            result.to_csv(folder / TABLE)
            preset = result.preset()
            if preset is not None:
                write_whole(folder / PRESET, lambda file: file.write(preset.encode()))
    return result


def _writing(folder: Path | None) -> contextlib.AbstractContextManager[None]:
    """For what may write into the folder, if there is one."""
    return contextlib.nullcontext() if folder is None else written(folder, "batches")


def _train_batch(
    search: Search, study: Study, trainer: Trainer, start: int, report: Notify
) -> None:
    """Asks for a batch, trains it, and tells what became of it."""
    count = min(search.batch, search.trials - start)
    with _writing(study.folder):
        combinations, misfits = study.ask(count), dict[int, str]()
    plan = plan_of(search.config, search.space.names, combinations, search.seeds, misfits)
    if len(misfits) == count and start == 0:
        raise ConfigError(f"space: no combination can be trained, such as: {misfits[0]}")
    number, batches = start // search.batch + 1, -(-search.trials // search.batch)
    outcomes = trainer.train(
        plan, lambda words: report(f"batch {number} of {batches}, {words}", start)
    )
    for i, misfit in misfits.items():
        outcomes[i].misfit = misfit
    with _writing(study.folder):
        study.tell(outcomes, search.rungs.number)
