"""Sixteen agents learn CartPole at once, each with another seed.

    python experiments/cartpole_seeds.py        # about a minute on two CPU cores

One `vmap` over keys: the program of one agent, with one more axis. Writes cartpole_seeds.png: the
interquartile mean over seeds, and each seed.
"""

import argparse
import time

import jax

import purerl


def main(num_seeds=16, total_timesteps=500_000, out="cartpole_seeds.png"):
    config = purerl.TrainConfig(env="CartPole-v1", total_timesteps=total_timesteps)
    train = jax.jit(jax.vmap(purerl.make_train(config)))
    keys = jax.random.split(jax.random.key(0), num_seeds)
    start = time.perf_counter()
    outs = jax.block_until_ready(train(keys))
    seconds = time.perf_counter() - start

    curves = purerl.Curves.of("PPO on CartPole-v1", outs)
    steps, returns = curves.binned(curves.timesteps, num_bins=10)
    print("env steps   mean return   worst and best seed")
    for x, seeds in zip(steps, returns.T, strict=True):
        print(f"{x:9,.0f}   {seeds.mean():11.1f}   {seeds.min():5.1f} {seeds.max():5.1f}")
    total = num_seeds * outs.num_timesteps
    print(f"{num_seeds} agents, {total:,} steps, {seconds:.0f} s with compiling")
    purerl.plot_curves([curves], out)
    print(f"learning curves: {out}")
    return curves


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=16)
    parser.add_argument("--steps", type=int, default=500_000)
    parser.add_argument("--out", default="cartpole_seeds.png")
    args = parser.parse_args()
    main(args.seeds, args.steps, args.out)
