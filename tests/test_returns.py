import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kit.oracles import numpy_gae, numpy_lambda_return, numpy_n_step, paths

from purerl.experience import returns


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("gamma", "lam"), [(0.9, 0.8), (1.0, 1.0), (0.99, 0.0), (0.0, 0.5)])
def test_gae_is_a_plain_loop(seed, gamma, lam):
    arrays = paths(seed)
    np.testing.assert_allclose(
        returns.gae(*arrays, gamma, lam), numpy_gae(*arrays, gamma, lam), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("gamma", [0.9, 1.0, 0.0])
@pytest.mark.parametrize("n", [1, 2, 5, 40])
def test_n_step_return_is_a_plain_loop(seed, gamma, n):
    reward, _, *rest = paths(seed)
    np.testing.assert_allclose(
        returns.n_step_return(reward, *rest, gamma, n),
        numpy_n_step(reward, *rest, gamma, n),
        rtol=1e-4,
        atol=1e-5,
    )


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("gamma", [0.9, 1.0, 0.0])
def test_reward_to_go_is_a_plain_loop(seed, gamma):
    reward, _, *rest = paths(seed)
    # So many steps ahead that only a path's end stops the sum.
    expected = numpy_n_step(reward, *rest, gamma, reward.shape[0])
    np.testing.assert_allclose(
        returns.reward_to_go(reward, *rest, gamma), expected, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("gamma", "lam"), [(0.9, 0.8), (1.0, 1.0), (0.99, 0.0), (0.0, 0.5)])
def test_lambda_return_is_a_plain_loop(seed, gamma, lam):
    reward, _, *rest = paths(seed)
    np.testing.assert_allclose(
        returns.lambda_return(reward, *rest, gamma, lam),
        numpy_lambda_return(reward, *rest, gamma, lam),
        rtol=1e-4,
        atol=1e-5,
    )


def test_lambda_return_between_one_step_and_the_whole_path():
    reward, _, next_value, terminated, truncated = paths(3)
    rest = (next_value, terminated, truncated, 0.9)
    close = {"rtol": 1e-4, "atol": 1e-5}
    whole = returns.lambda_return(reward, *rest, 1.0)
    np.testing.assert_allclose(whole, returns.reward_to_go(reward, *rest), **close)
    one_step = reward + 0.9 * np.where(terminated, 0, next_value)
    np.testing.assert_allclose(returns.lambda_return(reward, *rest, 0.0), one_step, **close)


@pytest.mark.parametrize("lam", [0.0, 0.7, 1.0])
def test_lambda_return_is_the_value_and_its_advantage(lam):
    # Where a path goes on the value beyond a step is that of the next: gae takes it from there.
    reward, value, next_value, terminated, truncated = paths(4)
    goes_on = ~(terminated | truncated)[:-1]
    next_value[:-1] = np.where(goes_on, value[1:], next_value[:-1])
    rest = (next_value, terminated, truncated, 0.9, lam)
    advantage = returns.gae(reward, value, *rest)
    np.testing.assert_allclose(
        returns.lambda_return(reward, *rest), value + advantage, rtol=1e-4, atol=1e-5
    )


def test_gae_by_hand():
    # Three steps, gamma 0.5, lam 0.5; the second terminates, the third is cut by the data's end.
    advantage = returns.gae(
        reward=jnp.array([1.0, 2.0, 3.0]),
        value=jnp.array([10.0, 20.0, 30.0]),
        next_value=jnp.array([20.0, 99.0, 40.0]),
        terminated=jnp.array([False, True, False]),
        truncated=jnp.array([False, False, False]),
        gamma=0.5,
        lam=0.5,
    )
    # delta = 1 + 10 - 10 = 1, 2 - 20 = -18, 3 + 20 - 30 = -7; A_0 = 1 + 0.25 * -18
    np.testing.assert_allclose(advantage, [-3.5, -18.0, -7.0])


def test_a_time_limit_bootstraps_and_a_death_does_not():
    ends = {"reward": jnp.ones(2), "next_value": jnp.array([5.0, 7.0]), "gamma": 0.5}
    no, first = jnp.array([False, False]), jnp.array([True, False])
    cut = returns.reward_to_go(terminated=no, truncated=first, **ends)
    died = returns.reward_to_go(terminated=first, truncated=no, **ends)
    unfinished = returns.reward_to_go(terminated=no, truncated=no, **ends)
    np.testing.assert_allclose(cut, [1 + 2.5, 1 + 3.5])
    np.testing.assert_allclose(died, [1.0, 1 + 3.5])
    np.testing.assert_allclose(unfinished, [1 + 0.5 * 4.5, 4.5])


def test_one_step_of_gae_is_the_td_error():
    reward, value, next_value, terminated, truncated = paths(0)
    error = returns.td_error(reward, value, next_value, terminated, 0.9)
    one = returns.gae(reward, value, next_value, terminated, truncated, 0.9, 0.0)
    np.testing.assert_allclose(error, one, rtol=1e-6)


def test_reward_one_forever_is_worth_ten():
    # V = 10 solves V = 1 + 0.9 V: where V is right everywhere, no advantage is left.
    truncated = jnp.arange(1, 31) % 10 == 0
    ten, no = jnp.full(30, 10.0), jnp.zeros(30, bool)
    advantage = returns.gae(jnp.ones(30), ten, ten, no, truncated, 0.9, 0.95)
    np.testing.assert_allclose(advantage, 0.0, atol=1e-5)
    to_go = returns.reward_to_go(jnp.ones(30), ten, no, truncated, 0.9)
    np.testing.assert_allclose(to_go, 10.0, rtol=1e-5)
    deadly = returns.reward_to_go(jnp.ones(30), ten, truncated, no, 0.9)
    assert float(deadly[0]) == pytest.approx(10 * (1 - 0.9**10), rel=1e-5)  # 6.5


def test_n_below_one():
    with pytest.raises(ValueError, match="n: got 0"):
        returns.n_step_return(*[jnp.zeros(3)] * 2, *[jnp.zeros(3, bool)] * 2, 0.9, 0)


def test_gradients_and_vmap_go_through():
    arrays = paths(0)
    batched = jax.vmap(lambda gamma: returns.gae(*arrays, gamma, 0.9))(jnp.array([0.5, 0.9]))
    np.testing.assert_allclose(batched[1], returns.gae(*arrays, 0.9, 0.9), rtol=1e-5, atol=1e-6)
