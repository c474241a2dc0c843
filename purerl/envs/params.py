"""Parameters of an environment: checks, replacement, and randomisation for every episode."""

import dataclasses
import inspect
import math
import weakref
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike

from purerl.envs.base import (
    Adapter,
    Dynamics,
    Env,
    EnvSource,
    Host,
    TimeStep,
    dynamics_of,
    host_of,
    typed,
)
from purerl.records.draws import Choice, Uniform, distribution
from purerl.records.errors import ConfigError, raised, sentence, shown, suggest
from purerl.records.types import PyTree

Values: TypeAlias = dict[str, object]
FIXED = "it fixes the program: make an environment for each of its values"
PREFIX = "env."  # before a parameter's name among hyperparameters, and on the command line


def env_params(env: Env) -> Values:
    """An environment's parameters by name, with their values, or distributions for those of
    `randomize`; `{}` if it has none, such as an `Env` of a user's functions."""
    dynamics = dynamics_of(env)
    return {} if dynamics is None else dynamics.params()


def check_params(name: str, known: Mapping[str, object], values: Mapping[str, object]) -> Values:
    """Values for some parameters, converted to the types of the present values.

    Args:
        name: the environment's.
        known: its parameters; a value of None allows any type.
        values: the new values. A float parameter takes a float, which may be traced, or a
            distribution, also as text: `"uniform(4.9, 9.8)"`.

    Raises:
        ConfigError: an unknown name, or a value of another type.
    """
    for word in values:
        if word not in known:
            hint = suggest(word, known) if known else "it has none (purerl.register gives some)"
            raise ConfigError(f"env: {name} has no parameter {shown(word)}; {hint}")
    return {word: _checked(f"{PREFIX}{word}", x, known[word]) for word, x in values.items()}


def _checked(where: str, value: object, like: object) -> object:
    """A value converted to the type of another one."""
    if is_float(like) or is_drawn(like):
        return _checked_float(where, value)
    kinds: tuple[tuple[type | tuple[type, ...], Callable[[Any], object], str], ...] = (
        ((bool, np.bool_), bool, "True or False"),
        ((int, np.integer), int, "an integer"),
        (str, str, "text"),
    )
    for kind, make, noun in kinds:
        if isinstance(like, kind):
            if noun == "an integer" and isinstance(value, float) and value.is_integer():
                value = int(value)
            if not isinstance(value, kind) or (make is int and isinstance(value, bool)):
                raise ConfigError(f"{where}: got {shown(value)}, expected {noun}")
            return make(value)
    if isinstance(like, (np.ndarray, jax.Array)) and _is_real(like.dtype):
        return _checked_array(where, value, like)
    return tuple(value) if isinstance(like, tuple) and isinstance(value, list) else value


def _checked_float(where: str, value: object) -> object:
    if isinstance(value, str) and "(" in value:
        try:
            value = distribution(value)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from None
    if isinstance(value, Choice) and not any(isinstance(x, str) for x in value.options):
        return Choice([_checked_float(where, x) for x in value.options])
    if isinstance(value, Uniform):
        return value
    if isinstance(value, (jax.Array, np.ndarray, np.generic)):
        if value.shape:
            raise ConfigError(
                f"{where}: got an array of shape {value.shape}, expected a float; to sweep it, "
                "give train its hyperparameters under jax.vmap"
            )
        if isinstance(value, jax.core.Tracer) and _is_real(value.dtype):
            return value
        value = value.item() if _is_real(value.dtype) else value
    if isinstance(value, bool) or not isinstance(value, (int, float)) or math.isnan(value):
        raise ConfigError(
            f"{where}: got {shown(value)}, expected a float, or what it is drawn from for each "
            "episode, such as uniform(0, 1)"
        )
    return float(value)


def _checked_array(where: str, value: object, like: np.ndarray | jax.Array) -> jax.Array:
    with sentence(f"{where}: got {shown(value)}, expected numbers of shape {like.shape}"):
        array = jnp.asarray(value, like.dtype)
    if array.shape != like.shape:
        raise ConfigError(f"{where}: got shape {array.shape}, expected {like.shape}")
    return array


def _is_real(dtype: DTypeLike) -> bool:
    return any(jnp.issubdtype(dtype, kind) for kind in (np.integer, np.floating))


def is_float(value: object) -> bool:
    """Whether a parameter with this value is a float, which may be a hyperparameter."""
    if isinstance(value, (np.ndarray, np.generic, jax.Array)):
        return value.shape == () and jnp.issubdtype(value.dtype, np.floating)
    return isinstance(value, float)


def is_drawn(value: object) -> TypeGuard[Uniform | Choice]:
    """Whether a parameter with this value is drawn for every episode."""
    return isinstance(value, (Uniform, Choice))


def is_same(one: object, other: object) -> bool:
    """Whether two values are equal, arrays in every element."""
    arrays = (np.ndarray, np.generic, jax.Array)
    if isinstance(one, jax.core.Tracer) or isinstance(other, jax.core.Tracer):
        return one is other
    if not (isinstance(one, arrays) or isinstance(other, arrays)):
        return type(one) is type(other) and bool(one == other)
    dtypes = [getattr(x, "dtype", np.dtype(float)) for x in (one, other)]
    if any(jnp.issubdtype(dtype, jax.dtypes.prng_key) for dtype in dtypes):
        return one is other
    return bool(np.array_equal(np.asarray(one), np.asarray(other)))


def differing(
    values: Mapping[str, object], defaults: Mapping[str, object]
) -> tuple[tuple[str, object], ...]:
    """The values that differ from the defaults, in the form of `EnvSource.params`."""
    changed = {n: x for n, x in values.items() if n not in defaults or not is_same(x, defaults[n])}
    return tuple(sorted((name, frozen(x)) for name, x in changed.items()))


def frozen(value: object) -> object:
    """A value in hashable form, with tuples for lists and arrays; unchanged if it has none."""
    if isinstance(value, (np.ndarray, jax.Array)) and not isinstance(value, jax.core.Tracer):
        value = np.asarray(value).tolist() if _is_real(value.dtype) else value
    return tuple(map(frozen, value)) if isinstance(value, (list, tuple)) else value


def replace_params(env: Env, values: Mapping[str, object]) -> Env:
    """The environment with some float parameters replaced; its spec is kept.

    Args:
        env: the environment.
        values: by name, scalars that may be traced.

    Raises:
        ConfigError: as from `check_traceable`.
    """
    if not values:
        return env
    for name, x in values.items():
        check_traceable(env, name, x)
    dynamics = dynamics_of(env)
    assert dynamics is not None
    values = {name: jnp.asarray(x, jnp.float32) for name, x in values.items()}
    return dynamics.replace_params(values).as_env(env.spec)


def check_traceable(env: Env, name: str, value: object = 0.0) -> None:
    """Raises ConfigError unless a parameter is a traceable float, and `value` a scalar."""
    known = env_params(env)
    value = check_params(env.spec.name, known, {name: value})[name]
    given, full = known[name], PREFIX + name
    if is_drawn(given):
        raise ConfigError(f"{full}: is drawn for every episode, from {given}")
    if is_drawn(value):
        raise ConfigError(f"{full}: got {value}, expected a float (purerl.randomize draws)")
    if not is_float(given):
        raise ConfigError(f"{full}: {shown(given)} is no float, so that {FIXED}")
    why = _why_fixed(env, name)
    if why:
        raise ConfigError(f"{full}: {why}, so that {FIXED}")


def is_traceable(env: Env, name: str) -> bool:
    """Whether a parameter is a hyperparameter, a float that can be traced."""
    return is_float(env_params(env).get(name)) and not _why_fixed(env, name)


_found: weakref.WeakKeyDictionary[Dynamics, dict[str, str]] = weakref.WeakKeyDictionary()


def _why_fixed(env: Env, name: str) -> str:
    """The reason why a float parameter can't be traced, or ""; cached for each environment."""
    dynamics = dynamics_of(env)
    assert dynamics is not None, "who has no parameters is asked for none"
    found = _found.setdefault(dynamics, {})
    if name not in found:
        found[name] = _probe(dynamics, env, name)
    return found[name]


def _probe(dynamics: Dynamics, env: Env, name: str) -> str:
    if dynamics.fixes_spec(name):
        return f"the spec of {env.spec.name} follows from it"

    def play(value: jax.Array, key: jax.Array) -> None:
        made = dynamics.replace_params({name: value})
        made.step(key, made.reset(key)[1], env.spec.action_space.sample(key))

    key = jax.eval_shape(lambda: jax.random.key(0))
    try:
        jax.eval_shape(play, jax.ShapeDtypeStruct((), jnp.float32), key)
    except Exception as error:  # any kind, from a user's code
        return f"{env.spec.name} can't be traced with it ({raised(error)})"
    return ""


@dataclasses.dataclass(frozen=True, eq=False)
class Made(Adapter):
    """An environment of `make`.

    Attributes:
        env: the environment; its spec has the source.
        arguments: the factory's parameters, with their values; other parameters are those of `env`.
        again: `(values) -> Env`, which calls the factory with some arguments replaced.
    """

    exact = False  # so that `check_env` sees its real dtypes
    arguments: Mapping[str, object] = dataclasses.field(default_factory=dict)
    again: Callable[[Mapping[str, object]], Env] | None = None

    @property
    def host(self) -> Host | None:
        return host_of(self.env)

    def identity(self) -> Values:
        inner = dynamics_of(self.env)
        found: Values = {"env": self.env} if inner is None else inner.identity()
        if not self.arguments or "gymnax" in found:  # whose identity has the arguments already
            return found
        return found | {"make": dict(self.arguments)}

    def params(self) -> Values:
        return {**super().params(), **self.arguments}

    def fixes_spec(self, name: str) -> bool:
        return name not in self.arguments and super().fixes_spec(name)

    def replace_params(self, values: Mapping[str, object]) -> Dynamics:
        if not set(values) & set(self.arguments):
            return super().replace_params(values)
        assert self.again is not None
        env = self.again(values)
        if env.spec != self.env.spec:
            raise ConfigError("its spec follows from it")
        # With the old source: traced values have none.
        return dataclasses.replace(self, env=env._replace(spec=self.env.spec))


class RandomizedState(NamedTuple):
    """State of an environment of `randomize`.

    Attributes:
        env: the inner state.
        params: this episode's parameters by name, `[]` float32 each.
    """

    env: PyTree
    params: dict[str, jax.Array]


# `(key) -> values by name` or `(key, progress) -> values by name`, or a distribution for each name.
Sample: TypeAlias = Callable[..., Mapping[str, ArrayLike]] | Mapping[str, Uniform | Choice]


@dataclasses.dataclass(frozen=True, eq=False)
class Randomized(Adapter):
    """An environment that draws parameters at each reset.

    Attributes:
        env: the environment.
        sample: `(key) -> values by name`, or `(key, progress)`, or a distribution for each name.
        progress: `[]`, that of the run, from 0 to 1.
    """

    sample: Sample
    progress: ArrayLike = 1.0

    def at(self, progress: ArrayLike) -> Dynamics:
        inner = super().at(progress)
        assert isinstance(inner, Randomized)
        staged = callable(self.sample) and _takes_progress(self.sample)
        return dataclasses.replace(inner, progress=progress) if staged else inner

    def identity(self) -> Values:
        return {"env": self.env, "sample": self.sample}

    def reset(self, key: jax.Array) -> tuple[PyTree, RandomizedState]:
        sample_key, reset_key = jax.random.split(key)
        drawn = {n: jnp.asarray(x, jnp.float32) for n, x in self.draw(sample_key).items()}
        obs, state = self._with(drawn).reset(reset_key)
        return obs, RandomizedState(state, drawn)

    def step(
        self, key: jax.Array, state: RandomizedState, action: jax.Array
    ) -> tuple[RandomizedState, TimeStep]:
        inner, timestep = self._with(state.params).step(key, state.env, action)
        return RandomizedState(inner, state.params), timestep

    def draw(self, key: jax.Array) -> Mapping[str, ArrayLike]:
        """An episode's parameters by name, `[]` each."""
        if callable(self.sample) and _takes_progress(self.sample):
            return self.sample(key, jnp.asarray(self.progress, jnp.float32))
        if callable(self.sample):
            return self.sample(key)
        keys = jax.random.split(key, len(self.sample))
        pairs = zip(keys, self.sample.items(), strict=True)
        return {name: x.sample(key) for key, (name, x) in pairs}

    def _with(self, values: Mapping[str, object]) -> Dynamics:
        inner = dynamics_of(self.env)
        assert inner is not None, "checked by `randomize`"
        return inner.replace_params(values)

    def params(self) -> Values:
        ranges = {} if callable(self.sample) else self.sample
        return {**super().params(), **ranges}


def _takes_progress(sample: Callable[..., object]) -> bool:
    """Whether a function has a second argument, without a default or named `progress`."""
    try:
        parameters = list(inspect.signature(sample).parameters.values())
    except (TypeError, ValueError):  # a function without a signature
        return False
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    given = [x for x in parameters if x.kind in positional]
    return len(given) > 1 and (given[1].default is given[1].empty or given[1].name == "progress")


def randomized(env: Env, sample: Sample) -> Env:
    """`randomize` with one argument: a function of a key, or distributions by name.

    Raises:
        ConfigError: see `randomize`.
    """
    adapter = Randomized(typed(env), sample)
    key = jax.eval_shape(lambda: jax.random.key(0))
    with sentence("randomize: sample(key) can't be traced"):
        drawn = jax.eval_shape(adapter.draw, key)
    if not isinstance(drawn, Mapping) or not drawn:
        raise ConfigError(
            f"randomize: sample(key) gives {shown(drawn)}, expected values by name, such as "
            '{"gravity": jax.random.uniform(key)}'
        )
    for name, x in drawn.items():
        if x.shape != () or not _is_real(x.dtype):
            raise ConfigError(
                f"randomize: {name} is {x.dtype} of shape {x.shape}, expected one number"
            )
    for name in drawn:
        check_traceable(env, name)
    return adapter.as_env(env.spec._replace(source=None))


def source_with(source: EnvSource | None, values: Mapping[str, ArrayLike]) -> EnvSource | None:
    """The call of `make` with the float parameters of a run; None if they are traced, or have an
    axis of several runs."""
    known = not any(isinstance(x, jax.core.Tracer) or np.shape(x) for x in values.values())
    if source is None or not known:
        return None
    # The shortest text of a float32: the one nearest to 1.6 is 1.60000002.
    floats = {name: float(str(np.asarray(x, np.float32))) for name, x in values.items()}
    return EnvSource(source.name, tuple(sorted({**dict(source.params), **floats}.items())))
