"""Actors and critics: base classes of a user's flax modules.

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
from collections.abc import Callable, Mapping
from typing import Any, cast

import flax.errors
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from purerl.envs.spaces import Box, Space, where_legal
from purerl.nn.distributions import (
    Categorical,
    Distribution,
    MultiCategorical,
    Normal,
    TanhNormal,
)
from purerl.nn.views import View
from purerl.records.errors import ConfigError
from purerl.records.types import PyTree

DEFAULT_DISTRIBUTION = "default"


class Actor(nn.Module):
    """A policy: observations to a distribution over actions, or to actions.

    Attributes:
        action_space: set by the agent.
        distribution: `Categorical`, `MultiCategorical`, `Normal` or `TanhNormal`; None for a
            deterministic policy. The default depends on the action space: Categorical for Discrete,
            MultiCategorical for MultiDiscrete, Normal for continuous actions.
        init_log_std: initial value of a state-independent log standard deviation.
        view: the part of the observation that the network sees, and the legal actions; set by the
            agent.

    The output of `create_network` is checked when the agent is initialised, and converted to
    float32. For continuous actions it is scaled: -1 and 1 are the bounds, 0 the middle (unscaled if
    a bound is infinite).

    Only flax's collection "params" is trained.
    """

    action_space: Space
    distribution: type[Distribution] | str | None = DEFAULT_DISTRIBUTION
    init_log_std: float = 0.0
    view: View = View()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        # A dataclass ignores `distribution = None` in a subclass without an annotation, and keeps
        # the base's default.
        for field in dataclasses.fields(cast(Any, cls)):
            if field.name in vars(cls):
                cls.__annotations__.setdefault(field.name, Any)
        super().__init_subclass__(**kwargs)

    def create_network(self, obs: PyTree) -> PyTree:
        """The network, for subclasses to implement.

        Args:
            obs: `[B, *obs_shape]`, or a pytree of such; `self.view.features(obs)` gives its leaves
                as for the default networks, with codes one-hot and without the mask.

        Returns:
            For Categorical and MultiCategorical `[B, action_dim]` logits. For Normal and TanhNormal
            the mean `[B, action_dim]`, and the log standard deviation is a parameter; or a pair of
            mean and log standard deviation, `[B, action_dim]` each. For None the action
            `[B, action_dim]`, before tanh, which bounds it.
        """
        raise NotImplementedError(f"{type(self).__name__} has to implement create_network")

    @property
    def action_dim(self) -> int:
        """The number of outputs of `create_network` for each observation; for discrete actions, one
        for each choice."""
        return self.action_space.num_outputs

    def initial_memory(self, batch: int) -> PyTree:
        """The memory at the start of an episode, a pytree of arrays `[batch, ...]`; for subclasses
        with a memory to implement.

        Their `create_network(self, obs, memory)` returns a pair: the output, and the memory after
        the step. A rollout is a scan of such steps. One with a parameter `fresh`, None for a single
        step, processes the T steps of N environments at once:

        - `fresh` is `[T, N]` bool, whether an episode begins at the step,
        - observations, actions and outputs are `[T N, ...]`, in order of time,
        - `memory` is `[N, ...]`, before the first step, and the memory that is returned is
          `[T, N, ...]`, after each step.
        """
        raise NotImplementedError(f"{type(self).__name__} has to implement initial_memory")

    @nn.compact
    def __call__(
        self, obs: PyTree, memory: PyTree = None, fresh: jax.Array | None = None
    ) -> PyTree:
        """A distribution with batch shape `[B]`, or actions `[B, *action_shape]` if `distribution`
        is None; with a memory, a pair of that and the memory after the step, or with `fresh` after
        each (see `initial_memory`)."""
        out, after = _create(self, obs, memory, fresh)
        return _beside(self._policy(out, obs), after)

    def _policy(self, out: PyTree, obs: PyTree) -> PyTree:
        """The distribution from the output of `create_network` at observations `[B, ...]`."""
        if type(self).create_distribution is Actor.create_distribution:
            batch = _batch_size(obs)
            for x in out if _is_pair(out) else (out,):
                name = "create_network" if x is out or x is out[0] else "create_network's log_std"
                self._check_shape(name, x, batch)
        return self.create_distribution(out, self.view.mask(obs))

    def create_distribution(self, out: PyTree, legal: jax.Array | None) -> PyTree:
        """The distribution set by `distribution`; a subclass may override it to return another.

        Args:
            out: the output of `create_network`.
            legal: `[B, action_dim]` bool, the mask of legal discrete actions; None if all are.
                Illegal ones must have probability 0 (`purerl.where_legal` sets logits of -inf).

        Returns:
            A `purerl.nn.distributions.Distribution` with batch shape `[B]`; for a deterministic
            policy actions `[B, *action_shape]`.
        """
        distribution, space = self._distribution(), self.action_space
        mean, log_std = out if _is_pair(out) else (out, None)
        mean = jnp.asarray(mean, jnp.float32)  # from any precision of the network
        if space.sizes is not None:
            if log_std is not None:
                raise ConfigError(f"{self._name()}.create_network: got a pair, expected logits")
            logits = where_legal(mean, legal, space.sizes)
            if distribution is Categorical:
                return Categorical(logits)
            return MultiCategorical(logits, space.sizes, space.shape)
        shape = (mean.shape[0], *space.shape)
        if distribution is None:
            return self._affine(jnp.tanh(mean).reshape(shape))
        if log_std is None:
            start = nn.initializers.constant(self.init_log_std)
            log_std = self.param("log_std", start, (self.action_dim,), jnp.float32)
            log_std = jnp.broadcast_to(log_std, mean.shape)
        log_std = jnp.asarray(log_std, jnp.float32)
        mean, log_std, space = _drawn_alike(mean, log_std, cast(Box, space))
        mean, scale = mean.reshape(shape), jnp.exp(jnp.clip(log_std, -20.0, 2.0)).reshape(shape)
        event_ndim = len(space.shape)
        if distribution is TanhNormal:
            low, high = jnp.asarray(space.low)[None], jnp.asarray(space.high)[None]
            return TanhNormal(mean, scale, low, high, event_ndim)
        return Normal(self._affine(mean), jnp.asarray(space.half_range)[None] * scale, event_ndim)

    def _name(self) -> str:
        return type(self).__name__

    def _check_shape(self, what: str, out: PyTree, batch: int) -> None:
        expected = (batch, self.action_dim)
        if getattr(out, "shape", None) != expected:
            raise ConfigError(
                f"{self._name()}.{what}: got {_shown(out)}, expected {expected}: "
                f"[B, action_dim] for the action space {self.action_space}"
            )
        _check_floats(f"{self._name()}.{what}", out)

    def _distribution(self) -> type[Distribution] | str | None:
        space = self.action_space
        allowed: tuple[type[Distribution] | None, ...] = (Normal, TanhNormal, None)
        if space.sizes is not None:
            allowed = (MultiCategorical if space.n is None else Categorical,)
        if self.distribution == DEFAULT_DISTRIBUTION:
            return allowed[0]
        if self.distribution not in allowed:
            words = ", ".join("None" if d is None else d.__name__ for d in allowed)
            got = getattr(self.distribution, "__name__", self.distribution)
            raise ConfigError(
                f"{self._name()}.distribution: got {got}, expected {words} for the action space "
                f"{space}; for any other one, override create_distribution"
            )
        if self.distribution in (TanhNormal, None) and not cast(Box, space).bounded:
            got = "None" if self.distribution is None else "TanhNormal"
            raise ConfigError(
                f"{self._name()}.distribution: got {got}, whose actions lie between bounds; the "
                f"action space {space} has infinite bounds: expected finite ones, or Normal where "
                "the agent takes it"
            )
        return self.distribution

    def _affine(self, x: jax.Array) -> jax.Array:
        space = cast(Box, self.action_space)
        scaled: jax.Array = space.center[None] + space.half_range[None] * x
        return scaled


class ActorCriticNetwork(Actor):
    """One network for the policy and V(s), with shared layers.

    It is passed to an agent as its actor, and the agent then has no separate critic:

        class MyNetwork(purerl.ActorCriticNetwork):
            @nn.compact
            def create_network(self, obs):
                x = nn.tanh(nn.Dense(64)(obs))
                return nn.Dense(self.action_dim)(x), nn.Dense(1)(x)

        agent = purerl.PPO(actor=MyNetwork)

    `create_network` returns a pair: the output of an `Actor`'s, and the value, `[B]` or `[B, 1]`.
    """

    @nn.compact
    def policy_and_value(
        self, obs: PyTree, memory: PyTree = None, fresh: jax.Array | None = None
    ) -> PyTree:
        """A pair of the distribution and V(s), `[B]` float32; with a memory, a pair of that pair
        and the memory, as from `__call__`."""
        out, after = _create(self, obs, memory, fresh)
        if not _is_pair(out):
            raise ConfigError(
                f"{self._name()}.create_network: got {_shown(out)}, expected a pair: what an Actor "
                "returns, and the value, [B] or [B, 1]"
            )
        value = _one_each(f"{self._name()}.create_network", out[1], _batch_size(obs))
        return _beside((self._policy(out[0], obs), value), after)

    def __call__(
        self, obs: PyTree, memory: PyTree = None, fresh: jax.Array | None = None
    ) -> PyTree:
        out = self.policy_and_value(obs, memory, fresh)
        return out[0] if memory is None else (out[0][0], out[1])


class Critic(nn.Module):
    """A value function: V(s) of an observation, or Q(s, a) of an observation and an action.

    A subclass whose `create_network` has a parameter `action` is a Q critic; so is, for Discrete
    actions, one that returns a number for each action. Every other one is a V critic, and returns a
    number for each observation.

    Attributes:
        action_space: set by the agent.
        view: the part of the observation that the network sees, and the legal actions; set by the
            agent.
    """

    action_space: Space | None = None
    view: View = View()

    def create_network(self, *args: Any, **kwargs: Any) -> Any:
        """The network, for subclasses to implement, as `create_network(self, obs)` or
        `create_network(self, obs, action)`.

        `obs` is `[B, *obs_shape]`, or a pytree of such. `action` is `[B, action_dim]`: one-hot and
        concatenated for discrete actions, else scaled so that -1 and 1 are the bounds. Other
        parameters need defaults.

        Returns:
            `[B]` or `[B, 1]`; or, without `action`, `[B, n]`, the values of n discrete actions.
        """
        raise NotImplementedError(f"{type(self).__name__} has to implement create_network")

    @property
    def action_dim(self) -> int:
        """The width of an encoded action; for discrete actions, the number of choices."""
        assert self.action_space is not None
        return self.action_space.num_outputs

    def initial_memory(self, batch: int) -> PyTree:
        """The memory at the start of an episode, as that of an `Actor`."""
        raise NotImplementedError(f"{type(self).__name__} has to implement initial_memory")

    def __call__(
        self,
        obs: PyTree,
        action: jax.Array | None = None,
        memory: PyTree = None,
        fresh: jax.Array | None = None,
    ) -> PyTree:
        """Values `[B]`, or `[B, n]` from a critic with the values of n actions as outputs; with a
        memory, a pair of that and the memory, as from an `Actor`.

        Args:
            obs: `[B, *obs_shape]`.
            action: `[B, *action_shape]`, for a critic that takes it.
            memory, fresh: for a critic with a memory.
        """
        batch, name = _batch_size(obs), f"{type(self).__name__}.create_network"
        space = self.action_space
        if takes_action(type(self)):
            if action is None:
                raise ConfigError(f"{type(self).__name__}: is a Q critic, and was given no action")
            assert space is not None
            out, after = _create(self, obs, memory, fresh, action=space.encode(action))
            return _beside(_one_each(name, out, batch), after)
        out, after = _create(self, obs, memory, fresh)
        several = space is not None and (space.n or 0) > 1
        if several and getattr(out, "shape", None) == (batch, self.action_dim):
            _check_floats(name, out)
            return _beside(jnp.asarray(out, jnp.float32), after)
        return _beside(_one_each(name, out, batch), after)


def takes_action(critic: Callable[..., Critic]) -> bool:
    """Whether a critic takes the action, a parameter `action` of its `create_network`."""
    return "action" in _parameters(critic)


def takes_memory(network: Callable[..., nn.Module]) -> bool:
    """Whether a network has a memory, a parameter `memory` of its `create_network`."""
    return "memory" in _parameters(network)


def takes_sequences(network: Callable[..., nn.Module]) -> bool:
    """Whether a network with a memory processes T steps at once, by a parameter `fresh` of its
    `create_network`."""
    return "fresh" in _parameters(network)


def check_parameters(network: Callable[..., nn.Module]) -> None:
    """Checks the parameters of a network's `create_network`.

    Raises:
        ConfigError: an unknown parameter without a default.
    """
    cls: Any = getattr(network, "func", network)
    is_critic, parameters = issubclass(cls, Critic), list(_parameters(network).values())
    wrong = [p.name for p in parameters[1:] if p.default is p.empty and p.kind in _NAMED]
    wrong = [x for x in wrong if x != "memory" and not (is_critic and x == "action")]
    if not parameters or (is_critic and parameters[0].name == "action") or wrong:
        names = ", ".join(("self", *_parameters(network)))
        q = ", or create_network(self, obs, action) for Q(s, a)" if is_critic else ""
        raise ConfigError(
            f"{cls.__name__}.create_network: got the parameters ({names}), expected "
            f"create_network(self, obs){q}; others need defaults"
        )


_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def _parameters(network: Callable[..., nn.Module]) -> dict[str, inspect.Parameter]:
    """The parameters of `create_network` after self."""
    cls: Any = getattr(network, "func", network)  # functools.partial
    return dict(list(inspect.signature(cls.create_network).parameters.items())[1:])


def init_network(network: nn.Module, key: jax.Array, *inputs: PyTree) -> PyTree:
    """A network's initial variables for example inputs, observations first: "params", which are
    trained, and flax's other collections, which keep their initial values."""
    return {"params": {}, **network.init(key, *inputs, **_start(network, inputs[0]))}


def _start(network: nn.Module, obs: PyTree) -> dict[str, PyTree]:
    """The memory that a network begins with, if it has one, as a keyword."""
    if not takes_memory(type(network)):
        return {}
    return {"memory": cast(Any, network).initial_memory(_batch_size(obs))}


def init_critic(critic: Critic, key: jax.Array, obs: PyTree) -> PyTree:
    """A critic's initial variables (see `init_network`) for observations `[B, *obs_shape]`."""
    if not takes_action(type(critic)):
        return init_network(critic, key, obs)
    space, batch = critic.action_space, _batch_size(obs)
    assert space is not None
    return init_network(critic, key, obs, space.example(batch))


def trained(params: PyTree) -> tuple[PyTree, Callable[[PyTree], PyTree]]:
    """The trained part of networks' variables: floats, of flax's collections only "params".

    Args:
        params: variables of a network, or a pytree of such, or of arrays.

    Returns:
        The trained part, and a function from a new trained part to the whole. If everything is
        trained, the part is `params`.
    """

    def is_variables(x: object) -> bool:
        return isinstance(x, Mapping) and "params" in x

    def mark(x: PyTree) -> PyTree:
        if not is_variables(x):
            return jnp.issubdtype(x.dtype, jnp.inexact)
        rest = {name: jax.tree.map(lambda _: False, part) for name, part in x.items()}
        return {**rest, "params": jax.tree.map(mark, x["params"])}

    marks = jax.tree.leaves(jax.tree.map(mark, params, is_leaf=is_variables))
    if all(marks):
        return params, lambda part: part
    leaves, structure = jax.tree.flatten(params)

    def join(part: list[jax.Array]) -> PyTree:
        rest = iter(part)
        new = [next(rest) if learns else x for x, learns in zip(leaves, marks, strict=True)]
        return jax.tree.unflatten(structure, new)

    return [x for x, learns in zip(leaves, marks, strict=True) if learns], join


def is_q_critic(critic: Critic, obs: PyTree) -> bool:
    """Whether it is a Q critic, which takes the action or returns the values of all actions."""
    if takes_action(type(critic)):
        return True
    start = _start(critic, obs)
    out, _ = jax.eval_shape(critic.init_with_output, jax.random.key(0), obs, **start)
    return len((out[0] if start else out).shape) == 2


def q_value(critic: Critic, params: PyTree, obs: PyTree, action: jax.Array) -> jax.Array:
    """Q(s, a) of a Q critic, `[B]`, for obs `[B, *obs_shape]` and action `[B, *action_shape]`."""
    if takes_action(type(critic)):
        value: jax.Array = apply(critic, params, obs, action)
        return value
    return pick(apply(critic, params, obs), action)


def pick(values: jax.Array, action: jax.Array) -> jax.Array:
    """The values `[B]` of actions `[B]`, from the values `[B, n]` of all.

    A one-hot selection instead of a gather, so that its gradient isn't a scatter. Values that
    aren't picked may be infinite.
    """
    chosen = jax.nn.one_hot(action, values.shape[-1], dtype=bool)
    return jnp.sum(jnp.where(chosen, values, 0.0), axis=-1)


def q_values(critic: Critic, params: PyTree, obs: PyTree) -> jax.Array:
    """Q(s, a) of a Q critic for each of n discrete actions, `[B, n]`; minus infinity for actions
    that are illegal at the observation."""
    batch, n = _batch_size(obs), critic.action_dim
    if not takes_action(type(critic)):
        values = apply(critic, params, obs).reshape(batch, n)
    else:

        def of(action: jax.Array) -> PyTree:
            return apply(critic, params, obs, jnp.broadcast_to(action, batch))

        values = jax.vmap(of, out_axes=1)(jnp.arange(n, dtype=jnp.int32))
    return where_legal(values, critic.view.mask(obs))


def uniform_action(network: Actor | Critic, obs: PyTree, uniform: jax.Array) -> jax.Array:
    """A uniform choice of the legal discrete actions at each observation, `[B]` int32.

    Args:
        network: has the action space, and the view with the legal actions.
        obs: `[B, *obs_shape]`.
        uniform: `[B]`, uniform random numbers in [0, 1).
    """
    n, legal = network.action_dim, network.view.mask(obs)
    if legal is None:
        return jnp.minimum((uniform * n).astype(jnp.int32), n - 1)  # if the product is rounded up
    legal = legal | ~jnp.any(legal, axis=-1, keepdims=True)
    count = jnp.cumsum(legal.astype(jnp.int32), axis=-1)
    drawn = jnp.minimum((uniform * count[:, -1]).astype(jnp.int32), count[:, -1] - 1)
    return jnp.argmax(count > drawn[:, None], axis=-1).astype(jnp.int32)


def apply(
    network: nn.Module,
    params: PyTree,
    *inputs: PyTree,
    method: str | None = None,
    **options: PyTree,
) -> PyTree:
    """The output of a network, or of another method of it.

    Raises:
        ConfigError: applying it changes its variables, or draws random numbers.
    """
    try:
        return network.apply(params, *inputs, method=method, **options)
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


def _drawn_alike(
    mean: jax.Array, log_std: jax.Array, space: Box
) -> tuple[jax.Array, jax.Array, Box]:
    """Replaces the distribution of action entries with equal bounds by a fixed one, with bounds 1
    to each side; they are clipped on the way to the environment. Log probabilities stay finite, and
    nothing is learned from these entries.

    Args:
        mean, log_std: `[B, action_dim]`.
        space: of the actions.

    Returns:
        Mean and log standard deviation, 0 for these entries, and the space with wider bounds.
    """
    fixed = space.half_range == 0.0
    if not fixed.any():
        return mean, log_std, space
    mean, log_std = (jnp.where(fixed.reshape(1, -1), 0.0, x) for x in (mean, log_std))
    # 1 to each side, or more where float32 has a coarser spacing.
    room = np.maximum(fixed, fixed * 4 * np.spacing(np.abs(space.low)))
    low, high = space.low - room, space.high + room
    return mean, log_std, Box(low, high, space.shape, space.dtype)


def _batch_size(obs: PyTree) -> int:
    size: int = jax.tree.leaves(obs)[0].shape[0]
    return size


def _create(
    network: Actor | Critic,
    obs: PyTree,
    memory: PyTree,
    fresh: jax.Array | None = None,
    **inputs: PyTree,
) -> tuple[PyTree, PyTree]:
    """The output of a network's `create_network` for the part that it sees, and the memory after
    the step, or each; None for a network without."""
    name, seen = type(network).__name__, network.view.seen(obs)
    if takes_memory(type(network)) != (memory is not None):
        what = "no memory, and was given one" if memory is not None else "a memory, and got none"
        raise ConfigError(f"{name}: has {what}")
    if memory is None:
        return network.create_network(seen, **inputs), None
    if fresh is not None:
        inputs["fresh"] = fresh
    out: PyTree = cast(Any, network).create_network(seen, memory=memory, **inputs)
    if not _is_pair(out):
        raise ConfigError(
            f"{name}.create_network: got {_shown(out)}, expected a pair: the output, and the memory"
        )
    times = () if fresh is None else fresh.shape[:1]
    before = jax.tree.map(lambda x: ((*times, *x.shape), str(x.dtype)), memory)
    after = jax.tree.map(lambda x: (x.shape, str(x.dtype)), out[1])
    if before != after:
        raise ConfigError(
            f"{name}.create_network: got the memory {after}, expected what it was, {before}"
        )
    return out[0], out[1]


def _beside(out: PyTree, memory: PyTree) -> PyTree:
    return out if memory is None else (out, memory)


def _is_pair(out: PyTree) -> bool:
    return isinstance(out, tuple) and len(out) == 2


def _shown(out: PyTree) -> str:
    return f"shape {out.shape}" if hasattr(out, "shape") else type(out).__name__


def _one_each(what: str, out: PyTree, batch: int) -> jax.Array:
    """Values `[B]` float32 from an output. Raises ConfigError unless it is `[B]` or `[B, 1]`."""
    if getattr(out, "shape", None) not in ((batch,), (batch, 1)):
        raise ConfigError(
            f"{what}: got {_shown(out)}, expected {(batch,)} or {(batch, 1)}: one value an "
            "observation, [B] or [B, 1]"
        )
    _check_floats(what, out)
    return jnp.asarray(out, jnp.float32).reshape(batch)


def _check_floats(what: str, out: PyTree) -> None:
    """Raises ConfigError unless the dtype is a real float."""
    if hasattr(out, "dtype") and not jnp.issubdtype(out.dtype, jnp.floating):
        raise ConfigError(f"{what}: got {out.dtype}, expected floats")
