"""Searches, also as a process that a test kills.

python -m kit.searching FOLDER
"""

import json
import sys

import purerl

from .agents import Tiny
from .sweeps import config

SPACE = {"lr": purerl.LogUniform(1e-3, 3.0), "gamma": [0.5, 0.99]}
OPTIONS = {"trials": 14, "batch": 6, "seeds": 2, "fresh_seeds": 3, "reduction": 2}


class Annealed(Tiny):
    """With a schedule over the length of the run."""

    def update(self, state, experience, key, clock):
        agent = self.replace(lr=self.lr * (1.0 - clock.progress))
        return Tiny.update(agent, state, experience, key, clock)


def nine_updates(**changes):
    return config(agent=Annealed(), **{"total_timesteps": 288, **changes})


def search(folder=None, **changes):
    return purerl.tune(nine_updates(), SPACE, run_dir=folder, **{**OPTIONS, **changes})


def main(folder):
    from purerl.accelerator import members
    from purerl.sweeps.rungs import Trainer

    from .quick import quick_jit

    members.jit = quick_jit
    train = Trainer.train

    def shown(self, plan, report):
        print("batch", flush=True)
        return train(self, plan, report)

    Trainer.train = shown
    result = search(folder)
    print(json.dumps([trial.outcome.returns for trial in result.trials]), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
