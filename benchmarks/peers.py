"""purerl next to its alternatives: rejax, ajax-rl, Stable-Baselines3 and sbx.

    python benchmarks/peers.py                          # everything, an hour or two
    python benchmarks/peers.py --peers rejax            # without PyTorch
    python benchmarks/peers.py --only ppo-64x128 --repeats 3 --target-seeds 0
    python benchmarks/peers.py --clock cpu              # on a machine that does other things too

Each peer gets a separate virtual environment, made here, with the newest versions that it allows,
but this process's version of JAX.
Same environment, networks, batch, epochs and steps. All programs of a case are started and compiled
first, each in a process; then they take turns, A B A B, one running at a time. The table has the
medians of the runs, and of the ratios of neighbours with their range; the costs of starting; the
peak memory of the process; and the return that the policies reach, since speed can be bought with
learning. "target": environment steps until evaluations reach a return, and the seconds that a user
waits for it: starting, compiling and the steps at the measured speed. In these evaluations each
library acts by its defaults: purerl greedily, rejax by PPO's samples. ajax-rl, whose PPO is the one
with a memory among those that can be installed, has none.

Programs are pinned to one core, except in the cases with two. flashbax is in `buffer.py`.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parent
PEERS = {
    "rejax": ["rejax==0.1.3", "gymnax==0.0.9", "six"],
    "ajax": ["ajax-rl==0.4.0", "six"],
    "sb3": ["stable-baselines3>=2.7"],
    "sbx": ["sbx-rl>=0.20"],
}
PROGRAMS = {
    "purerl": "peer_purerl.py",
    "rejax": "peer_rejax.py",
    "ajax": "peer_ajax.py",
    "sb3": "peer_sb3.py",
    "sbx": "peer_sb3.py",
}

# Common to all cases: evaluation of 64 episodes with sampled actions (PPO's exploration is its
# policy), and one core.
ALL = {
    "cores": 1,
    "devices": 1,
    "members": 1,
    "episodes": 64,
    "sampled": True,
    "evaluate_every": 16_384,
}
PPO = ALL | {
    "algorithm": "ppo",
    "env": "CartPole-v1",
    "hidden": [64, 64],
    "activation": "tanh",
    "lr": 1e-3,
    "gamma": 0.99,
    "lam": 0.95,
    "clip": 0.2,
    "entropy": 0.01,
    "value": 0.5,
    "max_grad_norm": 0.5,
    "epochs": 4,
    "minibatches": 4,
    "target": 475,
}
DQN = ALL | {
    "algorithm": "dqn",
    "env": "CartPole-v1",
    "num_envs": 10,
    "num_steps": 1,
    "lr": 2.5e-4,
    "gamma": 0.99,
    "batch_size": 128,
    "buffer": 10_000,
    "fill": 10_000,
    "double_q": False,
    "epsilon_end": 0.05,
    "epsilon_steps": 25_000,
    "target_every": 50,
    "activation": "relu",
    "sampled": False,
    "target": 475,
}
PQN = ALL | {
    "algorithm": "pqn",
    "env": "CartPole-v1",
    "num_envs": 64,
    "num_steps": 32,
    "hidden": [64, 64],
    "activation": "relu",
    "lr": 5e-4,
    "gamma": 0.99,
    "lam": 0.65,
    "epochs": 2,
    "minibatches": 16,
    "max_grad_norm": 10.0,
    "epsilon_end": 0.05,
    "epsilon_steps": 50_000,
    "sampled": False,
    "steps": 524_288,
    "target": 475,
}
DDPG = ALL | {
    "algorithm": "ddpg",
    "env": "Pendulum-v1",
    "num_envs": 1,
    "num_steps": 1,
    "lr": 1e-3,
    "gamma": 0.99,
    "tau": 0.005,
    "batch_size": 256,
    "buffer": 100_000,
    "fill": 1_000,
    "hidden": [64, 64],
    "activation": "relu",
    "sampled": False,
    "steps": 20_000,
    "episodes": 32,
}
# One step of the critics, and one of the actor: of TD3's every second time.
SAC = DDPG | {"algorithm": "sac", "steps": 10_000}
TD3 = DDPG | {
    "algorithm": "td3",
    "half_range": 2.0,  # of the actions, the unit of the noises
    "noise": 0.1,
    "target_noise": 0.2,
    "target_noise_clip": 0.5,
    "policy_delay": 2,
    "steps": 10_000,
}


def ppo(num_envs, num_steps, steps, **more):
    return PPO | {"num_envs": num_envs, "num_steps": num_steps, "steps": steps} | more


WIDE, WIDEST = ppo(64, 128, 1_048_576), ppo(2048, 32, 1_048_576, minibatches=8)
BOTH = {"cores": 0}
# By name, the programs that take turns; the first is compared with each of the others.
CASES = {
    "ppo-4x128": ppo(4, 128, 524_288),
    "ppo-64x128": WIDE,
    "ppo-2048x32": WIDEST,
    "ppo-breakout": ppo(64, 128, 131_072, env="Breakout-MinAtar", episodes=32),
    "ppo-64x128-2cores": WIDE | BOTH,
    "ppo-2048x32-2cores": WIDEST | BOTH,
    # As a user trains several seeds: `purerl.fit`, and the peer's `train` under `vmap`.
    "ppo-4x128-8seeds-2cores": ppo(4, 128, 262_144, members=8) | BOTH,
    "ppo-64x128-8seeds-2cores": ppo(64, 128, 262_144, members=8) | BOTH,
    "ppo-8x128": ppo(8, 128, 131_072),
    "a2c-64x128": ppo(64, 128, 4_194_304) | {"algorithm": "actor_critic"},
    "dqn": DQN | {"hidden": [64, 64], "steps": 50_000},
    "dqn-purejaxrl": DQN | {"hidden": [120, 84], "steps": 500_000},
    "ddpg": DDPG,
    "sac": SAC,
    "td3": TD3,
    "pqn": PQN,
    "ppo-gru-64x128": ppo(64, 128, 262_144, hidden=[64], network="gru", memory=64, sampled=False),
}
VERSUS = {
    "ppo-gru-64x128": ["purerl", "ajax"],
    "ppo-8x128": ["purerl", "rejax", "sbx", "sb3"],
    "dqn": ["purerl", "rejax", "sbx", "sb3"],
    "ddpg": ["purerl", "rejax", "sbx", "sb3"],
}
# Against another case of a peer: PureJaxRL's DQN ran at 0.22 of the speed of rejax's PPO.
AGAINST = {"dqn-purejaxrl": ("rejax", "ppo-64x128")}


def interpreter(peer, folder):
    """Python of the peer's environment, made where there is none."""
    if peer == "purerl":
        return sys.executable
    python = folder / peer / "bin" / "python"
    if not (folder / peer / "ready").exists():
        subprocess.run([sys.executable, "-m", "venv", folder / peer], check=True)
        wanted = [*PEERS[peer], f"jax=={version('jax')}"]
        subprocess.run([python, "-m", "pip", "install", "-q", *wanted], check=True)
        (folder / peer / "ready").touch()
    return python


class Worker:
    """A peer with a case loaded, waiting for its turn."""

    def __init__(self, python, peer, case, clock):
        self.case, self.clock = {**case, "peer": peer}, clock
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}
        self.process = subprocess.Popen(
            [python, HERE / PROGRAMS[peer], json.dumps(self.case)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self.costs = self._receive()["costs"]
        self.runs = []

    def _receive(self):
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.case['peer']}: the program has ended")
        return json.loads(line)

    def ask(self, request, seed):
        self.process.stdin.write(f"{request} {seed}\n")
        self.process.stdin.flush()
        return self._receive()

    def run(self, seed):
        self.runs.append(self.ask("run", seed))

    def close(self):
        self.process.stdin.close()
        self.process.wait()

    def median(self, column):
        return statistics.median(run[column] for run in self.runs)

    @property
    def steps(self):
        """Environment steps of a run, of all members."""
        return self.case["steps"] * self.case["members"]

    @property
    def speed(self):
        return self.steps / self.median(self.clock)


def programs(name, peers, folder, clock):
    """Programs of a case by label, purerl first."""
    case = CASES[name]
    started = {}
    for peer in VERSUS.get(name, ["purerl", "rejax"]):
        if (peer not in peers and peer != "purerl") or (name in AGAINST and peer != "purerl"):
            continue
        if peer == "purerl" and case["cores"] == 0 and case["members"] == 1:
            label = "purerl, 2 devices"
            case_of_two = case | {"devices": 2}
            started[label] = Worker(interpreter(peer, folder), peer, case_of_two, clock)
        started[peer] = Worker(interpreter(peer, folder), peer, case, clock)
    if name in AGAINST and AGAINST[name][0] in peers:
        peer, other = AGAINST[name]
        started[f"{peer} {other}"] = Worker(interpreter(peer, folder), peer, CASES[other], clock)
    return started


def ratios(ours, theirs):
    """The speed of purerl over another program's, in each round."""
    scale, clock = ours.steps / theirs.steps, ours.clock
    pairs = zip(ours.runs, theirs.runs, strict=True)
    return [scale * b[clock] / a[clock] for a, b in pairs]


def target(program, num_seeds):
    """Median steps and seconds to the target return; None where most seeds don't reach it."""
    case = program.case
    if "target" not in case or case["members"] > 1 or not num_seeds:
        return None
    steps = [program.ask("target", seed)["steps"] for seed in range(num_seeds)]
    reached = sorted(x for x in steps if x is not None)
    if len(reached) <= num_seeds // 2:
        return None
    middle = reached[(num_seeds - 1) // 2]
    begun = sum(program.costs[name] for name in program.costs if name not in ("first run", "start"))
    return middle, begun + middle / program.speed


def measure(name, peers, folder, repeats, num_seeds, clock):
    """Rows of the table, one for each program."""
    started = programs(name, peers, folder, clock)
    try:
        for seed in range(repeats):
            for program in started.values():
                program.run(seed)
        ours = next(iter(started.values()))
        rows = []
        for label, program in started.items():
            ratio = ratios(ours, program)
            rows.append(
                {
                    "case": name,
                    "program": label,
                    "steps_per_second": program.speed,
                    "ratio": statistics.median(ratio),
                    "ratio_range": [min(ratio), max(ratio)],
                    "cores": program.median("cpu") / program.median("seconds"),
                    "costs": program.costs,
                    "megabytes": program.median("megabytes"),
                    "reached": [run["reached"] for run in program.runs],
                    "target": target(program, num_seeds),
                }
            )
        return rows
    finally:
        for program in started.values():
            program.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=list(PEERS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--target-seeds", type=int, default=3)
    parser.add_argument(
        "--clock",
        choices=("seconds", "cpu"),
        default="seconds",
        help="what steps a second are measured by: the wall clock, or the time of the processor",
    )
    parser.add_argument("--json", metavar="FILE", help="write the rows there too")
    parser.add_argument(
        "--environments",
        type=Path,
        default=Path(tempfile.gettempdir()) / "purerl-peers",
        help="folder of the peers' virtual environments",
    )
    args = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 140)
    table = Table(
        "case",
        "program",
        "steps/s",
        "first over it",
        "cores",
        "import",
        "trace",
        "compile",
        "memory",
        "return",
        "to target",
        box=None,
    )
    rows, begun = [], ("import", "trace", "compile")
    for name in args.only:
        how = (args.peers, args.environments, args.repeats, args.target_seeds, args.clock)
        for row in measure(name, *how):
            rows.append(row)
            low, high = row["ratio_range"]
            costs = row["costs"]
            waited = row["target"] and f"{row['target'][0]:,} steps, {row['target'][1]:.1f} s"
            cells = [
                name,
                row["program"],
                f"{row['steps_per_second']:,.0f}",
                f"{row['ratio']:.2f} ({low:.2f} to {high:.2f})",
                f"{row['cores']:.2f}",
                *(f"{costs[x]:.1f} s" if x in costs else "" for x in begun),
                f"{row['megabytes']:,.0f} MB",
                f"{statistics.mean(row['reached']):,.1f}",
                waited or "",
            ]
            console.print("  ".join(cells))
            table.add_row(*cells)
    console.print(table)
    if args.json:
        Path(args.json).write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
