"""Actors and critics: flax modules that a user subclasses.

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
from collections.abc import Callable, Mapping
from typing import Any, cast

import flax.errors
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from purerl.envs.spaces import Box, Discrete, Space
from purerl.nn.distributions import Categorical, Normal, TanhNormal
from purerl.records.fields import ConfigError

DEFAULT_DISTRIBUTION = "default"


class Actor(nn.Module):
    """Policy: from observations to a distribution over actions, or to actions.

    Attributes:
        action_space: given by the agent.
        distribution: `Categorical`, `Normal` or `TanhNormal`; None for a deterministic policy. By
            default Categorical for discrete actions and Normal for continuous ones.
        init_log_std: where the state-independent log standard deviation starts.

    What `create_network` returns is checked when the agent is initialised, and taken as float32.
    For continuous actions it is in units of half the action's range, from its middle: 0 is the
    middle, -1 and 1 are the bounds (or the action itself where a bound is infinite).

    Of flax's collections only "params" is trained.
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
        return _action_dim(self.action_space)

    @nn.compact
    def __call__(self, obs: Any) -> Any:
        """A distribution with batch shape `[B]`, or actions `[B, *action_shape]` where
        `distribution` is None."""
        batch = jax.tree.leaves(obs)[0].shape[0]
        out = self.create_network(obs)
        distribution = self._distribution()
        mean, log_std = out if isinstance(out, tuple) and len(out) == 2 else (out, None)
        self._check_shape("create_network", mean, batch)
        mean = jnp.asarray(mean, jnp.float32)  # whatever precision the network computes in
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
            log_std = self.param("log_std", start, (self.action_dim,), jnp.float32)
            log_std = jnp.broadcast_to(log_std, mean.shape)
        else:
            self._check_shape("create_network's log_std", log_std, batch)
            log_std = jnp.asarray(log_std, jnp.float32)
        mean, log_std, space = _drawn_alike(mean, log_std, space)
        mean, scale = mean.reshape(shape), jnp.exp(jnp.clip(log_std, -20.0, 2.0)).reshape(shape)
        event_ndim = len(space.shape)
        if distribution is TanhNormal:
            low, high = jnp.asarray(space.low)[None], jnp.asarray(space.high)[None]
            return TanhNormal(mean, scale, low, high, event_ndim)
        return Normal(self._affine(mean), jnp.asarray(space.half_range)[None] * scale, event_ndim)

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
        _check_floats(f"{self._name()}.{what}", out)

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

    def _affine(self, x: jax.Array) -> jax.Array:
        assert isinstance(self.action_space, Box)
        space = self.action_space
        return space.center[None] + space.half_range[None] * x


class Critic(nn.Module):
    """Value: of an observation, V(s), or of an observation and an action, Q(s, a).

    Which one follows from the subclass's `create_network`: one that takes `(obs)` and returns a
    number for each observation is a V critic; one that takes `(obs, action)` is a Q critic; for
    discrete actions, so is one that takes `(obs)` and returns a number for each action.

    Attributes:
        action_space: given by the agent.
    """

    action_space: Space | None = None

    def create_network(self, *args: Any, **kwargs: Any) -> Any:
        """For subclasses: `create_network(self, obs)` or `create_network(self, obs, action)`.

        `obs` is `[B, *obs_shape]`, or a pytree of such. `action` is `[B, action_dim]`: one-hot
        where actions are discrete; else in units of half the action's range, from its middle, so
        that -1 and 1 are the bounds.

        Returns:
            `[B]` or `[B, 1]`; or `[B, n]` from `(obs)`, the values of the n discrete actions.
        """
        raise NotImplementedError(f"{type(self).__name__} has to implement create_network")

    @property
    def action_dim(self) -> int:
        """How many numbers an action has; of a discrete one, how many actions there are."""
        assert self.action_space is not None
        return _action_dim(self.action_space)

    def __call__(self, obs: Any, action: jax.Array | None = None) -> jax.Array:
        """`[B]` values; `[B, n]` from a critic that gives those of all actions.

        Args:
            obs: `[B, *obs_shape]`.
            action: `[B, *action_shape]`, for a critic that takes it.
        """
        batch = jax.tree.leaves(obs)[0].shape[0]
        takes = takes_action(type(self))
        out = self.create_network(obs, self._encode(action)) if takes else self.create_network(obs)
        space = self.action_space
        several = not takes and isinstance(space, Discrete) and space.n > 1
        _check_floats(f"{type(self).__name__}.create_network", out)
        if several and getattr(out, "shape", None) == (batch, self.action_dim):
            return jnp.asarray(out, jnp.float32)
        if getattr(out, "shape", None) not in ((batch,), (batch, 1)):
            got = f"shape {out.shape}" if hasattr(out, "shape") else type(out).__name__
            raise ConfigError(
                f"{type(self).__name__}.create_network: got {got}, "
                f"expected {(batch,)} or {(batch, 1)}: one value an observation, [B] or [B, 1]"
            )
        return jnp.asarray(out, jnp.float32).reshape(batch)

    def _encode(self, action: jax.Array | None) -> jax.Array:
        if action is None:
            raise ConfigError(f"{type(self).__name__}: is a Q critic, and was given no action")
        if isinstance(self.action_space, Discrete):
            return jax.nn.one_hot(action, self.action_space.n, dtype=jnp.float32)
        space = self.action_space
        assert space is not None
        center, divisor = space.center[None], _divisor(space.half_range)[None]
        scaled = (action.astype(jnp.float32) - center) / divisor
        return scaled.reshape(action.shape[0], -1)


def takes_action(critic: Callable[..., Critic]) -> bool:
    """Whether a critic takes the action: whether its `create_network` does."""
    cls: Any = getattr(critic, "func", critic)  # functools.partial
    parameters = inspect.signature(cls.create_network).parameters.values()
    return sum(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters) > 2


def init_network(network: nn.Module, key: jax.Array, *inputs: Any) -> Any:
    """A network's variables for inputs like these: "params", which are trained, and whatever other
    collections of flax it has, which stay as they are initialised."""
    return {"params": {}, **network.init(key, *inputs)}


def init_critic(critic: Critic, key: jax.Array, obs: Any) -> Any:
    """Variables, as of `init_network`, for observations like these, `[B, *obs_shape]`."""
    if not takes_action(type(critic)):
        return init_network(critic, key, obs)
    space, batch = critic.action_space, jax.tree.leaves(obs)[0].shape[0]
    assert space is not None
    return init_network(critic, key, obs, jnp.zeros((batch, *space.shape), space.dtype))


def trained(params: Any) -> tuple[Any, Callable[[Any], Any]]:
    """What is trained of networks' variables: floats, and of flax's collections only "params".

    Args:
        params: variables of a network, or a pytree of such, or of arrays.

    Returns:
        The trained part, and a function that puts another in its place and gives the whole. Where
        all is trained, the part is `params`.
    """

    def is_variables(x: Any) -> bool:
        return isinstance(x, Mapping) and "params" in x

    def mark(x: Any) -> Any:
        if not is_variables(x):
            return jnp.issubdtype(x.dtype, jnp.inexact)
        rest = {name: jax.tree.map(lambda _: False, part) for name, part in x.items()}
        return {**rest, "params": jax.tree.map(mark, x["params"])}

    marks = jax.tree.leaves(jax.tree.map(mark, params, is_leaf=is_variables))
    if all(marks):
        return params, lambda part: part
    leaves, structure = jax.tree.flatten(params)

    def join(part: list[jax.Array]) -> Any:
        rest = iter(part)
        new = [next(rest) if learns else x for x, learns in zip(leaves, marks, strict=True)]
        return jax.tree.unflatten(structure, new)

    return [x for x, learns in zip(leaves, marks, strict=True) if learns], join


def is_q_critic(critic: Critic, obs: Any) -> bool:
    """Whether it is a Q critic: takes the action, or returns the values of all of them."""
    if takes_action(type(critic)):
        return True
    out, _ = jax.eval_shape(critic.init_with_output, jax.random.key(0), obs)
    return len(out.shape) == 2


def q_value(critic: Critic, params: Any, obs: Any, action: jax.Array) -> jax.Array:
    """`[B]`, Q(s, a) of a Q critic, for `[B, *obs_shape]` and `[B, *action_shape]`."""
    if takes_action(type(critic)):
        return apply(critic, params, obs, action)
    return pick(apply(critic, params, obs), action)


def pick(values: jax.Array, action: jax.Array) -> jax.Array:
    """`[B]`, of values `[B, n]` those of the actions `[B]`.

    A one-hot choice, not a gather: its gradient is a choice too, and not a scatter. What isn't
    chosen may be infinite.
    """
    chosen = jax.nn.one_hot(action, values.shape[-1], dtype=bool)
    return jnp.sum(jnp.where(chosen, values, 0.0), axis=-1)


def q_values(critic: Critic, params: Any, obs: Any) -> jax.Array:
    """`[B, n]`, Q(s, a) of a Q critic for each of n discrete actions."""
    batch, n = jax.tree.leaves(obs)[0].shape[0], critic.action_dim
    if not takes_action(type(critic)):
        return apply(critic, params, obs).reshape(batch, n)

    def of(action: jax.Array) -> jax.Array:
        return apply(critic, params, obs, jnp.broadcast_to(action, batch))

    return jax.vmap(of, out_axes=1)(jnp.arange(n, dtype=jnp.int32))


def apply(network: nn.Module, params: Any, *inputs: Any) -> Any:
    """What a network returns for its inputs.

    Raises:
        ConfigError: it changes variables of its own while it is applied, or draws random numbers.
    """
    try:
        return network.apply(params, *inputs)
    except flax.errors.ModifyScopeVariableError as error:
        raise ConfigError(
            f"{type(network).__name__}: {_first_sentence(error)} Expected variables that stay as "
            "they are initialised (nn.BatchNorm with use_running_average=True, nn.SpectralNorm "
            "with update_stats=False), or a layer without any, such as nn.LayerNorm"
        ) from None
    except flax.errors.InvalidRngError as error:
        raise ConfigError(
            f"{type(network).__name__}: {_first_sentence(error)} Expected a network that draws no "
            "random numbers (nn.Dropout with deterministic=True)"
        ) from None


def _first_sentence(error: Exception) -> str:
    return str(error).split(" (https:")[0].rstrip(".") + "."


def _drawn_alike(mean: jax.Array, log_std: jax.Array, space: Box) -> tuple[Any, Any, Box]:
    """Of an action's numbers those without a range, whose bounds are equal: always drawn from the
    same distribution, from bounds 1 to each side, and clipped to what they have to be on the way to
    the environment. Log probabilities stay finite, and nothing is learned from them.

    Args:
        mean, log_std: `[B, action_dim]`.
        space: of the actions.

    Returns:
        The same, with 0 for the mean and the log standard deviation of these numbers.
    """
    fixed = space.half_range == 0.0
    if not fixed.any():
        return mean, log_std, space
    mean, log_std = (jnp.where(fixed.reshape(1, -1), 0.0, x) for x in (mean, log_std))
    room = np.maximum(fixed, fixed * 4 * np.spacing(np.abs(space.low)))  # 1, or what is beyond it
    low, high = space.low - room, space.high + room
    return mean, log_std, Box(low, high, space.shape, space.dtype)


def _divisor(half_range: np.ndarray) -> np.ndarray:
    """By which actions are scaled for a critic: those without a range are 0."""
    return np.where(half_range > 0.0, np.maximum(half_range, 1e-8), np.inf).astype(np.float32)


def _check_floats(what: str, out: Any) -> None:
    """Raises ConfigError for numbers through which no gradient comes, or complex ones."""
    if hasattr(out, "dtype") and not jnp.issubdtype(out.dtype, jnp.floating):
        raise ConfigError(f"{what}: got {out.dtype}, expected floats")


def _action_dim(space: Space) -> int:
    return space.n if isinstance(space, Discrete) else math.prod(space.shape)
