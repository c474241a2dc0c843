"""Small environments with what few have: masks, several choices at once, observations in dicts."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

import purerl
from purerl import Box, Discrete, Env, EnvSpec, MultiDiscrete, TimeStep

FALSE = jnp.zeros((), bool)


class Round(NamedTuple):
    """State of `doors` and `locks`: what is shown, the legal actions, and the time."""

    shown: jax.Array
    legal: jax.Array
    time: jax.Array


def _timestep(obs, reward, time, limit):
    return TimeStep(obs, jnp.float32(reward), FALSE, time >= limit, {})


def doors(num_doors: int = 5, limit: int = 8) -> Env:
    """Doors of which some are locked, anew in each step: reward 1 for the legal door with the
    lowest number, 0 for the other legal ones, and -100 for a locked one.

    Observations: `{"mask": [n] bool, "shown": [n] float}`, shown the open doors' numbers counted
    from 1, and 0 of those that are locked. The best return is `limit`.
    """

    def draw(key, time):
        legal = jax.random.bernoulli(key, 0.5, (num_doors,))
        legal = legal | (jnp.arange(num_doors) == num_doors - 1)
        shown = jnp.where(legal, jnp.arange(1.0, num_doors + 1.0), 0.0)
        return Round(shown, legal, time)

    def observe(state):
        return {"mask": state.legal, "shown": state.shown}

    def reset(key):
        state = draw(key, jnp.int32(0))
        return observe(state), state

    def step(key, state, action):
        best = action == jnp.argmax(state.legal)
        reward = jnp.where(state.legal[action], best.astype(jnp.float32), -100.0)
        state = draw(key, state.time + 1)
        return state, _timestep(observe(state), reward, state.time, limit)

    spaces = {"mask": Box(0, 1, (num_doors,), bool), "shown": Box(0.0, num_doors, (num_doors,))}
    spec = EnvSpec("doors", spaces, Discrete(num_doors), limit, legal="mask")
    return Env(reset, step, spec)


SIZES = (3, 2, 4)


def locks(limit: int = 8) -> Env:
    """Three dials with 3, 2 and 4 positions, of which some are blocked: reward 1/3 for each dial
    that is turned to its highest free position, and -100 for a blocked one.

    The observation is the free positions, `[9]` floats, a dial's behind another's; the mask is
    computed of it. The best return is `limit`.
    """
    starts = (0, 3, 5, 9)

    def draw(key, time):
        free = jax.random.bernoulli(key, 0.6, (9,))
        free = free.at[jnp.array([0, 3, 5])].set(True)
        return Round(free.astype(jnp.float32), free, time)

    def reset(key):
        state = draw(key, jnp.int32(0))
        return state.shown, state

    def step(key, state, action):
        reward = jnp.float32(0.0)
        for i, n in enumerate(SIZES):
            free = state.legal[starts[i] : starts[i + 1]]
            highest = n - 1 - jnp.argmax(free[::-1])
            won = jnp.where(action[i] == highest, 1 / 3, 0.0)
            reward += jnp.where(free[action[i]], won, -100.0)
        state = draw(key, state.time + 1)
        return state, _timestep(state.shown, reward, state.time, limit)

    spec = EnvSpec(
        "locks",
        Box(0.0, 1.0, (9,)),
        MultiDiscrete(SIZES),
        limit,
        legal=lambda obs: obs > 0.5,
    )
    return Env(reset, step, spec)


def dials(limit: int = 8) -> Env:
    """`locks` without anything blocked and without a mask: the shown position of each dial is the
    right one. Observations are `MultiDiscrete`."""
    space = MultiDiscrete(SIZES)

    def reset(key):
        shown = space.sample(key)
        return shown, Round(shown, shown, jnp.int32(0))

    def step(key, state, action):
        reward = jnp.mean((action == state.shown).astype(jnp.float32))
        obs, new = reset(key)
        new = new._replace(time=state.time + 1)
        return new, _timestep(obs, reward, new.time, limit)

    return Env(reset, step, EnvSpec("dials", space, space, limit))


class Hidden(NamedTuple):
    """State of `hidden_goal`."""

    position: jax.Array
    goal: jax.Array
    time: jax.Array


def hidden_goal(limit: int = 6) -> Env:
    """A walk on a line to one of two goals, which the observation's "room" names and no other part;
    "privileged" has the distance to it, which only a critic is meant to see.

    Observations: `{"camera": [4, 4, 1] uint8, a picture of the position, "privileged": [1] float,
    "room": Discrete(2), "wheel": ([1] float, [] float)}`. Reward 1 for a step towards the goal, -1
    for one away: the best return is `limit`.
    """

    def observe(state):
        lit = jnp.arange(4) == jnp.clip(state.position + 2, 0, 3)
        return {
            "camera": jnp.broadcast_to(255 * lit[:, None, None], (4, 4, 1)).astype(jnp.uint8),
            "privileged": (state.goal - state.position)[None].astype(jnp.float32),
            "room": (state.goal > 0).astype(jnp.int32),
            "wheel": (state.time[None].astype(jnp.float32), state.position.astype(jnp.float32)),
        }

    def reset(key):
        goal = jnp.where(jax.random.bernoulli(key), 9, -9)
        state = Hidden(jnp.int32(0), goal, jnp.int32(0))
        return observe(state), state

    def step(key, state, action):
        move = 2 * action - 1
        reward = jnp.where((state.goal > 0) == (move > 0), 1.0, -1.0)
        state = state._replace(position=state.position + move, time=state.time + 1)
        return state, _timestep(observe(state), reward, state.time, limit)

    spaces = {
        "camera": Box(0, 255, (4, 4, 1), jnp.uint8),
        "privileged": Box(-jnp.inf, jnp.inf, (1,)),
        "room": Discrete(2),
        "wheel": (Box(0.0, jnp.inf, (1,)), Box(-jnp.inf, jnp.inf, ())),
    }
    return Env(reset, step, EnvSpec("hidden goal", spaces, Discrete(2), limit))


def category(num: int = 6, limit: int = 8) -> Env:
    """The observation is one of `num` categories, and the action that is right for it is no
    increasing function of its number: reward 1 for it."""
    right = jnp.array([1, 0, 0, 1, 0, 1, 1, 0])

    def reset(key):
        obs = jax.random.randint(key, (), 0, num, jnp.int32)
        return obs, (obs, jnp.int32(0))

    def step(key, state, action):
        shown, time = state
        obs, (_, _) = reset(key)
        reward = (action == right[shown]).astype(jnp.float32)
        return (obs, time + 1), _timestep(obs, reward, time + 1, limit)

    return Env(reset, step, EnvSpec("category", Discrete(num), Discrete(2), limit))


ALL = (doors, locks, dials, hidden_goal, category)
__all__ = ["ALL", "SIZES", "category", "dials", "doors", "hidden_goal", "locks", "purerl"]
