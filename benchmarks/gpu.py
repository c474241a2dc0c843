"""Training on a GPU: speed, compile time, kernels and memory, and what each option changes.

    python benchmarks/gpu.py --seconds 450 --json gpu.json     # on a machine with a GPU
    python benchmarks/gpu.py --cpu --only "ppo 64x128" --variants plain "plain scan"     # its logic
    python benchmarks/gpu.py --rejax FOLDER     # next to rejax 0.1.3, of which FOLDER is the path

It needs no network: where packages can't be fetched, a folder with gymnax, tomli-w, tensorboardX
and shtab on PYTHONPATH is enough. Each row is a process, since XLA reads its flags once. Those of a
batch start and compile at once, which takes most of the time of a GPU that is lent by the minute;
then they run, one at a time, while the others wait. Rows are in the order of what they decide, and
those for which --seconds leaves no time are named. The file is written after each row.

    steps/s     environment steps of all agents a second, mean of two runs after a first one
    compile     seconds from the traced program to the compiled one, beside the others of the batch
    kernels     operations in the compiled program, each fusion as one
    launches    operations that an update starts; those of loops count each time
    memory      GB, the most that the process held on the device
    return      mean over the last tenth of the updates, to see that it still learns
"""

import argparse
import functools
import json
import os
import queue
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

from hlo import operations

# Environment, agent, environments, steps in a rollout, agents at once, environment steps of each.
CASES = {
    "ppo 64x128": ("CartPole-v1", "PPO", 64, 128, 1, 2_000_000),
    "ppo 2048x32": ("CartPole-v1", "PPO", 2048, 32, 1, 10_000_000),
    "dqn": ("CartPole-v1", "DQN", 8, 1, 1, 80_000),
    "ppo 4x128, 256 agents": ("CartPole-v1", "PPO", 4, 128, 256, 100_000),
    "ppo 4x128, 2048 agents": ("CartPole-v1", "PPO", 4, 128, 2048, 40_000),
    "ppo breakout": ("Breakout-MinAtar", "PPO", 64, 128, 1, 1_000_000),
    "ppo breakout, 256 agents": ("Breakout-MinAtar", "PPO", 64, 128, 256, 100_000),
    "ppo breakout cnn": ("Breakout-MinAtar", "PPO", 64, 128, 1, 1_000_000),
    "sac": ("Pendulum-v1", "SAC", 8, 1, 1, 16_000),
    "ppo gru": ("CartPole-v1", "PPO", 64, 128, 1, 1_000_000),
    "dqn, 256 agents": ("CartPole-v1", "DQN", 8, 1, 256, 40_000),
    "ddpg": ("Pendulum-v1", "DDPG", 8, 1, 1, 50_000),
}
GRAPHS = "--xla_gpu_enable_command_buffer="
FLAGS = {
    "+WHILE": f"{GRAPHS}+WHILE",
    "+WHILE, loops unrolled": f"{GRAPHS}+WHILE --xla_gpu_command_buffer_unroll_loops=true",
    "graphs of 5": "--xla_gpu_graph_min_graph_size=5",  # XLA's default
    "+WHILE, graphs of 5": f"{GRAPHS}+WHILE --xla_gpu_graph_min_graph_size=5",
    "+WHILE +CONDITIONAL": f"{GRAPHS}+WHILE,+CONDITIONAL",
    "no graphs": GRAPHS,
    "no autotuning": "--xla_gpu_autotune_level=0",
}
TRICKS = {
    "plain scan": "lean_scan",
    "plain product": "thin_product",
}
PRECISIONS = {"TF32": "tensorfloat32", "float32": "highest"}
# Beside those of `compiler_options()`; a + isn't understood there.
USUAL_GRAPHS = "FUSION,CUBLAS,CUBLASLT,CUSTOM_CALL,CUDNN,DYNAMIC_SLICE_FUSION"
OPTIONS = {"option WHILE": {"xla_gpu_enable_command_buffer": f"{USUAL_GRAPHS},WHILE"}}
UNROLLED = {"scan unrolled 4": 4, "scan unrolled 16": 16}
REJAX = "rejax"
PATCHES = "patches"  # convolutions by matrix products, as on a CPU
VARIANTS = ("plain", *FLAGS, *OPTIONS, *TRICKS, PATCHES, *UNROLLED, *PRECISIONS, REJAX)
NARROW = ("ppo 64x128", "dqn")  # bound by launches, so that options matter most
PLAN = [
    *((case, "plain") for case in CASES),
    *((case, flag) for flag in FLAGS for case in NARROW),
    *((case, "plain scan") for case in ("ppo 64x128", "ppo 2048x32", "ppo 4x128, 256 agents")),
    ("ppo breakout cnn", PATCHES),
    *(("ppo 2048x32", precision) for precision in PRECISIONS),
    ("ppo 2048x32", "plain product"),
    *((case, REJAX) for case in ("ppo 64x128", "ppo 2048x32", "ppo 4x128, 256 agents")),
    *((case, "option WHILE") for case in ("ppo 64x128", "ppo 4x128, 256 agents", "ppo 2048x32")),
    *(("ppo 64x128", unrolled) for unrolled in UNROLLED),
    *((case, "graphs of 5") for case in CASES if case not in NARROW),
]
# No kernel is started for these.
FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", ""}


def sizes_of(case, small):
    """Environments, steps in a rollout, agents at once, and updates of each."""
    _, _, num_envs, steps, members, total = CASES[case]
    if small:
        members, total = min(members, 4), min(total, max(20 * num_envs * steps, 4_000))
    return num_envs, steps, members, -(-total // (num_envs * steps))


def agent_of(case, purerl):
    """The agent of a case."""
    _, agent, num_envs, steps, *_ = CASES[case]
    if agent != "PPO":
        return getattr(purerl, agent)()
    breakout = {"lr": 5e-3, "network": "cnn" if "cnn" in case else "mlp"}
    memory = {"network": "gru"} if "gru" in case else {}
    batch = num_envs * steps // (8 if "breakout" in case else 4)
    return purerl.PPO(batch_size=batch, **memory, **(breakout if "breakout" in case else {}))


def change(variant):
    """Changes this process to a variant that isn't a flag."""
    import jax

    from purerl.accelerator import compiling
    from purerl.nn import defaults
    from purerl.training import rollout

    if variant in TRICKS:
        import tricks

        tricks.TRICKS[TRICKS[variant]]()
    if variant == PATCHES:
        defaults._on_cpu = lambda: True
    if variant in OPTIONS:
        usual = compiling.compiler_options
        compiling.compiler_options = lambda: usual() | OPTIONS[variant]
    if variant in UNROLLED:
        length = UNROLLED[variant]
        rollout.lean_scan = lambda step, start, keys: jax.lax.scan(step, start, keys, unroll=length)
    if variant in PRECISIONS:
        jax.config.update("jax_default_matmul_precision", PRECISIONS[variant])


def our_program(case, num_envs, steps, total):
    """`train` of a case."""
    import purerl

    options = {"num_envs": num_envs, "update_every": steps, "total_timesteps": total}
    return purerl.make_train(
        purerl.TrainConfig(env=CASES[case][0], agent=agent_of(case, purerl), **options)
    )


def rejax_program(case, num_envs, steps, total):
    """The same of rejax, whose gymnax is too old for our environments."""
    import rejax

    import purerl

    agent = agent_of(case, purerl)
    made = rejax.PPO.create(
        env=CASES[case][0],
        total_timesteps=total,
        eval_freq=total,
        skip_initial_evaluation=True,
        learning_rate=agent.lr,
        gamma=agent.gamma,
        gae_lambda=agent.lam,
        num_epochs=agent.K_epochs,
        clip_eps=agent.eps_clip,
        ent_coef=agent.entropy_beta,
        vf_coef=agent.value_coef,
        max_grad_norm=agent.max_grad_norm,
        num_envs=num_envs,
        num_steps=steps,
        num_minibatches=num_envs * steps // agent.batch_size,
        agent_kwargs={"hidden_layer_sizes": (64, 64), "activation": "tanh"},
    )
    return made.replace(eval_callback=lambda *_: ()).train  # none inside the timed run


def measure(case, variant, small):
    """A row; waits between compiling and running until a line can be read."""
    import jax
    import numpy as np

    from purerl.accelerator.compiling import jit

    change(variant)
    num_envs, steps, members, updates = sizes_of(case, small)
    total = updates * num_envs * steps
    keys = jax.random.split(jax.random.key(0), members)
    # rejax is compiled as its users do.
    make, compile_by = (rejax_program, jax.jit) if variant == REJAX else (our_program, jit)
    train = make(case, num_envs, steps, total)
    given, program = (keys[0], train) if members == 1 else (keys, jax.vmap(train))
    lowered = compile_by(program).lower(given)
    began = time.perf_counter()
    compiled = lowered.compile()
    seconds = time.perf_counter() - began
    started = [x for x in operations(compiled.as_text()) if x[1] not in FREE]
    print("COMPILED", flush=True)
    sys.stdin.readline()
    runs = []
    for _ in range(3):
        began = time.perf_counter()
        out = jax.block_until_ready(compiled(given))
        runs.append(time.perf_counter() - began)
    device = jax.local_devices()[0]
    row = {
        "device": device.device_kind,
        "jax": jax.__version__,
        "compile_s": seconds,
        "kernels": len(started),
        "launches": sum(x[0] or 1 for x in started) / updates,
        "memory_GB": (device.memory_stats() or {}).get("peak_bytes_in_use", 0) / 1e9,
        "return": float("nan"),
    }
    if variant != REJAX:
        returns = np.asarray(out.metrics.episode_return)
        row["return"] = float(np.nanmean(returns[..., -max(1, returns.shape[-1] // 10) :]))
    return {**row, "steps_per_s": members * total / statistics.mean(runs[1:])}


class Worker:
    """A row in another process, which says that it has compiled, and runs when it is told to."""

    def __init__(self, command, environment, limit):
        self.lines = queue.Queue()
        self.process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.deadline = time.perf_counter() + limit
        self.errors = []
        threading.Thread(target=self._read, daemon=True).start()
        threading.Thread(target=self._read_errors, daemon=True).start()

    def _read(self):
        for line in self.process.stdout:
            self.lines.put(line)
        self.lines.put(None)

    def _read_errors(self):
        self.errors.extend(self.process.stderr)

    def wait_for(self, word):
        """The rest of the line that begins with a word; None if none comes in time."""
        while (left := self.deadline - time.perf_counter()) > 0:
            try:
                line = self.lines.get(timeout=left)
            except queue.Empty:
                break
            if line is None:
                self.lines.put(None)  # for the next that waits
                break
            if line.startswith(word):
                return line[len(word) :]
        return None

    def row(self, limit):
        """Has it run; its row, or its error."""
        self.deadline = time.perf_counter() + limit
        try:
            self.process.stdin.write("run\n")
            self.process.stdin.flush()
        except OSError:
            pass  # its error says why
        found = self.wait_for("ROW ")
        ended = self.process.poll() is not None
        self.close()
        if found:
            return json.loads(found)
        said = [x.strip()[:160] for x in self.errors if x.strip()]
        return {"error": (said or ["it said nothing"])[-1] if ended else f"over {limit:.0f} s"}

    def close(self):
        self.process.kill()
        self.process.wait()


def run_batch(starts, seconds, write):
    """Compiles rows at once, then runs them in turn.

    Args:
        starts: functions from a limit in seconds to a `Worker`.
        seconds: for all.
        write: takes each row's number and content.
    """
    end = time.perf_counter() + seconds
    workers = [start(seconds) for start in starts]
    try:
        compiled = [worker.wait_for("COMPILED") is not None for worker in workers]
        for number, worker in enumerate(workers):
            left = end - time.perf_counter()
            if not compiled[number] and worker.process.poll() is None:
                write(number, {"error": "compiling took too long"})
            else:
                write(number, worker.row(max(left, 1.0)))
    finally:
        for worker in workers:
            worker.close()


def start_row(case, variant, args, limit):
    """The process of a row."""
    platform = {"JAX_PLATFORMS": "cpu"} if args.cpu else {}
    flags = f"{os.environ.get('XLA_FLAGS', '')} {FLAGS.get(variant, '')}".strip()
    path = os.environ.get("PYTHONPATH", "")
    if variant == REJAX:
        path = os.pathsep.join([str(args.rejax), path])
    command = [sys.executable, __file__, "--row", case, variant, *(["--cpu"] if args.cpu else [])]
    # Several processes share the device's memory.
    shared = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    return Worker(
        command, {**os.environ, **platform, **shared, "XLA_FLAGS": flags, "PYTHONPATH": path}, limit
    )


def table(rows):
    """The rows in Markdown."""
    head = ("case", "variant", "steps/s", "compile", "kernels", "launches", "memory", "return")
    lines = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    for row in rows:
        if "error" in row:
            lines.append(f"| {row['case']} | {row['variant']} | {row['error']} |" + " |" * 5)
            continue
        lines.append(
            f"| {row['case']} | {row['variant']} | {row['steps_per_s']:,.0f} "
            f"| {row['compile_s']:.1f} s | {row['kernels']} | {row['launches']:,.0f} "
            f"| {row['memory_GB']:.2f} GB | {row['return']:.1f} |"
        )
    return "\n".join(lines)


def plan_of(args):
    """The rows that the arguments ask for."""
    cases, variants = args.only or CASES, args.variants or VARIANTS
    return [
        (case, variant)
        for case, variant in PLAN
        if case in cases
        and variant in variants
        and not (args.cpu and variant in FLAGS)  # flags of GPUs
        and not (variant == REJAX and args.rejax is None)
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=450.0, help="for all rows")
    parser.add_argument("--together", type=int, default=8, help="rows that compile at once")
    parser.add_argument("--cpu", action="store_true", help="small sizes, on the CPU")
    parser.add_argument("--only", nargs="+", choices=CASES, metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, metavar="VARIANT")
    parser.add_argument("--rejax", type=Path, help="folder of packages, to run it too")
    parser.add_argument("--json", default="gpu.json", help="where to write the rows")
    parser.add_argument("--row", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.row:
        print("ROW " + json.dumps(measure(*args.row, args.cpu)))
        return
    plan, rows = plan_of(args), []
    end = time.perf_counter() + args.seconds
    for first in range(0, len(plan), args.together):
        batch = plan[first : first + args.together]
        left = end - time.perf_counter()

        def write(number, row, batch=batch):
            case, variant = batch[number]
            if not args.cpu and row.get("device") == "cpu":
                row = {"error": "JAX sees no GPU"}
            rows.append({"case": case, "variant": variant, **row})
            print(rows[-1], flush=True)
            Path(args.json).write_text(json.dumps(rows, indent=1))

        if left < 30:
            for number in range(len(batch)):
                write(number, {"error": "no time left"})
            continue
        starts = [functools.partial(start_row, case, variant, args) for case, variant in batch]
        run_batch(starts, left, write)
    found = next((row for row in rows if "device" in row), {"device": "nothing", "jax": "?"})
    print(f"\n{found['device']}, JAX {found['jax']}\n\n{table(rows)}")


if __name__ == "__main__":
    main()
