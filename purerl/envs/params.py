"""Parameters of an environment: checks, replacement, and randomisation for every episode."""

import dataclasses
import inspect
import math
import operator
import weakref
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np
from jax.interpreters import partial_eval
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
    """Raises ConfigError unless a parameter is a traceable float on which something depends, and
    `value` a scalar."""
    known = env_params(env)
    value = check_params(env.spec.name, known, {name: value})[name]
    given, full = known[name], PREFIX + name
    if is_drawn(given):
        raise ConfigError(f"{full}: is drawn for every episode, from {given}")
    if is_drawn(value):
        raise ConfigError(f"{full}: got {value}, expected a float (purerl.randomize draws)")
    if not is_float(given):
        raise ConfigError(f"{full}: {shown(given)} is no float, so that {FIXED}")
    found = _probed(env, name)
    if found.fixed:
        raise ConfigError(f"{full}: {found.fixed}, so that {FIXED}")
    if found.idle:
        raise ConfigError(f"{full}: {_idle(env)}")


def check_acting(env: Env, name: str, value: object) -> None:
    """Raises ConfigError for the value of a float parameter on which nothing depends."""
    if is_float(env_params(env).get(name)) and _probed(env, name).idle:
        raise ConfigError(f"{PREFIX}{name}: got {shown(value)}, but {_idle(env)}")


def _idle(env: Env) -> str:
    return f"nothing in {env.spec.name} depends on it; expected another parameter"


def is_traceable(env: Env, name: str) -> bool:
    """Whether a parameter is a float that can be traced."""
    return is_float(env_params(env).get(name)) and not _probed(env, name).fixed


def is_idle(env: Env, name: str) -> bool:
    """Whether a parameter is a float on which nothing depends."""
    return is_float(env_params(env).get(name)) and _probed(env, name).idle


class _Probed(NamedTuple):
    """What a trace of a reset and a step shows about a float parameter.

    Attributes:
        fixed: the reason why it can't be traced, or "".
        idle: whether no time step of an episode depends on it, and no picture.
    """

    fixed: str = ""
    idle: bool = False


_found: weakref.WeakKeyDictionary[Dynamics, dict[str, _Probed]] = weakref.WeakKeyDictionary()


def _probed(env: Env, name: str) -> _Probed:
    """The probe of a float parameter, cached for each environment."""
    dynamics = dynamics_of(env)
    assert dynamics is not None, "who has no parameters is asked for none"
    found = _found.setdefault(dynamics, {})
    if name not in found:
        found[name] = _probe(dynamics, env, name)
    return found[name]


def _probe(dynamics: Dynamics, env: Env, name: str) -> _Probed:
    if dynamics.fixes_spec(name):
        return _Probed(f"the spec of {env.spec.name} follows from it")

    def play(value: jax.Array, state: PyTree, key: jax.Array) -> tuple[PyTree, ...]:
        made = dynamics.replace_params({name: value})
        obs, first = made.reset(key)
        after, timestep = made.step(key, state, env.spec.action_space.sample(key))
        return first, after, obs, timestep

    key, value = jax.eval_shape(lambda: jax.random.key(0)), jax.ShapeDtypeStruct((), jnp.float32)
    try:
        state = jax.eval_shape(dynamics.reset, key)[1]
        jaxpr = jax.make_jaxpr(play)(value, state, key).jaxpr
    except Exception as error:  # any kind, from a user's code
        return _Probed(f"{env.spec.name} can't be traced with it ({raised(error)})")
    size = len(jax.tree.leaves(state))
    # Leaves of the state on which a time step depends, sooner or later, or the picture.
    needed, before = [callable(env.spec.draw)] * size, None
    while needed != before:
        outputs = [*needed, *needed, *[True] * (len(jaxpr.outvars) - 2 * size)]
        value_used, *used = partial_eval.dce_jaxpr(jaxpr, outputs)[1]
        before, needed = needed, [x or y for x, y in zip(needed, used, strict=False)]
    return _Probed(idle=not value_used)


class Rule(NamedTuple):
    """A parameter that follows from two others, which suites keep as a constant beside them.

    Attributes:
        name: the parameter's.
        of: names of the others.
        combine: its value from theirs.
    """

    name: str
    of: tuple[str, str]
    combine: Callable[[Any, Any], object]

    def holds(self, values: Mapping[str, object]) -> bool:
        """Whether these values are so; False where one of them is traced."""
        three = [values.get(name) for name in (self.name, *self.of)]
        known = not any(x is None for x in three)
        return known and is_same(three[0], self.combine(*three[1:]))


# Of both CartPoles: without them a mass or a length would act in part, or not at all. The last is
# Gymnasium's functional one, whose default is a sum; those apply that hold for the defaults.
RULES = (
    Rule("total_mass", ("masscart", "masspole"), operator.add),
    Rule("polemass_length", ("masspole", "length"), operator.mul),
    Rule("polemass_length", ("masspole", "length"), operator.add),
)


def rules_of(*values: Mapping[str, object]) -> tuple[Rule, ...]:
    """The rules that hold for an environment's defaults, and for all other values of its parameters
    that are given."""
    return tuple(rule for rule in RULES if all(map(rule.holds, values)))


def followed(
    values: Mapping[str, object], changes: Mapping[str, object], rules: tuple[Rule, ...]
) -> tuple[Values, tuple[Rule, ...]]:
    """Changes of parameters together with what follows from them; and the rules for later changes:
    a parameter that is given itself, another value, follows no more."""
    now, more = {**values, **changes}, dict(changes)
    for rule in rules:
        if rule.name not in changes and not changes.keys().isdisjoint(rule.of):
            more[rule.name] = rule.combine(*(now[name] for name in rule.of))
    return more, tuple(x for x in rules if x.name not in changes or x.holds(now))


def given_among(
    values: Mapping[str, object], usual: Mapping[str, object]
) -> tuple[tuple[str, object], ...]:
    """The values that neither are the usual ones nor follow from the others: see `differing`."""
    rules = rules_of(usual)
    names = {rule.name for rule in rules}
    others = {n: x for n, x in values.items() if n not in names and not is_drawn(x)}
    more, _ = followed(usual, others, rules)
    following = {n: x for n, x in more.items() if n in names}
    return differing(values, {**usual, **following})


@dataclasses.dataclass(frozen=True, eq=False)
class Made(Adapter):
    """An environment of `make`.

    Attributes:
        env: the environment; its spec has the source.
        arguments: the factory's parameters, with their values; other parameters are those of `env`.
        again: `(values) -> Env`, which calls the factory with some arguments replaced.
        replaced: values of `replace_params`, which may be traced and aren't in the source.
    """

    exact = False  # so that `check_env` sees its real dtypes
    arguments: Mapping[str, object] = dataclasses.field(default_factory=dict)
    again: Callable[[Mapping[str, object]], Env] | None = None
    replaced: Mapping[str, object] = dataclasses.field(default_factory=dict)

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
        # The factory is called with what was replaced before, too.
        replaced = {**self.replaced, **values}
        if replaced.keys().isdisjoint(self.arguments):
            inner = dynamics_of(self.env)
            assert inner is not None, "who has no parameters is given none"
            env = inner.replace_params(values).as_env(self.env.spec)
            return dataclasses.replace(self, env=env, replaced=replaced)
        assert self.again is not None
        env = self.again(replaced)
        if env.spec != self.env.spec:
            raise ConfigError("its spec follows from it")
        arguments = {n: replaced.get(n, x) for n, x in self.arguments.items()}
        # With the old source: traced values have none.
        env = env._replace(spec=self.env.spec)
        return dataclasses.replace(self, env=env, arguments=arguments, replaced=replaced)


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
