"""An agent with a memory and an environment that asks for one: what the contracts have to carry."""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import struct

import purerl
from purerl.experience import returns
from purerl.records.fields import integer, real


class Recall(NamedTuple):
    cue: jax.Array
    time: jax.Array


def recall_env(delay: int = 3) -> purerl.Env:
    """A cue, -1 or 1, is seen at the first step only; after a delay the action has to name it: the
    reward is 1 for the right one and -1 for the other. The observation is `[cue or 0, time]`."""

    def observe(state):
        first = state.time == 0
        return jnp.stack([jnp.where(first, state.cue, 0.0), state.time / delay])

    def reset(key):
        state = Recall(2.0 * jax.random.bernoulli(key).astype(jnp.float32) - 1.0, jnp.int32(0))
        return observe(state), state

    def step(key, state, action):
        last = state.time == delay
        right = 2.0 * action - 1.0 == state.cue
        reward = jnp.where(last, jnp.where(right, 1.0, -1.0), 0.0)
        state = Recall(state.cue, state.time + 1)
        return state, purerl.TimeStep(observe(state), reward, last, jnp.bool_(False), {})

    box, spec = purerl.Box(-1.0, 2.0, (2,)), purerl.EnvSpec
    return purerl.Env(reset, step, spec("recall", box, purerl.Discrete(2), delay + 1))


def lever_env(length: int = 6) -> purerl.Env:
    """Two levers, of which one gives 1 at each pull, in a whole episode; nothing is seen."""

    def reset(key):
        return jnp.zeros(1), Recall(jax.random.bernoulli(key).astype(jnp.int32), jnp.int32(0))

    def step(key, state, action):
        reward = (action == state.cue).astype(jnp.float32)
        state = state._replace(time=state.time + 1)
        last = state.time == length
        return state, purerl.TimeStep(jnp.zeros(1), reward, last, jnp.bool_(False), {})

    box, spec = purerl.Box(-1.0, 1.0, (1,)), purerl.EnvSpec
    return purerl.Env(reset, step, spec("levers", box, purerl.Discrete(2), length))


class Network(nn.Module):
    size: int

    @nn.compact
    def __call__(self, memory, obs):
        memory, x = nn.GRUCell(self.size)(memory, obs)
        return memory, nn.Dense(2)(x), nn.Dense(1)(x)[..., 0]


class RecurrentState(struct.PyTreeNode):
    params: dict
    opt_state: optax.OptState


class Recurrent(purerl.Agent):
    """Actor-critic with a GRU, trained through each rollout's whole sequence."""

    size: int = integer(default=16, at_least=1)
    lr: float = real(default=1e-2, at_least=0.0)
    gamma: float = real(default=0.9, at_least=0.0, at_most=1.0)
    lam: float = real(default=0.95, at_least=0.0, at_most=1.0)

    @property
    def run_defaults(self):
        return purerl.RunDefaults(num_envs=32, update_every=16)

    def init(self, key, spec):
        obs = jnp.zeros((1, *spec.observation_space.shape))
        params = Network(self.size).init(key, jnp.zeros((1, self.size)), obs)
        return RecurrentState(params, self._optimizer().init(params))

    def acting(self, state, clock):
        def draw(memory, obs, key):
            memory, logits, value = Network(self.size).apply(state.params, memory, obs)
            action = jax.random.categorical(key, logits).astype(jnp.int32)
            return memory, action, {"value": value, "logits": logits}

        return self._remembering(draw)

    def policy(self, state, *, sample=False):
        def choose(memory, obs, key):
            memory, logits, _ = Network(self.size).apply(state.params, memory, obs)
            drawn = jax.random.categorical(key, logits) if sample else jnp.argmax(logits, -1)
            return memory, drawn.astype(jnp.int32), {}

        return self._remembering(choose)

    def _remembering(self, step):
        return purerl.Acting(
            step,
            lambda num_envs: jnp.zeros((num_envs, self.size)),
            lambda memory, done: jnp.where(done[:, None], 0.0, memory),
        )

    def value(self, state, memory, obs):
        return Network(self.size).apply(state.params, memory, obs)[2]

    def replayed(self, params, experience):
        """`[T, N]` each: logits and values of the rollout's steps, and V of what truly followed
        under the memory that it had."""
        network, data = Network(self.size), experience.read()

        def step(memory, row):
            memory, logits, value = network.apply(params, memory, row["obs"])
            _, _, beyond = network.apply(params, memory, row["next_obs"])
            done = row["terminated"] | row["truncated"]
            return jnp.where(done[:, None], 0.0, memory), (logits, value, beyond)

        rows = {name: data[name] for name in ("obs", "next_obs", "terminated", "truncated")}
        return jax.lax.scan(step, experience.memory, rows)[1]

    def update(self, state, experience, key, clock):
        data, buffer = experience.read(), experience.buffer
        _, value, beyond = self.replayed(state.params, experience)
        ends = data["terminated"], data["truncated"]
        advantage = returns.gae(data["reward"], value, beyond, *ends, buffer.gamma, buffer.lam)
        target = advantage + value

        def loss_fn(params):
            logits, value, _ = self.replayed(params, experience)
            log_probs = jax.nn.log_softmax(logits)
            log_prob = jnp.take_along_axis(log_probs, data["action"][..., None], -1)[..., 0]
            entropy = -jnp.sum(jnp.exp(log_probs) * log_probs, -1)
            losses = -log_prob * advantage + 0.5 * (value - target) ** 2 - 0.01 * entropy
            return jnp.mean(losses)

        loss, grads = jax.value_and_grad(loss_fn)(state.params)
        updates, opt_state = self._optimizer().update(clock.devices.mean(grads), state.opt_state)
        params = optax.apply_updates(state.params, updates)
        return RecurrentState(params, opt_state), experience, {"loss": loss}

    def _optimizer(self):
        return optax.adam(self.lr)
