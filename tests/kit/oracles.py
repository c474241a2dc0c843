"""What the library computes, as plain loops of numpy, and checks of it by statistics."""

import numpy as np
from scipy.stats import chisquare

from purerl.experience import sumtree


def paths(seed, shape=(23, 5), ends=0.2):
    rng = np.random.default_rng(seed)
    reward, value, next_value = rng.normal(size=(3, *shape)).astype(np.float32)
    terminated = rng.random(shape) < ends
    truncated = (rng.random(shape) < ends) & ~terminated
    return reward, value, next_value, terminated, truncated


def numpy_gae(reward, value, next_value, terminated, truncated, gamma, lam):
    advantage = np.zeros(value.shape)
    for env in range(value.shape[1]):
        running = 0.0
        for t in reversed(range(value.shape[0])):
            if terminated[t, env]:
                running = reward[t, env] - value[t, env]
            elif truncated[t, env] or t == value.shape[0] - 1:
                running = reward[t, env] + gamma * next_value[t, env] - value[t, env]
            else:
                delta = reward[t, env] + gamma * next_value[t, env] - value[t, env]
                running = delta + gamma * lam * running
            advantage[t, env] = running
    return advantage


def numpy_n_step(reward, next_value, terminated, truncated, gamma, n):
    steps, envs = reward.shape
    out = np.zeros(reward.shape)
    for env in range(envs):
        for start in range(steps):
            total, discount = 0.0, 1.0
            for t in range(start, start + n):
                total += discount * reward[t, env]
                discount *= gamma
                if terminated[t, env]:
                    break
                if truncated[t, env] or t == steps - 1 or t == start + n - 1:
                    total += discount * next_value[t, env]
                    break
            out[start, env] = total
    return out


def numpy_lambda_return(reward, next_value, terminated, truncated, gamma, lam):
    """The mean of all n-step returns, weighed with (1 - lam) lam^(n-1), the longest with the rest
    (Sutton and Barto 2018, eq. 12.3)."""
    steps, envs = reward.shape
    out = np.zeros(reward.shape)
    for env in range(envs):
        for start in range(steps):
            weight, total, discount = 1.0, 0.0, 1.0
            for t in range(start, steps):
                total += discount * reward[t, env]
                discount *= gamma
                value = 0.0 if terminated[t, env] else next_value[t, env]
                last = terminated[t, env] or truncated[t, env] or t == steps - 1
                share = weight if last else weight * (1 - lam)
                out[start, env] += share * (total + discount * value)
                weight -= share
                if last:
                    break
    return out


def assert_proportional(drawn, weight):
    """Draws in proportion to the weights, by a chi-square test."""
    weight = np.asarray(weight, np.float64)
    count = np.bincount(drawn, minlength=len(weight))
    assert len(count) == len(weight)
    assert not count[weight == 0].any()
    expected = len(drawn) * weight / weight.sum()
    rare = expected < 5  # too few for the test to hold: one cell for all of them
    cells = [np.append(x[~rare], x[rare].sum()) for x in (count, expected)]
    observed, expected = (x[cells[1] > 0] for x in cells)
    assert len(observed) == 1 or chisquare(observed, expected).pvalue > 1e-4


def assert_sums(tree, **close):
    """Every level is what numpy sums up from the leaves, zeros behind it."""
    sums = np.asarray(tree[0], np.float64)
    for level in tree[1:]:
        sums = sums.reshape(-1, sumtree.FANOUT).sum(axis=1)
        sums = np.pad(sums, (0, len(level) - len(sums)))
        np.testing.assert_allclose(level, sums, **close)
    np.testing.assert_allclose(sumtree.total(tree), sums.sum(), **close)
