"""Every agent learns each probe that its kind can, to the value known in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from probes import CONTINUOUS, DISCRETE, OBS, PROBES, expected_values, probe_env

import purerl

GAMMA = 0.8
PATHS = {"n_episodes": 16, "episode_length": 10, "gamma": GAMMA}
ACTOR_CRITIC = purerl.ActorCritic(lr=3e-3, critic_lr=1e-2, entropy_beta=0.1, **PATHS)
ROLLOUTS = {"num_envs": 16, "update_every": 10, "total_timesteps": 32_000}
BOTH = {
    "PPO": (purerl.PPO(lr=5e-3, gamma=GAMMA), ROLLOUTS),
    "REINFORCE": (
        # With less of a bonus one seed in six commits itself to the cliff before it has seen more.
        purerl.REINFORCE(lr=4e-3, baseline=True, entropy_beta=0.3, **PATHS),
        {"total_timesteps": 72_000},
    ),
    "ActorCritic, V": (ACTOR_CRITIC, {"total_timesteps": 48_000}),
    "ActorCritic, Q(s, a)": (
        ACTOR_CRITIC.replace(critic=purerl.DefaultQCritic),
        {"total_timesteps": 48_000},
    ),
}
REPLAY = {"num_envs": 8, "update_every": 2, "update_after": 200, "total_timesteps": 24_000}
DQN = purerl.DQN(lr=3e-3, gamma=GAMMA, target_update_every=10, batch_size=64, epsilon_end=0.2)
ONLY_DISCRETE = {
    "PPO, episodic": (
        purerl.PPO(lr=5e-3, gamma=GAMMA, batch_size=160),
        ROLLOUTS | {"wait_end_path": True, "total_timesteps": 64_000},
    ),
    "ActorCritic, Q(s, .)": (
        ACTOR_CRITIC.replace(critic=purerl.DefaultQNetwork),
        {"total_timesteps": 48_000},
    ),
    "DQN": (DQN.replace(n_step=1), REPLAY),
    "DQN, priorities": (
        DQN.replace(target_fn="q", n_step=1),
        REPLAY | {"buffer": purerl.Buffer(maxlen=4_000, priority_sampling=True)},
    ),
}
ONLY_CONTINUOUS = {
    "ActorCritic, V, episodic": (
        ACTOR_CRITIC,
        {"total_timesteps": 64_000, "wait_end_path": True},
    ),
    "DDPG": (
        purerl.DDPG(
            actor_lr=3e-4, critic_lr=3e-3, gamma=GAMMA, tau=0.05, batch_size=64, gradient_steps=1
        ),
        REPLAY | {"noise": purerl.GaussianNoise(sigma=1.0)},
    ),
}
# Each agent once; the others take minutes.
QUICK = {
    ("PPO", DISCRETE),
    ("REINFORCE", DISCRETE),
    ("ActorCritic, V", CONTINUOUS),
    ("ActorCritic, Q(s, a)", DISCRETE),
    ("DQN", DISCRETE),
    ("DDPG", CONTINUOUS),
}
CASES = [(name, case, DISCRETE) for name, case in (BOTH | ONLY_DISCRETE).items()] + [
    (name, case, CONTINUOUS) for name, case in (BOTH | ONLY_CONTINUOUS).items()
]


def learned_values(agent, options, actions, num_seeds=2):
    """`[7, seeds, 3]`: values of the three observations, for every probe and seed."""

    def train(probe, key):
        config = purerl.TrainConfig(env=probe_env(probe, actions), agent=agent, **options)
        return purerl.make_train(config)(key).value(OBS)

    keys = jax.random.split(jax.random.key(0), num_seeds)
    over_seeds = jax.vmap(train, (None, 0))
    return jax.jit(jax.vmap(over_seeds, (0, None)))(jnp.arange(len(PROBES)), keys)


@pytest.mark.parametrize(
    ("case", "actions"),
    [
        pytest.param(
            case,
            actions,
            id=f"{name} {type(actions).__name__}",
            marks=[] if (name, actions) in QUICK else [pytest.mark.slow],
        )
        for name, case, actions in CASES
    ],
)
def test_values(case, actions):
    values = np.asarray(learned_values(*case, actions))
    for name, expected in expected_values(GAMMA).items():
        known = np.isfinite(expected)
        got = values[PROBES[name]][:, known]
        expected = np.array(expected)[known]
        tolerance = 0.15 * np.maximum(np.abs(expected), 1.0)
        assert np.all(np.abs(got - expected) < tolerance), f"{name}: {got}, expected {expected}"
