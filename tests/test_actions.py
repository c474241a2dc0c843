"""Actions on their way from the agent to the environment."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kit.agents import Tiny, act
from kit.environments import push_env, target_env, walk
from kit.quick import quick_jit

import purerl
from purerl.envs import Box, Env, EnvSpec, TimeStep
from purerl.nn.defaults import DefaultActor, DefaultQCritic
from purerl.nn.distributions import Normal, TanhNormal

SMALL = {"num_envs": 4, "update_every": 4, "total_timesteps": 32}


@pytest.mark.parametrize(
    ("env", "processor", "message"),
    [
        (push_env(), lambda a: a[:, 0], r"shape \(4,\) and dtype float32, expected \(4, 1\)"),
        (push_env(), lambda a: a[..., None], r"shape \(4, 1, 1\)"),
        (push_env(), lambda a: a[0], r"shape \(1,\)"),
        (push_env(), lambda a: jnp.mean(a), r"shape \(\)"),
        (push_env(), lambda a: jnp.concatenate([a, a], -1), r"shape \(4, 2\)"),
        (push_env(), lambda a: None, "the action is a NoneType"),
        (push_env(), lambda a: a @ jnp.ones((3, 3)), "can't be traced: TypeError in test_actions"),
        (push_env(), lambda a: a.astype(int), "int32, expected .* floats"),
        (walk(), lambda a: jax.nn.one_hot(a, 2), r"shape \(4, 2\) and dtype float32, expected"),
        (walk(), lambda a: a / 2, "expected .* integers"),
    ],
)
def test_a_processor_of_another_shape_is_refused(env, processor, message):
    for make in (
        lambda **options: purerl.TrainConfig(env=env, agent=Tiny(), **options),
        lambda **options: purerl.run(env, Tiny(), key=jax.random.key(0), **options),
    ):
        with pytest.raises(purerl.ConfigError, match=message):
            make(action_processor=processor, **SMALL)


def test_a_processor_of_another_precision_is_cast():
    env, kinds = target_env(), []

    def step(key, state, action):
        kinds.append(action.dtype)
        return env.step(key, state, action)

    config = purerl.TrainConfig(
        env=env._replace(step=step),
        agent=Tiny(),
        action_processor=lambda action: jnp.sign(action).astype(jnp.float16),
        **SMALL,
    )
    jax.eval_shape(purerl.make_train(config), jax.random.key(0))
    assert set(kinds) == {jnp.dtype("float32")}


def without_a_range():
    """Continuous actions of which the second can't be but 0.5; info has what came in."""
    low, high = np.array([-2.0, 0.5, -1.0]), np.array([2.0, 0.5, 3.0])

    def reset(key):
        return jax.random.normal(key, (2,)), jnp.int32(0)

    def step(key, time, action):
        outside = jnp.any((action < low) | (action > high))
        reward = -jnp.sum(action**2) - jnp.where(outside, jnp.inf, 0.0)
        obs = jax.random.normal(key, (2,))
        return time + 1, TimeStep(obs, reward, time >= 5, jnp.bool_(False), {})

    return Env(reset, step, EnvSpec("fixed", Box(-jnp.inf, jnp.inf, (2,)), Box(low, high)))


class BoundedActor(DefaultActor):
    distribution = TanhNormal


SMALL_REPLAY = {"num_envs": 2, "update_every": 4, "update_after": 16, "total_timesteps": 64}
SMALL_PPO = {"num_envs": 4, "update_every": 8, "total_timesteps": 64}


@pytest.mark.parametrize(
    ("agent", "options"),
    [
        (purerl.PPO(hidden=(8,)), SMALL_PPO),
        pytest.param(
            purerl.PPO(actor=functools.partial(BoundedActor, hidden=(8,))),
            SMALL_PPO,
            marks=pytest.mark.slow,
        ),
        pytest.param(
            purerl.ActorCritic(critic=DefaultQCritic, n_episodes=4, episode_length=8),
            {"total_timesteps": 64},
            marks=pytest.mark.slow,
        ),
        (
            purerl.DDPG(hidden=(8,), batch_size=8),
            SMALL_REPLAY,
        ),
        pytest.param(purerl.SAC(hidden=(8,), batch_size=8), SMALL_REPLAY, marks=pytest.mark.slow),
        pytest.param(purerl.TD3(hidden=(8,), batch_size=8), SMALL_REPLAY, marks=pytest.mark.slow),
    ],
    ids=["Normal", "TanhNormal", "Q critic", "deterministic", "SAC", "TD3"],
)
def test_an_action_without_a_range_is_its_constant(agent, options):
    run = quick_jit(lambda key: purerl.run(without_a_range(), agent, key=key, **options))
    state, metrics = run(jax.random.key(0))
    assert not metrics.nonfinite_updates.any()  # nor was any action outside
    for name, loss in metrics.losses.items():
        assert jnp.isfinite(loss[-1]), name
    obs = jnp.ones((4, 2))
    action, _ = quick_jit(lambda state, obs: act(agent.policy(state), obs))(state.agent, obs)
    np.testing.assert_array_equal(action[:, 1], 0.5)
    assert all(jnp.isfinite(x).all() for x in jax.tree.leaves(state.agent))


def test_nothing_is_learned_from_an_action_without_a_range():
    space = Box([-2.0, 3e9, -1.0], [2.0, 3e9, 3.0])
    for kind in (Normal, TanhNormal):

        class Kind(DefaultActor):
            distribution = kind

        actor, obs = Kind(space), jnp.ones((5, 2))
        params = actor.init(jax.random.key(0), obs)
        action, log_prob = actor.apply(params, obs).sample_and_log_prob(jax.random.key(1))
        np.testing.assert_allclose(action[:, 1], 3e9, rtol=1e-6)
        assert jnp.isfinite(log_prob).all()

        def probability(params, action=action, actor=actor, obs=obs):
            return jnp.sum(actor.apply(params, obs).log_prob(action))

        gradient = jax.grad(probability)(params)["params"]
        assert gradient["log_std"][1] == 0.0
        assert all(jnp.isfinite(x).all() for x in jax.tree.leaves(gradient))
        assert any(jnp.any(x != 0.0) for x in jax.tree.leaves(gradient))
