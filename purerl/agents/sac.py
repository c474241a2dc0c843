"""Soft actor-critic (Haarnoja et al. 2018b, arXiv:1812.05905), for continuous actions."""

from collections.abc import Callable
from typing import ClassVar, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct

from purerl.agents.acting import Acting, Memory
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
    fit_twins,
    init_optimizers,
    init_twins,
    lower_value,
    optimizers,
)
from purerl.agents.gradients import Losses, Number, descend, follow, gradient
from purerl.agents.learning import actor_policy, replay, td_target
from purerl.envs.base import EnvSpec
from purerl.envs.spaces import Box
from purerl.experience.buffer import Batch, Buffer
from purerl.experience.experience import Clock, Experience
from purerl.nn.defaults import DefaultQCritic, DefaultSquashedActor
from purerl.nn.distributions import TanhNormal
from purerl.nn.networks import (
    DEFAULT_DISTRIBUTION,
    Actor,
    Critic,
    apply,
    init_network,
)
from purerl.records.errors import ConfigError
from purerl.records.fields import flag, integer, real
from purerl.records.types import PyTree


class SACState(struct.PyTreeNode):
    """Parameters `{"actor", "critic"}`, with "alpha", the logarithm of the temperature, if that is
    learned; those of the target critics; and the optimizers' states. Leaves of the critic's are
    `[2, ...]`."""

    params: dict[str, PyTree]
    target_params: PyTree
    opt_states: dict[str, optax.OptState]
    actor: Actor = struct.field(pytree_node=False)
    critic: Critic = struct.field(pytree_node=False)


class SAC(NetworkAgent):
    """Off-policy learning of a stochastic policy that is rewarded for its entropy.

    Two critics learn the soft Q(s, a) from y = r + gamma (min(Q1'(s', a'), Q2'(s', a')) - alpha log
    pi(a' | s')), with a' drawn from the policy; the target critics follow by Polyak averaging. The
    actor descends alpha log pi(a | s) - min(Q1(s, a), Q2(s, a)), and the temperature alpha is such
    that the policy's entropy is `target_entropy`.

    Densities and entropies, also the loss "entropy", are those of actions scaled to bounds of -1
    and 1, so that they don't depend on the units of the environment's actions.

    The policy explores by its own samples. A `noise` of the run is added to them; by default there
    is none. Before the first update, at `update_after`, actions are drawn uniformly from the action
    space.

    Attributes:
        batch_size: transitions in a gradient step.
        actor: an uninstantiated `Actor` with the distribution `TanhNormal`; None for the default,
            whose scale depends on the observation.
        critic: an uninstantiated `Critic` that takes the action, of which there will be two; None
            for the default. The default networks have two hidden layers of 256.
        layer_norm: normalise the layers of the default critics.
        lr: learning rate.
        actor_lr, critic_lr, alpha_lr: learning rates of the actor, the critics and the temperature;
            None for `lr`.
        alpha: a fixed temperature, in units of the reward; None to learn it.
        init_alpha: the initial temperature, if it is learned.
        target_entropy: of the policy, in nats, if the temperature is learned; the uniform policy
            has log(2) for each number of the action. None for -1 for each.
        gamma: discount.
        tau: step size of the target critics' Polyak averaging, once a gradient step.
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
    alpha_lr: float | None = real(default=None, at_least=0.0, optional=True)
    alpha: float | None = real(default=None, at_least=0.0, optional=True)
    init_alpha: float = real(default=1.0, above=0.0)
    target_entropy: float | None = real(default=None, optional=True)
    gamma: float = real(default=0.99, at_least=0.0, at_most=1.0)
    tau: float = real(default=0.005, at_least=0.0, at_most=1.0)
    gradient_steps: int = integer(default=1, at_least=1)
    n_step: int = integer(default=1, at_least=1)
    max_grad_norm: float = real(default=10.0, above=0.0)
    anneal: bool = flag(default=False)

    def check(self) -> None:
        super().check()
        check_q_critic(self, self.critic)
        for name in ("target_entropy", "alpha_lr"):
            if self.alpha is not None and getattr(self, name) is not None:
                raise ConfigError(f"SAC.{name}: is for a learned temperature, but alpha is given")

    @property
    def run_defaults(self) -> RunDefaults:
        return RunDefaults(num_envs=1, update_every=1, update_after=1_000, random_start=True)

    def make_buffer(self, num_envs: int, update_every: int) -> Buffer:
        return replay_buffer(num_envs)

    def check_run(
        self, num_envs: int, update_every: int, buffer: Buffer, options: RunFacts
    ) -> None:
        check_replay(self, num_envs, update_every, buffer)

    def init(self, key: jax.Array, spec: EnvSpec) -> SACState:
        check_continuous(self, spec)
        if not cast(Box, spec.action_space).bounded:
            raise ConfigError(
                f"agent: SAC is for actions with finite bounds, and {spec.name} has "
                f"{spec.action_space}"
            )
        actor = self.make(self.actor, DefaultSquashedActor, spec)
        if actor.distribution == DEFAULT_DISTRIBUTION:
            actor = actor.clone(distribution=TanhNormal)
        critic = self.make(self.critic, DefaultQCritic, spec, layer_norm=self.layer_norm)
        actor_key, critic_key = jax.random.split(key)
        obs = example_obs(spec)
        params = {
            "actor": init_network(actor, actor_key, obs),
            "critic": init_twins(critic, critic_key, obs),
        }
        _check_distribution(actor, params["actor"], obs)
        if self.alpha is None:
            params["alpha"] = jnp.log(jnp.asarray(self.init_alpha, jnp.float32))
        return self._begin(params, actor, critic)

    def _begin(self, params: dict[str, PyTree], actor: Actor, critic: Critic) -> SACState:
        opt_states = init_optimizers(self, params)
        return SACState(params, params["critic"], opt_states, actor, critic)

    def start_from(self, state: SACState, learned: SACState) -> SACState:
        return self._begin(learned.params, state.actor, state.critic)

    def acting(self, state: SACState, clock: Clock) -> Acting:
        return self.policy(state, sample=True)

    def policy(self, state: SACState, *, sample: bool = False) -> Acting:
        """The squashed mean, or samples of the policy."""
        return actor_policy(state.actor, state.params["actor"], sample)

    def for_acting(self, state: SACState) -> SACState:
        return state.replace(target_params=None, opt_states=None)

    def value(self, state: SACState, memory: Memory, obs: PyTree) -> jax.Array:
        """The soft V(s): alpha times the policy's entropy, and the lower of both Q at its mode,
        which stands for the mean over its actions."""
        distribution = apply(state.actor, state.params["actor"], obs)
        q = lower_value(state.critic, state.params["critic"], obs, distribution.mode())
        entropy: jax.Array = distribution.scaled.entropy()
        return q + self._temperature(state) * entropy

    def update(
        self, state: SACState, experience: Experience, key: jax.Array, clock: Clock
    ) -> tuple[SACState, Experience, Losses]:
        return replay(
            lambda state, batch, key, _: self._learn(state, batch, key, clock),
            state,
            experience,
            key,
            num_steps=self.gradient_steps,
            batch_size=self.batch_size,
            n_step=self.n_step,
        )

    def _learn(
        self, state: SACState, batch: Batch, key: jax.Array, clock: Clock
    ) -> tuple[SACState, jax.Array, Losses]:
        alpha = self._temperature(state)
        next_key, key = jax.random.split(key)
        each = optimizers(self, clock, *state.params)
        params, opt_states = dict(state.params), dict(state.opt_states)
        params["critic"], opt_states["critic"], td_error, losses = fit_twins(
            state.critic,
            params["critic"],
            opt_states["critic"],
            batch,
            self._target(state, batch, alpha, next_key),
            each["critic"],
            clock.devices,
        )

        def actor_loss(actor: PyTree) -> tuple[jax.Array, jax.Array]:
            action, log_prob = _draw(apply(state.actor, actor, batch["obs"]), key)
            q = lower_value(state.critic, params["critic"], batch["obs"], action)
            return jnp.mean(alpha * log_prob - q), -jnp.mean(log_prob)

        policy_loss, entropy, grads = gradient(actor_loss, params["actor"], clock.devices)
        params["actor"], opt_states["actor"] = descend(
            each["actor"], grads, opt_states["actor"], params["actor"]
        )
        if self.alpha is None:
            target_entropy = self._target_entropy(cast(Box, state.actor.action_space))

            def alpha_loss(log_alpha: jax.Array) -> tuple[jax.Array, None]:
                # Of the logarithm, so that the gradient doesn't vanish with alpha.
                return log_alpha * (entropy - target_entropy), None

            _, _, grads = gradient(alpha_loss, params["alpha"], clock.devices)
            params["alpha"], opt_states["alpha"] = descend(
                each["alpha"], grads, opt_states["alpha"], params["alpha"]
            )
        target_params = follow(state.target_params, params["critic"], self.tau)
        state = state.replace(params=params, target_params=target_params, opt_states=opt_states)
        losses = {"policy_loss": policy_loss, **losses, "entropy": entropy}
        return state, td_error, {**losses, "alpha": jnp.asarray(alpha, jnp.float32)}

    def _target(self, state: SACState, batch: Batch, alpha: Number, key: jax.Array) -> jax.Array:
        """The TD target `[B]`, with the soft value of the successor."""
        distribution = apply(state.actor, state.params["actor"], batch["next_obs"])
        action, log_prob = _draw(distribution, key)
        q = lower_value(state.critic, state.target_params, batch["next_obs"], action)
        return td_target(batch, q - alpha * log_prob)

    def _temperature(self, state: SACState) -> Number:
        return jnp.exp(state.params["alpha"]) if self.alpha is None else self.alpha

    def _target_entropy(self, space: Box) -> Number:
        if self.target_entropy is not None:
            return self.target_entropy
        # Numbers with equal bounds are drawn from a fixed distribution, whose entropy comes on top.
        free = np.count_nonzero(space.half_range)
        fixed = jnp.zeros(space.half_range.size - free, jnp.float32)
        return TanhNormal(fixed, jnp.ones_like(fixed)).entropy() - float(free)


def _draw(distribution: TanhNormal, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Actions `[B, *action_shape]`, and the log densities `[B]` of the actions scaled to bounds of
    -1 and 1."""
    x = distribution.base.sample(key)
    return distribution.squash(x), distribution.scaled.log_prob_before(x)


def _check_distribution(actor: Actor, params: PyTree, obs: PyTree) -> None:
    """Raises ConfigError unless the actor's distribution is a `TanhNormal`."""
    out = jax.eval_shape(lambda: apply(actor, params, obs))
    if isinstance(out, TanhNormal):
        return
    name = type(actor).__name__
    if type(actor).create_distribution is Actor.create_distribution:
        field, got = "distribution", getattr(actor.distribution, "__name__", actor.distribution)
    else:
        field, got = "create_distribution", type(out).__name__
    raise ConfigError(
        f"{name}.{field}: got {got}, expected TanhNormal: SAC draws its actions inside their bounds"
    )
