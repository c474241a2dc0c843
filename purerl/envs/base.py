"""Environments: records of pure functions, and the wrappers that every suite needs.

An `Env` is the raw dynamics of one environment. `action_repeat`, `time_limit`, `auto_reset` and
`vectorize` each take an `Env` and return one. Its functions are methods of module-level classes, so
that an environment pickles if the functions inside do.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple, Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike

from purerl.envs.spaces import Space, convert_spaces, is_space
from purerl.records.errors import ConfigError, shown
from purerl.records.fields import check_count
from purerl.records.types import PyTree, Structure

E = TypeVar("E")  # an environment, of one or of many


class TimeStep(NamedTuple):
    """The outcome of an action.

    Attributes:
        obs: `[*obs_shape]`, the true successor, before any reset.
        reward: `[]` float32.
        terminated: `[]` bool, the MDP ended here: the bootstrap value is 0.
        truncated: `[]` bool, a time limit cut the episode: the bootstrap value is V(obs). Never
            together with `terminated`.
        info: other values of the environment, by name.
    """

    obs: PyTree
    reward: jax.Array
    terminated: jax.Array
    truncated: jax.Array
    info: dict[str, PyTree]


class EnvSource(NamedTuple):
    """The call of `make` that an environment comes from.

    Attributes:
        name: its first argument.
        params: the keyword arguments that differ from the environment's defaults, as pairs of name
            and value, sorted by name.
    """

    name: str
    params: tuple[tuple[str, object], ...] = ()


class EnvSpec(NamedTuple):
    """Static facts about an environment. Hashable, also with dict observations.

    Attributes:
        name: for messages and plots.
        observation_space: a space, or a pytree of spaces where observations are pytrees.
        action_space: `Discrete`, `MultiDiscrete` or `Box`.
        max_episode_steps: the time limit that the dynamics enforce, or None. Of the successors of
            truncated steps at most about one in `max_episode_steps` is stored: if the dynamics
            truncate for other reasons too, steps beyond that number are left out of learning.
        source: the call of `make` that the environment comes from; None if there is none, and then
            it can't be written to files. Not part of equality.
        metrics: names of scalars in `TimeStep.info`, whose values in the last steps of episodes are
            averaged into `Metrics.info`: successes, achievements.
        legal: the mask of legal discrete actions: a function of one observation that returns
            `[num_outputs]` bool, with an entry for each action (for a `MultiDiscrete` one for each
            choice of each number, concatenated); or the key of the mask in a dict observation. None
            if all actions are legal. Agents never take illegal actions. If a number of an action
            has no legal choice, all of its choices count as legal. Not part of equality.
        resets: the strategy for initial states of new episodes, as in `vector_env`, where a run
            names none. Not part of equality.
        draw: `(state) -> [H, W, 3]` uint8, a picture of a state for `render`, outside of `jit`, or
            None if it can't be drawn; states are those of the environment inside wrappers such as
            `time_limit`. None if there is no such function. Not part of equality.

    Spaces of Gymnasium or gymnax are accepted; they are converted where the environment is used.
    """

    name: str
    observation_space: PyTree
    action_space: Space
    max_episode_steps: int | None = None
    source: EnvSource | None = None
    metrics: tuple[str, ...] = ()
    legal: str | Callable[[PyTree], jax.Array] | None = None
    resets: str = "fresh"
    draw: Callable[[PyTree], np.ndarray | None] | None = None

    def legal_actions(self, obs: PyTree) -> jax.Array | None:
        """`[num_outputs]` bool, the mask of legal actions at one observation; None if all are."""
        if self.legal is None:
            return None
        mask = obs[self.legal] if isinstance(self.legal, str) else self.legal(obs)
        return mask.astype(jnp.bool_)

    def random_action(self, key: jax.Array, obs: PyTree) -> jax.Array:
        """A legal action at one observation, drawn uniformly."""
        return self.action_space.sample(key, self.legal_actions(obs))

    def _facts(self) -> tuple[object, ...]:
        spaces = self.observation_space, self.action_space
        return self.name, spaces, self.max_episode_steps, self.metrics

    def is_same(self, other: "EnvSpec") -> bool:
        """Whether all attributes but the source are equal, those that are no part of equality
        included."""
        mine = self.legal, self.resets, self.draw
        return self == other and mine == (other.legal, other.resets, other.draw)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, EnvSpec) and self._facts() == other._facts()

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        structure: Structure
        spaces, structure = jax.tree.flatten(self.observation_space, is_leaf=is_space)
        rest = self.name, self.action_space, self.max_episode_steps, self.metrics
        return hash((tuple(spaces), structure, rest))


class Reset(Protocol):
    """A function that begins an episode: `(key) -> (obs, env_state)`."""

    def __call__(self, key: jax.Array, /) -> tuple[PyTree, PyTree]: ...


class Step(Protocol):
    """A function that takes a step: `(key, env_state, action) -> (env_state, TimeStep)`."""

    def __call__(
        self, key: jax.Array, env_state: PyTree, action: jax.Array, /
    ) -> tuple[PyTree, TimeStep]: ...


class Env(NamedTuple):
    """An environment.

    Attributes:
        reset: `(key) -> (obs, env_state)`.
        step: `(key, env_state, action) -> (env_state, TimeStep)`.
        spec: the `EnvSpec`.
    """

    reset: Reset
    step: Step
    spec: EnvSpec

    def __repr__(self) -> str:
        source = self.spec.source
        if source is None:
            return f"Env({self.spec.name!r})"
        params = "".join(f", {name}={x!r}" for name, x in source.params)
        return f"make({source.name!r}{params})"


def where(condition: jax.Array, x: PyTree, y: PyTree) -> PyTree:
    """Leafwise `jnp.where` with a scalar condition."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), x, y)


def all_finite(tree: PyTree) -> jax.Array:
    """`[]` bool, whether every float of a pytree is finite."""
    finite: dict[tuple[int, ...], jax.Array] = {}
    for x in jax.tree.leaves(tree):
        if jnp.issubdtype(x.dtype, jnp.floating):
            finite[x.shape] = finite.get(x.shape, True) & jnp.isfinite(x)
    scalar = jnp.asarray(finite.pop((), True))
    if not finite:
        return scalar
    # One reduction instead of one for each leaf, whose overhead exceeds their work; the barrier
    # keeps XLA from splitting it.
    flat = [x.reshape(-1) for x in finite.values()]
    whole = flat[0] if len(flat) == 1 else jax.lax.optimization_barrier(jnp.concatenate(flat))
    return scalar & jnp.all(whole)


class Host(Protocol):
    """An environment that is simulated on the host, outside JAX, where it is wrapped and
    vectorized as well.

    Attributes:
        num_envs: N, if it was chosen with the environment.
    """

    @property
    def num_envs(self) -> int | None: ...
    def limited(self, max_episode_steps: int) -> "Env": ...
    def vectorized(self, num_envs: int | None = None) -> "Env": ...


class Dynamics:
    """Base of records whose methods are the functions of an `Env`."""

    exact: ClassVar[bool] = True  # whether the outputs have the dtypes that `typed` gives

    @property
    def host(self) -> Host | None:
        """The environment of the host that these are the dynamics of; None for one in JAX."""
        return None

    def reset(self, key: jax.Array) -> tuple[PyTree, PyTree]:
        raise NotImplementedError

    def step(self, key: jax.Array, state: PyTree, action: jax.Array) -> tuple[PyTree, TimeStep]:
        raise NotImplementedError

    def at(self, progress: ArrayLike) -> "Dynamics":
        """These dynamics at a point of a run, from 0 to 1, which may be traced; the same object if
        they don't depend on it."""
        del progress
        return self

    def identity(self) -> dict[str, object]:
        """Parameters by name that distinguish it from other environments of its name, for a run's
        identity; no memory addresses."""
        raise NotImplementedError

    def params(self) -> dict[str, object]:
        """Parameters by name, with their values."""
        return {}

    def fixes_spec(self, name: str) -> bool:
        """Whether the spec depends on a parameter, which therefore can't be traced."""
        del name
        return False

    def replace_params(self, values: Mapping[str, object]) -> "Dynamics":
        """A copy with some float parameters replaced; the values may be traced. The spec stays."""
        raise NotImplementedError

    def leak_free(self) -> bool:
        """Whether its functions can be traced under `jax.checking_leaks`, which also reports what
        some libraries keep in caches."""
        return True

    def as_env(self, spec: EnvSpec) -> Env:
        """An `Env` with these methods as its functions."""
        return Env(self.reset, self.step, spec)


def dynamics_of(env: Env) -> Dynamics | None:
    """The `Dynamics` whose methods an environment's functions are; None for other functions."""
    owner, other = (getattr(method, "__self__", None) for method in (env.step, env.reset))
    return owner if isinstance(owner, Dynamics) and owner is other else None


def at_progress(env: Env, progress: ArrayLike) -> Env:
    """The environment at a point of a run, from 0 to 1: see `Dynamics.at`."""
    dynamics = dynamics_of(env)
    there = None if dynamics is None else dynamics.at(progress)
    return env if there is None or there is dynamics else there.as_env(env.spec)


def host_of(env: Env) -> Host | None:
    """The environment of the host that an environment is, unchanged; None for one in JAX."""
    dynamics = dynamics_of(env)
    return None if dynamics is None else dynamics.host


def refuse_host(env: Env, what: str) -> None:
    """Raises ConfigError, with the argument that asked for it, for an environment of the host."""
    if host_of(env) is not None:
        raise ConfigError(
            f"{what}: is for environments in JAX, and {env.spec.name} is simulated on the host: "
            "wrap it in Gymnasium, with a function that returns it for purerl.gymnasium_env"
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Adapter(Dynamics):
    """Base of wrappers, dynamics made from another environment; forwards every call.

    Attributes:
        env: the inner environment.
    """

    env: Env

    def reset(self, key: jax.Array) -> tuple[PyTree, PyTree]:
        return self.env.reset(key)

    def step(self, key: jax.Array, state: PyTree, action: jax.Array) -> tuple[PyTree, TimeStep]:
        return self.env.step(key, state, action)

    def at(self, progress: ArrayLike) -> Dynamics:
        env = at_progress(self.env, progress)
        return self if env is self.env else dataclasses.replace(self, env=env)

    def identity(self) -> dict[str, object]:
        inner = dynamics_of(self.env)
        names = [field.name for field in dataclasses.fields(self)]
        if inner is not None and names == ["env"]:
            return inner.identity()
        return {name: getattr(self, name) for name in names}

    def params(self) -> dict[str, object]:
        inner = dynamics_of(self.env)
        return {} if inner is None else inner.params()

    def fixes_spec(self, name: str) -> bool:
        inner = dynamics_of(self.env)
        return inner is not None and inner.fixes_spec(name)

    def leak_free(self) -> bool:
        inner = dynamics_of(self.env)
        return inner is None or inner.leak_free()

    def replace_params(self, values: Mapping[str, object]) -> Dynamics:
        inner = dynamics_of(self.env)
        assert inner is not None, "who has no parameters is given none"
        return dataclasses.replace(self, env=inner.replace_params(values).as_env(self.env.spec))


class _Typed(Adapter):
    @property
    def host(self) -> Host | None:
        return host_of(self.env)

    def reset(self, key: jax.Array) -> tuple[PyTree, PyTree]:
        obs, state = self.env.reset(key)
        return _typed_obs(obs, self.env.spec, "reset"), state

    def step(self, key: jax.Array, state: PyTree, action: jax.Array) -> tuple[PyTree, TimeStep]:
        state, timestep = self.env.step(key, state, action)
        return state, timestep._replace(
            obs=_typed_obs(timestep.obs, self.env.spec, "step"),
            reward=_as(timestep.reward, jnp.float32),
            terminated=_as(timestep.terminated, jnp.bool_),
            truncated=_as(timestep.truncated, jnp.bool_),
        )


def with_our_spaces(env: Env) -> Env:
    """The environment, with spaces of Gymnasium and gymnax in its spec converted.

    Raises:
        ConfigError: a `Discrete` that doesn't start at 0.
    """
    spec = env.spec
    names = [n for n in ("observation_space", "action_space") if hasattr(spec, n)]
    ours = {name: convert_spaces(getattr(spec, name)) for name in names}
    changed = {name: space for name, space in ours.items() if space is not getattr(spec, name)}
    return env._replace(spec=spec._replace(**changed)) if changed else env


def typed(env: Env) -> Env:
    """The environment with the contract's dtypes: float32 rewards, bool `terminated` and
    `truncated`, observations in the spec's dtype. Free in a compiled program if they are right
    already.

    Raises:
        ConfigError: it is no `Env`; or, when it is traced, the spec's dtype can't hold the
            observations, such as floats in a space of integers.
    """
    if not isinstance(env, Env):
        raise ConfigError(
            f"env: got {shown(env)}, expected a purerl.Env, such as purerl.make(name)"
        )
    env = with_our_spaces(env)
    dynamics = dynamics_of(env)
    return env if dynamics is not None and dynamics.exact else _Typed(env).as_env(env.spec)


def _as(x: ArrayLike, dtype: DTypeLike) -> jax.Array:
    # Drops a weak type (that of Python numbers) too: a scan's carry needs one type.
    return jax.lax.convert_element_type(jnp.asarray(x), np.dtype(dtype))


def _typed_obs(obs: PyTree, spec: EnvSpec, where: str) -> PyTree:
    structure: Structure
    spaces, structure = jax.tree.flatten(spec.observation_space, is_leaf=is_space)
    try:
        parts = structure.flatten_up_to(obs)
    except (ValueError, TypeError):  # another structure, which `check_env` reports
        return obs
    return structure.unflatten(
        [_typed_part(x, space, spec, where) for x, space in zip(parts, spaces, strict=True)]
    )


def _typed_part(x: PyTree, space: object, spec: EnvSpec, where: str) -> PyTree:
    number = isinstance(x, (bool, int, float))
    if not is_space(space) or not (number or hasattr(x, "dtype")):
        return x
    x = jnp.asarray(x)
    if not _holds(space.dtype, x.dtype):
        raise ConfigError(
            f"env: {spec.name}'s {where} gives observations of {x.dtype}, expected {space.dtype} "
            f"as its spec has them, {space}, which can't hold the others: change one of the two"
        )
    return _as(x, space.dtype)


def _holds(dtype: np.dtype, other: np.dtype) -> bool:
    """Whether a dtype can hold another's values (a float dtype all numbers, rounded)."""
    if dtype == other:
        return True
    if jnp.issubdtype(other, jnp.bool_):
        return jnp.issubdtype(dtype, jnp.number)
    if jnp.issubdtype(other, jnp.integer):
        return jnp.issubdtype(dtype, jnp.floating) or np.can_cast(other, dtype, "safe")
    return jnp.issubdtype(other, jnp.floating) and jnp.issubdtype(dtype, jnp.floating)


class _Vectorized(Adapter):
    def reset(self, key: jax.Array) -> tuple[PyTree, PyTree]:
        return jax.vmap(self.env.reset)(key)

    def step(self, key: jax.Array, state: PyTree, action: jax.Array) -> tuple[PyTree, TimeStep]:
        return jax.vmap(self.env.step)(key, state, action)


def vectorize(env: Env) -> Env:
    """N independent copies: keys, states, actions and time steps get a leading axis `[N]`.

    N is the number of keys, so that the keys of many steps can be split at once. Of an environment
    of the host they are separate simulators, to play in, with auto-reset.
    """
    env = typed(env)
    host = host_of(env)
    if host is not None:
        return host.vectorized()._replace(spec=env.spec)
    return _Vectorized(env).as_env(env.spec)


@dataclasses.dataclass(frozen=True, eq=False)
class _MapActions(Adapter):
    fn: Callable[[jax.Array], jax.Array]

    def step(self, key: jax.Array, state: PyTree, action: jax.Array) -> tuple[PyTree, TimeStep]:
        return self.env.step(key, state, self.fn(action))


def map_actions(env: E, fn: Callable[[jax.Array], jax.Array]) -> E:
    """The environment with actions mapped by `fn`, such as from an agent's to its action space.

    For a vectorized environment `fn` gets all N actions at once, `[N, *action_shape]`.
    """
    made: Any = env
    mapped = _MapActions(made, fn)
    replaced: E = made._replace(reset=mapped.reset, step=mapped.step)
    return replaced


class AutoResetState(NamedTuple):
    """State of an `auto_reset` environment.

    Attributes:
        env: the inner state; of a new episode if one has just ended.
        obs: `[*obs_shape]`, the observation of that state, to act on next.
    """

    env: PyTree
    obs: PyTree


class _AutoReset(Adapter):
    def reset(self, key: jax.Array) -> tuple[PyTree, AutoResetState]:
        obs, state = self.env.reset(key)
        return obs, AutoResetState(state, obs)

    def step(
        self, key: jax.Array, state: AutoResetState, action: jax.Array
    ) -> tuple[AutoResetState, TimeStep]:
        step_key, reset_key = jax.random.split(key)
        inner, timestep = self.env.step(step_key, state.env, action)
        first_obs, first = self.env.reset(reset_key)
        broken = ~all_finite((timestep.obs, timestep.reward))
        timestep = timestep._replace(
            truncated=timestep.truncated | (broken & ~timestep.terminated),
            info={**timestep.info, "nonfinite": broken},
        )
        done = timestep.terminated | timestep.truncated
        obs = where(done, first_obs, timestep.obs)
        return AutoResetState(where(done, first, inner), obs), timestep


def auto_reset(env: Env) -> Env:
    """Starts a new episode in the same step that ends one.

    The time step keeps the true successor (`TimeStep.obs`); the new episode's first observation is
    in the state (`AutoResetState.obs`). Every episode draws a fresh initial state from a separate
    key, and no initial state of an episode is skipped.

    A non-finite observation or reward cuts the episode too (`truncated`), so that a broken
    simulation doesn't continue; `info["nonfinite"]` is True there.

    Raises:
        ConfigError: an environment of the host, which `vector_env` resets.
    """
    env = typed(env)
    refuse_host(env, "auto_reset")
    return _AutoReset(env).as_env(env.spec)


class TimeLimitState(NamedTuple):
    """State of a `time_limit` environment: the inner state, and the number of steps so far."""

    env: PyTree
    time: jax.Array


@dataclasses.dataclass(frozen=True, eq=False)
class _TimeLimit(Adapter):
    max_episode_steps: int

    def reset(self, key: jax.Array) -> tuple[PyTree, TimeLimitState]:
        obs, state = self.env.reset(key)
        return obs, TimeLimitState(state, jnp.int32(0))

    def step(
        self, key: jax.Array, state: TimeLimitState, action: jax.Array
    ) -> tuple[TimeLimitState, TimeStep]:
        inner, timestep = self.env.step(key, state.env, action)
        time = state.time + 1
        late = (time >= self.max_episode_steps) & ~timestep.terminated
        timestep = timestep._replace(truncated=timestep.truncated | late)
        return TimeLimitState(inner, time), timestep


def time_limit(env: Env, max_episode_steps: int) -> Env:
    """Truncates episodes after `max_episode_steps`; never sets `terminated`.

    Raises:
        ConfigError: `max_episode_steps` is no integer >= 1; or simulators of the host that were
            given as a `VectorEnv`.
    """
    max_episode_steps = check_count("max_episode_steps", max_episode_steps)
    env = typed(env)
    host = host_of(env)
    if host is not None:
        limit = (made := host.limited(max_episode_steps)).spec.max_episode_steps
        return made._replace(spec=env.spec._replace(max_episode_steps=limit, source=None))
    limited = _TimeLimit(env, max_episode_steps)
    limit = env.spec.max_episode_steps
    limit = max_episode_steps if limit is None else min(limit, max_episode_steps)
    return limited.as_env(env.spec._replace(max_episode_steps=limit, source=None))


@dataclasses.dataclass(frozen=True, eq=False)
class _ActionRepeat(Adapter):
    num_repeats: int

    def step(self, key: jax.Array, state: PyTree, action: jax.Array) -> tuple[PyTree, TimeStep]:
        keys = jax.random.split(key, self.num_repeats)
        carry = self.env.step(keys[0], state, action)

        def repeat(carry: tuple[PyTree, TimeStep], key: jax.Array) -> tuple[PyTree, None]:
            state, last = carry
            done = last.terminated | last.truncated
            next_state, timestep = self.env.step(key, state, action)
            timestep = timestep._replace(reward=last.reward + timestep.reward)
            return where(done, carry, (next_state, timestep)), None

        return jax.lax.scan(repeat, carry, keys[1:])[0]


def action_repeat(env: Env, num_repeats: int) -> Env:
    """Repeats each action; rewards are summed, and repeats stop at an episode's end.

    `max_episode_steps` counts decisions, not frames: it is divided by `num_repeats`, rounded up.

    Raises:
        ConfigError: `num_repeats` is no integer >= 1; or an environment of the host.
    """
    num_repeats = check_count("num_repeats", num_repeats)
    env = typed(env)
    refuse_host(env, "skip_frames")
    repeated = _ActionRepeat(env, num_repeats)
    limit = env.spec.max_episode_steps
    limit = None if limit is None else -(-limit // num_repeats)
    return repeated.as_env(env.spec._replace(max_episode_steps=limit, source=None))
