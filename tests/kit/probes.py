"""Environments whose values are known in closed form: the cheapest real test of an agent.

Each isolates one thing that has to work. They share their observations and differ in their rewards
and ends, so that one program, vmapped over `probe`, trains an agent on all of them. Actions are
`Discrete(2)`, or `Box(-1, 1)`, where the sign is what counts.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import purerl
from purerl.envs import Box, Discrete, Env, EnvSpec, TimeStep

from .quick import full_jit
from .trials import Trial

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

GAMMA = 0.8
PATHS = {"n_episodes": 16, "episode_length": 10, "gamma": GAMMA}
ACTOR_CRITIC = purerl.ActorCritic(lr=3e-3, critic_lr=1e-2, entropy_beta=0.1, **PATHS)
ROLLOUTS = {"num_envs": 16, "update_every": 10, "total_timesteps": 32_000}
BOTH = {
    # With the default bonus one seed in twenty commits itself before it has seen both actions.
    "PPO": (purerl.PPO(lr=5e-3, entropy_beta=0.1, gamma=GAMMA), ROLLOUTS),
    "REINFORCE": (
        # With less of a bonus one seed in twenty commits itself to the cliff too early.
        purerl.REINFORCE(lr=4e-3, baseline=True, entropy_beta=0.3, **PATHS),
        {"total_timesteps": 72_000},
    ),
    # At three times this rate one seed in twenty commits itself to the cliff.
    "ActorCritic, V": (ACTOR_CRITIC.replace(lr=1e-3), {"total_timesteps": 48_000}),
    "ActorCritic, Q(s, a)": (
        ACTOR_CRITIC.replace(critic=purerl.DefaultQCritic),
        {"total_timesteps": 48_000},
    ),
}
REPLAY = {"num_envs": 8, "update_every": 2, "update_after": 200, "total_timesteps": 24_000}
DQN = purerl.DQN(lr=3e-3, gamma=GAMMA, target_update_every=10, batch_size=64, epsilon_end=0.2)
ONLY_DISCRETE = {
    "PPO, episodic": (
        purerl.PPO(lr=5e-3, entropy_beta=0.1, gamma=GAMMA, batch_size=160),
        ROLLOUTS | {"wait_end_path": True, "total_timesteps": 64_000},
    ),
    "ActorCritic, Q(s, .)": (
        ACTOR_CRITIC.replace(critic=purerl.DefaultQNetwork),
        {"total_timesteps": 48_000},
    ),
    # Once epsilon is 0, returns are those of the greedy policy, whatever lambda is.
    "PQN": (
        purerl.PQN(lr=5e-3, gamma=GAMMA, epsilon_end=0.0, epsilon_steps=16_000),
        ROLLOUTS,
    ),
    "DQN": (DQN.replace(n_step=1), REPLAY),
    "DQN, priorities": (
        DQN.replace(target_fn="q", n_step=1),
        REPLAY | {"buffer": purerl.Buffer(maxlen=4_000, priority_sampling=True)},
    ),
}
TWINS = {"gamma": GAMMA, "tau": 0.05, "hidden": (32, 32), "batch_size": 64, "anneal": True}
ONLY_CONTINUOUS = {
    # At twice this rate one seed in fifty commits itself to the cliff.
    "REINFORCE": (BOTH["REINFORCE"][0].replace(lr=2e-3), {"total_timesteps": 120_000}),
    "ActorCritic, V, episodic": (
        ACTOR_CRITIC.replace(lr=1e-3),
        {"total_timesteps": 64_000, "wait_end_path": True},
    ),
    "DDPG": (
        purerl.DDPG(
            actor_lr=3e-4,
            critic_lr=3e-3,
            gamma=GAMMA,
            tau=0.05,
            batch_size=64,
            gradient_steps=1,
            anneal=True,
        ),
        REPLAY | {"noise": purerl.GaussianNoise(sigma=1.0), "total_timesteps": 40_000},
    ),
    "TD3": (
        purerl.TD3(actor_lr=3e-4, critic_lr=3e-3, target_noise=0.1, **TWINS),
        REPLAY | {"noise": purerl.GaussianNoise(sigma=1.0), "total_timesteps": 40_000},
    ),
    # The entropy adds 0.05 log(2) a step at most.
    "SAC": (
        purerl.SAC(actor_lr=1e-3, critic_lr=3e-3, alpha=0.05, **TWINS),
        REPLAY | {"noise": purerl.GaussianNoise(sigma=1.0), "total_timesteps": 40_000},
    ),
}
# In the default suite; and those that are left for a release, because another of their agent is in
# `.ci/run`.
QUICK = {("PPO", DISCRETE), ("DQN", DISCRETE)}
RARE = {
    ("PPO", CONTINUOUS),
    ("PPO, episodic", DISCRETE),
    ("REINFORCE", DISCRETE),
    ("ActorCritic, V", CONTINUOUS),
    ("ActorCritic, V, episodic", CONTINUOUS),
    ("ActorCritic, Q(s, a)", DISCRETE),
}
CASES = [(name, case, DISCRETE) for name, case in (BOTH | ONLY_DISCRETE).items()] + [
    (name, case, CONTINUOUS) for name, case in (BOTH | ONLY_CONTINUOUS).items()
]


def learned_errors(agent, options, actions, keys):
    """`[S, 7]`: of each probe, how far the values of its observations are off at most, by their
    size where that is above 1."""

    def train(probe, key):
        config = purerl.TrainConfig(env=probe_env(probe, actions), agent=agent, **options)
        return purerl.make_train(config)(key).value(OBS)

    over_seeds = jax.vmap(train, (None, 0))
    values = full_jit(jax.vmap(over_seeds, (0, None)))(jnp.arange(len(PROBES)), keys)
    expected = np.array(list(expected_values(GAMMA).values()))[:, None]
    errors = np.abs(np.asarray(values) - expected) / np.maximum(np.abs(expected), 1.0)
    return np.nanmax(errors, axis=-1).T


def _trial(agent, options, actions, suite):
    return Trial(
        lambda keys: learned_errors(agent, options, actions, keys),
        lambda errors: bool(np.all(errors < 0.15)),
        num_seeds=2,
        suite=suite,
    )


def _suite(case):
    return "default" if case in QUICK else "release" if case in RARE else "slow"


PROBE_TRIALS = {
    f"probes: {name} {type(actions).__name__}": _trial(
        *case, actions, suite=_suite((name, actions))
    )
    for name, case, actions in CASES
}
