"""Environments whose values are known, and that tell what was done to them."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import pytest

import purerl
from purerl.envs import Box, Discrete, Env, EnvSpec, TimeStep
from purerl.envs.check import QUICK_COMPILE
from purerl.records.fields import flag, integer, real

# For programs so small that compiling them takes the time.
quick_jit = functools.partial(jax.jit, compiler_options=QUICK_COMPILE)

FALSE = jnp.zeros((), bool)


def mostly_slow(names, quick):
    """Parameters of a test of which only the quick ones are in the default suite."""

    def slow(x):
        return pytest.param(*(x if isinstance(x, tuple) else (x,)), marks=pytest.mark.slow)

    return [x if x in quick else slow(x) for x in names]


def act(acting, obs, key=None):
    """Actions and extras of an `Acting` without a memory."""
    return acting.step((), obs, key)[1:]


def learn(agent, state, buffer, stored, key, clock=purerl.Clock()):  # noqa: B008
    """An update from what a buffer holds: the agent's state, the buffer's, losses."""
    experience = purerl.Experience(buffer, stored, clock)
    state, experience, losses = agent.update(state, experience, key, clock)
    return state, experience.state, losses


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
        w = state[name] + self.lr * self.repeats * step + (0.0 if self.bias is None else self.bias)
        new = {name: w, "calls": state["calls"] + 1}
        return new, experience, {"loss": jnp.sum(step**2)}


def reward_forever(horizon: int = 10, *, deadly: bool = False) -> Env:
    """Reward 1 at every step, one observation only; cut (or, if deadly, ended) at the horizon.

    With discount 0.9 the value is 10 if a time limit cuts the episode. If it dies there, the first
    state is worth 10 (1 - 0.9^10) = 6.5 and every other one less."""

    def reset(key):
        return jnp.ones(1), jnp.int32(0)

    def step(key, time, action):
        end = time + 1 >= horizon
        terminated, truncated = (end, FALSE) if deadly else (FALSE, end)
        return time + 1, TimeStep(jnp.ones(1), jnp.float32(1), terminated, truncated, {})

    return Env(reset, step, EnvSpec("forever", Box(0.0, 1.0, (1,)), Discrete(2), horizon))


class Walk(NamedTuple):
    """State of `walk`: a number drawn at the reset, which names the episode, and the time."""

    name: jax.Array
    time: jax.Array


def walk(length: int = 3, *, limit: int | None = None) -> Env:
    """Episodes of `length` steps that carry their name in the observation `[name, time]`, reward
    the time. The last step terminates; with `limit`, `truncated` cuts before."""

    def observe(state):
        return jnp.stack([state.name, state.time.astype(jnp.float32)])

    def reset(key):
        state = Walk(jax.random.uniform(key), jnp.int32(0))
        return observe(state), state

    def step(key, state, action):
        state = Walk(state.name, state.time + 1)
        terminated = state.time >= length
        reward = state.time.astype(jnp.float32)
        return state, TimeStep(observe(state), reward, terminated, FALSE, {})

    env = Env(reset, step, EnvSpec("walk", Box(0.0, jnp.inf, (2,)), Discrete(2)))
    return env if limit is None else purerl.time_limit(env, limit)


def target_env(low: float = -2.0, high: float = 2.0, shape: tuple[int, ...] = (1,)) -> Env:
    """One step, continuous: the reward is minus the squared distance of the action to the middle of
    the upper half; the observation is constant; info has the action that came in."""
    goal = low + 0.75 * (high - low)

    def reset(key):
        return jnp.ones(1), jnp.float32(0)

    def step(key, state, action):
        reward = -jnp.mean(((action - goal) / (high - low)) ** 2)
        return state, TimeStep(jnp.ones(1), reward, ~FALSE, FALSE, {"action": action})

    return Env(reset, step, EnvSpec("target", Box(0.0, 1.0, (1,)), Box(low, high, shape)))


def image_env() -> Env:
    """A light in one of 5 x 6 cells; moving right with action 1, it leaves after some steps."""

    def observe(column):
        return jnp.zeros((5, 6, 2)).at[2, column, 0].set(1.0)

    def reset(key):
        column = jax.random.randint(key, (), 0, 3)
        return observe(column), column

    def step(key, column, action):
        column = column + action
        timestep = TimeStep(observe(column), action.astype(jnp.float32), column >= 6, FALSE, {})
        return column, timestep

    env = Env(reset, step, EnvSpec("image", Box(0.0, 1.0, (5, 6, 2)), Discrete(2)))
    return purerl.time_limit(env, 20)


def push_env() -> Env:
    """Continuous: the action in [-2, 2] pushes a point, the reward is minus its squared distance to
    0. It ends beyond 3, and is cut after 6 steps."""

    def reset(key):
        x = jax.random.uniform(key, (1,), minval=-1.0, maxval=1.0)
        return x, x

    def step(key, x, action):
        x = x + 0.5 * action
        return x, TimeStep(x, -jnp.sum(x**2), jnp.abs(x[0]) > 3.0, FALSE, {})

    env = Env(reset, step, EnvSpec("push", Box(-jnp.inf, jnp.inf, (1,)), Box(-2.0, 2.0, (1,))))
    return purerl.time_limit(env, 6)


def faulty(env: Env, share: float) -> Env:
    """The environment, with a share of its steps broken: NaN in the observation, or infinity in
    the reward, and a state that stays NaN until it is reset."""

    def step(key, state, action):
        fault_key, which_key, key = jax.random.split(key, 3)
        after, timestep = env.step(key, state, action)
        broken = jax.random.uniform(fault_key) < share
        in_reward = jax.random.bernoulli(which_key)

        def spoil(x, where, value):
            floating = jnp.issubdtype(x.dtype, jnp.floating)
            return jnp.where(where, value, x).astype(x.dtype) if floating else x

        obs = jax.tree.map(lambda x: spoil(x, broken & ~in_reward, jnp.nan), timestep.obs)
        reward = spoil(timestep.reward, broken & in_reward, jnp.inf)
        after = jax.tree.map(lambda x: spoil(x, broken, jnp.nan), after)
        return after, timestep._replace(obs=obs, reward=reward)

    return Env(env.reset, step, env.spec)
