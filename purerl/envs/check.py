"""`check_env`: whether an environment keeps the contract that everything else relies on."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from purerl.envs.base import Env, TimeStep
from purerl.envs.registry import as_env
from purerl.envs.spaces import Box, Discrete, is_space

# What is run here is tiny: let XLA compile it quickly, not well.
QUICK_COMPILE = {"xla_backend_optimization_level": 0}


class EnvError(AssertionError):
    """An environment breaks its contract."""


def check_env(env: Any, key: jax.Array | None = None, num_steps: int = 256) -> None:
    """Checks an environment: run it on a new environment before training on it.

    Shapes and dtypes of every output against the spec; traceable by `jit`, the same under `vmap` as
    alone; pure (no hidden state, no leaked tracer) and determined by its key; the state keeps its
    structure; over `num_steps` random steps of 8 episodes: observations inside their space, rewards
    finite, `terminated` and `truncated` never together, `truncated` at the spec's time limit and
    not before.

    Args:
        env: a name, an `Env`, or a gymnax `Environment`, with its parameters or without.
        key: for resets, actions and steps.
        num_steps: how many steps to play.

    Raises:
        EnvError: what is broken, and what was found.
    """
    env = as_env(env)
    key = jax.random.key(0) if key is None else key
    _check_spec(env)
    obs, state = _check_reset(env, key)
    _check_step(env, key, obs, state)
    _check_transforms(env, key)
    _check_episodes(env, key, num_steps)


def _require(condition: Any, message: str) -> None:
    if not condition:
        raise EnvError(message)


def _check_spec(env: Env) -> None:
    spec = env.spec
    _require(callable(env.reset) and callable(env.step), "Env.reset and Env.step must be functions")
    _require(
        isinstance(spec.action_space, Discrete | Box),
        f"spec.action_space is {spec.action_space!r}, expected Discrete or Box",
    )
    spaces = jax.tree.leaves(spec.observation_space, is_leaf=is_space)
    _require(
        spaces and all(is_space(space) for space in spaces),
        f"spec.observation_space is {spec.observation_space!r}, expected a space or a pytree of "
        "spaces",
    )
    limit = spec.max_episode_steps
    _require(
        limit is None or (isinstance(limit, int) and limit >= 1),
        f"spec.max_episode_steps is {limit!r}, expected a positive integer or None",
    )
    try:
        hash(spec)
    except TypeError:
        raise EnvError(
            "spec is not hashable: a dict or an array in it? Use tuples and spaces"
        ) from None


def _check_obs(env: Env, obs: Any, where: str) -> None:
    space = env.spec.observation_space
    structure: Any = jax.tree.structure(obs)
    expected = jax.tree.structure(space, is_leaf=is_space)
    _require(
        structure == expected,
        f"{where}: the observation is {structure}, the spec says {expected}",
    )
    for leaf, part in zip(
        jax.tree.leaves(obs), jax.tree.leaves(space, is_leaf=is_space), strict=True
    ):
        _require_array(leaf, part.shape, part.dtype, f"{where}: the observation")


def _require_array(x: Any, shape: tuple, dtype: Any, what: str) -> None:
    _require(hasattr(x, "dtype"), f"{what} is a {type(x).__name__}, expected an array")
    _require(
        x.shape == shape and x.dtype == dtype,
        f"{what} has shape {x.shape} and dtype {x.dtype}, expected {shape} and {np.dtype(dtype)}",
    )


def _traced(function: Callable, *args: Any, what: str) -> Any:
    """The shapes of what a function returns."""
    try:
        with jax.checking_leaks():
            return jax.eval_shape(function, *args)
    except EnvError:
        raise
    except Exception as error:
        message = str(error).split("\n")[0]
        raise EnvError(f"{what} can't be traced by jax.jit: {message}") from error


def _check_reset(env: Env, key: jax.Array) -> tuple[Any, Any]:
    out = _traced(env.reset, key, what="reset(key)")
    _require(isinstance(out, tuple) and len(out) == 2, "reset must return (obs, env_state)")
    _check_obs(env, out[0], "reset")
    return out


def _check_step(env: Env, key: jax.Array, obs: Any, state: Any) -> None:
    action = jax.eval_shape(env.spec.action_space.sample, key)

    def step(key: jax.Array, state: Any, action: jax.Array) -> Any:
        out = env.step(key, state, action)
        for name in ("reward", "terminated", "truncated"):
            value = getattr(out[1], name, action)
            got = type(value).__name__
            _require(hasattr(value, "dtype"), f"step: the {name} is a {got}, expected an array")
        return out

    out = _traced(step, key, state, action, what="step(key, env_state, action)")
    _require(
        isinstance(out, tuple) and len(out) == 2 and isinstance(out[1], TimeStep),
        "step must return (env_state, TimeStep)",
    )
    next_state, timestep = out
    _check_obs(env, timestep.obs, "step")
    _require_array(timestep.reward, (), np.float32, "step: the reward")
    _require_array(timestep.terminated, (), np.bool_, "step: terminated")
    _require_array(timestep.truncated, (), np.bool_, "step: truncated")
    _require(isinstance(timestep.info, dict), "step: info must be a dict")
    before: Any = jax.tree.structure(state)
    after = jax.tree.structure(next_state)
    _require(before == after, f"reset's state is {before}, step's is {after}")
    for path_leaf, next_leaf in zip(
        jax.tree_util.tree_leaves_with_path(state), jax.tree.leaves(next_state), strict=True
    ):
        path, leaf = path_leaf
        name = f"step: env_state{jax.tree_util.keystr(path)}"
        _require_array(next_leaf, leaf.shape, leaf.dtype, name)


def _start_and_step(env: Env, key: jax.Array) -> Any:
    reset_key, action_key, step_key = jax.random.split(key, 3)
    obs, state = env.reset(reset_key)
    return obs, env.step(step_key, state, env.spec.action_space.sample(action_key))


def _check_transforms(env: Env, key: jax.Array) -> None:
    def once(key: jax.Array) -> Any:
        reset_key, action_key, step_key = jax.random.split(key, 3)
        obs, state = env.reset(reset_key)
        return obs, env.step(step_key, state, env.spec.action_space.sample(action_key))

    keys = jax.random.split(key, 4)
    jitted = jax.jit(once, compiler_options=QUICK_COMPILE)
    alone = [jitted(k) for k in keys]
    _require_equal(alone[0], jitted(keys[0]), "the same key gave another result", exact=True)
    # Traced anew: hidden state would show as well as what vmap does wrong.
    together = jax.jit(jax.vmap(lambda key: once(key)), compiler_options=QUICK_COMPILE)(keys)
    stacked = jax.tree.map(lambda *xs: jnp.stack(xs), *alone)
    message = "traced a second time, under vmap, the same key gave another result"
    _require_equal(stacked, together, message)


def _require_equal(x: Any, y: Any, message: str, exact: bool = False) -> None:
    tolerance = 0.0 if exact else 1e-4
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(x), jax.tree.leaves(y), strict=True
    ):
        if jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        same = np.allclose(a, b, rtol=tolerance, atol=tolerance, equal_nan=True)
        _require(same, f"{message}, at {jax.tree_util.keystr(path)}: {a} and {b}")


def _check_episodes(env: Env, key: jax.Array, num_steps: int) -> None:
    """Plays 8 environments with random actions; each ends for good at its first end."""

    def play(key: jax.Array) -> tuple[Any, TimeStep, jax.Array]:
        reset_key, action_key, step_key = jax.random.split(key, 3)
        obs, state = env.reset(reset_key)
        actions = jax.vmap(env.spec.action_space.sample)(jax.random.split(action_key, num_steps))

        def step(carry: Any, inputs: Any) -> Any:
            state, over = carry
            state, timestep = env.step(inputs[0], state, inputs[1])
            timestep = timestep._replace(info={})
            return (state, over | timestep.terminated | timestep.truncated), (timestep, over)

        inputs = (jax.random.split(step_key, num_steps), actions)
        _, (timesteps, over) = jax.lax.scan(step, (state, jnp.bool_(False)), inputs)
        return obs, timesteps, over

    keys = jax.random.split(key, 8)
    played = jax.jit(jax.vmap(play), compiler_options=QUICK_COMPILE)(keys)
    first, timesteps, over = jax.tree.map(np.asarray, played)
    valid = ~over
    _require(np.all(np.isfinite(timesteps.reward[valid])), "step: a reward is not finite")
    both = timesteps.terminated & timesteps.truncated & valid
    _require(
        not both.any(), "step: terminated and truncated are set together; terminated has to win"
    )
    limit = env.spec.max_episode_steps
    for episode in range(len(valid)):
        cut = np.flatnonzero(timesteps.truncated[episode] & valid[episode])
        length = int(valid[episode].sum())
        if cut.size and limit is not None:
            _require(
                cut[0] + 1 == limit,
                f"truncated after {cut[0] + 1} steps, spec.max_episode_steps says {limit}; a "
                "natural end is terminated",
            )
        if limit is not None:
            _require(
                length <= limit,
                f"an episode took {length} steps, spec.max_episode_steps says {limit}",
            )
    _check_inside(env, first, np.ones(len(valid), bool), "reset")
    _check_inside(env, timesteps.obs, valid, "step")


def _check_inside(env: Env, obs: Any, valid: np.ndarray, where: str) -> None:
    spaces = jax.tree.leaves(env.spec.observation_space, is_leaf=is_space)
    for leaf, space in zip(jax.tree.leaves(obs), spaces, strict=True):
        seen = leaf[valid]
        _require(np.all(np.isfinite(seen)), f"{where}: an observation is not finite")
        low, high = (0, space.n - 1) if isinstance(space, Discrete) else (space.low, space.high)
        outside = (seen < low - 1e-4) | (seen > high + 1e-4)
        _require(
            not outside.any(),
            f"{where}: an observation is outside {space}: {seen[outside.nonzero()][:1]}",
        )
