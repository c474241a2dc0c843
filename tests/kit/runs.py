"""Small runs of every agent, stopped by signals and trained in processes that tests kill."""

import os
import pathlib
import signal
import subprocess
import sys

import purerl

from .agents import Tiny
from .environments import push_env, walk

PRIORITIES = purerl.Buffer(maxlen=64, priority_sampling=True)


REPLAY = {"num_envs": 4, "update_every": 2, "buffer": PRIORITIES, "update_after": 16}


NOISE = purerl.OrnsteinUhlenbeckNoise(noise_decay=0.9)


EVERYTHING = {
    "normalize_obs": True,
    "normalize_reward": True,
    "eval_every": 2,
    "eval_max_episodes": 2,
}


# Every agent, and whatever of the options it can take: 12 updates each.
RUNS = {
    "PPO": (walk(5, limit=3), purerl.PPO(), {"num_envs": 4, "update_every": 8}),
    "REINFORCE": (
        walk(5, limit=3),
        purerl.REINFORCE(n_episodes=4, episode_length=8, baseline=True),
        {},
    ),
    "REINFORCE, no baseline": (push_env(), purerl.REINFORCE(n_episodes=4, episode_length=8), {}),
    "ActorCritic, V": (push_env(), purerl.ActorCritic(n_episodes=4, episode_length=8), {}),
    "ActorCritic, Q": (
        walk(5, limit=3),
        purerl.ActorCritic(n_episodes=4, episode_length=8, critic=purerl.DefaultQCritic),
        {},
    ),
    "PQN": (
        walk(5, limit=3),
        purerl.PQN(network="gru", hidden=(8,)),
        {"num_envs": 4, "update_every": 8},
    ),
    "DQN": (walk(5, limit=3), purerl.DQN(batch_size=8), REPLAY),
    "DDPG": (push_env(), purerl.DDPG(batch_size=8), {**REPLAY, "noise": NOISE}),
    "TD3": (push_env(), purerl.TD3(batch_size=8, hidden=8), {**REPLAY, "noise": NOISE}),
    "SAC": (push_env(), purerl.SAC(batch_size=8, hidden=8), {**REPLAY, "noise": NOISE}),
}


# For what doesn't depend on the agent.
TINY = (push_env(), Tiny(), {"num_envs": 4, "update_every": 8})


def config(num_updates=12):
    """Of nothing that `Tiny` doesn't need."""
    return purerl.TrainConfig(
        push_env(), Tiny(), 32 * num_updates, num_envs=4, update_every=8, max_episode_steps=3
    )


def small(name=None, num_updates=12, **options):
    env, agent, own = RUNS[name] if name else TINY
    options = {**own, **EVERYTHING, **options}
    agent = options.pop("agent", agent)
    loop = purerl.TrainConfig(env, agent, **options).make_loop()
    return purerl.TrainConfig(
        env, agent, total_timesteps=num_updates * loop.steps_per_update, **options
    )


def stop_at(update, number=signal.SIGINT):
    """A callback that sends a signal to this process in the chunk that reaches an update."""

    def callback(report):
        if report.start < update <= report.stop:
            os.kill(os.getpid(), number)

    return callback


def start(name, folder, *arguments, num_devices=1):
    """A process that trains in a folder, and prints each update that it has reached."""
    flags = os.environ.get("XLA_FLAGS", "")  # by another instruction set come other bits
    environment = os.environ | {  # with the cache that `conftest.py` names
        "XLA_FLAGS": f"{flags} --xla_force_host_platform_device_count={num_devices}".strip(),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    command = [sys.executable, "-m", "kit.killed", name, str(folder), *map(str, arguments)]
    tests = pathlib.Path(__file__).parents[1]
    return subprocess.Popen(command, cwd=tests, env=environment, stdout=subprocess.PIPE, text=True)


def updates(output):
    """Those that a process has printed."""
    return [int(line) for line in output.splitlines() if line.isdigit()]
