"""`check_agent`: whether an agent keeps the contract that the loop relies on."""

import contextlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from purerl.agents import Agent
from purerl.envs.base import Env
from purerl.envs.check import QUICK_COMPILE
from purerl.envs.registry import as_env
from purerl.fields import field_names
from purerl.run import make_loop

NUM_ENVS = 4


class AgentError(AssertionError):
    """An agent breaks its contract."""


def check_agent(agent: Agent, env: Any, key: jax.Array | None = None) -> None:
    """Checks an agent in an environment: run it on a new agent before training with it.

    Shapes and dtypes of actions, extras and values; `update` keeps the structure of the agent's
    state and gives finite float32 scalars; all of it determined by the key, different for different
    keys; the same under `vmap` over keys as alone; every float hyperparameter may be vmapped over.

    Args:
        agent: the agent.
        env: a name, an `Env`, or a gymnax `Environment`.
        key: for everything random.

    Raises:
        AgentError: what is broken, and what was found.
        ConfigError: the agent doesn't take this environment.
    """
    env = as_env(env)
    key = jax.random.key(0) if key is None else key
    _require(isinstance(agent, Agent), f"{agent!r} is not a purerl.Agent")
    try:
        hash(jax.tree.structure(agent))
    except TypeError as error:
        raise AgentError(f"a static field is not hashable: {error}") from None
    _check_functions(agent, env, key)
    _check_update(agent, env, key)
    _check_hyperparams(agent, env, key)


def _require(condition: Any, message: str) -> None:
    if not condition:
        raise AgentError(message)


def _check_functions(agent: Agent, env: Env, key: jax.Array) -> None:
    obs, _ = jax.eval_shape(jax.vmap(env.reset), jax.random.split(key, NUM_ENVS))
    state = jax.eval_shape(lambda key: agent.init(key, env.spec), key)
    action, extras = jax.eval_shape(agent.act, state, obs, key)
    space = env.spec.action_space
    _require_shape("act's action", action, (NUM_ENVS, *space.shape), space.dtype)
    for name, extra in extras.items():
        _require(
            extra.shape[:1] == (NUM_ENVS,),
            f"act's extra {name!r} has shape {extra.shape}, expected [N, ...], N={NUM_ENVS}",
        )
    for sample in (None, key):
        chosen = jax.eval_shape(agent.policy, state, obs, sample)
        _require_shape("policy's action", chosen, (NUM_ENVS, *space.shape), space.dtype)
    with contextlib.suppress(NotImplementedError):  # not every agent learns a value
        value = jax.eval_shape(agent.value, state, obs)
        _require_shape("value", value, (NUM_ENVS,), np.float32)


def _require_shape(what: str, x: Any, shape: tuple, dtype: Any) -> None:
    _require(
        x.shape == shape and x.dtype == dtype,
        f"{what} has shape {x.shape} and dtype {x.dtype}, expected {shape} and {np.dtype(dtype)}",
    )


def _trainer(agent: Agent, env: Env) -> Callable:
    """Two updates, as the agent is run by default, as a function of key and hyperparameters."""
    defaults = agent.run_defaults
    steps = defaults.num_envs * defaults.update_every
    buffer = agent.make_buffer(defaults.num_envs, defaults.update_every)
    buffer = buffer.replace(maxlen=min(buffer.num_rows(1), 16 * steps))

    def train(key: jax.Array, hyperparams: dict[str, Any]) -> Any:
        loop = make_loop(
            env,
            agent.replace(**hyperparams),
            buffer,
            total_timesteps=2 * steps,
            update_after=0,
        )
        state, metrics = jax.lax.scan(
            loop.step, loop.init(key), jnp.arange(loop.num_updates, dtype=jnp.int32)
        )
        return state.agent, metrics.losses

    return train


def _check_update(agent: Agent, env: Env, key: jax.Array) -> None:
    def fresh(key: jax.Array) -> Any:
        return _trainer(agent, env)(key, {})

    train = jax.jit(fresh, compiler_options=QUICK_COMPILE)
    keys = jax.random.split(key, 2)
    try:
        state, losses = train(keys[0])
    except TypeError as error:  # scan's own words: what went in and what came out
        raise AgentError(f"update changes the structure of the state: {error}") from error
    for name, loss in losses.items():
        _require_shape(f"loss {name!r} of an update", loss[0], (), np.float32)
        _require(np.all(np.isfinite(loss)), f"loss {name!r} is not finite: {loss}")
    _require(
        _equal(state, train(keys[0])[0]), "the same key gave another agent: update is not pure"
    )
    _require(not _equal(state, train(keys[1])[0]), "another key gave the same agent")
    together = jax.jit(jax.vmap(fresh), compiler_options=QUICK_COMPILE)(keys)[0]
    first = jax.tree.map(lambda x: x[0], together)
    _require(_equal(state, first, 1e-3), "vmap over keys gave another agent than the key alone")


def _check_hyperparams(agent: Agent, env: Env, key: jax.Array) -> None:
    train = jax.vmap(lambda hyperparams: _trainer(agent, env)(key, hyperparams))
    values = {name: getattr(agent, name) for name in field_names(type(agent), traced=True)}
    values = {name: jnp.asarray([v, v]) for name, v in values.items() if v is not None}
    try:
        jax.eval_shape(train, values)
    except Exception as error:
        raise AgentError(f"its float fields can't be vmapped over: {error}") from error


def _equal(x: Any, y: Any, tolerance: float = 0.0) -> bool:
    pairs = zip(jax.tree.leaves(x), jax.tree.leaves(y), strict=True)
    return all(np.allclose(a, b, rtol=tolerance, atol=tolerance) for a, b in pairs)
