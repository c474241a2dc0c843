"""SAC on Gymnasium's HalfCheetah-v5, simulated by MuJoCo on the host; and Stable-Baselines3's.

    pip install 'purerl[mujoco]'
    python experiments/halfcheetah.py --steps 100_000
    python experiments/halfcheetah.py --steps 100_000 --library sb3    # where it is installed

The same networks, batch, learning rates and steps, one environment, a gradient step at each step
after the first 10,000 (RL Zoo's settings): the greedy return of ten episodes, and steps a second of
the processor's time, compiling included.
"""

import argparse
import time

ENV = "HalfCheetah-v5"
RANDOM = 10_000  # steps before learning
EPISODES = 10


def with_purerl(steps, seed):
    import jax

    import purerl

    config = purerl.TrainConfig(
        env=f"gymnasium/{ENV}",
        agent=purerl.SAC(hidden=(256, 256), activation="relu", lr=3e-4, batch_size=256),
        buffer=purerl.Buffer(maxlen=steps),
        num_envs=1,
        update_every=1,
        update_after=min(RANDOM, steps // 10),
        total_timesteps=steps,
    )
    out = purerl.fit(config, seeds=[seed])
    acting = out.member(0).policy.acting()
    env = purerl.gymnasium_env(ENV, num_envs=EPISODES)
    played = purerl.evaluate(env, acting, jax.random.key(1), EPISODES, 1_000)
    return float(played.episode_return)


def with_sb3(steps, seed):
    import gymnasium
    from stable_baselines3 import SAC
    from stable_baselines3.common.evaluation import evaluate_policy

    learning_starts = min(RANDOM, steps // 10)
    model = SAC("MlpPolicy", ENV, learning_starts=learning_starts, seed=seed, device="cpu")
    model.learn(steps)
    played = evaluate_policy(model, gymnasium.make(ENV), EPISODES, warn=False)
    return float(played[0])


LIBRARIES = {"purerl": with_purerl, "sb3": with_sb3}


def main(library="purerl", steps=100_000, seed=0):
    start, processor = time.perf_counter(), time.process_time()
    reached = LIBRARIES[library](steps, seed)
    seconds, processor = time.perf_counter() - start, time.process_time() - processor
    print(
        f"{library}, SAC on {ENV}, {steps:,} steps, seed {seed}: greedy {reached:,.0f}; "
        f"{seconds:.0f} s, {steps / processor:,.0f} steps a second of the processor",
        flush=True,
    )
    return reached


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--library", choices=LIBRARIES, default="purerl")
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    main(args.library, args.steps, args.seed)
