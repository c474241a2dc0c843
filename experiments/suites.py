"""A small study of each suite: the preset of each of their environments, evaluated and drawn.

    pip install 'purerl[suites]'
    python experiments/suites.py                         # of the suites that are installed
    python experiments/suites.py --only jumanji/Snake-v1 --seeds 4

Prints, for each seed, the return at the end of the training and of 64 greedy episodes, the metrics
at their ends, and the time with compiling; writes a GIF and a policy of the best seed, and the
learning curve, into `suites/`. Some environments have no preset yet: their settings are here.
"""

import argparse
import pathlib
import time

import numpy as np
from results import greedy

import purerl
from purerl.envs import suites
from purerl.training.presets import find_preset, list_presets

# Without presets: steps, and what differs from the defaults.
UNTUNED = {
    "brax/inverted_pendulum": (
        2_000_000,
        {
            # Its engine compiles in a tenth of the default's time.
            "env": {"name": "brax/inverted_pendulum", "backend": "spring"},
            "agent": purerl.PPO(lr=3e-3, entropy_beta=0.0),
            "normalize_obs": True,
            "normalize_reward": True,
        },
    ),
    "playground/CartpoleBalance": (
        1_000_000,
        {"agent": purerl.PPO(lr=1e-3, entropy_beta=0.0, gamma=0.995), "normalize_obs": True},
    ),
    "jumanji/Snake-v1": (1_000_000, {"agent": purerl.PPO(network="mlp")}),
    "pgx/2048": (1_000_000, {"agent": purerl.PPO(network="mlp", hidden=(256,), gamma=0.995)}),
    "craftax/Craftax-Classic-Symbolic-v1": (300_000, {}),
    "octax/brix": (100_000, {}),
}
STUDIES = [*[name for name in list_presets() if "/" in name], *UNTUNED]
EPISODES = 64


def config_of(name):
    if find_preset(name, None):
        return purerl.preset(name)
    steps, options = UNTUNED[name]
    sizes = {"num_envs": 64, "update_every": 64, "total_timesteps": steps}
    return purerl.TrainConfig(**{"env": name, **sizes, **options})


def figures(values):
    return ", ".join(f"{x:.4g}" for x in np.asarray(values))


def study(name, seeds, folder):
    """Trains, evaluates and draws; the mean return of each seed's greedy episodes."""
    config = config_of(name)
    start = time.perf_counter(), time.process_time()
    outs = purerl.fit(config, seeds=seeds)
    seconds = time.perf_counter() - start[0]
    processor = time.process_time() - start[1]
    curves = purerl.Curves.of(name, outs)
    played = greedy(config, outs, EPISODES)
    metrics = {x: figures(y) for x, y in played.info.items() if "/" not in x}
    print(
        f"{name}: {figures(curves.final_returns)} at the end of {outs.num_timesteps:,} steps, "
        f"greedy {figures(played.episode_return)}, {metrics}; {seconds:.0f} s, "
        f"{processor:.0f} of the processor",
        flush=True,
    )
    policy = outs.member(int(np.argmax(played.episode_return))).policy
    file = folder / name.replace("/", "_")
    purerl.save_policy(policy, file.with_suffix(".policy"))
    purerl.plot_curves([curves], file.with_suffix(".png"), title=name)
    purerl.render(policy, config.env, file.with_suffix(".gif"), max_steps=300)
    return np.asarray(played.episode_return)


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
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=STUDIES)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--folder", default="suites")
    args = parser.parse_args()
    main(args.only, args.seeds, args.folder)
