"""A small study of each suite: PPO on one of its environments, evaluated and drawn.

    pip install 'purerl[suites]'
    python experiments/suites.py                         # of the suites that are installed
    python experiments/suites.py --only jumanji/Snake-v1 --seeds 4

Prints the return of 64 greedy episodes, the metrics at their ends, and the time with compiling;
writes a GIF, a policy and the learning curve of each into `suites/`.
"""

import argparse
import pathlib
import time

import jax

import purerl
from purerl.envs import suites

# Environment, steps, and what differs from the defaults.
PENDULUM = {
    "name": "brax/inverted_pendulum",
    "backend": "spring",
}  # compiles in a tenth of the time
STUDIES = {
    "brax/inverted_pendulum": (
        2_000_000,
        {
            "env": PENDULUM,
            "agent": purerl.PPO(lr=3e-3, entropy_beta=0.0),
            "normalize_obs": True,
            "normalize_reward": True,
        },
    ),
    "playground/CartpoleBalance": (
        1_000_000,
        {"agent": purerl.PPO(lr=1e-3, entropy_beta=0.0, gamma=0.995), "normalize_obs": True},
    ),
    "craftax/Craftax-Classic-Symbolic-v1": (300_000, {}),
    "navix/Navix-Empty-8x8-v0": (200_000, {}),
    "navix/Navix-DoorKey-5x5-v0": (300_000, {}),
    "xminigrid/MiniGrid-Empty-8x8": (200_000, {}),
    "xminigrid/MiniGrid-DoorKey-5x5": (300_000, {}),
    "jumanji/Snake-v1": (1_000_000, {"agent": purerl.PPO(network="mlp")}),
    "pgx/2048": (1_000_000, {"agent": purerl.PPO(network="mlp", hidden=(256,), gamma=0.995)}),
    "octax/brix": (100_000, {}),
    "functional/CartPole-v1": (200_000, {}),
}
EPISODES = 64


def study(name, seeds, folder):
    """Trains, evaluates and draws; the mean return of the best seed's greedy episodes."""
    steps, options = STUDIES[name]
    fixed = {"env": name, "num_envs": 64, "update_every": 64, "total_timesteps": steps}
    config = purerl.TrainConfig(**{**fixed, **options})
    start = time.perf_counter()
    outs = purerl.fit(config, seeds=seeds)
    seconds = time.perf_counter() - start
    curves = purerl.Curves.of(name, outs)
    final = curves.final_returns
    policy = outs.member(int(final.argmax())).policy
    file = folder / name.replace("/", "_")
    limit = config.env.spec.max_episode_steps or 2_000
    played = purerl.evaluate(config.env, policy.acting(), jax.random.key(1), EPISODES, limit)
    mean = float(played.episode_return)
    metrics = {x: round(float(y), 3) for x, y in played.info.items()}
    shown = {x: y for x, y in metrics.items() if "/" not in x}
    print(
        f"{name}: {final.mean():.4g} at the end of {steps:,} steps, greedy {mean:.4g}, {shown}; "
        f"{seconds:.0f} s",
        flush=True,
    )
    purerl.save_policy(policy, file.with_suffix(".policy"))
    purerl.plot_curves([curves], file.with_suffix(".png"), title=f"PPO on {name}")
    purerl.render(policy, config.env, file.with_suffix(".gif"), max_steps=min(limit, 300))
    return mean


def main(only=None, seeds=1, folder="suites"):
    folder = pathlib.Path(folder)
    folder.mkdir(exist_ok=True)
    found = {}
    for name in only or STUDIES:
        if suites.installed(name.partition("/")[0]):
            found[name] = study(name, seeds, folder)
        else:
            print(f"{name}: {suites.pip_line(name.partition('/')[0])}")
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=list(STUDIES))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--folder", default="suites")
    args = parser.parse_args()
    main(args.only, args.seeds, args.folder)
