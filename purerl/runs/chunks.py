"""`Program`: a run compiled as chunks of any number of updates, driven from the host."""

import copy
import math
import operator
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from purerl.accelerator import devices
from purerl.accelerator.compiling import jit
from purerl.accelerator.machine import check_memory
from purerl.accelerator.members import Layout, Parts, compile_all
from purerl.envs.base import Env, host_of
from purerl.envs.registry import with_params
from purerl.envs.spaces import is_space
from purerl.experience.metrics import Count, Metrics
from purerl.records.errors import ConfigError, shown
from purerl.records.fields import unchecked
from purerl.records.files import counted
from purerl.records.types import PyTree
from purerl.training.config import TrainConfig
from purerl.training.hyperparams import (
    Hyperparams,
    check_hyperparams,
    env_hyperparams,
    with_hyperparams,
)
from purerl.training.learned import Learned
from purerl.training.loop import OWN, Loop, RunState
from purerl.training.policy import Interface, Policy
from purerl.training.train import TrainOutput, list_seeds, make_loop_on, make_output, program_key

CHUNK_BYTES = 2**24  # of metrics in a chunk, at most


class Program:
    """A run's compiled functions, of one agent or `[S]` of them, with keys and hyperparameters.

    The members are laid out over the cores or devices of the process: the state is in the parts of
    `layout`. They start from learned parameters, where there are any.
    """

    def __init__(
        self,
        config: TrainConfig,
        keys: jax.Array,
        values: dict[str, np.ndarray],
        learned: Learned | None = None,
    ) -> None:
        self.config, self.keys, self.learned = config, keys, learned
        self.values = _float32(values)
        self.loop = config.make_loop()
        devices.check_devices(self.loop.devices.count)
        members = keys.size if keys.ndim else None
        if self.loop.on_host and (members or 1) > 1:
            on_host = self.loop.env if host_of(self.loop.env) else self.loop.eval_env
            raise ConfigError(
                f"seeds: got {members}, expected one: {on_host.spec.name} is simulated on "
                "the host, where purerl.sweep trains one after the other"
            )
        self.layout = Layout.of(members, self.loop.devices.count, mapped=not self.loop.on_host)
        check_size(self.loop, self.layout.on_a_device)
        over = self.layout.over
        state = jax.eval_shape(over(self._init, (0, 0)), keys, self.values)
        # Of members over several devices no one of them has to hold all.
        device = devices.host_device() if self.layout.on_devices else None
        self.state_like = devices.place(state, self.loop.devices.count, OWN, keys.ndim, device)
        row = over(self._row, (0, 0, None))
        metrics = jax.eval_shape(row, self.state_like, self.values, _count(0))[1]
        self.metrics_like = metrics
        size = sum(x.dtype.itemsize * x.size for x in jax.tree.leaves(metrics))
        self.capacity = min(self.loop.num_rows, max(1, CHUNK_BYTES // size))
        self.memory = 0  # bytes of a chunk on each device, once it is compiled

    def compile(self, *, begun: bool = False) -> None:
        """Compiles the chunks, and the first state unless the run has begun, and checks the memory
        that they take."""
        # One program for chunks of any length: the number of rows is an argument.
        like = self.state_like, self.values, _count(0), np.int32(0)
        axes, key = (0, 0, None, None), program_key(self.config, "chunk", self.capacity)
        programs = [self.layout.lower(self._chunk, axes, like, donate=0, key=key)]
        if not begun:
            first = (self.keys, self.values, *self._beginning)
            key, zeros = program_key(self.config, "init", len(first)), (0,) * len(first)
            programs.append(self.layout.lower(self._init, zeros, first, key=key))
        self._run, *self._start = compile_all(programs)
        what = f"num_envs={self.loop.num_envs:,}: {counted(self.keys.size, 'agent')}"
        self.memory = self._run.memory
        check_memory(self.memory, what)
        self._values = self.layout.split(self.values)

    def set_values(self, values: dict[str, np.ndarray]) -> None:
        """Sets the hyperparameters of the chunks to come, of the same names and shapes; nothing is
        compiled again."""
        self.values = _float32(values)
        self._values = self.layout.split(self.values)

    def for_members(self, keys: jax.Array, values: dict[str, np.ndarray]) -> "Program":
        """The same compiled program for other members, as many as it was made for."""
        other = copy.copy(self)
        other.keys = keys
        other.set_values(values)
        return other

    def start(self) -> Parts:
        """The first state."""
        (start,) = self._start
        beginning = map(self.layout.split, self._beginning)
        return start(self.layout.split(self.keys), self._values, *beginning)

    @property
    def _beginning(self) -> tuple[Learned, ...]:
        return () if self.learned is None else (self.learned,)

    def begin_again(self, state: Parts) -> Parts:
        """A saved state, with environments of the host reset; others as they were."""
        if host_of(self.loop.env) is None:
            return state
        warnings.warn(
            f"the simulators of {self.loop.env.spec.name} are on the host, and not in a "
            "checkpoint: they begin new episodes, and the rest isn't what it would have been "
            "uninterrupted",
            stacklevel=6,
        )
        call = self.layout.over(self.loop.begin_again, (0,))
        return [jit(call)(part) for part in state]

    def run(self, state: Parts, start: int, stop: int) -> tuple[Parts, Metrics]:
        """The state after the updates from `start` up to `stop`, and their metrics on the host;
        both have to be multiples of `log_every`, or the run's end."""
        rows = self.rows(stop - start)
        done = self._run(state, self._values, _count(start), np.int32(rows))
        table = self.layout.join([metrics for _, metrics in done])
        metrics = jax.tree.map(lambda x: np.asarray(x)[..., :rows].copy(), table)
        return [state for state, _ in done], metrics

    def run_all(self, state: Parts, start: int, stop: int) -> tuple[Parts, list[Metrics]]:
        """As `run`, in as many chunks as it takes; the metrics of each."""
        pieces, most = [], self.capacity * self.loop.log_every
        for update in range(start, stop, most):
            state, metrics = self.run(state, update, min(update + most, stop))
            pieces.append(metrics)
        return state, pieces

    def counts(self, state: Parts) -> RunState:
        """The part of the state that says how far all members are; None in place of the rest."""
        kept = {"num_updates", "num_episodes", "nonfinite_updates", "solved"}
        rest: dict[str, PyTree] = {name: None for name in RunState._fields if name not in kept}
        counts: RunState = self.layout.join([part._replace(**rest) for part in state])
        return jax.tree.map(np.asarray, counts)

    def end(self, counts: RunState) -> int | None:
        """The update, rounded up to a row of metrics, after which all members' runs are over before
        the planned end, by `stop_at_return` and the like; None if one isn't."""
        running = self.loop.running(counts)
        if running is None or np.any(running):
            return None
        last = self.rows(int(np.max(counts.num_updates))) * self.loop.log_every
        return min(last, self.loop.num_updates)

    def kept(self, state: Parts) -> PyTree:
        """The state of all members, which isn't overwritten by the next chunk: that takes the
        memory of its argument by donation."""
        # On other backends it is copied to the host before saving returns.
        copied = self.layout.num_parts > 1 or jax.default_backend() != "cpu"
        whole = self.layout.join(state)
        return whole if copied else jax.tree.map(jnp.copy, whole)

    def member(self, state: Parts, index: int) -> tuple[Policy, Env]:
        """The policy of one member, by its index, in memory of its own, and the environment that
        it is evaluated in."""
        agent = self.config.agent
        parts = [(agent.for_acting(x.agent), x.obs_stats, x.num_updates) for x in state]
        values = self.values
        if self.keys.ndim:
            pick = operator.itemgetter(index)
            learned, values = jax.tree.map(pick, (self.layout.join(parts), values))
        else:
            learned = jax.tree.map(jnp.copy, parts[0])
        known = self.config.parts()
        agent = with_hyperparams(known, values).get("agent", agent)
        own = self.config
        interface = Interface(self.loop.env.spec, own.action_processor, own.limits)
        acting, stats, count = learned
        policy = Policy(agent, acting, stats, interface, env_hyperparams(known, values), count)
        return policy, self.config.make_loop(values).eval_env

    def rows(self, num_updates: int) -> int:
        """Rows of metrics in a number of updates."""
        return -(-num_updates // self.loop.log_every)

    def output(self, state: PyTree, metrics: Metrics) -> TrainOutput:
        """The output, as of `make_train`."""
        shape = self.keys.shape
        agent = jax.tree.map(lambda x: jnp.broadcast_to(x, shape), self.config.agent)
        agent = unchecked(agent, **{n: x for n, x in self.values.items() if "." not in n})
        env_params = env_hyperparams(self.config.parts(), self.values)
        return make_output(self.config, self.loop, state, metrics, agent, env_params)

    def _loop(self, values: dict[str, jax.Array]) -> Loop:
        return make_loop_on(self.config, values, one_core=self.layout.on_cores)

    def _init(
        self, key: jax.Array, values: dict[str, jax.Array], learned: Learned | None = None
    ) -> PyTree:
        loop = self._loop(values)
        state = loop.start(key)
        return state if learned is None else loop.begin(state, *learned)

    def _row(self, state: PyTree, values: dict[str, jax.Array], start: Count) -> PyTree:
        loop = self._loop(values)

        def row(state: PyTree, start: Count) -> PyTree:
            state, _, metrics = loop.row(state, start)
            return state, metrics

        return loop.spread(row, 1)(state, start)

    def _chunk(
        self, state: PyTree, values: dict[str, jax.Array], start: Count, num_rows: ArrayLike
    ) -> PyTree:
        loop = self._loop(values)

        def rows(state: PyTree, start: Count, num_rows: jax.Array) -> PyTree:
            agents = self.keys.ndim
            table = jax.tree.map(
                lambda x: jnp.zeros((self.capacity, *x.shape[agents:]), x.dtype), self.metrics_like
            )

            def body(at: jax.Array, carry: tuple) -> tuple:
                (state, index), table = carry
                state, index, metrics = loop.row(state, index)
                return (state, index), jax.tree.map(lambda x, y: x.at[at].set(y), table, metrics)

            (state, _), table = jax.lax.fori_loop(0, num_rows, body, ((state, start), table))
            return state, table

        return loop.spread(rows, 2)(state, start, jnp.asarray(num_rows))


def join_metrics(pieces: Sequence[Metrics]) -> Metrics:
    """Consecutive pieces of metrics, `[..., n]` each, as one."""
    return jax.tree.map(lambda *xs: np.concatenate(xs, axis=-1), *pieces)


def _float32(values: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
    return {name: jnp.asarray(x, jnp.float32) for name, x in values.items()}


def _count(number: int) -> Count:
    """A `Count` of numpy arrays, which every one of several processes can pass."""
    return Count(*(np.asarray(x, np.int32) for x in divmod(number, 2**30)))  # type: ignore[arg-type]


def check_size(loop: Loop, num_agents: int) -> None:
    """Checks, before tracing, that the observations of rollout and buffer fit into memory.

    Args:
        loop: the run.
        num_agents: number of agents trained at once on a device.

    Raises:
        ConfigError: they don't.
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
    """A key for each seed, `[S]`, and the seeds; for None one key, that of seed 0, and None."""
    if seeds is None:
        return jax.random.key(0), None
    listed = list_seeds(seeds)
    return jax.vmap(jax.random.key)(np.array(listed, np.uint32)), list(listed)


def hyperparam_arrays(
    config: TrainConfig, values: Hyperparams, count: int | None
) -> dict[str, np.ndarray]:
    """Hyperparameters as arrays, `[S]` or `[]`, by path, with every value checked."""
    arrays, parts = {}, config.parts()
    for path, value in check_hyperparams(parts, values).items():
        name = str(path)
        try:
            array = np.asarray(value)
        except ValueError:  # nested lists of several lengths
            array = np.asarray(None)
        if array.dtype.kind not in "fiu" and array.dtype != jnp.bfloat16:
            with_hyperparams(parts, {name: value})  # raises the field's error
            raise ConfigError(f"hyperparams: {name} is {shown(value)}, expected floats")
        with np.errstate(over="ignore"):  # infinite values raise below
            array = array.astype(np.float32)
        if array.shape not in {(), () if count is None else (count,)}:
            expected = (
                "a scalar" if count is None else f"a scalar, or one for each of {count} seeds"
            )
            raise ConfigError(f"hyperparams: {name} has shape {array.shape}, expected {expected}")
        for x in np.unique(array):
            with_hyperparams(parts, {name: float(x)})
        arrays[name] = array if count is None else np.broadcast_to(array, (count,))
    return arrays


def with_shared(config: TrainConfig, values: Mapping[str, np.ndarray]) -> TrainConfig:
    """The config of the same run with the hyperparameters that all seeds have in common as its
    fields, for files and descriptions.

    Args:
        config: of the run.
        values: as of `hyperparam_arrays`.
    """
    plain = {name: plain_hyperparam(x) for name, x in values.items()}
    shared: dict[str, Any] = {n: x for n, x in plain.items() if not isinstance(x, list)}
    parts = config.parts()
    changed = with_hyperparams(parts, shared)
    of_env = {p.field: x for p, x in check_hyperparams(parts, shared).items() if p.part == "env"}
    if of_env:  # made again, so that its source has them
        changed["env"] = with_params(parts["env"], of_env)
    if "rewarder" in changed:  # it may be the one of `normalize_reward`
        changed["normalize_reward"] = False
    return unchecked(config, **changed)


def plain_hyperparam(values: np.ndarray) -> float | list[float]:
    """A hyperparameter `[S]` or `[]` float32, in the digits that people write, 0.1 for
    0.10000000149: one number if all seeds share it, else a list."""
    numbers = [float(str(x)) for x in values.flat]
    return numbers if len(set(numbers)) > 1 else numbers[0]
