import jax.numpy as jnp
import numpy as np

from purerl.metrics import no_episodes, summarize


def test_each_ended_episode_counts_once():
    returns = jnp.array([[1.0, 5.0], [2.0, 9.0], [3.0, 7.0]])
    lengths = jnp.array([[1, 10], [2, 20], [3, 30]])
    ended = jnp.array([[False, True], [True, False], [False, True]])
    stats = summarize(returns, lengths, ended)
    assert stats.num_episodes == 3
    assert stats.num_episodes.dtype == jnp.int32
    seen = [float(x) for x in stats[:6]]
    np.testing.assert_allclose(seen, [(5 + 2 + 7) / 3, 2, 7, (10 + 2 + 30) / 3, 2, 30], rtol=1e-6)


def test_no_episode_is_nan_and_zero():
    ended = jnp.zeros((3, 2), bool)
    for stats in (summarize(jnp.ones((3, 2)), jnp.ones((3, 2), jnp.int32), ended), no_episodes()):
        assert stats.num_episodes == 0
        assert all(np.isnan(x) for x in stats[:6])
    for x, y in zip(summarize(ended, ended, ended), no_episodes(), strict=True):
        assert x.dtype == y.dtype  # the two branches of one cond
