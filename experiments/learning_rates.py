"""Six learning rates, eight seeds each: 48 agents, one program.

    python experiments/learning_rates.py        # about two minutes on two CPU cores

Every float of an agent may be mapped over by name; nothing is compiled again for another value.
"""

import jax
import jax.numpy as jnp
import numpy as np

import purerl


def main(num_seeds=8, total_timesteps=300_000):
    config = purerl.TrainConfig(env="Acrobot-v1", total_timesteps=total_timesteps)
    train = purerl.make_train(config)
    over_seeds = jax.vmap(train, in_axes=(0, None))
    over_lrs = jax.vmap(over_seeds, in_axes=(None, 0))

    lrs = jnp.logspace(-4.5, -2, 6)
    keys = jax.random.split(jax.random.key(0), num_seeds)
    outs = jax.jit(over_lrs)(keys, {"lr": lrs})

    late = outs.num_updates // 10
    final = np.nanmean(outs.metrics.episode_return[..., -late:], axis=-1)  # [lrs, seeds]
    print("      lr   final return   worst and best seed")
    for lr, seeds in zip(lrs, final, strict=True):
        print(f"{lr:8.5f}   {seeds.mean():12.1f}   {seeds.min():6.1f} {seeds.max():6.1f}")
    return final


if __name__ == "__main__":
    main()
