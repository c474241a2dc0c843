"""`Loop`, the pure functions of a run, and `RunState`: rollout, push, update, metrics."""

import dataclasses
import functools
import operator
from collections.abc import Callable
from typing import Any, NamedTuple, Self, cast

import jax
import jax.numpy as jnp

from purerl.accelerator.devices import ALONE, Devices, spread
from purerl.agents.acting import Acting, at_random, exploring, seeing
from purerl.agents.base import Agent
from purerl.agents.noise import Noise
from purerl.envs.base import (
    Env,
    all_finite,
    at_progress,
    host_of,
    map_actions,
    time_limit,
    vectorize,
    where,
)
from purerl.envs.vector import VectorEnv, vector_env
from purerl.experience.buffer import Buffer, BufferState
from purerl.experience.experience import Clock, Experience
from purerl.experience.log import Log, Sums, log_means
from purerl.experience.metrics import (
    Count,
    Episodes,
    Metrics,
    Row,
    missing,
    no_episodes,
    no_metrics,
    pool,
    summarize,
)
from purerl.experience.normalize import RunningStats, init_stats, left_out, update_stats
from purerl.experience.rewarders import Rewarder, transform
from purerl.experience.transition import Transition
from purerl.records.types import PyTree
from purerl.training.episodes import play_episodes
from purerl.training.rollout import RolloutState, init_rollout, logged_rollout, restart

Index = int | jax.Array | Count  # of an update, or of an episode


class BestPolicy(NamedTuple):
    """The best policy so far by its evaluation: of equal ones the first.

    Attributes:
        agent: the part of the agent's state that `Agent.for_acting` keeps.
        obs_stats: running statistics of observations, as of then; None if they aren't normalised.
        episode_return: `[]` float32, the evaluation's; -inf before the first with an episode.
        num_updates: at the evaluation; 0 before the first with an episode.
    """

    agent: PyTree
    obs_stats: RunningStats | None
    episode_return: jax.Array
    num_updates: Count

    @classmethod
    def start(cls, agent: PyTree, stats: RunningStats | None) -> Self:
        """Before the first evaluation."""
        return cls(agent, stats, jnp.float32(-jnp.inf), Count.of(0))

    def or_better(self, found: Episodes, new: "BestPolicy") -> "BestPolicy":
        """Another policy where its evaluation is better, else this one."""
        better = (found.num_episodes > 0) & (new.episode_return > self.episode_return)
        # What is kept takes no part in derivatives: they can't go back through an evaluation.
        better_one: BestPolicy = where(better, jax.lax.stop_gradient(new), self)
        return better_one


class RunState(NamedTuple):
    """The whole state of a run: saved and loaded, the run continues from it exactly.

    Attributes:
        agent: the agent's state.
        buffer: the buffer's state.
        rollout: the environments, and the memory of the agent and its noise.
        obs_stats: running statistics of observations; None if they aren't normalised.
        rewarder: the rewarder's state.
        key: for the next update.
        eval_key: for evaluations: a separate stream, so that they don't affect training.
        num_updates: rollouts so far, each with its update.
        num_episodes: episodes that have ended.
        nonfinite_updates: `[]` int32, updates that were skipped, or left values out of running
            statistics.
        best: the best policy so far; None without `eval_every`.
        solved: `[]` bool, whether `stop_at_return` was reached; None without it.

    Over several devices, buffer, rollout and rewarder have a leading axis `[D]`; the rest is the
    same on all devices, without the axis.
    """

    agent: PyTree
    buffer: BufferState
    rollout: RolloutState
    obs_stats: RunningStats | None
    rewarder: PyTree
    key: jax.Array
    eval_key: jax.Array
    num_updates: Count
    num_episodes: Count
    nonfinite_updates: jax.Array
    best: BestPolicy | None = None
    solved: jax.Array | None = None


# Which fields of the state differ between devices, as `spread` takes it.
_OWN = {"buffer", "rollout", "rewarder"}
OWN = RunState(*(cast(Any, name in _OWN) for name in RunState._fields))


@dataclasses.dataclass(frozen=True)
class Loop:
    """The pure functions of a run, to be scanned whole or in chunks.

    Over several devices, `init` and `step` are the body on each device, with its share of the
    environments, of the buffer and of every batch; `start` and `spread` map them over all. With one
    device these are the same.

    Attributes:
        env: the raw environment, with the run's frame skip and time limit.
        eval_env: that of evaluations.
        agent: the agent.
        buffer: the buffer, with its size and discounts.
        rewarder: transforms rewards.
        noise: exploration noise, or None.
        action_map: from the agent's actions to the environment's.
        num_envs: N, of each device.
        update_every: T.
        num_updates: updates in the run.
        log_every: updates in a row of metrics.
        first_update: rollouts before the first update.
        random_rollouts: rollouts, at first, with actions drawn from the action space.
        max_episodes: episodes after which the state is frozen, or None.
        resets: strategy for first states, as in `vector_env`.
        reset_each_episode: whether the buffer is emptied before each rollout.
        wait_end_path: whether rollouts are episodic.
        normalize_obs: whether observations are normalised.
        stop_at_return: the return after which the state is frozen, or None.
        stop_if_nonfinite: whether the state is frozen after an update that was skipped.
        eval_every: updates between evaluations, or None.
        eval_max_episodes, eval_max_episode_steps: an evaluation's size, on each device.
        eval_sample: whether evaluations sample from the policy.
        devices: those that the run is sharded over.
        log: the user's metrics of a step, or None.
    """

    env: Env
    eval_env: Env
    agent: Agent
    buffer: Buffer
    rewarder: Rewarder
    noise: Noise | None
    action_map: Callable[[jax.Array], jax.Array]
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
    stop_at_return: float | None
    stop_if_nonfinite: bool
    eval_every: int | None
    eval_max_episodes: int
    eval_max_episode_steps: int
    eval_sample: bool
    devices: Devices = ALONE
    log: Log | None = None

    @property
    def on_host(self) -> bool:
        """Whether an environment is simulated on the host, where no members are mapped."""
        return any(host_of(env) is not None for env in (self.env, self.eval_env))

    @property
    def steps_per_update(self) -> int:
        """Environment steps in each update, over all devices: D N T."""
        return self.devices.count * self.num_envs * self.update_every

    @property
    def num_rows(self) -> int:
        """Rows of metrics in the run; the last may be of fewer updates."""
        return -(-self.num_updates // self.log_every)

    def start(self, key: jax.Array) -> RunState:
        """The initial state, over all devices."""
        state: RunState = spread(self.init, self.devices.count, args=(False,), result=OWN)(key)
        return state

    def spread(
        self, fn: Callable[..., tuple[RunState, PyTree]], num_args: int = 0
    ) -> Callable[..., tuple[RunState, PyTree]]:
        """A function of one device's state, such as a scan of `step`, mapped over all devices.

        Composes with `jit` and `vmap`. If the state is donated, it is updated in place.

        Args:
            fn: `(state, *args) -> (state, result)`. Arguments and result are the same on all
                devices, as the metrics of `step` and `row` are.
            num_args: number of arguments besides the state.
        """
        args = (OWN, *[False] * num_args)
        return spread(fn, self.devices.count, args=args, result=(OWN, False))

    @property
    def schedules(self) -> list[str]:
        """Fields that schedule something over the run's length, as `Class.field=value`."""
        agent, buffer = self.agent, self.buffer
        names = [f"{type(agent).__name__}.{n}={getattr(agent, n)}" for n in agent.schedules]
        if buffer.priority_sampling and buffer.anneal_beta is not False:
            names.append(f"Buffer.anneal_beta={buffer.anneal_beta}")
        return names

    def init(self, key: jax.Array) -> RunState:
        """One device's initial state."""
        key, eval_key, agent_key, env_key = jax.random.split(key, 4)
        agent_state = self.agent.init(agent_key, self.env.spec)
        env_key = self.devices.key(env_key)
        acting = self.acting(agent_state, None, self.clock(0), 0)
        envs = init_rollout(self.vector_env(self.clock(0)), acting, env_key, self.num_envs)
        stats = None
        if self.normalize_obs:
            first_obs = jax.tree.map(lambda x: x[0], envs.env.obs)
            stats = init_stats(first_obs, self.devices.first(first_obs))
        play = jax.eval_shape(self.play, agent_state, envs, stats, key, 0)
        example = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), play[1])
        return RunState(
            agent=agent_state,
            buffer=self.buffer.init(
                example, self.num_envs, limit=self.cut_limit, num_steps=self.update_every
            ),
            rollout=envs,
            obs_stats=stats,
            rewarder=self.rewarder.init(self.num_envs),
            key=key,
            eval_key=eval_key,
            num_updates=Count.of(0),
            num_episodes=Count.of(0),
            nonfinite_updates=jnp.int32(0),
            best=self._no_best(agent_state, stats),
            solved=None if self.stop_at_return is None else jnp.bool_(False),
        )

    def begin(self, state: RunState, agent_state: PyTree, stats: RunningStats | None) -> RunState:
        """An initial state, over all devices, with learned parameters in place of random ones.

        Args:
            state: from `start`.
            agent_state: the part of the agent's state that `Agent.for_acting` keeps.
            stats: running statistics of observations; None if they aren't normalised.
        """
        agent_state = self.agent.start_from(state.agent, agent_state)
        best = self._no_best(agent_state, stats)
        return state._replace(agent=agent_state, obs_stats=stats, best=best)

    def _no_best(self, agent_state: PyTree, stats: RunningStats | None) -> BestPolicy | None:
        if self.eval_every is None:
            return None
        return BestPolicy.start(self.agent.for_acting(agent_state), stats)

    def begin_again(self, state: RunState) -> RunState:
        """One device's state with its environments reset, where theirs isn't in it; the rest
        continues."""
        key = jax.random.split(state.key, 4)[3]  # which `step` leaves
        clock = self.clock(state.num_updates, state.num_episodes)
        acting = self.acting(state.agent, state.obs_stats, clock, state.num_updates)
        envs = restart(self.vector_env(clock), acting, key, state.rollout)
        return state._replace(rollout=envs)

    def scan(self, state: RunState) -> tuple[RunState, Metrics]:
        """The whole run, on one device: the state after it, and metrics `[num_rows]`."""

        def row(carry: tuple[RunState, Count], _: None) -> tuple[tuple[RunState, Count], Metrics]:
            state, index, metrics = self.row(*carry)
            return (state, index), metrics

        (state, _), metrics = jax.lax.scan(row, (state, Count.of(0)), length=self.num_rows)
        return state, metrics

    def row(self, state: RunState, index: Count) -> tuple[RunState, Count, Metrics]:
        """The updates of one row of metrics, on one device: `log_every`, or in the last row fewer.

        Args:
            state: before them.
            index: number of updates so far.

        Returns:
            State and index after them, and their metrics.
        """
        if self.log_every == 1:
            state, metrics = self.step(state, index)
            return state, index.plus(1), metrics

        def update(_: jax.Array, carry: tuple[RunState, Count, Row]) -> tuple[RunState, Count, Row]:
            state, index, row = carry
            state, metrics = self.step(state, index)
            return state, index.plus(1), row.add(metrics)

        length: int | jax.Array = self.log_every
        rest = self.num_updates % self.log_every
        if rest:
            length = jnp.where(index.at_least(self.num_updates - rest), rest, length)
        first = Row.start(jax.eval_shape(self.step, state, index)[1])
        state, index, whole = jax.lax.fori_loop(0, length, update, (state, index, first))
        return state, index, whole.end()

    def step(self, state: RunState, index: Index) -> tuple[RunState, Metrics]:
        """One update, on one device.

        Args:
            state: before it.
            index: `[]` int32 or `Count`, number of updates so far. The state has it too; as an
                argument it isn't mapped by `vmap`, so that evaluation stays a branch.
        """
        index = Count.of(index)
        key, play_key, update_key, _ = jax.random.split(state.key, 4)
        play_key, update_key = (self.devices.key(k) for k in (play_key, update_key))
        clock, stats = self.clock(index, state.num_episodes), state.obs_stats
        envs, transitions, episodes, logged = self.play(
            state.agent, state.rollout, stats, play_key, index, state.num_episodes
        )
        # A rollout with NaN or infinity isn't stored, learned from, or counted in statistics. By
        # masks: a branch would copy the buffer.
        finite = self.devices.all(all_finite(transitions))
        # A rollout that isn't stored leaves a gap, which no path may cross.
        envs = envs._replace(episode=envs.episode + (~finite).astype(jnp.int32))
        running = self.running(state)
        rewarder_state, reward = transform(self.rewarder, state.rewarder, transitions, self.devices)
        rewarder_state = where(finite, rewarder_state, state.rewarder)
        learning = self._learning(running, index)
        agent_state, stored, losses = self._learn(
            state,
            transitions._replace(reward=reward),
            self._writable(finite, running),
            learning,
            update_key,
            clock,
        )
        learned = all_finite(agent_state)
        finite &= learned if learning is None else learned | ~learning
        kept = finite if learning is None else finite & learning
        agent_state = where(kept, agent_state, state.agent)
        # Statistics change between updates only, so that acting and learning see the same ones.
        if stats is not None:
            seen = update_stats(stats, transitions.obs, 2, self.devices)
            stats = where(finite, seen, stats)
        bounded = left_out((stats, rewarder_state)) == left_out((state.obs_stats, state.rewarder))
        flawed = ~(finite & bounded)
        evaluated, best = self._evaluation(agent_state, stats, state, index)
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
            best=best,
            solved=self._solved(state, episodes if evaluated is None else evaluated),
        )
        metrics = Metrics(
            **episodes._asdict(),
            losses=losses,
            nonfinite_updates=flawed.astype(jnp.int32),
            eval=evaluated,
            log=log_means(logged, self.devices),
        )
        return (new, metrics) if running is None else _freeze(running, new, state, metrics)

    def play(
        self,
        agent_state: PyTree,
        envs: RolloutState,
        stats: RunningStats | None,
        key: jax.Array,
        index: Index,
        num_episodes: Index = 0,
    ) -> tuple[RolloutState, Transition, Episodes, Sums]:
        """Rollout number `index`, after `num_episodes` episodes; the episodes' statistics are over
        all devices, the sums of what `log` returns of this one, for `log_means`."""
        clock = self.clock(index, num_episodes)
        acting = self.acting(agent_state, stats, clock, index)
        envs, transitions, episodes, logged = logged_rollout(
            self.vector_env(clock),
            acting,
            envs,
            key,
            self.update_every,
            episodic=self.wait_end_path,
            limit=self.cut_limit,
            log=self.log,
        )
        return envs, transitions, pool(episodes, self.devices), logged

    def acting(
        self, agent_state: PyTree, stats: RunningStats | None, clock: Clock, index: Index
    ) -> Acting:
        """The exploring agent in rollout `index`, with normalisation, noise and random start."""
        space = self.env.spec.action_space
        acting = seeing(self.agent.acting(agent_state, clock), stats)
        acting = exploring(acting, self.noise, space)
        if self.random_rollouts > 0:
            begun = Count.of(index).at_least(self.random_rollouts)
            acting = at_random(acting, self.env.spec, ~begun)
        return acting

    def running(self, state: RunState) -> jax.Array | None:
        """Whether the run isn't over; None if nothing can end it before its last update."""
        running = []
        if self.stop_at_return is not None:
            running.append(~cast(jax.Array, state.solved))
        if self.max_episodes is not None:
            running.append(~state.num_episodes.at_least(self.max_episodes))
        if self.stop_if_nonfinite:
            running.append(state.nonfinite_updates == 0)
        return functools.reduce(operator.and_, running) if running else None

    def _solved(self, state: RunState, episodes: Episodes) -> jax.Array | None:
        """Whether `stop_at_return` is reached, with an update of such episodes."""
        if self.stop_at_return is None:
            return None
        reached = episodes.episode_return >= self.stop_at_return
        return cast(jax.Array, state.solved) | ((episodes.num_episodes > 0) & reached)

    def _learning(self, running: jax.Array | None, index: Count) -> jax.Array | None:
        """Whether this update is applied: the run isn't over, and `update_after` is reached; None
        if all are."""
        if self.first_update == 0:
            return running
        begun = index.at_least(self.first_update)
        return begun if running is None else running & begun

    def _writable(self, finite: jax.Array, running: jax.Array | None) -> jax.Array | None:
        """Whether a rollout is written into the buffer; None if each is."""
        # A rollout that fills the buffer is overwritten by the next.
        if self.buffer.maxlen == self.num_envs * self.update_every:
            return running
        return finite if running is None else finite & running

    def _learn(
        self,
        state: RunState,
        transitions: Transition,
        writable: jax.Array | None,
        learning: jax.Array | None,
        key: jax.Array,
        clock: Clock,
    ) -> tuple[PyTree, BufferState, dict[str, jax.Array]]:
        """Agent and buffer after an update, and its losses. Where `learning` is False, priorities
        are unchanged and losses NaN; the caller discards the agent."""
        buffer, stored = self.buffer, state.buffer
        if self.reset_each_episode:
            stored = buffer.reset(stored, writable)
        stored = buffer.push(stored, transitions, writable)
        memory = state.rollout.memory if self.noise is None else state.rollout.memory.agent
        if self.wait_end_path:  # as the rollout began: see `restart`
            left = state.rollout.length > 0
            memory = self.agent.acting(state.agent, clock).reset(memory, left)
        experience = Experience(buffer, stored, clock, state.obs_stats, memory, learning)
        agent_state, experience, losses = self.agent.update(state.agent, experience, key, clock)
        losses = self.devices.mean(losses)
        if learning is not None:
            losses = {name: jnp.where(learning, x, missing()) for name, x in losses.items()}
        return agent_state, experience.state, losses

    def clock(self, index: Index, num_episodes: Index = 0) -> Clock:
        """The clock after `index` updates and `num_episodes` episodes: progress is the larger of
        their shares in the run."""
        index = Count.of(index)
        progress = index.as_float() / float(self.num_updates)
        if self.max_episodes is not None:
            ended = Count.of(num_episodes).as_float() / float(self.max_episodes)
            progress = jnp.maximum(progress, jnp.minimum(ended, 1.0))
        timesteps = index.as_float() * self.steps_per_update
        return Clock(timesteps, progress, self.devices, index.low)

    @property
    def cut_limit(self) -> int | None:
        """The least number of steps between two cuts of an environment's path, except after NaN;
        None if it is unknown, as of simulators on the host, which may cut for reasons of theirs."""
        if host_of(self.env) is not None:
            return None
        limit = self.vector_env().spec.max_episode_steps
        # A replay of episodic rollouts is cut after each of them too, any number of steps after the
        # last time limit, unless that is the rollout's length.
        odd = self.buffer.maxlen != self.num_envs * self.update_every and limit != self.update_every
        return None if self.wait_end_path and odd else limit

    def vector_env(self, clock: Clock | None = None) -> VectorEnv:
        """The N environments with auto-reset, the action map, and a time limit of T for episodic
        rollouts; at a time of the run."""
        env = self.env if clock is None else at_progress(self.env, clock.progress)
        limit = self.env.spec.max_episode_steps
        if self.wait_end_path and (limit is None or limit > self.update_every):
            env = time_limit(env, self.update_every)  # so that every episode ends
        many = vector_env(env, self.num_envs, self.resets, self.update_every)
        return map_actions(many, self.action_map)

    def _evaluation(
        self, agent_state: PyTree, stats: RunningStats | None, state: RunState, index: Count
    ) -> tuple[Episodes | None, BestPolicy | None]:
        """Statistics of an evaluation of the new agent, NaN if this update has none, and the best
        policy so far; None without `eval_every`."""
        if self.eval_every is None:
            return None, None
        best = cast(BestPolicy, state.best)

        def evaluate() -> tuple[Episodes, BestPolicy]:
            found = self._evaluate(agent_state, stats, state.eval_key, index)
            kept = self.agent.for_acting(agent_state)
            new = BestPolicy(kept, stats, found.episode_return, index.plus(1))
            return found, best.or_better(found, new)

        found: tuple[Episodes, BestPolicy] = jax.lax.cond(
            index.plus(1).divides(self.eval_every, self.num_updates),
            evaluate,
            # A new function, so that JAX doesn't cache its trace, with `missing` in it.
            lambda: (no_episodes(self.env.spec.metrics), best),
        )
        return found

    def _evaluate(
        self, agent_state: PyTree, stats: RunningStats | None, key: jax.Array, index: Count
    ) -> Episodes:
        number = index.low.astype(jnp.uint32) + (index.high.astype(jnp.uint32) << 30)
        key = self.devices.key(jax.random.fold_in(key, number))
        env = map_actions(vectorize(self.eval_env), self.action_map)
        acting = seeing(self.agent.policy(agent_state, sample=self.eval_sample), stats)
        size = (self.eval_max_episodes, self.eval_max_episode_steps)
        returns, lengths, info = play_episodes(env, acting, key, *size)
        return pool(summarize(returns, lengths, jnp.isfinite(returns), info), self.devices)


def _freeze(
    running: jax.Array, new: RunState, old: RunState, metrics: Metrics
) -> tuple[RunState, Metrics]:
    """New state and metrics while the run isn't over, then the old state and empty metrics. The
    buffer is masked where it is written."""
    rest = where(running, *(cast(Any, x)._replace(buffer=None) for x in (new, old)))
    return rest._replace(buffer=new.buffer), where(running, metrics, no_metrics(metrics))
