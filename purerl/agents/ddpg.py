"""Deep deterministic policy gradient (Lillicrap et al. 2016, arXiv:1509.02971)."""

from collections.abc import Callable
from typing import ClassVar

import jax
import jax.numpy as jnp
import optax
from flax import struct

from purerl.agents.acting import Acting, Memory, memoryless
from purerl.agents.base import (
    NetworkAgent,
    RunDefaults,
    RunFacts,
    check_replay,
    example_obs,
    module_field,
    replay_buffer,
)
from purerl.agents.continuous import (
    check_continuous,
    check_q_critic,
    deterministic_actor,
    init_optimizers,
    optimizers,
)
from purerl.agents.gradients import Losses, descend, follow, gradient
from purerl.agents.learning import replay, td_target
from purerl.agents.noise import GaussianNoise
from purerl.envs.base import EnvSpec
from purerl.experience.buffer import Batch, Buffer
from purerl.experience.experience import Clock, Experience
from purerl.nn.defaults import DefaultQCritic
from purerl.nn.networks import Actor, Critic, apply, init_critic, init_network
from purerl.records.fields import flag, integer, real
from purerl.records.types import PyTree


class DDPGState(struct.PyTreeNode):
    """Parameters `{"actor", "critic"}`, those of the target networks, and the optimizers'
    states."""

    params: dict[str, PyTree]
    target_params: dict[str, PyTree]
    actor_opt: optax.OptState
    critic_opt: optax.OptState
    actor: Actor = struct.field(pytree_node=False)
    critic: Critic = struct.field(pytree_node=False)


class DDPG(NetworkAgent):
    """Off-policy learning of a deterministic policy, for continuous actions.

    The critic learns Q(s, a) from y = r + gamma Q'(s', mu'(s')), the actor ascends Q(s, mu(s)); the
    target networks Q' and mu' follow by Polyak averaging. Exploration is the run's `noise`; before
    the first update, at `update_after`, actions are drawn from the action space: uniformly between
    its bounds, or from a standard normal where it has none.

    Attributes:
        batch_size: transitions in a gradient step.
        actor: an uninstantiated `Actor` without a distribution; None for the default.
        critic: an uninstantiated `Critic` that takes the action; None for the default.
        layer_norm: normalise the layers of the default critic.
        lr: learning rate.
        actor_lr, critic_lr: learning rates of the actor and the critic; None for `lr`.
        gamma: discount.
        tau: step size of the target networks' Polyak averaging, once a gradient step.
        gradient_steps: in each update.
        n_step: n of the n-step returns: rewards summed before bootstrapping from Q'.
        max_grad_norm: the gradients' global norms are clipped to it.
        anneal: lower the learning rates linearly to 0 over the run: less noise at the end of a long
            one, too little learned in a short one.
    """

    default_activation: ClassVar[str] = "relu"

    batch_size: int = integer(default=128, at_least=1, total=True)
    actor: Callable[..., Actor] | None = module_field(base=Actor)
    critic: Callable[..., Critic] | None = module_field(base=Critic)
    layer_norm: bool = flag(default=False)
    lr: float = real(default=1e-3, at_least=0.0)
    actor_lr: float | None = real(default=None, at_least=0.0, optional=True)
    critic_lr: float | None = real(default=None, at_least=0.0, optional=True)
    gamma: float = real(default=0.99, at_least=0.0, at_most=1.0)
    tau: float = real(default=0.01, at_least=0.0, at_most=1.0)
    gradient_steps: int = integer(default=2, at_least=1)
    n_step: int = integer(default=1, at_least=1)
    max_grad_norm: float = real(default=10.0, above=0.0)
    anneal: bool = flag(default=False)

    def check(self) -> None:
        super().check()
        check_q_critic(self, self.critic)

    @property
    def run_defaults(self) -> RunDefaults:
        return RunDefaults(
            update_every=1, update_after=1_000, noise=GaussianNoise(), random_start=True
        )

    def make_buffer(self, num_envs: int, update_every: int) -> Buffer:
        return replay_buffer(num_envs)

    def check_run(
        self, num_envs: int, update_every: int, buffer: Buffer, options: RunFacts
    ) -> None:
        check_replay(self, num_envs, update_every, buffer)

    def init(self, key: jax.Array, spec: EnvSpec) -> DDPGState:
        check_continuous(self, spec)
        actor = deterministic_actor(self, self.actor, spec)
        critic = self.make(self.critic, DefaultQCritic, spec, layer_norm=self.layer_norm)
        actor_key, critic_key, *_ = jax.random.split(key, 4)
        obs = example_obs(spec)
        params = {
            "actor": init_network(actor, actor_key, obs),
            "critic": init_critic(critic, critic_key, obs),
        }
        return self._begin(params, actor, critic)

    def _begin(self, params: dict[str, PyTree], actor: Actor, critic: Critic) -> DDPGState:
        opt_states = init_optimizers(self, params)
        return DDPGState(params, params, opt_states["actor"], opt_states["critic"], actor, critic)

    def start_from(self, state: DDPGState, learned: DDPGState) -> DDPGState:
        return self._begin(learned.params, state.actor, state.critic)

    def acting(self, state: DDPGState, clock: Clock) -> Acting:
        return self.policy(state)

    def policy(self, state: DDPGState, *, sample: bool = False) -> Acting:
        """The deterministic policy; `sample` makes no difference."""
        return memoryless(lambda obs, key: (apply(state.actor, state.params["actor"], obs), {}))

    def for_acting(self, state: DDPGState) -> DDPGState:
        return state.replace(target_params=None, actor_opt=None, critic_opt=None)

    def value(self, state: DDPGState, memory: Memory, obs: PyTree) -> jax.Array:
        action = apply(state.actor, state.params["actor"], obs)
        value: jax.Array = apply(state.critic, state.params["critic"], obs, action)
        return value

    def update(
        self, state: DDPGState, experience: Experience, key: jax.Array, clock: Clock
    ) -> tuple[DDPGState, Experience, Losses]:
        return replay(
            lambda state, batch, *_: self._learn(state, batch, clock),
            state,
            experience,
            key,
            num_steps=self.gradient_steps,
            batch_size=self.batch_size,
            n_step=self.n_step,
        )

    def _learn(
        self, state: DDPGState, batch: Batch, clock: Clock
    ) -> tuple[DDPGState, jax.Array, Losses]:
        target = self._target(state, batch)

        def critic_loss(params: PyTree) -> tuple[jax.Array, jax.Array]:
            q = apply(state.critic, params, batch["obs"], batch["action"])
            return 0.5 * jnp.mean(batch["weight"] * (q - target) ** 2), q

        value_loss, q, critic_grads = gradient(critic_loss, state.params["critic"], clock.devices)

        def actor_loss(params: PyTree) -> tuple[jax.Array, None]:
            action = apply(state.actor, params, batch["obs"])
            q = apply(state.critic, state.params["critic"], batch["obs"], action)
            return -jnp.mean(q), None

        policy_loss, _, actor_grads = gradient(actor_loss, state.params["actor"], clock.devices)
        each = optimizers(self, clock, *state.params)
        actor, actor_opt = descend(
            each["actor"], actor_grads, state.actor_opt, state.params["actor"]
        )
        critic, critic_opt = descend(
            each["critic"], critic_grads, state.critic_opt, state.params["critic"]
        )
        params = {"actor": actor, "critic": critic}
        target_params = follow(state.target_params, params, self.tau)
        state = DDPGState(params, target_params, actor_opt, critic_opt, state.actor, state.critic)
        losses = {"policy_loss": policy_loss, "value_loss": value_loss, "q": jnp.mean(q)}
        return state, target - q, losses

    def _target(self, state: DDPGState, batch: Batch) -> jax.Array:
        action = apply(state.actor, state.target_params["actor"], batch["next_obs"])
        beyond = apply(state.critic, state.target_params["critic"], batch["next_obs"], action)
        return td_target(batch, beyond)
