"""TD3 against loops over single numbers: target smoothing, two critics, the delayed policy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kit.agents import learn
from kit.buffers import everything
from kit.environments import push_env
from kit.offpolicy import (
    CENTER,
    GAMMA,
    HALF,
    HIGH,
    LOW,
    SPEC,
    BilinearCritic,
    LinearActor,
    doubles,
    filled,
    rows,
)
from kit.quick import quick_jit

import purerl

KEY = jax.random.key(3)
update = quick_jit(learn)
gradient_step, init = quick_jit(purerl.TD3._learn), quick_jit(purerl.TD3.init, static_argnums=2)


def td3(**changes):
    options = {"gamma": GAMMA, "max_grad_norm": 1e9, "lr": 0.1, **changes}
    return purerl.TD3(actor=LinearActor, critic=BilinearCritic, batch_size=32, **options)


def initial(agent):
    """A state whose target networks are others than its networks."""
    state, other = (init(agent, jax.random.key(i), SPEC) for i in (0, 1))
    return state.replace(target_params=other.params)


def step(agent, state, *, due=True):
    return gradient_step(agent, state, everything(*filled()), KEY, due, purerl.Clock())


def numpy_target(agent, state, data):
    """y of every transition: r + gamma min(Q1'(s', a'), Q2'(s', a')), a' with clipped noise."""
    _, _, next_obs, reward, terminated = data
    m = doubles(state.target_params["actor"])[0, 0]
    critics = doubles(state.target_params["critic"])[..., 0]
    noise = np.asarray(jax.random.normal(KEY, (len(reward), 1)), np.float64)[:, 0]
    targets = np.zeros(len(reward))
    for i, s in enumerate(next_obs):
        shift = np.clip(
            agent.target_noise * noise[i], -agent.target_noise_clip, agent.target_noise_clip
        )
        a = np.clip(CENTER + HALF * np.tanh(m * s) + HALF * shift, LOW, HIGH)
        beyond = min(u * s + w * s * (a - CENTER) / HALF for u, w in critics)
        targets[i] = reward[i] + (0.0 if terminated[i] else GAMMA * beyond)
    return targets


def numpy_values(state, data):
    """Q1 and Q2, `[2, T N]`, and the features `[T N, 2]` that they are linear in."""
    obs, action, *_ = data
    features = np.stack([obs, obs * (action - CENTER) / HALF], axis=-1)
    return doubles(state.params["critic"])[..., 0] @ features.T, features


# With a large noise both clips matter: that of the noise, and that of the action.
@pytest.mark.parametrize("noise", [(0.2, 0.5), (2.0, 0.7), (0.0, 0.5)])
def test_critics_learn_from_the_smoothed_lower_target(noise):
    agent = td3(target_noise=noise[0], target_noise_clip=noise[1])
    state, data = initial(agent), rows(filled()[1])
    after, error, losses = step(agent, state)
    (q, features), y = numpy_values(state, data), numpy_target(agent, state, data)
    np.testing.assert_allclose(error, np.abs(y - q).max(axis=0), rtol=1e-4, atol=1e-4)
    assert float(losses["value_loss"]) == pytest.approx(np.mean((y - q) ** 2), rel=1e-4)
    grads = np.mean((q - y)[..., None] * features, axis=1)
    found = 10 * after.opt_states["critic"][1][0].mu  # Adam's first moment is 0.1 of the gradient
    np.testing.assert_allclose(found.reshape(2, 2), grads, rtol=1e-3, atol=1e-4)


def test_the_actor_ascends_the_first_critic_as_it_is_after_its_step():
    agent = td3()
    state = initial(agent)
    after, _, losses = step(agent, state)
    s, m = rows(filled()[1])[0], doubles(state.params["actor"])[0, 0]
    u, w = doubles(after.params["critic"])[0, :, 0]
    squashed = np.tanh(m * s)
    assert float(losses["policy_loss"]) == pytest.approx(-np.mean(u * s + w * s * squashed), 1e-4)
    expected = -np.mean(w * s * (1 - squashed**2) * s)
    assert float(10 * after.opt_states["actor"][1][0].mu[0]) == pytest.approx(expected, rel=1e-3)


def test_targets_follow_only_with_the_policy():
    agent = td3(tau=0.3)
    state = initial(agent)
    after, _, _ = step(agent, state)
    trees = (after.params, state.target_params, after.target_params)
    for new, old, found in zip(*map(jax.tree.leaves, trees), strict=True):
        np.testing.assert_allclose(found, 0.3 * new + 0.7 * old, rtol=1e-5, atol=1e-6)
    waiting, _, _ = step(agent, state, due=False)
    for name in ("target_params", "policy_loss"):
        for x, y in zip(
            *(jax.tree.leaves(getattr(s, name)) for s in (state, waiting)), strict=True
        ):
            np.testing.assert_array_equal(x, y)
    np.testing.assert_array_equal(doubles(waiting.params["actor"]), doubles(state.params["actor"]))
    assert np.all(doubles(waiting.params["critic"]) == doubles(after.params["critic"]))


def test_importance_weights_weigh_the_critics_loss_only():
    agent = td3()
    state, batch = initial(agent), everything(*filled())
    weight = jnp.linspace(0.0, 1.0, 32)
    _, _, losses = gradient_step(
        agent, state, {**batch, "weight": weight}, KEY, False, purerl.Clock()
    )
    data = rows(filled()[1])
    error = numpy_target(agent, state, data) - numpy_values(state, data)[0]
    expected = np.mean(np.asarray(weight) * error**2)
    assert float(losses["value_loss"]) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("delay", "gradient_steps"), [(2, 1), (3, 2), (1, 2), (2, 4)])
def test_the_policy_learns_every_few_gradient_steps_of_the_run(delay, gradient_steps):
    """Whichever update they are in."""
    agent = td3(policy_delay=delay, gradient_steps=gradient_steps)
    state = initial(agent)
    for number in range(5):
        clock = purerl.Clock(updates=jnp.int32(number))
        state, *_ = update(agent, state, *filled(), KEY, clock)
        done = (number + 1) * gradient_steps
        assert int(state.opt_states["critic"][1][0].count) == done
        assert int(state.opt_states["actor"][1][0].count) == done // delay


def inner(eqn):
    """The programs in an equation."""
    leaves = jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda x: hasattr(x, "eqns"))
    return [x for x in leaves if hasattr(x, "eqns")]


def equations(program):
    """All equations of a program, also those of the programs in it."""
    for eqn in program.eqns:
        yield eqn
        for x in inner(eqn):
            yield from equations(x)


def test_under_vmap_the_policy_is_computed_only_when_it_learns():
    config = purerl.TrainConfig(
        push_env(), purerl.TD3(hidden=(8,), batch_size=8), 100, update_after=8
    )
    train = jax.vmap(purerl.make_train(config))
    program = jax.make_jaxpr(train)(jax.random.split(KEY))
    branches = [x for eqn in equations(program) if eqn.primitive.name == "cond" for x in inner(eqn)]
    # A predicate that is mapped over would have become a select.
    assert any(e.primitive.name == "dot_general" for b in branches for e in equations(b))


def test_the_policy_is_deterministic_and_its_value_the_lower_one():
    agent = td3()
    state = initial(agent)
    s = np.array([-1.0, 0.5, 2.0])
    obs = jnp.asarray(s, jnp.float32)[:, None]
    m = doubles(state.params["actor"])[0, 0]
    for acting in (agent.policy(state, sample=True), agent.acting(state, purerl.Clock())):
        _, action, _ = acting.step((), obs, KEY)
        np.testing.assert_allclose(action[:, 0], CENTER + HALF * np.tanh(m * s), rtol=1e-5)
    critics = doubles(state.params["critic"])[..., 0]
    expected = np.min([u * s + w * s * np.tanh(m * s) for u, w in critics], axis=0)
    np.testing.assert_allclose(agent.value(state, (), obs), expected, rtol=1e-4)
    loop = purerl.make_loop(push_env(), agent, total_timesteps=5_000)
    assert isinstance(loop.noise, purerl.GaussianNoise)
    assert (loop.random_rollouts, loop.num_envs, loop.update_every) == (1_000, 1, 1)
