"""EnvPool: environments in C++ that step on a pool of threads, simulated on the host."""

import functools
import importlib
import types
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, cast

import jax
import numpy as np

from purerl.envs.base import Env
from purerl.envs.host import Maker, checked_names, of_maker
from purerl.records.errors import ConfigError, suggest
from purerl.records.types import PyTree

if TYPE_CHECKING:
    from purerl.envs.host import Vector

PREFIX = "envpool/"  # of names for `make`
LIMIT = "max_episode_steps"


def envpool_env(
    name: str, num_envs: int | None = None, *, metrics: Sequence[str] = (), **kwargs: object
) -> Env:
    """An environment of EnvPool, such as `purerl.make("envpool/Pong-v5")`.

    Args:
        name: its id.
        num_envs: N; None for the run's.
        metrics: names of numbers in `info`, as in `EnvSpec.metrics`.
        **kwargs: of EnvPool's config, such as `num_threads`; `max_episode_steps` lies in there too.

    Raises:
        ConfigError: EnvPool isn't installed; an unknown id or option; as `purerl.gymnasium_env`.
    """
    return of_maker(_Maker(name, tuple(sorted(kwargs.items())), checked_names(metrics)), num_envs)


class _Maker(Maker):
    """Makes pools."""

    library = "envpool"

    def one(self) -> PyTree:
        return self.many(1)

    def many(self, num_envs: int) -> "Vector":
        options, limit = dict(self.kwargs), self.limit
        if limit is not None:
            pool = self._pool(1, options)
            options[LIMIT] = min(pool.config[LIMIT], limit)
            pool.close()
        make = functools.partial(self._pool, options=options)
        return cast("Vector", Pool(self.name, num_envs, make))

    def _pool(
        self, num_envs: int, options: Mapping[str, object], seeds: Sequence[int] | None = None
    ) -> PyTree:
        """A pool of EnvPool's."""
        try:
            library = importlib.import_module("envpool")
        except ImportError:
            raise ConfigError(
                "env: EnvPool isn't installed: pip install 'purerl[envpool]'"
            ) from None
        known = library.list_all_envs()
        if self.name not in known:
            raise ConfigError(
                f"env: EnvPool has no environment {self.name!r}; {suggest(self.name, known)}"
            )
        seeded = {} if seeds is None else {"env_seed": list(seeds)}
        try:
            return library.make_gymnasium(self.name, num_envs=num_envs, **options, **seeded)
        except Exception as error:  # any kind, from a library in C++
            raise ConfigError(f"env: {PREFIX}{self.name} can't be made: {error}") from error


class Pool:
    """N environments of EnvPool in the form of a Gymnasium `VectorEnv` without auto-reset.

    EnvPool would reset in the step after an episode's last one, and takes seeds only when a pool
    is made: a reset with seeds makes another one.

    Args:
        name: of the environment.
        num_envs: N.
        make: `(num_envs, seeds=None) -> pool`.
    """

    metadata: ClassVar[dict[str, str]] = {"autoreset_mode": "DISABLED"}

    def __init__(self, name: str, num_envs: int, make: "functools.partial[PyTree]") -> None:
        self._make, self._pool = make, make(num_envs)
        self.num_envs = num_envs
        self.single_observation_space = self._pool.single_observation_space
        self.single_action_space = self._pool.single_action_space
        self.spec = types.SimpleNamespace(id=name, max_episode_steps=self._pool.config[LIMIT])
        self._obs: PyTree = None

    def reset(
        self,
        *,
        seed: Sequence[int] | None = None,
        options: Mapping[str, np.ndarray] | None = None,
    ) -> tuple[PyTree, dict[str, PyTree]]:
        """Begins new episodes: with seeds `[N]` in all, else in those of `reset_mask` `[N]`."""
        if seed is not None:
            self.close()
            self._pool = self._make(self.num_envs, seeds=seed)
            self._obs = jax.tree.map(np.array, self._pool.reset()[0])
        elif options is not None:
            ids = np.flatnonzero(options["reset_mask"]).astype(np.int32)
            jax.tree.map(functools.partial(_put, ids), self._obs, self._pool.reset(ids)[0])
        return self._obs, {}

    def step(
        self, action: np.ndarray
    ) -> tuple[PyTree, np.ndarray, np.ndarray, np.ndarray, dict[str, PyTree]]:
        """A step of all N, and the numbers of the info in the form of Gymnasium's vectors."""
        given = np.asarray(action, self.single_action_space.dtype)
        obs, reward, terminated, truncated, info = self._pool.step(given)
        self._obs = jax.tree.map(np.array, obs)
        there = np.ones(self.num_envs, bool)
        numbers = {n: x for n, x in info.items() if np.shape(x) == (self.num_envs,)}
        masks = {f"_{n}": there for n in numbers}
        return self._obs, reward, terminated, truncated, {**numbers, **masks}

    def close(self) -> None:
        """Ends its threads."""
        self._pool.close()


def _put(ids: np.ndarray, array: np.ndarray, values: np.ndarray) -> None:
    array[ids] = values
