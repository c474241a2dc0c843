"""Environments that are learned for real, with thresholds that a broken agent misses."""

from collections.abc import Callable

import jax
import numpy as np

import purerl

from .trials import Trial, final_returns


def train(keys: jax.Array, *args, **options) -> purerl.TrainOutput:
    """All of a config's seeds at once."""
    config = purerl.TrainConfig(*args, **options)
    return jax.jit(jax.vmap(purerl.make_train(config)))(keys)


def at_least(mean: float, each: float = -np.inf) -> Callable[[np.ndarray], bool]:
    """Whether the mean over the seeds and every seed reach these returns."""
    return lambda returns: returns.mean() >= mean and returns.min() >= each


def trial(*args, last: int, mean: float, each: float, seeds: int = 4, slow=True, **options):
    """A trial of a config's arguments: the mean return over the episodes of the last updates."""
    return Trial(
        lambda keys: final_returns(train(keys, *args, **options), last),
        at_least(mean, each),
        seeds,
        slow,
    )


CARTPOLE = ("CartPole-v1", purerl.PPO(), 500_000)
NORMALISED = {"normalize_obs": True, "normalize_reward": True}


def cartpole(agent: purerl.Agent, **options) -> Trial:
    return trial("CartPole-v1", agent, 500_000, **options)


def played_in_gymnasium(keys: jax.Array) -> np.ndarray:
    """`[S]`: learned on gymnax's CartPole, the mean return of 20 episodes on Gymnasium's."""
    outs = train(keys, *CARTPOLE)
    policies = (outs.member(i).policy for i in range(len(keys)))
    return np.array(
        [purerl.evaluate_in_gymnasium(p, "CartPole-v1", 20)[0].mean() for p in policies]
    )


LEARNING = {
    "PPO CartPole": trial(*CARTPOLE, last=10, mean=475, each=400, seeds=8, slow=False),
    "PPO CartPole, played in Gymnasium": Trial(
        played_in_gymnasium, at_least(450, 400), num_seeds=2
    ),
    "ActorCritic V CartPole": cartpole(purerl.ActorCritic(), last=50, mean=450, each=400),
    "ActorCritic Q(s, a) CartPole": cartpole(
        purerl.ActorCritic(critic=purerl.DefaultQCritic), last=50, mean=400, each=350
    ),
    "ActorCritic Q(s, .) CartPole": cartpole(
        purerl.ActorCritic(critic=purerl.DefaultQNetwork), last=50, mean=400, each=300
    ),
    "REINFORCE CartPole": cartpole(
        purerl.REINFORCE(n_episodes=4, lr=3e-3), last=20, mean=450, each=350, seeds=8
    ),
    "REINFORCE baseline CartPole": cartpole(
        purerl.REINFORCE(n_episodes=4, lr=3e-3, baseline=True),
        last=20,
        mean=450,
        each=350,
        seeds=8,
    ),
    "DQN CartPole": cartpole(purerl.DQN(), last=1_000, mean=450, each=350),
    "DDPG Gaussian Pendulum": trial(
        "Pendulum-v1", purerl.DDPG(), 100_000, last=500, mean=-220, each=-300
    ),
    "DDPG Ornstein-Uhlenbeck Pendulum": trial(
        "Pendulum-v1",
        purerl.DDPG(),
        100_000,
        noise=purerl.OrnsteinUhlenbeckNoise(noise_decay=0.95),
        last=500,
        mean=-220,
        each=-300,
    ),
    # The reward is at the top of a hill, and every push costs: noise that keeps its direction finds
    # it.
    "DDPG MountainCarContinuous": trial(
        "MountainCarContinuous-v0",
        purerl.DDPG(),
        100_000,
        noise=purerl.OrnsteinUhlenbeckNoise(sigma=0.5),
        last=1_000,
        mean=85,
        each=80,
    ),
    "ActorCritic Pendulum": trial(
        "Pendulum-v1",
        purerl.ActorCritic(n_episodes=16, gamma=0.95, entropy_beta=0.0),
        1_000_000,
        **NORMALISED,
        last=100,
        mean=-300,
        each=-450,
    ),
    "PPO Acrobot": trial("Acrobot-v1", purerl.PPO(), 500_000, last=10, mean=-95, each=-110),
    "PPO Pendulum": trial(
        "Pendulum-v1",
        purerl.PPO(gamma=0.95, entropy_beta=0.0),
        500_000,
        num_envs=16,
        **NORMALISED,
        last=10,
        mean=-200,
        each=-250,
    ),
    "PPO Breakout": trial(
        "Breakout-MinAtar",
        purerl.PPO(entropy_beta=0.05, network="mlp"),
        1_000_000,
        num_envs=64,
        last=10,
        mean=5.5,
        each=5.5,
    ),
}
