"""Sinks: callables of a `Report`, for CSV, TensorBoard and W&B; any other function will do.

Of several hosts these write on the first alone; a function of yours is called on each.
"""

import contextlib
import csv
import io
import math
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from purerl.accelerator.devices import is_first_host
from purerl.records.errors import ConfigError, RunError
from purerl.records.fields import check_path
from purerl.records.files import DAMAGED, open_file, reason, write_whole
from purerl.runs.report import Report, latest, means
from purerl.runs.videos import Video, Videos

Sink = Callable[[Report], None]
# Seeds that TensorBoard and W&B show one by one; of more they show mean and range only.
SHOWN_SEEDS = 16


def list_sinks(sinks: Sink | Sequence[Sink] | None) -> list[Sink]:
    """None, one sink or several as a list. Raises ConfigError unless all are callable."""
    listed: list = (
        list(sinks) if isinstance(sinks, (list, tuple)) else [] if sinks is None else [sinks]
    )
    for sink in listed:
        if not callable(sink):
            raise ConfigError(f"callback: got {sink!r}, expected a function of a Report")
    return listed


class csv_sink:  # noqa: N801 - called as a function
    """Writes metrics into a CSV file with a header: a row for each row of metrics and seed.

    A run that resumes from a checkpoint removes the rows after it. Fields without a value are
    empty, such as the return where no episode ended.

    Args:
        path: the file.

    Raises:
        RunError: from the call, if it can't be written.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = check_path("path", path)
        self.changed = False  # by another program, meanwhile
        self._begun = False
        self._size = 0
        self._before = 0.0  # seconds in earlier processes
        self._last = 0.0

    @property
    def seconds(self) -> float:
        """Duration of training, over all processes."""
        return self._before + self._last

    def __call__(self, report: Report) -> None:
        if not is_first_host():
            return
        try:
            columns = report.columns()
            if not self._begun:
                self._begin(report.start, list(columns))
            report_seconds = np.linspace(self._last, report.seconds, report.num_rows + 1)[1:]
            columns["seconds"] = np.round(self._before + report_seconds, 4)[None, :]
            self._last = report.seconds
            with self.path.open("a", newline="") as file:
                size = os.fstat(file.fileno()).st_size
                self.changed |= size != self._size
                if not size:  # it was removed
                    file.write(",".join(columns) + "\n")
                file.write(_lines(columns, len(report.seeds), report.num_rows))
                file.flush()
                self._size = os.fstat(file.fileno()).st_size
        except DAMAGED as error:
            raise RunError(f"can't write metrics into {self.path}: {reason(error)}") from error

    def restore(self, reports: Iterable[Report], seconds: float = 0.0) -> None:
        """Rewrites the file with the rows of some updates.

        Wall-clock times aren't in the reports: they are kept where the file has them, and empty
        elsewhere.

        Args:
            reports: of the updates from the first one on, in order.
            seconds: their duration, if the file doesn't have it.

        Raises:
            RunError: it can't be written.
        """
        known = self._known_seconds()
        parts: list[str] = []
        stop = 0
        for report in reports:
            columns = report.columns()
            if not parts:
                parts.append(",".join(columns) + "\n")
            updates = columns["update"][0].tolist()
            columns["seconds"] = np.array([[known.get(update, "") for update in updates]])
            parts.append(_lines(columns, len(report.seeds), report.num_rows))
            stop = report.stop
        if not self._begun:
            last = max((float(x) for update, x in known.items() if update <= stop), default=0.0)
            self._before = max(last, seconds)
        text = "".join(parts).encode()
        try:
            if not self.path.exists() or self._content() != text:
                write_whole(self.path, lambda file: file.write(text))
        except OSError as error:
            raise RunError(f"can't write metrics into {self.path}: {reason(error)}") from error
        self._begun, self._size, self.changed = True, len(text), False

    def _content(self) -> bytes:
        with open_file(self.path) as file:
            return file.read()

    def _known_seconds(self) -> dict[int, str]:
        """Wall-clock seconds by update, as far as the file can be read."""
        known: dict[int, str] = {}
        with contextlib.suppress(OSError, ValueError, csv.Error):
            lines = self._content().decode().splitlines()
            rows = csv.reader(lines)
            names = next(rows, [])
            at, seconds = names.index("update"), names.index("seconds")
            for row in rows:
                with contextlib.suppress(ValueError):
                    if len(row) == len(names) and math.isfinite(float(row[seconds])):
                        known[int(row[at])] = row[seconds]
        return known

    def _begin(self, start: int, names: list[str]) -> None:
        """Writes the header, and keeps the rows up to the update that training starts from."""
        kept: list[list[str]] = []
        if start and self.path.exists():
            rows = list(csv.reader(self._content().decode().splitlines()))
            if rows and rows[0] == names:
                at, seconds = names.index("update"), names.index("seconds")
                whole = (row for row in rows[1:] if len(row) == len(names))
                kept = [row for row in whole if int(row[at]) <= start]
                self._before = float(kept[-1][seconds]) if kept else 0.0
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([names, *kept])
        data = text.getvalue().encode()
        write_whole(self.path, lambda file: file.write(data))
        self._begun, self._size = True, len(data)


def _lines(columns: dict[str, np.ndarray], num_seeds: int, num_rows: int) -> str:
    """Rows by update, then by seed, of columns `[S or 1, n or 1]`."""
    words = []
    for column in columns.values():
        # The shortest digits of a float32, for the whole array at once.
        text = np.broadcast_to(column, (num_seeds, num_rows)).T.reshape(-1).astype(str)
        words.append(np.where(text == "nan", "", text).tolist())
    return "".join(",".join(row) + "\n" for row in zip(*words, strict=True))


class tensorboard_sink:  # noqa: N801
    """Writes TensorBoard events, a point for each report: a series for each seed, and mean, low and
    high over seeds, in which a seed whose run has ended keeps its last values. With more than 16
    seeds only the latter.

    Args:
        folder: for the events.
        render_every: environment steps of a seed from one video to the next, each of the first
            1,000 steps of a greedy episode of the first seed, under Images; at most one a report,
            and one at the end; None for none.
    """

    def __init__(self, folder: str | os.PathLike[str], *, render_every: int | None = None) -> None:
        self.folder = check_path("folder", folder)
        self._videos = Videos(render_every)
        self._writers: dict[str, Any] = {}

    def __call__(self, report: Report) -> None:
        if not is_first_host():
            return
        step = report.stop * report.steps_per_update
        video = self._videos.of(report)
        try:
            if video is not None:
                self._show(video, f"seed-{report.seeds[0]}", report, step)
            for series, values in _series(report).items():
                writer = self._writer(series, report)
                for name, value in values.items():
                    writer.add_scalar(name, value, step)
                writer.flush()
        except OSError as error:
            raise RunError(f"can't write events into {self.folder}: {reason(error)}") from error

    def _show(self, video: Video, series: str, report: Report, step: int) -> None:
        from tensorboardX.proto.summary_pb2 import Summary

        # As `add_video` does, which would encode the frames again, by another library.
        image = Summary.Image(
            height=video.height, width=video.width, colorspace=3, encoded_image_string=video.gif
        )
        writer = self._writer(series, report)
        summary = Summary(value=[Summary.Value(tag="episode", image=image)])
        writer.file_writer.add_summary(summary, step)
        writer.flush()

    def _writer(self, series: str, report: Report) -> Any:
        if series not in self._writers:
            from tensorboardX import SummaryWriter

            # Later events are of a process that died.
            start = report.start * report.steps_per_update
            self._writers[series] = SummaryWriter(str(self.folder / series), purge_step=start + 1)
        return self._writers[series]

    def close(self) -> None:
        """Closes the files."""
        self._videos.close()
        for writer in self._writers.values():
            writer.close()
        self._writers = {}


class wandb_sink:  # noqa: N801
    """Logs to Weights & Biases, a point for each report; `WANDB_MODE=offline` needs no account.

    Args:
        project, name, entity: as for `wandb.init`; None for W&B's defaults.
        render_every: environment steps of a seed from one video to the next, each of the first
            1,000 steps of a greedy episode of the first seed; at most one a report, and one at the
            end; None for none.
        **options: for `wandb.init`, such as `id=...` with `resume="allow"`.

    Raises:
        ConfigError: wandb isn't installed.
    """

    def __init__(
        self,
        project: str | None = None,
        *,
        name: str | None = None,
        entity: str | None = None,
        render_every: int | None = None,
        **options: object,
    ) -> None:
        self._videos = Videos(render_every)
        try:
            import wandb
        except ImportError:
            raise ConfigError("wandb: isn't installed: pip install 'purerl[wandb]'") from None
        self._video, self._run = wandb.Video, None
        if is_first_host():
            self._run = wandb.init(project=project, name=name, entity=entity, **options)

    def __call__(self, report: Report) -> None:
        if self._run is None:
            return
        values: dict[str, Any] = {
            f"{series}/{name}": value
            for series, values in _series(report).items()
            for name, value in values.items()
        }
        values["timesteps"] = report.stop * report.steps_per_update
        video = self._videos.of(report)
        if video is not None:
            caption = f"return {video.episode_return:.4g}"
            film = self._video(io.BytesIO(video.gif), caption=caption, format="gif")
            values[f"seed-{report.seeds[0]}/episode"] = film
        self._run.log(values)

    def close(self) -> None:
        """Ends the W&B run."""
        self._videos.close()
        if self._run is not None:
            self._run.finish()


def _series(report: Report) -> dict[str, dict[str, float]]:
    """Means of a report by series and name: of each seed, and mean, low and high over seeds."""
    series: dict[str, dict[str, float]] = {}
    if len(report.seeds) <= SHOWN_SEEDS:
        table = means(report)  # [S] each
        for i, seed in enumerate(report.seeds):
            series[f"seed-{seed}"] = {name: float(x[i]) for name, x in table.items()}
    if len(report.seeds) > 1:
        table = latest(report)
        for name, reduce in (("mean", np.mean), ("low", np.min), ("high", np.max)):
            series[name] = {
                n: float(reduce(x[np.isfinite(x)]))
                for n, x in table.items()
                if np.any(np.isfinite(x))
            }
    return {
        name: {n: x for n, x in values.items() if np.isfinite(x)} for name, values in series.items()
    }
