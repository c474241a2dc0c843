"""An agent for tests in which it doesn't matter which one learns, and calls of any."""

import jax
import jax.numpy as jnp

import purerl
from purerl.envs import Discrete
from purerl.records.fields import flag, integer, real

from .quick import quick_jit


def act(acting, obs, key=None):
    """Actions and extras of an `Acting` without a memory."""
    return acting.step((), obs, key)[1:]


def learn(agent, state, buffer, stored, key, clock=purerl.Clock(), memory=()):  # noqa: B008
    """An update from what a buffer holds: the agent's state, the buffer's, losses."""
    experience = purerl.Experience(buffer, stored, clock, memory=memory)
    state, experience, losses = agent.update(state, experience, key, clock)
    return state, experience.state, losses


def after_a_rollout(agent, env, total_timesteps=360, **options):
    """An agent after one rollout, and its buffer, filled."""
    loop = purerl.make_loop(env, agent, total_timesteps=total_timesteps, **options)

    @quick_jit
    def start(key):
        state = loop.init(key)
        key = jax.random.fold_in(key, 1)
        _, transitions, *_ = loop.play(state.agent, state.rollout, None, key, jnp.int32(0))
        return state.agent, loop.buffer.push(state.buffer, transitions)

    state, stored = start(jax.random.key(0))
    return state, loop.buffer, stored


class Tiny(purerl.Agent):
    """An agent that compiles in no time, where it doesn't matter which one learns: actions around a
    number that is pulled to where rewards were high, or drawn with logits that move likewise."""

    lr: float = real(default=0.1, at_least=0.0)
    gamma: float = real(default=0.99, at_least=0.0, at_most=1.0)
    bias: float | None = real(default=None, optional=True)
    repeats: int = integer(default=1, at_least=1)
    flip: bool = flag(default=False)

    def init(self, key, spec):
        space = spec.action_space
        kind, shape = ("logits", (space.n,)) if isinstance(space, Discrete) else ("w", space.shape)
        return {kind: jax.random.normal(key, shape), "calls": jnp.int32(0)}

    def act(self, state, obs, key):
        if "logits" in state:
            return jax.random.categorical(key, state["logits"], shape=(len(obs),)), {}
        mean = self.choose(state, obs)
        return mean + 0.1 * jax.random.normal(key, mean.shape), {}

    def choose(self, state, obs):
        if "logits" in state:
            return jnp.full(len(obs), jnp.argmax(state["logits"]))
        w = -state["w"] if self.flip else state["w"]
        return jnp.broadcast_to(w, (len(obs), *w.shape))

    def acting(self, state, clock):
        return purerl.memoryless(lambda obs, key: self.act(state, obs, key))

    def policy(self, state, *, sample=False):
        return purerl.memoryless(lambda obs, key: (self.choose(state, obs), {}))

    def update(self, state, experience, key, clock):
        data = experience.read()
        name = "logits" if "logits" in state else "w"
        action = data["action"] if name == "w" else data["action"].astype(jnp.float32)[..., None]
        gain = jnp.exp(self.gamma * data["reward"])[..., None]
        step = jnp.mean(gain * (action - state[name]), axis=(0, 1))
        step = clock.devices.mean(step)
        w = state[name] + self.lr * self.repeats * step + (0.0 if self.bias is None else self.bias)
        new = {name: w, "calls": state["calls"] + 1}
        return new, experience, {"loss": jnp.sum(step**2)}
