"""Sixteen agents learn CartPole at once, each with its own seed.

    python experiments/cartpole_seeds.py        # about a minute on two CPU cores

One `vmap` over keys: the same program as for one agent, with another axis.
"""

import time

import jax
import numpy as np

import purerl


def main(num_seeds=16, total_timesteps=500_000):
    config = purerl.TrainConfig(env="CartPole-v1", total_timesteps=total_timesteps)
    train = jax.jit(jax.vmap(purerl.make_train(config)))
    keys = jax.random.split(jax.random.key(0), num_seeds)
    start = time.perf_counter()
    outs = jax.block_until_ready(train(keys))
    seconds = time.perf_counter() - start

    returns = np.asarray(outs.metrics.episode_return)  # [seeds, updates], NaN where none ended
    print("env steps   mean return   worst and best seed")
    for updates in np.array_split(np.arange(outs.num_updates), 10):
        seeds = np.nanmean(returns[:, updates], axis=1)
        steps = outs.timesteps[updates[-1]]
        print(f"{steps:9,d}   {seeds.mean():11.1f}   {seeds.min():5.1f} {seeds.max():5.1f}")
    total = num_seeds * outs.num_timesteps
    print(f"{num_seeds} agents, {total:,} steps, {seconds:.0f} s with compiling")
    return returns


if __name__ == "__main__":
    main()
