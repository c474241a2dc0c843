"""Policies with a memory, where the present doesn't tell enough; and a wrapper of an environment.

    python experiments/memory.py                # about five minutes on two CPU cores
    python experiments/memory.py --only MemoryChain-bsuite --networks lstm min_gru --length 100
    python experiments/memory.py --only CartPole-positions --networks gru --seeds 8 --scale 2

CartPole without its velocities, which only a memory can make of positions, gymnax's and Gymnasium's
functional one (`pip install 'purerl[functional]'`), and MemoryChain, where a bit that is shown at
first is asked for many steps later: PPO with each network. Writes learning curves of each, and
prints the returns of the training's end and of 32 greedy episodes, each seed's.
"""

import argparse
import time

import numpy as np
from results import greedy

import purerl
from purerl.envs import suites


def without_velocities(env):
    """CartPole whose observations are the cart's position and the pole's angle alone."""

    def reset(key):
        obs, state = env.reset(key)
        return obs[::2], state

    def step(key, state, action):
        state, timestep = env.step(key, state, action)
        return state, timestep._replace(obs=timestep.obs[::2])

    space = env.spec.observation_space
    seen = purerl.Box(space.low[::2], space.high[::2], (2,))
    spec = env.spec._replace(name="CartPole-positions", observation_space=seen)
    return purerl.Env(reset, step, spec)


def positions(name):
    """CartPole by its positions."""
    return purerl.TrainConfig(
        env=without_velocities(purerl.make(name)),
        agent=purerl.PPO(network="gru", hidden=(32,), lr=3e-3),
        num_envs=32,
        update_every=64,
        total_timesteps=500_000,
    )


def configs(length):
    """By name; MemoryChain asks after so many steps."""
    found = {
        "CartPole-positions": positions("CartPole-v1"),
        "MemoryChain-bsuite": purerl.preset("MemoryChain-bsuite").replace(
            env=purerl.make("MemoryChain-bsuite", memory_length=length)
        ),
    }
    if suites.installed("functional"):
        found["functional/CartPole-v1"] = positions("functional/CartPole-v1")
    return found


NETWORKS = ("gru", "lstm", "min_gru", "mlp")


def main(num_seeds=4, scale=1.0, out="memory", only=None, networks=("gru", "mlp"), length=30):
    found = {}
    for name, config in configs(length).items():
        if only and name not in only:
            continue
        purerl.check_env(config.env)
        config = config.replace(total_timesteps=int(scale * config.total_timesteps))
        curves = []
        for network in networks:
            config = config.replace(agent=config.agent.replace(network=network))
            start = time.perf_counter()
            outs = purerl.fit(config, seeds=num_seeds)
            seconds = time.perf_counter() - start
            curves.append(purerl.Curves.of(f"PPO, {network}", outs))
            final = curves[-1].final_returns
            played = np.asarray(greedy(config, outs, 32).episode_return)
            with np.printoptions(precision=2, suppress=True):
                print(
                    f"{name}, {network}, {config.total_timesteps:,} steps: {final}, greedy "
                    f"{played}, {seconds:.0f} s with compiling",
                    flush=True,
                )
        purerl.plot_curves(curves, f"{out}_{name.replace('/', '_')}.png", title=name)
        found[name] = curves
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="+", choices=configs(30))
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=["gru", "mlp"])
    parser.add_argument("--length", type=int, default=30, help="of MemoryChain's memory, in steps")
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--scale", type=float, default=1.0, help="of the steps")
    parser.add_argument("--out", default="memory")
    args = parser.parse_args()
    main(args.seeds, args.scale, args.out, args.only, args.networks, args.length)
