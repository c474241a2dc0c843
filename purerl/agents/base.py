"""The agent protocol, and what agents share."""

import functools
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from purerl.buffer import Buffer, BufferState
from purerl.envs.base import EnvSpec
from purerl.fields import ConfigError, Record, choice, integer, sizes, static
from purerl.networks import ACTIVATIONS, NETWORKS, Actor, Critic, DefaultActor, DefaultCritic

PyTree = Any
AgentState = Any


class Agent(Record):
    """An algorithm: hyperparameters and pure functions of a state; it holds no state itself.

    Floats are leaves of the pytree and may be traced and vmapped; the rest is static. To write an
    agent, subclass this, list the hyperparameters with the functions of `purerl.fields`, and
    implement `init`, `act`, `policy`, `value` and `update`. `check_agent` tells whether the loop
    can run it.

    Attributes:
        num_updates: how many updates the run will have, for schedules; the loop sets it.
    """

    update_every: ClassVar[int] = 128  # rollout length T where the user doesn't say

    num_updates: int | None = integer(default=None, at_least=1, optional=True)

    def make_buffer(self, num_envs: int, update_every: int) -> Buffer:
        """The buffer that this agent takes where the user gives none: one rollout."""
        return Buffer(maxlen=num_envs * update_every)

    def check_run(self, num_envs: int, update_every: int, buffer: Buffer) -> None:
        """Checks what can't be seen before the rollout's size is known. Raises ConfigError."""

    def init(self, key: jax.Array, spec: EnvSpec) -> AgentState:
        """A new agent's state."""
        raise NotImplementedError

    def act(
        self, state: AgentState, obs: PyTree, key: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Exploring: `[N, *obs_shape]` to actions `[N, *action_shape]` and what `update` wants back
        with the transition, `[N]` each."""
        raise NotImplementedError

    def policy(self, state: AgentState, obs: PyTree, key: jax.Array | None = None) -> jax.Array:
        """Acting: `[N, *obs_shape]` to actions, the mode, or a sample where a key is given."""
        raise NotImplementedError

    def value(self, state: AgentState, obs: PyTree) -> jax.Array:
        """`[N, *obs_shape]` to `[N]`, the value of the agent's policy."""
        raise NotImplementedError

    def update(
        self, state: AgentState, buffer: Buffer, buffer_state: BufferState, key: jax.Array
    ) -> tuple[AgentState, BufferState, dict[str, jax.Array]]:
        """Learns from the buffer; returns losses and the like as float32 scalars by name."""
        raise NotImplementedError


def module_field(*, default: None, base: type) -> Any:
    """A field for a user's network: an uninstantiated subclass of `base`, or a partial of one."""

    def check(value: Any) -> Any:
        cls = getattr(value, "func", value)
        if isinstance(value, base):
            raise ValueError("pass the class itself, uninstantiated")
        if not (isinstance(cls, type) and issubclass(cls, base)):
            raise ValueError
        return value

    expected = f"a subclass of purerl.{base.__name__} (the class, or a functools.partial of it)"
    return static(default=default, check=check, expected=expected, optional=True)


class NetworkAgent(Agent):
    """An agent with an actor and a critic, a user's own or the defaults.

    Attributes:
        actor: an uninstantiated `Actor`; None for `DefaultActor`.
        critic: an uninstantiated `Critic`; None for `DefaultCritic`.
        hidden: widths of the default networks' hidden layers.
        activation: their activation function.
        network: their kind; by default images go through a convolution, and all else doesn't.
    """

    actor: Callable[..., Actor] | None = module_field(default=None, base=Actor)
    critic: Callable[..., Critic] | None = module_field(default=None, base=Critic)
    hidden: tuple[int, ...] | None = sizes(default=None, optional=True)
    activation: str | None = choice(default=None, options=ACTIVATIONS, optional=True)
    network: str | None = choice(default=None, options=NETWORKS, optional=True)

    def check(self) -> None:
        super().check()
        sized = [n for n in ("hidden", "activation", "network") if getattr(self, n) is not None]
        if self.actor is not None and self.critic is not None and sized:
            raise ConfigError(
                f"{type(self).__name__}.{sized[0]}: is for the default networks, but both actor "
                "and critic are given"
            )

    def make_networks(self, spec: EnvSpec) -> tuple[Actor, Critic]:
        """The actor and the critic for an environment, instantiated."""
        shape: dict[str, Any] = {
            "hidden": self.hidden or (64, 64),
            "activation": self.activation or "tanh",
            "network": self.network or "auto",
        }
        actor = functools.partial(DefaultActor, **shape) if self.actor is None else self.actor
        critic = functools.partial(DefaultCritic, **shape) if self.critic is None else self.critic
        return actor(spec.action_space), critic()


def example_obs(spec: EnvSpec) -> PyTree:
    """Observations of zeros with a batch of 2, to initialise networks with.

    Two and not one, so that a network that forgets the batch axis is found out.
    """
    return jax.tree.map(
        lambda space: jnp.zeros((2, *space.shape), space.dtype),
        spec.observation_space,
        is_leaf=lambda x: hasattr(x, "shape"),
    )


def successor_values(
    value_fn: Callable[[PyTree], jax.Array],
    value: jax.Array,
    next_obs: PyTree,
    terminated: jax.Array,
    truncated: jax.Array,
) -> jax.Array:
    """V of every transition's true successor, for the price of those that aren't known already.

    Inside a path V(s_{t+1}) is the next row's value. Only where a path is cut does the successor
    have to be looked at: N of them in the last row, and those of the truncated episodes, taken N
    at a time, for as many as there are.

    Args:
        value_fn: `[N, *obs_shape]` to `[N]`, the function that gave `value`.
        value: `[T, N]`, V(s_t).
        next_obs: `[T, N, *obs_shape]`, true successors.
        terminated, truncated: `[T, N]` bool.

    Returns:
        `[T, N]`; what stands beyond a termination is of no meaning.
    """
    num_steps, num_envs = value.shape
    last = value_fn(jax.tree.map(lambda x: x[-1], next_obs))
    shifted = jnp.concatenate([value[1:], last[None]]).reshape(-1)
    # The last row is known by now; what is left are the time limits before it.
    cut = (truncated & ~terminated).at[-1].set(False).reshape(-1)
    count = jnp.sum(cut)
    index = jnp.nonzero(cut, size=cut.size, fill_value=cut.size)[0].reshape(num_steps, num_envs)
    flat_obs = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), next_obs)

    def more(carry: tuple[jax.Array, jax.Array]) -> jax.Array:
        return carry[0] * num_envs < count

    def look(carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        row, values = carry
        at = index[row]
        seen = value_fn(jax.tree.map(lambda x: x.at[at].get(mode="clip"), flat_obs))
        return row + 1, values.at[at].set(seen, mode="drop")

    _, values = jax.lax.while_loop(more, look, (jnp.int32(0), shifted))
    return values.reshape(num_steps, num_envs)


class Minibatches(NamedTuple):
    """Which transitions each gradient step sees.

    Attributes:
        blocks: `[num_epochs * num_minibatches, blocks]`, blocks of each minibatch.
        block: how many environments, neighbours in one row, a block has.
    """

    blocks: jax.Array
    block: int

    def take(self, batch: PyTree, chosen: jax.Array) -> PyTree:
        """One minibatch, `[batch_size, ...]`, of `[T, N, ...]`."""

        def pick(x: jax.Array) -> jax.Array:
            blocks = x.reshape(-1, self.block, *x.shape[2:])
            return blocks[chosen].reshape(-1, *x.shape[2:])

        return jax.tree.map(pick, batch)


def shuffle(
    key: jax.Array, num_steps: int, num_envs: int, batch_size: int, num_epochs: int
) -> Minibatches:
    """Minibatches in random order, every transition once an epoch.

    What is shuffled are not single transitions but blocks of up to 16 environments at one time
    step. Environments don't know of each other, so a block is as good a draw as its members drawn
    alone; the permutation is shorter and the gather reads whole lines.

    Args:
        key: for the permutations.
        num_steps, num_envs: T and N.
        batch_size: transitions in a minibatch; divides T N.
        num_epochs: how often all are gone through.
    """
    divides = [n for n in range(1, 17) if num_envs % n == 0 and batch_size % n == 0]
    block = max(divides)
    rows = num_steps * num_envs // block
    keys = jax.random.split(key, num_epochs)
    orders = jax.vmap(lambda key: jax.random.permutation(key, rows))(keys)
    return Minibatches(orders.reshape(-1, batch_size // block), block)
