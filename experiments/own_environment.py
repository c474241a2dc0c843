"""Your environment and your network.

    python experiments/own_environment.py       # under a minute on two CPU cores

A frog crosses a river of ten stones. It may hop one stone or leap two; a leap slips back to the
bank one time in four. Reward 1 across the river, and -0.01 a move. By value iteration the
optimal policy leaps from the first three stones, where little is lost, and then hops. So does the
learned one.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import purerl

STONES = 10


class Frog(NamedTuple):
    """State: the stone that it sits on."""

    stone: jax.Array


def observe(state):
    return jax.nn.one_hot(state.stone, STONES + 1)


def reset(key):
    state = Frog(jnp.int32(0))
    return observe(state), state


def step(key, state, action):
    leap = action == 1
    slips = leap & (jax.random.uniform(key) < 0.25)
    stone = jnp.where(slips, 0, jnp.minimum(state.stone + 1 + leap, STONES))
    state = Frog(stone)
    across = stone == STONES
    reward = jnp.where(across, 1.0, -0.01)
    return state, purerl.TimeStep(observe(state), reward, across, jnp.bool_(False), {})


river = purerl.Env(
    reset,
    step,
    purerl.EnvSpec("River", purerl.Box(0.0, 1.0, (STONES + 1,)), purerl.Discrete(2)),
)


class Table(purerl.Actor):
    """One logit for each stone and action: a tabular policy."""

    @nn.compact
    def create_network(self, obs):
        return nn.Dense(self.action_dim, use_bias=False)(obs)


def main(total_timesteps=50_000, picture="own_environment.png"):
    purerl.check_env(river)  # raises for mistakes in an environment, before training
    config = purerl.TrainConfig(
        env=river,
        agent=purerl.PPO(actor=Table, lr=1e-2),
        total_timesteps=total_timesteps,
        max_episode_steps=100,
    )
    out = jax.jit(purerl.make_train(config))(jax.random.key(0))
    choices = np.asarray(out.policy(jnp.eye(STONES + 1)[:STONES]))
    print("return at the end:", round(float(out.metrics.episode_return[-1]), 3))
    print("on each stone:", " ".join("leap" if choice else "hop" for choice in choices))
    purerl.plot_curves([purerl.Curves.of("PPO on the river", out)], picture)
    print(f"learning curve: {picture}")
    return out


if __name__ == "__main__":
    main()
