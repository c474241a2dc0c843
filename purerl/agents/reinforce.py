"""REINFORCE (Williams 1992), with the discounted reward-to-go as the weight."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from flax import struct

from purerl.agents.acting import Acting, Extras, Memory, memoryless
from purerl.agents.base import (
    NetworkAgent,
    RunDefaults,
    RunFacts,
    check_one_rollout,
    check_paths,
    check_v_critic,
    example_obs,
    module_field,
    stochastic_actor,
)
from purerl.agents.gradients import Losses, annealed, descend
from purerl.agents.learning import (
    actor_policy,
    fit_value,
    path_batch,
    policy_gradient,
    standardize_batch,
    successor_values,
)
from purerl.envs.base import EnvSpec
from purerl.experience import returns
from purerl.experience.buffer import Batch, Buffer
from purerl.experience.experience import Clock, Experience
from purerl.nn.defaults import DefaultCritic
from purerl.nn.distributions import draw
from purerl.nn.networks import Actor, Critic, apply, init_network
from purerl.records.errors import ConfigError
from purerl.records.fields import flag, integer, real
from purerl.records.types import PyTree


class REINFORCEState(struct.PyTreeNode):
    """Parameters and the optimizers' states of the actor, and of the baseline, or None."""

    actor_params: PyTree
    actor_opt: optax.OptState
    critic_params: PyTree
    critic_opt: optax.OptState
    actor: Actor = struct.field(pytree_node=False)
    critic: Critic = struct.field(pytree_node=False)


class REINFORCE(NetworkAgent):
    """Policy gradient from whole episodes.

    The gradient is the mean over steps of grad log pi(a_t | s_t) G_t, where G_t is the discounted
    sum of the rewards from t to the end. With `gamma=1` G_t is the plain reward-to-go. An episode
    longer than `episode_length` is truncated; G_t bootstraps from the baseline there, or without
    one sums the rewards up to the cut.

    Attributes:
        n_episodes: episodes in each update, one per environment: the run's `num_envs`.
        episode_length: the longest episode: the run's `update_every`.
        actor: an uninstantiated `Actor`; None for the default.
        lr: learning rate.
        gamma: discount.
        baseline: learn V(s), subtract it from G_t, and bootstrap from it where an episode is cut.
        critic: the baseline, an uninstantiated V `Critic`; None for the default.
        train_v_iters: gradient steps of the baseline in each update.
        normalize_advantage: G_t (less the baseline) to mean 0 and standard deviation 1 over each
            update's steps; not that of a single step.
        entropy_beta: weight of the entropy bonus: without one, a policy may collapse onto an action
            before the others were tried.
        max_grad_norm: the gradient's global norm is clipped to it.
        anneal: lower lr linearly to 0 over the run.
    """

    n_episodes: int = integer(default=8, at_least=1)
    episode_length: int = integer(default=500, at_least=1)
    actor: Callable[..., Actor] | None = module_field(base=Actor)
    lr: float = real(default=1e-3, at_least=0.0)
    gamma: float = real(default=0.99, at_least=0.0, at_most=1.0)
    baseline: bool = flag(default=False)
    critic: Callable[..., Critic] | None = module_field(base=Critic)
    train_v_iters: int = integer(default=10, at_least=1)
    normalize_advantage: bool = flag(default=True)
    entropy_beta: float = real(default=0.01, at_least=0.0)
    max_grad_norm: float = real(default=0.5, above=0.0)
    anneal: bool = flag(default=True)

    def check(self) -> None:
        super().check()
        if self.critic is not None and not self.baseline:
            raise ConfigError("REINFORCE.critic: is the baseline, for baseline=True")

    @property
    def run_defaults(self) -> RunDefaults:
        return RunDefaults(self.n_episodes, self.episode_length, wait_end_path=True)

    def check_run(
        self, num_envs: int, update_every: int, buffer: Buffer, options: RunFacts
    ) -> None:
        check_paths(self, num_envs, update_every)
        check_one_rollout(self, num_envs, update_every, buffer, options)
        if not options["wait_end_path"]:
            raise ConfigError(
                "wait_end_path: got False, expected True: REINFORCE learns from whole episodes"
            )

    def init(self, key: jax.Array, spec: EnvSpec) -> REINFORCEState:
        actor = stochastic_actor(self, self.actor, spec)
        critic = self.make(self.critic, DefaultCritic, spec)
        actor_key, critic_key, *_ = jax.random.split(key, 4)
        obs = example_obs(spec)
        if self.baseline:
            check_v_critic(self, critic, obs)
        actor_params = init_network(actor, actor_key, obs)
        critic_params = init_network(critic, critic_key, obs) if self.baseline else None
        return self._begin(actor_params, critic_params, actor, critic)

    def _begin(
        self, actor_params: PyTree, critic_params: PyTree, actor: Actor, critic: Critic
    ) -> REINFORCEState:
        optimizer = self._optimizer(Clock())
        return REINFORCEState(
            actor_params,
            optimizer.init(actor_params),
            critic_params,
            optimizer.init(critic_params),
            actor,
            critic,
        )

    def start_from(self, state: REINFORCEState, learned: REINFORCEState) -> REINFORCEState:
        params = learned.actor_params, learned.critic_params
        return self._begin(*params, state.actor, state.critic)

    def acting(self, state: REINFORCEState, clock: Clock) -> Acting:
        def act(obs: PyTree, key: jax.Array) -> tuple[jax.Array, Extras]:
            drawn = draw(apply(state.actor, state.actor_params, obs), key)
            value = {"value": self.value(state, (), obs)} if self.baseline else {}
            return drawn.pop("action"), {**drawn, **value}

        return memoryless(act)

    def policy(self, state: REINFORCEState, *, sample: bool = False) -> Acting:
        return actor_policy(state.actor, state.actor_params, sample)

    def for_acting(self, state: REINFORCEState) -> REINFORCEState:
        return state.replace(actor_opt=None, critic_opt=None)

    def value(self, state: REINFORCEState, memory: Memory, obs: PyTree) -> jax.Array:
        if not self.baseline:
            raise NotImplementedError("REINFORCE learns no value without baseline=True")
        value: jax.Array = apply(state.critic, state.critic_params, obs)
        return value

    def update(
        self, state: REINFORCEState, experience: Experience, key: jax.Array, clock: Clock
    ) -> tuple[REINFORCEState, Experience, Losses]:
        data, gamma = experience.read(), experience.buffer.gamma
        ends = data["terminated"], data["truncated"]
        value = next_value = jnp.zeros_like(data["reward"])
        if self.baseline:
            value = data["value"]
            next_value = successor_values(lambda obs: self.value(state, (), obs), experience, value)
        to_go = returns.reward_to_go(data["reward"], next_value, *ends, gamma)
        batch, advantage, to_go = path_batch(data, to_go - value, to_go, devices=clock.devices)
        if self.normalize_advantage:
            advantage = standardize_batch(advantage, batch["weight"], clock.devices)

        state, losses = self._learn(state, batch, advantage, to_go, clock)
        return state, experience, losses

    def _learn(
        self,
        state: REINFORCEState,
        batch: Batch,
        advantage: jax.Array,
        to_go: jax.Array,
        clock: Clock,
    ) -> tuple[REINFORCEState, Losses]:
        """A gradient step of the actor on `[B]` advantages, and those of the baseline."""
        grads, losses = policy_gradient(
            lambda params, batch: (apply(state.actor, params, batch["obs"]), batch),
            state.actor_params,
            batch,
            advantage,
            self.entropy_beta,
            clock.devices,
        )
        optimizer = self._optimizer(clock)
        actor_params, actor_opt = descend(optimizer, grads, state.actor_opt, state.actor_params)
        state = state.replace(actor_params=actor_params, actor_opt=actor_opt)
        if self.baseline:
            critic_params, critic_opt, losses["value_loss"] = fit_value(
                lambda params, batch: apply(state.critic, params, batch["obs"]),
                state.critic_params,
                state.critic_opt,
                batch,
                to_go,
                optimizer,
                self.train_v_iters,
                clock.devices,
            )
            state = state.replace(critic_params=critic_params, critic_opt=critic_opt)
        return state, losses

    def _optimizer(self, clock: Clock) -> optax.GradientTransformation:
        lr = annealed(self.lr, clock.progress, self.anneal)
        return self.optimize(lr, self.max_grad_norm, clock)
