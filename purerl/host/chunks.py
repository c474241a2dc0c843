"""A run as a program for the host: one that makes any number of updates at a time."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from purerl import devices
from purerl.config import TrainConfig, with_hyperparams
from purerl.envs.spaces import is_space
from purerl.errors import ConfigError
from purerl.host.files import counted
from purerl.loop import Loop
from purerl.machine import check_memory
from purerl.metrics import Metrics
from purerl.policy import Interface
from purerl.slices import program_memory
from purerl.state import OWN
from purerl.train import TrainOutput, list_seeds

PyTree = Any
CHUNK_BYTES = 2**24  # of metrics, at most, between two looks from the host


class Program:
    """A run's functions, over one agent or `[S]` of them, and what they are called with."""

    jit = staticmethod(jax.jit)

    def __init__(self, config: TrainConfig, keys: jax.Array, values: dict[str, np.ndarray]) -> None:
        self.config, self.keys = config, keys
        self.values = {name: jnp.asarray(x, jnp.float32) for name, x in values.items()}
        self.loop = config.make_loop()
        self.mapped = keys.ndim > 0
        check_size(self.loop, keys.size)
        state = jax.eval_shape(self._over(self._init, (0, 0)), keys, self.values)
        self.state_like = devices.place(state, self.loop.num_devices, OWN, keys.ndim)
        arguments = (self.state_like, self.values, 0, 0)
        metrics = jax.eval_shape(self._over(self._step, (0, 0, None)), *arguments[:3])[1]
        self.metrics_like = metrics
        size = sum(x.dtype.itemsize * x.size for x in jax.tree.leaves(metrics))
        self.capacity = min(self.loop.num_updates, max(1, CHUNK_BYTES // size))

    def compile(self) -> None:
        """Compiles everything."""
        init = self.jit(self._over(self._init, (0, 0)))
        self.init = init.lower(self.keys, self.values).compile()
        # One program for chunks of any length: the number of updates is an argument.
        chunk = self.jit(self._over(self._chunk, (0, 0, None, None)), donate_argnums=0)
        self._run = chunk.lower(self.state_like, self.values, 0, 0).compile()
        what = f"num_envs={self.loop.num_envs:,}: {counted(self.keys.size, 'agent')}"
        check_memory(program_memory(self._run), what)

    def run(self, state: PyTree, start: int, stop: int) -> tuple[PyTree, Metrics]:
        """The state after the updates from `start` up to `stop`, and their metrics on the host."""
        state, rows = self._run(state, self.values, start, stop)
        return state, jax.tree.map(lambda x: np.asarray(x)[..., : stop - start].copy(), rows)

    def output(self, state: PyTree, metrics: Metrics) -> TrainOutput:
        """What `make_train` would have given."""
        shape = self.keys.shape
        agent = jax.tree.map(lambda x: jnp.broadcast_to(x, shape), self.config.agent)
        agent = agent.tell(**self.values)
        interface = Interface(self.loop.env.spec, self.config.action_processor)
        return TrainOutput(state, metrics, agent, self.loop.steps_per_update, interface)

    def _over(self, function: Callable, axes: tuple) -> Callable:
        return jax.vmap(function, axes) if self.mapped else function

    def _init(self, key: jax.Array, values: dict[str, jax.Array]) -> PyTree:
        return self.config.make_loop(values).start(key)

    def _step(self, state: PyTree, values: dict[str, jax.Array], index: Any) -> PyTree:
        loop = self.config.make_loop(values)
        return loop.spread(loop.step, 1)(state, jnp.asarray(index))

    def _chunk(self, state: PyTree, values: dict[str, jax.Array], start: Any, stop: Any) -> PyTree:
        loop = self.config.make_loop(values)

        def updates(state: PyTree, start: jax.Array, stop: jax.Array) -> PyTree:
            like = jax.eval_shape(loop.step, state, start)[1]
            rows = jax.tree.map(lambda x: jnp.zeros((self.capacity, *x.shape), x.dtype), like)

            def body(index: jax.Array, carry: tuple) -> tuple:
                state, metrics = loop.step(carry[0], index)
                at = index - start
                return state, jax.tree.map(lambda row, x: row.at[at].set(x), carry[1], metrics)

            return jax.lax.fori_loop(start, stop, body, (state, rows))

        return loop.spread(updates, 2)(state, jnp.asarray(start), jnp.asarray(stop))


def check_size(loop: Loop, num_agents: int) -> None:
    """Refuses, before anything is traced, what is kept of every step where that can't fit.

    Args:
        loop: the run.
        num_agents: how many of it are trained at once.

    Raises:
        ConfigError: observations alone take more memory than there is.
    """
    spaces = jax.tree.leaves(loop.env.spec.observation_space, is_leaf=is_space)
    size = sum(math.prod(space.shape) * space.dtype.itemsize for space in spaces)
    rollout = f"num_envs={loop.num_envs:,} x update_every={loop.update_every:,}"
    sizes = {rollout: loop.num_envs * loop.update_every}
    if loop.buffer.maxlen is not None:
        sizes[f"Buffer.maxlen={loop.buffer.maxlen:,}"] = loop.buffer.maxlen
    for name, steps in sizes.items():
        check_memory(num_agents * steps * size, f"{name} of {counted(num_agents, 'agent')}")


def seed_keys(seeds: int | Sequence[int] | None) -> tuple[jax.Array, list[int] | None]:
    """A key for each seed, `[S]`, and the seeds; one key where no seeds are given."""
    if seeds is None:
        return jax.random.key(0), None
    listed = list_seeds(seeds)
    return jax.vmap(jax.random.key)(np.array(listed, np.uint32)), list(listed)


def hyperparam_arrays(
    config: TrainConfig, values: Mapping[str, Any], count: int | None
) -> dict[str, np.ndarray]:
    """Each as an array, `[S]` or `[]`, checked value by value."""
    arrays = {}
    for name, value in values.items():
        array = np.asarray(value, np.float32)
        if array.shape not in {(), () if count is None else (count,)}:
            expected = (
                "a scalar" if count is None else f"a scalar, or one for each of {count} seeds"
            )
            raise ConfigError(f"hyperparams: {name} has shape {array.shape}, expected {expected}")
        for x in np.unique(array):
            with_hyperparams(config.agent, {name: float(x)})
        arrays[name] = array if count is None else np.broadcast_to(array, (count,))
    return arrays
