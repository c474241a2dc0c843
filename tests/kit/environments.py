"""Small environments: with known values, that show what was done to them, and with what few have
(masks, several choices at once, observations in dicts)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

import purerl
from purerl import Box, Discrete, Env, EnvSpec, MultiDiscrete, TimeStep

FALSE = jnp.zeros((), bool)


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


def discrete_env():
    """The observation is where a walk over 3 places stands."""

    def reset(key):
        return jnp.int32(0), jnp.int32(0)

    def step(key, state, action):
        state = (state + action) % 3
        false = jnp.bool_(False)
        return state, TimeStep(state, jnp.float32(1), state == 2, false, {})

    return Env(reset, step, EnvSpec("places", Discrete(3), Discrete(2), None))


def seen_as(env: Env, observe, space) -> Env:
    """The environment with observations that a function makes of its."""

    def reset(key):
        obs, state = env.reset(key)
        return observe(obs), state

    def step(key, state, action):
        state, timestep = env.step(key, state, action)
        return state, timestep._replace(obs=observe(timestep.obs))

    return Env(reset, step, env.spec._replace(observation_space=space))


def dict_env() -> Env:
    """`push_env` with observations `{"x": [1], "sign": []}`, one of them whole numbers."""
    env = push_env()
    return seen_as(
        env,
        lambda obs: {"x": obs, "sign": jnp.sign(obs[0]).astype(jnp.int32)},
        {"x": env.spec.observation_space, "sign": Box(-1, 1, (), int)},
    )


def pytree_env() -> Env:
    """`walk` with observations `{"name": [1], "time": []}`."""
    return seen_as(
        walk(3),
        lambda obs: {"name": obs[:1], "time": obs[1]},
        {"name": Box(0.0, 1.0, (1,)), "time": Box(0.0, 10.0, ())},
    )


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
