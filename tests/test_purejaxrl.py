"""PureJaxRL's configs, as its own files have them."""

import pytest

import purerl

PPO = {
    "LR": 2.5e-4,
    "NUM_ENVS": 4,
    "NUM_STEPS": 128,
    "TOTAL_TIMESTEPS": 5e5,
    "UPDATE_EPOCHS": 4,
    "NUM_MINIBATCHES": 4,
    "GAMMA": 0.99,
    "GAE_LAMBDA": 0.95,
    "CLIP_EPS": 0.2,
    "ENT_COEF": 0.01,
    "VF_COEF": 0.5,
    "MAX_GRAD_NORM": 0.5,
    "ACTIVATION": "tanh",
    "ENV_NAME": "CartPole-v1",
    "ANNEAL_LR": True,
    "DEBUG": True,
}
DQN = {
    "NUM_ENVS": 10,
    "BUFFER_SIZE": 10000,
    "BUFFER_BATCH_SIZE": 128,
    "TOTAL_TIMESTEPS": 5e5,
    "EPSILON_START": 1.0,
    "EPSILON_FINISH": 0.05,
    "EPSILON_ANNEAL_TIME": 25e4,
    "TARGET_UPDATE_INTERVAL": 500,
    "LR": 2.5e-4,
    "LEARNING_STARTS": 10000,
    "TRAINING_INTERVAL": 10,
    "LR_LINEAR_DECAY": False,
    "GAMMA": 0.99,
    "TAU": 1.0,
    "ENV_NAME": "CartPole-v1",
    "SEED": 0,
    "NUM_SEEDS": 1,
}


def test_ppo():
    with pytest.warns(UserWarning, match="a time limit isn't the end.*DEBUG: metrics come"):
        config = purerl.TrainConfig.from_purejaxrl(PPO)
    assert config.agent == purerl.PPO(
        lr=2.5e-4, batch_size=128, entropy_beta=0.01, activation="tanh", hidden=(64, 64)
    )
    loop = config.make_loop()
    assert (loop.num_envs, loop.update_every) == (4, 128)
    assert config.total_timesteps == 500_000
    with pytest.warns(UserWarning, match="time limit"):
        normalized = purerl.TrainConfig.from_purejaxrl({**PPO, "NORMALIZE_ENV": True})
    assert normalized.normalize_obs
    assert normalized.normalize_reward
    assert normalized.agent.hidden == (256, 256)  # as in the file that has this key


def test_dqn():
    with pytest.warns(UserWarning, match="SEED: the seed is train's key"):
        config = purerl.TrainConfig.from_purejaxrl(DQN)
    loop = config.make_loop()
    assert (loop.num_envs, loop.update_every) == (10, 1)  # a batch every 10 environment steps
    assert config.update_after == 10_000
    assert config.buffer.maxlen == 10_000
    agent = config.agent
    assert agent.target_update_every == 50  # of these; every 500 environment steps
    assert agent.target_fn is purerl.q_target
    assert (agent.epsilon_steps, agent.epsilon_end, agent.n_step) == (250_000, 0.05, 1)
    assert (agent.hidden, agent.activation, agent.anneal) == ((120, 84), "relu", False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"NUM_STEP": 3}, "no key 'NUM_STEP'; did you mean 'NUM_STEPS'"),
        ({"NUM_MINIBATCHES": 3}, "NUM_MINIBATCHES: got 3, expected a divisor of .* 512"),
        ({"NUM_ENVS": "four"}, "NUM_ENVS: got 'four', expected an integer"),
        ({"LR": "high"}, "PPO.lr: got 'high'"),
        ({"ENV_NAME": "CartPol-v1"}, "did you mean 'CartPole-v1'"),
    ],
)
@pytest.mark.filterwarnings("ignore:what differs")
def test_mistakes(changes, message):
    with pytest.raises(purerl.ConfigError, match=message):
        purerl.TrainConfig.from_purejaxrl({**PPO, **changes})
