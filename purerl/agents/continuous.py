"""What DDPG, TD3 and SAC share: off-policy learning of continuous actions by Q(s, a)."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from purerl.accelerator.devices import Devices
from purerl.agents.base import NetworkAgent
from purerl.agents.gradients import Losses, annealed, descend, gradient
from purerl.envs.base import EnvSpec
from purerl.experience.buffer import Batch
from purerl.experience.experience import Clock
from purerl.nn.defaults import DefaultActor
from purerl.nn.networks import (
    DEFAULT_DISTRIBUTION,
    Actor,
    Critic,
    apply,
    init_critic,
    takes_action,
)
from purerl.records.errors import ConfigError
from purerl.records.types import PyTree


def check_q_critic(agent: NetworkAgent, critic: Callable[..., Critic] | None) -> None:
    """Raises ConfigError if a user's critic doesn't take the action."""
    if critic is not None and not takes_action(critic):
        raise ConfigError(
            f"{type(agent).__name__}.critic: got a V critic, expected create_network(self, obs, "
            "action)"
        )


def check_continuous(agent: NetworkAgent, spec: EnvSpec) -> None:
    """Raises ConfigError if the environment's actions are discrete."""
    if spec.action_space.sizes is not None:
        raise ConfigError(
            f"agent: {type(agent).__name__} is for continuous actions, and {spec.name} has "
            f"{spec.action_space}"
        )


def deterministic_actor(
    agent: NetworkAgent, given: Callable[..., Actor] | None, spec: EnvSpec
) -> Actor:
    """An actor without a distribution: the user's, or the default.

    Raises:
        ConfigError: the user's has a distribution.
    """
    actor: Actor = agent.make(given, DefaultActor, spec)
    if actor.distribution == DEFAULT_DISTRIBUTION:
        actor = actor.clone(distribution=None)
    if actor.distribution is not None:
        got = getattr(actor.distribution, "__name__", actor.distribution)
        raise ConfigError(
            f"{type(actor).__name__}.distribution: got {got}, expected None: the policy of "
            f"{type(agent).__name__} is deterministic"
        )
    return actor


def optimizers(
    agent: NetworkAgent, clock: Clock, *names: str
) -> dict[str, optax.GradientTransformation]:
    """An optimizer by each name. Its learning rate is the agent's field of that name, as in
    `actor_lr`, or `lr` where that is None, annealed by `anneal`; `max_grad_norm` is of each."""

    def optimizer(name: str) -> optax.GradientTransformation:
        rate = getattr(agent, f"{name}_lr")
        lr = annealed(agent.lr if rate is None else rate, clock.progress, agent.anneal)  # type: ignore[attr-defined]
        return agent.optimize(lr, agent.max_grad_norm, clock)  # type: ignore[attr-defined]

    return {name: optimizer(name) for name in names}


def init_optimizers(agent: NetworkAgent, params: dict[str, PyTree]) -> dict[str, optax.OptState]:
    """The initial states of the optimizers of parameters, by their names."""
    each = optimizers(agent, Clock(), *params)
    return {name: each[name].init(params[name]) for name in params}


def init_twins(critic: Critic, key: jax.Array, obs: PyTree) -> PyTree:
    """Initial variables of two critics, each leaf `[2, ...]`, for observations
    `[B, *obs_shape]`."""
    return jax.vmap(lambda key: init_critic(critic, key, obs))(jax.random.split(key))


def twin_values(critic: Critic, params: PyTree, obs: PyTree, action: jax.Array) -> jax.Array:
    """Q1(s, a) and Q2(s, a), `[2, B]`, for action `[B, *action_shape]`.

    One network of stacked weights: on a GPU half the launches of two networks, on the CPU as fast
    (one core, 2 x 64 and 2 x 256 units, JAX 0.11.2, November 2026).
    """
    values: jax.Array = jax.vmap(lambda params: apply(critic, params, obs, action))(params)
    return values


def lower_value(critic: Critic, params: PyTree, obs: PyTree, action: jax.Array) -> jax.Array:
    """The lower of both critics' values, `[B]`, which doesn't overestimate (Fujimoto et al. 2018,
    arXiv:1802.09477)."""
    first, second = twin_values(critic, params, obs, action)
    # The derivative of `jnp.min` looks for the entry that equals the minimum. Where XLA computes
    # the entries twice, rounded differently, there is none, and it is infinite.
    return jnp.where(first < second, first, second)


def fit_twins(
    critic: Critic,
    params: PyTree,
    opt_state: optax.OptState,
    batch: Batch,
    target: jax.Array,
    optimizer: optax.GradientTransformation,
    devices: Devices,
) -> tuple[PyTree, optax.OptState, jax.Array, Losses]:
    """A gradient step of two critics on half the weighted mean squared errors, added up.

    Args:
        critic, params: as in `twin_values`.
        opt_state, optimizer: of the critics.
        batch: obs, action and weight, `[B, ...]` each.
        target: `[B]`.
        devices: those that the batch is spread over.

    Returns:
        Parameters and optimizer state, the larger of each transition's absolute TD errors `[B]`
        (Fujimoto et al. 2020, arXiv:2007.06049), and the losses.
    """

    def loss_fn(params: PyTree) -> tuple[jax.Array, jax.Array]:
        q = twin_values(critic, params, batch["obs"], batch["action"])
        squared = batch["weight"][None] * (q - target[None]) ** 2
        return 0.5 * jnp.sum(jnp.mean(squared, axis=-1)), q

    loss, q, grads = gradient(loss_fn, params, devices)
    params, opt_state = descend(optimizer, grads, opt_state, params)
    td_error = jnp.max(jnp.abs(target[None] - q), axis=0)
    return params, opt_state, td_error, {"value_loss": loss, "q": jnp.mean(q)}
