"""Proximal policy optimization (Schulman et al. 2017, arXiv:1707.06347)."""

from collections.abc import Callable
from typing import ClassVar

import jax
import jax.numpy as jnp
import optax
from flax import struct

from purerl.agents.acting import Acting, Extras, Memory
from purerl.agents.base import (
    RecurrentAgent,
    RunFacts,
    check_one_rollout,
    check_v_critic,
    example_obs,
    module_field,
    stochastic_actor,
)
from purerl.agents.gradients import (
    Losses,
    annealed,
    descend,
    global_norm,
    mean_gradient,
)
from purerl.agents.learning import (
    actor_policy,
    actor_value,
    explained_variance,
    minibatch_steps,
    next_values,
    outputs,
)
from purerl.envs.base import EnvSpec
from purerl.experience import returns
from purerl.experience.buffer import Buffer
from purerl.experience.experience import Clock, Experience
from purerl.nn.defaults import DefaultCritic
from purerl.nn.distributions import draw, drawn_actions, log_prob_of
from purerl.nn.memory import PolicyAndValue, begins
from purerl.nn.networks import Actor, Critic, init_network
from purerl.records.fields import flag, integer, real
from purerl.records.types import PyTree


class PPOState(struct.PyTreeNode):
    """Parameters `{"actor", "critic"}` and the optimizer's state."""

    params: dict[str, PyTree]
    opt_state: optax.OptState
    actor: Actor = struct.field(pytree_node=False)
    critic: Critic | None = struct.field(pytree_node=False)

    @property
    def networks(self) -> PolicyAndValue:
        """Actor and critic."""
        return PolicyAndValue(self.actor, self.critic)


class PPO(RecurrentAgent):
    """PPO with a clipped ratio, for discrete and for continuous actions.

    Networks with a memory are trained through each environment's whole rollout, from the memory
    that it began with: minibatches are of whole environments.

    Attributes:
        batch_size: transitions in a minibatch; None for a quarter of the rollout (where
            4 divides it, or each device's share of it; else all). With a memory a multiple of
            `update_every`.
        actor, critic: an uninstantiated `Actor` and V `Critic`; None for the defaults.
        share_network: the default networks are one, with a head for the policy and one for V.
        lr: learning rate.
        K_epochs: passes through the rollout in each update.
        eps_clip: clipping range of the probability ratio around 1.
        gamma: discount.
        lam: lambda of GAE(lambda).
        entropy_beta: weight of the entropy bonus.
        value_coef: weight of the value loss, half the mean squared error.
        max_grad_norm: the gradient's global norm is clipped to it.
        target_kl: an update stops early once the approximate KL divergence of a minibatch is
            larger; None to never stop.
        anneal: lower lr linearly to 0 over the run.
        clip_value: clip the change of the value to `eps_clip`, too.
        normalize_advantage: to mean 0 and standard deviation 1, in each minibatch; not that of a
            single step.
    """

    may_share: ClassVar[bool] = True

    batch_size: int | None = integer(default=None, at_least=1, optional=True, total=True)
    actor: Callable[..., Actor] | None = module_field(base=Actor)
    critic: Callable[..., Critic] | None = module_field(base=Critic)
    share_network: bool = flag(default=False)
    lr: float = real(default=1e-3, at_least=0.0)
    K_epochs: int = integer(default=4, at_least=1)
    eps_clip: float = real(default=0.2, above=0.0)
    gamma: float = real(default=0.99, at_least=0.0, at_most=1.0)
    lam: float = real(default=0.95, at_least=0.0, at_most=1.0)
    entropy_beta: float = real(default=0.01, at_least=0.0)
    value_coef: float = real(default=0.5, at_least=0.0)
    max_grad_norm: float = real(default=0.5, above=0.0)
    target_kl: float | None = real(default=None, above=0.0, optional=True)
    anneal: bool = flag(default=True)
    clip_value: bool = flag(default=True)
    normalize_advantage: bool = flag(default=True)

    def check_run(
        self, num_envs: int, update_every: int, buffer: Buffer, options: RunFacts
    ) -> None:
        check_one_rollout(self, num_envs, update_every, buffer, options)
        self.check_minibatches(num_envs, update_every)

    def init(self, key: jax.Array, spec: EnvSpec) -> PPOState:
        actor = stochastic_actor(self, self.actor, spec)
        critic = self.make(self.critic, DefaultCritic, spec)
        actor_key, critic_key, *_ = jax.random.split(key, 4)
        obs = example_obs(spec)
        if critic is not None:
            check_v_critic(self, critic, obs)
        params = {
            "actor": init_network(actor, actor_key, obs),
            "critic": {} if critic is None else init_network(critic, critic_key, obs),
        }
        return self._begin(params, actor, critic)

    def _begin(self, params: dict[str, PyTree], actor: Actor, critic: Critic | None) -> PPOState:
        return PPOState(params, self._optimizer(Clock()).init(params), actor, critic)

    def start_from(self, state: PPOState, learned: PPOState) -> PPOState:
        return self._begin(learned.params, state.actor, state.critic)

    def acting(self, state: PPOState, clock: Clock) -> Acting:
        networks = state.networks

        def act(memory: Memory, obs: PyTree, key: jax.Array) -> tuple[Memory, jax.Array, Extras]:
            memory, (distribution, value) = networks.step(state.params, memory, obs)
            drawn = draw(distribution, key)
            log_prob = log_prob_of(distribution, drawn)
            return memory, drawn.pop("action"), {**drawn, "log_prob": log_prob, "value": value}

        return Acting(act, networks.init, networks.reset)

    def policy(self, state: PPOState, *, sample: bool = False) -> Acting:
        return actor_policy(state.actor, state.params["actor"], sample)

    def for_acting(self, state: PPOState) -> PPOState:
        return state.replace(opt_state=None)

    def value(self, state: PPOState, memory: Memory, obs: PyTree) -> jax.Array:
        return actor_value(state.networks, state.params, memory, obs)

    def update(
        self, state: PPOState, experience: Experience, key: jax.Array, clock: Clock
    ) -> tuple[PPOState, Experience, Losses]:
        data, buffer = experience.read(), experience.buffer
        ends = data["terminated"], data["truncated"]
        next_value = next_values(state.networks, state.params, experience)
        advantage = returns.gae(
            data["reward"], data["value"], next_value, *ends, buffer.gamma, buffer.lam
        )
        batch = {name: data[name] for name in ("obs", "log_prob", "value", "valid")}
        batch |= drawn_actions(data)
        batch |= {"advantage": advantage, "target": advantage + data["value"]}
        if state.networks.remembers:
            batch["fresh"] = begins(*ends)

        state, losses = minibatch_steps(
            lambda state, rows: self._learn(state, rows, clock),
            state,
            batch,
            key,
            batch_size=self.minibatch_size(*reversed(advantage.shape)),
            num_epochs=self.K_epochs,
            standardized=("advantage",) if self.normalize_advantage else (),
            target_kl=self.target_kl,
            devices=clock.devices,
            memory=experience.memory if state.networks.remembers else (),
        )
        losses["explained_variance"] = explained_variance(
            batch["target"], data["value"], data["valid"], clock.devices
        )
        return state, experience, losses

    def _learn(
        self, state: PPOState, batch: dict[str, PyTree], clock: Clock
    ) -> tuple[PPOState, Losses]:
        """One gradient step."""
        losses, grads = mean_gradient(
            lambda params, rows: self._loss(params, state, rows),
            state.params,
            batch,
            batch["weight"],
            clock.devices,
        )
        params, opt_state = descend(self._optimizer(clock), grads, state.opt_state, state.params)
        losses["grad_norm"] = global_norm(grads)
        return state.replace(params=params, opt_state=opt_state), losses

    def _loss(self, params: PyTree, state: PPOState, batch: dict[str, PyTree]) -> Losses:
        """The loss and its terms, `[B]` each."""
        (distribution, value), batch = outputs(state.networks, params, batch)
        log_ratio = log_prob_of(distribution, batch) - batch["log_prob"]
        # Far beyond the ratio's clipping; exp stays finite.
        log_ratio = jnp.clip(log_ratio, -20.0, 20.0)
        ratio = jnp.exp(log_ratio)
        clipped = jnp.clip(ratio, 1.0 - self.eps_clip, 1.0 + self.eps_clip)
        advantage = batch["advantage"]
        policy_loss = -jnp.minimum(ratio * advantage, clipped * advantage)

        value_error = (value - batch["target"]) ** 2
        if self.clip_value:
            change = jnp.clip(value - batch["value"], -self.eps_clip, self.eps_clip)
            clipped_error = (batch["value"] + change - batch["target"]) ** 2
            value_error = jnp.maximum(value_error, clipped_error)
        value_loss = 0.5 * value_error

        entropy = distribution.entropy()
        return {
            "loss": policy_loss + self.value_coef * value_loss - self.entropy_beta * entropy,
            "policy_loss": policy_loss,
            "value_loss": value_loss,
            "entropy": entropy,
            # Schulman's low-variance estimate of KL(old, new): http://joschu.net/blog/kl-approx.html
            "approx_kl": ratio - 1.0 - log_ratio,
            "clip_fraction": (jnp.abs(ratio - 1.0) > self.eps_clip).astype(jnp.float32),
        }

    def _optimizer(self, clock: Clock) -> optax.GradientTransformation:
        lr = annealed(self.lr, clock.progress, self.anneal)
        return self.optimize(lr, self.max_grad_norm, clock)
