"""Names to environments: `make("CartPole-v1")`, `register("my-env", factory)`."""

import importlib
from collections.abc import Callable
from typing import Any

import jax

from purerl.envs import gymnax
from purerl.envs.base import Adapter, Env, EnvSource, dynamics_of, with_our_spaces
from purerl.records.errors import ConfigError, sentence, shown, suggest

_factories: dict[str, Callable[..., Env]] = {}


def register(name: str, factory: Callable[..., Env]) -> None:
    """Makes an environment known by name, to `make`, `TrainConfig` and the command line.

    Args:
        name: any name that isn't taken, gymnax's names included.
        factory: `(**kwargs) -> Env`.

    Raises:
        ConfigError: the name is taken, or is no name; `factory` is no function.
    """
    if not isinstance(name, str) or not name or ":" in name:
        raise ConfigError(f"register: got {shown(name)}, expected a name, without a colon")
    if not callable(factory) or isinstance(factory, Env):
        raise ConfigError(
            f"register: got {shown(factory)} for {name!r}, expected a function that returns an "
            "environment"
        )
    if name in env_names():
        raise ConfigError(f"register: the environment {name!r} exists already")
    _factories[name] = factory


def env_names() -> list[str]:
    """Every name that `make` knows: the registered ones, then gymnax's."""
    return [*_factories, *gymnax.names()]


class _Made(Adapter):
    """An environment as `make` made it, under the spec that it has there."""

    exact = False  # for `check_env` to see it as it is

    def identity(self) -> dict[str, Any]:
        source = self.env.spec.source
        return super().identity() | (
            {"make": dict(source.params)} if source and source.params else {}
        )


def make(name: str, **kwargs: Any) -> Env:
    """An environment by its name.

    Args:
        name: one of `env_names()`, or `"module:name"` for an environment of one's own in a module
            that can be imported: an `Env`, a gymnax `Environment`, or what returns one.
        **kwargs: for the environment's constructor.

    Raises:
        ConfigError: no such environment (the message has the nearest names), or one that can't be
            made on this machine.
    """
    if not isinstance(name, str):
        raise ConfigError(f"env: got {shown(name)}, expected a name: see purerl.env_names()")
    if any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(kwargs)):
        env = _make(name, kwargs)
    else:
        # Arrays that a constructor makes are constants, under a transformation of the caller's too.
        with jax.ensure_compile_time_eval():
            env = _make(name, kwargs)
    env = with_our_spaces(env)
    made = env._replace(spec=env.spec._replace(source=EnvSource(name, tuple(kwargs.items()))))
    return _Made(made).as_env(made.spec)


def source_of(env: Env) -> EnvSource | None:
    """The call of `make` that makes this environment again; None where there is none, as where a
    function or the spec of one that was made has been replaced since."""
    dynamics = dynamics_of(env)
    if isinstance(dynamics, _Made) and dynamics.env.spec == env.spec:
        return dynamics.env.spec.source
    return None


def _make(name: str, kwargs: dict[str, Any]) -> Env:
    if name in _factories:
        with sentence(f"env: {name!r} can't be made with {shown(kwargs)}"):
            return as_env(_factories[name](**kwargs))
    if ":" in name:
        return _import(name, kwargs)
    if name not in gymnax.names():
        raise ConfigError(f"env: no environment {name!r}; {suggest(name, env_names())}")
    return gymnax.make_gymnax(name, **kwargs)


def _import(name: str, kwargs: dict[str, Any]) -> Env:
    """An environment of a user's own module, which is named as it was asked for."""
    module_name, _, attribute = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # whatever a user's module raises
        what = str(error) or type(error).__name__
        raise ConfigError(f"env: can't import {module_name!r} of {name!r}: {what}") from error
    found = getattr(module, attribute, None)
    if found is None:
        known = [word for word in vars(module) if not word.startswith("_")]
        raise ConfigError(f"env: {module_name!r} has no {attribute!r}; {suggest(attribute, known)}")
    if callable(found) and not isinstance(found, Env):
        with sentence(f"env: {name!r} can't be made with {shown(kwargs)}"):
            found = found(**kwargs)
    env = as_env(found)
    return env._replace(spec=env.spec._replace(name=name))


def as_env(env: Any) -> Env:
    """An `Env` from a name, an `Env`, a gymnax `Environment`, or a pair of one and its parameters.

    Spaces of Gymnasium and gymnax in its spec become ours.

    Raises:
        ConfigError: it is none of these.
    """
    if isinstance(env, Env):
        return with_our_spaces(env)
    if isinstance(env, str):
        return make(env)
    pair = isinstance(env, tuple) and len(env) == 2
    instance, params = env if pair else (env, None)
    if hasattr(instance, "step_env") and not isinstance(instance, type):
        return gymnax.gymnax_env(instance, params)
    raise ConfigError(
        f"env: got {shown(env)}, expected a name, a purerl.Env, a gymnax Environment, or a pair of "
        "a gymnax Environment and its parameters"
    )
