"""Environments of the host: Gymnasium's, simulated outside JAX, for the same loop as all others.

N simulators take a step together, in one ordered callback from the compiled program. Their state is
on the host, and a program has only the observations, and the time since their last common reset.
Therefore they can't be mapped by `jax.vmap`, sharded over devices, or saved and restored.
"""

import dataclasses
import functools
import weakref
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, ClassVar, TypeAlias, TypeGuard, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import io_callback

from purerl.envs.base import AutoResetState, Dynamics, Env, EnvSpec, TimeStep
from purerl.envs.spaces import convert_spaces, is_space, leaves_of, map_spaces
from purerl.records.errors import ConfigError, RunError, sentence, shown, suggest
from purerl.records.fields import check_count
from purerl.records.types import PyTree

if TYPE_CHECKING:
    import gymnasium

    Simulator: TypeAlias = gymnasium.Env[PyTree, PyTree]
    Vector: TypeAlias = gymnasium.vector.VectorEnv[PyTree, PyTree, PyTree]

PREFIX = "gymnasium/"  # of names for `make`
# The id of a registered environment, a function that makes one, or N of them.
Given: TypeAlias = "str | Callable[..., Simulator] | Vector"


def host_env(
    env: Given, num_envs: int | None = None, *, metrics: Sequence[str] = (), **kwargs: object
) -> Env:
    """`purerl.gymnasium_env` without a source in the spec."""
    made = Maker(env, tuple(sorted(kwargs.items())), checked_names(metrics))
    given = getattr(env, "num_envs", None) if is_vector(env) else None
    if is_vector(env) and _autoreset_mode(env) not in ("SAME_STEP", "DISABLED"):
        raise ConfigError(
            f"env: {made.name} has the autoreset mode {_autoreset_mode(env)}, expected SAME_STEP "
            "or DISABLED, which show the last observation of an episode in its last step; "
            "EnvPool's are made by their names, such as 'envpool/Pong-v5'"
        )
    if given is not None and num_envs not in (None, given):
        raise ConfigError(f"num_envs: got {num_envs}, expected {given}, those of {made.name}")
    return of_maker(made, given if num_envs is None else num_envs)


def of_maker(made: "Maker", num_envs: int | None) -> Env:
    """An environment of what a maker makes. Raises ConfigError as `purerl.gymnasium_env`."""
    if num_envs is not None:
        num_envs = check_count("num_envs", num_envs)
    if any(isinstance(x, jax.core.Tracer) for _, x in made.kwargs):
        raise ConfigError(f"env: parameters of {made.name} are constants, and can't be traced")
    spec = made.spec()
    return HostDynamics(made, spec, num_envs).as_env(spec)


def checked_names(metrics: Sequence[str]) -> tuple[str, ...]:
    """Names of metrics as a tuple. Raises ConfigError for a text."""
    if isinstance(metrics, str):
        raise ConfigError(f"metrics: got {metrics!r}, expected names, such as ({metrics!r},)")
    return tuple(metrics)


def is_vector(env: object) -> "TypeGuard[Vector]":
    """Whether it is a Gymnasium `VectorEnv`."""
    return hasattr(env, "single_observation_space") and hasattr(env, "num_envs")


def _autoreset_mode(envs: object) -> str:
    """The mode of this vector. Gymnasium's vectors also write theirs into `metadata`, the dict of
    the environment's class, where the last one made overwrites that of all others."""
    mode = getattr(getattr(envs, "unwrapped", envs), "autoreset_mode", None)
    mode = getattr(envs, "metadata", {}).get("autoreset_mode") if mode is None else mode
    return str(getattr(mode, "name", mode))


@dataclasses.dataclass(frozen=True)
class Maker:
    """Makes simulators.

    Attributes:
        env: see `Given`.
        kwargs: for `gymnasium.make`, as pairs.
        metrics: names in `info`.
        limit: a time limit besides the environment's own; None for none.
    """

    library: ClassVar[str] = "gymnasium"
    env: Given
    kwargs: tuple[tuple[str, object], ...] = ()
    metrics: tuple[str, ...] = ()
    limit: int | None = None

    @property
    def name(self) -> str:
        if isinstance(self.env, str):
            return self.env
        spec = getattr(self.env, "spec", None)
        return spec.id if spec is not None else getattr(self.env, "__name__", "a simulator")

    def spec(self) -> EnvSpec:
        """The spec of one environment. Raises ConfigError if it can't be made, or has spaces
        without a counterpart."""
        given = is_vector(self.env)
        one: PyTree = self.env if given else self.one()
        vector = is_vector(one)
        names = ("observation_space", "action_space")
        spaces = [convert_spaces(getattr(one, f"single_{n}" if vector else n)) for n in names]
        limit = getattr(getattr(one, "spec", None), "max_episode_steps", None)
        name = one.spec.id if getattr(one, "spec", None) is not None else self.name
        if not given:
            one.close()
        for what, space in zip(names, spaces, strict=True):
            parts = leaves_of(space)[0] if what == "observation_space" else [space]
            if not parts or not all(map(is_space, parts)):
                raise ConfigError(
                    f"env: {name} has the {what} {shown(space)}, expected Box, Discrete, "
                    "MultiDiscrete or MultiBinary"
                    + (", or Dict and Tuple of these" if what == "observation_space" else "")
                )
        return EnvSpec(name, spaces[0], spaces[1], limit, metrics=self.metrics)

    def one(self) -> "Simulator":
        """A single simulator."""
        gymnasium = _gymnasium()
        if isinstance(self.env, str):
            made = _make(gymnasium, self.env, dict(self.kwargs))
        else:
            make = cast("Callable[..., Simulator]", self.env)
            with sentence(f"env: {self.name} can't be made"):
                made = make(**dict(self.kwargs))
            if not isinstance(made, gymnasium.Env):
                raise ConfigError(f"env: {self.name} makes {shown(made)}, expected a gymnasium.Env")
        if self.limit is None:
            return made
        limited: Simulator = gymnasium.wrappers.TimeLimit(made, self.limit)
        return limited

    def many(self, num_envs: int) -> "Vector":
        """N simulators."""
        if is_vector(self.env):
            return self.env
        vector = _gymnasium().vector
        mode = vector.AutoresetMode.DISABLED  # so that the true successor is seen

        def one() -> "Simulator":
            made = self.one()
            made.metadata = dict(made.metadata)  # the class's, which the vector writes its mode to
            return made

        made: Vector = vector.SyncVectorEnv([one] * num_envs, copy=False, autoreset_mode=mode)
        return made


def _gymnasium() -> ModuleType:
    try:
        import gymnasium
    except ImportError:
        raise ConfigError(
            "env: Gymnasium isn't installed: pip install 'purerl[gymnasium]', or with MuJoCo "
            "'purerl[mujoco]'"
        ) from None
    return gymnasium


def _make(gymnasium: ModuleType, name: str, kwargs: Mapping[str, object]) -> "Simulator":
    try:
        made: Simulator = gymnasium.make(name, disable_env_checker=True, **kwargs)
        return made
    except gymnasium.error.UnregisteredEnv as error:
        hint = suggest(name, list(gymnasium.registry))
        raise ConfigError(f"env: Gymnasium has no environment {name!r}; {hint}") from error
    except gymnasium.error.DependencyNotInstalled as error:
        line = " (pip install 'purerl[mujoco]')" if "mujoco" in str(error).lower() else ""
        raise ConfigError(f"env: {name!r} can't be made here: {error}{line}") from error
    except Exception as error:  # any kind, from anyone's environment
        given = f" with {shown(dict(kwargs))}" if kwargs else ""
        raise ConfigError(f"env: {name!r} can't be made{given}: {error}") from error


class _Simulators:
    """N simulators, made at their first reset. Everything here runs in callbacks, in numpy alone:
    JAX must not be called from within its own programs."""

    def __init__(self, maker: Maker, spec: EnvSpec, num_envs: int) -> None:
        self.maker, self.spec, self.num_envs = maker, spec, num_envs
        self.envs: PyTree = None
        # The first seed of the last reset, and the steps since.
        self.time: tuple[int, int] | None = None

    def reset(self, seeds: np.ndarray) -> PyTree:
        """Resets all, with seeds `[N]`; returns observations `[N, ...]`."""
        if self.envs is None:
            self.envs = self.maker.many(self.num_envs)
            if not is_vector(self.maker.env):
                weakref.finalize(self, self.envs.close)
        given = np.asarray(seeds).tolist()
        if len(given) != self.envs.num_envs:
            raise RunError(
                f"env: {self.spec.name} is a VectorEnv of {self.envs.num_envs} environments, which "
                "can't be played one by one: expected the environment's id, or a function"
            )
        obs, _ = self.envs.reset(seed=given)
        self.time = given[0], 0
        return self._copied(obs)

    def step(
        self, time: np.ndarray, action: np.ndarray
    ) -> tuple[PyTree, PyTree, np.ndarray, np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        """A step of all, and a reset of those that end.

        Returns:
            True successors, observations to act on next, rewards, `terminated`, `truncated`, and
            metrics with "nonfinite", each `[N, ...]`.
        """
        if self.time is None or tuple(np.asarray(time).tolist()) != self.time:
            raise RunError(
                f"env: the simulators of {self.spec.name} are at another time than this state: "
                "another run has reset or stepped them, or it is of another process: reset them "
                "first, and give each run an environment of its own"
            )
        self.time = self.time[0], (self.time[1] + 1) % 2**32
        obs, reward, terminated, truncated, info = self.envs.step(np.asarray(action))
        terminated, truncated = (np.array(x, bool) for x in (terminated, truncated))
        reward = np.array(reward, np.float32)
        ended = terminated | truncated
        # Those of `Maker.many` never reset themselves.
        same_step = is_vector(self.maker.env) and _autoreset_mode(self.envs) == "SAME_STEP"
        last = self._with_last(obs, info) if same_step else self._copied(obs)
        broken = ~np.isfinite(reward)
        for x in jax.tree.leaves(last):
            if x.dtype.kind == "f":
                broken |= ~np.isfinite(x).all(axis=tuple(range(1, x.ndim)))
        infos = info.get("final_info", {}) if same_step else info
        seen = {name: self._metric(name, infos, ended) for name in self.spec.metrics}
        if same_step:
            if np.any(broken & ~ended):
                raise RunError(
                    f"env: {self.spec.name} gave NaN or infinity, and can't be reset by itself, "
                    "expected a VectorEnv with AutoresetMode.DISABLED"
                )
        elif np.any(ended | broken):
            obs, _ = self.envs.reset(options={"reset_mask": ended | broken})
        truncated = (truncated | broken) & ~terminated
        after = self._copied(obs)
        return last, after, reward, terminated, truncated, {**seen, "nonfinite": broken}

    def _metric(self, name: str, infos: Mapping[str, PyTree], ended: np.ndarray) -> np.ndarray:
        """A metric's values `[N]`, which those that ended have to have."""
        there = np.asarray(infos.get(f"_{name}", np.zeros(self.num_envs, bool)), bool)
        if np.any(ended & ~there):
            known = sorted(n for n in infos if not n.startswith("_"))
            raise RunError(
                f"env: the info of {self.spec.name} has no {name!r} at an episode's end, which "
                f"metrics names; {suggest(name, known) if known else 'it is empty'}"
            )
        values = np.zeros(self.num_envs, np.float32)
        if name in infos:
            values[there] = np.asarray(infos[name])[there]
        return values

    def _copied(self, obs: PyTree) -> PyTree:
        """A copy in the spec's dtypes and structure, since simulators overwrite their arrays."""
        space = self.spec.observation_space
        if is_space(space):
            return np.array(obs, space.dtype)
        spaces, structure = leaves_of(space)
        parts = structure.flatten_up_to(obs)
        pairs = zip(parts, spaces, strict=True)
        return structure.unflatten([np.array(x, part.dtype) for x, part in pairs])

    def _with_last(self, obs: PyTree, info: Mapping[str, PyTree]) -> PyTree:
        """Observations with the last one of each episode that ended, of vectors that reset
        themselves in the same step."""
        last = self._copied(obs)
        for i in np.flatnonzero(info.get("_final_obs", [])).tolist():
            jax.tree.map(functools.partial(_put, i), last, info["final_obs"][i])
        return last


def _put(i: int, array: np.ndarray, value: np.ndarray) -> None:
    array[i] = value


class _Pool(dict[tuple[int | None, int, str], _Simulators]):
    """Simulators by limit, number and purpose. A copy in another process begins empty."""

    def __reduce__(self) -> tuple[type["_Pool"], tuple[()]]:
        return _Pool, ()


@dataclasses.dataclass(frozen=True, eq=False)
class HostDynamics(Dynamics):
    """The dynamics of an environment of the host.

    Alone it is a vector of one.

    Attributes:
        maker: makes the simulators.
        spec: of one environment.
        num_envs: N, if it was chosen with the environment.
        pool: the simulators, shared by copies with other limits.
    """

    maker: Maker
    spec: EnvSpec
    num_envs: int | None = None
    pool: _Pool = dataclasses.field(default_factory=_Pool)

    @property
    def host(self) -> "HostDynamics":
        return self

    def limited(self, max_episode_steps: int) -> Env:
        """The environment with a time limit. Raises ConfigError for a given `VectorEnv`."""
        if is_vector(self.maker.env):
            raise ConfigError(
                f"max_episode_steps: got {max_episode_steps}, but the simulators of "
                f"{self.spec.name} are given as a VectorEnv: expected a limit in these "
                "(gymnasium.wrappers.TimeLimit), or the environment's id"
            )
        limits = [x for x in (self.maker.limit, max_episode_steps) if x is not None]
        own = self.spec.max_episode_steps
        limit = max_episode_steps if own is None else min(own, max_episode_steps)
        spec = self.spec._replace(max_episode_steps=limit, source=None)
        maker = dataclasses.replace(self.maker, limit=min(limits))
        return dataclasses.replace(self, maker=maker, spec=spec).as_env(spec)

    def vectorized(self, num_envs: int | None = None) -> Env:
        """N environments with auto-reset, to learn in; None for any number, to play in: these are
        other simulators. Raises ConfigError for another number than the environment's."""
        wrong = num_envs is not None and self.num_envs not in (None, num_envs)
        if wrong:
            raise ConfigError(
                f"num_envs: got {num_envs}, expected {self.num_envs}, those of {self.spec.name}"
            )
        return _Many(self, "play" if num_envs is None else "learn").as_env(self.spec)

    def simulators(self, num_envs: int, purpose: str) -> _Simulators:
        """N simulators for a purpose. Raises ConfigError for a `VectorEnv` of another number, or
        one that is for learning already."""
        given = is_vector(self.maker.env)
        # Alone it is only traced: its simulators refuse at a reset.
        if given and (purpose == "play" or (purpose == "learn" and num_envs != self.num_envs)):
            raise ConfigError(
                f"env: the simulators of {self.spec.name} are given as a VectorEnv, of which there "
                f"is one, of {self.num_envs}, to learn in; to play {num_envs} episodes, expected "
                "the environment's id, or a function that makes one"
            )
        key = self.maker.limit, num_envs, purpose
        if key not in self.pool:
            self.pool[key] = _Simulators(self.maker, self.spec, num_envs)
        return self.pool[key]

    def reset(self, key: jax.Array) -> tuple[PyTree, PyTree]:
        obs, state = _Many(self, "alone").reset(key[None])
        return _first(obs), state

    def step(self, key: jax.Array, state: PyTree, action: jax.Array) -> tuple[PyTree, TimeStep]:
        state, timestep = _Many(self, "alone").step(key[None], state, action[None])
        return state, _first(timestep)

    def identity(self) -> dict[str, object]:
        return {self.maker.library: self.maker.env, **dict(self.maker.kwargs)}


def _first(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda x: x[0], tree)


@dataclasses.dataclass(frozen=True, eq=False)
class _Many(Dynamics):
    """N environments of the host with auto-reset, `[N, ...]`.

    Attributes:
        one: a single one.
        purpose: of the simulators: runs and evaluations have their own.
    """

    one: HostDynamics
    purpose: str

    def reset(self, key: jax.Array) -> tuple[PyTree, AutoResetState]:
        seeds = jax.vmap(lambda k: jax.random.bits(k, (), jnp.uint32))(key) >> 1
        seeds = _unmapped(self.one.spec.name, seeds)
        simulators = self.one.simulators(len(seeds), self.purpose)
        obs = io_callback(simulators.reset, self._obs(len(seeds)), seeds, ordered=True)
        return obs, AutoResetState(jnp.stack([seeds[0], jnp.zeros_like(seeds[0])]), obs)

    def step(
        self, key: jax.Array, state: AutoResetState, action: jax.Array
    ) -> tuple[AutoResetState, TimeStep]:
        num_envs = action.shape[0]
        given = _unmapped(self.one.spec.name, (state.env, action))
        each = {kind: jax.ShapeDtypeStruct((num_envs,), kind) for kind in (np.float32, np.bool_)}
        info = dict.fromkeys(self.one.spec.metrics, each[np.float32])
        obs, ends = self._obs(num_envs), (each[np.bool_], each[np.bool_])
        like = obs, obs, each[np.float32], *ends, {**info, "nonfinite": each[np.bool_]}
        simulators = self.one.simulators(num_envs, self.purpose)
        last, after, *rest = io_callback(simulators.step, like, *given, ordered=True)
        return AutoResetState(given[0].at[1].add(1), after), TimeStep(last, *rest)

    def _obs(self, num_envs: int) -> PyTree:
        return map_spaces(
            lambda space: jax.ShapeDtypeStruct((num_envs, *space.shape), space.dtype),
            self.one.spec.observation_space,
        )


def _unmapped(name: str, tree: PyTree) -> PyTree:
    """The same arrays. Raises ConfigError, while it is traced, under `jax.vmap`."""

    @jax.custom_batching.custom_vmap
    def same(tree: PyTree) -> PyTree:
        return tree

    @same.def_vmap
    def _(axis_size: int, in_batched: list[PyTree], tree: PyTree) -> tuple[PyTree, PyTree]:
        raise ConfigError(
            f"env: {name} is simulated on the host, and can't be mapped by jax.vmap, of "
            f"{axis_size} agents at once (or environments of a wrapper): purerl.sweep trains them "
            "one after the other, and Gymnasium has wrappers"
        )

    out: PyTree = same(tree)
    return out
