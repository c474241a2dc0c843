"""Population-based training against random search, at the same number of environment steps.

    python experiments/evolving.py              # about five minutes on a CPU core

PPO on Pendulum-v1 with five hyperparameters from ranges as wide as somebody would give who doesn't
know them: 16 agents are trained for 150,000 steps each, in both cases from the same draws and keys.
In random search each keeps its hyperparameters; in `purerl.evolve` the worst four go on with copies
of the best after each interval. What either ends with, the agent with the highest training return
at the end, is judged by 256 greedy episodes that it wasn't chosen by. Repeated with other keys;
writes a PNG of the last population.
"""

import argparse
import time

import jax
import numpy as np

import purerl
from purerl.statistics import bootstrap_interval, iqm, probability_of_improvement

SPACE = {
    "lr": purerl.LogUniform(1e-6, 1.0),
    "gamma": purerl.Uniform(0.8, 0.999),
    "lam": purerl.Uniform(0.5, 1.0),
    "entropy_beta": purerl.LogUniform(1e-5, 1.0),
    "eps_clip": purerl.Uniform(0.05, 0.8),
}
KINDS = {"random search": 0.0, "evolve": 0.25}  # the fraction that is replaced
EPISODES = 256


def main(repeats=16, population=16, total_timesteps=150_000, intervals=20, out="evolving.png"):
    config = purerl.preset("Pendulum-v1", "ppo", total_timesteps=total_timesteps)
    interval = -(-total_timesteps // intervals)
    scores = {kind: [] for kind in KINDS}
    medians = {kind: [] for kind in KINDS}
    print("return of the best agent on fresh episodes, and median of its population at the end")
    start = time.perf_counter()
    for repeat in range(repeats):
        for kind, fraction in KINDS.items():
            result = purerl.evolve(
                config,
                SPACE,
                population=population,
                interval=interval,
                fraction=fraction,
                key=jax.random.key(repeat),
            )
            played = play(result.best().output.policy, jax.random.key(1_000 + repeat))
            scores[kind].append(float(played.episode_return))
            medians[kind].append(float(np.nanmedian(result.final_fitness)))
        pairs = ", ".join(f"{k} {scores[k][-1]:.1f} ({medians[k][-1]:.1f})" for k in KINDS)
        print(f"key {repeat}: {pairs}", flush=True)
    for name, table in (("best", scores), ("median of the population", medians)):
        for kind, values in table.items():
            low, high = bootstrap_interval(iqm, values)
            print(f"{name}, {kind}: interquartile mean {iqm(values):.1f} [{low:.1f}, {high:.1f}]")
    better = probability_of_improvement(scores["evolve"], scores["random search"])
    print(f"probability that evolve ends higher: {better.value:.2f} [{better.low:.2f}, "
          f"{better.high:.2f}]; {time.perf_counter() - start:.0f} s")  # fmt: skip
    print(result)
    purerl.plot_evolution(result, out)
    print(f"picture: {out}")
    return scores


@jax.jit
def play(policy, key):
    """Greedy episodes of a policy."""
    return purerl.evaluate(purerl.make("Pendulum-v1"), policy.acting(), key, EPISODES, 200)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=16)
    parser.add_argument("--population", type=int, default=16)
    parser.add_argument("--steps", type=int, default=150_000)
    parser.add_argument("--intervals", type=int, default=20)
    parser.add_argument("--out", default="evolving.png")
    args = parser.parse_args()
    main(args.repeats, args.population, args.steps, args.intervals, args.out)
