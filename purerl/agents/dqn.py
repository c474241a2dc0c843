"""Deep Q-learning (Mnih et al. 2015), with double Q (van Hasselt et al. 2016, arXiv:1509.06461)."""

from collections.abc import Callable
from typing import ClassVar

import jax
import jax.numpy as jnp
import optax
from flax import struct

from purerl.agents.acting import Acting, Memory
from purerl.agents.base import (
    NetworkAgent,
    RunDefaults,
    RunFacts,
    check_no_noise,
    check_replay,
    example_obs,
    module_field,
    replay_buffer,
)
from purerl.agents.epsilon_greedy import (
    FIELDS,
    act_greedily,
    epsilon_at,
    explore,
    make_q_network,
)
from purerl.agents.gradients import Losses, Number, annealed, descend, follow, global_norm, gradient
from purerl.agents.learning import replay, td_target
from purerl.envs.base import EnvSpec, where
from purerl.experience.buffer import Batch, Buffer
from purerl.experience.experience import Clock, Experience
from purerl.nn.networks import Critic, init_critic, pick, q_value, q_values
from purerl.records.errors import ConfigError
from purerl.records.fields import flag, integer, named, real
from purerl.records.types import PyTree


def q_target(q_next: jax.Array, target_q_next: jax.Array) -> jax.Array:
    """max_a Q'(s', a): `[B, n]` of the network and of its target network, to `[B]`."""
    return jnp.max(target_q_next, axis=-1)


def double_q_target(q_next: jax.Array, target_q_next: jax.Array) -> jax.Array:
    """Q'(s', argmax_a Q(s', a)): the network chooses, the target network evaluates."""
    return pick(target_q_next, jnp.argmax(q_next, axis=-1))


TARGETS = {"q": q_target, "double_q": double_q_target}


class DQNState(struct.PyTreeNode):
    """Parameters, those of the target network, the optimizer's state, and the number of gradient
    steps so far."""

    params: PyTree
    target_params: PyTree
    opt_state: optax.OptState
    steps: jax.Array
    critic: Critic = struct.field(pytree_node=False)


class DQN(NetworkAgent):
    """Off-policy learning of Q(s, a), for discrete actions.

    Attributes:
        batch_size: transitions in a gradient step.
        critic: an uninstantiated Q `Critic`, of one action or of all; None for the default.
        lr: learning rate.
        gamma: discount.
        target_fn: the value of s' in the target: `purerl.double_q_target`, `purerl.q_target`, or
            a function of Q(s', .) and the target network's Q'(s', .), `[B, n]` each, to `[B]`.
        tau: step size of the target network's Polyak averaging, 1 for a copy.
        target_update_every: gradient steps between updates of the target network; None for 500 if
            tau is 1, and for every step if it is less.
        epsilon_start, epsilon_end: probability of a random action, at first and at last.
        epsilon_steps: environment steps in which it falls, linearly; None for a tenth of the run.
        gradient_steps: in each update.
        n_step: n of the n-step returns: rewards summed before bootstrapping.
        max_grad_norm: the gradient's global norm is clipped to it.
        anneal: lower lr linearly to 0 over the run.
        layer_norm: normalise the layers of the default network.
        dueling: the default network has a stream for V(s) and one for the advantages, whose sum is
            Q (Wang et al. 2016, arXiv:1511.06581).
    """

    default_activation: ClassVar[str] = "relu"

    batch_size: int = integer(default=128, at_least=1, total=True)
    critic: Callable[..., Critic] | None = module_field(base=Critic)
    lr: float = real(default=1e-3, at_least=0.0)
    gamma: float = real(default=0.99, at_least=0.0, at_most=1.0)
    target_fn: Callable[[jax.Array, jax.Array], jax.Array] = named(
        default=double_q_target, options=TARGETS
    )
    tau: float = real(default=1.0, at_least=0.0, at_most=1.0)
    target_update_every: int | None = integer(default=None, at_least=1, optional=True)
    epsilon_start: float = real(default=1.0, at_least=0.0, at_most=1.0)
    epsilon_end: float = real(default=0.05, at_least=0.0, at_most=1.0)
    epsilon_steps: float | None = real(default=None, above=0.0, optional=True)
    gradient_steps: int = integer(default=1, at_least=1)
    n_step: int = integer(default=3, at_least=1)
    max_grad_norm: float = real(default=10.0, above=0.0)
    anneal: bool = flag(default=True)
    layer_norm: bool = flag(default=False)
    dueling: bool = flag(default=False)

    @property
    def run_defaults(self) -> RunDefaults:
        return RunDefaults(update_every=1, update_after=1_000)

    @property
    def schedules(self) -> tuple[str, ...]:
        return super().schedules + (("epsilon_steps",) if self.epsilon_steps is None else ())

    def make_buffer(self, num_envs: int, update_every: int) -> Buffer:
        return replay_buffer(num_envs)

    def check_run(
        self, num_envs: int, update_every: int, buffer: Buffer, options: RunFacts
    ) -> None:
        check_replay(self, num_envs, update_every, buffer)
        check_no_noise(self, options, FIELDS)

    def init(self, key: jax.Array, spec: EnvSpec) -> DQNState:
        critic = make_q_network(
            self, self.critic, spec, layer_norm=self.layer_norm, dueling=self.dueling
        )
        params = init_critic(critic, key, example_obs(spec))
        return self._begin(params, critic)

    def _begin(self, params: PyTree, critic: Critic) -> DQNState:
        return DQNState(params, params, self._optimizer(Clock()).init(params), jnp.int32(0), critic)

    def start_from(self, state: DQNState, learned: DQNState) -> DQNState:
        return self._begin(learned.params, state.critic)

    def acting(self, state: DQNState, clock: Clock) -> Acting:
        return explore(state.critic, state.params, self._epsilon(clock))

    def policy(self, state: DQNState, *, sample: bool = False) -> Acting:
        """The greedy policy; with `sample` epsilon-greedy, epsilon being `epsilon_end`."""
        if sample:
            return explore(state.critic, state.params, self.epsilon_end)
        return act_greedily(state.critic, state.params)

    def for_acting(self, state: DQNState) -> DQNState:
        return state.replace(target_params=None, opt_state=None)

    def value(self, state: DQNState, memory: Memory, obs: PyTree) -> jax.Array:
        return jnp.max(q_values(state.critic, state.params, obs), axis=-1)

    def update(
        self, state: DQNState, experience: Experience, key: jax.Array, clock: Clock
    ) -> tuple[DQNState, Experience, Losses]:
        state, experience, losses = replay(
            lambda state, batch, *_: self._learn(state, batch, clock),
            state,
            experience,
            key,
            num_steps=self.gradient_steps,
            batch_size=self.batch_size,
            n_step=self.n_step,
        )
        losses["epsilon"] = jnp.asarray(self._epsilon(clock), jnp.float32)
        return state, experience, losses

    def _learn(
        self, state: DQNState, batch: Batch, clock: Clock
    ) -> tuple[DQNState, jax.Array, Losses]:
        q_next, target_q_next = (
            q_values(state.critic, params, batch["next_obs"])
            for params in (state.params, state.target_params)
        )
        beyond = self.target_fn(q_next, target_q_next)
        if jnp.shape(beyond) != q_next.shape[:1]:  # [B, 1] would broadcast to [B, B]
            raise ConfigError(
                f"DQN.target_fn: got shape {jnp.shape(beyond)}, expected {q_next.shape[:1]}: [B] "
                "of Q(s', .) and Q'(s', .), [B, n] each"
            )
        target = td_target(batch, beyond)

        def loss_fn(params: PyTree) -> tuple[jax.Array, jax.Array]:
            q = q_value(state.critic, params, batch["obs"], batch["action"])
            return 0.5 * jnp.mean(batch["weight"] * (q - target) ** 2), q

        loss, q, grads = gradient(loss_fn, state.params, clock.devices)
        params, opt_state = descend(self._optimizer(clock), grads, state.opt_state, state.params)
        steps = state.steps + 1
        target_params = where(
            steps % self._between_moves() == 0,
            follow(state.target_params, params, self.tau),
            state.target_params,
        )
        losses = {"loss": loss, "q": jnp.mean(q), "grad_norm": global_norm(grads)}
        state = DQNState(params, target_params, opt_state, steps, state.critic)
        return state, target - q, losses

    def _between_moves(self) -> jax.Array | int:
        """Gradient steps between two updates of the target network."""
        if self.target_update_every is not None:
            return self.target_update_every
        return jnp.where(self.tau < 1.0, 1, 500)

    def _epsilon(self, clock: Clock) -> Number:
        return epsilon_at(clock, self.epsilon_start, self.epsilon_end, self.epsilon_steps)

    def _optimizer(self, clock: Clock) -> optax.GradientTransformation:
        lr = annealed(self.lr, clock.progress, self.anneal)
        return self.optimize(lr, self.max_grad_norm, clock)
