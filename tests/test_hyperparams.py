"""Hyperparameters by path: float fields of every part of a run."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kit.agents import Tiny
from kit.environments import push_env, target_env
from kit.quick import quick_jit
from kit.trees import assert_close

import purerl
from purerl.sweeps.plan import configure, make_plan

pytestmark = pytest.mark.usefixtures("quick_programs")

SMALL = {"num_envs": 4, "update_every": 8, "total_timesteps": 96}
VALUES = {"actor_lr": 3e-3, "noise.sigma": 0.5, "rewarder.factor": 2.0, "buffer.alpha": 0.1}


def small(agent=None, env=None, **changes):
    return purerl.TrainConfig(env or target_env(), agent or Tiny(), **{**SMALL, **changes})


def replay_run(actor_lr=1e-3, sigma=0.1, factor=0.1, alpha=1.0):
    return small(
        purerl.DDPG(hidden=4, batch_size=8, actor_lr=actor_lr),
        push_env(),
        update_after=32,
        noise=purerl.GaussianNoise(sigma=sigma),
        rewarder=purerl.Scale(factor),
        buffer=purerl.Buffer(maxlen=64, priority_sampling=True, alpha=alpha),
    )


def test_every_part_is_mapped_over_in_one_trace_and_is_what_a_config_says():
    train = purerl.make_train(replay_run())
    chex.clear_trace_counter()
    once = chex.assert_max_traces(train, n=1)
    key = jax.random.key(0)
    base = {"actor_lr": 1e-3, "noise.sigma": 0.1, "rewarder.factor": 0.1, "buffer.alpha": 1.0}
    # Row 0 is the config's; in each of the others one value is another.
    rows = [base, *({**base, name: value} for name, value in VALUES.items())]
    swept = {name: jnp.array([row[name] for row in rows]) for name in base}
    outs = quick_jit(jax.vmap(once, (None, 0)))(key, swept)
    losses = np.asarray(outs.metrics.losses["value_loss"])
    for i in range(1, len(rows)):
        assert not np.allclose(losses[0], losses[i], rtol=1e-4), list(VALUES)[i - 1]
    others = replay_run(*VALUES.values())
    alone = quick_jit(purerl.make_train(others))(key)
    named = quick_jit(train)(key, VALUES)
    assert_close(named.metrics, alone.metrics, 1e-5)
    assert_close(named.state.agent.params, alone.state.agent.params, 1e-5)


def test_fit_takes_paths_and_keeps_them(tmp_path):
    config = small(noise=purerl.GaussianNoise(), rewarder=purerl.Scale(0.5))
    values = {"noise.sigma": [0.1, 0.4], "agent.lr": 0.3, "rewarder.factor": 2.0}
    out = purerl.fit(config, tmp_path, seeds=2, hyperparams=values)
    mapped = {"noise.sigma": jnp.array([0.1, 0.4]), "lr": jnp.full(2, 0.3)}
    train, keys = purerl.make_train(config), jnp.stack([jax.random.key(i) for i in range(2)])
    expected = quick_jit(jax.vmap(train))(keys, mapped | {"rewarder.factor": jnp.full(2, 2.0)})
    assert_close(out.metrics, expected.metrics, 1e-5)
    with pytest.raises(purerl.ConfigError, match=r"noise\.sigma"):
        purerl.fit(config, tmp_path, seeds=2, hyperparams={**values, "noise.sigma": 0.1})
    with pytest.raises(purerl.ConfigError, match=r"Scale\.factor: got inf"):
        purerl.fit(config, hyperparams={"rewarder.factor": float("inf")})


def test_sweep_maps_over_paths_and_fixes_programs_by_static_ones():
    config = small(noise=purerl.GaussianNoise(), rewarder=purerl.Scale(0.5))
    grid = {"noise.sigma": [0.1, 0.4], "agent.lr": [0.1, 0.3]}
    result = purerl.sweep(
        config,
        grid=grid,
        samples={"rewarder.factor": purerl.Uniform(0.5, 1.0)},
        num_samples=1,
        verbose=False,
    )
    assert result.plan.names == ("noise.sigma", "lr", "rewarder.factor")
    assert len(result.groups) == 1
    last = result.config(3)
    assert (last.noise.sigma, last.agent.lr) == (0.4, 0.3)
    assert last.rewarder.factor == result.table["rewarder.factor"][3]
    alone = quick_jit(purerl.make_train(last))(jax.random.key(0))
    assert_close(result.member(3).metrics, alone.metrics, 1e-5)
    plan = make_plan(config, 1, {"buffer.priority_sampling": [False, True]}, None, None, None)
    assert [g.config.buffer.priority_sampling for g in plan.groups] == [False, True]


def test_parts_that_a_run_takes_by_default_have_paths():
    config = small(purerl.DDPG(hidden=4), push_env(), update_after=0, normalize_reward=True)
    loop = config.make_loop({"noise.sigma": 0.7, "rewarder.clip": 3.0, "buffer.gamma": 0.5})
    assert (loop.noise.sigma, loop.rewarder.clip, loop.buffer.gamma) == (0.7, 3.0, 0.5)
    assert loop.rewarder.gamma == config.agent.gamma  # what isn't given is filled in as without
    assert loop.buffer.maxlen == config.make_loop().buffer.maxlen
    alike = configure(config, {"noise.sigma": 0.7, "rewarder.clip": 3.0})
    assert (alike.noise.sigma, alike.rewarder.clip, alike.normalize_reward) == (0.7, 3.0, False)


@pytest.mark.parametrize(
    ("hyperparams", "message"),
    [
        ({"nois.sigma": 1.0}, "no part 'nois' in 'nois.sigma'; did you mean 'noise'"),
        ({"noise.sigm": 1.0}, "GaussianNoise has no 'sigm'; did you mean 'noise.sigma'"),
        ({"sigma": 1.0}, "Tiny has no 'sigma'; did you mean 'noise.sigma'"),
        ({"noise.sigma": -1.0}, "GaussianNoise.sigma: got -1.0, expected a float >= 0"),
        ({"rewarder.factor": 1.0}, "got 'rewarder.factor', but the run has no rewarder"),
        ({"buffer.maxlen": 64}, "Buffer.maxlen is static"),
        ({"buffer.alpha": 0.5}, "Buffer.alpha: is for priority_sampling=True"),
        ({"lr": 0.1, "agent.lr": 0.2}, "'lr' and 'agent.lr' are the same field"),
        ({"a.b.c": 0.1}, "no part 'a.b'"),
    ],
)
def test_wrong_paths(hyperparams, message):
    config = small(noise=purerl.GaussianNoise())
    with pytest.raises(purerl.ConfigError, match=message):
        purerl.make_train(config)(jax.random.key(0), hyperparams)
    with pytest.raises(purerl.ConfigError, match=message):
        purerl.fit(config, hyperparams=hyperparams)
    if "static" not in message:
        with pytest.raises(
            purerl.ConfigError, match=message.replace("Tiny has no", "Tiny has a field")
        ):
            purerl.sweep(config, grid={name: [x] for name, x in hyperparams.items()})
