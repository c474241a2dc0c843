"""Training for real: thresholds that a broken agent misses, several seeds each."""

import gymnasium
import jax
import jax.numpy as jnp
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
    policy = jax.jit(cartpole_outs.member(0).policy)
    env = gymnasium.make("CartPole-v1")
    returns = []
    for episode in range(20):
        obs, _ = env.reset(seed=episode)
        total, over = 0.0, False
        while not over:
            action = int(policy(jnp.asarray(obs)[None])[0])
            obs, reward, terminated, truncated, _ = env.step(action)
            total, over = total + float(reward), terminated or truncated
        returns.append(total)
    print("returns in gymnasium:", returns)
    assert np.mean(returns) >= 450


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
    assert returns.mean() >= -400


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
