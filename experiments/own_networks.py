"""Your networks: a CNN for PPO on pixels, and a Q critic and its actor for DDPG.

    python experiments/own_networks.py          # about two minutes on two CPU cores

PPO learns Breakout-MinAtar, 10 x 10 cells of 4 channels, and DDPG Pendulum-v1. An agent takes
the classes, not instances; the outputs of `create_network` are checked before anything is compiled.
Writes a picture of the learning curves of each.
"""

import argparse
import time

import flax.linen as nn
import jax
import jax.numpy as jnp

import purerl


def convolve(x, features, size):
    """A convolution without padding, `[B, H, W, C]` to `[B, H - size + 1, W - size + 1, features]`.

    The same as `nn.Conv(features, (size, size), padding="VALID")`: windows side by side, and a
    dense layer on them. Inside a loop, where training always is, XLA's convolution takes some 70
    times as long on a CPU. On a GPU, use nn.Conv.
    """
    height, width = (n - size + 1 for n in x.shape[1:3])
    windows = [x[:, i : i + height, j : j + width] for i in range(size) for j in range(size)]
    return nn.Dense(features)(jnp.concatenate(windows, axis=-1))


class PixelActor(purerl.Actor):
    """Logits: two convolutions and a dense layer."""

    @nn.compact
    def create_network(self, obs):  # [B, 10, 10, 4]
        x = nn.relu(convolve(obs.astype(jnp.float32), features=16, size=3))
        x = nn.relu(convolve(x, features=16, size=3))
        x = nn.relu(nn.Dense(64)(x.reshape(x.shape[0], -1)))
        return nn.Dense(self.action_dim)(x)


class FlatCritic(purerl.Critic):
    """V(s), by another kind of network than the actor's: an MLP."""

    @nn.compact
    def create_network(self, obs):
        x = obs.astype(jnp.float32).reshape(obs.shape[0], -1)
        for size in (128, 128):
            x = nn.relu(nn.Dense(size)(x))
        return nn.Dense(1)(x)


class Torque(purerl.Actor):
    """A deterministic action; tanh and the scale of the action space are applied to it."""

    distribution = None

    @nn.compact
    def create_network(self, obs):
        x = nn.relu(nn.Dense(64)(obs))
        x = nn.relu(nn.Dense(64)(x))
        # Small at first, so that tanh doesn't saturate.
        return nn.Dense(self.action_dim, kernel_init=nn.initializers.normal(1e-2))(x)


class LateAction(purerl.Critic):
    """Q(s, a): the action joins in the second layer, as in the DDPG paper."""

    @nn.compact
    def create_network(self, obs, action):  # [B, 3], [B, 1]
        x = nn.relu(nn.Dense(64)(obs))
        x = nn.relu(nn.Dense(64)(jnp.concatenate([x, action], axis=-1)))
        return nn.Dense(1)(x)


def learn(title, config, num_seeds, picture):
    """Trains, prints the learning curve and draws it."""
    train = jax.jit(jax.vmap(purerl.make_train(config)))
    start = time.perf_counter()
    outs = jax.block_until_ready(train(jax.random.split(jax.random.key(0), num_seeds)))
    seconds = time.perf_counter() - start
    curves = purerl.Curves.of(title, outs)
    steps, returns = curves.binned(curves.timesteps, num_bins=10)
    print(f"\n{title}\nenv steps   mean return   worst and best seed")
    for x, seeds in zip(steps, returns.T, strict=True):
        print(f"{x:9,.0f}   {seeds.mean():11.1f}   {seeds.min():8.1f} {seeds.max():8.1f}")
    print(f"{num_seeds} seeds, {seconds:.0f} s with compiling")
    purerl.plot_curves([curves], picture)
    print(f"learning curves: {picture}")
    return curves


def main(steps=200_000, num_seeds=2):
    pixels = purerl.TrainConfig(
        env="Breakout-MinAtar",
        agent=purerl.PPO(actor=PixelActor, critic=FlatCritic, entropy_beta=0.05),
        num_envs=64,
        update_every=32,
        total_timesteps=steps,
    )
    pendulum = purerl.TrainConfig(
        env="Pendulum-v1",
        agent=purerl.DDPG(actor=Torque, critic=LateAction, gamma=0.95, gradient_steps=4),
        num_envs=4,  # with 4 gradient steps after each step of all: one a transition
        total_timesteps=max(steps // 10, 4_000),
    )
    return (
        learn("PPO on Breakout, convolutions", pixels, num_seeds, "own_networks_pixels.png"),
        learn("DDPG on Pendulum, a late action", pendulum, num_seeds, "own_networks_pendulum.png"),
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=200_000, help="of PPO; DDPG takes a tenth")
    parser.add_argument("--seeds", type=int, default=2)
    args = parser.parse_args()
    main(args.steps, args.seeds)
