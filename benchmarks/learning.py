"""Whether learning is what it was: this tree next to one of its revisions, over many seeds.

    python benchmarks/learning.py --against HEAD~1              # all cases, some 10 minutes
    python benchmarks/learning.py --against HEAD~9 --only ppo-4x128 dqn --seeds 32

For each case and both trees: the final return (of the last tenth of the run) and the mean return
over the whole run, its area under the curve; means over the seeds with 95 % bootstrap intervals.
"higher here": the probability that a seed of this tree ends higher than one of the other, with its
interval; one half means no change, and an interval below it that something got worse.

Each training is a separate process, which imports purerl from its tree.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent.parent


def cases(purerl):
    """Options of a config, by name."""
    cartpole, pendulum, steps = "CartPole-v1", "Pendulum-v1", 300_000
    wide = {"env": cartpole, "agent": purerl.PPO(), "total_timesteps": 2 * steps}
    return {
        "ppo-4x128": {"env": cartpole, "agent": purerl.PPO(), "total_timesteps": steps},
        "ppo-64x128": {**wide, "num_envs": 64, "update_every": 128},
        "ppo-2048x32": {**wide, "num_envs": 2048, "update_every": 32},
        "reinforce": {"env": cartpole, "agent": purerl.REINFORCE(), "total_timesteps": steps},
        "actor-critic": {"env": cartpole, "agent": purerl.ActorCritic(), "total_timesteps": steps},
        "dqn": {"env": cartpole, "agent": purerl.DQN(), "total_timesteps": 100_000},
        "ddpg": {"env": pendulum, "agent": purerl.DDPG(), "total_timesteps": 15_000},
    }


def work(tree, name, num_seeds, file):
    """Trains, and writes returns and numbers of episodes of each update, `[S, U]` both."""
    import jax

    import purerl

    if not Path(purerl.__file__).is_relative_to(tree):
        raise SystemExit(f"purerl came from {purerl.__file__}, not from {tree}")
    train = purerl.make_train(purerl.TrainConfig(**cases(purerl)[name]))
    metrics = jax.jit(jax.vmap(lambda key: train(key).metrics))(
        jax.random.split(jax.random.key(0), num_seeds)
    )
    np.savez(file, returns=metrics.episode_return, episodes=metrics.num_episodes)


def trained(tree, name, num_seeds, folder):
    """Final returns and areas under the curves, `[S]` both."""
    from purerl.statistics import bin_curves, final_returns

    file = Path(folder) / "curves.npz"
    command = [sys.executable, __file__, "--work", tree, name, str(num_seeds), str(file)]
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    subprocess.run(command, check=True, env=environment, cwd=folder)
    with np.load(file) as curves:
        returns, episodes = curves["returns"], curves["episodes"]
    _, binned = bin_curves(np.arange(returns.shape[1]), returns, episodes)
    return {"final": final_returns(returns, episodes), "area": np.nanmean(binned, axis=1)}


def unpack(revision, folder):
    """A revision's tree, unpacked into a folder."""
    tree = Path(folder).resolve() / "before"
    tree.mkdir()
    archive = subprocess.run(
        ["git", "archive", revision], cwd=HERE, check=True, capture_output=True
    )
    subprocess.run(["tar", "-x", "-C", tree], input=archive.stdout, check=True)
    return tree


def make_parser(doc):
    """The arguments of a comparison of this tree with a revision."""
    parser = argparse.ArgumentParser(description=doc.split("\n")[0])
    parser.add_argument("--against", default="HEAD", help="a revision (HEAD: what isn't committed)")
    parser.add_argument("--only", nargs="+", metavar="CASE", help="such as ppo-4x128")
    parser.add_argument("--cores", type=int, help="how many may be used")
    return parser


def pin(cores):
    """Pins this process and its children to a number of cores; None for all."""
    if cores:
        os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[:cores]))


def chosen(parser, only, known):
    """The chosen cases, or all of them."""
    for name in only or ():
        if name not in known:
            parser.error(f"--only: got {name!r}, expected some of {', '.join(known)}")
    return only or known


def main():
    parser = make_parser(__doc__)
    parser.add_argument("--seeds", type=int, default=16)
    parser.add_argument("--work", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        tree, name, num_seeds, file = args.work
        return work(Path(tree), name, int(num_seeds), file)
    pin(args.cores)

    import purerl
    from purerl.statistics import bootstrap_interval, probability_of_improvement

    names = chosen(parser, args.only, cases(purerl))
    with tempfile.TemporaryDirectory() as folder:
        before = unpack(args.against, folder)
        for name in names:
            old, new = (trained(tree, name, args.seeds, folder) for tree in (before, HERE))
            for score in ("final", "area"):
                cells = []
                for scores in (old[score], new[score]):
                    low, high = bootstrap_interval(np.mean, scores)
                    cells.append(f"{np.mean(scores):8.1f} [{low:.1f}, {high:.1f}]")
                p = probability_of_improvement(new[score], old[score])
                print(
                    f"{name:12} {score:5}  {args.against}: {cells[0]}  here: {cells[1]}  "
                    f"higher here: {p.value:.2f} [{p.low:.2f}, {p.high:.2f}]",
                    flush=True,
                )
    return None


if __name__ == "__main__":
    main()
