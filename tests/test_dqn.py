import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from kit import values
from kit.agents import act, learn
from kit.buffers import everything, holding
from kit.environments import target_env, walk
from kit.networks import LinearQ, LinearQs, LinearV, kernel
from kit.quick import quick_jit
from kit.trials import params

import purerl

T, N, GAMMA = 8, 4, 0.9
SPEC = walk().spec
update = quick_jit(learn)
gradient_step = quick_jit(purerl.DQN._learn)
init = quick_jit(purerl.DQN.init, static_argnums=2)


def dqn(**changes):
    options = {"batch_size": 32, "gamma": GAMMA, "critic": LinearQs, "n_step": 1, **changes}
    return purerl.DQN(max_grad_norm=1e9, **options)


def initial(agent):
    """A state whose target network is another than its network."""
    state, other = (init(agent, jax.random.key(i), SPEC) for i in (0, 1))
    return state.replace(target_params=other.params)


def filled(**options):
    """A buffer with transitions of all kinds; inside an episode each follows the one before."""
    rng = np.random.default_rng(0)
    kind = rng.choice(3, p=[0.6, 0.2, 0.2], size=(T, N))
    done = np.cumsum(kind > 0, axis=0)
    obs = rng.normal(size=(T + 1, N, 2))
    next_obs = np.where((kind > 0)[..., None], rng.normal(size=(T, N, 2)), obs[1:])
    transitions = purerl.Transition(
        obs=jnp.asarray(obs[:-1], jnp.float32),
        action=jnp.asarray(rng.integers(0, 2, size=(T, N)), jnp.int32),
        reward=jnp.asarray(rng.normal(size=(T, N)), jnp.float32),
        next_obs=jnp.asarray(next_obs, jnp.float32),
        terminated=jnp.asarray(kind == 1),
        truncated=jnp.asarray(kind == 2),
        episode=jnp.asarray(np.vstack([np.zeros((1, N)), done[:-1]]), jnp.int32),
        valid=jnp.ones((T, N), bool),
        extras={},
    )
    return holding(transitions, gamma=GAMMA, **options)


def double(q, target_q):
    return target_q[np.argmax(q)]


def numpy_td_error(state, data, n_step=1, beyond=double):
    """y - Q(s, a) of every transition, `[T, N]`."""
    own, target = kernel(state.params), kernel(state.target_params)
    errors = np.zeros((T, N))
    for t, env in np.ndindex(T, N):
        y, discount = 0.0, 1.0
        for now in range(t, min(t + n_step, T)):
            y += discount * data["reward"][now, env]
            discount *= GAMMA
            if data["terminated"][now, env] or data["truncated"][now, env]:
                break
        if not data["terminated"][now, env]:
            s_next = data["next_obs"][now, env]
            y += discount * beyond(s_next @ own, s_next @ target)
        errors[t, env] = y - (data["obs"][t, env] @ own)[data["action"][t, env]]
    return errors


def test_targets_are_the_papers(key):
    q, target_q = np.asarray(jax.random.normal(key, (2, 50, 5)))
    largest = [max(row) for row in target_q]
    np.testing.assert_allclose(purerl.q_target(q, target_q), largest, rtol=1e-6)
    chosen = [row[np.argmax(own)] for own, row in zip(q, target_q, strict=True)]
    np.testing.assert_allclose(purerl.double_q_target(q, target_q), chosen, rtol=1e-6)
    assert largest != chosen


@pytest.mark.parametrize(
    ("target_fn", "beyond"),
    [
        (purerl.q_target, lambda q, target_q: target_q.max()),
        ("q", lambda q, target_q: target_q.max()),
        (purerl.double_q_target, double),
        ("double_q", double),
        (
            lambda q, target_q: jnp.mean(q, axis=-1) + 3.0 * target_q[:, 0],
            lambda q, target_q: q.mean() + 3.0 * target_q[0],
        ),
    ],
)
def test_errors_are_a_plain_loop(target_fn, beyond):
    agent = dqn(target_fn=target_fn)
    state = initial(agent)
    buffer, stored = filled()
    data = {name: np.asarray(x) for name, x in stored.data.items()}
    after, error, losses = gradient_step(agent, state, everything(buffer, stored), purerl.Clock())
    expected = numpy_td_error(state, data, beyond=beyond)
    np.testing.assert_allclose(error, expected.reshape(-1), rtol=1e-3, atol=1e-5)
    assert float(losses["loss"]) == pytest.approx(0.5 * np.mean(expected**2), rel=1e-4)
    # Adam's first moment is 0.1 of the gradient, which doesn't go through the target.
    onehot = np.eye(2)[data["action"]]
    terms = data["obs"][..., None] * onehot[..., None, :] * -expected[..., None, None]
    found = 10 * after.opt_state[1][0].mu.reshape(-1, 2)
    np.testing.assert_allclose(found, terms.mean((0, 1)), rtol=1e-3, atol=1e-5)


def test_double_q_is_the_default():
    assert purerl.DQN().target_fn is purerl.double_q_target


@pytest.mark.parametrize("n_step", [1, 3])
def test_n_steps_are_summed_before_the_target_network_takes_over(n_step):
    """Through the whole update: what was drawn has its error in the buffer after."""
    agent = dqn(n_step=n_step, batch_size=64)
    state = initial(agent)
    buffer, stored = filled(priority_sampling=True)
    _, after, _ = update(agent, state, buffer, stored, jax.random.key(3))
    data = {name: np.asarray(x) for name, x in stored.data.items()}
    errors = np.asarray(after.data["td_error"])
    drawn = errors != 0.0
    assert drawn.sum() > 20
    expected = numpy_td_error(state, data, n_step)
    np.testing.assert_allclose(errors[drawn], expected[drawn], rtol=1e-3, atol=1e-5)


def test_importance_weights_weigh_the_loss():
    agent = dqn()
    state = initial(agent)
    weight = jnp.linspace(0.0, 1.0, T * N)
    _, error, losses = gradient_step(
        agent, state, {**everything(*filled()), "weight": weight}, purerl.Clock()
    )
    expected = 0.5 * np.mean(np.asarray(weight) * np.asarray(error) ** 2)
    assert float(losses["loss"]) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("tau", "every"), [(1.0, 3), (0.1, 1), (0.5, 2)])
def test_the_target_network_moves_every_so_many_steps(tau, every):
    agent = dqn(tau=tau, target_update_every=every, lr=0.1)
    state, batch = initial(agent), everything(*filled())
    for step in range(1, 8):
        before = kernel(state.target_params)
        state, _, _ = gradient_step(agent, state, batch, purerl.Clock())
        new = kernel(state.params)
        expected = tau * new + (1 - tau) * before if step % every == 0 else before
        assert np.abs(new - before).max() > 1e-3
        np.testing.assert_allclose(kernel(state.target_params), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("tau", "moves"), [(1.0, {500}), (0.005, set(range(1, 502)))])
def test_a_soft_update_is_made_with_every_step(tau, moves):
    """And a hard one every 500, where nothing is said."""
    agent = dqn(tau=tau, lr=0.1)
    assert agent.target_update_every is None
    batch = everything(*filled())

    @quick_jit
    def steps(state, tau):
        def step(state, _):
            new, _, _ = agent.replace(tau=tau)._learn(state, batch, purerl.Clock())
            first = jax.tree.leaves(
                jax.tree.map(jnp.subtract, new.target_params, state.target_params)
            )[0]
            return new, first

        return jax.lax.scan(step, state, length=501)[1]

    moved = np.abs(np.asarray(steps(initial(agent), jnp.float32(tau)))).reshape(501, -1)
    assert set(1 + np.flatnonzero(moved.max(axis=1))) == moves


def test_steps_are_counted_over_updates():
    agent = dqn(gradient_steps=5, target_update_every=7)
    buffer, stored = filled()
    first, _, _ = update(agent, initial(agent), buffer, stored, jax.random.key(3))
    np.testing.assert_array_equal(kernel(first.target_params), kernel(initial(agent).target_params))
    second, _, _ = update(agent, first, buffer, stored, jax.random.key(4))
    assert int(second.steps) == 10
    assert np.abs(kernel(second.target_params) - kernel(first.target_params)).max() > 1e-3


def test_epsilon_falls_linearly():
    agent = dqn(epsilon_start=0.9, epsilon_end=0.1, epsilon_steps=200)

    def epsilon(agent, progress, total):
        return float(agent._epsilon(purerl.Clock(progress * total, progress)))

    for step, expected in ((0, 0.9), (50, 0.7), (100, 0.5), (199, 0.104), (200, 0.1), (900, 0.1)):
        for total in (1_000, 5_000):
            assert epsilon(agent, step / total, total) == pytest.approx(expected, abs=1e-6)
    tenth = agent.replace(epsilon_steps=None)
    for progress, expected in ((0.0, 0.9), (0.05, 0.5), (0.1, 0.1), (0.5, 0.1)):
        assert epsilon(tenth, progress, 7_000) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("num_envs", [1, 7, 20])
def test_epsilon_counts_environment_steps_whatever_their_number_side_by_side(num_envs):
    for epsilon_steps, last in ((150.0, 150.0), (None, 40.0)):
        agent = dqn(epsilon_start=1.0, epsilon_end=0.2, epsilon_steps=epsilon_steps)
        loop = purerl.make_loop(
            walk(), agent, num_envs=num_envs, total_timesteps=400, update_after=0
        )
        if epsilon_steps is None:
            last = loop.num_updates * num_envs / 10
        index = np.arange(loop.num_updates)
        found = [float(agent._epsilon(loop.clock(jnp.int32(i)))) for i in index]
        expected = np.maximum(1.0 - 0.8 * index * num_envs / last, 0.2)
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_epsilon_is_what_a_run_reports():
    agent = dqn(epsilon_end=0.2, epsilon_steps=64)
    _, metrics = quick_jit(
        lambda key: purerl.run(
            walk(), agent, key=key, num_envs=8, total_timesteps=160, update_after=0
        )
    )(jax.random.key(0))
    expected = np.maximum(1.0 - 0.8 * np.arange(20) * 8 / 64, 0.2)
    np.testing.assert_allclose(metrics.losses["epsilon"], expected, atol=1e-6)


def test_epsilon_one_is_uniform_and_zero_is_greedy(key):
    agent = dqn(epsilon_start=1.0, epsilon_end=0.0)
    state = initial(agent)
    obs = jax.random.normal(key, (4_000, 2))
    greedy = np.argmax(np.asarray(obs) @ kernel(state.params), axis=-1)
    np.testing.assert_array_equal(act(agent.policy(state), obs)[0], greedy)

    first, extras = act(agent.acting(state, purerl.Clock()), obs, jax.random.key(1))
    assert extras == {}
    for best in (0, 1):  # whatever the greedy action is
        counts = np.bincount(np.asarray(first)[greedy == best], minlength=2)
        assert scipy.stats.chisquare(counts).pvalue > 1e-4
    clock = purerl.Clock(progress=1.0)
    last, _ = act(agent.acting(state, clock), obs, jax.random.key(1))
    np.testing.assert_array_equal(last, greedy)


def test_between_the_two_every_other_random_action_is_greedy(key):
    agent = dqn(epsilon_start=0.4, epsilon_end=0.2)
    state = initial(agent)
    obs = jax.random.normal(key, (20_000, 2))
    greedy, _ = act(agent.policy(state), obs)
    explored, _ = act(agent.acting(state, purerl.Clock()), obs, jax.random.key(1))
    sampled, _ = act(agent.policy(state, sample=True), obs, jax.random.key(2))
    assert float(jnp.mean(explored != greedy)) == pytest.approx(0.2, abs=0.01)
    for best in (0, 1):  # random actions are each as likely, however rare they are
        others = (explored != greedy)[greedy == best]
        assert float(jnp.mean(others)) == pytest.approx(0.2, abs=0.015)
    assert float(jnp.mean(sampled != greedy)) == pytest.approx(0.1, abs=0.01)


def test_a_critic_that_takes_the_action_is_as_one_that_returns_all():
    buffer, stored = filled()
    results = []
    for critic in (LinearQs, LinearQ):
        agent = dqn(critic=critic, gradient_steps=5, lr=0.1, target_update_every=2)
        state = initial(agent)
        after, _, losses = update(agent, state, buffer, stored, jax.random.key(3))
        obs = stored.data["obs"][0]
        action, _ = act(agent.acting(after, purerl.Clock()), obs, jax.random.key(4))
        results.append(
            (after.params, after.target_params, losses, agent.value(after, (), obs), action)
        )
    for x, y in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6)


def test_value_is_the_largest_q():
    agent = dqn()
    state, obs = initial(agent), jnp.array([[1.0, 2.0], [-3.0, 0.5]])
    expected = (np.asarray(obs) @ kernel(state.params)).max(-1)
    np.testing.assert_allclose(agent.value(state, (), obs), expected, rtol=1e-5)


def test_what_it_cannot_use_is_refused():
    for critic in (LinearV, purerl.DefaultCritic):
        with pytest.raises(purerl.ConfigError, match=r"DQN.critic: got a V critic"):
            purerl.TrainConfig(walk(), dqn(critic=critic))
    with pytest.raises(purerl.ConfigError, match="DQN is for discrete actions"):
        dqn().init(jax.random.key(0), target_env().spec)
    noise = purerl.GaussianNoise()
    with pytest.raises(purerl.ConfigError, match="noise: got"):
        purerl.make_loop(walk(), dqn(), total_timesteps=5_000, noise=noise)
    with pytest.raises(purerl.ConfigError, match=r"DQN.target_fn.*double_q"):
        dqn(target_fn="doubleq")


def test_the_learning_rate_goes_down_to_zero():
    def step(progress, **changes):
        optimizer = dqn(lr=1.0, **changes)._optimizer(purerl.Clock(progress=progress))
        updates, _ = optimizer.update({"w": jnp.ones(1)}, optimizer.init({"w": jnp.ones(1)}))
        return -float(updates["w"][0])

    assert [step(p) for p in (0.0, 0.5, 0.9)] == pytest.approx([1.0, 0.5, 0.1], rel=1e-3)
    assert step(0.5, anneal=False) == pytest.approx(1.0, rel=1e-3)


def test_the_three_values_are_far_apart():
    best, drawn = values.optimal_q(), values.uniform_q()
    assert np.abs(best / drawn - 1).min() > 0.1
    assert np.abs(drawn / values.uniform_v()[:, None] - 1).max() > 0.1
    assert len(np.unique(best.argmax(-1))) == 2


@pytest.mark.parametrize(
    "trial", params({n: t for n, t in values.VALUES.items() if " of " in n and "PQN" not in n})
)
def test_values_of_an_mdp_are_learned(trial):
    trial.check()
