"""Actors and critics: flax modules that a user subclasses, and the defaults.

A subclass implements `create_network` and is passed to an agent uninstantiated:

    class MyActor(purerl.Actor):
        @nn.compact
        def create_network(self, obs):            # [B, *obs_shape]
            x = nn.tanh(nn.Dense(64)(obs))
            return nn.Dense(self.action_dim)(x)

    agent = purerl.PPO(actor=MyActor)
"""

import dataclasses
import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from purerl.distributions import Categorical, Normal, TanhNormal
from purerl.envs.spaces import Box, Discrete, Space
from purerl.fields import ConfigError

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "tanh": nn.tanh,
    "relu": nn.relu,
    "elu": nn.elu,
    "gelu": nn.gelu,
    "silu": nn.silu,
}
NETWORKS = ("auto", "mlp", "cnn")
DEFAULT_DISTRIBUTION = "default"


class Actor(nn.Module):
    """Policy: from observations to a distribution over actions, or to actions.

    Attributes:
        action_space: given by the agent.
        distribution: `Categorical`, `Normal` or `TanhNormal`; None for a deterministic policy. By
            default Categorical for discrete actions and Normal for continuous ones.
        init_log_std: where the state-independent log standard deviation starts.

    What `create_network` returns is checked when the agent is initialised. For continuous actions
    it is in units of half the action's range, from its middle: 0 is the middle, -1 and 1 are the
    bounds (or the action itself where a bound is infinite).
    """

    action_space: Space
    distribution: Any = DEFAULT_DISTRIBUTION
    init_log_std: float = 0.0

    def __init_subclass__(cls, **kwargs: Any) -> None:
        # A dataclass takes `distribution = None` in a subclass for a new default only with an
        # annotation, and would silently keep the old one without.
        for field in dataclasses.fields(cast(Any, cls)):
            if field.name in vars(cls):
                cls.__annotations__.setdefault(field.name, Any)
        super().__init_subclass__(**kwargs)

    def create_network(self, obs: Any) -> Any:
        """For subclasses.

        Args:
            obs: `[B, *obs_shape]`, or a pytree of such.

        Returns:
            For Categorical `[B, n]` logits. For Normal and TanhNormal the mean `[B, action_dim]`,
            with a log standard deviation that is a parameter; or a pair of mean and log standard
            deviation, `[B, action_dim]` each. For None the action `[B, action_dim]`, which tanh
            then squashes into the bounds.
        """
        raise NotImplementedError(f"{type(self).__name__} has to implement create_network")

    @property
    def action_dim(self) -> int:
        """How many numbers `create_network` has to return for each observation."""
        if isinstance(self.action_space, Discrete):
            return self.action_space.n
        return math.prod(self.action_space.shape)

    @nn.compact
    def __call__(self, obs: Any) -> Any:
        """A distribution with batch shape `[B]`, or actions `[B, *action_shape]` where
        `distribution` is None."""
        batch = jax.tree.leaves(obs)[0].shape[0]
        out = self.create_network(obs)
        distribution = self._distribution()
        mean, log_std = out if isinstance(out, tuple) and len(out) == 2 else (out, None)
        self._check_shape("create_network", mean, batch)
        if distribution is Categorical:
            if log_std is not None:
                raise ConfigError(f"{self._name()}.create_network: got a pair, expected logits")
            return Categorical(mean)
        space = self.action_space
        assert isinstance(space, Box)
        shape = (batch, *space.shape)
        if distribution is None:
            return self._affine(jnp.tanh(mean).reshape(shape))
        if log_std is None:
            start = nn.initializers.constant(self.init_log_std)
            log_std = self.param("log_std", start, (self.action_dim,))
            log_std = jnp.broadcast_to(log_std, mean.shape)
        else:
            self._check_shape("create_network's log_std", log_std, batch)
        mean, scale = mean.reshape(shape), jnp.exp(jnp.clip(log_std, -20.0, 2.0)).reshape(shape)
        event_ndim = len(space.shape)
        if distribution is TanhNormal:
            low, high = jnp.asarray(space.low), jnp.asarray(space.high)
            return TanhNormal(mean, scale, low, high, event_ndim)
        _, half = self._center_and_half()
        return Normal(self._affine(mean), jnp.asarray(half) * scale, event_ndim)

    def _name(self) -> str:
        return type(self).__name__

    def _check_shape(self, what: str, out: Any, batch: int) -> None:
        expected = (batch, self.action_dim)
        if getattr(out, "shape", None) != expected:
            got = f"shape {out.shape}" if hasattr(out, "shape") else type(out).__name__
            raise ConfigError(
                f"{self._name()}.{what}: got {got}, expected {expected}: "
                f"[B, action_dim] for the action space {self.action_space}"
            )

    def _distribution(self) -> Any:
        discrete = isinstance(self.action_space, Discrete)
        if self.distribution == DEFAULT_DISTRIBUTION:
            return Categorical if discrete else Normal
        allowed = (Categorical,) if discrete else (Normal, TanhNormal, None)
        if self.distribution not in allowed:
            words = ", ".join("None" if d is None else d.__name__ for d in allowed)
            got = getattr(self.distribution, "__name__", self.distribution)
            raise ConfigError(
                f"{self._name()}.distribution: got {got}, expected {words} "
                f"for the action space {self.action_space}"
            )
        space = self.action_space
        if self.distribution in (TanhNormal, None) and isinstance(space, Box) and not space.bounded:
            raise ConfigError(
                f"{self._name()}.distribution: the action space {self.action_space} has infinite "
                "bounds, expected Normal"
            )
        return self.distribution

    def _center_and_half(self) -> tuple[np.ndarray, np.ndarray]:
        """Middle and half width of the action's range; 0 and 1 where it is infinite."""
        assert isinstance(self.action_space, Box)
        low, high = self.action_space.low, self.action_space.high
        huge = np.finfo(np.float32).max
        finite = (np.abs(low) < huge) & (np.abs(high) < huge)
        low, high = np.where(finite, low, -1.0), np.where(finite, high, 1.0)
        return (high + low) / 2, (high - low) / 2

    def _affine(self, x: jax.Array) -> jax.Array:
        center, half = self._center_and_half()
        return center + half * x


class Critic(nn.Module):
    """Value: of an observation, V(s), or of an observation and an action, Q(s, a).

    A subclass whose `create_network` takes `(obs)` is a V critic; one that takes `(obs, action)` is
    a Q critic.
    """

    def create_network(self, obs: Any) -> jax.Array:
        """For subclasses: from `[B, *obs_shape]` to `[B]` or `[B, 1]`."""
        raise NotImplementedError(f"{type(self).__name__} has to implement create_network")

    def __call__(self, obs: Any) -> jax.Array:
        """`[B]` values."""
        batch = jax.tree.leaves(obs)[0].shape[0]
        out = self.create_network(obs)
        if getattr(out, "shape", None) not in ((batch,), (batch, 1)):
            got = f"shape {out.shape}" if hasattr(out, "shape") else type(out).__name__
            raise ConfigError(
                f"{type(self).__name__}.create_network: got {got}, "
                f"expected {(batch,)} or {(batch, 1)}: one value an observation, [B] or [B, 1]"
            )
        return out.reshape(batch)


def takes_action(critic: Callable[..., Critic]) -> bool:
    """Whether a critic is a Q critic: whether its `create_network` takes the action too."""
    cls: Any = getattr(critic, "func", critic)  # functools.partial
    return len(inspect.signature(cls.create_network).parameters) > 2


def apply(network: nn.Module, params: Any, *inputs: Any) -> Any:
    """What a network returns for its inputs."""
    return network.apply(params, *inputs)


def _orthogonal(gain: float) -> Any:
    return nn.initializers.orthogonal(gain)


class Torso(nn.Module):
    """Features of an observation, `[B, *obs_shape]` to `[B, hidden[-1]]`.

    First, where `network` is "cnn", or "auto" and the observation is an image
    `[B, height, width, channels]`, one convolution of 16 filters, 3 x 3 (Young and Tian 2019,
    arXiv:1903.03176), with a stride that leaves at most 10 x 10 cells. Then dense layers.
    """

    hidden: Sequence[int] = (64, 64)
    activation: str = "tanh"
    network: str = "auto"

    @nn.compact
    def __call__(self, obs: Any) -> jax.Array:
        activation = ACTIVATIONS[self.activation]
        leaves = [self._flatten(leaf.astype(jnp.float32)) for leaf in jax.tree.leaves(obs)]
        x = leaves[0] if len(leaves) == 1 else jnp.concatenate(leaves, axis=-1)
        for size in self.hidden:
            x = activation(nn.Dense(size, kernel_init=_orthogonal(math.sqrt(2)))(x))
        return x

    def _flatten(self, x: jax.Array) -> jax.Array:
        if x.ndim == 4 and self.network != "mlp":
            stride = -(-max(x.shape[1:3]) // 10)
            conv = nn.Dense(16, kernel_init=_orthogonal(math.sqrt(2)))
            x = ACTIVATIONS[self.activation](conv(_patches(x, 3, stride)))
        elif self.network == "cnn":
            raise ConfigError(
                f"network: got 'cnn', but observations have shape {x.shape[1:]}, expected "
                "(height, width, channels)"
            )
        return x.reshape(x.shape[0], -1)


def _patches(x: jax.Array, size: int, stride: int) -> jax.Array:
    """`[B, H, W, C]` to `[B, H', W', size * size * C]`, the windows that a convolution sees.

    A dense layer on them is the convolution, as a matrix product. XLA's own convolution runs some
    70 times slower on the CPU inside a loop, where training always is.
    """
    height, width = ((n - size) // stride + 1 for n in x.shape[1:3])
    rows, cols = (stride * (n - 1) + 1 for n in (height, width))
    windows = [
        x[:, i : i + rows : stride, j : j + cols : stride] for i in range(size) for j in range(size)
    ]
    return jnp.concatenate(windows, axis=-1)


class DefaultActor(Actor):
    """The actor that an agent builds where none is given: a `Torso` and a dense layer."""

    hidden: Sequence[int] = (64, 64)
    activation: str = "tanh"
    network: str = "auto"

    @nn.compact
    def create_network(self, obs: Any) -> jax.Array:
        x = Torso(self.hidden, self.activation, self.network)(obs)
        return nn.Dense(self.action_dim, kernel_init=_orthogonal(0.01))(x)


class DefaultCritic(Critic):
    """The V critic that an agent builds where none is given: a `Torso` and a dense layer."""

    hidden: Sequence[int] = (64, 64)
    activation: str = "tanh"
    network: str = "auto"

    @nn.compact
    def create_network(self, obs: Any) -> jax.Array:
        x = Torso(self.hidden, self.activation, self.network)(obs)
        return nn.Dense(1, kernel_init=_orthogonal(1.0))(x)
