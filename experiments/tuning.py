"""A search by TPE and successive halving next to random search, at the same environment steps.

    python experiments/tuning.py                # about six minutes on one CPU core

PPO on Acrobot-v1 for 100k steps. `purerl.tune` searches with its defaults; random search trains
each of its trials to the end, as many as the same number of environment steps pays for. Both are
repeated with several seeds of their samplers; what counts is what their winners end at with seeds
that took no part in the choice. A study that was killed continues in its folder, which has a
picture of the first search.
"""

import argparse
import time

import numpy as np

import purerl
from purerl.statistics import bootstrap_interval, iqm, probability_of_improvement


def main(repeats=5, trials=48, total_timesteps=100_000, folder="tuning"):
    config = purerl.TrainConfig(env="Acrobot-v1", total_timesteps=total_timesteps)
    # Floats alone, so that one program serves both.
    space = {
        "lr": purerl.LogUniform(1e-5, 1e-1),
        "gamma": [0.9, 0.95, 0.98, 0.99, 0.999],
        "lam": purerl.Uniform(0.8, 1.0),
        "entropy_beta": purerl.LogUniform(1e-4, 1e-1),
        "eps_clip": purerl.Uniform(0.1, 0.4),
    }
    found = {"tune": [], "random": []}
    for seed in range(repeats):
        start = time.perf_counter()
        where = f"{folder}/tune-{seed}"
        result = purerl.tune(config, space, trials=trials, seed=seed, run_dir=where)
        whole = result.measured.table["num_timesteps"][0] * len(result.trials[0].outcome.returns)
        fair = max(1, round(result.num_timesteps / whole))
        options = {
            "sampler": "random",
            "rungs": 1,
            "batch": 4,
            "run_dir": f"{folder}/random-{seed}",
        }
        random = purerl.tune(config, space, trials=fair, seed=1000 + seed, **options)
        for name, searched in (("tune", result), ("random", random)):
            best = searched.best
            found[name].append(best.mean)
            print(
                f"{name}, seed {seed}: {len(searched.trials)} trials, "
                f"{searched.num_timesteps:,} steps; chosen by {best.score:.1f}, ends at "
                f"{best.mean:.1f} [{best.low:.1f}, {best.high:.1f}], lr={best.values['lr']:.2g}",
                flush=True,
            )
        print(f"  {time.perf_counter() - start:.0f} s", flush=True)
        if seed == 0:
            picture = f"{folder}/tuning.png"
            purerl.plot_tune(result, picture, title=f"PPO on Acrobot-v1, {trials} trials")
    for name, scores in found.items():
        low, high = bootstrap_interval(iqm, np.array(scores))
        print(f"{name}: interquartile mean {iqm(scores):.1f} [{low:.1f}, {high:.1f}]")
    better = probability_of_improvement(found["tune"], found["random"])
    print(
        f"tune is better with probability {better.value:.2f} [{better.low:.2f}, {better.high:.2f}]"
    )
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--trials", type=int, default=48)
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--folder", default="tuning")
    args = parser.parse_args()
    main(args.repeats, args.trials, args.steps, args.folder)
