"""Policies with a memory, where the present doesn't tell enough; and a wrapper of an environment.

    python experiments/memory.py                # about five minutes on two CPU cores
    python experiments/memory.py --only functional/CartPole-v1 --seeds 2

CartPole without its velocities, which only a memory can make of positions, gymnax's and Gymnasium's
functional one (`pip install 'purerl[functional]'`), and MemoryChain, where a bit that is shown at
first is asked for 30 steps later: PPO with a GRU and with an MLP, four seeds each. Writes learning
curves of each.
"""

import argparse
import time

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
    spec = env.spec._replace(name="CartPole-positions", observation_space=seen, source=None)
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


CONFIGS = {
    "CartPole-positions": positions("CartPole-v1"),
    "MemoryChain-bsuite": purerl.preset("MemoryChain-bsuite").replace(
        env=purerl.make("MemoryChain-bsuite", memory_length=30)
    ),
}
if suites.installed("functional"):
    CONFIGS["functional/CartPole-v1"] = positions("functional/CartPole-v1")


def main(num_seeds=4, scale=1.0, out="memory", only=None):
    found = {}
    for name in only or CONFIGS:
        config = CONFIGS[name]
        purerl.check_env(config.env)
        config = config.replace(total_timesteps=int(scale * config.total_timesteps))
        curves = []
        for network in ("gru", "mlp"):
            agent = config.agent.replace(network=network)
            start = time.perf_counter()
            outs = purerl.fit(config.replace(agent=agent), seeds=num_seeds)
            curves.append(purerl.Curves.of(f"PPO, {network}", outs))
            final = curves[-1].final_returns
            print(
                f"{name}, {network}: {final.mean():.2f}, worst seed {final.min():.2f}, "
                f"{time.perf_counter() - start:.0f} s with compiling",
                flush=True,
            )
        purerl.plot_curves(curves, f"{out}_{name.replace('/', '_')}.png", title=name)
        found[name] = curves
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--scale", type=float, default=1.0, help="of the steps")
    parser.add_argument("--out", default="memory")
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=list(CONFIGS))
    args = parser.parse_args()
    main(args.seeds, args.scale, args.out, args.only)
