"""`Policy`: what training leaves to act with, apart from the run that it came from."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from purerl.agents.base import Agent
from purerl.envs.base import EnvSpec
from purerl.envs.check import dtype_name, is_real
from purerl.envs.params import source_with
from purerl.envs.spaces import Discrete, is_space
from purerl.experience.normalize import RunningStats
from purerl.records.errors import ConfigError, shown
from purerl.records.fields import check_key
from purerl.training.loop import obs_transform
from purerl.training.run import action_map

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Interface:
    """What lies between a policy and the environment that it was trained in.

    Attributes:
        spec: the environment's, with the run's frame skip and time limit.
        action_processor: from the agent's actions to the environment's; None clips to a Box's
            bounds.
    """

    spec: EnvSpec
    action_processor: Callable[[jax.Array], jax.Array] | None = None

    def __hash__(self) -> int:
        # Not that of the spec, which has none where observations are dicts.
        return hash((self.spec.name, self.spec.action_space, self.action_processor))


@struct.dataclass(eq=False)
class Policy:
    """A policy that acts: a pytree, which goes through `jit` and `vmap`.

    Attributes:
        agent: the agent, with the hyperparameters that it was trained with.
        state: of the agent's state, what acting needs: no optimizers, no target networks.
        obs_stats: by which observations are normalised; None where they aren't.
        interface: the environment's `spec`, and the run's `action_processor`.
        env_params: parameters of the environment that were hyperparameters, by name.
    """

    agent: Agent
    state: PyTree
    obs_stats: RunningStats | None
    interface: Interface = struct.field(pytree_node=False)
    env_params: dict[str, jax.Array] = struct.field(default_factory=dict)

    @property
    def spec(self) -> EnvSpec:
        """The spec of the environment that it was trained in; its source has the parameters."""
        spec = self.interface.spec
        if not self.env_params:
            return spec
        return spec._replace(source=source_with(spec.source, self.env_params))

    def __call__(self, obs: PyTree, key: jax.Array | None = None) -> jax.Array:
        """The agent's own actions for observations as the environment gives them.

        Args:
            obs: `[B, *obs_shape]`.
            key: to sample from the policy; None for its mode.

        Returns:
            `[B, *action_shape]`, not clipped: `act` has them as the environment takes them.

        Raises:
            ConfigError: the observations' structure or shape is another than in training; it is the
                policy of several runs.
        """
        self.check_one()
        if key is not None:
            check_key(key)
        return self.agent.policy(self.state, self._seen(obs), key)

    def act(self, obs: PyTree, key: jax.Array | None = None) -> jax.Array:
        """Actions as training hands them to the environment: continuous ones inside their bounds,
        or what `action_processor` makes of them. Arguments as in `__call__`."""
        return action_map(self.spec, self.interface.action_processor)(self(obs, key))

    def value(self, obs: PyTree) -> jax.Array:
        """Values `[B]` of observations `[B, *obs_shape]`, where the agent learns one."""
        self.check_one()
        return self.agent.value(self.state, self._seen(obs))

    def step(self, obs: PyTree, key: jax.Array | None = None) -> Any:
        """One action for one observation, on the host: for an environment outside of JAX.

            obs, _ = env.reset(seed=0)
            obs, reward, terminated, truncated, _ = env.step(policy.step(obs))

        Compiled at its first call.

        Args:
            obs: `[*obs_shape]`, or a pytree of such, of any float or integer type.
            key: to sample from the policy; None for its mode.

        Returns:
            As `act` has it: an int for a `Discrete` action space, else a numpy array
            `[*action_shape]`.

        Raises:
            ConfigError: the observation's structure or shape is another than in training; it is the
                policy of several runs.
        """
        self.check_one()
        if key is not None:
            check_key(key)
        batch = self._batch_of_one(obs)
        leaves, structure = self._taken_apart
        action = np.asarray(_act(structure, leaves, batch, key))[0]
        if isinstance(self.spec.action_space, Discrete) and action.ndim == 0:
            return action.item()
        return action

    def check_one(self) -> None:
        """Raises ConfigError where it is the policy of several runs."""
        axes = jnp.shape(self.agent.timesteps)  # a leaf that every agent has, without axes
        if axes:
            raise ConfigError(
                f"this is the output of {axes} runs: choose one by out.member(i), or map over them "
                "by jax.vmap(lambda out: out.policy(obs))(outs)"
            )

    @functools.cached_property
    def _taken_apart(self) -> tuple[list[jax.Array], Any]:
        """Leaves on the device, and the structure with its hash: what `step` needs anew each time,
        and which takes longer than the policy itself."""
        leaves, structure = jax.tree.flatten(self)
        return [jnp.asarray(leaf) for leaf in leaves], _Hashed(structure)

    def _seen(self, obs: PyTree) -> PyTree:
        return obs_transform(self.obs_stats)(self._batch(obs))

    def _batch(self, obs: PyTree) -> PyTree:
        """`[B, *obs_shape]` as it is, once it is found to be that."""
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

    def _parts(self, obs: PyTree, what: str) -> tuple[list[Any], list[Any], Any]:
        """What is given for each space, the spaces, and their structure."""
        structure: Any
        spaces, structure = jax.tree.flatten(self.spec.observation_space, is_leaf=is_space)
        try:
            return structure.flatten_up_to(obs), spaces, structure
        except ValueError:
            expected = self.spec.observation_space
            raise ConfigError(
                f"obs: got {shown(jax.tree.structure(obs))}, expected {what} of {self.spec.name}: "
                f"{expected}"
            ) from None

    def _batch_of_one(self, obs: PyTree) -> PyTree:
        """`[1, *obs_shape]`, in the spec's dtypes."""
        parts, spaces, structure = self._parts(obs, "one observation")
        return structure.unflatten(
            [self._array(x, space)[None] for x, space in zip(parts, spaces, strict=True)]
        )

    def _array(self, x: Any, space: Any) -> np.ndarray:
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


def _array_of(x: Any) -> np.ndarray:
    """An array of numpy's; of objects where it isn't one of numbers."""
    try:
        return np.asarray(x)
    except ValueError:  # nested lists of several lengths
        return np.asarray(None)


class _Hashed:
    """A pytree's structure with its hash computed once."""

    def __init__(self, structure: Any) -> None:
        self.structure, self._hash = structure, hash(structure)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        return isinstance(other, _Hashed) and self.structure == other.structure


@functools.partial(jax.jit, static_argnums=0)
def _act(structure: _Hashed, leaves: list[jax.Array], obs: PyTree, key: Any) -> jax.Array:
    return structure.structure.unflatten(leaves).act(obs, key)
