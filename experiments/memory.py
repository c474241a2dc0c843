"""Policies with a memory, where the present doesn't tell enough; and a wrapper of an environment.

    python experiments/memory.py                # about five minutes on two CPU cores

CartPole without its velocities, which only a memory can make of positions, and MemoryChain, where
a bit that is shown at first is asked for 30 steps later: PPO with a GRU and with an MLP, four seeds
each. Writes learning curves of each.
"""

import argparse
import time

import purerl


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


CONFIGS = {
    "CartPole-positions": purerl.TrainConfig(
        env=without_velocities(purerl.make("CartPole-v1")),
        agent=purerl.PPO(network="gru", hidden=(32,), lr=3e-3),
        num_envs=32,
        update_every=64,
        total_timesteps=500_000,
    ),
    "MemoryChain-bsuite": purerl.preset("MemoryChain-bsuite").replace(
        env=purerl.make("MemoryChain-bsuite", memory_length=30)
    ),
}


def main(num_seeds=4, scale=1.0, out="memory"):
    found = {}
    for name, config in CONFIGS.items():
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
        purerl.plot_curves(curves, f"{out}_{name}.png", title=name)
        found[name] = curves
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--scale", type=float, default=1.0, help="of the steps")
    parser.add_argument("--out", default="memory")
    args = parser.parse_args()
    main(args.seeds, args.scale, args.out)
