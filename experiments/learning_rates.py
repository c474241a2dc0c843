"""Six learning rates, eight seeds each: 48 agents, one program.

    python experiments/learning_rates.py        # about a minute on two CPU cores

Every float of an agent can be swept by name, without compiling again for another value.
`purerl.sweep` lays the members over all cores. Writes learning_rates.png, the final return by
learning rate, and learning_rates_curves.png.
"""

import argparse

import numpy as np

import purerl


def main(num_seeds=8, total_timesteps=300_000, out="learning_rates.png"):
    config = purerl.TrainConfig(env="Acrobot-v1", total_timesteps=total_timesteps)
    lrs = np.logspace(-4.5, -2, 6)
    result = purerl.sweep(config, seeds=num_seeds, grid={"lr": lrs})
    print(result)
    purerl.plot_sweep(result, "lr", out)
    curves = out.replace(".png", "_curves.png")
    purerl.plot_sweep_curves(result, path=curves)
    print(f"pictures: {out} and {curves}")
    return result


if __name__ == "__main__":
    purerl.use_all_cores()
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--steps", type=int, default=300_000)
    parser.add_argument("--out", default="learning_rates.png")
    args = parser.parse_args()
    main(args.seeds, args.steps, args.out)
