"""Actor-critic (Sutton et al. 2000; A2C, Mnih et al. 2016, arXiv:1602.01783)."""

from collections.abc import Callable
from typing import ClassVar

import jax
import jax.numpy as jnp
import optax
from flax import struct

from purerl.agents.acting import Acting, Extras, Memory, memoryless
from purerl.agents.base import (
    RecurrentAgent,
    RunDefaults,
    RunFacts,
    check_one_rollout,
    check_paths,
    example_obs,
    module_field,
    stochastic_actor,
)
from purerl.agents.gradients import Losses, Number, annealed, descend, global_norm, mean_gradient
from purerl.agents.learning import (
    actor_policy,
    actor_value,
    fit_value,
    flatten,
    next_values,
    outputs,
    path_batch,
    policy_gradient,
    policy_terms,
    standardize_batch,
)
from purerl.envs.base import EnvSpec
from purerl.experience import returns
from purerl.experience.buffer import Batch, Buffer
from purerl.experience.experience import Clock, Experience
from purerl.nn.defaults import DefaultCritic
from purerl.nn.distributions import draw
from purerl.nn.memory import PolicyAndValue
from purerl.nn.networks import (
    Actor,
    Critic,
    apply,
    init_critic,
    init_network,
    is_q_critic,
    q_value,
    q_values,
)
from purerl.records.errors import ConfigError
from purerl.records.fields import flag, integer, real
from purerl.records.types import PyTree


class ActorCriticState(struct.PyTreeNode):
    """Parameters and the optimizers' states of the actor and of the critic."""

    actor_params: PyTree
    actor_opt: optax.OptState
    critic_params: PyTree
    critic_opt: optax.OptState
    actor: Actor = struct.field(pytree_node=False)
    critic: Critic | None = struct.field(pytree_node=False)
    is_q: bool = struct.field(pytree_node=False)

    @property
    def networks(self) -> PolicyAndValue:
        """Actor and V critic."""
        return PolicyAndValue(self.actor, self.critic)

    @property
    def params(self) -> dict[str, PyTree]:
        """Variables of `networks`."""
        return {"actor": self.actor_params, "critic": self.critic_params}

    def q_value(self, params: PyTree, obs: PyTree, action: jax.Array) -> jax.Array:
        """Q(s, a) of a Q critic with variables `params`, `[B]`."""
        assert self.critic is not None
        return q_value(self.critic, params, obs, action)


class ActorCritic(RecurrentAgent):
    """After each rollout a policy gradient step, and then gradient steps of the critic.

    With a V critic the advantage is GAE(lam). With a Q critic it is Q(s, a) - V(s), where V is the
    mean of Q over the policy: exact for discrete actions, over `num_samples` draws for continuous
    ones. The critic is fitted to lambda returns.

    One network for policy and value takes a single step on the sum of both losses. Networks with a
    memory, of which the critic has to be V, are trained through each environment's whole rollout,
    from the memory that it began with.

    By default episodes continue from rollout to rollout (A2C); `wait_end_path=True` makes each
    rollout one episode of each environment, masked after its end.

    Attributes:
        n_episodes: paths in each update, one per environment: the run's `num_envs`.
        episode_length: their length: the run's `update_every`.
        actor: an uninstantiated `Actor`, or `ActorCriticNetwork`; None for the default.
        critic: an uninstantiated `Critic`, V or Q; None for the default, which is V.
        share_network: the default networks are one, with a head for the policy and one for V.
        lr: learning rate, for the actor.
        critic_lr: for the critic; None for `lr`.
        gamma: discount.
        lam: lambda of GAE(lambda) and of the lambda returns.
        train_v_iters: gradient steps of the critic in each update; unused if it shares a network
            with the policy.
        value_coef: weight of the value loss where policy and value share a network; None for 0.5.
        entropy_beta: weight of the entropy bonus.
        max_grad_norm: the gradients' global norms are clipped to it.
        normalize_advantage: to mean 0 and standard deviation 1 over each update's steps; not that
            of a single step.
        anneal: lower the learning rates linearly to 0 over the run.
        num_samples: number of actions drawn to average a Q critic over a continuous policy.
    """

    may_share: ClassVar[bool] = True

    n_episodes: int = integer(default=8, at_least=1)
    episode_length: int = integer(default=16, at_least=1)
    actor: Callable[..., Actor] | None = module_field(base=Actor)
    critic: Callable[..., Critic] | None = module_field(base=Critic)
    share_network: bool = flag(default=False)
    lr: float = real(default=1e-3, at_least=0.0)
    critic_lr: float | None = real(default=None, at_least=0.0, optional=True)
    gamma: float = real(default=0.99, at_least=0.0, at_most=1.0)
    lam: float = real(default=0.95, at_least=0.0, at_most=1.0)
    train_v_iters: int = integer(default=10, at_least=1)
    value_coef: float | None = real(default=None, at_least=0.0, optional=True)
    entropy_beta: float = real(default=0.01, at_least=0.0)
    max_grad_norm: float = real(default=0.5, above=0.0)
    normalize_advantage: bool = flag(default=True)
    anneal: bool = flag(default=True)
    num_samples: int = integer(default=4, at_least=1)

    def check(self) -> None:
        super().check()
        if self.shared and self.critic_lr is not None:
            raise ConfigError(
                "ActorCritic.critic_lr: is for a separate critic, but policy and value share a "
                "network, whose learning rate is lr"
            )
        if not self.shared and self.value_coef is not None:
            raise ConfigError(
                "ActorCritic.value_coef: is for one network that policy and value share "
                "(share_network=True), but the critic is a separate one"
            )

    @property
    def run_defaults(self) -> RunDefaults:
        return RunDefaults(self.n_episodes, self.episode_length)

    def check_run(
        self, num_envs: int, update_every: int, buffer: Buffer, options: RunFacts
    ) -> None:
        check_paths(self, num_envs, update_every)
        check_one_rollout(self, num_envs, update_every, buffer, options)

    def init(self, key: jax.Array, spec: EnvSpec) -> ActorCriticState:
        actor = stochastic_actor(self, self.actor, spec)
        critic = self.make(self.critic, DefaultCritic, spec)
        actor_key, critic_key, *_ = jax.random.split(key, 4)
        obs = example_obs(spec)
        actor_params = init_network(actor, actor_key, obs)
        critic_params = {} if critic is None else init_critic(critic, critic_key, obs)
        is_q = critic is not None and is_q_critic(critic, obs)
        if is_q and PolicyAndValue(actor, critic).remembers:
            raise ConfigError(
                f"ActorCritic.critic: {type(critic).__name__} is a Q critic, expected a V critic "
                "for networks with a memory"
            )
        return self._begin(actor_params, critic_params, actor, critic, is_q)

    def _begin(
        self,
        actor_params: PyTree,
        critic_params: PyTree,
        actor: Actor,
        critic: Critic | None,
        is_q: bool,
    ) -> ActorCriticState:
        optimizer = self._optimizer(self.lr, Clock())
        return ActorCriticState(
            actor_params,
            optimizer.init(actor_params),
            critic_params,
            optimizer.init(critic_params) if critic_params else (),
            actor,
            critic,
            is_q,
        )

    def start_from(self, state: ActorCriticState, learned: ActorCriticState) -> ActorCriticState:
        params = learned.actor_params, learned.critic_params
        return self._begin(*params, state.actor, state.critic, state.is_q)

    def acting(self, state: ActorCriticState, clock: Clock) -> Acting:
        networks = state.networks

        def act(memory: Memory, obs: PyTree, key: jax.Array) -> tuple[Memory, jax.Array, Extras]:
            memory, (distribution, value) = networks.step(state.params, memory, obs)
            drawn = draw(distribution, key)
            return memory, drawn.pop("action"), {**drawn, "value": value}

        def act_by_q(obs: PyTree, key: jax.Array) -> tuple[jax.Array, Extras]:
            drawn = draw(apply(state.actor, state.actor_params, obs), key)
            action = drawn.pop("action")
            return action, {**drawn, "value": state.q_value(state.critic_params, obs, action)}

        if state.is_q:
            return memoryless(act_by_q)
        return Acting(act, networks.init, networks.reset)

    def policy(self, state: ActorCriticState, *, sample: bool = False) -> Acting:
        return actor_policy(state.actor, state.actor_params, sample)

    def for_acting(self, state: ActorCriticState) -> ActorCriticState:
        return state.replace(actor_opt=None, critic_opt=None)

    def value(self, state: ActorCriticState, memory: Memory, obs: PyTree) -> jax.Array:
        """`[N]`, V(s); of a Q critic, its mean over a discrete policy, or Q of a continuous one's
        mode."""
        if not state.is_q:
            return actor_value(state.networks, state.params, memory, obs)
        if state.actor.action_space.n is not None:
            return self._mean_q(state, obs, None)
        mode = apply(state.actor, state.actor_params, obs).mode()
        return state.q_value(state.critic_params, obs, mode)

    def update(
        self, state: ActorCriticState, experience: Experience, key: jax.Array, clock: Clock
    ) -> tuple[ActorCriticState, Experience, Losses]:
        data, buffer = experience.read(), experience.buffer
        ends = (data["terminated"], data["truncated"])
        discounts = buffer.gamma, buffer.lam
        if state.is_q:
            baseline, next_value = self._baselines(state, data, key)
            advantage = data["value"] - baseline
        else:
            next_value = next_values(state.networks, state.params, experience)
            advantage = returns.gae(data["reward"], data["value"], next_value, *ends, *discounts)
        target = returns.lambda_return(data["reward"], next_value, *ends, *discounts)
        batch, advantage, target = path_batch(
            data,
            advantage,
            target,
            devices=clock.devices,
            memory=experience.memory if state.networks.remembers else (),
        )
        if self.normalize_advantage:
            advantage = standardize_batch(advantage, batch["weight"], clock.devices)

        learn = self._learn_as_one if state.critic is None else self._learn
        state, losses = learn(state, batch, advantage, target, clock)
        return state, experience, losses

    def _learn(
        self,
        state: ActorCriticState,
        batch: Batch,
        advantage: jax.Array,
        target: jax.Array,
        clock: Clock,
    ) -> tuple[ActorCriticState, Losses]:
        """A gradient step of the actor on advantages, and those of the critic on targets, both of
        the batch's shape."""

        def policy(params: PyTree, batch: Batch) -> tuple[PyTree, Batch]:
            if state.is_q:
                return apply(state.actor, params, batch["obs"]), batch
            (distribution, _), batch = outputs(
                state.networks, {**state.params, "actor": params}, batch
            )
            return distribution, batch

        def value_fn(params: PyTree, batch: Batch) -> jax.Array:
            if state.is_q:
                return state.q_value(params, batch["obs"], batch["action"])
            return outputs(state.networks, {**state.params, "critic": params}, batch)[0][1]

        grads, losses = policy_gradient(
            policy, state.actor_params, batch, advantage, self.entropy_beta, clock.devices
        )
        actor_params, actor_opt = descend(
            self._optimizer(self.lr, clock), grads, state.actor_opt, state.actor_params
        )
        critic_params, critic_opt, losses["value_loss"] = fit_value(
            value_fn,
            state.critic_params,
            state.critic_opt,
            batch,
            target,
            self._optimizer(self.lr if self.critic_lr is None else self.critic_lr, clock),
            self.train_v_iters,
            clock.devices,
        )
        state = state.replace(
            actor_params=actor_params,
            actor_opt=actor_opt,
            critic_params=critic_params,
            critic_opt=critic_opt,
        )
        return state, losses

    def _learn_as_one(
        self,
        state: ActorCriticState,
        batch: Batch,
        advantage: jax.Array,
        target: jax.Array,
        clock: Clock,
    ) -> tuple[ActorCriticState, Losses]:
        """A gradient step of one network for policy and value; arguments as in `_learn`."""

        value_coef = 0.5 if self.value_coef is None else self.value_coef

        def loss_fn(params: PyTree, rows: tuple[Batch, jax.Array, jax.Array]) -> Losses:
            batch, advantage, target = rows
            (distribution, value), batch = outputs(state.networks, {"actor": params}, batch)
            losses = policy_terms(distribution, batch, advantage, self.entropy_beta)
            value_loss = 0.5 * (value - target.reshape(-1)) ** 2
            loss = losses["loss"] + value_coef * value_loss
            return losses | {"loss": loss, "value_loss": value_loss}

        rows = (batch, advantage, target)
        losses, grads = mean_gradient(
            loss_fn, state.actor_params, rows, batch["weight"], clock.devices
        )
        losses["grad_norm"] = global_norm(grads)
        actor_params, actor_opt = descend(
            self._optimizer(self.lr, clock), grads, state.actor_opt, state.actor_params
        )
        return state.replace(actor_params=actor_params, actor_opt=actor_opt), losses

    def _baselines(
        self, state: ActorCriticState, data: Batch, key: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """`[T, N]` each, the mean of Q over the policy at s_t and at its true successor."""
        shape = data["reward"].shape
        keys = jax.random.split(key)
        now, after = (
            self._mean_q(state, flatten(data[name]), key).reshape(shape)
            for name, key in zip(("obs", "next_obs"), keys, strict=True)
        )
        return now, after

    def _mean_q(self, state: ActorCriticState, obs: PyTree, key: jax.Array | None) -> jax.Array:
        distribution = apply(state.actor, state.actor_params, obs)
        if state.actor.action_space.n is not None:
            probs = jax.nn.softmax(distribution.logits)
            assert state.critic is not None
            values = q_values(state.critic, state.critic_params, obs)
            # An action that can't be taken may be worth minus infinity.
            return jnp.sum(probs * jnp.where(probs > 0, values, 0.0), axis=-1)
        assert key is not None
        actions = jax.vmap(distribution.sample)(jax.random.split(key, self.num_samples))
        values = jax.vmap(lambda a: state.q_value(state.critic_params, obs, a))(actions)
        return jnp.mean(values, axis=0)

    def _optimizer(self, lr: Number, clock: Clock) -> optax.GradientTransformation:
        return self.optimize(annealed(lr, clock.progress, self.anneal), self.max_grad_norm, clock)
