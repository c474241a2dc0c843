"""Environment steps per second of whole training, next to the floor of each of its parts.

    python benchmarks/throughput.py                          # the whole matrix, some 15 minutes
    python benchmarks/throughput.py --only CartPole-v1 --seeds 1

For each row, in one process and interleaved: whole training; the environment alone (random actions,
drawn beforehand); the rollout alone (a fixed agent plays, transitions are pushed); the update alone
(on one fixed rollout). Medians of several runs, compile time apart. "whole / parts" is the time of
whole training over the sum of rollout and update.
"""

import argparse
import json
import platform
import resource
import statistics
import sys
import time

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.table import Table

import purerl
from purerl.rollout import init_rollout

SHAPES = [(4, 128), (64, 128), (2048, 32)]
ENVS = ["CartPole-v1", "Breakout-MinAtar"]
# Environment steps of one timed run, over all seeds: a second or a few on two cores.
STEPS = {"CartPole-v1": 524_288, "Breakout-MinAtar": 65_536}


def programs(env_name, num_envs, num_steps, num_updates):
    """The parts, `(init, body)` each: init makes a carry of a key, the body is scanned."""
    env = purerl.make(env_name)
    agent = purerl.PPO()
    size = num_envs * num_steps
    loop = purerl.make_loop(
        env, agent, num_envs=num_envs, update_every=num_steps, total_timesteps=size * num_updates
    )
    agent = loop.agent
    vector_env = purerl.vectorize(purerl.auto_reset(env))
    buffer = loop.buffer

    def play(state, envs, key):
        return loop.play(state, envs, None, key, jnp.int32(0))

    def env_init(key):
        envs = init_rollout(vector_env, key, num_envs).env
        actions = jax.vmap(env.spec.action_space.sample)(jax.random.split(key, size))
        return envs, actions.reshape(num_steps, num_envs, *actions.shape[1:]), key

    def env_body(carry, _):
        envs, actions, key = carry
        key, step_key = jax.random.split(key)
        keys = jax.random.split(step_key, (num_steps, num_envs))

        def step(envs, inputs):
            envs, timestep = vector_env.step(inputs[0], envs, inputs[1])
            return envs, timestep.reward.sum()

        envs, reward = jax.lax.scan(step, envs, (keys, actions))
        return (envs, actions, key), reward.sum()

    def rollout_init(key):
        state = loop.init(key)
        return state.agent, state.rollout, state.buffer, key

    def rollout_body(carry, _):
        state, envs, stored, key = carry
        key, play_key = jax.random.split(key)
        envs, transitions, episodes = play(state, envs, play_key)
        return (state, envs, buffer.push(stored, transitions), key), episodes

    def update_init(key):
        state, envs, stored, key = rollout_init(key)
        (_, _, stored, _), _ = rollout_body((state, envs, stored, key), None)
        return state, stored, key

    def update_body(carry, _):
        state, stored, key = carry
        key, update_key = jax.random.split(key)
        state, stored, losses = agent.update(state, buffer, stored, update_key)
        return (state, stored, key), losses

    return {
        "whole": (loop.init, loop.step),
        "environment": (env_init, env_body),
        "rollout": (rollout_init, rollout_body),
        "update": (update_init, update_body),
    }


def compile_part(init, body, num_updates, keys):
    """A compiled scan of a part over vmapped seeds, its start, and how long compiling took."""

    def scan(states, indices):
        # The whole final state is returned, so that nothing can be left out.
        return jax.vmap(lambda state: jax.lax.scan(body, state, indices))(states)

    states = jax.jit(jax.vmap(init))(keys)
    indices = jnp.arange(num_updates)
    start = time.perf_counter()
    compiled = jax.jit(scan).lower(states, indices).compile()
    seconds = time.perf_counter() - start
    jax.block_until_ready(compiled(states, indices))
    return (lambda: jax.block_until_ready(compiled(states, indices))), seconds, compiled


def measure(env_name, num_envs, num_steps, num_seeds, repeats):
    size = num_envs * num_steps
    num_updates = max(2, STEPS[env_name] // (size * num_seeds))
    keys = jax.random.split(jax.random.key(0), num_seeds)
    parts = {
        name: compile_part(*part, num_updates, keys)
        for name, part in programs(env_name, num_envs, num_steps, num_updates).items()
    }
    seconds = {name: [] for name in parts}
    for _ in range(repeats):
        for name, (run, _, _) in parts.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    total = num_updates * size * num_seeds
    median = {name: statistics.median(times) for name, times in seconds.items()}
    ratios = [
        whole / (rollout + update)
        for whole, rollout, update in zip(
            seconds["whole"], seconds["rollout"], seconds["update"], strict=True
        )
    ]
    memory = parts["whole"][2].memory_analysis()
    used = memory.temp_size_in_bytes + memory.argument_size_in_bytes + memory.output_size_in_bytes
    return {
        "env": env_name,
        "num_envs": num_envs,
        "num_steps": num_steps,
        "seeds": num_seeds,
        "steps_per_second": total / median["whole"],
        "spread": (max(seconds["whole"]) - min(seconds["whole"])) / median["whole"],
        "nanoseconds_per_step": {name: 1e9 * t / total for name, t in median.items()},
        "whole_over_parts": statistics.median(ratios),
        "compile_seconds": parts["whole"][1],
        "program_megabytes": used / 2**20,
        "process_peak_megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", choices=ENVS)
    parser.add_argument("--shape", help="one shape, such as 64x128")
    parser.add_argument("--seeds", type=int, help="one number of seeds")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", metavar="FILE", help="write the rows there too")
    args = parser.parse_args()

    console = Console(width=None if sys.stdout.isatty() else 140)
    table = Table("env", "shape", "seeds", "steps/s", "spread", "whole", "env", "rollout", "update",
                  "whole / parts", "compile", "program", box=None)  # fmt: skip
    rows = []
    for env_name in [args.only] if args.only else ENVS:
        for num_envs, num_steps in SHAPES:
            if args.shape not in (None, f"{num_envs}x{num_steps}"):
                continue
            for num_seeds in [args.seeds] if args.seeds else (1, 16):
                row = measure(env_name, num_envs, num_steps, num_seeds, args.repeats)
                rows.append(row)
                ns = row["nanoseconds_per_step"]
                console.print(
                    f"{env_name} {num_envs}x{num_steps} {num_seeds}: "
                    f"{row['steps_per_second']:,.0f} steps/s, {row['whole_over_parts']:.2f}"
                )
                table.add_row(
                    env_name, f"{num_envs} x {num_steps}", str(num_seeds),
                    f"{row['steps_per_second']:,.0f}", f"{row['spread']:.0%}",
                    *(f"{ns[part]:,.0f}" for part in ("whole", "environment", "rollout", "update")),
                    f"{row['whole_over_parts']:.2f}", f"{row['compile_seconds']:.1f} s",
                    f"{row['program_megabytes']:,.0f} MiB",
                )  # fmt: skip
    console.print(table)
    console.print("whole, env, rollout, update: nanoseconds an environment step, over all seeds")
    result = {
        "jax": jax.__version__,
        "python": platform.python_version(),
        "device": jax.devices()[0].device_kind,
        "processor": platform.processor() or platform.machine(),
        "rows": rows,
    }
    if args.json:
        with open(args.json, "w") as file:
            json.dump(result, file, indent=2)


if __name__ == "__main__":
    main()
