"""`make_train`: from a config to a pure function that trains."""

import dataclasses
import functools
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import jax
import numpy as np
from flax import struct

from purerl.agents import Agent
from purerl.envs.registry import is_builtin, source_of
from purerl.experience.metrics import Metrics
from purerl.records.draws import list_values
from purerl.records.errors import ConfigError, MemberError, shown
from purerl.records.fields import INT32, check_key, unchecked
from purerl.records.types import Plain, PyTree
from purerl.statistics import final_returns
from purerl.training import card
from purerl.training.check import check_size, ships
from purerl.training.config import TrainConfig
from purerl.training.hyperparams import Hyperparams, env_hyperparams, with_hyperparams
from purerl.training.learned import learned_of
from purerl.training.loop import BestPolicy, Loop, RunState
from purerl.training.policy import Interface, Policy

Train = Callable[..., "TrainOutput"]


@struct.dataclass
class TrainOutput:
    """The result of training: a pytree, so that `jit` and `vmap` return it.

    Attributes:
        state: the final `RunState`; over several devices buffer, rollout and rewarder have a
            leading axis `[D]`.
        metrics: `Metrics`, each `[num_rows]`: a row every `log_every` updates.
        agent: the agent, with the hyperparameters that it was trained with.
        steps_per_update: environment steps in each update.
        interface: the environment's spec and the action processor, for `policy`.
        log_every: updates in each row of metrics; the last row may be of fewer.
        planned_updates: the run's planned number of updates; None for `log_every` in every row.
        env_params: parameters of the environment that were hyperparameters, by name.
    """

    state: RunState
    metrics: Metrics
    agent: Agent
    steps_per_update: int = struct.field(pytree_node=False)
    interface: Interface = struct.field(pytree_node=False)
    log_every: int = struct.field(pytree_node=False, default=1)
    planned_updates: int | None = struct.field(pytree_node=False, default=None)
    env_params: dict[str, jax.Array] = struct.field(default_factory=dict)

    def __repr__(self) -> str:
        return f"TrainOutput({', '.join([self._title, *self._facts()])})"

    def _repr_html_(self) -> str:
        curves = card.curves_of(self.metrics, self.timesteps) if card.is_known(self.metrics) else ""
        return card.card(self._title, self._facts(), curves)

    @property
    def _title(self) -> str:
        return card.title(self.agent, self.interface.spec.name)

    def _facts(self) -> list[str]:
        """How many runs, how long, and the return that they end with, as far as it is known."""
        episodes = self.metrics.num_episodes
        if not hasattr(episodes, "shape"):  # a placeholder of JAX
            return []
        facts = card.members(episodes.shape[:-1])
        steps = f"{max(self.timesteps, default=0):,} steps{' each' * bool(facts)}"
        if not card.is_known((self.metrics, self.state.num_updates)):
            return [*facts, steps]
        end = card.spread(final_returns(*card.flat(self.metrics), self.num_rows.reshape(-1)))
        return [*facts, steps, f"final return {end}" if end else "no episode ended in the end"]

    @functools.cached_property
    def policy(self) -> Policy:
        """The trained policy: `out.policy(obs)` are actions for observations `[B, *obs_shape]`,
        `out.policy.step(obs)` is one for an environment outside JAX."""
        state = self.agent.for_acting(self.state.agent)
        stats, count = self.state.obs_stats, self.state.num_updates
        return Policy(self.agent, state, stats, self.interface, self.env_params, count)

    @functools.cached_property
    def best_policy(self) -> Policy:
        """The policy of the best evaluation (`eval_every`), with its observation statistics: the
        first where several are equal; `best_return` and `best_timesteps` are its return and when.

        Evaluations of few episodes are noisy, and the best of many is partly a lucky one: its
        return is above what the policy is worth. Measure that by fresh episodes (`evaluate`).

        Raises:
            ConfigError: the run has no evaluations, or no episode of one has ended.
        """
        best = self._best()
        traced = isinstance(best.num_updates.low, jax.core.Tracer)
        if not traced and not np.any(self.best_timesteps > 0):
            raise ConfigError("best_policy: no evaluation has an episode that ended, none is best")
        parts = best.agent, best.obs_stats, self.interface, self.env_params, best.num_updates
        return Policy(self.agent, *parts)

    @property
    def best_return(self) -> np.ndarray:
        """The return of the best evaluation, float32, with the axes of several runs: the mean over
        its episodes; NaN where there is none. It is above `best_policy`'s own: see there."""
        returns = np.asarray(self._best().episode_return)
        return np.where(np.isfinite(returns), returns, np.float32(np.nan))

    @property
    def best_timesteps(self) -> np.ndarray:
        """Environment steps at the best evaluation, int64, as `best_return`; 0 where there is
        none."""
        return np.asarray(self._best().num_updates) * self.steps_per_update

    def _best(self) -> BestPolicy:
        if self.state.best is None:
            raise ConfigError("best_policy: got a run without evaluations, expected eval_every")
        return self.state.best

    @property
    def solved_at(self) -> np.ndarray | None:
        """Environment steps at which `stop_at_return` ended the run, int64, with the axes of
        several runs; -1 where it didn't. None for a run without it."""
        return solved_at(self.state, self.steps_per_update)

    def value(self, obs: PyTree, memory: PyTree = ()) -> jax.Array:
        """Values `[B]` of observations `[B, *obs_shape]`; see `Policy.value`."""
        return self.policy.value(obs, memory)

    @property
    def num_updates(self) -> int:
        """Number of updates, fewer than planned if the run was ended before."""
        return int(np.max(np.asarray(self.state.num_updates)))

    @property
    def num_timesteps(self) -> int:
        """Number of environment steps: `total_timesteps`, rounded up to whole updates."""
        return self.num_updates * self.steps_per_update

    @property
    def timesteps(self) -> np.ndarray:
        """Environment steps after each row of `metrics`, int64: the x axis of learning curves."""
        rows = self.metrics.num_episodes.shape[-1]
        updates = np.arange(1, rows + 1, dtype=np.int64) * self.log_every
        if self.planned_updates is not None:
            updates = np.minimum(updates, self.planned_updates)
        return updates * self.steps_per_update

    @property
    def num_rows(self) -> np.ndarray:
        """Rows of `metrics` until the run was over, int64, with the axes of several runs; less than
        all if it was ended before."""
        return -(-np.asarray(self.state.num_updates) // self.log_every)

    def member(self, *index: int) -> "TrainOutput":
        """One run of several vmapped ones, by its index along each mapped axis, negative ones from
        the end.

        Raises:
            MemberError: an index is out of range. It is an `IndexError`.
            ConfigError: not as many integers as mapped axes.
        """
        axes = np.shape(self.state.num_updates.low)
        integers = all(isinstance(i, (int, np.integer)) and not isinstance(i, bool) for i in index)
        if not axes:
            raise ConfigError(f"member: got {shown(index)}, but this is the output of one run")
        if len(index) != len(axes) or not integers:
            got, noun = ", ".join(map(shown, index)), "integer" if len(axes) == 1 else "integers"
            raise ConfigError(
                f"member: got ({got}), expected {len(axes)} {noun}: the runs have the shape {axes}"
            )
        if not all(-size <= i < size for i, size in zip(index, axes, strict=True)):
            got = ", ".join(map(str, index))
            raise MemberError(f"member: got ({got}), but the runs have the shape {axes}")
        output: TrainOutput = jax.tree.map(lambda x: x[index], self)
        return output


def make_train(config: TrainConfig | Mapping[str, Plain]) -> Train:
    """A pure function that trains one agent: jit it, vmap it.

    Args:
        config: a `TrainConfig`, or a mapping for `TrainConfig.from_mapping`.

    Returns:
        `train(key, hyperparams=None, init=None) -> TrainOutput`. `key` is a typed key;
        `hyperparams` gives float fields of the run's parts by path: those of the agent by name,
        such as `{"lr": 3e-4}`, of others as `"noise.sigma"`, `"rewarder.factor"` or
        `"buffer.alpha"`, and float parameters of the environment as `"env.gravity"`; `init` is a
        `Policy` that training starts from, as of `fit`. Map over any of them by `jax.vmap`: one
        program is compiled for all.

    Raises:
        ConfigError: from here, or from `train` while it is traced: a value that can't be used.
    """
    if not isinstance(config, TrainConfig):
        config = TrainConfig.from_mapping(config)
    return train_on(config)


def make_loop_on(config: TrainConfig, hyperparams: Hyperparams, *, one_core: bool) -> Loop:
    """A run's loop, which knows whether one CPU core has the run to itself, while others work on
    other runs."""
    loop = config.make_loop(hyperparams)
    return dataclasses.replace(loop, devices=dataclasses.replace(loop.devices, one_core=one_core))


def train_on(config: TrainConfig, *, one_core: bool = False) -> Train:
    """As `make_train`, with `one_core` as in `make_loop_on`."""

    def train(
        key: jax.Array, hyperparams: Hyperparams = None, init: Policy | None = None
    ) -> TrainOutput:
        check_key(key)
        loop = make_loop_on(config, hyperparams, one_core=one_core)
        check_size(loop)
        state = loop.start(key)
        if init is not None:
            state = loop.begin(state, *learned_of(init, loop))
        state, metrics = loop.spread(loop.scan)(state)
        parts = config.parts()
        agent = with_hyperparams(parts, hyperparams).get("agent", config.agent)
        env_params = env_hyperparams(parts, hyperparams)
        return make_output(config, loop, state, metrics, agent, env_params)

    return train


def program_key(config: TrainConfig, *more: Hashable) -> Hashable:
    """All that a run's program depends on, except keys and hyperparameters: equal for equal configs
    whose environments gymnax has under one name, with the same parameters.

    Args:
        config: of the run.
        more: what tells several programs of it apart.

    Returns:
        None if a user's function or class takes part, which may read what has changed since.
    """
    agent = config.agent
    envs = {n: x for n in ("env", "eval_env") if (x := getattr(config, n)) is not None}
    sources = {name: source_of(env) for name, env in envs.items()}
    builtin = all(x is not None and is_builtin(x.name) for x in sources.values())
    if not builtin or config.action_processor is not None or config.log is not None:
        return None
    optimizer = getattr(agent, "optimizer", None)
    if callable(optimizer) and not optimizer.__module__.startswith("optax."):
        return None
    return (unchecked(config, **sources), *more) if ships(config.make_loop()) else None


def make_output(
    config: TrainConfig,
    loop: Loop,
    state: RunState,
    metrics: Metrics,
    agent: Agent,
    env_params: dict[str, jax.Array],
) -> TrainOutput:
    """A `TrainOutput` from its parts."""
    interface = Interface(loop.env.spec, config.action_processor, config.limits)
    static = loop.steps_per_update, interface, loop.log_every, loop.num_updates
    return TrainOutput(state, metrics, agent, *static, env_params)


def solved_at(state: RunState, steps_per_update: int) -> np.ndarray | None:
    """As `TrainOutput.solved_at`, of a state."""
    if state.solved is None:
        return None
    return np.where(state.solved, np.asarray(state.num_updates) * steps_per_update, -1)


def list_seeds(seeds: object) -> tuple[int, ...]:
    """Seeds, of the keys `jax.random.key(seed)`, from their number or a sequence of them.

    Raises:
        ConfigError: it is neither, or a seed occurs twice.
    """
    if isinstance(seeds, (int, np.integer)) and not isinstance(seeds, bool):
        if not 1 <= seeds <= INT32:
            raise ConfigError(
                f"seeds: got {shown(seeds)}, expected an integer >= 1, or a sequence; at most "
                f"{INT32}"
            )
        return tuple(range(seeds))
    values = list_values("seeds", seeds)
    for seed in values:
        check_seed("seeds", seed)
    if len(set(values)) < len(values):
        raise ConfigError("seeds: some are there twice")
    return tuple(values)


def check_seed(name: str, seed: Any) -> int:
    """A seed for `jax.random.key`. Raises ConfigError unless it is an integer 0 <= s < 2**32."""
    right = isinstance(seed, (int, np.integer)) and not isinstance(seed, bool)
    if not right or not 0 <= seed < 2**32:
        raise ConfigError(f"{name}: got {shown(seed)}, expected an integer 0 <= s < 2**32")
    return int(seed)


def final_return(metrics: Metrics, num_rows: np.ndarray) -> np.ndarray:
    """Final returns `[S]`, as in `SweepResult.table`, of metrics `[S, n]` with `num_rows`, `[S]`,
    rows until each run was over."""
    return final_returns(metrics.episode_return, metrics.num_episodes, num_rows)
