"""A batch of trials in training, by successive halving: on each rung the lower part leaves.

Karnin et al. 2013, Jamieson and Talwalkar 2016. Every member trains in chunks of its whole run,
with schedules of the whole length, so that those who stay end as they would have alone.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from purerl.accelerator.machine import check_memory
from purerl.accelerator.members import most_parts
from purerl.accelerator.transfer import from_host, host_shape, to_host
from purerl.experience.metrics import Metrics
from purerl.records.errors import ConfigError
from purerl.records.files import counted
from purerl.runs.chunks import Program, join_metrics
from purerl.statistics import bin_curves
from purerl.sweeps.plan import Group, Plan, Values, same_values
from purerl.sweeps.result import newest_return
from purerl.sweeps.slices import MEMBERS_PER_CORE
from purerl.training.train import final_return

# Points of the learning curve that is kept of each trial.
CURVE = 50


@dataclasses.dataclass(frozen=True)
class Rungs:
    """A schedule of successive halving.

    Attributes:
        number: R, rungs; 1 trains every trial to its end.
        factor: of the trials on a rung one in so many stays, and trains so many times as long.
    """

    number: int
    factor: int

    def stop(
        self, rung: int, num_updates: int, log_every: int, eval_every: int | None = None
    ) -> int:
        """The updates that a run of `num_updates` has done at a rung's end: up to an evaluation,
        so that no trial is judged before its first one, and whole rows of metrics."""
        if rung == self.number - 1:
            return num_updates
        stop = -(-num_updates // self.factor ** (self.number - 1 - rung))
        for whole in (eval_every or 1, log_every):
            stop = -(-stop // whole) * whole
        return min(num_updates, stop)

    def stay(self, count: int) -> int:
        """How many of the trials on a rung stay, of those whose scores compare."""
        return -(-count // self.factor)


@dataclasses.dataclass
class Outcome:
    """What became of a trial.

    Attributes:
        scores: of each rung that it reached: the mean over seeds, NaN where none has a return yet,
            -inf where none has one since numbers weren't finite.
        returns: `[seeds]`, each seed's at the last of them.
        is_late: whether one of these is older than the last tenth of the rows so far, in which no
            episode of the seed ended.
        num_timesteps: environment steps that it was trained for, over all seeds.
        curve: environment steps of one seed, and the mean return over seeds there.
        misfit: why it couldn't be trained; "" if it was.
    """

    scores: list[float] = dataclasses.field(default_factory=list)
    returns: list[float] = dataclasses.field(default_factory=list)
    is_late: bool = False
    num_timesteps: int = 0
    curve: list[list[float]] = dataclasses.field(default_factory=lambda: [[], []])
    misfit: str = ""


@dataclasses.dataclass
class Trainer:
    """Trains batches of trials. One program for each combination of static values, compiled when
    it is first needed, trains slices of a fixed number of members.

    Attributes:
        rungs: the schedule.
        slice_size: members trained at once, at most.
        programs: by static values.
        compile_seconds, seconds: of compiling, and of training.
    """

    rungs: Rungs
    slice_size: int
    programs: list[tuple[Values, Program]] = dataclasses.field(default_factory=list)
    compile_seconds: float = 0.0
    seconds: float = 0.0

    @classmethod
    def of(cls, rungs: Rungs, batch: int, num_seeds: int) -> "Trainer":
        """A trainer of batches of so many trials, with so many seeds each."""
        members = batch * num_seeds
        if jax.default_backend() == "cpu":
            # No more than are left at the end, where a slice that isn't full would waste a core.
            left = batch
            for _ in range(rungs.number - 1):
                left = rungs.stay(left)
            parts = most_parts()
            members = min(members, max(parts, min(left * num_seeds, MEMBERS_PER_CORE * parts)))
        return cls(rungs, members)

    def train(self, plan: Plan, report: Callable[[str], None]) -> list[Outcome]:
        """What became of each combination of a plan.

        Args:
            plan: of the trials.
            report: called with what is done, in words.
        """
        seeds = len(plan.seeds)
        outcomes = [Outcome() for _ in plan.combinations]
        runs = [GroupRun(self._program(group, report), group) for group in plan.groups]
        start = time.perf_counter()
        for rung in range(self.rungs.number):
            last = rung == self.rungs.number - 1
            report(f"rung {rung + 1} of {self.rungs.number}")
            for run in runs:
                loop = run.program.loop
                stop = self.rungs.stop(rung, loop.num_updates, loop.log_every, loop.eval_every)
                run.advance(stop, keep_state=not last)
                run.note(outcomes, seeds)
            on_it = sorted(i for run in runs for i in run.trials(seeds))
            if not last:
                there = {i: outcomes[i] for i in on_it}
                staying = staying_of(there, self.rungs.stay(len(on_it)))
                for run in runs:
                    run.keep(staying, seeds)
                runs = [run for run in runs if len(run.places)]
        self.seconds += time.perf_counter() - start
        return outcomes

    def _program(self, group: Group, report: Callable[[str], None]) -> Program:
        """The compiled program of a group's static values."""
        for static, program in self.programs:
            if same_values(static, group.static):
                return program
        report("compiling")
        start = time.perf_counter()
        size = 1 if group.config.make_loop().on_host else self.slice_size
        program = _compile(group, size)
        self.programs.append((group.static, program))
        self.compile_seconds += time.perf_counter() - start
        return program


def staying_of(outcomes: Mapping[int, Outcome], number: int) -> list[int]:
    """The trials that stay after a rung: the `number` with the best scores, and beside them as
    many, at most, of those whose scores are older or unknown. These can't be told to be worse:
    whether an episode ends in time depends on `num_envs` and the like, and where surviving is good,
    on being good.

    Args:
        outcomes: by trial.
        number: at least 1.

    Returns:
        In order. Where all scores are older, these are compared; where none is finite, all stay
        that haven't diverged.
    """
    scores = {i: outcome.scores[-1] for i, outcome in outcomes.items()}

    def best(trials: list[int]) -> list[int]:
        ranked = sorted(trials, key=lambda i: math.inf if math.isnan(scores[i]) else -scores[i])
        return ranked[:number]

    known = [i for i in scores if not math.isnan(scores[i])]
    in_time = [i for i in known if not outcomes[i].is_late]
    if any(math.isfinite(scores[i]) for i in in_time):
        known = in_time
    others = [i for i in scores if i not in known]
    if others and not any(math.isfinite(scores[i]) for i in known):
        return others
    return sorted(best(known) + best(others))


def returns_so_far(metrics: Metrics, num_rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What members are judged by, `[n]`: the return of the last evaluation; without evaluations the
    final return of the rows so far, or, where no episode ended in the last tenth of them, that of
    the newest row in which one did. NaN before the first episode.

    Args:
        metrics: `[n, rows]`.
        num_rows: `[n]`, rows until each member's run was over.

    Returns:
        The returns, and whether each is older than the last tenth.
    """
    if metrics.eval is not None:
        found = newest_return(metrics.eval)
        return found, np.zeros(found.shape, bool)
    found, newest = final_return(metrics, num_rows), newest_return(metrics)
    return np.where(np.isnan(found), newest, found), np.isnan(found) & ~np.isnan(newest)


def _compile(group: Group, size: int) -> Program:
    """The program that trains slices of `size` members, or fewer where they don't fit the
    memory. Raises ConfigError where a single one doesn't."""
    while True:
        places = np.resize(np.arange(len(group.members)), size)
        try:
            program = Program(group.config, *_members(group, places))
            program.compile()
            return program
        except ConfigError:
            # All values were checked before: too large is all that can be wrong with a slice.
            if size == 1:
                raise
            size = -(-size // 2)


def _members(group: Group, places: np.ndarray) -> tuple[jax.Array, dict[str, np.ndarray]]:
    """Keys and hyperparameters of members by their places in the group."""
    keys = jax.random.wrap_key_data(jnp.asarray(group.keys[places]))
    return keys, {name: x[places] for name, x in group.hyperparams.items()}


class GroupRun:
    """The members of a group in training.

    Attributes:
        program: that trains them.
        group: the members.
        places: `[n]`, those that train on, by their index in the group.
        reached: updates that they have done.
        metrics: `Metrics` of these updates, `[n, rows]`; None before the first.
    """

    def __init__(self, program: Program, group: Group) -> None:
        self.program, self.group = program, group
        self.places, self.reached = np.arange(len(group.members)), 0
        self.metrics: Metrics | None = None
        self._num_updates = np.zeros(len(self.places), np.int64)
        # Leaves of their states on the host, `[n, ...]`; None before the first update.
        self._states: list[np.ndarray] | None = None
        self._like, self._structure = jax.tree.flatten(program.state_like)
        if jax.default_backend() == "cpu":
            shapes = [host_shape(x) for x in self._like]
            size = sum(math.prod(x.shape) * x.dtype.itemsize for x in shapes)
            number = len(self.places)
            what = f"batch: the states of {counted(number, 'agent')} between two rungs"
            check_memory(size // program.keys.size * number, what)

    def trials(self, num_seeds: int) -> list[int]:
        """The combinations that train on."""
        members = self.group.members[self.places]
        return sorted({int(member) // num_seeds for member in members})

    def keep(self, trials: Sequence[int], num_seeds: int) -> None:
        """Drops the members of all trials but these."""
        kept = np.isin(self.group.members[self.places] // num_seeds, trials)
        self.places = self.places[kept]
        self._num_updates = self._num_updates[kept]
        self.metrics = jax.tree.map(lambda x: x[kept], self.metrics)
        if self._states is not None:
            self._states = [x[kept] for x in self._states]

    def advance(self, stop: int, *, keep_state: bool) -> None:
        """Trains up to an update, slice by slice."""
        size, slices = self.program.keys.size, []
        for start in range(0, len(self.places), size):
            real = np.arange(start, min(start + size, len(self.places)))
            found = self._slice(np.resize(real, size), stop, keep_state)
            slices.append([[x[: len(real)] for x in leaves] for leaves in found])
        states, metrics, ended = (list(map(np.concatenate, zip(*x, strict=True)))
                                  for x in zip(*slices, strict=True))  # fmt: skip
        self._states, (self._num_updates,) = states if keep_state else None, ended
        new = jax.tree.unflatten(jax.tree.structure(self.program.metrics_like), metrics)
        self.metrics = new if self.metrics is None else join_metrics([self.metrics, new])
        self.reached = stop

    def _slice(
        self, chosen: np.ndarray, stop: int, keep_state: bool
    ) -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]]:
        """Trains a slice: the leaves of its members' states and metrics, and their updates."""
        program = self.program.for_members(*_members(self.group, self.places[chosen]))
        if self._states is None:
            state = program.start()
        else:
            leaves = [
                from_host(x[chosen], y) for x, y in zip(self._states, self._like, strict=True)
            ]
            state = program.layout.split(jax.tree.unflatten(self._structure, leaves))
        state, pieces = program.run_all(state, self.reached, stop)
        if not pieces:  # the rung is as long as the one before
            like = program.metrics_like
            pieces = [jax.tree.map(lambda x: np.zeros((*x.shape, 0), x.dtype), like)]
        whole = program.layout.join(state) if keep_state else None
        done = program.layout.join([part.num_updates for part in state])
        return (
            [to_host(x) for x in jax.tree.leaves(whole)],
            jax.tree.leaves(join_metrics(pieces)),
            [np.asarray(done, np.int64)],
        )

    def note(self, outcomes: Sequence[Outcome], num_seeds: int) -> None:
        """Writes scores, steps and curves so far into the outcomes of the trials."""
        metrics, loop = self.metrics, self.program.loop
        assert metrics is not None
        rows = -(-self._num_updates // loop.log_every)
        source = metrics if metrics.eval is None else metrics.eval
        returns, late = returns_so_far(metrics, rows)
        diverged = np.asarray(metrics.nonfinite_updates).sum(axis=1) > 0
        ends = np.arange(1, source.num_episodes.shape[1] + 1) * loop.log_every
        steps = np.minimum(ends, self.reached) * loop.steps_per_update
        for first in range(0, len(self.places), num_seeds):
            own = slice(first, first + num_seeds)
            outcome = outcomes[int(self.group.members[self.places[first]]) // num_seeds]
            outcome.returns, outcome.is_late = returns[own].tolist(), bool(late[own].any())
            seen = returns[own][np.isfinite(returns[own])]
            without = -math.inf if diverged[own].any() else math.nan
            outcome.scores.append(float(seen.mean()) if seen.size else without)
            done = int(self._num_updates[own].sum())
            outcome.num_timesteps = done * loop.steps_per_update
            at, curves = bin_curves(
                steps, source.episode_return[own], source.num_episodes[own], CURVE
            )
            outcome.curve = [at.tolist(), _mean(curves).tolist()]


def _mean(curves: np.ndarray) -> np.ndarray:
    """The mean over seeds `[bins]`, without NaN."""
    known = np.isfinite(curves)
    total = np.where(known, curves, 0.0).sum(axis=0)
    return np.where(known.any(axis=0), total / np.maximum(known.sum(axis=0), 1), np.nan)
