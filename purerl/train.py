"""`make_train`: from a config to a pure function that trains."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from purerl.agents import Agent
from purerl.config import TrainConfig, with_hyperparams
from purerl.fields import ConfigError
from purerl.loop import RunState
from purerl.metrics import Metrics
from purerl.policy import Interface, Policy

PyTree = Any
Train = Callable[..., "TrainOutput"]


@struct.dataclass
class TrainOutput:
    """What training leaves: a pytree, so it comes out of `jit` and `vmap` whole.

    Attributes:
        state: the run's final `RunState`; over devices buffer, environments and rewarder have a
            leading axis `[D]`, the rest is as of one.
        metrics: `Metrics`, each `[num_updates]`.
        agent: the agent, with the hyperparameters that it was trained with.
        steps_per_update: environment steps in each update.
        interface: what lies between the policy and the environment.
    """

    state: RunState
    metrics: Metrics
    agent: Agent
    steps_per_update: int = struct.field(pytree_node=False)
    interface: Interface = struct.field(pytree_node=False)

    @functools.cached_property
    def policy(self) -> Policy:
        """What was learned, apart from the run: `out.policy(obs)` are actions for observations
        `[B, *obs_shape]`, `out.policy.step(obs)` is one for an environment outside of JAX."""
        state = self.agent.for_acting(self.state.agent)
        return Policy(self.agent, state, self.state.obs_stats, self.interface)

    def value(self, obs: PyTree) -> jax.Array:
        """Values `[B]` of observations `[B, *obs_shape]`."""
        return self.policy.value(obs)

    @property
    def num_updates(self) -> int:
        """How many updates were run (fewer than planned where `max_episodes` ended the run)."""
        return int(np.max(np.asarray(self.state.num_updates)))

    @property
    def num_timesteps(self) -> int:
        """How many environment steps were run: `total_timesteps`, rounded up to whole updates."""
        return self.num_updates * self.steps_per_update

    @property
    def timesteps(self) -> np.ndarray:
        """int64, environment steps after each row of `metrics`: the curve's x axis."""
        rows = self.metrics.num_episodes.shape[-1]
        return np.arange(1, rows + 1, dtype=np.int64) * self.steps_per_update

    def member(self, *index: int) -> "TrainOutput":
        """One member of a vmapped run, by its index along each mapped axis."""
        return jax.tree.map(lambda x: x[index], self)


def make_train(config: TrainConfig | Mapping[str, Any]) -> Train:
    """A pure function that trains one agent: jit it, vmap it.

    Args:
        config: a `TrainConfig`, or a mapping for `TrainConfig.from_mapping`.

    Returns:
        `train(key, hyperparams=None) -> TrainOutput`. `key` is a typed key (`jax.random.key`);
        `hyperparams` gives float fields of the agent by name, such as `{"lr": 3e-4}`. Map over
        either or both by `jax.vmap`: one program is compiled for all.

    Raises:
        ConfigError: from here, or from `train` while it is traced, for a value that can't be used.
    """
    if not isinstance(config, TrainConfig):
        config = TrainConfig.from_mapping(config)

    def train(key: jax.Array, hyperparams: Mapping[str, Any] | None = None) -> TrainOutput:
        check_key(key)
        loop = config.make_loop(hyperparams)
        indices = jnp.arange(loop.num_updates, dtype=jnp.int32)
        scan = loop.spread(lambda state: jax.lax.scan(loop.step, state, indices))
        state, metrics = scan(loop.start(key))
        agent = with_hyperparams(config.agent, hyperparams or {})
        interface = Interface(loop.env.spec, config.action_processor)
        return TrainOutput(state, metrics, agent, loop.steps_per_update, interface)

    return train


def check_key(key: Any) -> None:
    """Raises ConfigError unless it is one typed key."""
    if not (hasattr(key, "dtype") and jax.dtypes.issubdtype(key.dtype, jax.dtypes.prng_key)):
        got = f"{key.dtype} {key.shape}" if hasattr(key, "dtype") else repr(key)
        raise ConfigError(f"key: got {got}, expected a typed key: jax.random.key(seed)")
    if key.shape:
        raise ConfigError(
            f"key: got {key.shape[0]} keys, expected one; for many agents, jax.vmap(train)(keys)"
        )


def list_seeds(seeds: Any) -> tuple[int, ...]:
    """Seeds, each the key `jax.random.key(seed)`, from their number or from a sequence of them.

    Raises:
        ConfigError: it is neither, or one is there twice.
    """
    if isinstance(seeds, (int, np.integer)) and not isinstance(seeds, bool):
        if seeds < 1:
            raise ConfigError(f"seeds: got {seeds}, expected an integer >= 1, or a sequence")
        return tuple(range(seeds))
    values = list_values("seeds", seeds)
    for seed in values:
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
            raise ConfigError(f"seeds: got {seed!r} among them, expected integers 0 <= s < 2**32")
    if len(set(values)) < len(values):
        raise ConfigError("seeds: some are there twice")
    return tuple(values)


def list_values(what: str, values: Any) -> list[Any]:
    """The values as Python's own; raises ConfigError unless there are some."""
    if isinstance(values, (np.ndarray, jax.Array)):
        if values.ndim != 1:
            raise ConfigError(f"{what}: got an array of shape {values.shape}, expected [values]")
        values = np.asarray(values).tolist()
    if not isinstance(values, (Sequence, range)) or isinstance(values, (str, bytes)):
        raise ConfigError(f"{what}: got {values!r}, expected a sequence of values")
    if not values:
        raise ConfigError(f"{what}: got no values, expected at least one")
    return [x.item() if isinstance(x, np.generic) else x for x in values]
