"""Environments of suites: their own speed, with resets, as a rollout, and PPO on them.

    python benchmarks/suites.py                            # two of each suite that is installed
    python benchmarks/suites.py --only brax/ant --num-envs 256

For each environment, in a process of its own, steps a second by the processor's time:

    raw         steps of N environments under `vmap`, with random legal actions and no resets
    fresh       with a reset of its own for each episode
    default     with the strategy that the environment names
    training    PPO with its defaults, N environments x 64 steps an update

In brackets are the multiples of the raw step. "compile" are the processor's seconds until programs
are ready, with tracing: those of the environment's reset and raw step alone, and PPO's, which has
them too; "state" is the memory that one environment's state takes, which `spare` doubles.
`--resets` measures that strategy as the default.
"""

import argparse
import json
import os
import subprocess
import sys
import time

parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
parser.add_argument("--only", nargs="+", metavar="NAME", help="such as brax/ant")
parser.add_argument("--num-envs", type=int, default=64)
parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement, at least")
parser.add_argument("--resets", help="such as spare(1024), in place of the environments' own")
parser.add_argument("--json", metavar="FILE", help="write the rows there too")
parser.add_argument("--one", help=argparse.SUPPRESS)

NAMES = (
    "brax/inverted_pendulum",
    "brax/halfcheetah",
    "playground/CartpoleBalance",
    "playground/PendulumSwingup",
    "craftax/Craftax-Classic-Symbolic-v1",
    "craftax/Craftax-Symbolic-v1",
    "navix/Navix-Empty-8x8-v0",
    "navix/Navix-MultiRoom-N4-S5-v0",
    "xminigrid/MiniGrid-Empty-8x8",
    "xminigrid/MiniGrid-DoorKey-8x8",
    "jumanji/Snake-v1",
    "jumanji/Maze-v0",
    "pgx/2048",
    "pgx/connect_four",
    "octax/brix",
    "octax/pong",
    "functional/CartPole-v1",
    "functional/Pendulum-v0",
)
PARALLEL = 64  # steps of a rollout
KINDS = ("fresh", "default")


def rate(function, args, steps, seconds):
    """Steps a second of processor time, after a first call; the function's output is its next
    input."""
    import jax

    args = jax.block_until_ready(function(*args))
    began, calls = time.process_time(), 0
    while time.process_time() - began < seconds:
        args = jax.block_until_ready(function(*args))
        calls += 1
    return calls * steps / (time.process_time() - began)


def scanned(reset, step, spec, num_envs, refill=None):
    """A compiled function of `(key, (obs, state))` that steps N environments 64 times, and its
    first arguments."""
    import jax

    import purerl

    def body(carry, key):
        obs, state = carry
        keys = jax.random.split(key, 2 * num_envs)
        action = jax.vmap(spec.random_action)(keys[:num_envs], obs)
        state, timestep = step(keys[num_envs:], state, action)
        return (getattr(state, "obs", timestep.obs), state), timestep.reward.sum()

    def play(key, carry):
        key, play_key, refill_key = jax.random.split(key, 3)
        if refill is not None:
            carry = carry[0], refill(refill_key, carry[1])
        carry, _ = jax.lax.scan(body, carry, jax.random.split(play_key, PARALLEL))
        return key, carry

    options = purerl.compiler_options()
    keys = jax.random.split(jax.random.key(0), num_envs)
    start = jax.random.key(1), jax.jit(reset, compiler_options=options)(keys)
    return jax.jit(play, compiler_options=options).lower(*start).compile(), start


def measure(name, num_envs, seconds, resets=None):
    """A row of the table."""
    import jax

    import purerl

    env = purerl.make(name)
    env = env if resets is None else env._replace(spec=env.spec._replace(resets=resets))
    row = {"environment": name, "resets": env.spec.resets}
    raw = purerl.vectorize(env)
    kinds = {"raw": raw}
    for kind in dict.fromkeys(("fresh", env.spec.resets)):
        kinds[kind] = purerl.envs.vector_env(env, num_envs, kind, PARALLEL)
    for kind, many in kinds.items():
        began = time.process_time()
        play = scanned(many.reset, many.step, env.spec, num_envs, getattr(many, "refill", None))
        row.setdefault("compile raw", time.process_time() - began)
        row[kind] = rate(*play, num_envs * PARALLEL, seconds)
    row["default"] = row.pop(env.spec.resets) if env.spec.resets != "fresh" else row["fresh"]
    state = jax.eval_shape(env.reset, jax.random.key(0))[1]

    sizes = [x.size * getattr(x.dtype, "itemsize", 8) for x in jax.tree.leaves(state)]
    row["state"] = sum(sizes)
    steps = num_envs * PARALLEL
    config = purerl.TrainConfig(
        env=env, num_envs=num_envs, update_every=PARALLEL, total_timesteps=4 * steps
    )
    train = jax.jit(purerl.make_train(config), compiler_options=purerl.compiler_options())
    began = time.process_time()
    program = train.lower(jax.random.key(0)).compile()
    row["compile"] = time.process_time() - began

    def again(key):
        jax.block_until_ready(program(key).metrics)
        return (key,)

    row["training"] = rate(again, (jax.random.key(0),), 4 * steps, seconds)
    return row


def table(rows):
    """The rows in Markdown."""
    print("| environment | raw | fresh | default | training | compile: raw, PPO, s | state, kB |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for row in rows:
        fresh, default = (f"{row[x]:,.0f} ({row['raw'] / row[x]:.1f})" for x in KINDS)
        default = f"{default}, {row['resets']}" if row["resets"] != "fresh" else ""
        print(
            f"| {row['environment']} | {row['raw']:,.0f} | {fresh} | {default} | "
            f"{row['training']:,.0f} | "
            f"{row['compile raw']:.0f}, {row['compile']:.0f} | {row['state'] / 1000:.1f} |",
            flush=True,
        )


def main():
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.one, args.num_envs, args.seconds, args.resets)))
        return
    from purerl.envs import suites

    rows = []
    for name in args.only or NAMES:
        if not suites.installed(name.partition("/")[0]):
            continue
        command = [sys.executable, "-W", "ignore", __file__, "--one", name]
        options = ["--num-envs", str(args.num_envs), "--seconds", str(args.seconds)]
        options += [] if args.resets is None else ["--resets", args.resets]
        done = subprocess.run(
            [*command, *options], capture_output=True, text=True, env={**os.environ}, check=False
        )
        if done.returncode:
            print(f"{name}: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
            continue
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    table(rows)
    if args.json:
        with open(args.json, "w") as file:
            json.dump(rows, file, indent=1)


if __name__ == "__main__":
    main()
