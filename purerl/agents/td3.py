"""Twin delayed deep deterministic policy gradient (Fujimoto et al. 2018, arXiv:1802.09477)."""

from collections.abc import Callable
from typing import ClassVar, cast

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
    fit_twins,
    init_optimizers,
    init_twins,
    lower_value,
    optimizers,
    twin_values,
)
from purerl.agents.gradients import Losses, descend, follow, gradient
from purerl.agents.learning import replay, td_target
from purerl.agents.noise import GaussianNoise
from purerl.envs.base import EnvSpec
from purerl.envs.spaces import Box
from purerl.experience.buffer import Batch, Buffer
from purerl.experience.experience import Clock, Experience
from purerl.nn.defaults import DefaultQCritic
from purerl.nn.networks import Actor, Critic, apply, init_network
from purerl.records.fields import flag, integer, real
from purerl.records.types import PyTree


class TD3State(struct.PyTreeNode):
    """Parameters `{"actor", "critic"}`, those of the target networks, the optimizers' states, and
    the latest loss of the policy. Leaves of the critic's are `[2, ...]`."""

    params: dict[str, PyTree]
    target_params: dict[str, PyTree]
    opt_states: dict[str, optax.OptState]
    policy_loss: jax.Array
    actor: Actor = struct.field(pytree_node=False)
    critic: Critic = struct.field(pytree_node=False)


class TD3(NetworkAgent):
    """DDPG without its overestimation: two critics, a smoothed target, and a delayed policy.

    Both critics learn Q(s, a) from y = r + gamma min(Q1'(s', a'), Q2'(s', a')), where a' is the
    target policy's action with clipped noise. Every `policy_delay` gradient steps the actor ascends
    Q1(s, mu(s)), and the target networks follow by Polyak averaging. Exploration is the run's
    `noise`; before the first update, at `update_after`, actions are drawn uniformly from the
    action space.

    Attributes:
        batch_size: transitions in a gradient step.
        actor: an uninstantiated `Actor` without a distribution; None for the default.
        critic: an uninstantiated `Critic` that takes the action, of which there will be two; None
            for the default. The default networks have two hidden layers of 256.
        layer_norm: normalise the layers of the default critics.
        lr: learning rate.
        actor_lr, critic_lr: learning rates of the actor and the critics; None for `lr`.
        gamma: discount.
        tau: step size of the target networks' Polyak averaging.
        policy_delay: gradient steps of the critics for each of the actor and the target networks.
        target_noise: standard deviation of the noise on the target policy's actions, in half the
            range of the action.
        target_noise_clip: its largest size, likewise.
        gradient_steps: in each update.
        n_step: n of the n-step returns: rewards summed before bootstrapping.
        max_grad_norm: the gradients' global norms are clipped to it.
        anneal: lower the learning rates linearly to 0 over the run.
    """

    default_hidden: ClassVar[tuple[int, ...]] = (256, 256)
    default_activation: ClassVar[str] = "relu"

    batch_size: int = integer(default=256, at_least=1, total=True)
    actor: Callable[..., Actor] | None = module_field(base=Actor)
    critic: Callable[..., Critic] | None = module_field(base=Critic)
    layer_norm: bool = flag(default=False)
    lr: float = real(default=3e-4, at_least=0.0)
    actor_lr: float | None = real(default=None, at_least=0.0, optional=True)
    critic_lr: float | None = real(default=None, at_least=0.0, optional=True)
    gamma: float = real(default=0.99, at_least=0.0, at_most=1.0)
    tau: float = real(default=0.005, at_least=0.0, at_most=1.0)
    policy_delay: int = integer(default=2, at_least=1)
    target_noise: float = real(default=0.2, at_least=0.0)
    target_noise_clip: float = real(default=0.5, at_least=0.0)
    gradient_steps: int = integer(default=1, at_least=1)
    n_step: int = integer(default=1, at_least=1)
    max_grad_norm: float = real(default=10.0, above=0.0)
    anneal: bool = flag(default=False)

    def check(self) -> None:
        super().check()
        check_q_critic(self, self.critic)

    @property
    def run_defaults(self) -> RunDefaults:
        return RunDefaults(
            num_envs=1,
            update_every=1,
            update_after=1_000,
            noise=GaussianNoise(),
            random_start=True,
        )

    def make_buffer(self, num_envs: int, update_every: int) -> Buffer:
        return replay_buffer(num_envs)

    def check_run(
        self, num_envs: int, update_every: int, buffer: Buffer, options: RunFacts
    ) -> None:
        check_replay(self, num_envs, update_every, buffer)

    def init(self, key: jax.Array, spec: EnvSpec) -> TD3State:
        check_continuous(self, spec)
        actor = deterministic_actor(self, self.actor, spec)
        critic = self.make(self.critic, DefaultQCritic, spec, layer_norm=self.layer_norm)
        actor_key, critic_key = jax.random.split(key)
        obs = example_obs(spec)
        params = {
            "actor": init_network(actor, actor_key, obs),
            "critic": init_twins(critic, critic_key, obs),
        }
        return self._begin(params, actor, critic)

    def _begin(self, params: dict[str, PyTree], actor: Actor, critic: Critic) -> TD3State:
        opt_states = init_optimizers(self, params)
        return TD3State(params, params, opt_states, jnp.float32(0.0), actor, critic)

    def start_from(self, state: TD3State, learned: TD3State) -> TD3State:
        return self._begin(learned.params, state.actor, state.critic)

    def acting(self, state: TD3State, clock: Clock) -> Acting:
        return self.policy(state)

    def policy(self, state: TD3State, *, sample: bool = False) -> Acting:
        """The deterministic policy; `sample` makes no difference."""
        return memoryless(lambda obs, key: (apply(state.actor, state.params["actor"], obs), {}))

    def for_acting(self, state: TD3State) -> TD3State:
        return state.replace(target_params=None, opt_states=None, policy_loss=None)

    def value(self, state: TD3State, memory: Memory, obs: PyTree) -> jax.Array:
        """The lower of Q1 and Q2 at the policy's action."""
        action = apply(state.actor, state.params["actor"], obs)
        return lower_value(state.critic, state.params["critic"], obs, action)

    def update(
        self, state: TD3State, experience: Experience, key: jax.Array, clock: Clock
    ) -> tuple[TD3State, Experience, Losses]:
        # Counted by the clock: a count in the state would be mapped by `vmap`, and then the policy
        # would be computed in every step, to be thrown away.
        first = clock.updates % self.policy_delay * self.gradient_steps + 1

        def learn(
            state: TD3State, batch: Batch, key: jax.Array, number: jax.Array
        ) -> tuple[TD3State, jax.Array, Losses]:
            due = (first + number) % self.policy_delay == 0
            return self._learn(state, batch, key, due, clock)

        return replay(
            learn,
            state,
            experience,
            key,
            num_steps=self.gradient_steps,
            batch_size=self.batch_size,
            n_step=self.n_step,
        )

    def _learn(
        self, state: TD3State, batch: Batch, key: jax.Array, due: jax.Array, clock: Clock
    ) -> tuple[TD3State, jax.Array, Losses]:
        """A gradient step of the critics, and one of the actor and the target networks if `due`."""
        each = optimizers(self, clock, *state.params)
        critic, opt_state, td_error, losses = fit_twins(
            state.critic,
            state.params["critic"],
            state.opt_states["critic"],
            batch,
            self._target(state, batch, key),
            each["critic"],
            clock.devices,
        )
        state = state.replace(
            params={**state.params, "critic": critic},
            opt_states={**state.opt_states, "critic": opt_state},
        )

        def actor_loss(params: PyTree) -> tuple[jax.Array, None]:
            action = apply(state.actor, params, batch["obs"])
            return -jnp.mean(twin_values(state.critic, critic, batch["obs"], action)[0]), None

        def improve() -> tuple[PyTree, optax.OptState, PyTree, jax.Array]:
            loss, _, grads = gradient(actor_loss, state.params["actor"], clock.devices)
            actor, opt_state = descend(
                each["actor"], grads, state.opt_states["actor"], state.params["actor"]
            )
            params = {"actor": actor, "critic": critic}
            target_params = follow(state.target_params, params, self.tau)
            return actor, opt_state, target_params, clock.devices.mean(loss)

        actor, opt_state, target_params, policy_loss = jax.lax.cond(
            due,
            improve,
            lambda: (
                state.params["actor"],
                state.opt_states["actor"],
                state.target_params,
                state.policy_loss,
            ),
        )
        state = state.replace(
            params={**state.params, "actor": actor},
            target_params=target_params,
            opt_states={**state.opt_states, "actor": opt_state},
            policy_loss=policy_loss,
        )
        return state, td_error, {"policy_loss": policy_loss, **losses}

    def _target(self, state: TD3State, batch: Batch, key: jax.Array) -> jax.Array:
        """The TD target `[B]`, at the target policy's action with clipped noise."""
        action = apply(state.actor, state.target_params["actor"], batch["next_obs"])
        space = cast(Box, state.actor.action_space)
        half, low, high = (x[None] for x in (space.half_range, space.low, space.high))
        noise = self.target_noise * jax.random.normal(key, action.shape, jnp.float32)
        noise = jnp.clip(noise, -self.target_noise_clip, self.target_noise_clip) * half
        action = jnp.clip(action + noise, low, high)
        beyond = lower_value(state.critic, state.target_params["critic"], batch["next_obs"], action)
        return td_target(batch, beyond)
