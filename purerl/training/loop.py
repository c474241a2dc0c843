"""The loop's state and its step: rollout, push, update."""

import dataclasses
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp

from purerl.accelerator import devices
from purerl.agents.base import Agent
from purerl.agents.noise import Noise
from purerl.envs.base import Env, all_finite, time_limit, where
from purerl.envs.vector import VectorEnv, vector_env
from purerl.experience.buffer import Buffer, BufferState
from purerl.experience.metrics import (
    Count,
    Episodes,
    Metrics,
    Row,
    missing,
    no_episodes,
    no_metrics,
    pool,
)
from purerl.experience.normalize import RunningStats, init_stats, left_out, normalize, update_stats
from purerl.experience.rewarders import Rewarder, transform
from purerl.experience.transition import Transition
from purerl.training.evaluate import evaluate
from purerl.training.rollout import RolloutState, init_rollout, rollout
from purerl.training.state import OWN, RunState

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Loop:
    """A run put together: pure functions, to be scanned whole or in chunks.

    Of a run over devices, `init` and `step` are what each of them does, with its share of the
    environments, of the buffer and of every batch; `start` and `spread` are what all do together.
    With one device these are the same.

    Attributes:
        env: the raw environment, with the run's frame skip and time limit.
        agent: the agent.
        buffer: the buffer, with its size and discounts.
        rewarder: transforms rewards.
        noise: explores; or None.
        to_env: from the agent's actions to the environment's.
        num_envs: N, of each device.
        update_every: T.
        num_updates: how many updates make the run.
        log_every: how many updates make a row of metrics.
        first_update: how many rollouts are played before the one that is first learned from.
        random_rollouts: how many are played by actions drawn from the action space, at first.
        max_episodes: nothing changes any more once so many have ended; or None.
        resets: how first states are drawn, as `vector_env` takes it.
        reset_each_episode: whether the buffer is emptied before each rollout.
        wait_end_path: whether rollouts are episodic.
        normalize_obs: whether observations are normalised.
        stop_if_nonfinite: whether nothing changes any more once an update was skipped.
        eval_every: updates between evaluations, or None.
        eval_max_episodes, eval_max_episode_steps: an evaluation's size, on each device.
        num_devices: D.
        axis_name: by which devices meet; None where there is one.
    """

    env: Env
    agent: Agent
    buffer: Buffer
    rewarder: Rewarder
    noise: Noise | None
    to_env: Callable[[jax.Array], jax.Array]
    num_envs: int
    update_every: int
    num_updates: int
    log_every: int
    first_update: int
    random_rollouts: int
    max_episodes: int | None
    resets: str
    reset_each_episode: bool
    wait_end_path: bool
    normalize_obs: bool
    stop_if_nonfinite: bool
    eval_every: int | None
    eval_max_episodes: int
    eval_max_episode_steps: int
    num_devices: int = 1
    axis_name: str | None = None

    @property
    def steps_per_update(self) -> int:
        """Environment steps in each update, over all devices: D N T."""
        return self.num_devices * self.num_envs * self.update_every

    @property
    def num_rows(self) -> int:
        """How many rows of metrics the run has; the last may be of fewer updates."""
        return -(-self.num_updates // self.log_every)

    def start(self, key: jax.Array) -> RunState:
        """The state before the first update, over all devices."""
        return devices.spread(self.init, self.num_devices, args=(False,), result=OWN)(key)

    def spread(self, fn: Callable[..., tuple[RunState, PyTree]], num_args: int = 0) -> Callable:
        """A function of one device's state, such as a scan of `step`, over all devices.

        Composes with `jit` and `vmap`. Donate the state, and it is updated in place.

        Args:
            fn: `(state, *args) -> (state, result)`. Arguments and result are the same on all
                devices, as the metrics of `step` and `row` are.
            num_args: how many arguments there are besides the state.
        """
        args = (OWN, *[False] * num_args)
        return devices.spread(fn, self.num_devices, args=args, result=(OWN, False))

    @property
    def schedules(self) -> list[str]:
        """What changes with the length of the run."""
        agent, buffer = self.agent, self.buffer
        names = [f"{type(agent).__name__}.{n}={getattr(agent, n)}" for n in agent.schedules]
        if buffer.priority_sampling and buffer.anneal_beta is not False:
            names.append(f"Buffer.anneal_beta={buffer.anneal_beta}")
        return names

    def init(self, key: jax.Array) -> RunState:
        """One device's state before the first update."""
        key, eval_key, agent_key, env_key = jax.random.split(key, 4)
        agent_state = self.agent.init(agent_key, self.env.spec)
        env_key = devices.own_key(env_key, self.axis_name)
        envs = init_rollout(self.vector_env(), env_key, self.num_envs, self.noise)
        stats = None
        if self.normalize_obs:
            first_obs = jax.tree.map(lambda x: x[0], envs.env.obs)
            stats = init_stats(first_obs, devices.of_first(first_obs, self.axis_name))
        play = jax.eval_shape(self.play, agent_state, envs, stats, key, 0)
        example = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), play[1])
        return RunState(
            agent=agent_state,
            buffer=self.buffer.init(example, self.num_envs),
            rollout=envs,
            obs_stats=stats,
            rewarder=self.rewarder.init(self.num_envs),
            key=key,
            eval_key=eval_key,
            num_updates=Count.of(0),
            num_episodes=Count.of(0),
            nonfinite_updates=jnp.int32(0),
        )

    def scan(self, state: RunState) -> tuple[RunState, Metrics]:
        """The whole run, on one device: the state after it, and metrics `[num_rows]`."""

        def row(carry: tuple[RunState, Count], _: None) -> tuple[tuple[RunState, Count], Metrics]:
            state, index, metrics = self.row(*carry)
            return (state, index), metrics

        (state, _), metrics = jax.lax.scan(row, (state, Count.of(0)), length=self.num_rows)
        return state, metrics

    def row(self, state: RunState, index: Count) -> tuple[RunState, Count, Metrics]:
        """The updates of one row of metrics, on one device: `log_every`, or what is left.

        Args:
            state: the run.
            index: how many updates were made before.

        Returns:
            State and index after them, and their metrics.
        """
        if self.log_every == 1:
            state, metrics = self.step(state, index)
            return state, index.plus(1), metrics

        def update(_: Any, carry: tuple[RunState, Count, Row]) -> tuple[RunState, Count, Row]:
            state, index, row = carry
            state, metrics = self.step(state, index)
            return state, index.plus(1), row.add(metrics)

        length: Any = self.log_every
        rest = self.num_updates % self.log_every
        if rest:
            length = jnp.where(index.at_least(self.num_updates - rest), rest, length)
        first = Row.start(jax.eval_shape(self.step, state, index)[1])
        state, index, whole = jax.lax.fori_loop(0, length, update, (state, index, first))
        return state, index, whole.end()

    def step(self, state: RunState, index: Any) -> tuple[RunState, Metrics]:
        """One update, on one device.

        Args:
            state: the run.
            index: `[]` int32 or `Count`, how many updates were made before. It is in the state too;
                given apart, a vmapped run has one index and not one each, and evaluation stays a
                branch.
        """
        index = Count.of(index)
        key, play_key, update_key, _ = jax.random.split(state.key, 4)
        play_key, update_key = (devices.own_key(k, self.axis_name) for k in (play_key, update_key))
        stats = state.obs_stats
        envs, transitions, episodes = self.play(
            state.agent, state.rollout, stats, play_key, index, state.num_episodes
        )
        # NaN and infinity stay outside: of such a rollout nothing is stored, learned or counted in.
        # A branch would copy the buffer, so nothing here is one: what may not be written is masked.
        finite = devices.pall(all_finite(transitions), self.axis_name)
        # What was played before isn't what comes before the next: no path goes across the gap.
        envs = envs._replace(episode=envs.episode + (~finite).astype(jnp.int32))
        running = self._running(state)
        rewarder_state, reward = transform(self.rewarder, state.rewarder, transitions)
        rewarder_state = where(finite, rewarder_state, state.rewarder)
        learning = self._learning(running, index)
        agent_state, stored, losses = self._learn(
            state, transitions._replace(reward=reward), finite, running, learning, update_key, index
        )
        learned = all_finite(agent_state)
        finite &= learned if learning is None else learned | ~learning
        kept = finite if learning is None else finite & learning
        agent_state = where(kept, agent_state, state.agent)
        # Statistics move between updates only: what acted and what learns saw the same numbers.
        if stats is not None:
            seen = update_stats(stats, transitions.obs, 2, self.axis_name)
            stats = where(finite, seen, stats)
        bounded = left_out((stats, rewarder_state)) == left_out((state.obs_stats, state.rewarder))
        flawed = ~(finite & bounded)
        evaluation = None
        if self.eval_every is not None:
            evaluation = jax.lax.cond(
                index.plus(1).divides(self.eval_every, self.num_updates),
                lambda: self._evaluate(agent_state, stats, state.eval_key, index),
                # A function whose trace is not kept, nor its `missing`.
                lambda: no_episodes(self.env.spec.metrics),
            )
        new = RunState(
            agent=agent_state,
            buffer=stored,
            rollout=envs,
            obs_stats=stats,
            rewarder=rewarder_state,
            key=key,
            eval_key=state.eval_key,
            num_updates=state.num_updates.plus(1),
            num_episodes=state.num_episodes.plus(episodes.num_episodes),
            nonfinite_updates=state.nonfinite_updates + flawed.astype(jnp.int32),
        )
        metrics = Metrics(
            **episodes._asdict(),
            losses=losses,
            nonfinite_updates=flawed.astype(jnp.int32),
            eval=evaluation,
        )
        return (new, metrics) if running is None else _freeze(running, new, state, metrics)

    def play(
        self,
        agent_state: PyTree,
        envs: RolloutState,
        stats: RunningStats | None,
        key: jax.Array,
        index: Any,
        num_episodes: Any = 0,
    ) -> tuple[RolloutState, Transition, Episodes]:
        """One rollout; the statistics are of all devices' episodes. Of updates and of episodes it
        is given how many there were before."""
        at_random = None
        if self.random_rollouts > 0:
            at_random = ~Count.of(index).at_least(self.random_rollouts)
        envs, transitions, episodes = rollout(
            self.vector_env(),
            self._agent(index, num_episodes),
            agent_state,
            envs,
            key,
            self.update_every,
            obs_transform(stats),
            self.to_env,
            noise=self.noise,
            episodic=self.wait_end_path,
            at_random=at_random,
        )
        return envs, transitions, pool(episodes, self.axis_name)

    def _running(self, state: RunState) -> jax.Array | None:
        """Whether the run isn't over; None where nothing can end it before its last update."""
        running = []
        if self.max_episodes is not None:
            running.append(~state.num_episodes.at_least(self.max_episodes))
        if self.stop_if_nonfinite:
            running.append(state.nonfinite_updates == 0)
        return jnp.all(jnp.array(running)) if running else None

    def _learning(self, running: jax.Array | None, index: Count) -> jax.Array | None:
        """Whether this update counts: the run isn't over, and has come to its first one; None where
        all do."""
        if self.first_update == 0:
            return running
        begun = index.at_least(self.first_update)
        return begun if running is None else running & begun

    def _learn(
        self,
        state: RunState,
        transitions: Transition,
        finite: jax.Array,
        running: jax.Array | None,
        learning: jax.Array | None,
        key: jax.Array,
        index: Count,
    ) -> tuple[PyTree, BufferState, dict[str, jax.Array]]:
        """Agent and buffer after an update. Where it doesn't count, the buffer hasn't learned from
        it and losses are NaN; the agent is for the caller to keep as it was."""
        writable = running
        # The next rollout takes the place of one that fills the buffer; else it is kept out.
        if self.buffer.maxlen != self.num_envs * self.update_every:
            writable = finite if running is None else finite & running
        buffer = self.buffer.tell(
            transform_obs=obs_transform(state.obs_stats),
            progress=self._progress(index, state.num_episodes),
            writable=writable,
        )
        stored = buffer.reset(state.buffer) if self.reset_each_episode else state.buffer
        stored = buffer.push(stored, transitions)
        agent_state, stored, losses = self._agent(index, state.num_episodes).update(
            state.agent, buffer.tell(writable=learning), stored, key
        )
        losses = devices.pmean(losses, self.axis_name)
        if learning is not None:
            losses = {name: jnp.where(learning, x, missing()) for name, x in losses.items()}
        return agent_state, stored, losses

    def _agent(self, index: Any, num_episodes: Any = 0) -> Agent:
        index, num_episodes = Count.of(index), Count.of(num_episodes)
        return self.agent.tell(
            timesteps=index.as_float() * self.steps_per_update,
            progress=self._progress(index, num_episodes),
        )

    def _progress(self, index: Count, num_episodes: Count) -> jax.Array:
        """How much of the run is over: of its updates, or of its episodes if that is more."""
        progress = index.as_float() / float(self.num_updates)
        if self.max_episodes is None:
            return progress
        ended = num_episodes.as_float() / float(self.max_episodes)
        return jnp.maximum(progress, jnp.minimum(ended, 1.0))

    def vector_env(self) -> VectorEnv:
        """The N environments as they are played: with auto-reset, and a limit where rollouts are
        episodic."""
        env, limit = self.env, self.env.spec.max_episode_steps
        if self.wait_end_path and (limit is None or limit > self.update_every):
            env = time_limit(env, self.update_every)  # so that every environment comes to an end
        return vector_env(env, self.num_envs, self.resets)

    def _evaluate(
        self, agent_state: PyTree, stats: RunningStats | None, key: jax.Array, index: Count
    ) -> Episodes:
        transform = obs_transform(stats)

        def policy(obs: PyTree, key: jax.Array) -> jax.Array:
            return self.to_env(self.agent.policy(agent_state, transform(obs)))

        number = index.low.astype(jnp.uint32) + (index.high.astype(jnp.uint32) << 30)
        key = devices.own_key(jax.random.fold_in(key, number), self.axis_name)
        size = (self.eval_max_episodes, self.eval_max_episode_steps)
        return pool(evaluate(self.env, policy, key, *size), self.axis_name)


def obs_transform(stats: RunningStats | None) -> Callable[[PyTree], PyTree]:
    """From observations as the environment gives them to those that the agent sees."""
    return (lambda obs: obs) if stats is None else (lambda obs: normalize(stats, obs))


def _freeze(
    running: jax.Array, new: RunState, old: RunState, metrics: Metrics
) -> tuple[RunState, Metrics]:
    """The new state and metrics while the run goes on; after that the old state, and the metrics of
    nothing. The buffer sees to itself."""
    rest = where(running, *(cast(Any, x)._replace(buffer=None) for x in (new, old)))
    return rest._replace(buffer=new.buffer), where(running, metrics, no_metrics(metrics))
