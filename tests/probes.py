"""Environments whose values are known in closed form: the cheapest real test of an agent.

Each isolates one thing that has to work. They share their observations and differ in their rewards
and ends, so that one program, vmapped over `probe`, trains an agent on all of them. Actions are
`Discrete(2)`, or `Box(-1, 1)`, where the sign is what counts.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from purerl.envs import Box, Discrete, Env, EnvSpec, TimeStep

PROBES = {
    "constant": 0,  # one step, reward 1: V = 1
    "seen": 1,  # one step, the reward is the observation, -1 or 1: V(x) = x
    "delayed": 2,  # two steps, reward 1 at the second: V = gamma, then 1
    "chosen": 3,  # one step, reward 1 for a positive action, -1 for a negative one: V = 1
    "told": 4,  # one step, reward 1 for the action that the observation asks for, else -1: V = 1
    "forever": 5,  # reward 1 at every step, cut after 5: V = 1 / (1 - gamma)
    # A positive action is paid 1 and goes on, a negative one is paid 2 and ends it; cut after 10:
    # going on is worth 1 / (1 - gamma), everywhere.
    "cliff": 6,
}


class State(NamedTuple):
    x: jax.Array
    time: jax.Array


def expected_values(gamma):
    """V of the observations in OBS under the best policy; NaN where there is none."""
    nan, always = float("nan"), 1 / (1 - gamma)
    return {
        "constant": (1.0, 1.0, nan),
        "seen": (-1.0, 1.0, nan),
        "delayed": (gamma, gamma, 1.0),
        "chosen": (1.0, 1.0, nan),
        "told": (1.0, 1.0, nan),
        "forever": (always, always, nan),
        "cliff": (always, always, nan),
    }


OBS = jnp.array([[-1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])


def probe_env(probe, actions):
    """The environment of that number, which may be traced."""

    def observe(state):
        second = (probe == PROBES["delayed"]) & (state.time == 1)
        return jnp.where(second, OBS[2], jnp.stack([state.x, 0.0]))

    def reset(key):
        x = 2.0 * jax.random.bernoulli(key).astype(jnp.float32) - 1.0
        state = State(x, jnp.int32(0))
        return observe(state), state

    def step(key, state, action):
        discrete = isinstance(actions, Discrete)
        sign = 2.0 * action - 1.0 if discrete else jnp.sign(action.reshape(()))
        x, time = state
        true, false, falls = jnp.bool_(True), jnp.bool_(False), sign < 0
        rewards = (1.0, x, time == 1, sign, x * sign, 1.0, jnp.where(falls, 2.0, 1.0))
        terminated = (true, true, time == 1, true, true, false, falls)
        truncated = (false, false, false, false, false, time >= 4, ~falls & (time >= 9))
        reward = jnp.stack([jnp.asarray(r, jnp.float32) for r in rewards])[probe]
        state = State(x, time + 1)
        ends = (jnp.stack(end)[probe] for end in (terminated, truncated))
        return state, TimeStep(observe(state), reward, *ends, {})

    return Env(reset, step, EnvSpec("probe", Box(-1.0, 1.0, (2,)), actions, 10))


DISCRETE, CONTINUOUS = Discrete(2), Box(-1.0, 1.0, (1,))
