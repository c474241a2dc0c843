import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kit.agents import act, learn
from kit.environments import reward_forever, target_env, walk
from kit.quick import mostly_slow, quick_jit
from kit.trees import assert_close
from kit.values import VALUES

import purerl
from purerl.agents.ppo import PPO


def setup(agent, env, num_envs=4, update_every=8):
    """An agent after one rollout, and its buffer, filled."""
    loop = purerl.make_loop(
        env,
        agent,
        num_envs=num_envs,
        total_timesteps=10 * num_envs * update_every,
        update_every=update_every,
    )
    buffer = loop.buffer

    @quick_jit
    def play(key):
        state = loop.init(key)
        _, transitions, *_ = loop.play(state.agent, state.rollout, None, key, 0)
        return state.agent, buffer.push(state.buffer, transitions)

    state, stored = play(jax.random.key(0))
    return state, buffer, stored


def update(agent, state, buffer, stored, key):
    return quick_jit(lambda *args: learn(agent, args[0], buffer, *args[1:]))(state, stored, key)


def numpy_loss(agent, state, params, batch):
    """The clipped objective of the paper (equations 7 and 9), one transition at a time."""
    logits = np.asarray(state.actor.apply(params["actor"], batch["obs"]).logits, np.float64)
    value = np.asarray(state.critic.apply(params["critic"], batch["obs"]), np.float64)
    batch = {name: np.asarray(x, np.float64) for name, x in batch.items()}
    advantage = batch["advantage"]
    policy, error, entropy, clipped = [], [], [], []
    for i in range(len(value)):
        probs = np.exp(logits[i]) / np.exp(logits[i]).sum()
        ratio = probs[int(batch["action"][i])] / np.exp(batch["log_prob"][i])
        low, high = 1 - agent.eps_clip, 1 + agent.eps_clip
        policy.append(min(ratio * advantage[i], np.clip(ratio, low, high) * advantage[i]))
        far = (value[i] - batch["target"][i]) ** 2
        if agent.clip_value:
            old = batch["value"][i]
            near = old + np.clip(value[i] - old, -agent.eps_clip, agent.eps_clip)
            far = max(far, (near - batch["target"][i]) ** 2)
        error.append(0.5 * far)
        entropy.append(-(probs * np.log(probs)).sum())
        clipped.append(abs(ratio - 1) > agent.eps_clip)
    loss = -np.mean(policy) + agent.value_coef * np.mean(error)
    return {
        "loss": loss - agent.entropy_beta * np.mean(entropy),
        "policy_loss": -np.mean(policy),
        "value_loss": np.mean(error),
        "entropy": np.mean(entropy),
        "clip_fraction": np.mean(clipped),
    }


@pytest.mark.parametrize("clip_value", [True, False])
def test_loss_is_a_plain_loop(clip_value):
    agent = PPO(clip_value=clip_value, entropy_beta=0.3)
    rng = np.random.default_rng(0)
    spec = walk().spec
    old, new = (agent.init(jax.random.key(i), spec) for i in (1, 2))
    obs = jnp.asarray(rng.normal(size=(64, 2)), jnp.float32)
    action, extras = act(agent.acting(old, purerl.Clock()), obs, jax.random.key(0))
    batch = {
        "obs": obs,
        "action": action,
        **extras,
        "advantage": jnp.asarray(rng.normal(size=64), jnp.float32),
        "target": jnp.asarray(rng.normal(size=64), jnp.float32),
    }
    # Far enough from the old policy for the clipping to bite.
    params = jax.tree.map(lambda x: 4 * x, new.params)
    params["actor"] = jax.tree.map(lambda x: 10 * x, params["actor"])
    losses = agent._loss(params, new, batch)
    expected = numpy_loss(agent, new, params, batch)
    assert expected["clip_fraction"] > 0.1
    for name, value in expected.items():
        assert float(losses[name].mean()) == pytest.approx(value, rel=1e-3, abs=1e-5), name


@pytest.mark.parametrize("normalize_advantage", [True, False])
def test_advantages_are_standardized_in_each_minibatch(normalize_advantage):
    class Watched(PPO):
        def _learn(self, state, batch, clock):
            weight, x = batch["weight"], batch["advantage"]
            mean, square = jnp.sum(weight * x), jnp.sum(weight * x**2)
            off = {"mean": mean, "square": square - 1.0, "weight": jnp.sum(weight) - 1.0}
            return state, {name: jnp.abs(value) for name, value in off.items()}

    agent = Watched(batch_size=16, K_epochs=2, normalize_advantage=normalize_advantage)
    state, buffer, stored = setup(agent, walk(), num_envs=8, update_every=16)
    valid = jax.random.uniform(jax.random.key(5), (16, 8)) < 0.7
    stored = stored._replace(data={**stored.data, "valid": valid})
    _, _, off = update(agent, state, buffer, stored, jax.random.key(2))
    assert float(off["weight"]) < 1e-5
    assert (float(off["mean"]) < 1e-5) == normalize_advantage
    assert (float(off["square"]) < 1e-4) == normalize_advantage


def test_the_first_step_sees_the_policy_that_acted():
    agent = PPO(K_epochs=1, batch_size=32)
    state, buffer, stored = setup(agent, walk())
    _, _, losses = update(agent, state, buffer, stored, jax.random.key(2))
    assert abs(float(losses["approx_kl"])) < 1e-6
    assert float(losses["clip_fraction"]) == 0.0


def test_gradients_are_clipped_by_their_global_norm():
    agent = PPO(K_epochs=1, batch_size=32, max_grad_norm=1e-3, lr=1.0, anneal=False)
    state, _, _ = setup(agent, walk())
    optimizer = agent._optimizer(purerl.Clock())
    grads = jax.tree.map(jnp.ones_like, state.params)
    _, opt_state = optimizer.update(grads, state.opt_state)
    moments = opt_state[1][0].mu  # Adam's first moment is 0.1 of what came out of the clipping
    norm = np.linalg.norm(moments)
    assert norm == pytest.approx(0.1 * 1e-3, rel=1e-3)


def test_target_kl_stops_an_update_and_nothing_moves_after():
    free = PPO(K_epochs=20, lr=1e-2)
    state, buffer, stored = setup(free, walk())
    key = jax.random.key(3)
    moved, _, losses = update(free, state, buffer, stored, key)
    assert "stopped" not in losses
    stopping = free.replace(target_kl=1e-9)
    held, _, losses = update(stopping, state, buffer, stored, key)
    assert float(losses["stopped"]) > 0.9
    # The first step comes before there is any divergence; Adam takes no second.
    assert int(held.opt_state[1][0].count) == 1
    assert int(moved.opt_state[1][0].count) == 80
    never, _, losses = update(free.replace(target_kl=1e9), state, buffer, stored, key)
    assert float(losses["stopped"]) == 0.0
    assert int(never.opt_state[1][0].count) == 80
    # Another program: its last bits may differ, by processor.
    assert_close(never.params, moved.params)


def test_lr_goes_down_to_zero():
    def step(progress, **changes):
        clock = purerl.Clock(progress=progress)
        optimizer = PPO(lr=1.0, max_grad_norm=1e9, **changes)._optimizer(clock)
        updates, _ = optimizer.update({"w": jnp.ones(1)}, optimizer.init({"w": jnp.ones(1)}))
        return -float(updates["w"][0])

    assert [step(p) for p in (0.0, 0.5, 0.9)] == pytest.approx([1.0, 0.5, 0.1], rel=1e-3)
    assert step(0.5, anneal=False) == pytest.approx(1.0, rel=1e-3)


def test_explained_variance():
    agent = PPO()
    state, buffer, stored = setup(agent, reward_forever(), update_every=16)
    _, _, losses = update(agent, state, buffer, stored, jax.random.key(2))
    value = np.asarray(stored.data["value"])
    assert np.ptp(value) == 0  # there is one observation, which is also what follows
    advantage = buffer.path_entries(stored, jnp.asarray(value))["advantage"]
    target = np.asarray(advantage) + value
    expected = 1 - np.var(target - value) / np.var(target)
    assert float(losses["explained_variance"]) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("name", ["PPO, a time limit is not death", "PPO, a death is one"])
def test_a_time_limit_is_not_death(name):
    VALUES[name].check()


def test_actions_reach_the_environment_inside_its_bounds():
    loop = purerl.make_loop(target_env(), PPO(), num_envs=64, total_timesteps=64, update_every=1)
    one_step = quick_jit(lambda key: loop.step(loop.init(key), jnp.int32(0)))
    state, _ = one_step(jax.random.key(0))
    own = np.asarray(state.buffer.data["action"])
    assert np.abs(own).max() > 2.0  # the agent's own actions are kept as they are
    seen = []
    env = target_env()
    spy = env._replace(
        step=lambda key, state, action: (
            jax.debug.callback(lambda a: seen.append(np.asarray(a)), action),
            env.step(key, state, action),
        )[1]
    )
    loop = purerl.make_loop(spy, PPO(), num_envs=64, total_timesteps=64, update_every=1)
    quick_jit(lambda key: loop.step(loop.init(key), jnp.int32(0)))(jax.random.key(0))
    jax.effects_barrier()
    assert len(seen) == 64
    assert np.abs(seen).max() <= 2.0


@pytest.mark.parametrize(
    "distribution", mostly_slow([purerl.Normal, purerl.TanhNormal], [purerl.Normal])
)
def test_it_finds_a_continuous_target(distribution):
    actor = type("Aimed", (purerl.DefaultActor,), {"distribution": distribution})
    config = purerl.TrainConfig(
        env=target_env(-2.0, 6.0),
        agent=PPO(actor=actor, lr=3e-3, entropy_beta=0.0),
        num_envs=32,
        update_every=8,
        total_timesteps=40_000,
    )
    outs = quick_jit(jax.vmap(purerl.make_train(config)))(jax.random.split(jax.random.key(0), 3))
    action = jax.vmap(lambda out: out.policy(jnp.ones((1, 1))))(outs)
    np.testing.assert_allclose(action.reshape(-1), 4.0, atol=0.4)
