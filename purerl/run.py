"""The loop. One for every agent: rollout, push, update, again."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from purerl.agents.base import Agent
from purerl.buffer import Buffer, BufferState
from purerl.envs.base import Env, action_repeat, auto_reset, time_limit, vectorize
from purerl.envs.registry import as_env
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


@dataclasses.dataclass(frozen=True)
class Loop:
    """A run put together: pure functions, to be scanned whole or in chunks.

    Attributes:
        env: the raw environment, with the run's frame skip and time limit.
        agent: the agent, with what the loop has told it.
        buffer: the buffer, with its size and discounts.
        rewarder: transforms rewards.
        to_env: from the agent's actions to the environment's.
        num_envs: N.
        update_every: T.
        num_updates: how many updates make the run.
        normalize_obs: whether observations are normalised.
        eval_every: updates between evaluations, or None.
        eval_max_episodes, eval_max_episode_steps: an evaluation's size.
    """

    env: Env
    agent: Agent
    buffer: Buffer
    rewarder: Rewarder
    to_env: Callable[[jax.Array], jax.Array]
    num_envs: int
    update_every: int
    num_updates: int
    normalize_obs: bool
    eval_every: int | None
    eval_max_episodes: int
    eval_max_episode_steps: int

    @property
    def steps_per_update(self) -> int:
        """Environment steps in each update, N T."""
        return self.num_envs * self.update_every

    def init(self, key: jax.Array) -> RunState:
        """The state before the first update."""
        key, eval_key, agent_key, env_key = jax.random.split(key, 4)
        agent_state = self.agent.init(agent_key, self.env.spec)
        envs = init_rollout(self._vector_env(), env_key, self.num_envs)
        first_obs = jax.tree.map(lambda x: x[0], envs.env.obs)
        stats = init_stats(first_obs) if self.normalize_obs else None
        _, example, _ = jax.eval_shape(self._play, agent_state, envs, stats, key)
        example = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), example)
        return RunState(
            agent=agent_state,
            buffer=self.buffer.init(example, self.num_envs),
            rollout=envs,
            obs_stats=stats,
            rewarder=self.rewarder.init(self.num_envs),
            key=key,
            eval_key=eval_key,
            num_updates=jnp.int32(0),
        )

    def step(self, state: RunState, index: jax.Array) -> tuple[RunState, Metrics]:
        """One update.

        Args:
            state: the run.
            index: `[]` int32, how many updates were made before. It is in the state too; given
                apart, a vmapped run has one index and not one each, and evaluation stays a branch.
        """
        key, play_key, update_key = jax.random.split(state.key, 3)
        stats = state.obs_stats
        envs, transitions, episodes = self._play(state.agent, state.rollout, stats, play_key)
        ends = (transitions.terminated, transitions.truncated)
        rewarder_state, reward = self.rewarder(state.rewarder, transitions.reward, *ends)
        stored = self.buffer.push(state.buffer, transitions._replace(reward=reward))
        view = self.buffer.replace(transform_obs=obs_transform(stats))
        agent_state, stored, losses = self.agent.update(state.agent, view, stored, update_key)
        # Statistics move between updates only: what acted and what learns saw the same numbers.
        if stats is not None:
            stats = update_stats(stats, transitions.obs, num_axes=2)
        evaluation = None
        if self.eval_every is not None:
            evaluation = jax.lax.cond(
                (index + 1) % self.eval_every == 0,
                lambda: self._evaluate(agent_state, stats, state.eval_key, index),
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

    def _vector_env(self) -> Env:
        return vectorize(auto_reset(self.env))

    def _play(
        self, agent_state: PyTree, envs: RolloutState, stats: RunningStats | None, key: jax.Array
    ) -> tuple[RolloutState, Transition, Episodes]:
        return rollout(
            self._vector_env(),
            self.agent,
            agent_state,
            envs,
            key,
            self.update_every,
            obs_transform(stats),
            self.to_env,
        )

    def _evaluate(
        self, agent_state: PyTree, stats: RunningStats | None, key: jax.Array, index: jax.Array
    ) -> Episodes:
        transform = obs_transform(stats)

        def policy(obs: PyTree, key: jax.Array) -> jax.Array:
            return self.to_env(self.agent.policy(agent_state, transform(obs)))

        key = jax.random.fold_in(key, index)
        return evaluate(self.env, policy, key, self.eval_max_episodes, self.eval_max_episode_steps)


def make_loop(
    env: Any,
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
    raw_env = as_env(env)
    env = limit_env(raw_env, max_episode_steps, skip_frames)
    update_every = agent.update_every if update_every is None else update_every
    num_updates = -(-total_timesteps // (num_envs * update_every))
    if eval_every is not None and eval_every > num_updates:
        raise ConfigError(
            f"eval_every: got {eval_every}, expected at most {num_updates}, the updates of the run"
        )
    agent = agent.replace(num_updates=num_updates)
    buffer = _own_discount(buffer or agent.make_buffer(num_envs, update_every), agent)
    if buffer.maxlen is None:
        buffer = buffer.replace(maxlen=num_envs * update_every)
    agent.check_run(num_envs, update_every, buffer)
    buffer.num_rows(num_envs)
    return Loop(
        env=env,
        agent=agent,
        buffer=buffer,
        rewarder=_own_discount(Identity() if rewarder is None else rewarder, agent),
        to_env=action_map(raw_env, action_processor),
        num_envs=num_envs,
        update_every=update_every,
        num_updates=num_updates,
        normalize_obs=normalize_obs,
        eval_every=eval_every,
        eval_max_episodes=eval_max_episodes,
        eval_max_episode_steps=eval_max_episode_steps or env.spec.max_episode_steps or 10_000,
    )


def run(
    env: Any, agent: Agent, buffer: Buffer | None = None, *, key: jax.Array, **options: Any
) -> tuple[RunState, Metrics]:
    """Trains an agent in an environment: the whole of it one `lax.scan`.

    Args:
        env: a name, an `Env`, or a gymnax `Environment`.
        agent: the agent.
        buffer: what it learns from; None for the agent's own choice.
        key: everything random in the run follows from it.
        num_envs: N, environments side by side.
        total_timesteps: environment steps in all, over all N; rounded up to whole updates. Steps
            are decisions: with frame skip each of them is several frames.
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


def obs_transform(stats: RunningStats | None) -> Callable[[PyTree], PyTree]:
    """From observations as the environment gives them to those that the agent sees."""
    return (lambda obs: obs) if stats is None else (lambda obs: normalize(stats, obs))


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
