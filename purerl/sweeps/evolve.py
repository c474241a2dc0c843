"""`evolve`: population-based training, of members that are laid out over every device."""

import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from purerl.accelerator import devices
from purerl.accelerator.members import Parts
from purerl.experience.metrics import Metrics
from purerl.records.errors import ConfigError, RunError, shown
from purerl.records.fields import check_count, check_key, check_path
from purerl.records.files import reason
from purerl.records.folders import refuse_links
from purerl.records.types import Plain, PyTree
from purerl.runs.checkpoint import ONE_AT_A_TIME, RunFolder
from purerl.runs.chunks import Program, join_metrics
from purerl.runs.folder import CONFIG, METRICS, POLICIES, SUMMARY
from purerl.runs.identity import hardware, warn_of_versions
from purerl.runs.view import BEST, EVOLVE
from purerl.sweeps.best import write_evolved
from purerl.sweeps.evolution import Effort, Evolution, EvolveResult, History
from purerl.sweeps.plan import Distribution, rng_of
from purerl.sweeps.population import draw, fitness_of, perturb, read_space, select
from purerl.sweeps.progress import progress
from purerl.training.config import TrainConfig
from purerl.training.describe import describe, differences, versions
from purerl.training.loop import Loop

SCHEDULES = "schedules.csv"
KEEP = 2  # checkpoints


def evolve(
    config: TrainConfig | Mapping[str, Plain],
    space: Mapping[str, Distribution],
    *,
    population: int,
    interval: int,
    warmup: int = 0,
    fraction: float = 0.25,
    resample: float = 0.25,
    factors: Sequence[float] = (0.8, 1.25),
    key: jax.Array | None = None,
    run_dir: str | os.PathLike[str] | None = None,
    checkpoint_every: float = 30.0,
    verbose: bool | None = None,
) -> EvolveResult:
    """Population-based training (Jaderberg et al. 2017, arXiv:1711.09846): P members are trained
    side by side, and after each interval the worst of them go on with copies of the best.

    A copy takes the whole state of its source, a `RunState`: networks, optimizer, buffer, running
    statistics, environments in the middle of their episodes, the run's clock. It keeps its own
    random keys, so that the two go different ways, and its hyperparameters are perturbed: each is
    multiplied by one of the factors, or drawn anew. So the floats follow schedules, which aren't
    known beforehand; the result has them. Each member is trained for `total_timesteps` in all, and
    what the agent anneals follows that length.

    One program trains an interval of all members, with the hyperparameters as its arguments; it is
    compiled once. Members are laid over all devices of the process, or over all cores of a CPU, as
    by `sweep`. Copies are written in place: memory is needed for the states of the population, and
    once more for those of the members that are replaced at a time. A member's training doesn't
    depend on the layout, to rounding, and bit for bit with as many members in a part; where
    rounding changes a rank, other members are copied from there on.

    Args:
        config: common to all members; a mapping as for `make_train`.
        space: distributions with bounds, `Uniform` or `LogUniform`, by the names of float fields,
            as in `sweep`: `lr`, `noise.sigma`, `env.gravity`. A member begins with values drawn
            from them (those of `sweep(config, samples=space, num_samples=population, key=key)`),
            and no value ever leaves the bounds. A factor leaves 0 at 0.
        population: P.
        interval: environment steps of a member between two selections, rounded up to whole rows of
            metrics (of `log_every` updates), at most half of the run. Where it doesn't divide the
            run, the last interval is longer, by what is left.
        warmup: environment steps of a member before the first selection, if that is more than an
            interval. Selection is greedy, and before anybody has learned it goes by chance: a
            member that would have learned later is lost.
        fraction: of the members, those that are replaced at most, and those that they are copies
            of, drawn uniformly; 0 for no selection. A member's fitness is the mean return of its
            training episodes that ended in the interval, each counted once; with `eval_every` the
            return of its last evaluation. A member is replaced only by a better one, and takes no
            part where none of its episodes ended. One that diverged (no return is finite, or
            `stop_if_nonfinite` froze it) is worse than all others.
        resample: probability that a hyperparameter of a copy is drawn anew.
        factors: those that others are multiplied by, all equally likely. Where the bounds are
            nearer to each other than the factors are to 1, as those of a discount may be, such a
            value lands on a bound: give factors nearer to 1, or evolve it by `resample` alone.
        key: decides everything random; None for `jax.random.key(0)`. Member i begins with
            `jax.random.split(key, population)[i]`.
        run_dir: a folder for checkpoints, `schedules.csv` and, under `best`, the best member as a
            run, for `read_run`, `purerl eval` and the like. The same call with the same folder
            resumes from the newest checkpoint, also after a kill, and ends in the same result, bit
            for bit (to rounding on another number of cores).
        checkpoint_every: seconds between checkpoints, which are made between intervals; the first
            one follows the first interval.
        verbose: None shows a progress bar on a terminal or in a notebook; True also prints a
            line for each interval elsewhere; False shows nothing.

    Raises:
        ConfigError: arguments that can't be used; another run, or other files, in `run_dir`. Raised
            before anything is compiled.
        RunError: the folder can't be written or read, or another process trains in it.
    """
    if not isinstance(config, TrainConfig):
        config = TrainConfig.from_mapping(config)
    key = jax.random.key(0) if key is None else key
    check_key(key)
    if verbose is not None and not isinstance(verbose, bool):
        raise ConfigError(f"verbose: got {shown(verbose)}, expected True or False or None")
    _check_number("checkpoint_every", checkpoint_every, 0.0, math.inf)
    _check_number("fraction", fraction, 0.0, 0.5)
    _check_number("resample", resample, 0.0, 1.0)
    population = check_count("population", population, at_least=2)
    interval = check_count("interval", interval)
    loop = _check_config(config)
    evolution = Evolution(
        config,
        read_space(config, space),
        population,
        _bounds(loop, interval, check_count("warmup", warmup, at_least=0)),
        float(fraction),
        float(resample),
        _check_factors(factors),
        key,
    )
    if run_dir is None:
        return _Population(evolution, None).train(checkpoint_every, verbose)
    path = check_path("run_dir", run_dir).absolute()
    with ONE_AT_A_TIME:
        opened = RunFolder(path, KEEP, marker=EVOLVE, kind="population")
    with opened as folder:
        _claim(folder, evolution)
        refuse_links(path, [SCHEDULES], [BEST])
        refuse_links(path / BEST, [CONFIG, METRICS, SUMMARY], [POLICIES])
        result = _Population(evolution, folder).train(checkpoint_every, verbose)
        try:
            result.to_csv(path / SCHEDULES)
        except OSError as error:
            raise RunError(f"run_dir: can't write into {path}: {reason(error)}") from None
        write_evolved(result, path)
    return result


def _check_number(name: str, value: object, least: float, most: float) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not least <= value <= most:  # type: ignore[operator]
        bounds = f">= {least:g}" + (f" and <= {most:g}" if most < math.inf else "")
        raise ConfigError(f"{name}: got {shown(value)}, expected a number {bounds}")


def _check_factors(factors: object) -> tuple[float, ...]:
    numbers = list(factors) if isinstance(factors, (tuple, list)) else []
    for x in numbers:
        if isinstance(x, bool) or not isinstance(x, (int, float)) or not 0 < x < math.inf:
            numbers = []
            break
    if not numbers:
        raise ConfigError(f"factors: got {shown(factors)}, expected numbers > 0, as (0.8, 1.25)")
    return tuple(map(float, numbers))


def _check_config(config: TrainConfig) -> Loop:
    """The run's loop. Raises ConfigError for options that a population can't have."""
    if config.num_devices not in (None, 1):
        raise ConfigError(
            "num_devices: a population lays whole members over the devices, leave it out of the "
            "config"
        )
    devices.check_one_host("evolve")
    for name in ("max_episodes", "stop_at_return"):
        if getattr(config, name) is not None:
            raise ConfigError(
                f"{name}: got {getattr(config, name)}, expected None: the members of a population "
                "are compared after the same number of steps, and all end at total_timesteps"
            )
    loop = config.make_loop()
    if loop.on_host:
        raise ConfigError(
            f"env: {config.env.spec.name} is simulated on the host, where members aren't trained "
            "side by side; purerl.sweep trains one after the other"
        )
    return loop


def _bounds(loop: Loop, interval: int, warmup: int) -> tuple[int, ...]:
    """Updates at which intervals begin, and the run's end. Raises ConfigError."""
    row = loop.steps_per_update * loop.log_every
    updates, first = (-(-steps // row) * loop.log_every for steps in (interval, warmup))
    first = max(first, updates)
    if first + updates > loop.num_updates:
        what = f"interval: got {interval}" + (f", warmup: got {warmup}" if warmup else "")
        raise ConfigError(
            f"{what}, which come to {(first + updates) * loop.steps_per_update} steps in whole "
            "rows of metrics before and after the first selection, expected at most the run's "
            f"{loop.num_updates * loop.steps_per_update}: no member would be replaced"
        )
    if loop.eval_every is not None and loop.eval_every > updates:
        raise ConfigError(
            f"eval_every: got {loop.eval_every} updates, expected at most the {updates} of an "
            "interval, whose last evaluation is a member's fitness"
        )
    # No short interval at the end, whose fitness would be that of a few episodes.
    starts = range(first, loop.num_updates - updates + 1, updates)
    return (0, *starts, loop.num_updates)


def _claim(folder: RunFolder, evolution: Evolution) -> None:
    """Writes the description of an evolution into a new folder, or compares it with the folder's.
    Raises ConfigError if it is another one."""
    run = json.loads(json.dumps(_identity(evolution)))  # as it comes back from a file
    found = folder.read_run()
    if found is None:
        folder.write_run({**run, "versions": versions(), "hardware": hardware()})
        return
    differing = next(differences({name: found.get(name) for name in run}, run), None)
    if differing is not None:
        raise ConfigError(
            f"run_dir: {folder.path} holds another population: {differing}; choose another folder "
            "(nothing was changed)"
        )
    warn_of_versions(folder, found)


def _identity(evolution: Evolution) -> dict[str, Plain]:
    loop = evolution.config.make_loop()
    return {
        "config": describe(evolution.config),
        "log_every": loop.log_every,
        "space": {name: str(x) for name, x in evolution.space.items()},
        "population": evolution.population,
        "bounds": list(evolution.bounds),
        "fraction": evolution.fraction,
        "resample": evolution.resample,
        "factors": list(evolution.factors),
        "key": np.asarray(jax.random.key_data(evolution.key)).tolist(),
    }


class _Population:
    """A population in training: its states and history, and what of them is saved."""

    def __init__(self, evolution: Evolution, folder: RunFolder | None) -> None:
        self.evolution, self.folder = evolution, folder
        first = draw(evolution.space, evolution.key, evolution.population)
        self.history = History.start(first, evolution.num_intervals)
        keys = jax.random.split(evolution.key, evolution.population)
        self.program = Program(evolution.config, keys, first)
        self.done = self.saved = 0  # intervals
        self.pieces: list[Metrics] = []
        self.unsaved: list[Metrics] = []
        self.state: Parts = []
        self.compile_seconds = self.seconds = 0.0
        if folder is not None:
            self._load(folder)

    def _load(self, folder: RunFolder) -> None:
        history = devices.place(_shapes(self.history), 1, False, 0)
        like = {"members": self.program.state_like, "history": history}
        with ONE_AT_A_TIME:
            start = folder.load(like, self.program.metrics_like)
        if start.state is None:
            return
        self.state = self.program.layout.split(start.state["members"])
        history = jax.tree.map(np.array, start.state["history"])
        # In the space's order again: JAX sorts a dict's names.
        values = {name: history.values[name] for name in self.evolution.space}
        self.history = history._replace(values=values)
        self.pieces = list(start.metrics)
        self.done = self.saved = self.evolution.bounds.index(start.num_updates)

    def train(self, checkpoint_every: float, verbose: bool | None) -> EvolveResult:
        """Trains the intervals that are left."""
        number = self.evolution.num_intervals
        with progress(number, verbose, "evolve", "intervals") as report:
            if self.done < number:
                report("compiling", self.done)
                began = time.perf_counter()
                self._start()
                self.compile_seconds = time.perf_counter() - began
                self._train(checkpoint_every, report)
        return self._result()

    def _start(self) -> None:
        self.program.compile(begun=bool(self.state))
        self._set_values()
        self.state = self.state or self.program.start()

    def _train(self, checkpoint_every: float, report: Callable[[str, int], None]) -> None:
        # The first checkpoint is early: before it, a kill loses everything.
        start = time.perf_counter()
        due_at = start + (0.0 if self.done == 0 else checkpoint_every)
        number = self.evolution.num_intervals
        report("training", self.done)
        while self.done < number:
            self._interval()
            if time.perf_counter() >= due_at or self.done == number:
                self._save()
                due_at = time.perf_counter() + checkpoint_every
            report("training", self.done)
        if self.folder is not None:
            self.folder.wait()
        self.seconds = time.perf_counter() - start

    def _interval(self) -> None:
        """Trains an interval, and replaces members unless it is the last."""
        start, stop = self.evolution.bounds[self.done : self.done + 2]
        self.state, pieces = self.program.run_all(self.state, start, stop)
        metrics = join_metrics(pieces)
        self.pieces.append(metrics)
        self.unsaved.append(metrics)
        self.history.fitness[self.done] = np.where(self._frozen(), -np.inf, fitness_of(metrics))
        self.done += 1
        if self.done < self.evolution.num_intervals:
            self._replace()

    def _frozen(self) -> np.ndarray | bool:
        """`[P]` bool, members that `stop_if_nonfinite` has frozen: what they returned before is
        nothing that they could go on from."""
        if not self.program.loop.stop_if_nonfinite:
            return False
        return np.asarray(self.program.counts(self.state).nonfinite_updates) > 0

    def _replace(self) -> None:
        """Begins interval `done`: the worst members take states of the best, and perturbed values
        of theirs."""
        evolution, history, i = self.evolution, self.history, self.done
        source = select(
            history.fitness[i - 1], evolution.fraction, rng_of(evolution.key, "select", i)
        )
        before = {name: x[i - 1] for name, x in history.values.items()}
        after = perturb(
            before,
            evolution.space,
            source,
            {name: rng_of(evolution.key, name, i) for name in evolution.space},
            factors=evolution.factors,
            resample=evolution.resample,
        )
        history.parents[i] = source
        for name, x in after.items():
            history.values[name][i] = x
        if evolution.most_replaced:
            self.state = self.program.layout.copy(self.state, source, evolution.most_replaced)
        self._set_values()

    def _set_values(self) -> None:
        """The hyperparameters of interval `done`, or after the last one its."""
        i = min(self.done, self.evolution.num_intervals - 1)
        self.program.set_values({name: x[i] for name, x in self.history.values.items()})

    def _save(self) -> None:
        """Starts to save the intervals that aren't saved yet."""
        if self.folder is None:
            return
        self.folder.wait()  # for the checkpoint that these metrics follow
        before, now = self.evolution.bounds[self.saved], self.evolution.bounds[self.done]
        history = jax.tree.map(jnp.array, self.history)
        state = {"members": self.program.kept(self.state), "history": history}
        with ONE_AT_A_TIME:
            self.folder.save_metrics(before, now, join_metrics(self.unsaved))
            self.folder.save(now, state)
        self.saved, self.unsaved = self.done, []

    def _result(self) -> EvolveResult:
        self._set_values()
        program = self.program
        # Buffers stay behind: they are the largest part, and nobody acts by them.
        state: PyTree = program.layout.join([x._replace(buffer=None) for x in self.state])
        output = program.output(state, join_metrics(self.pieces))
        effort = Effort(
            self.compile_seconds, self.seconds, program.layout.num_parts, program.memory
        )
        return EvolveResult(self.evolution, self.history, output, effort)


def _shapes(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)
