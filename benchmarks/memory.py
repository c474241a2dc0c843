"""Memory of training: of the buffer, of the whole state, and of the compiled program.

    python benchmarks/memory.py                     # all cases, some two minutes
    python benchmarks/memory.py --only dqn-breakout
    python benchmarks/memory.py --members 256 --only ppo sac

Nothing is trained: shapes give the first two, `memory_analysis` of the compiled `train` the third:
its results and everything that it holds in between. With members it is `train` under `vmap`, and
all figures are of one member. The last is the program over the state.
"""

import argparse

import jax

import purerl


def cases():
    """Configs by name."""
    million = {"num_envs": 10, "buffer": purerl.Buffer(maxlen=1_000_000)}
    rollouts = {"num_envs": 64, "update_every": 128}
    breakout, cartpole = "Breakout-MinAtar", "CartPole-v1"
    agents = {
        "reinforce": purerl.REINFORCE(),
        "actor-critic": purerl.ActorCritic(),
        "ppo": purerl.PPO(),
        "ppo-gru": purerl.PPO(network="gru"),
        "pqn": purerl.PQN(),
        "dqn": purerl.DQN(),
    }
    continuous = {"ddpg": purerl.DDPG(), "td3": purerl.TD3(), "sac": purerl.SAC()}
    return {
        **{n: purerl.TrainConfig(cartpole, agent, 100_000) for n, agent in agents.items()},
        **{n: purerl.TrainConfig("Pendulum-v1", agent, 20_000) for n, agent in continuous.items()},
        "ppo-breakout": purerl.TrainConfig(breakout, purerl.PPO(), 32_768, **rollouts),
        "dqn-cartpole": purerl.TrainConfig(cartpole, purerl.DQN(), 100_000, **million),
        "dqn-breakout": purerl.TrainConfig(breakout, purerl.DQN(), 100_000, **million),
    }


def mebibytes(tree):
    keys = jax.dtypes.prng_key
    arrays = [x for x in jax.tree.leaves(tree) if not jax.dtypes.issubdtype(x.dtype, keys)]
    return sum(x.size * x.dtype.itemsize for x in arrays) / 2**20


def measure(name, config, members):
    key = jax.eval_shape(lambda: jax.random.key(0))
    state = jax.eval_shape(config.make_loop().start, key)
    train = purerl.make_train(config)
    if members > 1:
        train = jax.vmap(train)
        key = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), members))
    # The options that training has: what is held in between depends on them.
    options = purerl.compiler_options()
    memory = jax.jit(train, compiler_options=options).lower(key).compile().memory_analysis()
    whole = (memory.temp_size_in_bytes + memory.output_size_in_bytes) / 2**20 / members
    print(
        f"{name}, {members} members: buffer {mebibytes(state.buffer):,.2f} MiB, "
        f"state {mebibytes(state):,.2f}, program {whole:,.2f}, {whole / mebibytes(state):.2f}",
        flush=True,
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="+", choices=cases(), default=list(cases()))
    parser.add_argument("--members", nargs="+", type=int, default=[1])
    args = parser.parse_args()
    for name in args.only:
        for members in args.members:
            measure(name, cases()[name], members)


if __name__ == "__main__":
    main()
