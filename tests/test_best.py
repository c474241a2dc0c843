"""The best policy by evaluation, and runs that end at a return."""

import csv
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kit.agents import Tiny
from kit.environments import push_env, walk
from kit.quick import mostly_slow, quick_jit
from kit.runs import PRIORITIES, stop_at
from kit.trees import assert_close, assert_equal, equal

import purerl
from purerl.experience.metrics import Count, no_episodes
from purerl.runs.console import solved_text
from purerl.runs.view import RunView
from purerl.training import loop as looping
from purerl.training.loop import BestPolicy
from purerl.training.train import make_output

pytestmark = pytest.mark.usefixtures("compile_once")
SMALL = {"num_envs": 2, "update_every": 8, "eval_every": 2, "eval_max_episodes": 2}
CONFIG = purerl.TrainConfig(push_env(), Tiny(), 12 * 16, normalize_obs=True, **SMALL)
NUMBERS = [1, 6, 11]  # of seeds that are best at different times, and soon good
SEEDS = jax.vmap(jax.random.key)(np.array(NUMBERS, np.uint32))


def stepwise(config, keys):
    """The states after each update, the first before any, and the rows of metrics."""
    loop, many = config.make_loop(), jax.vmap if keys.ndim else lambda fn, *_: fn
    step, rows = quick_jit(many(loop.step, (0, None))), []
    states = [quick_jit(many(loop.init))(keys)]
    for index in range(loop.num_updates):
        state, row = step(states[-1], jnp.int32(index))
        states.append(state)
        rows.append(row)
    return states, jax.tree.map(lambda *xs: np.stack(xs, axis=-1), *rows)


@pytest.fixture(scope="module")
def run():
    """Of three seeds, mapped: the states after each update, and the output."""
    states, metrics = stepwise(CONFIG, SEEDS)
    agents = jax.tree.map(lambda x: jnp.full(3, x), CONFIG.agent)
    return states, make_output(CONFIG, CONFIG.make_loop(), states[-1], metrics, agents, {})


@pytest.fixture(scope="module")
def states(run):
    """Of the first seed, after each update."""
    return [jax.tree.map(lambda x: x[0], state) for state in run[0]]


@pytest.fixture(scope="module")
def out(run):
    return run[1]


def test_the_best_policy_is_that_of_the_best_evaluation(out, states):
    returns = np.asarray(out.metrics.eval.episode_return)
    np.testing.assert_array_equal(out.best_return, np.nanmax(returns, axis=1))
    update = np.nanargmax(returns, axis=1) + 1
    assert len(set(update)) > 1, "seeds are best at different times"
    np.testing.assert_array_equal(out.best_timesteps, update * 16)
    best, then = out.member(0).best_policy, states[update[0]]
    assert int(best.num_updates) == int(then.num_updates) == update[0]
    kept = Tiny().for_acting(then.agent)
    assert_close((best.state, best.obs_stats), (kept, then.obs_stats))
    assert not equal(then.obs_stats, states[-1].obs_stats)
    assert out.best_policy.num_updates.low.shape == (3,)
    actions = jax.vmap(lambda out: out.best_policy(jnp.zeros((2, 1))))(out)
    np.testing.assert_array_equal(actions[0], best(jnp.zeros((2, 1))))
    assert best.step(np.zeros(1)).shape == (1,)


def test_of_equal_evaluations_the_first_is_best_and_none_without_an_episode():
    def evaluated(value, number=2):
        found = no_episodes()
        return found._replace(episode_return=jnp.float32(value), num_episodes=jnp.int32(number))

    best = BestPolicy.start({"w": jnp.zeros(2)}, None)
    for update, (found, wins) in enumerate(
        [
            (evaluated(np.nan, 0), 0),
            (evaluated(np.inf, 0), 0),  # as `missing` is under jax_debug_nans
            (evaluated(-7.0), 3),
            (evaluated(-7.0), 3),
            (evaluated(np.nan, 0), 3),
            (evaluated(-8.0), 3),
            (evaluated(-6.0), 7),
        ],
        1,
    ):
        new = BestPolicy({"w": jnp.full(2, update)}, None, found.episode_return, Count.of(update))
        best = best.or_better(found, new)
        assert (int(best.num_updates), int(best.agent["w"][0])) == (wins, wins)


def test_without_evaluations_nothing_is_in_the_state_nor_in_the_program(monkeypatch):
    """Nor without a return to stop at."""

    def refuse(*_):
        raise AssertionError

    for name in ("start", "or_better"):
        monkeypatch.setattr(BestPolicy, name, refuse)
    monkeypatch.setattr(looping, "_freeze", refuse)
    config = CONFIG.replace(eval_every=None)
    loop = config.make_loop()
    state = jax.eval_shape(loop.init, SEEDS[0])
    after, _ = jax.eval_shape(loop.step, state, 0)
    assert (after.best, after.solved) == (None, None)
    assert loop.running(state) is None


def test_a_run_without_evaluations_has_no_best_policy(out):
    with pytest.raises(purerl.ConfigError, match="without evaluations, expected eval_every"):
        out.replace(state=out.state._replace(best=None)).best_policy  # noqa: B018
    nothing = out.state.best._replace(
        episode_return=np.full(3, -np.inf, np.float32), num_updates=Count.of(np.zeros(3, np.int32))
    )
    nothing = out.replace(state=out.state._replace(best=nothing))
    with pytest.raises(purerl.ConfigError, match="no evaluation has an episode that ended"):
        nothing.member(0).best_policy  # noqa: B018
    assert np.isnan(nothing.best_return).all()
    assert out.solved_at is None


@pytest.mark.parametrize("agent", mostly_slow(["tiny", "dqn"], ("tiny",)))
def test_without_evaluations_the_training_episodes_decide(agent):
    """Episodes of 3 steps have a return of 6, and the first end in the second update of 2. The
    state after that update is never changed, replay and priorities included."""
    options = {"num_envs": 2, "update_every": 2, "total_timesteps": 24, "stop_at_return": 6.0}
    buffer = None
    if agent == "dqn":
        buffer, options["update_after"] = PRIORITIES, 0
    made = Tiny() if agent == "tiny" else purerl.DQN(batch_size=4, hidden=4)
    config = purerl.TrainConfig(walk(3), made, buffer=buffer, **options)
    states, _ = stepwise(config, SEEDS[0])
    assert [bool(x.solved) for x in states] == [False, False, *[True] * 5]
    assert [int(x.num_updates) for x in states] == [0, 1, *[2] * 5]
    for later in states[3:]:
        assert_equal(later, states[2])


def test_a_run_that_never_gets_there_is_not_solved(out):
    out = out.replace(state=out.state._replace(solved=np.zeros(3, bool)))
    assert out.solved_at.tolist() == [-1, -1, -1]
    assert solved_text(out, 4.5) == "not solved: the return 4.5 was not reached"


@pytest.mark.parametrize("value", ["x", np.nan, np.inf, True, [1.0]])
def test_the_return_is_a_number(value):
    with pytest.raises(purerl.ConfigError, match=r"stop_at_return: got .*, expected a float"):
        CONFIG.replace(stop_at_return=value)


@pytest.fixture(scope="module")
def ended(compile_once, out, tmp_path_factory):
    """A run that all members end before its planned end, stopped before that and resumed: its
    config, its folder, its output when it was stopped and at the end, and reports."""
    config = CONFIG.replace(stop_at_return=float(out.best_return.min()) - 1e-3)
    folder, reports = tmp_path_factory.mktemp("ended") / "run", []
    options = {"seeds": NUMBERS, "report_every": 0.0, "checkpoint_every": 0.0}
    with pytest.raises(purerl.Interrupted) as stopped:
        purerl.fit(config, folder, callback=[reports.append, stop_at(3)], **options)
    check_best_policies(folder, stopped.value.output)
    options["report_every"] = 1e3  # a chunk that is longer than what is left
    found = purerl.fit(config, folder, callback=reports.append, **options)
    return config, folder, found, reports


def check_best_policies(folder, found):
    """Whether the folder has those of an output, in files and for who reads it."""
    view, mine = RunView(folder), found.member(2).best_policy
    loaded = view.policies([11], agent=Tiny(), best=True)[11]
    assert (folder / "policies" / "best-seed-11.policy").is_file()
    assert int(loaded.num_updates) == int(mine.num_updates)
    assert_equal((loaded.state, loaded.obs_stats), (mine.state, mine.obs_stats))
    returns = [None if np.isnan(x) else pytest.approx(x) for x in found.best_return]
    assert view.best_returns() == returns
    assert view.best_seed(best=True) == NUMBERS[np.nanargmax(found.best_return)]


def test_a_member_ends_where_it_reaches_the_return(ended, out, states):
    """Exactly: its state is that of the update, its metrics those of the run without an end up to
    there, and nothing after. To rounding, since it is another program."""
    config, _, found, _ = ended
    returns = np.asarray(out.metrics.eval.episode_return)
    ends = np.argmax(returns >= config.stop_at_return, axis=1) + 1
    assert len(set(ends)) > 1, "at different times"
    np.testing.assert_array_equal(found.solved_at, ends * 16)
    np.testing.assert_array_equal(found.state.num_updates, ends)
    np.testing.assert_array_equal(found.num_rows, ends)
    for i, end in enumerate(ends):
        before, same = (
            jax.tree.map(lambda x, i=i, end=end: x[i, :end], metrics)
            for metrics in (found.metrics, out.metrics)
        )
        assert_close(before, same)
        after = jax.tree.map(lambda x, i=i, end=end: x[i, end:], found.metrics)
        assert not after.num_episodes.any()
        assert np.isnan([*after.episode_return, *after.eval.episode_return]).all()
        assert np.isnan(after.losses["loss"]).all()
    assert_close(found.member(0).state._replace(solved=None), states[ends[0]])


def test_fit_ends_with_its_last_member(ended):
    """Rows end with the last member's run."""
    config, _, found, reports = ended
    ends = np.asarray(found.state.num_updates)
    assert ends.max() < 12, "all have reached it before the planned end"
    assert found.metrics.num_episodes.shape == (3, ends.max())
    assert reports[-1].stop == ends.max()
    np.testing.assert_array_equal(reports[-1].solved_at, found.solved_at)
    assert (reports[0].solved_at == -1).any()
    text = solved_text(found, config.stop_at_return)
    assert "solved at step" in text
    assert "by 3 of 3 seeds" in text


@pytest.mark.slow
def test_in_other_chunks_or_called_again_it_is_the_same(ended):
    config, folder, found, _ = ended
    assert_equal(purerl.fit(config, seeds=NUMBERS, report_every=0.0), found)
    again = []
    assert_equal(purerl.fit(config, folder, seeds=NUMBERS, callback=again.append), found)
    assert not again


def test_a_folder_has_when_it_was_solved_and_the_best_policies(ended):
    config, folder, found, _ = ended
    ends = np.asarray(found.state.num_updates)
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["finished"] is True
    solved = {"at_return": config.stop_at_return, "timesteps": (ends * 16).tolist()}
    assert summary["solved"] == solved
    assert summary["best_evaluation"]["by_seed"] == pytest.approx(found.best_return.tolist())
    assert summary["best_evaluation"]["timesteps"] == found.best_timesteps.tolist()
    with (folder / "metrics.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 3 * ends.max()
    check_best_policies(folder, found)


@pytest.mark.slow
def test_the_command_plays_the_best(command, monkeypatch):
    argv = ("train", "CartPole-v1", "--no-preset", "--hidden", 4, "--num-envs", 4)
    argv += ("--update-every", 16, "--total-timesteps", 512, "--seeds", 2, "--no-tensorboard")
    code, out, _ = command(*argv, "--eval-every", 2, "--stop-at-return", 1, "--run-dir", "run")
    assert code == 0
    assert "solved at step 128 by 2 of 2 seeds: return 1 or more" in out
    assert "best evaluation's return" in out
    code, out, _ = command("eval", "run", "--best", "--episodes", 2, "--json")
    assert code == 0
    assert [row["policy"] for row in json.loads(out)] == ["best-seed-0", "best-seed-1"]
    best = RunView("run").best_seed(best=True)
    policy = purerl.load_policy(f"run/policies/best-seed-{best}.policy")
    chosen = []
    monkeypatch.setattr("purerl.deploy.export.export_policy", lambda x, _: chosen.append(x))
    assert command("export", "run", "--best")[0] == 0
    assert_equal(chosen[0].state, policy.state)
    code, _, err = command("eval", "run/policies/seed-0.policy", "--best")
    assert code == 2
    assert "--best: is for a run's folder, and run/policies/seed-0.policy is a policy's file" in err
    code, _, err = command("render", "run/policies/seed-0.policy", "--of", 1)
    assert code == 2
    assert "--of: is for a run's folder, and run/policies/seed-0.policy is a policy's file" in err
