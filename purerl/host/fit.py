"""`fit`: training driven from the host in chunks: watched, stopped, killed and resumed."""

import os
import signal
import threading
import time
import warnings
from collections.abc import Mapping, Sequence
from types import FrameType
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from purerl import devices
from purerl.config import TrainConfig
from purerl.errors import ConfigError, shown
from purerl.fields import check_count, check_path
from purerl.host.checkpoint import RunFolder
from purerl.host.chunks import Program, hyperparam_arrays, seed_keys
from purerl.host.files import describe
from purerl.host.identity import claim
from purerl.host.plain_space import space_to_plain
from purerl.host.report import Report
from purerl.host.run_files import RunFiles
from purerl.host.sinks import Sink, list_sinks
from purerl.metrics import Metrics
from purerl.train import TrainOutput, list_seeds

PyTree = Any


class Interrupted(KeyboardInterrupt):
    """Training was stopped by a signal; all that was trained is saved where there is a folder.

    Attributes:
        output: what training left so far.
    """

    output: TrainOutput | None = None


def fit(
    config: TrainConfig | Mapping[str, Any],
    run_dir: str | os.PathLike | None = None,
    *,
    seeds: int | Sequence[int] | None = None,
    hyperparams: Mapping[str, Any] | None = None,
    resume: bool | None = None,
    callback: Sink | Sequence[Sink] | None = None,
    report_every: float = 2.0,
    checkpoint_every: float = 30.0,
    keep: int = 3,
) -> TrainOutput:
    """Trains as `make_train` does, bit for bit, and comes back to the host in between.

    Args:
        config: a `TrainConfig`, or a mapping for `TrainConfig.from_mapping`.
        run_dir: a folder for checkpoints, `config.toml`, `metrics.csv`, `summary.json` and the
            seeds' policies; None for none. Called again with the same arguments, training goes on
            from the newest checkpoint, also after a kill at any moment, and ends in the very state
            that it would have ended in.
        seeds: a number of seeds (0, 1, ...), or the seeds, each trained from the key
            `jax.random.key(seed)`, all at once; None for one agent, with seed 0, without the axis.
        hyperparams: float fields of the agent by name, scalars or `[S]`.
        resume: True if there has to be a checkpoint, False if there must be none; None for either.
        callback: called with a `Report` after each chunk; several are called in turn. Those that
            have a `close` are closed at the end. `purerl.tensorboard_sink` and its like are some.
        report_every: seconds that a chunk is to take, about.
        checkpoint_every: seconds between checkpoints. They are written while training goes on.
        keep: how many of them stay.

    Returns:
        As of `make_train`, with metrics of the whole run; with `seeds`, all with an axis `[S]`.

    Raises:
        ConfigError: arguments that can't be used, such as observations that no policy's file has a
            form for; the folder holds another run.
        RunError: the folder can't be written or read.
        Interrupted: after Ctrl-C or SIGTERM, once the state is saved. A second one interrupts at
            once, without saving.
    """
    if not isinstance(config, TrainConfig):
        config = TrainConfig.from_mapping(config)
    for name, number, least in (
        ("report_every", report_every, 0),
        ("checkpoint_every", checkpoint_every, 0),
    ):
        is_number = isinstance(number, (int, float)) and not isinstance(number, bool)
        if not is_number or not number >= least:
            raise ConfigError(f"{name}: got {shown(number)}, expected a number >= {least}")
    keep = check_count("keep", keep)
    if resume is not None and not isinstance(resume, bool):
        raise ConfigError(f"resume: got {shown(resume)}, expected True or False or None")
    if run_dir is not None:
        run_dir = check_path("run_dir", run_dir)
    if resume and run_dir is None:
        raise ConfigError("resume: got True, expected None where there is no run_dir")
    count = None if seeds is None else len(list_seeds(seeds))
    values = hyperparam_arrays(config, hyperparams, count)
    keys, listed = seed_keys(seeds)
    program = Program(config, keys, values)
    sinks = list_sinks(callback)
    seeds_told = (0,) if listed is None else tuple(listed)
    if run_dir is None:
        training = _Training(program, None, seeds_told, None)
        return _train(training, sinks, report_every, checkpoint_every)
    space_to_plain(config.env.spec.observation_space, "env: spec.observation_space")  # policies are
    run = {
        "config": describe(config),
        "hyperparams": {name: x.tolist() for name, x in values.items()},
        "seeds": listed,
    }
    files = None
    with RunFolder(run_dir, keep) as folder:
        if devices.is_first_host():
            claim(folder, {**run, "log_every": program.loop.log_every}, program.loop, resume)
            files = RunFiles(folder.path, config, seeds_told, folder.good)
            sinks.insert(0, files)
        devices.wait_for_all_hosts("claimed")
        training = _Training(program, folder, seeds_told, files)
        return _train(training, sinks, report_every, checkpoint_every)


class _Training:
    """A run on its way: its state, and how far that is saved."""

    def __init__(
        self,
        program: Program,
        folder: RunFolder | None,
        seeds: tuple[int, ...],
        files: RunFiles | None,
    ) -> None:
        self.program, self.folder, self.seeds, self.files = program, folder, seeds, files
        self.done = self.saved = (folder.latest or 0) if folder else 0
        self.pieces: list[Metrics] = []
        self.unsaved: list[Metrics] = []
        self.state: PyTree = None
        if folder and self.done:
            self.pieces = folder.read_metrics(self.done, program.metrics_like)
            self.state = folder.restore(self.done, program.state_like)

    def start(self) -> None:
        """Compiles, and makes the first state where there is none."""
        self.program.compile()
        if self.state is None:
            self.state = self.program.init(self.program.keys, self.program.values)

    def advance(self, num_rows: int) -> Metrics:
        """Trains for so many rows of metrics, or to the end."""
        loop = self.program.loop
        upto = min(self.done + num_rows * loop.log_every, loop.num_updates)
        self.state, metrics = self.program.run(self.state, self.done, upto)
        self.pieces.append(metrics)
        self.unsaved.append(metrics)
        self.done = upto
        return metrics

    @property
    def busy(self) -> bool:
        """Whether what was saved before is still being written."""
        return self.folder is not None and self.folder.busy

    def save(self) -> None:
        """Saves what isn't."""
        if self.folder and self.unsaved:
            self.folder.save_metrics(self.saved, self.done, _joined(self.unsaved))
            self.folder.save(self.done, _kept(self.state))
            self.saved, self.unsaved = self.done, []

    def finish(self) -> None:
        """Saves what isn't, and comes back when all is written."""
        if self.folder:
            self.folder.wait()
            self.save()
            self.folder.wait()

    def output(self) -> TrainOutput:
        """What training has left so far; it is in the folder's files too then."""
        out = self.program.output(self.state, _joined(self.pieces))
        if self.files is not None:
            self.files.end(out, finished=self.done == self.program.loop.num_updates)
        return out


def _train(
    training: _Training, sinks: list[Sink], report_every: float, checkpoint_every: float
) -> TrainOutput:
    loop = training.program.loop
    if training.done == loop.num_updates:
        return training.output()
    began = time.perf_counter()
    training.start()
    start = saved_at = time.perf_counter()
    length, asked = 1.0, 0.0
    with _Signals() as signals:
        while training.done < loop.num_updates and not asked:
            chunk_start, before = time.perf_counter(), training.done
            metrics = training.advance(int(length))
            now = time.perf_counter()
            report = Report(
                before,
                training.done,
                loop.num_updates,
                loop.steps_per_update,
                metrics,
                seconds=now - start,
                compile_seconds=start - began,
                seeds=training.seeds,
                log_every=loop.log_every,
            )
            for sink in sinks:
                sink(report)
            # As many rows as take the asked time, by what the last ones took.
            wanted = report_every * report.num_rows / (now - chunk_start)
            length = max(1.0, min(wanted, 10.0 * length, training.program.capacity))
            due = now - saved_at >= checkpoint_every and not training.busy
            # Hosts have to do the same: stop where any is asked to, else what the first one says.
            said = devices.of_all_hosts(signals.asked, due, length)
            asked, (_, due, length) = said[:, 0].max(), said[0]
            if due:
                training.save()
                saved_at = time.perf_counter()
        training.finish()
    out = training.output()
    for sink in sinks:
        getattr(sink, "close", lambda: None)()
    if training.done < loop.num_updates:
        interrupted = Interrupted(_farewell(training))
        interrupted.output = out
        raise interrupted
    _warn_of_nonfinite(out)
    return out


class _Signals:
    """Ctrl-C and SIGTERM ask for an end between two chunks; a second one interrupts at once."""

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # elsewhere Python allows none
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True


def _farewell(training: _Training) -> str:
    at = f"interrupted after update {training.done} of {training.program.loop.num_updates}"
    if training.folder is None:
        return f"{at}; nothing is saved, since there is no run_dir"
    return f"{at}, which is saved in {training.folder.path}: the same call again goes on from there"


def _warn_of_nonfinite(out: TrainOutput) -> None:
    skipped = np.asarray(out.state.nonfinite_updates)
    if skipped.any():
        warnings.warn(
            f"NaN, infinity or numbers beyond 1e15 came up: {skipped.sum()} updates were skipped"
            + (f" (of each seed: {skipped.tolist()})" if skipped.ndim else "")
            + ", or kept them out of running statistics",
            stacklevel=4,
        )


def _kept(state: PyTree) -> PyTree:
    """A state that stays as it is while the next chunk overwrites its memory."""
    # Elsewhere it has been copied to the host by the time that saving has begun.
    on_cpu = jax.default_backend() == "cpu"
    return jax.tree.map(jnp.copy, state) if on_cpu else state


def _joined(pieces: list[Metrics]) -> Metrics:
    return jax.tree.map(lambda *xs: np.concatenate(xs, axis=-1), *pieces)
