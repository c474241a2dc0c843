"""Training on a GPU: speed, compile time, kernels and memory, and what each option changes.

    python benchmarks/gpu.py --seconds 450 --json gpu.json     # on a machine with a GPU
    python benchmarks/gpu.py --cpu --only "ppo 64x128" --variants plain "plain scan"     # its logic

It needs no network: where packages can't be fetched, a folder with gymnax, tomli-w and tensorboardX
on PYTHONPATH is enough. Each row is a process, since XLA reads its flags once; rows are in the
order of what they decide, and those for which --seconds leaves no time are named. The file and the
table are written after each row.

    steps/s     environment steps of all agents a second, median of two runs after a first one
    compile     seconds from the traced program to the compiled one
    kernels     operations in the compiled program, each fusion as one
    launches    operations that an update starts; those of loops count each time
    memory      GB, the most that the device held
    return      mean over the last tenth of the updates, to see that it still learns
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

from hlo import operations

# Environment, agent, environments, steps in a rollout, agents at once, environment steps of each.
CASES = {
    "ppo 64x128": ("CartPole-v1", "PPO", 64, 128, 1, 2_000_000),
    "ppo 2048x32": ("CartPole-v1", "PPO", 2048, 32, 1, 10_000_000),
    "ppo breakout": ("Breakout-MinAtar", "PPO", 64, 128, 1, 1_000_000),
    "ppo breakout cnn": ("Breakout-MinAtar", "PPO", 64, 128, 1, 1_000_000),
    "dqn": ("CartPole-v1", "DQN", 8, 1, 1, 200_000),
    "sac": ("Pendulum-v1", "SAC", 8, 1, 1, 40_000),
    "ppo gru": ("CartPole-v1", "PPO", 64, 128, 1, 1_000_000),
    "ppo 4x128, 256 agents": ("CartPole-v1", "PPO", 4, 128, 256, 100_000),
    "ppo 4x128, 2048 agents": ("CartPole-v1", "PPO", 4, 128, 2048, 100_000),
    "ppo breakout, 256 agents": ("Breakout-MinAtar", "PPO", 64, 128, 256, 200_000),
    "dqn, 256 agents": ("CartPole-v1", "DQN", 8, 1, 256, 40_000),
}
FLAGS = {
    "+WHILE": "--xla_gpu_enable_command_buffer=+WHILE",
    "+WHILE, loops unrolled": "--xla_gpu_enable_command_buffer=+WHILE "
    "--xla_gpu_command_buffer_unroll_loops=true",
    "graphs of 1": "--xla_gpu_graph_min_graph_size=1",
    "+WHILE, graphs of 1": "--xla_gpu_enable_command_buffer=+WHILE "
    "--xla_gpu_graph_min_graph_size=1",
}
TRICKS = {
    "plain scan": "lean_scan",
    "plain convolution": "patches",
    "plain product": "thin_product",
}
PRECISIONS = {"TF32": "tensorfloat32", "float32": "highest"}
UNROLLED = {"scan unrolled 4": 4, "scan unrolled 16": 16}
VARIANTS = ("plain", *FLAGS, *TRICKS, *UNROLLED, *PRECISIONS)
NARROW = ("ppo 64x128", "dqn")  # bound by launches, so that options matter most
PLAN = [
    *((case, "plain") for case in CASES),
    *((case, flag) for flag in FLAGS for case in NARROW),
    *((case, "plain scan") for case in ("ppo 64x128", "ppo 2048x32")),
    ("ppo breakout cnn", "plain convolution"),
    *(("ppo 64x128", unrolled) for unrolled in UNROLLED),
    *(("ppo 2048x32", precision) for precision in PRECISIONS),
    ("ppo 2048x32", "plain product"),
]
# No kernel is started for these.
FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", ""}


def config_of(case, purerl, small):
    """The config of a case, and the number of agents."""
    env, agent, num_envs, steps, members, total = CASES[case]
    if small:
        members, total = min(members, 4), min(total, max(20 * num_envs * steps, 4_000))
    if agent != "PPO":
        # As often as PPO's defaults: an update every step of all environments.
        return purerl.TrainConfig(
            env=env, agent=getattr(purerl, agent)(), num_envs=num_envs, total_timesteps=total
        ), members
    breakout = {"lr": 5e-3, "network": "cnn" if "cnn" in case else "mlp"}
    memory = {"network": "gru"} if "gru" in case else {}
    options = memory | (breakout if "breakout" in case else {})
    batch = num_envs * steps // (8 if "breakout" in case else 4)
    ppo = purerl.PPO(batch_size=batch, **options)
    return purerl.TrainConfig(
        env=env, agent=ppo, num_envs=num_envs, update_every=steps, total_timesteps=total
    ), members


def change(variant):
    """Changes this process to a variant that isn't a flag."""
    import jax

    from purerl.training import rollout

    if variant in TRICKS:
        import tricks

        tricks.TRICKS[TRICKS[variant]]()
    if variant in UNROLLED:
        length = UNROLLED[variant]
        rollout.lean_scan = lambda step, start, keys: jax.lax.scan(step, start, keys, unroll=length)
    if variant in PRECISIONS:
        jax.config.update("jax_default_matmul_precision", PRECISIONS[variant])


def measure(case, variant, small):
    """A row."""
    import jax
    import numpy as np

    import purerl
    from purerl.accelerator.compiling import jit

    change(variant)
    config, members = config_of(case, purerl, small)
    keys = jax.random.split(jax.random.key(0), members)
    lowered = jit(jax.vmap(purerl.make_train(config))).lower(keys)
    began = time.perf_counter()
    compiled = lowered.compile()
    seconds = time.perf_counter() - began
    started = [x for x in operations(compiled.as_text()) if x[1] not in FREE]
    runs = []
    for _ in range(3):
        began = time.perf_counter()
        out = jax.block_until_ready(compiled(keys))
        runs.append(time.perf_counter() - began)
    updates = config.make_loop().num_updates
    returns = np.asarray(out.metrics.episode_return)
    device = jax.local_devices()[0]
    return {
        "device": device.device_kind,
        "jax": jax.__version__,
        "steps_per_s": members * updates * out.steps_per_update / statistics.median(runs[1:]),
        "compile_s": seconds,
        "kernels": len(started),
        "launches": sum(x[0] or 1 for x in started) / updates,
        "memory_GB": (device.memory_stats() or {}).get("peak_bytes_in_use", 0) / 1e9,
        "return": float(np.nanmean(returns[:, -max(1, returns.shape[1] // 10) :])),
    }


def run_row(case, variant, args, limit):
    """A row from another process, or its error."""
    platform = {"JAX_PLATFORMS": "cpu"} if args.cpu else {}
    flags = f"{os.environ.get('XLA_FLAGS', '')} {FLAGS.get(variant, '')}".strip()
    if args.cpu and variant in FLAGS:
        return {"error": "a flag of GPUs"}
    command = [sys.executable, __file__, "--row", case, variant, *(["--cpu"] if args.cpu else [])]
    env = {**os.environ, **platform, "XLA_FLAGS": flags}
    try:
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        return {"error": f"more than {limit:.0f} s"}
    rows = [line[4:] for line in done.stdout.splitlines() if line.startswith("ROW ")]
    if rows:
        found = json.loads(rows[0])
        return found if args.cpu or found["device"] != "cpu" else {"error": "JAX sees no GPU"}
    return {"error": (done.stderr.strip().splitlines() or ["it said nothing"])[-1][:160]}


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


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=450.0, help="for all rows")
    parser.add_argument("--cpu", action="store_true", help="small sizes, on the CPU")
    parser.add_argument("--only", nargs="+", choices=CASES, metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, metavar="VARIANT")
    parser.add_argument("--json", default="gpu.json", help="where to write the rows")
    parser.add_argument("--row", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.row:
        print("ROW " + json.dumps(measure(*args.row, args.cpu)))
        return
    cases, variants = args.only or CASES, args.variants or VARIANTS
    plan = [(case, variant) for case, variant in PLAN if case in cases and variant in variants]
    began, rows = time.perf_counter(), []
    for case, variant in plan:
        left = args.seconds - (time.perf_counter() - began)
        row = {"error": "no time left"}
        if left > 20:
            row = run_row(case, variant, args, min(left, 120))
        rows.append({"case": case, "variant": variant, **row})
        print(rows[-1], flush=True)
        with open(args.json, "w") as file:
            json.dump(rows, file, indent=1)
    found = next((row for row in rows if "device" in row), {"device": "nothing", "jax": "?"})
    print(f"\n{found['device']}, JAX {found['jax']}\n\n{table(rows)}")


if __name__ == "__main__":
    main()
