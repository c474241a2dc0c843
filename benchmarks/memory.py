"""Memory of training: of the buffer, of the whole state, and of the compiled program.

    python benchmarks/memory.py                     # all cases, under a minute
    python benchmarks/memory.py --only dqn-breakout

Nothing is trained: shapes give the first two, `memory_analysis` of the compiled `train` the third:
its results and everything that it holds in between.
"""

import argparse

import jax

import purerl
from purerl.envs.check import QUICK_COMPILE


def cases():
    """Configs by name."""
    million = {"num_envs": 10, "buffer": purerl.Buffer(maxlen=1_000_000)}
    rollouts = {"num_envs": 64, "update_every": 128}
    breakout, cartpole = "Breakout-MinAtar", "CartPole-v1"
    return {
        "ppo-breakout": purerl.TrainConfig(breakout, purerl.PPO(), 32_768, **rollouts),
        "dqn-cartpole": purerl.TrainConfig(cartpole, purerl.DQN(), 100_000, **million),
        "dqn-breakout": purerl.TrainConfig(breakout, purerl.DQN(), 100_000, **million),
    }


def mebibytes(tree):
    keys = jax.dtypes.prng_key
    arrays = [x for x in jax.tree.leaves(tree) if not jax.dtypes.issubdtype(x.dtype, keys)]
    return sum(x.size * x.dtype.itemsize for x in arrays) / 2**20


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="+", choices=cases(), default=list(cases()))
    for name in parser.parse_args().only:
        config, key = cases()[name], jax.eval_shape(lambda: jax.random.key(0))
        state = jax.eval_shape(config.make_loop().start, key)
        train = jax.jit(purerl.make_train(config), compiler_options=QUICK_COMPILE)
        memory = train.lower(key).compile().memory_analysis()
        whole = (memory.temp_size_in_bytes + memory.output_size_in_bytes) / 2**20
        print(
            f"{name}: buffer {mebibytes(state.buffer):,.1f} MiB, state {mebibytes(state):,.1f}, "
            f"program {whole:,.1f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
