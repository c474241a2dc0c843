"""Policies with a memory, where the present doesn't tell enough; and a wrapper of an environment.

    python experiments/memory.py                # about five minutes on two CPU cores

CartPole without its velocities, which only a memory can make of positions, and MemoryChain, where
a bit that is shown at first is asked for 10 steps later: PPO with a GRU and with an MLP, four seeds
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


ENVS = {
    "CartPole-positions": without_velocities(purerl.make("CartPole-v1")),
    "MemoryChain-bsuite": purerl.make("MemoryChain-bsuite", memory_length=10),
}


def main(num_seeds=4, scale=1.0, out="memory"):
    found = {}
    for name, env in ENVS.items():
        purerl.check_env(env)
        config = purerl.preset("MemoryChain-bsuite").replace(env=env)
        steps = int(scale * config.total_timesteps)
        curves = []
        for network in ("gru", "mlp"):
            agent = config.agent.replace(network=network)
            start = time.perf_counter()
            outs = purerl.fit(config.replace(agent=agent, total_timesteps=steps), seeds=num_seeds)
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
