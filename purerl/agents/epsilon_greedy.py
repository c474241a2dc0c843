"""Parts of Q-learning that DQN and PQN share: the Q network, and epsilon-greedy exploration."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from purerl.agents.acting import Acting, Extras, Key, Memory
from purerl.agents.base import NetworkAgent, example_obs
from purerl.agents.gradients import Number
from purerl.envs.base import EnvSpec
from purerl.experience.experience import Clock
from purerl.nn.defaults import DefaultQNetwork
from purerl.nn.memory import ActionValues, remembers
from purerl.nn.networks import Critic, is_q_critic, takes_action, uniform_action
from purerl.records.errors import ConfigError
from purerl.records.types import PyTree

FIELDS = "epsilon_start, epsilon_end and epsilon_steps"


def make_q_network(
    agent: NetworkAgent,
    given: Callable[..., Critic] | None,
    spec: EnvSpec,
    *,
    layer_norm: bool,
    dueling: bool,
) -> Critic:
    """The Q network for an environment's discrete actions: the user's, or the default.

    Args:
        agent: its `hidden`, `activation` and `network` are the default's.
        given: the user's, uninstantiated.
        spec: of the environment.
        layer_norm, dueling: of the default, as in `DefaultQNetwork`.

    Raises:
        ConfigError: actions aren't one discrete choice, or the user's network is a V critic.
    """
    name, space = type(agent).__name__, spec.action_space
    if space.n is None:
        words = "discrete actions" if space.sizes is None else "one choice at a time"
        raise ConfigError(f"agent: {name} is for {words}, and {spec.name} has {space}")
    critic: Critic = agent.make(
        given, DefaultQNetwork, spec, layer_norm=layer_norm, dueling=dueling
    )
    if space.n > 1 and not is_q_critic(critic, example_obs(spec)):
        raise ConfigError(
            f"{name}.critic: got a V critic, expected create_network(self, obs, action), or "
            f"create_network(self, obs) with [B, {space.n}] values"
        )
    if remembers(critic) and takes_action(type(critic)):
        raise ConfigError(
            f"{name}.critic: {type(critic).__name__} takes the action and has a memory, expected "
            f"create_network(self, obs, memory) with [B, {space.n}] values and the memory"
        )
    return critic


def epsilon_at(clock: Clock, start: Number, end: Number, steps: Number | None) -> Number:
    """The probability of a random action: it falls linearly from `start` to `end` in the first
    `steps` environment steps, or in the first tenth of the run if that is None."""
    fallen = 10.0 * clock.progress if steps is None else clock.timesteps / steps
    return start + jnp.minimum(fallen, 1.0) * (end - start)


def act_greedily(critic: Critic, params: PyTree) -> Acting:
    """The greedy policy of a Q network, and its memory."""
    network = ActionValues(critic)

    def act(memory: Memory, obs: PyTree, key: Key) -> tuple[Memory, jax.Array, Extras]:
        memory, (values, _) = network.step(params, memory, obs)
        return memory, _greedy(values), {}

    return Acting(act, network.init, network.reset)


def explore(critic: Critic, params: PyTree, epsilon: Number, *, with_value: bool = False) -> Acting:
    """The epsilon-greedy policy of a Q network, and its memory: greedy actions, or with probability
    epsilon uniform ones; legal ones only.

    Args:
        critic, params: the network.
        epsilon: the probability.
        with_value: whether max_a Q(s, a) is among the extras, as "value".
    """
    network = ActionValues(critic)

    def act(memory: Memory, obs: PyTree, key: Key) -> tuple[Memory, jax.Array, Extras]:
        memory, (values, largest) = network.step(params, memory, obs)
        # Given that it is below epsilon, the number is uniform on [0, epsilon): it chooses the
        # action.
        drawn = jax.random.uniform(key, largest.shape, jnp.float32)
        at_random = uniform_action(critic, obs, drawn / jnp.maximum(epsilon, 1e-8))
        action = jnp.where(drawn < epsilon, at_random, _greedy(values))
        return memory, action, {"value": largest} if with_value else {}

    return Acting(act, network.init, network.reset)


def _greedy(values: jax.Array) -> jax.Array:
    return jnp.argmax(values, axis=-1).astype(jnp.int32)
