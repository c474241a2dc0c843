"""Environments that ask for a memory: their returns in closed form, and who learns them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kit.memories import (
    LONGEST,
    MEMORY_PROBES,
    MEMORY_TRIALS,
    SHORTEST,
    pulse,
    remembering,
    return_of,
)
from kit.quick import quick_jit
from kit.trials import params

import purerl
from purerl.training.rollout import init_rollout, rollout


def memoryless(choose):
    return purerl.memoryless(lambda obs, key: (choose(obs).astype(jnp.int32), {}))


@pytest.mark.parametrize(
    ("acting", "low", "high"),
    [
        (remembering(), 1.0, 1.0),
        # Whose memory an earlier episode has set answers 1 from then on.
        (remembering(reset=False), 0.0, 0.4),
        (memoryless(lambda obs: obs[:, 0]), -0.1, 0.1),
        (memoryless(lambda obs: obs[:, 1] > 0), -0.1, 0.1),
        (memoryless(lambda obs: jnp.ones(len(obs))), -0.1, 0.1),
    ],
)
def test_returns_of_policies_written_by_hand(acting, low, high):
    # Means of some 1,000 episodes of return -1 or 1: two standard errors are 0.06.
    found = float(quick_jit(lambda key: return_of(acting, key))(jax.random.key(0)))
    assert low - 1e-6 <= found <= high


@pytest.mark.parametrize("probe", MEMORY_PROBES.values())
def test_episodes_are_of_all_lengths_and_end_as_they_should(probe):
    env = purerl.envs.vector_env(pulse(probe), 256)

    @quick_jit
    def play(key):
        acting = remembering()
        state = init_rollout(env, acting, key, 256)
        return rollout(env, acting, state, key, LONGEST + 1)[1]

    data = jax.tree.map(np.asarray, play(jax.random.key(1)))
    ended, other = data.terminated, data.truncated
    if probe == MEMORY_PROBES["kept"]:
        ended, other = other, ended
    assert not other.any()
    # Of the first episodes each length occurs, and the pulse in about half of them.
    lengths = np.argmax(ended, axis=0)
    assert set(lengths.tolist()) == set(range(SHORTEST, LONGEST + 1))
    bit = data.obs[0, :, 0]
    assert 0.4 < bit.mean() < 0.6
    for i, delay in enumerate(lengths):
        assert not data.obs[1 : delay + 1, i, 0].any()
        np.testing.assert_array_equal(np.abs(data.obs[: delay + 1, i, 1:]), 1.0)
        reward = data.reward[: delay + 1, i]
        if probe == MEMORY_PROBES["kept"]:
            np.testing.assert_array_equal(reward, 2 * bit[i] - 1)
        else:
            np.testing.assert_array_equal(reward, np.arange(delay + 1) == delay)
    # What distracts says nothing of the bit, nor of what comes next.
    noise = data.obs[..., 1:].reshape(LONGEST + 1, -1)
    assert abs(np.corrcoef(np.repeat(bit, 2), noise[0])[0, 1]) < 0.15
    assert abs(np.corrcoef(noise[0], noise[1])[0, 1]) < 0.15


def test_the_environment_keeps_the_contract():
    purerl.check_env(pulse())


@pytest.mark.parametrize("trial", params(MEMORY_TRIALS))
def test_who_remembers_learns_them_and_who_does_not_stays_at_chance(trial):
    trial.check()
