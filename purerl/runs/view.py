"""Read-only views of a run's or a sweep's folder, without a lock: also during training, and after a
kill."""

import dataclasses
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from purerl.agents import Agent
from purerl.deploy.policy_file import load_policy
from purerl.records.errors import ConfigError, RunError, shown
from purerl.records.fields import check_path, read_names
from purerl.records.files import DAMAGED, checked, read_text, reason
from purerl.records.folders import LOCK, is_locked, list_checkpoints
from purerl.records.toml import from_toml
from purerl.records.types import Plain
from purerl.runs.curves import Curves, read_curves
from purerl.runs.folder import (
    CONFIG,
    METRICS,
    POLICIES,
    RUN,
    SUMMARY,
    curves_about,
    policy_file,
)
from purerl.training.config import TrainConfig
from purerl.training.describe import differences
from purerl.training.effective import describe_in_force, filled, with_file_defaults
from purerl.training.named import env_name, is_code, named_env
from purerl.training.policy import Policy
from purerl.training.train import TrainOutput

SWEEP, EVOLVE, TUNE = "sweep.json", "evolve.json", "tune.json"
BEST = "best"
WINNER = "winner"  # a sweep of the winner of a search, over fresh seeds


class Kind(NamedTuple):
    """Of a folder that has several runs: what it holds, the command that continues it, and the
    folder in it of the best of them."""

    noun: str
    command: str
    best: str


KINDS = {
    SWEEP: Kind("sweep", "sweep", BEST),
    EVOLVE: Kind("population", "evolve", BEST),
    TUNE: Kind("search", "tune", f"{WINNER}/{BEST}"),
}


def marker_of(folder: Path) -> str | None:
    """The file by which a folder is one of `KINDS`; None for a run's, or any other."""
    return next((name for name in KINDS if (folder / name).is_file()), None)


# Errors from reading a text file that is damaged, or of another program.
UNREADABLE = (*DAMAGED, RecursionError)


def read_json(file: Path) -> dict[str, Plain] | None:
    """A JSON object from a file; None where there is no such file.

    Raises:
        RunError: it can't be read, or isn't an object.
    """
    try:
        plain = json.loads(read_text(file))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except UNREADABLE as error:
        raise RunError(f"{file} is damaged: {reason(error)}") from None
    if not isinstance(plain, dict):
        raise RunError(f"{file} is damaged: got a {type(plain).__name__}, expected an object")
    try:
        return checked(plain)
    except ValueError as error:
        raise RunError(f"{file} is damaged: {reason(error)}") from None


def read_toml(
    file: str | os.PathLike[str], agent: str | None = None, *, sizes: bool = True
) -> dict[str, Plain]:
    """A config file's fields; the word "none" is None, for which TOML has none.

    Args:
        file: the path.
        agent, sizes: as of `with_file_defaults`.

    Raises:
        ValueError: it isn't TOML, or has a field under two names.
        OSError: it can't be read.
    """
    # With aliases resolved, so that checks of a field see it under any name.
    return with_file_defaults(read_names(TrainConfig, from_toml(file)), agent, sizes=sizes)


class RunView:
    """A read-only view of a run's folder, or of the best in a folder of `KINDS`.

    Args:
        path: the folder.

    Attributes:
        folder: the folder with the run's files.
        agent, env: names of agent and environment.
        label: the hyperparameters of the best in words; "" for a run.

    Raises:
        RunError: from all methods: it is no run's folder, or a file is missing or damaged.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = self.folder = Path(path).expanduser()
        self.label = ""
        found = (kind for name, kind in KINDS.items() if read_json(self.path / name) is not None)
        several = next(found, None)
        if several is not None:
            self.folder /= several.best
        self._summary = read_json(self.folder / SUMMARY)
        if several is not None and self._summary is None:
            raise RunError(
                f"{self.path} holds a {several.noun} without a best agent: it isn't finished "
                f"(purerl {several.command} with the same folder goes on), or no episode of it has "
                "ended"
            )
        self._run = read_json(self.folder / RUN)
        if self._summary is None and self._run is None:
            there = f"it has neither {SUMMARY} nor {RUN}"
            if not self.path.is_dir():
                there = "it is a file" if self.path.exists() else "there is no such folder"
            raise RunError(f"{self.path} is no run's folder: {there}")
        if self._summary is not None:
            self.agent = self._known("agent", str)
            self.env = self._known("env", str)
        else:
            config = self._described("config", dict)
            agent, env = config.get("agent"), config.get("env")
            known = isinstance(agent, dict) and isinstance(env, dict)
            self.agent, self.env = (agent.get("class"), env.get("env")) if known else (None, None)
            if not (isinstance(self.agent, str) and isinstance(self.env, str)):
                raise RunError(f"{self.folder / RUN} is damaged: its agent and env are unknown")
        if several is not None:
            values = self._known("best", dict).items()
            shown = (f"{x:.4g}" if isinstance(x, float) else str(x) for _, x in values)
            self.label = " ".join(f"{n}={x}" for (n, _), x in zip(values, shown, strict=True))

    def _known(self, name: str, kind: type) -> Plain:
        """A field of the summary."""
        assert self._summary is not None
        if name not in self._summary:
            raise RunError(f"{self.folder / SUMMARY} is damaged: it has no {name!r}")
        return _checked(self.folder / SUMMARY, name, self._summary[name], kind)

    def _described(self, name: str, kind: type | tuple[type, ...]) -> Plain:
        """A field of the run's description, `run.json`."""
        if self._run is None:
            raise RunError(f"{self.folder} is no run's folder: it has no {RUN}")
        return _checked(self.folder / RUN, name, self._run.get(name), kind)

    @property
    def name(self) -> str:
        """The label of its curve in legends."""
        return f"{self.agent} on {self.env}" + (f", best: {self.label}" if self.label else "")

    @property
    def given_seeds(self) -> list[int] | None:
        """The argument `seeds` of `fit` as a list; None for one agent without an axis."""
        seeds = self._described("seeds", (list, type(None)))
        return seeds if seeds is None else _integers(self.folder / RUN, seeds)

    @property
    def total_timesteps(self) -> int | None:
        """The config's field; None if `max_episodes` ends the run."""
        return self._described("config", dict).get("total_timesteps")

    @property
    def hyperparams(self) -> dict[str, Plain]:
        """The argument `hyperparams` of `fit`."""
        return self._described("hyperparams", dict)

    @property
    def seeds(self) -> list[int]:
        """The seeds, `[0]` if none were given."""
        if self._summary is None:
            return self.given_seeds or [0]
        return _integers(self.folder / SUMMARY, self._known("seeds", list))

    @property
    def state(self) -> str:
        """ "running"; "finished"; "stopped", by a signal, so that all files are of its end; or
        "killed", by anything else, such as an exception in a callback: its newest checkpoint is
        newer than the summary and the policies. Both go on by the same call."""
        if is_locked(self.folder / LOCK):
            return "running"
        if self._summary is None or self._stale():
            return "killed"
        return "finished" if self._summary.get("finished", True) else "stopped"

    @property
    def reached_timesteps(self) -> int:
        """Environment steps of each seed so far, 0 before the first report."""
        if self._summary is not None and not self._stale() and self.state != "running":
            return int(self._known("timesteps", int))
        return int(self.curves().timesteps[-1]) if (self.folder / METRICS).exists() else 0

    def read_config(self) -> dict[str, Plain]:
        """The config's plain values; the environment may be missing, or code: see `is_code`."""
        try:
            return read_toml(self.folder / CONFIG)
        except FileNotFoundError:
            raise RunError(f"{self.folder} has no {CONFIG}") from None
        except (OSError, ValueError) as error:
            raise RunError(f"{self.folder / CONFIG} is damaged: {reason(error)}") from None

    def curves(self, name: str | None = None) -> Curves:
        """The curves of its metrics, even if no episode has ended."""
        given = None if self._run is None else self.given_seeds
        curves = read_curves(self.folder, name or self.name, self._check_curves, given)
        ends = self._ends(curves)
        return curves if ends is None else dataclasses.replace(curves, num_updates=ends)

    def _ends(self, curves: Curves) -> np.ndarray | None:
        """`[S]`, the rows until each seed's run was over, by the summary; None where it isn't of
        all rows, as during training, or where an earlier version wrote it."""
        if self._summary is None or "updates" not in self._summary:
            return None
        steps_per_update = int(self._known("steps_per_update", int))
        reached = self._reached() * steps_per_update
        if curves.timesteps[-1] != reached or curves.num_seeds != len(self.seeds):
            return None
        updates = np.array(self._by_seed("updates"), np.float64)
        order = np.argsort(self.seeds)  # as the seeds of curves are
        return np.searchsorted(curves.timesteps, updates[order] * steps_per_update) + 1

    def _check_curves(
        self, seeds: np.ndarray, timesteps: np.ndarray, returns: np.ndarray, episodes: np.ndarray
    ) -> None:
        """Compares a table of metrics with the digest in the summary.

        Args:
            seeds: `[S]`.
            timesteps: `[U]`, possibly of more updates than the summary.
            returns, episodes: `[S, U]`.

        Raises:
            ValueError: rows are missing, or numbers differ.
        """
        noted = None if self._summary is None else self._summary.get("curves")
        newest, reached = self._newest_checkpoint(), self._reached()
        if not isinstance(noted, dict) or (newest is not None and newest < reached):
            return  # training has restarted from an older checkpoint, and will rewrite the rows
        rows = noted.get("rows")
        if type(rows) is not int or rows > len(timesteps):
            raise ValueError(f"it has {len(timesteps)} rows of each seed, expected {rows}")
        found = curves_about(seeds, timesteps[:rows], returns[:, :rows], episodes[:, :rows])
        if found != noted:
            raise ValueError("its numbers are not those that training has written")

    def playing_limits(self) -> tuple[int | None, int]:
        """The time limit and the frame skip of the run."""
        plain = self._settings()
        limit, skip = plain.get("max_episode_steps"), plain.get("skip_frames", 1)
        if not all(type(x) is int and x >= 1 for x in (1 if limit is None else limit, skip)):
            raise RunError(
                f"{self.folder} is damaged: its skip_frames is {skip!r:.80}, its max_episode_steps "
                f"{limit!r:.80}"
            )
        return limit, skip

    def final_returns(self) -> list[float | None]:
        """The final return of each seed; None if no episode ended in the last tenth of the
        updates."""
        if self._summary is not None and not self._stale():
            return self._by_seed("final_return")
        if not (self.folder / METRICS).exists():
            return [None] * len(self.seeds)
        found = dict(zip(sorted(self.seeds), self.curves().final_returns, strict=False))
        return [float(x) if (x := found[seed]) == x else None for seed in self.seeds]

    def _by_seed(self, name: str) -> list[float | None]:
        """A number of each seed in the summary."""
        numbers = self._known(name, dict).get("by_seed")
        known = isinstance(numbers, list) and len(numbers) == len(self.seeds)
        if not (known and all(isinstance(x, (float, int, type(None))) for x in numbers)):
            raise RunError(f"{self.folder / SUMMARY} is damaged: 'by_seed' is not of its seeds")
        return numbers

    def best_returns(self, env: str | None = None) -> list[float | None]:
        """The return of each seed's best evaluation; None where no episode of one has ended.

        Args:
            env: as of `policies`.

        Raises:
            RunError: the run has no evaluations.
        """
        self._refuse_without_evaluations()
        if self._summary is not None and not self._stale():
            return self._by_seed("best_evaluation")
        returns = np.atleast_1d(self._restored(env).best_return)
        return [float(x) if x == x else None for x in returns]

    def _refuse_without_evaluations(self) -> None:
        if self._settings().get("eval_every") is None:
            raise RunError(
                f"{self.folder} keeps no best policies: it was trained without evaluations, which "
                "eval_every=10 (--eval-every 10) adds"
            )

    def _settings(self) -> dict[str, Plain]:
        """The run's options in `run.json`; if that is missing, in the config file, which users
        edit."""
        found: dict[str, Plain]
        found = self.read_config() if self._run is None else self._described("config", dict)
        return found

    def best_seed(self, *, best: bool = False, env: str | None = None) -> int:
        """The seed with the highest final return, or with the best evaluation; the first if none
        has one. Arguments as of `policies`."""
        returns = self.best_returns(env) if best else self.final_returns()
        known = [(x, -i) for i, x in enumerate(returns) if x is not None]
        return self.seeds[-max(known)[1] if known else 0]

    def policies(
        self,
        seeds: Sequence[int],
        env: object = None,
        *,
        best: bool = False,
        agent: Agent | None = None,
        action_processor: Callable[[jax.Array], jax.Array] | None = None,
    ) -> dict[int, Policy]:
        """A policy for each seed: from the policy files, or, of a run in progress or killed, from
        its newest checkpoint.

        Args:
            seeds: some of the run's.
            env: the training environment, or its `module:name`, if it is the user's code.
            agent, action_processor: as of `load_policy`.
            best: those of the best evaluations, instead of the last ones.
        """
        if best:
            self._refuse_without_evaluations()
        files = [policy_file(self.folder, seed, best=best) for seed in seeds]
        if not self._stale() and all(file.exists() for file in files):
            load = partial(load_policy, agent=agent, action_processor=action_processor, env=env)
            return {seed: load(file) for seed, file in zip(seeds, files, strict=True)}
        newest = self._newest_checkpoint()
        if newest is None:
            missing = [x.name for x in files if not x.exists()]
            if best and self._summary is not None:
                raise RunError(
                    f"{self.folder / POLICIES} has no {', '.join(missing)}: no evaluation has an "
                    "episode that ended"
                )
            raise RunError(
                f"{self.folder} has no policies and no checkpoint yet: purerl resume {self.folder} "
                "trains and writes them"
            )
        out, given = self._restored(env), self.given_seeds
        outs = {0: out}
        if given is not None:
            outs = {seed: out.member(given.index(seed)) for seed in seeds}
        return {seed: x.best_policy if best else x.policy for seed, x in outs.items()}

    def output(self, env: object = None) -> TrainOutput:
        """What `fit` would return of the updates up to the newest checkpoint.

        Args:
            env: the training environment, or its `module:name`, if it is the user's code.
        """
        if self.folder != self.path:
            raise RunError(
                f"{self.path} holds several agents, of which policies are kept, but no state; "
                f"purerl.load_policy reads those in {self.folder / POLICIES}"
            )
        return self._restored(env, metrics=True)

    def _newest_checkpoint(self) -> int | None:
        try:
            return max(list_checkpoints(self.folder), default=None)
        except OSError:
            return None

    def _stale(self) -> bool:
        """Whether there is a newer checkpoint than the summary and the policies."""
        return self._summary is None or (self._newest_checkpoint() or 0) > self._reached()

    def _reached(self) -> int:
        """The update of the summary and the policies."""
        summary = self._summary or {}
        reached = summary.get("reached_update", summary.get("num_updates"))
        return reached if type(reached) is int else 0

    def _config(self, env: object) -> TrainConfig:
        """The run's config, checked against its description."""
        mapping: dict[str, Any] = self.read_config()
        named = mapping.get("env")
        given = named is None or is_code(named)
        if given and env is None:
            raise ConfigError(
                "--env: missing, since no name makes the run's environment: give yours, as --env "
                "module:name"
                if named is None
                else f"--env: expected --env {env_name(named)}, whose code is yours"
            )
        if given and env is not None:
            mapping["env"] = named_env(named, env) if isinstance(env, str) else env
        if is_code(mapping.get("eval_env")):  # which policies don't need
            mapping = {**mapping, "eval_env": None}
        config = TrainConfig.from_mapping(mapping)
        there = json.loads(json.dumps(filled(self._described("config", dict), config)))
        here = json.loads(json.dumps(describe_in_force(config)))
        # A run may be extended, and the user may name its environment anew.
        same = ["total_timesteps", "eval_env", *(["env"] if given else [])]
        differing = next(differences(there, here | {n: there.get(n) for n in same}), None)
        if differing is not None:
            raise RunError(
                f"{self.folder} has no policies yet, and what it trains isn't all in its {CONFIG} "
                f"({differing}): the program that began it has to end it"
            )
        return config

    def _restored(self, env: object, *, metrics: bool = False) -> TrainOutput:
        """The output at the newest checkpoint; without metrics it is for policies."""
        newest = self._newest_checkpoint()
        try:
            return self._from_checkpoint(env, metrics)
        except RunError:
            if self._newest_checkpoint() == newest:
                raise
            return self._from_checkpoint(env, metrics)  # it was removed meanwhile, by training

    def _from_checkpoint(self, env: object, metrics: bool) -> TrainOutput:
        # Imported late, with orbax, since that takes long.
        from purerl.runs.checkpoint import RunFolder
        from purerl.runs.chunks import Program, hyperparam_arrays, join_metrics, seed_keys

        config, seeds = self._config(env), self.given_seeds
        keys, _ = seed_keys(seeds)
        values = hyperparam_arrays(config, self.hyperparams, None if seeds is None else len(seeds))
        program: Any = Program(config, keys, values)
        with RunFolder(self.folder, keep=1, read_only=True) as opened:
            opened.read_run()
            latest = opened.latest
            if latest is None:
                raise RunError(f"{self.folder} has no complete checkpoint")
            state = opened.restore(latest, program.state_like)
            pieces = opened.read_metrics(latest, program.metrics_like) if metrics else []
        out: TrainOutput = program.output(state, join_metrics(pieces) if pieces else None)
        return out


def _checked(file: Path, name: str, value: Plain, kind: type | tuple[type, ...]) -> Plain:
    if not isinstance(value, kind):
        raise RunError(f"{file} is damaged: {name} is {str(value)[:80]!r}")
    return value


def _integers(file: Path, seeds: list[Plain]) -> list[int]:
    if not seeds or not all(type(seed) is int and 0 <= seed < 2**32 for seed in seeds):
        raise RunError(f"{file} is damaged: seeds is {str(seeds)[:80]!r}")
    return seeds


def load_run(path: str | os.PathLike[str], env: object = None) -> TrainOutput:
    """What training has reached in a run's folder: as `fit` returned it, or, while it trains and
    after a kill, as of the newest checkpoint.

    Nothing is written there, and no lock is taken.

    Args:
        path: the folder.
        env: the environment that it trains in, or its `module:name`, if that is the user's code.

    Raises:
        ConfigError: the environment's code is missing.
        RunError: it is no run's folder, is damaged, or has no checkpoint; or a sweep's, which keeps
            policies alone.
    """
    view = RunView(check_path("path", path))
    try:
        return view.output(env)
    except ConfigError as error:
        raise ConfigError(str(error).replace("--env", "env")) from None


def read_run(path: str | os.PathLike[str], name: str | None = None) -> Curves:
    """The curves of a run's folder, also during training and after a kill.

    Args:
        path: the folder, with `metrics.csv`; of a sweep, the best combination is read.
        name: the label in legends; None for agent and environment.

    Raises:
        RunError: it is no run's folder, is damaged, or no episode has ended in it.
    """
    view = RunView(check_path("path", path))
    curves = view.curves(name)
    if not np.any(curves.num_episodes > 0):
        raise RunError(f"{view.path} has no finished episode: no return is known; train for longer")
    return curves


def read_runs(paths: Iterable[str | os.PathLike[str]]) -> list[Curves]:
    """The curves of several folders. Curves of the same agent and environment get their folders'
    names as well.

    Raises:
        ConfigError: not a sequence of paths.
        RunError: as from `read_run`.
    """
    if isinstance(paths, (str, bytes, os.PathLike)) or not isinstance(paths, Iterable):
        raise ConfigError(f"paths: got {shown(paths)}, expected several paths: [path]")
    folders = [check_path("paths", path) for path in paths]
    return apart(folders, [read_run(folder) for folder in folders])


def apart(folders: Iterable[Path], runs: list[Curves]) -> list[Curves]:
    """The curves, with their folders' names added to labels that aren't unique."""
    count = Counter(run.name for run in runs)
    names = [folder.expanduser().absolute().name for folder in folders]
    return [
        run if count[run.name] == 1 else dataclasses.replace(run, name=f"{run.name}: {name}")
        for run, name in zip(runs, names, strict=True)
    ]
