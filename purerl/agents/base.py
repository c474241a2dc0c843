"""The agent protocol, and the fields and checks that agents share."""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, Self, TypedDict

import jax
import jax.numpy as jnp
import optax

from purerl.agents.acting import Acting, Memory
from purerl.agents.gradients import OPTIMIZERS, AgentState, Losses, Number, make_optimizer
from purerl.agents.noise import Noise
from purerl.envs.base import EnvSpec
from purerl.experience.buffer import Buffer
from purerl.experience.experience import Clock, Experience
from purerl.nn.cells import CELLS
from purerl.nn.defaults import (
    ACTIVATIONS,
    AFTER,
    NETWORKS,
    RECURRENT,
    DefaultActor,
    DefaultActorCritic,
)
from purerl.nn.networks import (
    Actor,
    ActorCriticNetwork,
    Critic,
    check_parameters,
    is_q_critic,
    takes_memory,
)
from purerl.nn.views import Sees, View
from purerl.records.errors import ConfigError
from purerl.records.fields import Record, choice, integer, named, sizes, static, unchecked
from purerl.records.files import by_path
from purerl.records.types import PyTree


class RunFacts(TypedDict):
    """Options of a run for `Agent.check_run`."""

    noise: Noise | None
    wait_end_path: bool
    reset_each_episode: bool


class RunDefaults(NamedTuple):
    """Defaults of an agent for the arguments of `run`, which documents them.

    With `random_start`, actions are drawn uniformly from the action space until `update_after`.
    """

    num_envs: int = 8
    update_every: int = 128
    update_after: int = 0
    wait_end_path: bool = False
    noise: Noise | None = None
    random_start: bool = False


class Agent(Record):
    """An algorithm: hyperparameters, and pure functions of a state that is passed to them.

    Floats are leaves of the pytree and may be traced and vmapped; the rest is static. To write an
    agent, subclass this, declare the hyperparameters with the functions of `purerl.fields`, and
    implement `init`, `acting`, `policy`, `update`, and `value` if it learns one. `check_agent`
    checks that it keeps its contract.

    A size that is a total over all devices, such as that of a batch, is `integer(..., total=True)`.
    """

    @property
    def run_defaults(self) -> RunDefaults:
        """Defaults for the arguments of `run`."""
        return RunDefaults()

    @property
    def schedules(self) -> tuple[str, ...]:
        """Names of the fields that schedule something over the run's length: with any of them a
        finished run can't be extended, since a longer run is another one from the start."""
        return ("anneal",) if getattr(self, "anneal", False) else ()

    def in_force(self, num_envs: int, update_every: int) -> Self:
        """The agent with what it takes in place of None, where that is a default: another version
        may take something else. The run is the same.

        Args:
            num_envs, update_every: N and T, of the run.
        """
        return self

    def make_buffer(self, num_envs: int, update_every: int) -> Buffer:
        """The default buffer: one rollout."""
        return Buffer(maxlen=num_envs * update_every)

    def check_run(
        self, num_envs: int, update_every: int, buffer: Buffer, options: RunFacts
    ) -> None:
        """Checks the agent against the run's sizes and options. Raises ConfigError.

        Args:
            num_envs, update_every: N and T.
            buffer: the run's.
            options: `noise`, None for the agent's default, `wait_end_path` and
                `reset_each_episode`.
        """

    def init(self, key: jax.Array, spec: EnvSpec) -> AgentState:
        """The initial state."""
        raise NotImplementedError

    def acting(self, state: AgentState, clock: Clock) -> Acting:
        """The exploring policy, with the extras that `update` reads."""
        raise NotImplementedError

    def policy(self, state: AgentState, *, sample: bool = False) -> Acting:
        """The policy as it is evaluated and deployed: its mode, or samples; extras are ignored."""
        raise NotImplementedError

    def for_acting(self, state: AgentState) -> AgentState:
        """The part of the state that `policy` and `value` read; None in place of the rest, such as
        optimizers."""
        return state

    def start_from(self, state: AgentState, learned: AgentState) -> AgentState:
        """An initial state with parameters that were learned before, for a run with `init`: its
        optimizers and counts are new, and target networks are copies.

        Unless an agent says otherwise, all that `for_acting` keeps is taken, and the rest is as in
        the initial state.

        Args:
            state: from `init`.
            learned: the part of another state, of the same shapes, that `for_acting` keeps.
        """
        fresh, kept = by_path(state), by_path(learned)
        leaves = [kept.get(name, x) for name, x in fresh.items()]
        return jax.tree.unflatten(jax.tree.structure(state), leaves)

    def value(self, state: AgentState, memory: Memory, obs: PyTree) -> jax.Array:
        """Values `[N]` of the agent's policy at observations `[N, *obs_shape]`.

        Args:
            state: the agent's, or the part that `for_acting` keeps.
            memory: of `policy`, `[N, ...]`, before it acts on these observations.
            obs: normalised, where the run normalises them.

        Raises:
            NotImplementedError: the agent learns no value.
        """
        raise NotImplementedError(f"{type(self).__name__} learns no value")

    def update(
        self, state: AgentState, experience: Experience, key: jax.Array, clock: Clock
    ) -> tuple[AgentState, Experience, Losses]:
        """One update.

        Over several devices, experience and key differ between devices and the state is the same
        on all: gradients, and statistics that enter the state, have to be averaged by
        `clock.devices.mean`. The loop averages the losses.

        Returns:
            State, experience (with new priorities, where there are any), and float32 scalars by
            name: losses and diagnostics.
        """
        raise NotImplementedError


def module_field(*, base: type, default: None = None) -> Any:
    """A field for a user's network: an uninstantiated subclass of `base`, or a partial of one."""

    def check(value: object) -> object:
        cls = getattr(value, "func", value)
        if isinstance(value, base):
            raise ValueError("pass the class itself, uninstantiated")
        if not (isinstance(cls, type) and issubclass(cls, base)):
            raise ValueError
        return value

    expected = f"a subclass of purerl.{base.__name__} (the class, or a functools.partial of it)"
    return static(default=default, check=check, expected=expected, optional=True)


def sees_field() -> Any:
    """A field for the part of the observation that is a network's input."""

    def check(value: object) -> object:
        keys = tuple(value) if isinstance(value, (list, tuple)) else (value,)
        if all(isinstance(key, str) for key in keys) and keys:
            return value if isinstance(value, str) else keys
        if not callable(value):
            raise ValueError
        return value

    expected = "a key of the observation, several keys, or a function of one observation"
    return static(default=None, check=check, expected=expected, optional=True)


def optimizer_field() -> Any:
    """A field for an optimizer: a name, or a user's factory of the learning rate."""
    field = named(default=None, options=OPTIMIZERS, optional=True)
    known = field.metadata["check"]

    def check(value: object) -> object:
        if isinstance(value, optax.GradientTransformation):
            raise ValueError(
                "give the factory, which gets the learning rate: optax.adamw, or "
                "lambda lr: optax.adamw(lr, weight_decay=0.01)"
            )
        return known(value)

    expected = "a function of the learning rate, or one of " + ", ".join(map(repr, OPTIMIZERS))
    metadata = {**field.metadata, "check": check, "expected": expected}
    return dataclasses.field(default=None, metadata=metadata)


class NetworkAgent(Agent):
    """Base of agents with neural networks, the defaults or a user's.

    Attributes:
        hidden: widths of the default networks' hidden layers; one number is one layer, () none.
        activation: their activation function.
        network: their kind; by default a small convolution for images, and an MLP for all else,
            also for grids of codes, whose one-hot channels are many.
            "nature" and "impala" have larger convolutions, and other defaults of `hidden` and
            `activation` (see `purerl.Torso`). "gru", "lstm" and
            "min_gru" have a recurrent layer on top, a memory. Integers with few values are one-hot,
            uint8 pixels are divided by 255: see `purerl.Box`.
        actor_obs, critic_obs: the part of the observation that the actor and the critic see: a key
            of a dict observation, several keys, or a function of one observation; None for all of
            it. A deployed policy needs the actor's part alone.
        optimizer: a factory from the learning rate to an optax optimizer, such as `optax.adamw` or
            `lambda lr: optax.rmsprop(lr, decay=0.99)`, or its name; with a second parameter
            `timesteps` it gets the environment steps so far, for schedules. Gradients are clipped
            to `max_grad_norm` first. None for Adam with `eps=1e-5` on one vector.
    """

    may_share: ClassVar[bool] = False  # whether `update` takes one network for actor and critic
    default_hidden: ClassVar[tuple[int, ...]] = (64, 64)
    default_activation: ClassVar[str] = "tanh"
    may_remember: ClassVar[bool] = False  # whether `update` trains networks with a memory

    hidden: tuple[int, ...] | None = sizes(default=None, optional=True)
    activation: str | None = choice(default=None, options=ACTIVATIONS, optional=True)
    network: str | None = choice(default=None, options=NETWORKS, optional=True)
    actor_obs: Sees = sees_field()
    critic_obs: Sees = sees_field()
    optimizer: Callable[..., optax.GradientTransformation] | None = optimizer_field()

    def check(self) -> None:
        super().check()
        sized = [n for n in ("hidden", "activation", "network") if getattr(self, n) is not None]
        own = [name for name in ("actor", "critic") if hasattr(self, name)]
        if self.shared:
            own = ["actor"]
        if sized and all(getattr(self, name) is not None for name in own):
            raise ConfigError(
                f"{type(self).__name__}.{sized[0]}: is for the default networks, but "
                f"{' and '.join(own)} {'is' if len(own) == 1 else 'are both'} given"
            )
        on = [n for n in ("layer_norm", "dueling") if getattr(self, n, False)]
        on = [n for n in on if not getattr(type(self), n) and getattr(self, "critic", None)]
        if on:
            raise ConfigError(
                f"{type(self).__name__}.{on[0]}: is for the default critic, but critic is given"
            )
        if self.actor_obs is not None and not hasattr(self, "actor"):
            raise ConfigError(f"{type(self).__name__}.actor_obs: has no actor; expected critic_obs")
        if self.network in CELLS and not self.may_remember:
            raise ConfigError(
                f"{type(self).__name__}.network: got {self.network!r}, which has a memory, and "
                f"{type(self).__name__} learns from single steps; expected "
                + ", ".join(repr(x) for x in NETWORKS if x not in CELLS)
            )
        self._check_shared()

    @property
    def shared(self) -> bool:
        """Whether policy and value share a network: the actor is an `ActorCriticNetwork`, or the
        default one by `share_network`."""
        actor = getattr(self, "actor", None)
        if actor is None:
            return bool(getattr(self, "share_network", False))
        return issubclass(getattr(actor, "func", actor), ActorCriticNetwork)

    @property
    def remembers(self) -> bool:
        """Whether a network has a memory."""
        parts = ("actor",) if self.shared else ("actor", "critic")
        given = [getattr(self, name) for name in parts if hasattr(self, name)]
        return any(self.network in CELLS if x is None else takes_memory(x) for x in given)

    def _check_shared(self) -> None:
        name = type(self).__name__
        if getattr(self, "share_network", False):
            for field in ("actor", "critic", "critic_obs"):
                if getattr(self, field) is not None:
                    raise ConfigError(
                        f"{name}.share_network: is one default network for policy and value, but "
                        f"{field} is given"
                    )
            return
        if not self.shared:
            return
        if not self.may_share:
            raise ConfigError(
                f"{name}.actor: got an ActorCriticNetwork, expected a purerl.Actor: {name} has an "
                "actor of its own"
            )
        for field in ("critic", "critic_obs"):
            if getattr(self, field) is not None:
                raise ConfigError(
                    f"{name}.{field}: the actor is an ActorCriticNetwork, which gives the value "
                    "too; expected None"
                )

    def optimize(
        self, lr: Number, max_grad_norm: Number, clock: Clock
    ) -> optax.GradientTransformation:
        """The optimizer, with this learning rate."""
        return make_optimizer(self.optimizer, lr, max_grad_norm, clock.timesteps)

    def default_network(self) -> dict[str, Any]:
        """The default networks' `hidden` and `activation`, where the fields are None."""
        kind = self.network or "auto"
        return {
            "hidden": AFTER.get(kind, self.default_hidden),
            "activation": "relu" if kind in AFTER else self.default_activation,
        }

    def in_force(self, num_envs: int, update_every: int) -> Self:
        own = [getattr(self, name) for name in ("actor", "critic") if hasattr(self, name)]
        if own and all(x is not None for x in (own[:1] if self.shared else own)):
            return self  # the user's networks, which have none of these
        usual = {n: x for n, x in self.default_network().items() if getattr(self, n) is None}
        return unchecked(self, **usual)

    def make(
        self,
        given: Callable[..., Actor | Critic] | None,
        default: type[Actor | Critic],
        spec: EnvSpec,
        activation: str | None = None,
        **options: bool,
    ) -> Any:
        """A network for an environment: the user's, or the default; None for the critic if the
        actor is an `ActorCriticNetwork`.

        Args:
            given: the user's.
            default: the default's class.
            spec: of the environment.
            activation: the default's, unless the agent's field is set; None for the agent's.
            **options: further fields of the default, such as `layer_norm`.
        """
        if self.shared and issubclass(default, Critic):
            return None
        part = "actor_obs" if issubclass(default, Actor) else "critic_obs"
        name = f"{type(self).__name__}.{part.removesuffix('_obs')}"
        view = View.of(spec, getattr(self, part), f"{name}_obs")
        if given is not None:
            check_parameters(given)
            if takes_memory(given) and not self.may_remember:
                raise ConfigError(
                    f"{name}: {getattr(given, 'func', given).__name__} has a memory, expected a "
                    f"network without: {type(self).__name__} learns from single steps"
                )
            return given(spec.action_space, view=view)
        if self.shared and default is DefaultActor:
            default = DefaultActorCritic
        kind, usual = self.network or "auto", self.default_network()
        rest: dict[str, object] = dict(options)
        if kind in CELLS:
            default = RECURRENT[default]
            rest["memory"] = getattr(self, "memory", None)
        build: Callable[..., Actor | Critic] = default
        return build(
            spec.action_space,
            view=view,
            hidden=usual["hidden"] if self.hidden is None else self.hidden,
            activation=self.activation
            or (usual["activation"] if kind in AFTER else activation or usual["activation"]),
            network=kind,
            **rest,
        )


class RecurrentAgent(NetworkAgent):
    """Base of agents that can train networks with a memory, through each rollout's sequences.

    Attributes:
        memory: width of the memory of the networks "gru", "lstm" and "min_gru"; None for that of
            the last of `hidden`.
    """

    may_remember: ClassVar[bool] = True
    num_minibatches: ClassVar[int] = 4  # without `batch_size`, where it divides the rollout

    memory: int | None = integer(default=None, at_least=1, optional=True)

    def check(self) -> None:
        super().check()
        name = type(self).__name__
        kinds = ", ".join(map(repr, CELLS))
        if self.memory is not None and self.network not in CELLS:
            raise ConfigError(
                f"{name}.memory: got {self.memory}, but network={self.network!r} has no memory, "
                f"expected network to be one of {kinds}"
            )
        if self.network in CELLS and self.memory is None and self.hidden == ():
            raise ConfigError(
                f"{name}.memory: got None, expected a width: without hidden layers it has none to "
                "follow"
            )

    def minibatch_size(self, num_envs: int, update_every: int) -> int:
        """Transitions in a minibatch: `batch_size`, or one of `num_minibatches` equal parts of the
        rollout; with a memory, of the environments."""
        batch_size: int | None = getattr(self, "batch_size", None)
        if batch_size is not None:
            return batch_size
        if self.remembers:
            return share_of(num_envs, self.num_minibatches) * update_every
        return share_of(num_envs * update_every, self.num_minibatches)

    def in_force(self, num_envs: int, update_every: int) -> Self:
        agent = super().in_force(num_envs, update_every)
        if getattr(self, "batch_size", 1) is not None:
            return agent
        return unchecked(agent, batch_size=self.minibatch_size(num_envs, update_every))

    def check_minibatches(self, num_envs: int, update_every: int) -> None:
        """Raises ConfigError unless minibatches of `batch_size` make up the rollout."""
        name, size = type(self).__name__, self.minibatch_size(num_envs, update_every)
        total = num_envs * update_every
        if self.remembers and (size % update_every or total % size):
            allowed = [n * update_every for n in range(1, num_envs + 1) if num_envs % n == 0]
            near = min(allowed, key=lambda x: abs(x - size))
            raise ConfigError(
                f"{name}.batch_size: got {size}, expected a multiple of "
                f"update_every={update_every} that divides {total}, such as {near}: the networks "
                "have a memory, and minibatches are of whole environments"
            )
        if total % size:
            raise ConfigError(
                f"{name}.batch_size: got {size}, expected a divisor of {total}, "
                f"num_envs={num_envs} times update_every={update_every}"
            )


def share_of(size: int, count: int) -> int:
    """The default size of a minibatch: one of `count` equal parts of the rollout if there are such,
    else all of it."""
    return size // count if size % count == 0 else size


def stochastic_actor(
    agent: "NetworkAgent", given: Callable[..., Actor] | None, spec: EnvSpec
) -> Actor:
    """An actor with a distribution: the user's, or the default.

    Raises:
        ConfigError: the user's has none.
    """
    actor: Actor = agent.make(given, DefaultActor, spec)
    drawn = type(actor).create_distribution is not Actor.create_distribution
    if actor.distribution is None and not drawn:
        raise ConfigError(
            f"{type(actor).__name__}.distribution: got None, expected a distribution: "
            f"{type(agent).__name__} draws its actions from one"
        )
    return actor


def check_v_critic(agent: Agent, critic: Critic, obs: PyTree) -> None:
    """Raises ConfigError unless a critic is V(s); obs is `[B, *obs_shape]`."""
    if is_q_critic(critic, obs):
        raise ConfigError(
            f"{type(agent).__name__}.critic: {type(critic).__name__} is a Q critic, expected "
            "create_network(self, obs) with one value an observation, [B] or [B, 1]"
        )


def check_one_rollout(
    agent: Agent,
    num_envs: int,
    update_every: int,
    buffer: Buffer,
    options: RunFacts,
    explores: str = "its own distribution; noise is for deterministic agents, such as DDPG",
) -> None:
    """Checks the run of an agent whose buffer is one rollout; `explores` says by what it does.
    Raises ConfigError."""
    name, size = type(agent).__name__, num_envs * update_every
    if buffer.maxlen != size:
        raise ConfigError(
            f"Buffer.maxlen: got {buffer.maxlen}, expected {size}: {name} learns from exactly one "
            f"rollout, num_envs={num_envs} times update_every={update_every}"
        )
    if buffer.priority_sampling:
        raise ConfigError(
            f"Buffer.priority_sampling: got True, expected False: {name} learns from the whole "
            "buffer and doesn't sample"
        )
    check_no_noise(agent, options, explores)


def check_no_noise(agent: Agent, options: RunFacts, explores: str) -> None:
    """Raises ConfigError if the run has noise; `explores` says by what the agent does."""
    if options["noise"] is not None:
        raise ConfigError(
            f"noise: got {options['noise']}, expected None: {type(agent).__name__} explores by "
            f"{explores}"
        )


def replay_buffer(num_envs: int) -> Buffer:
    """The default replay buffer: about 100,000 transitions."""
    return Buffer(maxlen=-(-100_000 // num_envs) * num_envs)


def check_replay(agent: Agent, num_envs: int, update_every: int, buffer: Buffer) -> None:
    """Checks the run of an agent with a replay buffer. Raises ConfigError."""
    size = num_envs * update_every
    if buffer.maxlen is not None and buffer.maxlen < size:
        raise ConfigError(
            f"Buffer.maxlen: got {buffer.maxlen}, expected at least {size}, one rollout: "
            f"num_envs={num_envs} times update_every={update_every}"
        )
    if buffer.lam is not None:
        raise ConfigError(f"Buffer.lam: {type(agent).__name__} uses no GAE(lambda)")


def check_paths(agent: Agent, num_envs: int, update_every: int) -> None:
    """Checks that the rollout's size is `n_episodes` times `episode_length`. Raises ConfigError."""
    name = type(agent).__name__
    for argument, got, field in (
        ("num_envs", num_envs, "n_episodes"),
        ("update_every", update_every, "episode_length"),
    ):
        if got != getattr(agent, field):
            raise ConfigError(
                f"{argument}: got {got}, expected {getattr(agent, field)}: it is what "
                f"{name}.{field} says, leave it out"
            )


def example_obs(spec: EnvSpec) -> PyTree:
    """A batch of 2 observations of zeros, to initialise networks with.

    Two and not one, so that a network without the batch axis fails.
    """
    return jax.tree.map(
        lambda space: jnp.zeros((2, *space.shape), space.dtype),
        spec.observation_space,
        is_leaf=lambda x: hasattr(x, "shape"),
    )
