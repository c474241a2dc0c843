"""The loop. One for every agent: rollout, push, update, again."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from purerl.agents.base import Agent
from purerl.buffer import Buffer, BufferState
from purerl.envs.base import Env, action_repeat, auto_reset, time_limit, vectorize
from purerl.envs.spaces import Box
from purerl.evaluate import evaluate
from purerl.fields import ConfigError
from purerl.metrics import Episodes, Metrics, no_episodes
from purerl.normalize import RunningStats, init_stats, normalize, update_stats
from purerl.rewarders import Identity, Rewarder
from purerl.rollout import RolloutState, init_rollout, rollout
from purerl.types import Transition

PyTree = Any


class RunState(NamedTuple):
    """The whole of a run: save it, load it, go on.

    Attributes:
        agent: the agent's state.
        buffer: what the buffer holds.
        rollout: the environments.
        obs_stats: running statistics of observations; None where they aren't normalised.
        rewarder: the rewarder's state.
        key: for what comes next.
        eval_key: for evaluations, a stream of its own: they don't change what is learned.
        num_updates: `[]` int32, how many updates were made.
    """

    agent: PyTree
    buffer: BufferState
    rollout: RolloutState
    obs_stats: RunningStats | None
    rewarder: PyTree
    key: jax.Array
    eval_key: jax.Array
    num_updates: jax.Array


class Loop(NamedTuple):
    """A run as two pure functions, to be scanned whole or in chunks.

    Attributes:
        init: `(key) -> RunState`.
        step: `(RunState, index) -> (RunState, Metrics)`, one update; index is the number of updates
            made before, outside of the state so that a vmapped run has one index, not one each.
        num_updates: how many updates make the run.
        steps_per_update: environment steps in each, num_envs times update_every.
        agent: the agent, with what the loop has told it.
    """

    init: Callable[[jax.Array], RunState]
    step: Callable[[RunState, jax.Array], tuple[RunState, Metrics]]
    num_updates: int
    steps_per_update: int
    agent: Agent


def make_loop(
    env: Env,
    agent: Agent,
    buffer: Buffer | None = None,
    *,
    num_envs: int,
    total_timesteps: int,
    update_every: int | None = None,
    rewarder: Rewarder | None = None,
    action_processor: Callable[[jax.Array], jax.Array] | None = None,
    normalize_obs: bool = False,
    max_episode_steps: int | None = None,
    skip_frames: int = 1,
    eval_every: int | None = None,
    eval_max_episodes: int = 10,
    eval_max_episode_steps: int | None = None,
) -> Loop:
    """Puts a run together; `run` says what the arguments mean."""
    update_every = agent.update_every if update_every is None else update_every
    steps_per_update = num_envs * update_every
    num_updates = -(-total_timesteps // steps_per_update)
    agent = agent.replace(num_updates=num_updates)
    buffer = _own_discount(buffer or agent.make_buffer(num_envs, update_every), agent)
    if buffer.maxlen is None:
        buffer = buffer.replace(maxlen=steps_per_update)
    rewarder = _own_discount(Identity() if rewarder is None else rewarder, agent)
    agent.check_run(num_envs, update_every, buffer)
    buffer.num_rows(num_envs)

    raw_env = limit_env(env, max_episode_steps, skip_frames)
    vector_env = vectorize(auto_reset(raw_env))
    to_env = action_map(env, action_processor)

    def obs_transform(stats: RunningStats | None) -> Callable[[PyTree], PyTree]:
        return (lambda obs: obs) if stats is None else (lambda obs: normalize(stats, obs))

    def play(
        agent_state: PyTree, envs: RolloutState, stats: RunningStats | None, key: jax.Array
    ) -> tuple[RolloutState, Transition, Episodes]:
        transform = obs_transform(stats)
        return rollout(vector_env, agent, agent_state, envs, key, update_every, transform, to_env)

    def init(key: jax.Array) -> RunState:
        key, eval_key, agent_key, env_key = jax.random.split(key, 4)
        agent_state = agent.init(agent_key, raw_env.spec)
        envs = init_rollout(vector_env, env_key, num_envs)
        stats = init_stats(jax.tree.map(lambda x: x[0], envs.env.obs)) if normalize_obs else None
        _, example, _ = jax.eval_shape(play, agent_state, envs, stats, key)
        example = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), example)
        return RunState(
            agent=agent_state,
            buffer=buffer.init(example, num_envs),
            rollout=envs,
            obs_stats=stats,
            rewarder=rewarder.init(num_envs),
            key=key,
            eval_key=eval_key,
            num_updates=jnp.int32(0),
        )

    def step(state: RunState, index: jax.Array) -> tuple[RunState, Metrics]:
        key, play_key, update_key = jax.random.split(state.key, 3)
        envs, transitions, episodes = play(state.agent, state.rollout, state.obs_stats, play_key)
        rewarder_state, reward = rewarder(
            state.rewarder, transitions.reward, transitions.terminated, transitions.truncated
        )
        stored = buffer.push(state.buffer, transitions._replace(reward=reward))
        view = buffer.replace(transform_obs=obs_transform(state.obs_stats))
        agent_state, stored, losses = agent.update(state.agent, view, stored, update_key)
        # Statistics move between updates only: what acted and what learns saw the same numbers.
        stats = state.obs_stats
        if stats is not None:
            stats = update_stats(stats, transitions.obs, num_axes=2)
        evaluation = None
        if eval_every is not None:
            evaluation = jax.lax.cond(
                (index + 1) % eval_every == 0,
                lambda: assess(agent_state, stats, jax.random.fold_in(state.eval_key, index)),
                no_episodes,
            )
        state = RunState(
            agent=agent_state,
            buffer=stored,
            rollout=envs,
            obs_stats=stats,
            rewarder=rewarder_state,
            key=key,
            eval_key=state.eval_key,
            num_updates=state.num_updates + 1,
        )
        return state, Metrics(**episodes._asdict(), losses=losses, eval=evaluation)

    limit = eval_max_episode_steps or raw_env.spec.max_episode_steps or 10_000

    def assess(agent_state: PyTree, stats: RunningStats | None, key: jax.Array) -> Episodes:
        transform = obs_transform(stats)

        def policy(obs: PyTree, key: jax.Array) -> jax.Array:
            return to_env(agent.policy(agent_state, transform(obs)))

        return evaluate(raw_env, policy, key, eval_max_episodes, limit)

    return Loop(init, step, num_updates, steps_per_update, agent)


def run(
    env: Env, agent: Agent, buffer: Buffer | None = None, *, key: jax.Array, **options: Any
) -> tuple[RunState, Metrics]:
    """Trains an agent in an environment: the whole of it one `lax.scan`.

    Args:
        env: the environment, raw.
        agent: the agent.
        buffer: what it learns from; None for the agent's own choice.
        key: everything random in the run follows from it.
        num_envs: N, environments side by side.
        total_timesteps: environment steps in all, over all N; rounded up to whole updates.
        update_every: T, steps of each environment between updates; None for the agent's default.
        rewarder: transforms the reward that is learned from.
        action_processor: from the agent's action to the environment's, just before the step; the
            buffer keeps the agent's own. None clips to a Box's bounds.
        normalize_obs: by running mean and variance over all environments.
        max_episode_steps: a time limit: sets `truncated`, never `terminated`.
        skip_frames: how often each action is repeated; rewards are summed.
        eval_every: evaluate after every so many updates; None for never.
        eval_max_episodes: episodes in each evaluation.
        eval_max_episode_steps: an evaluation's episodes stop there; None for the environment's own
            limit, or 10,000 where it has none.

    Returns:
        The run's final state, and metrics with a leading axis `[num_updates]`.

    Raises:
        ConfigError: arguments that don't fit together.
    """
    loop = make_loop(env, agent, buffer, **options)
    return jax.lax.scan(loop.step, loop.init(key), jnp.arange(loop.num_updates))


def limit_env(env: Env, max_episode_steps: int | None, skip_frames: int) -> Env:
    """The environment with the run's frame skip and time limit.

    Raises:
        ConfigError: the time limit is beyond the environment's own, where it would do nothing.
    """
    if skip_frames > 1:
        env = action_repeat(env, skip_frames)
    if max_episode_steps is None:
        return env
    own = env.spec.max_episode_steps
    if own is not None and max_episode_steps > own:
        raise ConfigError(
            f"max_episode_steps: got {max_episode_steps}, expected at most {own}, the limit that "
            f"{env.spec.name} keeps by itself; make the environment with other parameters"
        )
    return time_limit(env, max_episode_steps)


def action_map(
    env: Env, action_processor: Callable[[jax.Array], jax.Array] | None
) -> Callable[[jax.Array], jax.Array]:
    """From the agent's actions `[N, *action_shape]` to the environment's: inside its bounds."""
    space = env.spec.action_space
    if action_processor is not None:
        return action_processor
    if isinstance(space, Box):
        return lambda action: jnp.clip(action, space.low, space.high).astype(space.dtype)
    return lambda action: action


def _own_discount(part: Any, agent: Agent) -> Any:
    """A buffer or rewarder with the agent's gamma and lam, where it has none of its own."""
    missing = {
        name: getattr(agent, name)
        for name in ("gamma", "lam")
        if getattr(part, name, 0.0) is None and hasattr(agent, name)
    }
    return part.replace(**missing) if missing else part
