"""Speed and memory of this tree next to those of one of its revisions, in one interleaved run.

    python benchmarks/revisions.py --against HEAD~1             # all cases, some 15 minutes
    python benchmarks/revisions.py --against HEAD~9 --only ppo-4x128 dqn --cores 1

Each case is trained by two processes, one that imports purerl from this tree and one from the
revision's, which take turns: one is idle while the other is timed. For each case: environment steps
a second, medians of the repeats; their ratio, the median of the ratios of consecutive runs, with
its range; the ratio of the compile times; and that of the compiled programs' memory beyond their
inputs.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from learning import HERE, chosen, make_parser, pin, unpack


def cases(purerl):
    """Options of a config, by name: about a second of training each."""
    cartpole, pendulum, breakout = "CartPole-v1", "Pendulum-v1", "Breakout-MinAtar"
    a2c = purerl.ActorCritic(n_episodes=64, episode_length=32)
    sizes = {"num_envs": 64, "update_every": 128}
    return {
        "ppo-4x128": (cartpole, purerl.PPO(), 262_144, {"num_envs": 4, "update_every": 128}),
        "ppo-64x128": (cartpole, purerl.PPO(), 524_288, sizes),
        "ppo-2048x32": (cartpole, purerl.PPO(), 524_288, {"num_envs": 2048, "update_every": 32}),
        "ppo-breakout": (breakout, purerl.PPO(network="mlp"), 131_072, sizes),
        "ppo-breakout-cnn": (breakout, purerl.PPO(), 32_768, sizes),
        "ppo-normalised": (
            pendulum,
            purerl.PPO(),
            524_288,
            sizes | {"normalize_obs": True, "normalize_reward": True},
        ),
        "reinforce": (cartpole, purerl.REINFORCE(), 524_288, {}),
        "actor-critic": (cartpole, a2c, 1_048_576, {}),
        "dqn": (cartpole, purerl.DQN(hidden=(120, 84)), 100_000, {"num_envs": 10}),
        "dqn-priorities": (
            cartpole,
            purerl.DQN(hidden=(120, 84)),
            100_000,
            {"num_envs": 10, "buffer": purerl.Buffer(maxlen=200_000, priority_sampling=True)},
        ),
        "ddpg": (pendulum, purerl.DDPG(), 20_000, {}),
    }


def work(tree, name):
    """A case with purerl of a tree."""
    import purerl

    if not Path(purerl.__file__).is_relative_to(tree):
        raise SystemExit(f"purerl came from {purerl.__file__}, not from {tree}")
    train_by_line(purerl, name)


def train_by_line(purerl, name):
    """Compiles, prints the time and the memory, and trains once for each line."""
    import jax

    env, agent, steps, options = cases(purerl)[name]
    train = purerl.make_train(purerl.TrainConfig(env, agent, steps, **options))
    key = jax.random.key(0)
    began = time.perf_counter()
    # Earlier revisions set the flag when they were imported.
    options = purerl.compiler_options() if hasattr(purerl, "compiler_options") else {}
    compiled = jax.jit(train, compiler_options=options).lower(key).compile()
    seconds = time.perf_counter() - began
    memory = compiled.memory_analysis().temp_size_in_bytes
    jax.block_until_ready(compiled(key))
    print(json.dumps({"compile": seconds, "memory": memory, "steps": steps}), flush=True)
    for _ in sys.stdin:
        began = time.perf_counter()
        jax.block_until_ready(compiled(key))
        print(json.dumps(time.perf_counter() - began), flush=True)


class Worker:
    """A process that trains a case, with purerl of a tree.

    Args:
        script: the file it runs, with `--work` and the arguments.
        tree: the folder that purerl is imported from.
        *arguments: further ones.
    """

    def __init__(self, script, tree, *arguments):
        command = [sys.executable, script, "--work", *map(str, arguments)]
        # No cache of compiled programs: compiling is timed.
        environment = {**os.environ, "PYTHONPATH": str(tree), "JAX_COMPILATION_CACHE_DIR": ""}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(command, env=environment, cwd=tree, **pipes)
        self.about = self.answer()

    def answer(self):
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"a process ended with code {self.process.wait()}")
        return json.loads(line)

    def seconds(self):
        """Seconds of one training, from the first step to the last."""
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self.answer()

    def end(self):
        self.process.stdin.close()
        self.process.wait()


def compare(old, new, name, repeats):
    """The row of a case: a comparison of two workers."""
    workers = old, new
    times = [(old.seconds(), new.seconds()) for _ in range(repeats)]
    for worker in workers:
        worker.end()
    ratios = [x / y for x, y in times]
    speeds = [
        worker.about["steps"] / statistics.median(column)
        for worker, column in zip(workers, zip(*times, strict=True), strict=True)
    ]
    compiling = new.about["compile"] / old.about["compile"]
    memory = new.about["memory"] / old.about["memory"]
    return (
        f"{name:15} {speeds[0]:>10,.0f} {speeds[1]:>10,.0f}   {statistics.median(ratios):.3f} "
        f"({min(ratios):.2f} to {max(ratios):.2f})   {compiling:.2f} "
        f"({old.about['compile']:.1f} s, {new.about['compile']:.1f} s)   {memory:.2f}"
    )


def main():
    parser = make_parser(__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--work", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        return work(Path(args.work[0]), args.work[1])
    pin(args.cores)

    import purerl

    names = chosen(parser, args.only, cases(purerl))
    with tempfile.TemporaryDirectory() as folder:
        before = unpack(args.against, folder)
        print(f"steps/s of {args.against} and here, their ratio; compiling; memory", flush=True)
        for name in names:
            workers = (Worker(__file__, tree, tree, name) for tree in (before, HERE))
            print(compare(*workers, name, args.repeats), flush=True)
    return None


if __name__ == "__main__":
    main()
