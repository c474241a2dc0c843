"""Runs that start from learned parameters: `init`."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kit.folders import contents
from kit.quick import mostly_slow, quick_jit
from kit.runs import RUNS, stop_at
from kit.trees import assert_close, assert_equal, equal

import purerl
from purerl.records.files import by_path
from purerl.runs import checkpoint
from purerl.runs.init import digest_of, read_init

pytestmark = pytest.mark.usefixtures("compile_once")
# Without code of the user, so that its program is compiled once.
CONFIG = purerl.TrainConfig(
    "CartPole-v1", purerl.PPO(hidden=4), 128, num_envs=4, update_every=8, normalize_obs=True
)


@pytest.fixture(scope="module")
def learned(compile_once, tmp_path_factory):
    """The output of a run of two seeds, and its folder."""
    folder = tmp_path_factory.mktemp("learned") / "run"
    return purerl.fit(CONFIG, folder, seeds=2), folder


@pytest.fixture(scope="module")
def again(learned):
    """The output of a run of two seeds that starts from there."""
    return purerl.fit(CONFIG, seeds=2, init=learned[0])


@pytest.mark.parametrize("name", mostly_slow(RUNS, ("PPO", "DQN")))
def test_parameters_are_taken_and_all_else_is_new(name):
    """Of every agent: targets are copies, optimizers and counts as in a run that begins."""
    env, agent, _ = RUNS[name]
    agent = agent.replace(hidden=4)

    @quick_jit
    def start(keys):
        old, fresh = (agent.init(key, env.spec) for key in keys)
        used = jax.tree.map(lambda x: x + jnp.ones((), x.dtype), old)  # optimizers, counts as well
        return used, fresh, agent.start_from(fresh, agent.for_acting(used))

    used, fresh, state = (by_path(x) for x in start(jax.random.split(jax.random.key(0))))
    assert set(state) == set(used) == set(fresh)
    copied = 0
    for name, x in state.items():
        words = name.split(".")
        source = fresh
        if words[0].endswith("params"):
            name, source = name.replace("target_params", "params"), used
            if agent.__class__ is purerl.SAC and words[0] == "target_params":
                name = name.replace("params", "params.critic", 1)  # of the critics alone
            copied += 1
        np.testing.assert_array_equal(x, source[name], err_msg=name)
    assert copied > 0


def test_a_run_starts_from_what_another_has_learned(learned, again):
    """The same from an output, its policies, and a folder."""
    out, folder = learned
    assert not equal(again.state.agent, out.state.agent)
    # Statistics go on, all else begins.
    np.testing.assert_allclose(again.state.obs_stats.size, 2 * out.state.obs_stats.size)
    np.testing.assert_array_equal(again.state.num_updates, [4, 4])
    loop = CONFIG.make_loop()
    first, *others = (read_init(x, CONFIG, loop, 2) for x in (out, out.policy, folder))
    for other in others:
        assert_equal(other, first)
        assert digest_of(other) == digest_of(first)
    assert_equal(first.obs_stats, out.state.obs_stats)


def test_one_policy_is_that_of_all_seeds(learned):
    out, folder = learned
    policy = out.member(1).policy
    for init in (policy, folder / "policies" / "seed-1.policy"):
        found = read_init(init, CONFIG, CONFIG.make_loop(), 2)
        for place in (0, 1):
            one = jax.tree.map(lambda x, place=place: x[place], found)
            assert_equal(tuple(one), (policy.state, policy.obs_stats))


@pytest.mark.slow
def test_make_train_takes_it_too(learned, again):
    train = quick_jit(lambda key, init: purerl.make_train(CONFIG)(key, init=init))
    alone = train(jax.random.key(1), learned[0].member(1).policy)
    assert_close(alone.metrics, again.member(1).metrics, rtol=1e-3)


def test_a_run_with_init_is_resumed_to_the_same_end(learned, again, tmp_path, monkeypatch):
    """By resume=True without it; another one is another run."""
    out, _ = learned
    options = {"seeds": 2, "report_every": 0.0, "checkpoint_every": 0.0}
    with pytest.raises(purerl.Interrupted):
        purerl.fit(CONFIG, tmp_path, init=out, callback=stop_at(2), **options)
    before = contents(tmp_path)
    for init in (None, out.member(0)):
        with pytest.raises(purerl.ConfigError, match=r"holds another run: init is '\w+' there"):
            purerl.fit(CONFIG, tmp_path, init=init, **options)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.RunFolder, "latest", None)  # as before the first one
        with pytest.raises(purerl.ConfigError, match=r"init: missing, since .* no checkpoint yet"):
            purerl.fit(CONFIG, tmp_path, resume=True, **options)
    assert contents(tmp_path) == before
    assert_equal(purerl.fit(CONFIG, tmp_path, resume=True, **options), again)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"agent": purerl.PPO(hidden=8)},
            r"params.actor.params.Dense_0.\w+ is float32 \(4, 2\), expected float32 \(8, 2\)",
        ),
        ({"agent": purerl.PPO(hidden=(4, 4))}, r"Dense_\d.\w+ is .*, expected"),
        ({"agent": purerl.PPO(hidden=4, activation="relu")}, "'tanh' there, got 'relu'"),
        ({"agent": purerl.PQN(hidden=4)}, "got a policy of PPO, expected one of the run's PQN"),
        ({"normalize_obs": False}, "normalises observations, expected normalize_obs=True"),
        (
            {"env": "Acrobot-v1"},
            "of CartPole-v1 with the observation_space Box.*that of Acrobot-v1",
        ),
    ],
)
def test_what_does_not_fit_is_refused(learned, changes, message, tmp_path):
    policy = learned[0].member(0).policy
    with pytest.raises(purerl.ConfigError, match=f"init: .*{message}"):
        purerl.fit(CONFIG.replace(**changes), tmp_path / "run", init=policy)
    assert not (tmp_path / "run").exists()


def test_as_many_policies_as_seeds(learned):
    out, folder = learned
    with pytest.raises(purerl.ConfigError, match=r"2 policies, .* of 3 seeds: out.member\(i\)"):
        purerl.fit(CONFIG, seeds=3, init=out)
    file = f"{folder}/policies/seed-0.policy"
    with pytest.raises(purerl.ConfigError, match=f"got 2 policies, expected one: one is {file}"):
        purerl.fit(CONFIG, init=folder)
    with pytest.raises(purerl.ConfigError, match="init: got 3, expected a policy, the output"):
        purerl.fit(CONFIG, init=3)
    with pytest.raises(purerl.RunError, match="no run's folder: there is no such folder"):
        purerl.fit(CONFIG, init="nothing/there")
    with pytest.raises(purerl.ConfigError, match=r"init: got .*, expected a purerl.Policy"):
        purerl.make_train(CONFIG)(jax.random.key(0), init=out)


@pytest.mark.slow
def test_the_command_goes_on_from_a_run(command):
    """And a run with schedules that can't be made longer says how."""
    small = ("--no-tensorboard", "--no-preset", "--hidden", 4, "--num-envs", 4)
    small += ("--update-every", 16, "--seeds", 2)
    assert (
        command("train", "CartPole-v1", *small, "--total-timesteps", 256, "--run-dir", "a")[0] == 0
    )
    code, _, err = command("resume", "a", "--total-timesteps", 512)
    assert code == 2
    assert "PPO.anneal=True follows the length of the run" in err
    line = err[err.index("purerl train --config") :].split()[1:]
    code, _, err = command(*line, "--run-dir", "b", "--no-tensorboard", "--env.length", 0.4)
    assert (code, err) == (0, "")
    run = json.loads(pathlib.Path("b/run.json").read_text())
    assert run["config"]["total_timesteps"] == 256
    assert len(run["init"]) == 32
    assert command("resume", "b", "--no-tensorboard")[0] == 0
    code, _, err = command("train", "CartPole-v1", "--init", "nowhere", *small)
    assert code == 1
    assert "nowhere is no run's folder" in err
