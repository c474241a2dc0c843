"""The agents without hyperparameters: what their defaults reach on each small environment.

    python experiments/defaults.py                              # all, half an hour on two cores
    python experiments/defaults.py --only ppo dqn --seeds 8
    python experiments/defaults.py --set activation=relu        # another default, as a trial

A score is the interquartile mean over seeds of the return of 64 greedy episodes, 0 for random
actions and 1 for the best return that is known; it may be beyond both. An agent's score is the mean
over environments, each cut off at 0 and 1, so that none counts for more than itself; a seed under
0.05 has collapsed.
"""

import argparse
import json
import tomllib
from pathlib import Path

import jax
import numpy as np
from results import greedy

import purerl
from purerl.statistics import iqm

# Steps, and the best return that is known: an optimum, a published figure or that of `results.py`.
DISCRETE = {
    "CartPole-v1": (500_000, 500.0),
    "Acrobot-v1": (500_000, -70.3),
    "MountainCar-v0": (500_000, -101.0),
    "Catch-bsuite": (100_000, 1.0),
    "UmbrellaChain-bsuite": (100_000, 1.0),
    "DiscountingChain-bsuite": (100_000, 1.1),
    "FourRooms-misc": (300_000, 1.0),
    "FrozenLake-misc": (300_000, 0.744),
}
CONTINUOUS = {
    "Pendulum-v1": (500_000, -145.5),
    "MountainCarContinuous-v0": (500_000, 94.8),
    "Reacher-misc": (500_000, 46.8),
}
KINDS = {
    "ppo": DISCRETE | CONTINUOUS,
    "actor_critic": DISCRETE | CONTINUOUS,
    "reinforce": DISCRETE | CONTINUOUS,
    "dqn": DISCRETE,
    "pqn": DISCRETE,
    "sac": CONTINUOUS,
    "td3": CONTINUOUS,
    "ddpg": CONTINUOUS,
}
# An update for each step or so: as many steps as take a minute.
STEPS = {"dqn": 100_000, "sac": 20_000, "td3": 20_000, "ddpg": 20_000}
EPISODES, COLLAPSED = 64, 0.05


def random_return(env):
    """The mean return of random actions."""
    made = purerl.make(env)

    def act(obs, key):
        return jax.vmap(made.spec.random_action)(jax.random.split(key, EPISODES), obs)

    limit = made.spec.max_episode_steps
    played = jax.jit(lambda key: purerl.evaluate(made, act, key, EPISODES, limit))(
        jax.random.key(0)
    )
    return float(played.episode_return)


def scores_of(env, agent, seeds, fields, worst):
    """Normalised returns `[S]`, and the returns."""
    steps, best = KINDS[agent][env]
    mapping = {"name": agent, **fields}
    config = purerl.TrainConfig.from_mapping(
        {"env": env, "agent": mapping, "total_timesteps": min(steps, STEPS.get(agent, steps))}
    )
    out = purerl.fit(config, seeds=seeds)
    returns = np.asarray(greedy(config, out, EPISODES).episode_return, np.float64)
    return (returns - worst) / (best - worst), returns


def main(only, seeds, fields, out):
    worst, table = {}, {}
    for agent in only or KINDS:
        rows = table[agent] = {}
        for env in KINDS[agent]:
            if env not in worst:
                worst[env] = random_return(env)
            scores, returns = scores_of(env, agent, seeds, fields, worst[env])
            rows[env] = scores.tolist()
            each = ", ".join(f"{x:.4g}" for x in np.sort(returns))
            collapsed = int(np.sum(scores < COLLAPSED))
            told = f"; {collapsed} of {seeds} collapsed" if collapsed else ""
            print(f"  {agent} {env}: {iqm(scores):.2f} ({each}){told}", flush=True)
        mean = np.mean([np.clip(iqm(np.array(x)), 0.0, 1.0) for x in rows.values()])
        fallen = sum(int(np.sum(np.array(x) < COLLAPSED)) for x in rows.values())
        total = seeds * len(rows)
        print(f"{agent}: {mean:.3f}; {fallen} of {total} runs collapsed", flush=True)
    if out is not None:
        Path(out).write_text(json.dumps({"random": worst, "scores": table}, indent=2) + "\n")


def field(text):
    """A field of the agents and its value, as in TOML; a word is a text."""
    name, _, value = text.partition("=")
    try:
        return name, tomllib.loads(f"x = {value}")["x"]
    except tomllib.TOMLDecodeError:
        return name, value


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="+", choices=KINDS, metavar="AGENT")
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--set", nargs="+", type=field, default=[], metavar="FIELD=VALUE")
    parser.add_argument("--out", metavar="FILE", help="the scores, as JSON")
    args = parser.parse_args()
    purerl.use_all_cores()
    main(args.only, args.seeds, dict(args.set), args.out)
