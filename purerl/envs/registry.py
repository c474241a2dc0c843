"""The registry: `make("CartPole-v1", gravity=1.6)`, `register("my-env", factory)`."""

import contextlib
import dataclasses
import functools
import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeGuard

import jax
from jax.typing import ArrayLike

from purerl.envs import envpool, gymnax, host, suites
from purerl.envs.base import Env, EnvSource, dynamics_of, with_our_spaces
from purerl.envs.gymnax_wrappers import GymnaxEnv
from purerl.envs.params import (
    Made,
    Values,
    check_acting,
    check_params,
    differing,
    env_params,
    followed,
    given_among,
    is_drawn,
    randomized,
    replace_params,
    rules_of,
)
from purerl.records.draws import Choice, Uniform, distribution
from purerl.records.errors import ConfigError, sentence, shown, suggest
from purerl.records.types import Plain

_factories: dict[str, Callable[..., Env]] = {}


def register(name: str, factory: Callable[..., Env]) -> None:
    """Registers an environment under a name for `make`, `TrainConfig` and the command line.

    Args:
        name: a name that isn't taken, by gymnax's environments either.
        factory: a function that returns an `Env` or a gymnax `Environment`. Its keyword arguments
            are the environment's parameters. Those with a float as default are hyperparameters,
            which may be traced, unless the spec depends on them.

    Raises:
        ConfigError: the name is taken or invalid; `factory` is no function.
    """
    if not isinstance(name, str) or not name or ":" in name:
        raise ConfigError(f"register: got {shown(name)}, expected a name, without a colon")
    if not callable(factory) or isinstance(factory, Env):
        raise ConfigError(
            f"register: got {shown(factory)} for {name!r}, expected a function that returns an "
            "environment"
        )
    if name in env_names() or name in suites.names():
        raise ConfigError(f"register: the environment {name!r} exists already")
    _factories[name] = factory


def env_names(suite: str | None = None) -> list[str]:
    """Names of environments; nothing is imported for it.

    Args:
        suite: one of `purerl.env_suites()`, for its names, `"suite/Env"`; None for the registered
            ones, gymnax's, and those that other packages bring by entry points of the group
            `purerl.environments`.

    Raises:
        ConfigError: an unknown suite.
    """
    if suite is None:
        return list(dict.fromkeys([*_factories, *gymnax.names(), *suites.plugged()]))
    if suite not in suites.SUITES:
        raise ConfigError(f"env_names: no suite {shown(suite)}; {suggest(suite, suites.SUITES)}")
    return suites.names(suite)


def env_suites() -> list[str]:
    """Names of the suites whose environments `make` knows, installed or not."""
    return list(suites.SUITES)


def is_builtin(name: str) -> bool:
    """Whether a name is of gymnax, and of no environment that was registered since."""
    return name not in _factories and name in gymnax.names()


def make(name: str, /, **params: object) -> Env:
    """An environment by its name.

        purerl.make("CartPole-v1", gravity=1.6)
        purerl.make("CartPole-v1", gravity=purerl.Uniform(4.9, 9.8))  # drawn for every episode

    Args:
        name: one of `env_names()`; or `"suite/Env"`, such as `"brax/ant"`, of
            `env_names("brax")`; or `"gymnasium/ID"` for one of Gymnasium's, simulated on the host
            (see `purerl.gymnasium_env`), and `"envpool/ID"` for EnvPool's; or `"module:name"` for
            an object of a user's importable module: an `Env`, an environment of gymnax or of a
            suite, or a function that returns one.
        **params: parameters to replace the environment's defaults: keyword arguments of its
            factory, and fields of a gymnax environment's `EnvParams`. A distribution, such as
            `purerl.Uniform(4.9, 9.8)`, is drawn from for every episode. In both CartPoles
            `total_mass` and `polemass_length` follow from the masses and the length, unless they
            are given themselves.

    Raises:
        ConfigError: an unknown environment or parameter (the message has the nearest names); a
            value of another type than the default's; another value than the default of a float on
            which nothing depends; an environment that can't be made on this machine.
    """
    if not isinstance(name, str):
        raise ConfigError(f"env: got {shown(name)}, expected a name: see purerl.env_names()")
    if any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(params)):
        return _make(name, params)
    # Arrays of a constructor are constants, even if the caller is being transformed.
    with jax.ensure_compile_time_eval():
        return _make(name, params)


class _Maker(NamedTuple):
    """A factory with its parameters.

    Attributes:
        call: `(**kwargs) -> Env`, or a gymnax `Environment`.
        defaults: its keyword arguments by name, with their defaults.
        takes_all: whether it takes other keyword arguments as well.
        known: whether it makes a registered gymnax environment.
    """

    call: Callable[..., object]
    defaults: Values
    takes_all: bool = False
    known: bool = False


def _make(name: str, params: Mapping[str, object]) -> Env:
    maker = _find(name)
    known = {n: x for n, x in params.items() if n in maker.defaults}
    rest = {n: x for n, x in params.items() if n not in maker.defaults}
    arguments = check_params(name, maker.defaults, known)
    if maker.takes_all:
        arguments, rest = {**arguments, **{n: _parsed(x) for n, x in rest.items()}}, {}
    env = _build(name, maker, arguments, rest)
    traced = {n: x for n, x in params.items() if isinstance(x, jax.core.Tracer)}
    source = env.spec.source
    # A mask or a picture may follow from an argument, too.
    unseen = arguments if callable(env.spec.legal) or callable(env.spec.draw) else {}
    for word, x in traced.items() if source is None else source.params:
        if word not in unseen and not is_drawn(x):
            check_acting(env, word, x)
    return env


def _build(
    name: str, maker: _Maker, arguments: Mapping[str, object], rest: Mapping[str, object]
) -> Env:
    """An environment from its factory.

    Args:
        name: the environment's.
        maker: its factory.
        arguments: for the factory.
        rest: parameters of the environment that the factory returns.
    """
    drawn = {n: x for n, x in arguments.items() if is_drawn(x)}
    # In place of a distribution the default, or where a factory takes all names, one of its values.
    left_out = drawn.keys() & maker.defaults.keys()
    values = {n: _one_of(x) for n, x in arguments.items() if n not in left_out}
    given = f" with {shown(dict(arguments))}" if arguments else ""
    with sentence(f"env: {name!r} can't be made{given}"):
        built = maker.call(**values)
    made = built if isinstance(built, Env) or _is_gymnax(built) else as_env(built)
    usual = env_params(made) if isinstance(made, Env) else _usual(made)
    names = {**usual, **maker.defaults}
    rest = check_params(name, names, rest)
    drawn |= {n: x for n, x in rest.items() if is_drawn(x)}
    fixed = {n: x for n, x in rest.items() if n not in drawn}
    changed = *differing(arguments, maker.defaults), *given_among(rest, usual)
    env = _with(made, {n: x for n, x in fixed.items() if n in dict(changed)}, name, maker.known)
    values = {**maker.defaults, **values}
    again = _Again(name, maker, arguments, fixed)
    traced = any(isinstance(x, jax.core.Tracer) for _, x in changed)
    source = None if traced else EnvSource(name, tuple(sorted(changed)))
    env = with_our_spaces(env)
    if ":" in name:
        env = env._replace(spec=env.spec._replace(name=name))
    if drawn:
        env = randomized(Made(env, values, again).as_env(env.spec), drawn)
        values = {}
    env = env._replace(spec=env.spec._replace(source=source))
    return Made(env, values, again).as_env(env.spec)


@dataclasses.dataclass(frozen=True)
class _Again:
    """The function that makes an environment with some of its parameters replaced."""

    name: str
    maker: _Maker
    arguments: Mapping[str, object]
    rest: Mapping[str, object]

    def __call__(self, values: Mapping[str, object]) -> Env:
        ours = {n: x for n, x in self.arguments.items() if not is_drawn(x)}
        known = {*self.maker.defaults, *self.arguments}  # the latter by `takes_all` too
        arguments = {**ours, **{n: x for n, x in values.items() if n in known}}
        rest = {**self.rest, **{n: x for n, x in values.items() if n not in arguments}}
        return _build(self.name, self.maker, arguments, rest)


def _parsed(value: object) -> object:
    """The distribution of a text, or else the same value."""
    if isinstance(value, str) and "(" in value:
        with contextlib.suppress(ConfigError):
            return distribution(value)
    return value


def _one_of(value: object) -> object:
    """One of a distribution's values; any other value is the same."""
    if isinstance(value, Choice):
        return value.options[0]
    return value.low if isinstance(value, Uniform) else value


def _usual(env: GymnaxEnv) -> Values:
    return gymnax.params_by_name(env.default_params)


def _with(made: Env | GymnaxEnv, params: Mapping[str, object], name: str, known: bool) -> Env:
    """An `Env` from a factory's result, with some of its parameters replaced; gymnax's registered
    ones have the name of `make`."""
    if isinstance(made, Env):
        return replace_params(made, params)
    usual = _usual(made)
    values, rules = followed(usual, params, rules_of(usual))
    changed = dataclasses.replace(made.default_params, **values) if values else None
    return gymnax.raw_gymnax_env(made, changed, name if known else None, rules)


def _find(name: str) -> _Maker:
    """The factory of a name. Raises ConfigError if there is none."""
    if name in _factories:
        return _maker(_factories[name])
    if name.startswith(host.PREFIX):
        return _maker(functools.partial(host.host_env, name.removeprefix(host.PREFIX)))
    if name.startswith(envpool.PREFIX):
        return _maker(functools.partial(envpool.envpool_env, name.removeprefix(envpool.PREFIX)))
    if ":" in name:
        found = _import(name)
        if isinstance(found, Env) or not callable(found):
            return _Maker(functools.partial(_itself, found), {})
        return _maker(found)
    if name not in gymnax.names():
        return _find_elsewhere(name)
    make = functools.partial(_construct, name)
    return _maker(type(gymnax.construct(name, {})))._replace(call=make, known=True)


def _find_elsewhere(name: str) -> _Maker:
    """The factory of a name of a suite, or of another package."""
    point = suites.plugged().get(name)
    if point is not None:
        with sentence(f"env: {name!r}, of the entry point {point.value!r}, can't be imported"):
            found = point.load()
        return _maker(found) if callable(found) else _Maker(functools.partial(_itself, found), {})
    if name in suites.SUITES:
        raise ConfigError(
            f"env: {name!r} is a suite; name one of its environments, such as "
            f"{suites.names(name)[0]!r}: see purerl.env_names({name!r})"
        )
    if "/" in name:
        return _Maker(functools.partial(_construct_foreign, name), suites.maker(name).defaults)
    raise ConfigError(f"env: no environment {name!r}; {suites.nearest(name, env_names())}")


def _construct_foreign(name: str, **kwargs: object) -> Env:
    return suites.maker(name).call(**kwargs)


def _is_gymnax(env: object) -> TypeGuard[GymnaxEnv]:
    return gymnax.is_gymnax(env) and not suites.is_foreign(env)


def _construct(name: str, **kwargs: object) -> GymnaxEnv:
    return gymnax.construct(name, kwargs)


def _itself(found: object) -> object:
    return found


def _maker(factory: Callable[..., object]) -> _Maker:
    try:
        parameters = list(inspect.signature(factory).parameters.values())
    except (TypeError, ValueError):  # a function without a signature
        return _Maker(factory, {}, takes_all=True)
    by_name = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    defaults = {
        x.name: None if x.default is x.empty else x.default for x in parameters if x.kind in by_name
    }
    return _Maker(factory, defaults, any(x.kind is x.VAR_KEYWORD for x in parameters))


def _import(name: str) -> object:
    """The object of a `"module:name"`."""
    module_name, _, attribute = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # any kind, from a user's module
        what = str(error) or type(error).__name__
        raise ConfigError(f"env: can't import {module_name!r} of {name!r}: {what}") from error
    found = getattr(module, attribute, None)
    if found is None:
        known = [word for word in vars(module) if not word.startswith("_")]
        raise ConfigError(f"env: {module_name!r} has no {attribute!r}; {suggest(attribute, known)}")
    return found


def source_of(env: Env) -> EnvSource | None:
    """The call of `make` that gives this environment, apart from parameters that were replaced by
    `replace_params`; None if there is none, or if a function or the spec of its result has been
    replaced since."""
    dynamics = dynamics_of(env)
    if isinstance(dynamics, Made) and dynamics.env.spec.is_same(env.spec):
        return dynamics.env.spec.source
    return None


def as_made(env: Env) -> Env:
    """An environment of `make` with its first spec, where only what is no part of equality has been
    replaced in it since; any other environment as it is."""
    dynamics = dynamics_of(env)
    if isinstance(dynamics, Made) and dynamics.env.spec == env.spec:
        return dynamics.as_env(dynamics.env.spec)
    return env


def randomize(
    env: object,
    sample: Callable[..., Mapping[str, ArrayLike]] | None = None,
    /,
    **ranges: object,
) -> Env:
    """An environment that draws parameters for every episode.

        purerl.randomize("CartPole-v1", gravity=(4.9, 9.8), length=purerl.LogUniform(0.25, 1.0))
        purerl.randomize("CartPole-v1", lambda key: {"gravity": 9.8 * jax.random.uniform(key)})

    A function of two arguments gets the progress of the run as well, `[]` from 0 to 1, for a
    curriculum; in evaluations, and wherever there is no run, it is 1:

        purerl.randomize("CartPole-v1", lambda key, progress: {"gravity": 9.8 * progress})

    The parameters are in the environment's state. With ranges, an environment of `make` becomes
    that of `make` with distributions as its parameters, and can be written to files.

    Args:
        env: a name, or any other environment that `TrainConfig` accepts.
        sample: `(key) -> values by name`, `[]` each, or `(key, progress) -> values by name`.
        **ranges: instead of `sample`, two bounds for each parameter, or a distribution:
            `purerl.Uniform`, `LogUniform`, or a `Choice` of numbers.

    Raises:
        ConfigError: an unknown parameter, or one that can't be traced, because it is no float or
            the spec depends on it, or one on which nothing depends.
    """
    env = as_env(env)
    if (sample is None) == (not ranges):
        raise ConfigError("randomize: expected either a function, or ranges by name")
    if sample is not None:
        if not callable(sample):
            raise ConfigError(f"randomize: got {shown(sample)}, expected a function of a key")
        return randomized(env, sample)
    given = {n: Uniform(*x) if _is_pair(x) else x for n, x in ranges.items()}
    drawn: dict[str, Uniform | Choice] = {}
    for name, x in check_params(env.spec.name, env_params(env), given).items():
        if not is_drawn(x):
            raise ConfigError(
                f"randomize: {name}: got {shown(x)}, expected two bounds or a distribution"
            )
        drawn[name] = x
    return randomized(env, drawn) if source_of(env) is None else with_params(env, drawn)


def _is_pair(x: object) -> TypeGuard[Sequence[float]]:
    return isinstance(x, (tuple, list)) and len(x) == 2


def with_params(env: Env, values: Mapping[str, object]) -> Env:
    """An environment, made again with some parameters replaced, of any type.

    Raises:
        ConfigError: an unknown parameter or invalid value; or the environment isn't one of `make`,
            and a parameter isn't a traceable float.
    """
    source, dynamics = source_of(env), dynamics_of(env)
    if source is None:
        return replace_params(env, values)
    made = make(source.name, **{**dict(source.params), **values})
    before = dynamics.replaced if isinstance(dynamics, Made) else {}
    return replace_params(made, {n: x for n, x in before.items() if n not in values})


def plain_env(env: Env) -> str | Values:
    """An environment in plain values: its name, or a mapping of its name and parameters.

    Raises:
        ConfigError: it has no plain form.
    """
    source = source_of(env)
    if source is None:
        raise ConfigError(
            f"this {env.spec.name} has no plain form, which only an environment has that a name "
            "makes, with parameters that are numbers and the spec unchanged (purerl.register gives "
            "names)"
        )
    return plain_source(source)


def plain_source(source: EnvSource) -> str | Values:
    """The call of `make` in plain values, which `as_env` accepts. Raises ConfigError if a parameter
    has no plain form."""
    if not source.params:
        return source.name
    return {"name": source.name, **{name: _plain(name, x) for name, x in source.params}}


def source_from_plain(plain: Plain) -> EnvSource:
    """The call of `make` from `plain_source`'s values. Raises ValueError if they are invalid."""
    values = {"name": plain} if isinstance(plain, str) else dict(plain)
    name = values.pop("name", None)
    if not isinstance(name, str) or not name:
        raise ValueError(f"the environment's source is {shown(plain)}")
    return EnvSource(name, tuple(sorted((n, _from_plain(x)) for n, x in values.items())))


def _from_plain(value: Plain) -> object:
    value = _parsed(value)
    if is_drawn(value):
        return value
    if isinstance(value, list):
        return tuple(map(_from_plain, value))
    if not isinstance(value, (bool, int, float, str)):
        raise ValueError(f"a parameter of the environment is {shown(value)}")
    return value


def _plain(name: str, value: object) -> Plain:
    if is_drawn(value) and distribution(str(value)) == value:
        return str(value)
    if isinstance(value, tuple):
        return [_plain(name, x) for x in value]
    if name == "name" or not isinstance(value, (bool, int, float, str)):
        raise ConfigError(f"env: its parameter {name}={shown(value)} has no plain form")
    return value


def as_env(env: object) -> Env:
    """An `Env` from a user's argument: a name, a mapping of a name and parameters, an `Env`, a
    gymnax `Environment` (or its class), a pair of a gymnax environment and its parameters, or an
    instance of an environment class of a suite. Of xminigrid, and of craftax and functional where
    they aren't the default, it is a pair with its parameters; of pgx it may be a pair with an
    opponent, as in `make`.

    Spaces of Gymnasium and gymnax in its spec are converted.

    Raises:
        ConfigError: it is none of these, or can't be made.
    """
    if isinstance(env, Env):
        return with_our_spaces(env)
    if isinstance(env, str):
        return make(env)
    if isinstance(env, Mapping):
        if "name" not in env or not all(isinstance(name, str) for name in env):
            raise ConfigError(
                f"env: got {shown(env)}, expected a name and parameters, such as "
                '{"name": "CartPole-v1", "gravity": 1.6}'
            )
        return make(env["name"], **{name: x for name, x in env.items() if name != "name"})
    instance, params = env if isinstance(env, tuple) and len(env) == 2 else (env, None)
    if isinstance(instance, type) and hasattr(instance, "step_env"):
        with sentence(f"env: {instance.__name__} can't be made"):
            instance = instance()
    if suites.is_foreign(instance):
        with sentence(f"env: {shown(type(instance).__name__)} can't be adapted"):
            made = suites.adapt(instance, params)
        if made is not None:
            return with_our_spaces(made)
    if gymnax.is_gymnax(instance):
        source = gymnax.known_source(instance, params)
        if source is not None:
            return make(source.name, **dict(source.params))
        return gymnax.raw_gymnax_env(instance, params)
    if host.is_vector(env):
        return host.host_env(env)
    raise ConfigError(
        f"env: got {shown(env)}, expected a name, a purerl.Env, a gymnax Environment, or a pair of "
        "a gymnax Environment and its parameters (or an environment of a suite); "
        "purerl.gymnasium_env makes one of Gymnasium's"
    )
