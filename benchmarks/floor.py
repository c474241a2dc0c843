"""Where the time of training goes: each part alone, and the whole over the sum of the parts.

    python benchmarks/floor.py                            # all agents, some 20 minutes
    python benchmarks/floor.py --only ppo-64x128 --seeds 1 --cores 1

In one process and interleaved, medians of several runs, compile time excluded:

    environment   steps and resets alone, actions and keys drawn beforehand
    acting        the networks on fixed observations, and the drawing of actions
    learning      gradient steps on one fixed batch: no shuffling, no gathering, no returns
    floor         the sum of these three
    rollout       environment, acting, keys, storing
    update        returns, shuffling or replay, learning
    whole         training

The time above the floor is listed by share: rollout over environment and acting, update over
learning, and the rest of the whole. "peak": the share of learning that its matrix products and
activations would take at the speed that this machine reaches on large ones of their kind.
"launches" are the operations that the compiled program starts in an update, and those of each step
of the environments and of each gradient step: the cost on a GPU. "memory" is that of the program
beyond its inputs, and over the size of the run's state: parameters, optimizer, environments and
buffer, which for most agents is one rollout.

`revisions.py --against REVISION --cores 1` trains the same cases with two revisions, by turns.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import sys
import time

from hlo import operations

parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
parser.add_argument("--only", nargs="+", metavar="NAME", help="such as ppo-64x128")
parser.add_argument("--seeds", type=int, nargs="+", default=[1], help="agents under vmap")
parser.add_argument("--cores", type=int, help="how many may be used")
parser.add_argument("--repeats", type=int, default=5)
parser.add_argument("--json", metavar="FILE", help="write the rows there too")


def cases(purerl):
    """Environment, agent, N, T and steps of a timed run, by name."""
    cartpole, pendulum, breakout = "CartPole-v1", "Pendulum-v1", "Breakout-MinAtar"
    mlp, a2c = {"network": "mlp"}, purerl.ActorCritic(n_episodes=64, episode_length=32)
    ddpg = {"hidden": (64, 64), "batch_size": 128}  # its sizes
    return {
        "ppo-4x128": (cartpole, purerl.PPO(), 4, 128, 524_288),
        "ppo-64x128": (cartpole, purerl.PPO(), 64, 128, 524_288),
        "ppo-2048x32": (cartpole, purerl.PPO(), 2048, 32, 524_288),
        "ppo-breakout": (breakout, purerl.PPO(**mlp), 64, 128, 131_072),
        "ppo-breakout-cnn": (breakout, purerl.PPO(), 64, 128, 32_768),
        "ppo-gru-64x128": (cartpole, purerl.PPO(network="gru"), 64, 128, 131_072),
        "reinforce": (cartpole, purerl.REINFORCE(), 8, 500, 524_288),
        "actor-critic": (cartpole, a2c, 64, 32, 524_288),
        "pqn": (cartpole, purerl.PQN(), 64, 32, 524_288),
        "pqn-breakout": (breakout, purerl.PQN(hidden=(128,), **mlp), 64, 32, 131_072),
        "dqn": (cartpole, purerl.DQN(hidden=(120, 84)), 10, 1, 100_000),
        "ddpg": (pendulum, purerl.DDPG(), 1, 1, 10_000),
        "td3": (pendulum, purerl.TD3(gradient_steps=2, **ddpg), 2, 1, 10_000),
        "sac": (pendulum, purerl.SAC(**ddpg), 1, 1, 10_000),
    }


class Parts:
    """Parts of a run, `(init, body)` each: init makes a carry from a key, the body is scanned."""

    def __init__(self, env_name, agent, num_envs, num_steps, num_updates):
        size = num_envs * num_steps
        self.loop = purerl.make_loop(
            purerl.make(env_name),
            agent,
            num_envs=num_envs,
            update_every=num_steps,
            update_after=min(agent.run_defaults.update_after or 0, size),
            total_timesteps=size * num_updates,
        )
        self.agent, self.buffer = self.loop.agent, self.loop.buffer
        self.env = self.loop.vector_env()
        self.num_envs, self.num_steps = num_envs, num_steps

    def named(self):
        scanned = {
            "environment": (self.environment_init, self.environment),
            "acting": (self.acting_init, self.acting),
            "learning": (self.learning_init, self.learning),
            "rollout": (self.rollout_init, self.rollout),
            "update": (self.update_init, self.update),
        }
        return {"whole": (self.loop.init, self.loop.step)} | {
            name: (init, lambda carry, _, body=body: body(carry))
            for name, (init, body) in scanned.items()
        }

    def environment_init(self, key):
        envs = self.loop.init(key).rollout.env
        shape = (self.num_steps, self.num_envs)
        keys = jax.random.split(key, shape)
        actions = jax.vmap(jax.vmap(self.loop.env.spec.action_space.sample))(keys)
        return envs, actions, keys

    def environment(self, carry):
        envs, actions, keys = carry

        def step(envs, inputs):
            envs, timestep = self.env.step(inputs[0], envs, inputs[1])
            return envs, (timestep.reward, timestep.obs)

        envs, (reward, obs) = lean_scan(step, envs, (keys, actions))
        return (envs, actions, keys), (reward.sum(), all_of(obs))

    def acting_init(self, key):
        state = self.loop.init(key)
        seen = state.rollout.memory, state.rollout.env.obs
        return state.agent, seen, jax.random.split(key, self.num_steps)

    def acting(self, carry):
        state, seen, keys = carry

        acting = self.agent.acting(state, purerl.Clock())

        def step(seen, key):
            memory, obs = seen
            memory, action, extras = acting.step(memory, obs, key)
            # The next step waits for this one, as in a rollout.
            still = 0.0 * jnp.sum(action)
            obs = jax.tree.map(lambda x: x + still.astype(x.dtype), obs)
            return (memory, obs), (action, extras)

        seen, drawn = lean_scan(step, seen, keys)
        return (state, seen, keys), all_of(drawn)

    def rollout_init(self, key):
        state = self.loop.init(key)
        return state.agent, state.rollout, state.buffer, key

    def rollout(self, carry):
        state, envs, stored, key = carry
        key, play_key = jax.random.split(key)
        envs, transitions, episodes, _ = self.loop.play(state, envs, None, play_key, jnp.int32(0))
        return (state, envs, self.buffer.push(stored, transitions), key), episodes

    def update_init(self, key):
        carry = self.rollout_init(key)
        filled = min(self.buffer.maxlen // (self.num_envs * self.num_steps), 2_000)
        (state, envs, stored, _), _ = jax.lax.scan(
            lambda carry, _: self.rollout(carry), carry, length=filled
        )
        return state, stored, envs.memory, key

    def update(self, carry):
        state, stored, memory, key = carry
        key, update_key = jax.random.split(key)
        clock = self.loop.clock(jnp.int32(0))
        experience = purerl.Experience(self.buffer, stored, clock, memory=memory)
        state, experience, losses = self.agent.update(state, experience, update_key, clock)
        return (state, experience.state, memory, key), losses

    def learning_init(self, key):
        state, stored, memory, key = self.update_init(key)
        agent = self.agent
        if isinstance(agent, purerl.DQN | purerl.DDPG | purerl.TD3 | purerl.SAC):
            names = ("obs", "action", "reward", "next_obs")
            return state, self.buffer.sample(
                stored, key, agent.batch_size, keys=names, n_step=agent.n_step
            )
        data = self.buffer.read(stored)
        if isinstance(agent, purerl.PPO | purerl.PQN):
            names = ("obs", "action", "log_prob", "value")
            batch = {name: data[name] for name in names if name in data}
            batch |= {"advantage": data["reward"], "target": data["reward"]}
            size = agent.minibatch_size(self.num_envs, self.num_steps)
            batch |= {"weight": data["valid"] / size}
            if agent.remembers:  # whole sequences of some environments
                batch |= {"fresh": begins(data["terminated"], data["truncated"])}
                batch |= {"memory": jax.tree.map(lambda x: x[None], memory)}
                return state, jax.tree.map(lambda x: x[:, : size // self.num_steps], batch)
            return state, jax.tree.map(lambda x: x[:size], flatten(batch))
        batch, reward = path_batch(data, data["reward"])
        return state, batch | {"reward": reward}

    def learning(self, carry):
        state, batch = carry
        if isinstance(self.agent, purerl.REINFORCE | purerl.ActorCritic):
            state, losses = self.one_step(state, batch)  # and all of the critic's
        else:
            state, losses = jax.lax.scan(
                lambda state, number: self.one_step(state, batch, number),
                state,
                jnp.arange(self.gradient_steps),
            )
        return (state, batch), all_of(losses)

    def one_step(self, state, batch, number=1):
        if isinstance(self.agent, purerl.REINFORCE | purerl.ActorCritic):
            reward = batch["reward"]
            return self.agent._learn(state, batch, reward, reward, purerl.Clock())
        more = ()
        if isinstance(self.agent, purerl.TD3 | purerl.SAC):  # a new key for each step
            (_, (moments, _)) = state.opt_states["critic"]
            more = (jax.random.fold_in(jax.random.key(0), moments.count),)
        if isinstance(self.agent, purerl.TD3):
            more += (number % self.agent.policy_delay == 1,)
        state, *_, losses = self.agent._learn(state, batch, *more, purerl.Clock())
        return state, losses

    @property
    def gradient_steps(self):
        """Gradient steps of an update."""
        agent = self.agent
        if isinstance(agent, purerl.PPO | purerl.PQN):
            size = agent.minibatch_size(self.num_envs, self.num_steps)
            return agent.K_epochs * self.num_envs * self.num_steps // size
        if isinstance(agent, purerl.ActorCritic):
            return 1 + agent.train_v_iters
        return getattr(agent, "gradient_steps", 1)


def all_of(tree):
    """A number that depends on every leaf of the tree, so that XLA can leave none out."""
    return sum(jnp.sum(x.astype(jnp.float32)) for x in jax.tree.leaves(tree))


class Timed:
    """A compiled scan of a part, over vmapped seeds where there are several."""

    def __init__(self, start, body, num_updates, keys):
        def scan(states, indices):
            # The whole final state is returned, so that XLA can leave nothing out.
            def one(state):
                return jax.lax.scan(body, state, indices)

            return one(states) if len(keys) == 1 else jax.vmap(one)(states)

        init = (lambda keys: start(keys[0])) if len(keys) == 1 else jax.vmap(start)
        self.args = jax.jit(init)(keys), jnp.arange(num_updates)
        began = time.perf_counter()
        self.compiled = jit(scan).lower(*self.args).compile()
        self.compile_seconds = time.perf_counter() - began
        self.seconds = []
        self()

    def __call__(self):
        start = time.perf_counter()
        jax.block_until_ready(self.compiled(*self.args))
        return time.perf_counter() - start


def launches(text):
    """Operations that a compiled program starts, by their number of times: `{times: operations}`.

    Tuples, constants and the like are free. Operations in a loop of unknown length count once.
    """
    free = {"parameter", "tuple", "get-tuple-element", "constant", "bitcast"}
    counted = {}
    for times, kind, _ in operations(text):
        if kind not in free:
            counted[times or 1] = counted.get(times or 1, 0) + 1
    return counted


def peak_seconds(parts, key):
    """Seconds of an update's gradient steps at the machine's best speed for matrix products and
    for activations."""
    carry = jax.jit(parts.learning_init)(key)
    rows, gradients.ROWS_AT_ONCE = gradients.ROWS_AT_ONCE, sys.maxsize
    cost = jit(parts.one_step).lower(*carry).compile().cost_analysis()  # no loop to count once
    gradients.ROWS_AT_ONCE = rows
    seconds = cost.get("flops", 0.0) / best_flops() + cost.get("transcendentals", 0.0) / best_tanh()
    return seconds * parts.gradient_steps


_best = {}


def best(name, function, x, work):
    """Work per second of a compiled function, the best of ten runs."""
    if name not in _best:
        compiled = jit(function).lower(x).compile()
        times = []
        for _ in range(10):
            start = time.perf_counter()
            jax.block_until_ready(compiled(x))
            times.append(time.perf_counter() - start)
        _best[name] = work / min(times)
    return _best[name]


def best_flops():
    n = 1024
    return best("flops", lambda x: x @ x @ x @ x, jnp.ones((n, n)) / n, 3 * 2 * n**3)


def best_tanh():
    n = 1 << 22
    return best("tanh", jnp.tanh, jnp.linspace(-3.0, 3.0, n), n)


def measure(name, case, num_seeds, repeats):
    env_name, agent, num_envs, num_steps, steps = case
    size = num_envs * num_steps
    num_updates = max(2, steps // (size * num_seeds))
    keys = jax.random.split(jax.random.key(0), num_seeds)
    parts = Parts(env_name, agent, num_envs, num_steps, num_updates)
    timed = {
        part: Timed(*functions, num_updates, keys) for part, functions in parts.named().items()
    }
    for _ in range(repeats):
        for part in timed.values():
            part.seconds.append(part())
    total = num_updates * size * num_seeds
    ns = {part: 1e9 * statistics.median(x.seconds) / total for part, x in timed.items()}
    floors = zip(*(timed[x].seconds for x in ("environment", "acting", "learning")), strict=True)
    ratios = [w / sum(f) for w, f in zip(timed["whole"].seconds, floors, strict=True)]
    # No peak where a step is of two gradients, or has a loop over time, whose cost is counted once.
    unknown = isinstance(agent, purerl.REINFORCE | purerl.ActorCritic) or agent.remembers
    peak = None if unknown else peak_seconds(parts, keys[0])
    counted = launches(timed["whole"].compiled.as_text())
    an_update = sum(trips * n for trips, n in counted.items()) / num_updates
    memory = timed["whole"].compiled.memory_analysis()
    used = memory.temp_size_in_bytes + memory.output_size_in_bytes
    state = num_seeds * sum(
        x.size * x.dtype.itemsize for x in jax.tree.leaves(jax.eval_shape(parts.loop.init, keys[0]))
    )
    return {
        "case": name,
        "seeds": num_seeds,
        "steps_per_second": 1e9 / ns["whole"],
        "nanoseconds_per_step": ns,
        "whole_over_floor": statistics.median(ratios),
        "whole_over_floor_range": [min(ratios), max(ratios)],
        "shares": {
            "rollout": (ns["rollout"] - ns["environment"] - ns["acting"]) / ns["whole"],
            "update": (ns["update"] - ns["learning"]) / ns["whole"],
            "besides": (ns["whole"] - ns["rollout"] - ns["update"]) / ns["whole"],
        },
        "launches_per_update": an_update,
        "launches_by_trips": {str(k): v for k, v in sorted(counted.items())},
        "gradient_steps": parts.gradient_steps,
        "peak": None if peak is None else 1e9 * peak / size / ns["learning"],
        "compile_seconds": timed["whole"].compile_seconds,
        "program_megabytes": used / 2**20,
        "memory_over_state": used / state,
        "process_peak_megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def main(args):
    console = Console(width=None if sys.stdout.isatty() else 160)
    columns = ("environment", "acting", "learning", "rollout", "update", "whole")
    table = Table(
        "case",
        "seeds",
        "steps/s",
        *columns,
        "whole / floor",
        "rollout +",
        "update +",
        "besides",
        "peak",
        "launches",
        "compile",
        "memory",
        box=None,
    )
    rows = []
    chosen = cases(purerl)
    for name in args.only or chosen:
        if name not in chosen:
            parser.error(f"--only: got {name!r}, expected some of {', '.join(chosen)}")
        for num_seeds in args.seeds:
            row = measure(name, chosen[name], num_seeds, args.repeats)
            rows.append(row)
            low, high = row["whole_over_floor_range"]
            cells = [
                name,
                str(num_seeds),
                f"{row['steps_per_second']:,.0f}",
                *(f"{row['nanoseconds_per_step'][part]:,.0f}" for part in columns),
                f"{row['whole_over_floor']:.2f} ({low:.2f} to {high:.2f})",
                *(f"{share:.0%}" for share in row["shares"].values()),
                "" if row["peak"] is None else f"{row['peak']:.0%}",
                f"{row['launches_per_update']:,.0f}",
                f"{row['compile_seconds']:.1f} s",
                f"{row['program_megabytes']:,.0f} MiB, {row['memory_over_state']:.1f} times",
            ]
            console.print("  ".join(cells), row["launches_by_trips"])
            table.add_row(*cells)
    console.print(table)
    console.print("environment to whole: nanoseconds a step of one environment, over all seeds")
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
    arguments = parser.parse_args()
    if arguments.cores:  # before JAX counts them
        os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[: arguments.cores]))
    import jax
    import jax.numpy as jnp
    from rich.console import Console
    from rich.table import Table

    import purerl
    from purerl.accelerator.compiling import jit
    from purerl.accelerator.lean_scan import lean_scan
    from purerl.agents import gradients
    from purerl.agents.learning import flatten, path_batch
    from purerl.nn.memory import begins

    main(arguments)
