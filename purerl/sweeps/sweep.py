"""`sweep`: many agents, laid out over every device, in slices that fit its memory."""

import contextlib
import dataclasses
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import jax
import numpy as np

from purerl.accelerator.transfer import host_shape
from purerl.records.errors import ConfigError, RunError, shown
from purerl.records.fields import check_path
from purerl.records.files import reason, write_whole
from purerl.records.folders import LOCK, locked, refuse_links
from purerl.runs.folder import CONFIG, METRICS, POLICIES, SUMMARY, config_text
from purerl.runs.view import BEST
from purerl.sweeps.best import write_best
from purerl.sweeps.plan import Distribution, Plan, make_plan
from purerl.sweeps.progress import progress
from purerl.sweeps.result import Effort, GroupResult, SweepResult, draw_combinations
from purerl.sweeps.slices import compile_group, member_shapes, run_slices
from purerl.sweeps.store import DESCRIPTION, Store, describe_sweep, open_store
from purerl.training.config import TrainConfig

TABLE = "table.csv"  # written by the command


def sweep(
    config: TrainConfig | Mapping[str, object],
    *,
    seeds: int | Sequence[int] = 1,
    grid: Mapping[str, object] | None = None,
    samples: Mapping[str, Distribution] | None = None,
    num_samples: int | None = None,
    key: jax.Array | None = None,
    slice_size: int | None = None,
    keep_buffer: bool = False,
    run_dir: str | os.PathLike[str] | None = None,
    verbose: bool | None = None,
) -> SweepResult:
    """Trains an agent for every combination of hyperparameters and seed.

    The members are one flat axis, cut into slices that fit the memory, each laid over all devices
    of the process, or over all cores of a CPU (before JAX 0.11 after `use_all_cores`); one program,
    compiled once, trains all slices. A member equals
    `make_train(config)(jax.random.key(seed), hyperparams)`, to rounding.

    Args:
        config: common to all members; a mapping as for `make_train`.
        seeds: how many (0, 1, ...), or a sequence of seeds.
        grid: values by name, for every combination of them. Names are fields of the config, of its
            agent, or of another part of the run by path, such as `noise.sigma` or `env.gravity`.
            Float fields of the parts are mapped over; each value of any other field (`num_envs`,
            `network`, ...) has a separate program.
        samples: distributions by name, `Uniform`, `LogUniform` or `Choice`; each draw is combined
            with each point of the grid, and with each seed.
        num_samples: number of draws.
        key: of the draws; None for `jax.random.key(0)`.
        slice_size: members trained at once; None for as many as fit the memory.
        keep_buffer: whether each member's final state has its buffer.
        run_dir: a folder that gets each slice when it is finished. The same call with the same
            folder continues from there, also after the process was killed. At the end the best
            combination is in it as a run, for `read_run`, `purerl eval` and the like.
        verbose: None shows a progress bar on a terminal, and with learning curves in a notebook,
            unless papermill executes it; True also prints a line for each slice elsewhere; False
            shows nothing.

    After Ctrl-C in a script, Python waits for the slice that is being trained before it exits.

    Raises:
        ConfigError: an invalid name or value, or another sweep in `run_dir`. Raised before anything
            is compiled.
        RunError: the folder can't be written or read, or another process trains in it.
    """
    switches = {"keep_buffer": keep_buffer, "verbose": verbose}
    for name, value in switches.items():
        if not isinstance(value, bool) and (value is not None or name == "keep_buffer"):
            words = "True or False" + ("" if name == "keep_buffer" else " or None")
            raise ConfigError(f"{name}: got {shown(value)}, expected {words}")
    if run_dir is not None:
        run_dir = check_path("run_dir", run_dir)
    plan = make_plan(config, seeds, grid, samples, num_samples, key)
    if slice_size is not None and (
        isinstance(slice_size, bool) or not isinstance(slice_size, int) or slice_size < 1
    ):
        raise ConfigError(f"slice_size: got {slice_size!r}, expected an integer >= 1 or None")
    store = None if run_dir is None else _open(run_dir, plan, keep_buffer)
    job = Job(plan, store, slice_size, keep_buffer, verbose)
    with contextlib.ExitStack() as exits:
        results = job.load()
        if store is not None and not _all_done(results):
            with written(store.path):  # a finished one may be on a disk that is read-only
                exits.enter_context(locked(store.path / LOCK))
            results = job.load()  # the process that had the lock may have finished meanwhile
        effort = job.train(results)
        result = SweepResult(plan, [result for result, _ in results], effort)
        if store is not None:
            write_best(result, store.path)
    return result


def _open(run_dir: str | os.PathLike[str], plan: Plan, keep_buffer: bool) -> Store:
    path = check_path("run_dir", run_dir).absolute()
    refuse_links(path, [DESCRIPTION, TABLE, CONFIG], [BEST])
    refuse_links(path / BEST, [CONFIG, METRICS, SUMMARY], [POLICIES])
    with written(path):
        store = open_store(path, describe_sweep(plan, keep_buffer))
        # For `load_sweep`; what is there already may be on a disk that is read-only.
        file, text = path / CONFIG, config_text(plan.config, defaults=False).encode()
        if not file.is_file() or file.read_bytes() != text:
            write_whole(file, lambda opened: opened.write(text))
        return store


@contextlib.contextmanager
def written(path: Path, parts: str = "slices") -> Iterator[None]:
    """Raises RunError, in one line, where the body can't write into a folder of such parts."""
    try:
        yield
    except OSError as error:
        raise RunError(
            f"run_dir: can't write into {path}: {reason(error)}; {parts} that are there are still "
            "good"
        ) from error


Results = list[tuple[GroupResult, np.ndarray]]


def _all_done(results: Results) -> bool:
    return all(done.all() for _, done in results)


@dataclasses.dataclass(frozen=True)
class Job:
    """A plan, where its slices are stored, and options of training."""

    plan: Plan
    store: Store | None
    slice_size: int | None
    keep_buffer: bool
    verbose: bool | None

    def load(self) -> Results:
        """Each group with its outputs in the store, and which members have them, `[S]` bool."""
        results = []
        for number, group in enumerate(self.plan.groups):
            shapes, size = member_shapes(group, self.keep_buffer), len(group.members)
            on_host = [host_shape(x) for x in jax.tree.leaves(shapes)]
            outputs = [np.zeros((size, *x.shape), x.dtype) for x in on_host]
            done = np.zeros(size, bool)
            for places, leaves in self.store.load(number, size, on_host) if self.store else ():
                _fill(outputs, done, places, leaves)
            results.append((GroupResult(group, outputs, shapes), done))
        return results

    def train(self, results: Results) -> Effort:
        """Trains the unfinished members, into the results and into the store."""
        effort = Effort()
        draw = partial(draw_combinations, self.plan, [result for result, _ in results])
        with progress(self.plan.num_members, self.verbose) as report:
            for number, (result, done) in enumerate(results):
                todo = np.flatnonzero(~done)
                if not len(todo):
                    continue
                before = sum(int(done.sum()) for _, done in results)
                report("compiling", before)
                program = compile_group(result.group, len(todo), self.slice_size, self.keep_buffer)
                report("training", before)
                start = time.perf_counter()
                for places, leaves in run_slices(result.group, program, todo):
                    _fill(result.outputs, done, places, leaves)
                    if self.store is not None:
                        with written(self.store.path):
                            self.store.save(number, places, leaves)
                    report("training", sum(int(done.sum()) for _, done in results), draw)
                effort = effort.plus(program, len(todo), time.perf_counter() - start)
        return effort


def _fill(
    outputs: list[np.ndarray], done: np.ndarray, places: np.ndarray, leaves: list[np.ndarray]
) -> None:
    for output, leaf in zip(outputs, leaves, strict=True):
        output[places] = leaf
    done[places] = True
