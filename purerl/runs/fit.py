"""`fit`: training in chunks, driven from the host, with reports, checkpoints and resuming."""

import math
import os
import signal
import threading
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from types import FrameType
from typing import Any, Self

import jax
import numpy as np

from purerl.accelerator import devices
from purerl.accelerator.members import Parts
from purerl.deploy.plain_space import space_to_plain
from purerl.envs.base import Env
from purerl.experience.metrics import Metrics
from purerl.records.errors import ConfigError, RunError, shown
from purerl.records.fields import check_count, check_path
from purerl.records.types import Plain
from purerl.runs.checkpoint import ONE_AT_A_TIME, RunFolder
from purerl.runs.chunks import Program, hyperparam_arrays, join_metrics, seed_keys, with_shared
from purerl.runs.folder import RunFiles
from purerl.runs.identity import claim, refuse_to_begin, with_rows_of
from purerl.runs.init import Init, digest_of, read_init
from purerl.runs.progress import progress_sinks
from purerl.runs.report import Report, latest
from purerl.runs.sinks import Sink, list_sinks
from purerl.training.config import TrainConfig
from purerl.training.effective import describe_in_force
from purerl.training.hyperparams import Hyperparams
from purerl.training.policy import Policy
from purerl.training.train import TrainOutput, list_seeds, solved_at


class Interrupted(KeyboardInterrupt):
    """Training was stopped by a signal; all updates so far are saved if there is a folder.

    Attributes:
        output: a `TrainOutput` of the updates so far: of all, if the signal came with the last.
    """

    output: TrainOutput | None = None


def fit(
    config: TrainConfig | Mapping[str, Plain],
    run_dir: str | os.PathLike | None = None,
    *,
    seeds: int | Sequence[int] | None = None,
    hyperparams: Hyperparams = None,
    init: Init | None = None,
    resume: bool | None = None,
    callback: Sink | Sequence[Sink] | None = None,
    report_every: float = 2.0,
    checkpoint_every: float = 30.0,
    keep: int = 3,
    verbose: bool | None = None,
) -> TrainOutput:
    """Trains like `make_train`, jitted with `compiler_options()`, in chunks, with reports.

    One agent's results are those of `make_train`, jitted so, bit for bit. Several are laid over the
    cores of a CPU, or over the devices of the process, in parts of equal size: a member's results
    don't depend on the layout, to rounding, and bit for bit with as many members in a part. A
    program without functions or classes of the user isn't compiled again in the same process.

    Args:
        config: a `TrainConfig`, or a mapping for `TrainConfig.from_mapping`.
        run_dir: a folder for checkpoints, `config.toml`, `metrics.csv`, `summary.json` and the
            seeds' policies, new or empty; None for none. Called again with the same arguments,
            `fit` resumes from the newest checkpoint, also after a kill at any moment, and ends in
            the same state as an uninterrupted run (to rounding on another number of cores).
        seeds: a number of seeds (0, 1, ...), or the seeds, each trained from the key
            `jax.random.key(seed)`, all at once; None for one agent, with seed 0, without the axis.
        hyperparams: float fields of the run's parts by path, as for `make_train`; scalars or `[S]`.
        init: learned parameters that training starts from, instead of random ones, for fine-tuning
            and curricula: a policy, the output of a run (`out`, `load_run(folder)`), or the path of
            a run's folder or of a policy's file; one for all seeds, or one for each, in order.
            Taken are the networks and the running statistics of observations; optimizers, target
            networks, counts, buffer, and schedules (learning rate, epsilon) begin anew. Agent,
            networks and spaces have to be the same, but not hyperparameters, lengths, or parameters
            of the environment. To go on with a whole state, call `fit` with its folder again.
        resume: True if the folder has to hold a run, False if it must hold no checkpoint; None for
            either.
        callback: a function of a `Report`, or several, called in turn after each chunk, such as
            `purerl.tensorboard_sink`. Those with a method `close` are closed at the end. An
            exception is raised again from `fit` once the updates so far are saved.
        report_every: approximate seconds in a chunk.
        checkpoint_every: seconds between checkpoints; the first one follows the first chunk. They
            are written in the background.
        keep: number of checkpoints to keep.
        verbose: None shows a bar and learning curves in a notebook, unless papermill executes it;
            True in any case, on a terminal as `console_sink` does; False shows nothing.

    Returns:
        As from `make_train`, with the metrics of the whole run (where `stop_at_return` ended it,
        those up to the end of the last member's run); with `seeds`, all with an axis
        `[S]`. Metrics are numpy arrays, as is the state of members over several devices.

    Raises:
        ConfigError: arguments that can't be used, such as observations that policy files have no
            form for; the folder holds another run, or other files.
        RunError: the folder can't be written or read, or another process or thread trains in it;
            `output` is a `TrainOutput` of the updates so far, if there are any.
        Interrupted: after Ctrl-C, SIGTERM or SIGHUP (the end of the terminal), once the state is
            saved, also where the run has just finished. A second signal interrupts at once, without
            saving.
    """
    if not isinstance(config, TrainConfig):
        config = TrainConfig.from_mapping(config)
    _check_options(report_every, checkpoint_every, keep, resume, verbose)
    path = None if run_dir is None else check_path("run_dir", run_dir).absolute()
    if path is None and resume:
        raise ConfigError("resume: got True, expected None where there is no run_dir")
    config = config if path is None else with_rows_of(config, path)
    count = None if seeds is None else len(list_seeds(seeds))
    values = hyperparam_arrays(config, hyperparams, count)
    keys, listed = seed_keys(seeds)
    learned = None
    if init is not None:
        learned = read_init(init, config, config.make_loop(), count)
    program = Program(config, keys, values, learned)
    sinks = list_sinks(callback)
    all_seeds = (0,) if listed is None else tuple(listed)
    if path is None:
        training = _Training(program, None, all_seeds, None)
        return _train(training, sinks, report_every, checkpoint_every, verbose)
    space_to_plain(config.env.spec.observation_space, "env: spec.observation_space")  # policies are
    whole = with_shared(config, values)
    run = {
        "hyperparams": {name: x.tolist() for name, x in values.items()},
        "config": describe_in_force(whole),
        "seeds": listed,
        "init": None if learned is None else digest_of(learned),
    }
    files = None
    if resume and devices.is_first_host():
        refuse_to_begin(path)
    with ONE_AT_A_TIME:
        opened = RunFolder(path, keep)
    with opened as folder:
        if devices.is_first_host():
            about = {**run, "log_every": program.loop.log_every}
            claim(folder, about, config, program.loop, resume)
            files = RunFiles(folder.path, whole, all_seeds, folder.good, values)
            sinks.insert(0, files)
        devices.wait_for_all_hosts("claimed")
        training = _Training(program, folder, all_seeds, files)
        return _train(training, sinks, report_every, checkpoint_every, verbose)


def _check_options(
    report_every: float,
    checkpoint_every: float,
    keep: int,
    resume: bool | None,
    verbose: bool | None,
) -> None:
    for name, number in (("report_every", report_every), ("checkpoint_every", checkpoint_every)):
        is_number = isinstance(number, (int, float)) and not isinstance(number, bool)
        if not is_number or not number >= 0:
            raise ConfigError(f"{name}: got {shown(number)}, expected a number >= 0")
    check_count("keep", keep)
    for name, switch in (("resume", resume), ("verbose", verbose)):
        if switch is not None and not isinstance(switch, bool):
            raise ConfigError(f"{name}: got {shown(switch)}, expected True, False or None")


class _Training:
    """A run in progress: its state, metrics so far, and the last update that is saved."""

    def __init__(
        self,
        program: Program,
        folder: RunFolder | None,
        seeds: tuple[int, ...],
        files: RunFiles | None,
    ) -> None:
        self.program, self.folder, self.seeds, self.files = program, folder, seeds, files
        self.done = self.saved = 0
        self.over = False  # all updates are done, or all members' runs ended before
        self.solved_at: np.ndarray | None = None
        self.pieces: list[Metrics] = []
        self.unsaved: list[Metrics] = []
        self.latest: dict[str, np.ndarray] | None = None  # each seed's last values
        self.state: Parts = []  # before the first one
        if folder:
            with ONE_AT_A_TIME:
                start = folder.load(program.state_like, program.metrics_like)
            self.done = self.saved = start.num_updates
            self.pieces = start.metrics
            if start.state is not None:
                self.state = program.layout.split(start.state)
                self._note(self.done)
        for report in self._past():
            self.latest = latest(report._replace(before=self.latest))
        if self.pieces and files is not None:
            files.restore(self._past())

    @property
    def num_updates(self) -> int:
        """Updates in the run."""
        return self.program.loop.num_updates

    def start(self) -> None:
        """Compiles, and makes the first state unless one was loaded."""
        self.program.compile(begun=bool(self.state))
        begun = bool(self.state)
        self.state = self.program.begin_again(self.state) if begun else self.program.start()

    def advance(self, num_rows: int) -> Metrics:
        """Trains for a number of rows of metrics, or to the end."""
        loop = self.program.loop
        upto = min(self.done + num_rows * loop.log_every, loop.num_updates)
        self.state, metrics = self.program.run(self.state, self.done, upto)
        end = self._note(upto)
        if end < upto:  # what follows is empty
            rows = self.program.rows(end - self.done)
            upto, metrics = end, jax.tree.map(lambda x: x[..., :rows], metrics)
        self.pieces.append(metrics)
        self.unsaved.append(metrics)
        self.done = upto
        return metrics

    def _note(self, reached: int) -> int:
        """Notes what has ended in the state after an update; returns the last update of the run,
        if all members' runs are over, else this one."""
        self.over = reached == self.num_updates
        if self.program.loop.stop_at_return is None:
            return reached
        counts = self.program.counts(self.state)
        steps = solved_at(counts, self.program.loop.steps_per_update)
        assert steps is not None
        self.solved_at = np.atleast_1d(steps)
        end = self.program.end(counts)
        self.over |= end is not None
        return reached if end is None else min(end, reached)

    def report(self, start: int, metrics: Metrics, seconds: float, compiling: float) -> Report:
        """A report of rows of metrics that begin at an update."""
        loop = self.program.loop
        return Report(
            start,
            self._stop(start, metrics),
            loop.num_updates,
            loop.steps_per_update,
            metrics,
            seconds,
            compiling,
            self.seeds,
            loop.log_every,
            self.solved_at,
        )

    def _stop(self, start: int, metrics: Metrics) -> int:
        """The last update of rows of metrics that begin at `start`."""
        loop = self.program.loop
        return min(start + _num_rows(metrics) * loop.log_every, loop.num_updates)

    def _past(self) -> Iterator[Report]:
        start = 0
        for piece in self.pieces:
            yield self.report(start, piece, 0.0, 0.0)
            start = self._stop(start, piece)

    def progress(self, verbose: bool | None) -> list[Sink]:
        """What shows the progress from here on."""
        if not devices.is_first_host():
            return []
        folder = self.folder.path if self.folder else None
        return progress_sinks(verbose, self.program.config, self.seeds, folder, self._past())

    @property
    def busy(self) -> bool:
        """Whether a checkpoint is still being written."""
        return self.folder is not None and self.folder.busy

    @property
    def torn(self) -> bool:
        """Whether the state is lost, after an exception in the middle of a chunk."""
        deleted = any(x.is_deleted() for x in jax.tree.leaves(self.state))
        reached = self.saved
        for piece in self.unsaved:
            reached = self._stop(reached, piece)
        return deleted or reached != self.done

    def save(self) -> None:
        """Saves the updates that aren't saved yet."""
        if self.folder and self.unsaved:
            self.folder.wait()  # for the checkpoint that these metrics follow
            with ONE_AT_A_TIME:
                self.folder.save_metrics(self.saved, self.done, join_metrics(self.unsaved))
                self.folder.save(self.done, self.program.kept(self.state))
            self.saved, self.unsaved = self.done, []

    def finish(self) -> None:
        """Saves the updates that aren't saved yet, and blocks until all is written."""
        if self.folder:
            self.save()
            self.folder.wait()

    def rescue(self, error: BaseException) -> None:
        """Saves, if possible, before an exception is raised again."""
        if not self.state or self.torn:
            return
        try:
            if jax.process_count() == 1:  # the other hosts wouldn't take part
                self.finish()
        except Exception as second:
            if not isinstance(error, RunError):
                error.add_note(f"what was trained after update {self.saved} is lost: {second}")

    def result(self) -> TrainOutput:
        """The output of the updates so far."""
        state = self.program.layout.join(self.state)
        return self.program.output(state, join_metrics(self.pieces))

    def output(self) -> TrainOutput:
        """The output of the updates so far, also written into the folder."""
        out = self.result()
        if self.files is not None:
            self.files.end(out, self.over, self._past())
        return out


def _train(
    training: _Training,
    sinks: list[Sink],
    report_every: float,
    checkpoint_every: float,
    verbose: bool | None,
) -> TrainOutput:
    asked = False
    try:
        if not training.over:
            sinks += training.progress(verbose)
            asked = _advance(training, sinks, report_every, checkpoint_every)
        out = training.output()
    except BaseException as error:
        for sink, failure in _close(sinks):
            error.add_note(f"closing {sink} failed, too: {failure!r}")
        if isinstance(error, RunError) and training.pieces and not training.torn:
            error.output = training.result()
        raise
    for sink, failure in _close(sinks):
        unclosed = RunError(f"callback: closing {sink} failed: {failure!r}")
        unclosed.output = out
        raise unclosed from failure
    if training.over:
        _warn_of_nonfinite(out)
    if asked:
        interrupted = Interrupted(_farewell(training))
        interrupted.output = out
        raise interrupted
    return out


def _advance(
    training: _Training, sinks: list[Sink], report_every: float, checkpoint_every: float
) -> bool:
    """Trains to the end, or until a signal asks to stop, and saves; returns whether one asked."""
    began = time.perf_counter()
    training.start()
    start = time.perf_counter()
    # The first checkpoint is early: before it, a kill loses everything.
    early = training.done == 0 and checkpoint_every < math.inf
    due_at = start + (0.0 if early else checkpoint_every)
    length, asked = 1.0, 0.0
    with _Signals() as signals:
        try:
            while not training.over and not asked:
                chunk_start, before = time.perf_counter(), training.done
                metrics = training.advance(int(length))
                now = time.perf_counter()
                report = training.report(before, metrics, now - start, start - began)
                with _Members(training) as member:
                    report = report._replace(
                        member=member, is_last=training.over, before=training.latest
                    )
                    for sink in sinks:
                        sink(report)
                training.latest = latest(report)
                # As many rows as take `report_every` at the last chunk's speed.
                wanted = report_every * report.num_rows / (now - chunk_start)
                length = max(1.0, min(wanted, 10.0 * length, training.program.capacity))
                due = now >= due_at and not training.busy
                # Hosts have to agree: stop if one is asked to; save and go on as the first does.
                answers = devices.of_all_hosts(signals.asked, due, length)
                asked, (_, due, length) = answers[:, 0].max(), answers[0]
                if due and not asked:
                    training.save()
                    due_at = time.perf_counter() + checkpoint_every
            training.finish()
        except BaseException as error:
            if not (signals.asked and isinstance(error, KeyboardInterrupt)):
                training.rescue(error)
            raise
        return bool(asked) or signals.asked  # perhaps while the end was saved


class _Members:
    """`Report.member`: the members of a run, while the callbacks of a report are called.

    A report that is kept, or goes to another process, doesn't keep the run's state.
    """

    def __init__(self, training: _Training) -> None:
        self._training: _Training | None = training

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._training = None

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        return type(None), ()

    def __call__(self, index: int) -> tuple[Policy, Env]:
        training = self._training
        if training is None:
            raise ConfigError("member: training has gone on since this report; call it in callback")
        most = len(training.seeds) - 1
        if isinstance(index, bool) or not isinstance(index, (int, np.integer)):
            raise ConfigError(f"member: got {shown(index)}, expected an integer, 0 to {most}")
        if not 0 <= index <= most:
            raise ConfigError(f"member: got {index}, expected 0 to {most}")
        return training.program.member(training.state, int(index))


def _close(sinks: list[Sink]) -> list[tuple[str, Exception]]:
    """Closes the sinks; returns the names and exceptions of those that failed."""
    failed = []
    for sink in sinks:
        try:
            getattr(sink, "close", lambda: None)()
        except Exception as error:
            failed.append((type(sink).__name__, error))
    return failed


class _Signals:
    """Handlers for Ctrl-C, SIGTERM and the end of a terminal: they ask to stop after the chunk, and
    the second time interrupt at once. Ignored signals, as under `nohup`, remain ignored."""

    NAMES = ("SIGINT", "SIGTERM", "SIGHUP")  # Windows has no SIGHUP

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # Python allows no others
            for number in (getattr(signal, name) for name in self.NAMES if hasattr(signal, name)):
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            # None is a handler that wasn't installed from Python, and can't be restored.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True


def _farewell(training: _Training) -> str:
    at = f"interrupted after update {training.done} of {training.program.loop.num_updates}"
    if training.over:
        at += ", with which the run is finished"
    if training.folder is None:
        return f"{at}; nothing is saved, since there is no run_dir"
    if training.over:
        return f"{at}: all of it is in {training.folder.path}"
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


def _num_rows(metrics: Metrics) -> int:
    return int(np.shape(metrics.num_episodes)[-1])
