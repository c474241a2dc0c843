"""Files of a run's folder for people and other programs.

    config.toml   the config; None is "none"
    metrics.csv   a row every `log_every` updates and seed
    summary.json  final results, versions and duration
    policies/     a file for each seed, and one of its best evaluation: `purerl.load_policy`

From `run.json`, `metrics/` and `checkpoints/` beside them a run is resumed.
"""

import contextlib
import hashlib
import json
import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
from numpy.typing import ArrayLike

from purerl.deploy.policy_file import save_policy
from purerl.records.errors import RunError
from purerl.records.files import DAMAGED, checked, read_text, reason, sealed, write_whole
from purerl.records.folders import refuse_links
from purerl.records.toml import to_toml
from purerl.records.types import Plain
from purerl.runs.chunks import plain_hyperparam
from purerl.runs.report import Report
from purerl.runs.sinks import csv_sink
from purerl.training.config import TrainConfig, to_file, to_plain
from purerl.training.describe import versions
from purerl.training.train import TrainOutput, final_return

RUN = "run.json"
CONFIG, METRICS, SUMMARY, POLICIES = "config.toml", "metrics.csv", "summary.json", "policies"
# Types of the fields of a summary that are read; the first two are always there.
SUMMARY_TYPES: dict[str, tuple[type, str]] = {
    "agent": (str, "a name"),
    "env": (str, "a name"),
    "seeds": (list, "a list"),
    "finished": (bool, "true or false"),
    "timesteps": (int, "a number"),
    "num_updates": (int, "a number"),
    "steps_per_update": (int, "a number"),
    "final_return": (dict, "an object"),
}


class RunFiles:
    """A sink that writes the files of a run; `end` writes those of its end.

    Args:
        folder: the run's.
        config: the run's, with the hyperparameters that all seeds share.
        seeds: the run's.
        good: returns the newest checkpoint in words, for error messages.
        hyperparams: the run's, as of `hyperparam_arrays`.

    Raises:
        RunError: from all methods, if a file can't be written.
    """

    def __init__(
        self,
        folder: Path,
        config: TrainConfig,
        seeds: tuple[int, ...],
        good: Callable[[], str],
        hyperparams: Mapping[str, np.ndarray],
    ) -> None:
        refuse_links(folder, [CONFIG, METRICS, SUMMARY], [POLICIES])
        self.folder, self.config, self.seeds, self.good = folder, config, seeds, good
        self.hyperparams = {name: plain_hyperparam(x) for name, x in hyperparams.items()}
        self.csv = csv_sink(folder / METRICS)
        self.compile_seconds: float | None = None
        apart = [name for name, x in self.hyperparams.items() if isinstance(x, list)]
        self._write(CONFIG, config_text(config, apart=apart))

    def __call__(self, report: Report) -> None:
        try:
            self.csv(report)
        except RunError as error:
            raise RunError(f"{error}; {self._still_there()}") from error
        self.compile_seconds = report.compile_seconds

    def restore(self, reports: Iterable[Report]) -> None:
        """Rewrites `metrics.csv` with the updates before the one that training starts from.

        Args:
            reports: of these updates, in order.
        """
        self.csv.restore(reports, self._seconds_before().get("seconds", 0.0))

    def _seconds_before(self) -> dict[str, float]:
        """Durations in earlier processes from `summary.json`, as far as it has them."""
        with contextlib.suppress(RunError):
            before = read_summary(self.folder)
            return {
                name: float(x)
                for name in ("seconds", "compile_seconds")
                if isinstance(x := before.get(name), (int, float)) and math.isfinite(x)
            }
        return {}

    def _still_there(self) -> str:
        try:
            return self.good() if self.folder.is_dir() else f"{self.folder} is gone"
        except OSError:
            return f"{self.folder} is gone"

    def end(self, out: TrainOutput, finished: bool, reports: Iterable[Report]) -> None:
        """Writes `summary.json` and the policies.

        Args:
            out: as of `fit`, with or without an axis of seeds.
            finished: whether the run is over.
            reports: of all updates, in order, to rewrite a `metrics.csv` that was changed.
        """
        if self.csv.changed:
            self.csv.restore(reports)
        took = {
            "seconds": round(self.csv.seconds, 3),
            "compile_seconds": self.compile_seconds or 0.0,
        }
        if self.compile_seconds is None:  # the run was finished before
            took |= self._seconds_before()
        about: dict[str, Plain] = {"seeds": list(self.seeds), "finished": finished, **took}
        about["curves"] = curves_of_output(self.seeds, out)
        if self.hyperparams:
            about["hyperparams"] = self.hyperparams
        summary = summarize(self.config, out) | about | {"versions": versions()}
        refuse_links(self.folder, [], [POLICIES])
        try:
            (self.folder / POLICIES).mkdir(exist_ok=True)
        except OSError as error:
            raise RunError(f"can't write {self.folder / POLICIES}: {reason(error)}") from error
        write_policies(self.folder, self.seeds, out)
        # Last, since it names the update of the policies.
        self._write(SUMMARY, json.dumps(sealed(summary), indent=2) + "\n")

    def _write(self, name: str, text: str) -> None:
        try:
            write_whole(self.folder / name, lambda file: file.write(text.encode()))
        except OSError as error:
            raise RunError(
                f"can't write {self.folder / name}: {reason(error)}; {self._still_there()}"
            ) from error


def policy_file(folder: Path, seed: int, *, best: bool = False) -> Path:
    """The file of a seed's policy in a run's folder, or of that of its best evaluation."""
    return folder / POLICIES / f"{'best-' if best else ''}seed-{seed}.policy"


def write_policies(folder: Path, seeds: Sequence[int], out: TrainOutput) -> None:
    """Writes each seed's policy, and that of its best evaluation where it has one.

    Args:
        folder: the run's, with a folder for policies in it.
        seeds: the run's.
        out: as of `fit`, with or without an axis of seeds.
    """
    evaluated = np.zeros(len(seeds), bool)
    if out.state.best is not None:
        evaluated = np.atleast_1d(out.best_timesteps > 0)
    for best in (False, True) if evaluated.any() else (False,):
        # On this host alone from here on.
        policies = jax.tree.map(np.asarray, out.best_policy if best else out.policy)
        for i, seed in enumerate(seeds):
            many = np.ndim(_updates(out)) > 0
            one = jax.tree.map(operator.itemgetter(i), policies) if many else policies
            if evaluated[i] or not best:
                save_policy(one, policy_file(folder, seed, best=best))


def config_text(config: TrainConfig, *, defaults: bool = True, apart: Sequence[str] = ()) -> str:
    """The text of `config.toml`; what has no form there is named in a comment, as are the
    hyperparameters that differ between seeds, `apart`. Its `defaults` are what was in force without
    being given, so that the run is the same under another version's."""
    left: list[str] = []
    text = to_toml((to_file if defaults else to_plain)(config, left))
    notes = {"since it has no form there": left, f"since seeds differ in it (see {RUN})": apart}
    lines = [f"# Not in this file, {why}: {', '.join(x)}\n" for why, x in notes.items() if x]
    return "".join([*lines, "\n" * bool(lines), text])


def summarize(config: TrainConfig, out: TrainOutput) -> dict[str, Plain]:
    """Final results of a run; `out` with or without an axis of seeds."""
    updates = np.atleast_1d(_updates(out))
    metrics = jax.tree.map(np.atleast_2d, out.metrics)
    returns = final_return(metrics, np.atleast_1d(out.num_rows))
    known = returns[np.isfinite(returns)]
    return {
        "env": config.env.spec.name,
        "agent": type(config.agent).__name__,
        "steps_per_update": out.steps_per_update,
        "num_updates": int(np.max(updates)),
        "reached_update": updates_gone_through(out),
        "updates": {"by_seed": updates.tolist()},  # until each one's run was over
        "timesteps": int(np.max(updates)) * out.steps_per_update,
        "final_return": {
            "of": "training episodes of the last tenth of the updates, each counted once",
            "mean": float(known.mean()) if known.size else None,
            "std": float(known.std(ddof=1)) if known.size > 1 else None,
            "by_seed": [None if math.isnan(x) else float(x) for x in returns],
        },
        "num_episodes": int(metrics.num_episodes.sum()),
        "nonfinite_updates": int(metrics.nonfinite_updates.sum()),
        **_ends(config, out),
    }


def _ends(config: TrainConfig, out: TrainOutput) -> dict[str, Plain]:
    """The best evaluations of a run, and when it was solved, as far as it has them."""
    found: dict[str, Plain] = {}
    if out.state.best is not None:
        best = zip(np.atleast_1d(out.best_return), np.atleast_1d(out.best_timesteps), strict=True)
        known = [(float(x), int(steps)) if steps else (None, None) for x, steps in best]
        found["best_evaluation"] = {
            "of": f"{config.eval_max_episodes} episodes each; the best of many is partly luck",
            "by_seed": [x for x, _ in known],
            "timesteps": [steps for _, steps in known],
        }
    if (steps := out.solved_at) is not None:
        found["solved"] = {
            "at_return": config.stop_at_return,
            "timesteps": [int(x) if x >= 0 else None for x in np.atleast_1d(steps)],
        }
    return found


def curves_about(
    seeds: ArrayLike, timesteps: np.ndarray, returns: np.ndarray, num_episodes: np.ndarray
) -> dict[str, Plain]:
    """Rows of each seed in a table of metrics, and a digest of the numbers in curves: a checksum.

    Args:
        seeds: `[S]`, in any order.
        timesteps: `[U]`.
        returns, num_episodes: `[S, U]`.
    """
    order = np.argsort(np.asarray(seeds))
    digest = hashlib.blake2b(np.sort(np.asarray(seeds, "<i8")).tobytes(), digest_size=16)
    digest.update(np.asarray(timesteps, "<i8").tobytes())
    digest.update(np.asarray(num_episodes, "<i8")[order].tobytes())
    known = np.asarray(returns, "<f4")[order]
    digest.update(np.where(np.isnan(known), np.float32(np.nan), known).tobytes())
    return {"rows": len(timesteps), "digest": digest.hexdigest()}


def curves_of_output(seeds: Sequence[int], out: TrainOutput) -> dict[str, Plain]:
    """`curves_about` of training's output."""
    metrics = out.metrics
    parts = (np.atleast_2d(np.asarray(x)) for x in (metrics.episode_return, metrics.num_episodes))
    return curves_about(seeds, out.timesteps, *parts)


def updates_gone_through(out: TrainOutput) -> int:
    """The last update in the metrics, even if `max_episodes` ended the run before it."""
    return int(max(out.timesteps, default=0)) // out.steps_per_update


def _updates(out: TrainOutput) -> np.ndarray:
    """Number of updates, `[]` or `[S]` int64."""
    return np.asarray(out.state.num_updates, np.int64)


def read_summary(folder: Path) -> dict[str, Plain]:
    """The run's `summary.json`.

    Raises:
        RunError: there is none, or it can't be read.
    """
    file = folder / SUMMARY
    try:
        summary = json.loads(read_text(file))
    except (FileNotFoundError, NotADirectoryError):
        there = f"it has no {SUMMARY}" if folder.is_dir() else "there is no such folder"
        raise RunError(f"{folder} is no run's folder: {there}") from None
    except (*DAMAGED, RecursionError) as error:
        raise RunError(f"{file} is damaged: {reason(error)}") from None
    if not isinstance(summary, dict):
        raise RunError(f"{file} is damaged: it has {type(summary).__name__}, expected an object")
    for name, (kind, noun) in SUMMARY_TYPES.items():
        if name in ("agent", "env") and name not in summary:
            raise RunError(f"{file} is damaged: it has no {name!r}")
        value = summary.get(name)
        if name in summary and (
            not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool)
        ):
            raise RunError(f"{file} is damaged: {name} is {value!r:.80}, expected {noun}")
    try:
        return checked(summary)
    except ValueError as error:
        raise RunError(f"{file} is damaged: {reason(error)}") from None
