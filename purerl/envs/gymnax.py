"""Every gymnax environment, and a user's own `gymnax.environments.environment.Environment`.

The adapter takes the raw dynamics (`reset_env`, `step_env`, `is_truncated`) and leaves gymnax's own
auto-reset aside. It puts right what environments leave loose: rewards become float32 scalars,
`terminated` wins over `truncated`, a `Discrete` observation becomes one-hot, observation dtypes in
the spec are those that the environment really returns, bounds that are known to be wrong are given
up, and states keep their dtypes.
"""

import ast
import contextlib
import functools
import importlib
import importlib.util
import pathlib
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from purerl.envs.base import Env, EnvSpec, TimeStep
from purerl.envs.spaces import Box, Discrete, Space
from purerl.fields import ConfigError

NEEDS_DOWNLOAD = ("MNISTBandit-bsuite",)
# Their observations leave the bounds that their spaces declare.
WRONG_BOUNDS = ("MemoryChain-bsuite", "MetaMaze-misc", "GaussianBandit-misc")


def names() -> list[str]:
    """Names of the registered gymnax environments.

    Importing gymnax takes seconds: before that is needed, its list is read from its source.
    """
    if "gymnax" not in sys.modules:
        with contextlib.suppress(Exception):  # a gymnax that is written otherwise is imported
            return _names_in_source()
    return list(importlib.import_module("gymnax").registered_envs)


def _names_in_source() -> list[str]:
    spec = importlib.util.find_spec("gymnax")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    source = pathlib.Path(spec.submodule_search_locations[0], "registration.py").read_text()
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_BUILTIN_ENV_IDS":
            return ast.literal_eval(node.value)
    raise LookupError


def make_gymnax(name: str, **kwargs: Any) -> Env:
    """A registered gymnax environment, with its default parameters.

    Args:
        name: such as `"CartPole-v1"`.
        **kwargs: for the environment's constructor.

    Raises:
        ConfigError: the environment can't be made, such as MNISTBandit-bsuite, which wants a
            download.
    """
    try:
        env, params = importlib.import_module("gymnax").make(name, **kwargs)
    except OSError as error:
        why = "it wants to download a data set" if name in NEEDS_DOWNLOAD else str(error)
        raise ConfigError(f"env: {name!r} can't be made here: {why}") from error
    except TypeError as error:
        raise ConfigError(f"env: {name!r} can't be made with {kwargs}: {error}") from error
    return gymnax_env(env, params, name)


def gymnax_env(env: Any, params: Any = None, name: str | None = None) -> Env:
    """A gymnax `Environment` and its parameters as an `Env`.

    Args:
        env: the environment.
        params: its parameters, the default ones where None.
        name: for the spec; `env.name` where None.

    Raises:
        ConfigError: an action space other than Discrete or Box.
    """
    params = env.default_params if params is None else params
    name = env.name if name is None else name
    space = env.observation_space(params)
    num_categories = int(space.n) if hasattr(space, "n") else None
    action_space = _space(env.action_space(params))
    if not isinstance(action_space, Discrete | Box):
        raise ConfigError(
            f"env: {name!r} has the action space {env.action_space(params)}, "
            "expected Discrete or Box"
        )

    def observe(obs: Any) -> Any:
        if num_categories is not None:
            return jax.nn.one_hot(obs, num_categories)
        return jax.tree.map(_strong, obs)

    def raw_reset(key: jax.Array) -> tuple[Any, Any]:
        obs, state = env.reset_env(key, params)
        return observe(obs), state

    def raw_step(key: jax.Array, state: Any, action: jax.Array) -> tuple[Any, TimeStep]:
        obs, state, reward, terminated, info = env.step_env(key, state, action, params)
        terminated = jnp.asarray(terminated, bool).reshape(())
        truncated = jnp.asarray(env.is_truncated(state, params), bool).reshape(())
        reward = jnp.asarray(reward, jnp.float32).reshape(())
        info = dict(info)
        return state, TimeStep(observe(obs), reward, terminated, truncated & ~terminated, info)

    # A reset may leave Python numbers where a step leaves arrays: scans and selects want one dtype.
    key = jax.eval_shape(lambda: jax.random.key(0))
    obs, reset_state = jax.eval_shape(raw_reset, key)
    action = jax.eval_shape(action_space.sample, key)
    step_state, _ = jax.eval_shape(raw_step, key, reset_state, action)
    dtypes = jax.tree.map(_common_dtype, reset_state, step_state)
    cast = functools.partial(jax.tree.map, lambda x, dtype: _strong(x, dtype), is_leaf=_is_none)

    def reset(key: jax.Array) -> tuple[Any, Any]:
        obs, state = raw_reset(key)
        return obs, cast(state, dtypes)

    def step(key: jax.Array, state: Any, action: jax.Array) -> tuple[Any, TimeStep]:
        state, timestep = raw_step(key, state, action)
        return cast(state, dtypes), timestep

    limit = getattr(params, "max_steps_in_episode", None)
    observation_space = _observation_space(space, obs)
    if env.name in WRONG_BOUNDS:
        observation_space = Box(-np.inf, np.inf, obs.shape, obs.dtype)
    spec = EnvSpec(
        name=name,
        observation_space=observation_space,
        action_space=action_space,
        max_episode_steps=None if limit is None else int(limit),
    )
    return Env(reset, step, spec)


def _is_none(x: Any) -> bool:
    return x is None


def _common_dtype(x: Any, y: Any) -> Any:
    return x.dtype if x.dtype == y.dtype else jnp.promote_types(x.dtype, y.dtype)


def _strong(x: Any, dtype: Any = None) -> Any:
    """An array of the dtype that forgets that it was a Python number; keys stay keys."""
    x = jnp.asarray(x)
    if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
        return x
    return jax.lax.convert_element_type(x, np.dtype(dtype or x.dtype))


def _space(space: Any) -> Space | None:
    if hasattr(space, "n"):
        return Discrete(int(space.n))
    if hasattr(space, "low"):
        return Box(np.asarray(space.low), np.asarray(space.high), space.shape, space.dtype)
    return None


def _observation_space(space: Any, obs: Any) -> Any:
    """Spaces in the observation's own structure; the dtype is what the environment returns."""
    if hasattr(space, "n"):
        return Box(0.0, 1.0, (int(space.n),))
    children = getattr(space, "spaces", None)
    if children is None:
        low, high = np.asarray(space.low), np.asarray(space.high)
        return Box(low, high, obs.shape, obs.dtype)
    if isinstance(children, dict):
        return {name: _observation_space(child, obs[name]) for name, child in children.items()}
    return tuple(_observation_space(child, o) for child, o in zip(children, obs, strict=True))
