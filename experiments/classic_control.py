"""Agents compared on classic control, eight seeds each, with purerl's presets.

    python experiments/classic_control.py       # about four minutes on two CPU cores

CartPole-v1: PPO, PQN, DQN, ActorCritic and REINFORCE; Pendulum-v1: PPO, ActorCritic and DDPG, over
the same number of environment steps. Writes learning curves for each environment, over steps and
over seconds, and a comparison of the final returns: intervals, probabilities of improvement, and
performance profiles.
"""

import argparse
import time

import purerl

AGENTS = {
    "CartPole-v1": ("ppo", "pqn", "dqn", "actor_critic", "reinforce"),
    "Pendulum-v1": ("ppo", "actor_critic", "ddpg"),
}


def train(env, agent, num_seeds, total_timesteps, folder):
    """Learning curves of an agent's seeds, trained at once; a killed run is continued."""
    config = purerl.preset(env, agent, total_timesteps=total_timesteps)
    run_dir = f"{folder}/{env}-{agent}"
    start = time.perf_counter()
    purerl.fit(config, run_dir, seeds=num_seeds)
    print(f"{env}, {agent}: {time.perf_counter() - start:.0f} s with compiling", flush=True)
    return purerl.read_run(run_dir, name=type(config.agent).__name__)


def main(num_seeds=8, total_timesteps=300_000, folder="classic_control"):
    found = {}
    for env, agents in AGENTS.items():
        curves = [train(env, agent, num_seeds, total_timesteps, folder) for agent in agents]
        for x in ("steps", "seconds"):
            purerl.plot_curves(curves, f"{folder}/{env}_{x}.png", x=x, title=env)
        purerl.plot_comparison(curves, f"{folder}/{env}_final.png", title=env)
        for curve in curves:
            final = curve.final_returns
            print(f"  {curve.name:12} {final.mean():8.1f}  worst seed {final.min():8.1f}")
        found[env] = curves
    print(f"pictures: {folder}/")
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--steps", type=int, default=300_000)
    parser.add_argument("--folder", default="classic_control")
    args = parser.parse_args()
    main(args.seeds, args.steps, args.folder)
