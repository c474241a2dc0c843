"""`Policy`: a trained policy, independent of the run that it came from."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from purerl.accelerator.compiling import jit
from purerl.agents.acting import Acting, Extras, Key, Memory, mapping, seeing
from purerl.agents.base import Agent
from purerl.envs.base import EnvSpec
from purerl.envs.check import dtype_name, is_real
from purerl.envs.last_action import remembers_action, with_last_action
from purerl.envs.params import source_with
from purerl.envs.spaces import Space, is_space, short
from purerl.experience.experience import see
from purerl.experience.metrics import Count
from purerl.experience.normalize import RunningStats
from purerl.nn.views import filled, reads, without_unread
from purerl.records.errors import ConfigError, shown
from purerl.records.fields import check_key
from purerl.records.types import PyTree
from purerl.training import card
from purerl.training.run import action_map


@dataclasses.dataclass(frozen=True)
class Interface:
    """The interface between a policy and the environment that it was trained in.

    Attributes:
        spec: the environment's, with the run's frame skip and time limit.
        action_processor: from the agent's actions to the environment's; None clips to a Box's
            bounds.
        limits: the run's `max_episode_steps` and `skip_frames`, with which `limit_env` makes the
            environment that it was trained in; None where they aren't known, as of policy files of
            earlier versions.
    """

    spec: EnvSpec
    action_processor: Callable[[jax.Array], jax.Array] | None = None
    limits: tuple[int | None, int] | None = None


@struct.dataclass(eq=False)
class Policy:
    """A trained policy: a pytree, which goes through `jit` and `vmap`.

    Attributes:
        agent: the agent, with the hyperparameters that it was trained with.
        state: the part of the agent's state that `Agent.for_acting` keeps, without optimizers.
        obs_stats: running statistics for normalising observations; None if they aren't normalised.
        interface: the environment's `spec`, and the run's `action_processor`.
        env_params: parameters of the environment that were hyperparameters, by name.
        num_updates: updates so far; the policies of several runs, as from `vmap`, have axes here.
    """

    agent: Agent
    state: PyTree
    obs_stats: RunningStats | None
    interface: Interface = struct.field(pytree_node=False)
    env_params: dict[str, jax.Array] = struct.field(default_factory=dict)
    num_updates: Count = dataclasses.field(default_factory=lambda: Count.of(0))

    def __repr__(self) -> str:
        return f"Policy({', '.join([self._title, *self._facts()])})"

    def _repr_html_(self) -> str:
        return card.card(self._title, self._facts())

    @property
    def _title(self) -> str:
        return card.title(self.agent, self.interface.spec.name)

    def _facts(self) -> list[str]:
        """How many policies, what they read and give, and their size."""
        axes = np.shape(self.num_updates.low)
        size = sum(math.prod(np.shape(x)[len(axes) :]) for x in jax.tree.leaves(self.state))
        spec = self.interface.spec
        seen = f"observations {short(spec.observation_space)}"
        if self.obs_stats is not None:
            seen += ", normalized"
        return [
            *card.members(axes),
            seen,
            f"actions {short(spec.action_space)}",
            f"{size:,} parameters{' each' * bool(axes)}",
        ]

    @property
    def spec(self) -> EnvSpec:
        """The training environment's spec, with `env_params` in its source."""
        spec = self.interface.spec
        if not self.env_params:
            return spec
        return spec._replace(source=source_with(spec.source, self.env_params))

    def __call__(self, obs: PyTree, key: jax.Array | None = None) -> jax.Array:
        """The agent's actions for observations as the environment gives them.

        Args:
            obs: `[B, *obs_shape]`; of a dict, entries that aren't in `asks` may be left out.
            key: to sample from the policy; None for its mode.

        Returns:
            `[B, *action_shape]`, before clipping and `action_processor`; see `act`.

        Raises:
            ConfigError: the observations' structure or shape differs from the spec's; these are
                the policies of several runs; the policy has a memory.
        """
        acting = self._checked(sample=key is not None)
        if self.has_memory:
            raise ConfigError(
                f"policy: {type(self.agent).__name__} has a memory, and its actions depend on more "
                "than an observation: play by policy.acting(), or policy.step(obs, memory=memory)"
            )
        if key is not None:
            check_key(key)
        return acting.step(acting.init(1), obs, key)[1]

    def act(self, obs: PyTree, key: jax.Array | None = None) -> jax.Array:
        """Actions for the environment: clipped to a Box's bounds, or mapped by `action_processor`.
        Arguments as in `__call__`."""
        return self._action_map()(self(obs, key))

    def acting(self, *, sample: bool = False) -> Acting:
        """The policy as an `Acting`, with its memory: from the environment's raw observations to
        actions for the environment.

        Args:
            sample: sample from the policy; else its mode.
        """
        return mapping(self._checked(sample=sample), self._action_map())

    def memory(self, num_envs: int | None = None) -> Memory:
        """A fresh memory for N environments, `[N, ...]`, or for one, without that axis; `()` if it
        has none."""
        memory = self._agents().init(1 if num_envs is None else num_envs)
        return jax.tree.map(lambda x: x[0], memory) if num_envs is None else memory

    @functools.cached_property
    def has_memory(self) -> bool:
        """Whether actions depend on earlier observations."""
        return bool(jax.tree.leaves(jax.eval_shape(lambda: self._agents().init(1))))

    @functools.cached_property
    def asks(self) -> PyTree:
        """The observation space without the entries of dicts that the actor doesn't read (the
        critic may); these may be left out of observations."""
        acting = seeing(self._agents(), self.obs_stats)
        known = self.spec.observation_space
        if not isinstance(known, dict):
            return known

        def act(obs: PyTree) -> tuple[Memory, jax.Array]:
            return acting.step(acting.init(jax.tree.leaves(obs)[0].shape[0]), obs, None)[:2]

        return without_unread(known, reads(act, known), is_space)

    def _filled(self, obs: PyTree, num_axes: int) -> PyTree:
        """The observation, with zeros for missing entries that the actor doesn't read."""
        known = self.spec.observation_space
        if not isinstance(known, dict):
            return obs
        structure: Any = jax.tree.structure(known, is_leaf=is_space)
        if jax.tree.structure(obs) == structure:
            return obs
        batch = next((jnp.shape(x)[:num_axes] for x in jax.tree.leaves(obs)), ())
        return filled(known, self.asks, obs, batch)

    def value(self, obs: PyTree, memory: Memory = ()) -> jax.Array:
        """Values `[B]` of observations `[B, *obs_shape]`.

        Args:
            obs: as the environment gives them, with all entries.
            memory: of a policy that has one, `[B, ...]`, before these observations.

        Raises:
            NotImplementedError: the agent learns no value.
            ConfigError: as in `__call__`, but for the memory.
        """
        self.check_one()
        return self.agent.value(self.state, memory, see(self.obs_stats, self._batch(obs)))

    def step(
        self, obs: PyTree, key: jax.Array | None = None, memory: Memory | None = None
    ) -> PyTree:
        """An action for one observation, on the host: for an environment outside JAX.

            obs, _ = env.reset(seed=0)
            obs, reward, terminated, truncated, _ = env.step(policy.step(obs))

        The first call compiles.

        Args:
            obs: `[*obs_shape]`, or a pytree of such, of any float or integer type.
            key: to sample from the policy; None for its mode.
            memory: of a policy that has one, the memory that the last step returned;
                `policy.memory()` at the start of an episode.

        Returns:
            The action as from `act`: an int for a `Discrete` action space, else a numpy array
            `[*action_shape]`. With a memory, a pair of the action and the next memory.

        Raises:
            ConfigError: the observation's structure or shape differs from the spec's; these are
                the policies of several runs; the policy has a memory, and none is given.
        """
        self.check_one()
        if key is not None:
            check_key(key)
        batch = self._batch_of_one(self._filled(obs, 0))
        leaves, structure = self._taken_apart
        if memory is None:
            if self.has_memory:
                raise ConfigError(
                    f"policy.step: {type(self.agent).__name__} has a memory: action, memory = "
                    "policy.step(obs, memory=memory), from memory = policy.memory()"
                )
            return self._on_host(_compiled_act()(structure, leaves, (), batch, key)[0])
        memory = jax.tree.map(lambda x: jnp.asarray(x)[None], memory)
        action, memory = _compiled_act()(structure, leaves, memory, batch, key)
        return self._on_host(action), jax.tree.map(lambda x: x[0], memory)

    def with_last(self, obs: PyTree, action: PyTree = None, reward: float = 0.0) -> PyTree:
        """An observation for `step`, with the last action and reward if the policy was trained with
        them (`remember_action=True`); else the observation.

            obs, reward = policy.with_last(env.reset(seed=0)[0]), 0.0
            action, memory = policy.step(obs, memory=policy.memory())
            obs, reward, *_ = env.step(action)
            obs = policy.with_last(obs, action, reward)

        Args:
            obs: `[*obs_shape]`, of the environment.
            action: the last one, as from `step`; None at the start of an episode.
            reward: that followed it.
        """
        if not remembers_action(self.spec):
            return obs
        return with_last_action(self.spec, obs, action, reward)

    def _on_host(self, action: jax.Array) -> int | np.ndarray:
        """The action in `[1, *action_shape]`, as Gymnasium takes it."""
        return self.spec.action_space.on_host(np.asarray(action)[0])

    def _agents(self, *, sample: bool = False) -> Acting:
        self.check_one()
        return self.agent.policy(self.state, sample=sample)

    def _checked(self, *, sample: bool) -> Acting:
        """The agent's actions for raw observations, which are checked against the spec."""
        acting = seeing(self._agents(sample=sample), self.obs_stats)

        def step(memory: Memory, obs: PyTree, key: Key) -> tuple[Memory, jax.Array, Extras]:
            return acting.step(memory, self._batch(self._filled(obs, 1)), key)

        return acting._replace(step=step)

    def _action_map(self) -> Callable[[jax.Array], jax.Array]:
        return action_map(self.spec, self.interface.action_processor)

    def check_one(self) -> None:
        """Raises ConfigError if these are the policies of several runs."""
        axes = jnp.shape(self.num_updates.low)
        if axes:
            raise ConfigError(
                f"this is the output of {axes} runs: choose one by out.member(i), or map over them "
                "by jax.vmap(lambda out: out.policy(obs))(outs)"
            )

    @functools.cached_property
    def _taken_apart(self) -> tuple[list[jax.Array], "_Hashed"]:
        """Leaves on the device, and the structure with its hash, cached for `step`: they take
        longer than the policy itself."""
        leaves, structure = jax.tree.flatten(self)
        return [jnp.asarray(leaf) for leaf in leaves], _Hashed(structure)

    def _batch(self, obs: PyTree) -> PyTree:
        """Observations, checked to be `[B, *obs_shape]`."""
        parts, spaces, structure = self._parts(obs, "observations")
        parts = [x if hasattr(x, "dtype") else _array_of(x) for x in parts]
        sizes = {x.shape[:1] for x in parts}
        for x, space in zip(parts, spaces, strict=True):
            right = x.shape[1:] == space.shape and len(x.shape) == len(space.shape) + 1
            if right and is_real(x.dtype) and len(sizes) == 1:
                continue
            one = "; for one observation, call policy.step" if x.shape == space.shape else ""
            shape = ", ".join(["B", *map(str, space.shape)])
            words = isinstance(x, np.ndarray) and x.dtype.kind in "OUS"
            got = "no numbers" if words else f"{dtype_name(x.dtype)} of shape {x.shape}"
            raise ConfigError(
                f"obs: got {got}, expected observations of "
                f"{self.spec.name}, of shape ({shape}), B the same in all{one}"
            )
        return structure.unflatten(parts)

    def _parts(
        self, obs: PyTree, what: str
    ) -> tuple[list[PyTree], list[Space], jax.tree_util.PyTreeDef]:
        """The observation's leaves, their spaces, and the structure."""
        structure: Any
        spaces, structure = jax.tree.flatten(self.spec.observation_space, is_leaf=is_space)
        try:
            return structure.flatten_up_to(obs), spaces, structure
        except ValueError:
            expected = self.spec.observation_space
            hint = ""
            if remembers_action(self.spec):
                hint = "; see purerl.remember_action(env), and policy.with_last for single ones"
            raise ConfigError(
                f"obs: got {shown(jax.tree.structure(obs))}, expected {what} of {self.spec.name}: "
                f"{expected}{hint}"
            ) from None

    def _batch_of_one(self, obs: PyTree) -> PyTree:
        """A batch `[1, *obs_shape]` in the spec's dtypes."""
        parts, spaces, structure = self._parts(obs, "one observation")
        return structure.unflatten(
            [self._array(x, space)[None] for x, space in zip(parts, spaces, strict=True)]
        )

    def _array(self, x: object, space: Space) -> np.ndarray:
        array = _array_of(x)
        got, hint = f"{array.dtype} of shape {array.shape}", ""
        if array.dtype.kind not in "fiub":
            got = type(x).__name__
        elif array.shape == space.shape:
            return array.astype(space.dtype)
        elif array.shape == () and array.dtype.kind in "iu" and len(space.shape) == 1:
            hint = "; a category is one-hot here"
        elif array.shape[1:] == space.shape:
            hint = "; for a batch, call the policy itself, or its act"
        raise ConfigError(
            f"obs: got {got}, expected one observation of {self.spec.name}, of shape "
            f"{space.shape}{hint}"
        )


def _array_of(x: object) -> np.ndarray:
    """A numpy array; of dtype object for anything but numbers."""
    try:
        return np.asarray(x)
    except ValueError:  # nested lists of several lengths
        return np.asarray(None)


class _Hashed:
    """A pytree's structure with a cached hash."""

    def __init__(self, structure: jax.tree_util.PyTreeDef) -> None:
        self.structure, self._hash = structure, hash(structure)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        return isinstance(other, _Hashed) and self.structure == other.structure


def _act(
    structure: _Hashed, leaves: list[jax.Array], memory: Memory, obs: PyTree, key: Any
) -> tuple[jax.Array, Memory]:
    policy: Policy = structure.structure.unflatten(leaves)
    memory, action, _ = policy.acting(sample=key is not None).step(memory, obs, key)
    return action, memory


@functools.cache
def _compiled_act() -> jax.stages.Wrapped:
    """One for all policies; made late, since that starts JAX."""
    return jit(_act, static_argnums=0)
