"""Small populations that evolve, and copies of members made by a loop.

    python -m kit.populations FOLDER

trains a long one in a folder, as a process that a test kills; it prints each interval.
"""

import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

import purerl
from purerl.accelerator import members
from purerl.accelerator.transfer import is_key
from purerl.sweeps import evolve as evolving

from .environments import push_env
from .quick import quick_jit
from .sweeps import config
from .trees import data

SPACE = {"lr": purerl.LogUniform(0.01, 1.0), "gamma": purerl.Uniform(0.5, 0.99)}
OPTIONS = {"population": 6, "interval": 64, "key": jax.random.key(3)}
FOUR = {"total_timesteps": 256}  # intervals, of two updates
PUSH = {"env": push_env(), "normalize_obs": True, "eval_every": 2, "eval_max_episodes": 2, **FOUR}
FORTY = {**PUSH, "total_timesteps": 64 * 40}


def evolve(base=None, space=None, **options):
    space = SPACE if space is None else space
    return purerl.evolve(base or config(**FOUR), space, **{**OPTIONS, **options})


def tree(size):
    """Leaves of many kinds; no two members' are equal."""
    at = jnp.arange(size)
    return {
        "float": jnp.stack([at + 0.5, -0.0 * at], 1),
        "half": (at / 7).astype(jnp.bfloat16),
        "count": at.astype(jnp.int8) - 3,
        "flag": at % 2 == 0,
        "key": jax.vmap(jax.random.key)(at.astype(jnp.uint32)),
        "empty": jnp.zeros((size, 0)),
    }


# Of seven members: none is copied, some, one by all, the first and the last by each other.
SOURCES = (
    [0, 1, 2, 3, 4, 5, 6],
    [0, 1, 1, 3, 6, 5, 6],
    [4, 4, 4, 3, 4, 5, 4],
    [6, 1, 2, 0, 4, 5, 0],
)


def check_copies(layout):
    """`Layout.copy` of seven members does, to the bit, what a loop over members does."""
    for source in SOURCES:
        parts = [jax.tree.map(jnp.copy, part) for part in layout.split(tree(7))]
        got = layout.join(layout.copy(parts, np.array(source), 4))
        for name, before in tree(7).items():
            want = data(before).copy()
            for place, origin in enumerate(source if not is_key(before) else ()):
                want[place] = data(before)[origin]
            assert data(got[name]).dtype == want.dtype
            assert data(got[name]).tobytes() == want.tobytes(), name


def main(folder):
    members.jit = quick_jit
    interval = evolving._Population._interval

    def printed(self):
        interval(self)
        print(self.done, flush=True)
        time.sleep(0.05)

    evolving._Population._interval = printed
    evolve(config(**FORTY), run_dir=folder, checkpoint_every=0.0)


if __name__ == "__main__":
    main(*sys.argv[1:])
