"""Training for real: thresholds that a broken agent misses, several seeds each."""

import jax
import numpy as np
import pytest

import purerl


def train(config, num_seeds):
    keys = jax.random.split(jax.random.key(0), num_seeds)
    return jax.jit(jax.vmap(purerl.make_train(config)))(keys)


def final_returns(outs, num_updates=10):
    """Each seed's mean over the episodes that ended in the last updates."""
    count = np.asarray(outs.metrics.num_episodes)[:, -num_updates:]
    mean = np.asarray(outs.metrics.episode_return)[:, -num_updates:]
    returns = np.where(count > 0, mean * count, 0.0).sum(1) / count.sum(1)
    print("final return of each seed:", returns.round(1), "mean:", returns.mean().round(1))
    return returns


@pytest.fixture(scope="module")
def cartpole_outs():
    return train(purerl.TrainConfig(env="CartPole-v1", total_timesteps=500_000), num_seeds=8)


@pytest.mark.timeout(600)
def test_cartpole(cartpole_outs):
    returns = final_returns(cartpole_outs)
    assert returns.mean() >= 475
    assert returns.min() >= 400


@pytest.mark.timeout(600)
def test_a_policy_plays_in_gymnasiums_cartpole(cartpole_outs):
    """Learned on gymnax's CartPole, played on another implementation."""
    policy = cartpole_outs.member(0).policy
    returns, _ = purerl.evaluate_in_gymnasium(policy, "CartPole-v1", 20)
    print("returns in gymnasium:", returns)
    assert np.mean(returns) >= 450


def cartpole(agent, **options):
    return purerl.TrainConfig("CartPole-v1", agent, total_timesteps=500_000, **options)


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("critic", "least"),
    [(None, 450), (purerl.DefaultQCritic, 400), (purerl.DefaultQNetwork, 400)],
    ids=["V(s)", "Q(s, a)", "Q(s, .)"],
)
@pytest.mark.slow
def test_actor_critic_on_cartpole(critic, least):
    returns = final_returns(train(cartpole(purerl.ActorCritic(critic=critic)), 4), 50)
    assert returns.mean() >= least
    assert returns.min() >= least - 50


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("baseline", [False, True], ids=["plain", "baseline"])
def test_reinforce_on_cartpole(baseline):
    agent = purerl.REINFORCE(n_episodes=4, lr=3e-3, baseline=baseline)
    returns = final_returns(train(cartpole(agent), 8), 20)
    assert returns.mean() >= 450


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_dqn_on_cartpole():
    returns = final_returns(train(cartpole(purerl.DQN()), 4), 1_000)
    assert returns.mean() >= 450


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "noise",
    [purerl.GaussianNoise(), purerl.OrnsteinUhlenbeckNoise(noise_decay=0.95)],
    ids=["Gaussian", "Ornstein-Uhlenbeck"],
)
def test_ddpg_on_pendulum(noise):
    config = purerl.TrainConfig("Pendulum-v1", purerl.DDPG(), 100_000, noise=noise)
    returns = final_returns(train(config, 4), 500)
    assert returns.mean() >= -200


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_ddpg_on_mountain_car():
    """The reward is at the top of a hill, and every push costs: noise that keeps its direction
    finds it."""
    noise = purerl.OrnsteinUhlenbeckNoise(sigma=0.5)
    config = purerl.TrainConfig("MountainCarContinuous-v0", purerl.DDPG(), 100_000, noise=noise)
    returns = final_returns(train(config, 8), 1_000)
    assert (returns >= 85).sum() >= 6


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_actor_critic_on_pendulum():
    config = purerl.TrainConfig(
        "Pendulum-v1",
        purerl.ActorCritic(n_episodes=16, gamma=0.95, entropy_beta=0.0),
        total_timesteps=1_000_000,
        normalize_obs=True,
        normalize_reward=True,
    )
    assert final_returns(train(config, 4), 100).mean() >= -700


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_acrobot():
    returns = final_returns(train(purerl.TrainConfig("Acrobot-v1", total_timesteps=500_000), 4))
    assert returns.mean() >= -100
    assert returns.min() >= -120


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_pendulum():
    config = purerl.TrainConfig(
        "Pendulum-v1",
        purerl.PPO(gamma=0.95, entropy_beta=0.0),
        total_timesteps=500_000,
        num_envs=16,
        normalize_obs=True,
        normalize_reward=True,
    )
    returns = final_returns(train(config, 4))
    assert returns.mean() >= -250


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_breakout():
    config = purerl.TrainConfig(
        "Breakout-MinAtar",
        purerl.PPO(entropy_beta=0.05, network="mlp"),
        total_timesteps=1_000_000,
        num_envs=64,
    )
    returns = final_returns(train(config, 4))
    assert returns.mean() >= 7
