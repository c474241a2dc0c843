"""A small study of each suite: the preset of each of their environments, evaluated and drawn.

    pip install 'purerl[suites]'
    python experiments/suites.py                         # of the suites that are installed
    python experiments/suites.py --only jumanji/Snake-v1 --seeds 4

Prints, for each seed, the return at the end of the training and of 64 greedy episodes, the metrics
at their ends, and the time with compiling; writes a GIF and a policy of the best seed, and the
learning curve, into `suites/`. Two suites without presets are there for a look.
"""

import argparse
import pathlib
import time

import numpy as np
from results import greedy

import purerl
from purerl.envs import suites
from purerl.training.presets import find_preset, list_presets

# Without presets: what defaults reach in so many steps.
UNTUNED = {"craftax/Craftax-Classic-Symbolic-v1": 300_000, "octax/brix": 100_000}
STUDIES = [*[name for name in list_presets() if "/" in name], *UNTUNED]
EPISODES = 64


def config_of(name):
    if find_preset(name, None):
        return purerl.preset(name)
    steps = UNTUNED[name]
    return purerl.TrainConfig(env=name, num_envs=64, update_every=64, total_timesteps=steps)


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
