"""The table of results: every preset, trained with fresh seeds, next to what others have published.

    python experiments/results.py                          # all presets, 16 seeds: hours
    python experiments/results.py --only CartPole sac      # those whose environment or agent has it
    python experiments/results.py --readme README.md       # and its rows go into that file's table

Interrupted, the same command goes on: each preset is a run's folder in --out, with its curve as a
CSV. Afterwards --out has `results.csv`, `results.md` and a picture for each environment. Presets of
suites that aren't installed are left out.

The seeds, from 1000 on, are none that a preset was chosen by. A figure is the interquartile mean
over them, with its 95 % bootstrap interval and in brackets the worst seed: of training, exploring,
in the last tenth of the run; and of greedy policies, 128 episodes each. "Steps" are those after
which half of the seeds have reached the return that is named, by the mean over a hundredth of the
run; "seconds" those of training all of them at once, without compiling.
"""

import argparse
import csv
import json
import re
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

import purerl
from purerl.statistics import bin_curves, bootstrap_interval, iqm
from purerl.training.presets import list_presets

FIRST_SEED = 1_000
EPISODES = 128
BEGIN, END = "<!-- results.py -->", "<!-- end of results.py -->"
# The return that counts as learned, which "steps" are counted to.
REACHED = {
    "CartPole-v1": 475.0,
    "Acrobot-v1": -100.0,
    "Pendulum-v1": -200.0,
    "MountainCarContinuous-v0": 90.0,
    "Breakout-MinAtar": 10.0,
    "Asterix-MinAtar": 1.5,
    "Freeway-MinAtar": 20.0,
    "SpaceInvaders-MinAtar": 50.0,
    "MountainCar-v0": -120.0,
    "Catch-bsuite": 0.95,
    "MemoryChain-bsuite": 0.95,
    "DiscountingChain-bsuite": 1.09,
    "FourRooms-misc": 0.95,
    "MetaMaze-misc": 30.0,
    "BernoulliBandit-misc": 85.0,
    "FrozenLake-misc": 0.7,
}
# What others report of these environments at the same number of steps, or at the number named.
BLINES, GYMNAX, ZOO, PUREJAXRL = "gymnax-blines", "gymnax", "RL Zoo", "PureJaxRL's picture"
PUBLISHED = {
    "CartPole-v1": f"500 ({BLINES}, PPO; {ZOO}, DQN)",
    "Acrobot-v1": f"-75 ({ZOO}, PPO)",
    "MountainCar-v0": f"-118 at 250,000 ({BLINES}, PPO); -101 at 120,000 ({ZOO}, DQN)",
    "Pendulum-v1": f"-150 ({ZOO}, SAC and TD3)",
    "MountainCarContinuous-v0": f"94 ({ZOO}, SAC)",
    "Breakout-MinAtar": f"16 to 19 ({BLINES}); 20 ({PUREJAXRL})",
    "Asterix-MinAtar": f"1.8 to 2.5 ({BLINES})",
    "Freeway-MinAtar": f"28 ({BLINES})",
    "SpaceInvaders-MinAtar": f"50 to 58 ({BLINES})",
    "Catch-bsuite": f"1 ({GYMNAX})",
    "DeepSea-bsuite": f"0 ({GYMNAX})",
    "MemoryChain-bsuite": f"0.1 ({GYMNAX}, without a memory)",
    "UmbrellaChain-bsuite": f"1 ({GYMNAX})",
    "DiscountingChain-bsuite": f"1.1 ({GYMNAX})",
    "FourRooms-misc": f"1 ({GYMNAX})",
    "MetaMaze-misc": f"32 ({GYMNAX})",
    "PointRobot-misc": f"10 ({GYMNAX})",
    "BernoulliBandit-misc": f"90 ({GYMNAX}); 89.4 at best",
    "FrozenLake-misc": "0.744 at best",
    "GaussianBandit-misc": f"0 ({GYMNAX})",
}
COLUMNS = ("environment", "agent", "steps", "seeds", "training", "greedy", "reached", "seconds",
           "published")  # fmt: skip


class Result(NamedTuple):
    """What a preset ended at: returns `[S]` of training and of greedy policies, the steps after
    which each seed had reached the return that counts, NaN where it never did, and seconds."""

    env: str
    agent: str
    timesteps: int
    training: np.ndarray
    greedy: np.ndarray
    steps: np.ndarray
    seconds: float

    def row(self):
        """The table's row."""
        threshold = REACHED.get(self.env)
        reached = np.sort(np.where(np.isnan(self.steps), np.inf, self.steps))
        half = reached[(len(reached) - 1) // 2]
        count = int(np.isfinite(reached).sum())
        told = f"{half:,.0f}" if np.isfinite(half) else "never"
        return (
            self.env,
            self.agent,
            f"{self.timesteps:,}",
            str(len(self.training)),
            figure(self.training),
            figure(self.greedy),
            "" if threshold is None else f"{threshold:g}: {told} ({count} of {len(reached)})",
            f"{self.seconds:.0f}",
            PUBLISHED.get(self.env, ""),
        )


def figure(returns):
    """An interquartile mean, its interval, and the worst."""
    if np.isnan(returns).all():
        return "no episode ended"
    low, high = (float(x) for x in bootstrap_interval(iqm, returns))
    digits = 1 if np.nanmax(np.abs(returns)) >= 10 else 3
    mean, worst = float(iqm(returns)), float(np.nanmin(returns))
    return f"{mean:.{digits}f} ({low:.{digits}f} to {high:.{digits}f}) [{worst:.{digits}f}]"


def measure(env, agent, folder, num_seeds, scale):
    """Trains a preset in its folder, as far as it isn't, and evaluates it."""
    config = purerl.preset(env, agent)
    config = config.replace(total_timesteps=int(scale * config.total_timesteps))
    seeds = range(FIRST_SEED, FIRST_SEED + num_seeds)
    outs = purerl.fit(config, folder, seeds=seeds)
    summary = json.loads((folder / "summary.json").read_text())
    curves = purerl.read_run(folder)
    at, returns = bin_curves(curves.timesteps, curves.returns, curves.num_episodes)
    reached = returns >= REACHED.get(env, np.inf)
    steps = np.where(reached.any(axis=1), at[reached.argmax(axis=1)], np.nan)
    return Result(
        env,
        agent,
        outs.num_timesteps,
        curves.final_returns,
        np.asarray(greedy(config, outs).episode_return, np.float64),
        steps,
        summary["seconds"],
    )


def greedy(config, outs, episodes=EPISODES):
    """Statistics of episodes of greedy policies, `[S]` each."""
    limit = config.max_episode_steps or config.env.spec.max_episode_steps or 10_000

    def play(out, key):
        return purerl.evaluate(config.env, out.policy.acting(), key, episodes, limit)

    light = outs.replace(state=outs.state._replace(buffer=None, rollout=None), metrics=None)
    compiled = jax.jit(jax.vmap(play), compiler_options=purerl.compiler_options())
    return compiled(light, jax.random.split(jax.random.key(FIRST_SEED), outs.num_rows.size))


def chosen(words):
    """The presets, `(env, agent)` each, that contain one of the words, or all; a whole name, as
    "CartPole-v1 ppo", is of that preset alone."""
    found, presets = [], list_presets()
    whole = {f"{env} {agent}" for env, agents in presets.items() for agent in agents}
    for env, agents in presets.items():
        for agent in agents:
            name = f"{env} {agent}"
            parts = [word.lower() in name.lower() for word in words if word not in whole]
            if words and name not in words and not any(parts):
                continue
            try:
                purerl.preset(env, agent)
            except purerl.ConfigError as error:
                print(f"{env}, {agent}: left out; {error}")
            else:
                found.append((env, agent))
    return found


def write(results, out, readme):
    """The tables so far, and the picture of the last environment."""
    rows = [result.row() for result in results]
    with (out / "results.csv").open("w", newline="") as file:
        csv.writer(file).writerows([COLUMNS, *rows])
    (out / "results.md").write_text(table(rows))
    env = results[-1].env
    folders = [out / folder_name(env, result.agent) for result in results if result.env == env]
    curves = [purerl.read_run(folder) for folder in folders]
    purerl.plot_curves(curves, out / f"{folder_name(env)}.png", title=env)
    if readme is not None:
        text = Path(readme).read_text()
        found = re.search(f"{re.escape(BEGIN)}\n(.*?){re.escape(END)}", text, re.DOTALL)
        if found is None:
            raise SystemExit(
                f"{readme} has no lines {BEGIN} and {END}, which the table goes between"
            )
        merged = table(merge(rows, found.group(1)))
        Path(readme).write_text(text[: found.start(1)] + merged + text[found.end(1) :])


def table(rows):
    """Rows as Markdown."""
    lines = [COLUMNS, ["---"] * len(COLUMNS), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def merge(rows, text):
    """Rows of a table, with those of `rows` in place of, or beside, those that it had; of presets
    only, in their order."""
    lines = [line.strip().strip("|").split("|") for line in text.splitlines()]
    had = [tuple(cell.strip() for cell in line) for line in lines]
    known = {row[:2]: row for row in [*had, *rows]}
    order = [(env, agent) for env, agents in list_presets().items() for agent in agents]
    return [known[name] for name in order if name in known]


def folder_name(*words):
    return "-".join(words).replace("/", "-")


def main(only=(), num_seeds=16, scale=1.0, out="results", readme=None):
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    presets = chosen(only)
    if not presets:
        raise SystemExit(f"--only: no preset has {' or '.join(only)}")
    results = []
    for env, agent in presets:
        result = measure(env, agent, out / folder_name(env, agent), num_seeds, scale)
        print(" | ".join(result.row()), flush=True)
        results.append(result)
        write(results, out, readme)
    return results


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="+", default=(), metavar="WORD")
    parser.add_argument("--seeds", type=int, default=16)
    parser.add_argument("--scale", type=float, default=1.0, help="of the steps")
    parser.add_argument("--out", default="results")
    parser.add_argument("--readme", metavar="FILE")
    args = parser.parse_args()
    main(args.only, args.seeds, args.scale, args.out, args.readme)
