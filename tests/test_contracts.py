"""What is rare, through everything: masks with several choices at once, masks for Q-learning,
observations in dicts with a critic that sees more than the actor, and memories."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kit.environments import doors, hidden_goal, locks
from kit.quick import mostly_slow
from kit.recurrent import recall_env
from kit.trees import assert_close

import purerl

pytestmark = pytest.mark.usefixtures("compile_once")

SMALL = {"num_envs": 8, "update_every": 8, "total_timesteps": 8 * 8 * 10}
CASES = {
    "masks and MultiDiscrete": (locks, purerl.PPO(hidden=(16,)), SMALL),
    "masks for Q": (doors, purerl.DQN(hidden=(16,), batch_size=32), SMALL | {"update_after": 64}),
    "masks and a memory for Q": (doors, purerl.PQN(network="gru", hidden=(16,)), SMALL),
    "dict and privileged critic": (
        hidden_goal,
        purerl.PPO(hidden=(16,), actor_obs=("camera", "room", "wheel"), critic_obs="privileged"),
        SMALL | {"normalize_obs": True},
    ),
    "memory, last action, masks": (
        locks,
        purerl.PPO(network="gru", hidden=(8,), memory=6),
        SMALL | {"remember_action": True, "update_every": 5},
    ),
    "a memory of two": (
        recall_env,
        purerl.ActorCritic(
            n_episodes=8, episode_length=5, network="lstm", hidden=(8,), share_network=True
        ),
        {"total_timesteps": 400, "normalize_obs": True},
    ),
}


QUICK = ("memory, last action, masks",)


@pytest.mark.parametrize("name", mostly_slow(CASES, QUICK))
def test_the_way_of_a_run(name, tmp_path):
    make, agent, options = CASES[name]
    env = make()
    config = purerl.TrainConfig(env=env, agent=agent, eval_every=5, **options)

    def stop(report):
        if report.stop >= 3:
            raise RuntimeError("enough")

    fit = {"seeds": 2, "report_every": 1e-3}
    with pytest.raises(RuntimeError, match="enough"):
        purerl.fit(config, tmp_path / "run", callback=stop, **fit)
    resumed = purerl.fit(config, tmp_path / "run", **fit)
    straight = purerl.fit(config, **fit)
    assert np.isfinite(straight.metrics.episode_return[:, -1]).all()
    for x, y in zip(*(jax.tree.leaves(o.state.agent) for o in (straight, resumed)), strict=True):
        np.testing.assert_array_equal(x, y)

    policy = resumed.member(0).policy
    plays = purerl.remember_action(env) if config.remember_action else env
    episodes = purerl.evaluate(plays, policy.acting(), jax.random.key(0), 16, 20)
    assert int(episodes.num_episodes) == 16
    assert float(episodes.episode_return_min) > -50  # nothing illegal was done
    total, length = purerl.render(policy, env, tmp_path / "a.gif")
    assert np.isfinite(total)
    assert length == env.spec.max_episode_steps
    returns, lengths = purerl.evaluate_in_gymnasium(policy, purerl.to_gymnasium(env), 3)
    assert returns.min() > -50
    assert set(lengths) == {env.spec.max_episode_steps}

    purerl.export_policy(policy, tmp_path / "a.stablehlo", platforms=["cpu"])
    exported = jax.export.deserialize(bytearray((tmp_path / "a.stablehlo").read_bytes()))
    purerl.save_policy(policy, tmp_path / "a.policy")
    more = {} if env.spec.legal is None else {"env": plays}
    loaded = purerl.load_policy(tmp_path / "a.policy", **more)
    obs, _ = jax.vmap(plays.reset)(jax.random.split(jax.random.key(1), 5))
    asked = {n: x for n, x in obs.items() if n in policy.asks} if isinstance(obs, dict) else obs
    assert not isinstance(asked, dict) or "privileged" not in asked
    memory = jax.tree.map(lambda x: x + 0.3, policy.memory(5))
    after, action, _ = policy.acting().step(memory, obs, None)
    found = exported.call(memory, asked) if policy.has_memory else ((), exported.call(asked))
    again = loaded.acting().step(memory, jax.tree.map(jnp.asarray, asked), None)[:2]
    for other in (found, again):
        assert_close(other[0], after, 1e-6)
        np.testing.assert_array_equal(other[1], action)
