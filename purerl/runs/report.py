"""`Report`, the argument of callbacks after every chunk, and its metrics by name."""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from purerl.envs.base import Env
from purerl.experience.metrics import Metrics
from purerl.training import card
from purerl.training.policy import Policy


class Report(NamedTuple):
    """A report of the updates of one chunk.

    Attributes:
        start, stop: the chunk has the updates from `start` up to `stop`.
        num_updates: updates in the run.
        steps_per_update: environment steps in each, of each seed.
        metrics: `Metrics` of numpy arrays, `[n]` or `[S, n]`, n rows.
        seconds: of training so far, in this process.
        compile_seconds: duration of compilation.
        seeds: the seeds; `(0,)` if none were given, and the metrics have no axis for them.
        log_every: updates in each row; the run's last one may be of fewer.
        solved_at: `[S]` (or `[1]`) int64, environment steps at which `stop_at_return` has ended
            each seed's run, -1 where it hasn't; None without it.
        member: `policy, env = report.member(i)` gives the policy that the i-th seed has now, in
            memory of its own, and the environment that it is evaluated in: for an evaluation of
            your kind, or `purerl.render`. For callbacks of `fit`, while they run: afterwards it
            raises ConfigError, and elsewhere it is None.
        is_last: whether the run is over.
        before: the values of `latest` up to this report, `[S]` by name; None for none.
    """

    start: int
    stop: int
    num_updates: int
    steps_per_update: int
    metrics: Metrics
    seconds: float
    compile_seconds: float
    seeds: tuple[int, ...] = (0,)
    log_every: int = 1
    solved_at: np.ndarray | None = None
    member: Callable[[int], tuple[Policy, Env]] | None = None
    is_last: bool = False
    before: Mapping[str, np.ndarray] | None = None

    @property
    def num_rows(self) -> int:
        """n, the number of rows."""
        return -(-(self.stop - self.start) // self.log_every)

    def columns(self) -> dict[str, np.ndarray]:
        """The metrics as columns `[S or 1, n or 1]` by name, in the order of a table.

        `update` and `timesteps` are those at each row's end.
        """
        ends = self.start + self.log_every * np.arange(1, self.num_rows + 1, dtype=np.int64)
        update = np.minimum(ends, self.stop)[None, :]
        columns = {
            "seed": np.array(self.seeds, np.int64)[:, None],
            "update": update,
            "timesteps": update * self.steps_per_update,
            "seconds": np.full((1, 1), self.seconds),
        }
        return columns | by_name(self.metrics)


# Losses in a line of progress; more don't fit.
LIVE_LOSSES = 2


def live_numbers(report: Report) -> list[str]:
    """The returns and losses of a report in words, for a line of progress."""
    table = latest(report)
    words = {"return": "episode_return", "evaluation": "eval_return"}
    found = [f"{word} {card.spread(table[x])}" for word, x in words.items() if _is_seen(table, x)]
    if report.solved_at is not None:
        found.append(f"solved {np.sum(report.solved_at >= 0)} of {len(report.solved_at)}")
    metrics = report.metrics
    several = (("info", metrics.info), ("log", metrics.log))
    shown = {x: f"{kind}/{x}" for kind, named in several for x in list(named)[:LIVE_LOSSES]}
    found += [f"{x} {_mean(table[y]):.3g}" for x, y in shown.items() if _is_seen(table, y)]
    losses = list(report.metrics.losses)[:LIVE_LOSSES]
    return found + [f"{x.replace('_', ' ')} {_mean(table[x]):.3g}" for x in losses]


def live_speed(first: Report | None, last: Report | None) -> float:
    """Environment steps a second, over all seeds, from the first report of a process to another."""
    if first is None or last is None or not last.seconds:
        return 0.0
    return (last.stop - first.start) * last.steps_per_update * len(last.seeds) / last.seconds


def _is_seen(table: Mapping[str, np.ndarray], name: str) -> bool:
    return name in table and bool(np.any(np.isfinite(table[name])))


def _mean(x: np.ndarray) -> float:
    """Mean of the finite values."""
    known = x[np.isfinite(x)]
    return float(known.mean()) if known.size else math.nan


def by_name(metrics: Metrics) -> dict[str, np.ndarray]:
    """Metrics `[S, n]` by name; S is 1 if the run has no axis of seeds."""
    apart = ("losses", "eval", "info", "log")
    named = {name: x for name, x in metrics._asdict().items() if name not in apart}
    named |= {f"info/{name}": x for name, x in metrics.info.items()}
    named |= metrics.losses
    named |= {f"log/{name}": x for name, x in metrics.log.items()}
    if metrics.eval is not None:
        parts = {name: x for name, x in metrics.eval._asdict().items() if name != "info"}
        named |= {f"eval_{name.removeprefix('episode_')}": x for name, x in parts.items()}
        named |= {f"eval_info/{name}": x for name, x in metrics.eval.info.items()}
    return {name: np.atleast_2d(np.asarray(x)) for name, x in named.items()}


def means(report: Report) -> dict[str, np.ndarray]:
    """The metrics of a report reduced over its updates, `[S]` by name.

    Means over episodes weight each episode equally; minima, maxima and counts are over all updates;
    of evaluations it is the last. NaN where there are no finite values.
    """
    table = by_name(report.metrics)
    episodes = table["num_episodes"]
    reduced = {}
    for name, x in table.items():
        known = np.isfinite(x)
        there = known.any(axis=1)
        if name.startswith("eval_"):
            last = x.shape[1] - 1 - np.argmax(known[:, ::-1], axis=1)
            reduced[name] = np.where(there, x[np.arange(len(x)), last], np.nan)
        elif name in ("num_episodes", "nonfinite_updates"):
            reduced[name] = x.sum(axis=1)
        elif name.endswith(("_min", "_max")) and not name.startswith("log/"):
            end = np.inf if name.endswith("_min") else -np.inf
            reduce = np.min if name.endswith("_min") else np.max
            reduced[name] = np.where(there, reduce(np.where(known, x, end), axis=1), np.nan)
        else:
            weight = known * (episodes if name.startswith(("episode_", "info/")) else 1)
            total = np.sum(np.where(known, x, 0.0) * weight, axis=1, dtype=np.float64)
            count = weight.sum(axis=1)
            reduced[name] = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    return reduced


def latest(report: Report) -> dict[str, np.ndarray]:
    """As `means`, but where a seed has no value in this report, as after the end of its run, it
    keeps its last one before: what is taken over all seeds is of all of them, also of those that
    were the first to reach `stop_at_return`."""
    before = report.before or {}
    return {
        name: np.where(np.isfinite(x), x, before[name]) if name in before else x
        for name, x in means(report).items()
    }
