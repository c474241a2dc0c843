"""Searches: who leaves on a rung, who ends as alone, what a kill leaves, what is measured."""

import csv
import json
import math
import os
import pathlib
import shutil
import subprocess
import sys
import types

import numpy as np
import optuna
import pytest
from kit.agents import Tiny
from kit.environments import push_env, walk
from kit.quick import mostly_slow
from kit.searching import OPTIONS, SPACE, nine_updates, search
from kit.sweeps import config

import purerl
from purerl.cli import Parser
from purerl.cli.flags import add_config_flags, config_from
from purerl.records.draws import Choice, LogUniform, Uniform
from purerl.sweeps import rungs
from purerl.sweeps import tune as host_tune
from purerl.sweeps.plan import plan_of
from purerl.sweeps.rungs import GroupRun, Outcome, Rungs, Trainer, staying_of
from purerl.sweeps.space import SPACES, Space, read_space
from purerl.sweeps.study import Study, Trial
from purerl.sweeps.tuned import TuneResult
from purerl.training.describe import describe

nan = math.nan


def silent(words):
    del words


def equal_tables(one, other):
    assert one.table.keys() == other.table.keys()
    for name, column in one.table.items():
        np.testing.assert_array_equal(column, other.table[name], err_msg=name)
    assert one.importance == other.importance
    np.testing.assert_array_equal(one.best.returns, other.best.returns)
    for a, b in zip(one.trials, other.trials, strict=True):
        assert a.outcome.scores == b.outcome.scores
        np.testing.assert_array_equal(a.outcome.curve, b.outcome.curve)


@pytest.mark.parametrize(
    ("number", "factor", "updates", "log_every", "stops"),
    [
        (3, 3, 81, 1, [9, 27, 81]),
        (3, 3, 80, 1, [9, 27, 80]),
        (3, 2, 100, 8, [32, 56, 100]),  # whole rows of metrics
        (1, 3, 10, 1, [10]),
        (3, 10, 7, 1, [1, 1, 7]),
    ],
)
def test_lengths_of_rungs(number, factor, updates, log_every, stops):
    schedule = Rungs(number, factor)
    assert [schedule.stop(i, updates, log_every) for i in range(number)] == stops
    assert [schedule.stay(n) for n in (1, factor, factor + 1, 4 * factor)] == [1, 1, 2, 4]


def test_a_rung_lasts_until_an_evaluation():
    """And no trial is judged before its first one; to whole rows of metrics as well."""
    schedule = Rungs(3, 3)
    assert [schedule.stop(i, 81, 1, 20) for i in range(3)] == [20, 40, 81]
    assert [schedule.stop(i, 81, 3, 20) for i in range(3)] == [21, 42, 81]
    assert [schedule.stop(i, 81, 1, 70) for i in range(3)] == [70, 70, 81]


def test_who_has_no_score_in_time_is_not_the_worst():
    def staying(scores, number, late=()):
        outcomes = {i: Outcome([x], is_late=i in late) for i, x in scores.items()}
        return staying_of(outcomes, number)

    worst = -math.inf
    scores = {0: 3.0, 1: nan, 2: 5.0, 4: worst, 5: nan, 6: nan, 7: 4.0}
    assert staying(scores, 1) == [1, 2]
    assert staying(scores, 2) == [1, 2, 5, 7]  # beside the best, as many at most
    assert staying(scores, 1, late=(0, 7)) == [2, 7]  # of the others those that were better
    assert staying(scores, 1, late=(0, 2, 7)) == [1, 2]  # all scores are older
    assert staying({0: 1.0, 1: 1.0, 2: worst}, 2) == [0, 1]
    assert staying({0: worst, 1: 1.0}, 1) == [1]
    assert staying({0: nan, 1: worst, 2: nan}, 1) == [0, 2]  # nobody has one yet
    assert staying({0: worst, 1: worst}, 1) == [0]


def test_a_trial_is_judged_by_its_newest_episodes():
    """Of the last tenth of the rows so far, or before; one that diverged is the worst, one of which
    nothing is known isn't."""
    counts = np.zeros((4, 20), int)
    counts[0, [3, 19]], counts[1, [3, 11]] = 1, [1, 2]
    returns = np.where(counts > 0, np.arange(20.0), np.nan)
    skipped = np.zeros((4, 20), int)
    skipped[3, 5:] = 1
    metrics = purerl.Metrics(returns, *[returns] * 5, counts, {}, skipped, None)
    run = GroupRun.__new__(GroupRun)
    run.program = types.SimpleNamespace(loop=types.SimpleNamespace(log_every=2, steps_per_update=8))
    run.group = types.SimpleNamespace(members=np.arange(4))
    run.places, run.reached, run.metrics = np.arange(4), 40, metrics
    run._num_updates = np.full(4, 40)
    outcomes = [Outcome() for _ in range(4)]
    run.note(outcomes, 1)
    np.testing.assert_array_equal([x.scores for x in outcomes], [[19], [11], [nan], [-math.inf]])
    assert [x.is_late for x in outcomes] == [False, True, False, False]
    outcomes = [Outcome() for _ in range(2)]
    run.note(outcomes, 2)
    assert [(x.scores, x.is_late) for x in outcomes] == [([15.0], True), ([-math.inf], False)]


def test_the_sampler_learns_nothing_from_what_is_not_known():
    study = Study(read_space(nine_updates(), SPACE), "tpe", 0, None, "")
    study.ask(4)
    misfit = Outcome(misfit="no")
    study.tell([Outcome([nan]), Outcome([nan, -math.inf]), Outcome([nan, 1.0]), misfit], 2)
    states = [x.state.name for x in study.study.get_trials()]
    assert states == ["FAIL", "PRUNED", "COMPLETE", "PRUNED"]
    np.testing.assert_array_equal([x.score for x in study.trials()], [nan, -math.inf, 1.0, nan])


def test_no_static_group_is_lost_for_its_windows(traces):
    """Episodes end after the 7th, the 14th step and so on: of 12 steps of 16 environments none in
    the last tenth, of 48 steps of 4 environments some."""
    base = config(walk(7), total_timesteps=6 * 64, update_every=4)
    plan = plan_of(base, ("num_envs",), [{"num_envs": 4}, {"num_envs": 16}], (0,))
    outcomes = Trainer(Rungs(2, 2), 1).train(plan, silent)
    assert [x.scores for x in outcomes] == [[28.0] * 2] * 2


COMBINATIONS = [{"lr": lr, "gamma": gamma} for lr in (0.01, 0.1, 1.0) for gamma in (0.5, 0.99)]


@pytest.mark.parametrize("slice_size", [3, 4])
def test_survivors_end_as_they_would_have_alone(traces, slice_size):
    """To the bit as in a batch that nobody leaves, to rounding as in a sweep; the agent's learning
    rate is annealed over the whole run."""
    base = nine_updates()
    plan = plan_of(base, ("lr", "gamma"), COMBINATIONS, (5, 2))
    halved = Trainer(Rungs(3, 2), slice_size).train(plan, silent)
    whole = Trainer(Rungs(1, 2), slice_size).train(plan, silent)
    assert sorted(len(x.scores) for x in halved) == [1, 1, 1, 2, 3, 3]
    alone = purerl.sweep(base, seeds=[5, 2], grid={"lr": [0.01, 0.1, 1.0], "gamma": [0.5, 0.99]})
    finals = alone.table["final_return"].reshape(6, 2)
    for i, outcome in enumerate(halved):
        np.testing.assert_allclose(whole[i].returns, finals[i], rtol=1e-4)
        if len(outcome.scores) == 3:
            assert outcome.returns == whole[i].returns
            assert outcome.curve == whole[i].curve
            assert outcome.num_timesteps == whole[i].num_timesteps == 2 * 288


def test_the_lower_part_leaves(traces):
    plan = plan_of(nine_updates(), ("lr", "gamma"), COMBINATIONS, (0,))
    outcomes = Trainer(Rungs(3, 2), 6).train(plan, silent)
    for rung, staying in ((0, 3), (1, 2)):
        there = [x for x in outcomes if len(x.scores) > rung]
        stayed = [x.scores[rung] for x in there if len(x.scores) > rung + 1]
        left = [x.scores[rung] for x in there if len(x.scores) == rung + 1]
        assert len(stayed) == staying
        assert min(stayed) >= max(left)
    # 9 updates of 32 steps: a quarter, a half, the whole.
    steps = {len(x.scores): x.num_timesteps for x in outcomes}
    assert steps == {1: 3 * 32, 2: 5 * 32, 3: 9 * 32}


def test_nobody_leaves_without_a_score(traces):
    """Episodes end from the sixth step on, that is after the first rung."""
    still = {"action_processor": lambda x: 0.0 * x, "num_envs": 4, "update_every": 4}
    base = config(push_env(), total_timesteps=8 * 16, **still)
    plan = plan_of(base, ("lr",), [{"lr": 0.1}, {"lr": 0.2}], (0,))
    outcomes = Trainer(Rungs(4, 2), 2).train(plan, silent)
    assert [math.isnan(x.scores[0]) for x in outcomes] == [True, True]
    assert sorted(len(x.scores) for x in outcomes)[-1] == 4


def test_each_static_combination_is_compiled_once(traces):
    """Two programs: the first state, and chunks; for each of two sizes, over three batches."""
    space = {**SPACE, "num_envs": [4, 8]}
    result = purerl.tune(nine_updates(), space, **OPTIONS)
    winner = 1  # the sweep that measures it
    assert len(traces) == 2 * 2 + winner
    assert set(result.table["num_envs"]) == {4, 8}


def test_evaluations_are_the_score_where_there_are_some(traces):
    base = config(eval_every=1, eval_max_episodes=2, total_timesteps=96)
    options = {"trials": 4, "batch": 4, "seeds": 2, "fresh_seeds": 2, "rungs": 1}
    result = purerl.tune(base, {"lr": [0.3, 1.0, 0.1, 0.5]}, **options)
    lrs = sorted(set(result.table["lr"]))
    swept = purerl.sweep(base, seeds=2, grid={"lr": lrs})
    means = swept.table["eval_return"].reshape(-1, 2).mean(axis=1)
    for trial in result.trials:
        assert trial.score == pytest.approx(means[lrs.index(trial.values["lr"])], rel=1e-4)
    assert result.by == "eval_return"
    np.testing.assert_array_equal(result.best.returns, result.measured.table["eval_return"])


def test_environments_of_the_host_are_searched_one_by_one(traces):
    base = config("gymnasium/CartPole-v1", num_envs=2, total_timesteps=160)
    space = {"lr": LogUniform(1e-4, 1e-2)}
    result = purerl.tune(base, space, trials=2, batch=2, seeds=2, fresh_seeds=1)
    assert list(result.table["rungs"]) == [1, 1]
    with pytest.raises(purerl.ConfigError, match=r"rungs: got 2, expected 1: .* on the host"):
        purerl.tune(base, space, rungs=2)


@pytest.fixture(scope="module")
def uninterrupted(compile_once):
    return search()


@pytest.fixture(scope="module")
def searched(compile_once, tmp_path_factory):
    """The folder of a search that is finished."""
    folder = tmp_path_factory.mktemp("searched") / "search"
    search(folder)
    return folder


def test_what_the_winner_ends_at_is_measured_apart(uninterrupted):
    best, measured = uninterrupted.best, uninterrupted.measured
    complete = [x for x in uninterrupted.trials if x.complete]
    assert best.score == max(x.score for x in complete)
    assert best.values == next(x.values for x in complete if x.score == best.score)
    np.testing.assert_array_equal(measured.table["seed"], [2, 3, 4])  # trials have 0 and 1
    np.testing.assert_array_equal(best.returns, measured.table["final_return"])
    assert best.mean == pytest.approx(best.returns.mean())
    assert best.low <= best.mean <= best.high
    assert best.config.agent.lr == best.values["lr"]
    text = str(uninterrupted)
    ends = f"{best.mean:.1f} [{best.low:.1f}, {best.high:.1f}]"
    assert f"chosen by {best.score:.1f}; with 3 fresh seeds it ends at {ends}" in text
    assert best._replace(low=math.nan, high=math.nan).measured == f"{best.mean:.1f} (no interval)"
    assert len(text.splitlines()) <= 12


def test_the_table_is_of_all_trials(uninterrupted, tmp_path):
    table = uninterrupted.table
    # Batches of 6, 6 and 2, of which 2, 2 and 1 are trained to the end.
    assert list(table["rungs"][:6]).count(3) == list(table["rungs"][6:12]).count(3) == 2
    assert list(table["rungs"][12:]).count(3) == 1
    np.testing.assert_array_equal(table["complete"], table["rungs"] == 3)
    assert uninterrupted.num_timesteps == table["num_timesteps"].sum()
    uninterrupted.to_csv(tmp_path / "trials.csv")
    rows = list(csv.DictReader((tmp_path / "trials.csv").read_text().splitlines()))
    assert [float(row["lr"]) for row in rows] == list(table["lr"])
    assert uninterrupted.ranked()[0].number == uninterrupted.best.number


def test_a_later_batch_learns_from_the_ones_before(uninterrupted):
    """The first trials are random with both samplers, the later ones are not."""

    def ask(sampler, seed=0):
        study = Study(read_space(nine_updates(), SPACE), sampler, seed, None, "")
        asked = []
        for start in (0, 6, 12):
            asked += [x["lr"] for x in study.ask(6)]
            told = [x.outcome for x in uninterrupted.trials[start : start + 6]]
            study.tell(told + [Outcome([0.0])] * (6 - len(told)), 3)
        return asked

    trained, random = list(uninterrupted.table["lr"]), ask("random")
    assert ask("tpe")[:14] == trained
    assert random[:6] == trained[:6]
    assert all(one != other for one, other in zip(random[12:], trained[12:], strict=False))
    assert ask("random", seed=1)[:6] != random[:6]


MOMENTS = ("asking", "training", "telling", "measuring")


@pytest.mark.parametrize("moment", mostly_slow(MOMENTS, ("asking", "telling")))
def test_goes_on_from_finished_batches(monkeypatch, uninterrupted, tmp_path, moment):
    """Interrupted in the second batch, or at the end."""
    owner, name, call = {
        "asking": (Study, "ask", 2),
        "training": (Trainer, "train", 2),
        "telling": (optuna.Study, "tell", 9),  # the third trial of the batch
        "measuring": (host_tune, "sweep", 1),
    }[moment]
    called, real = [], getattr(owner, name)

    def die(*args, **options):
        called.append(name)
        if len(called) == call:
            if moment == "asking":
                args[0].study.ask(args[0].space.distributions())
            raise KeyboardInterrupt
        return real(*args, **options)

    monkeypatch.setattr(owner, name, die)
    with pytest.raises(KeyboardInterrupt):
        search(tmp_path)
    monkeypatch.setattr(owner, name, real)
    trained, train = [], Trainer.train

    def counted(self, plan, report):
        trained.append(len(plan.combinations))
        return train(self, plan, report)

    monkeypatch.setattr(Trainer, "train", counted)
    equal_tables(search(tmp_path), uninterrupted)
    assert trained == ([] if moment == "measuring" else [6, 2])
    if moment == "training":  # once more: nothing is left to do
        again = search(tmp_path)
        equal_tables(again, uninterrupted)
        assert (len(trained), again.seconds) == (2, 0.0)


def process(folder, **environment):
    command = [sys.executable, "-m", "kit.searching", str(folder)]
    tests, environment = pathlib.Path(__file__).parent, os.environ | environment
    return subprocess.Popen(command, cwd=tests, env=environment, stdout=subprocess.PIPE, text=True)


def test_killed(uninterrupted, tmp_path):
    """By SIGKILL, in the second batch."""
    with process(tmp_path) as searching:
        for _ in range(2):
            assert searching.stdout.readline() == "batch\n"
        searching.kill()
    assert json.loads((tmp_path / "progress.json").read_text())["batches"] == 1
    equal_tables(search(tmp_path), uninterrupted)


def test_over_two_devices(uninterrupted, tmp_path):
    """To rounding; the first batch, since later ones follow from the scores."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=2"
    with process(tmp_path, XLA_FLAGS=flags.strip()) as searching:
        returns = json.loads(searching.stdout.read().splitlines()[-1])
    for got, trial in zip(returns[:6], uninterrupted.trials, strict=False):
        np.testing.assert_allclose(got, trial.outcome.returns, rtol=1e-4)


def test_optunas_own_tools_read_the_journal(uninterrupted, searched):
    backend = optuna.storages.journal.JournalFileBackend(str(searched / "journal.log"))
    study = optuna.load_study(study_name="purerl", storage=optuna.storages.JournalStorage(backend))
    assert len(study.trials) == 14
    assert study.best_value == uninterrupted.best.score
    assert study.best_trial.number == uninterrupted.best.number


@pytest.mark.parametrize("damage", ["journal", "gone", "progress"])
def test_damaged_files_are_put_aside(uninterrupted, searched, tmp_path, damage):
    shutil.copytree(searched, tmp_path, dirs_exist_ok=True)
    file = tmp_path / ("progress.json" if damage == "progress" else "journal.log")
    if damage == "gone":
        file.unlink()
    else:
        data = file.read_bytes()
        file.write_bytes(data[:50] + bytes([data[50] ^ 1]) + data[51:])
    with pytest.warns(UserWarning, match="put aside, all trials are trained again"):
        equal_tables(search(tmp_path), uninterrupted)
    assert (tmp_path / "progress.json.aside").exists()


def test_another_search_is_not_overwritten(monkeypatch, tmp_path):
    monkeypatch.setattr(host_tune, "_search", lambda *args: None)
    search(tmp_path)
    text = (tmp_path / "tune.json").read_text()
    others = [
        ({"trials": 15}, "trials is 14 there, got 15"),
        ({"sampler": "random"}, "sampler is 'tpe' there, got 'random'"),
        ({"rungs": 1}, "rungs.number is 3 there, got 1"),
    ]
    for changes, message in others:
        with pytest.raises(purerl.ConfigError, match=f"holds another search: {message}"):
            search(tmp_path, **changes)
    with pytest.raises(purerl.ConfigError, match=r"space.lr.high is 3.0 there, got 2.0"):
        purerl.tune(nine_updates(), {**SPACE, "lr": LogUniform(1e-3, 2.0)}, **OPTIONS,
                    run_dir=tmp_path)  # fmt: skip
    assert (tmp_path / "tune.json").read_text() == text
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("precious")
    with pytest.raises(purerl.ConfigError, match="no search's folder"):
        search(tmp_path / "other")


def test_two_processes_do_not_share_a_folder(monkeypatch, tmp_path):
    def inside(*args):
        with pytest.raises(purerl.RunError, match="another process"):
            search(tmp_path)
        return "searched"

    monkeypatch.setattr(host_tune, "_search", inside)
    assert search(tmp_path) == "searched"


BAD = [
    ({"space": {"learnin_rate": [1, 2]}}, "space: .* field 'learnin_rate'; did you mean 'lr'"),
    ({"space": {"lr": 1e-3}}, r"space\['lr'\]: got 0.001, expected a sequence of values"),
    ({"space": {"lr": LogUniform}}, r"space\['lr'\]: got .*expected purerl.Uniform\(a, b\)"),
    ({"space": {}}, "space: got {}, expected a mapping"),
    ({"space": {"gamma": Uniform(0.9, 1.5)}}, "PPO.gamma: got 1.5, expected a float >= 0.0 and"),
    ({"space": {"lr": [1e-3, -1.0]}}, "PPO.lr: got -1.0, expected a float >= 0"),
    ({"space": {"num_envs": [4, 0]}}, "TrainConfig.num_envs: got 0, expected an integer >= 1"),
    (
        {"space": {"num_envs": Uniform(4, 8)}},
        r"space\['num_envs'\]: got uniform\(4.0, 8.0\), but each value of this field is compiled",
    ),
    ({"space": {"K_epochs": LogUniform(1, 8)}}, r"expected a few: purerl.Choice\(...\)"),
    ({"space": {"lr": [1], "learning_rate": [1]}}, "'lr' and 'learning_rate'"),
    (
        {"space": {"eval_every": [None, 2]}},
        r"space\['eval_every'\]: got .*, expected it in the config, one value for all trials",
    ),
    ({"space": {"max_episodes": [5, None]}}, r"space\['max_episodes'\]: got .* in the config"),
    ({"space": {"timesteps": [64, 96]}}, r"space\['total_timesteps'\]: got .* in the config"),
    ({"trials": 0}, "trials: got 0, expected an integer >= 1"),
    ({"batch": 2.5}, "batch: got 2.5, expected an integer >= 1"),
    ({"rungs": 0}, "rungs: got 0, expected an integer >= 1"),
    ({"reduction": 1}, "reduction: got 1, expected an integer >= 2"),
    ({"sampler": "tpa"}, "sampler: got 'tpa'; did you mean 'tpe'"),
    ({"seed": -1}, "seed: got -1, expected an integer 0 <= s"),
    ({"seeds": 0}, "^seeds: got 0, expected an integer >= 1"),
    ({"fresh_seeds": 0}, "^fresh_seeds: got 0, expected an integer >= 1"),
    ({"fresh_seeds": [1, 7]}, "fresh_seeds: got 1, expected seeds that no trial has"),
    ({"verbose": 1}, "verbose: got 1"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "message"), BAD)
def test_mistakes_are_told_before_anything_is_compiled(monkeypatch, options, message):
    monkeypatch.setattr(rungs, "Program", None)
    base = config(agent=purerl.PPO(hidden=(8,)))
    options = {"space": {"lr": [0.1]}, **options}
    with pytest.raises(purerl.ConfigError, match=message):
        purerl.tune(base, **options)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(purerl.ConfigError, match=r"pip install 'purerl\[tune\]'"):
        search()


def test_an_agent_of_yours_needs_a_space():
    with pytest.raises(purerl.ConfigError, match="space: missing, Tiny has no usual one"):
        purerl.tune(config())


class Picky(Tiny):
    """With two fields that may not fit each other."""

    def check(self):
        super().check()
        if self.repeats == 2 and not self.flip:
            raise purerl.ConfigError("Picky.repeats: got 2, expected 1 without flip")


def test_combinations_that_do_not_fit_count_as_worst(traces):
    """They are said, never trained, and the search goes on."""
    space = {"repeats": [1, 2], "lr": [0.1]}
    base = config(agent=Picky(), total_timesteps=32)
    result = purerl.tune(base, space, trials=4, batch=4, seeds=1, fresh_seeds=1, rungs=1)
    for trial in result.trials:
        fits = trial.values["repeats"] == 1
        assert trial.complete == fits
        assert ("expected 1 without flip" in trial.outcome.misfit) != fits
    assert {x.values["repeats"] for x in result.trials} == {1, 2}
    assert "not trained, such as: Picky.repeats: got 2" in str(result)
    with pytest.raises(purerl.ConfigError, match="space: no combination can be trained, such as"):
        purerl.tune(base, {"repeats": [2]})


def test_no_episode_ended(traces, tmp_path):
    still = {"action_processor": lambda x: 0.0 * x, "update_every": 4, "total_timesteps": 16}
    options = {"trials": 2, "seeds": 1, "fresh_seeds": 1, "run_dir": tmp_path}
    result = purerl.tune(config(push_env(), **still), {"lr": [0.1, 0.2]}, **options)
    assert result.best is None
    assert "no winner" in str(result)
    assert not (tmp_path / "best.toml").exists()
    with pytest.raises(purerl.RunError, match="search without a best agent"):
        purerl.read_run(tmp_path)
    with pytest.raises(purerl.ConfigError, match="no trial has a score"):
        purerl.plot_tune(result)


def test_optunas_form_of_a_space():
    options = [True, 1, None, "mlp", 1.0, (64, 64), Tiny]
    draws = {"a": Choice(options), "b": LogUniform(1e-4, 1e-2), "c": Uniform(0.5, 1.0)}
    space = Space(draws)
    found = space.distributions()
    for i, word in enumerate(found["a"].choices):
        back = space.values({"a": word, "b": 1e-3, "c": 0.75})
        assert back["a"] is space.draws["a"].options[i]
        assert back == {"a": options[i], "b": 1e-3, "c": 0.75}
    assert (found["b"].low, found["b"].high, found["b"].log) == (1e-4, 1e-2, True)
    assert (found["c"].low, found["c"].high, found["c"].log) == (0.5, 1.0, False)


@pytest.mark.parametrize("agent", list(purerl.AGENTS))
def test_usual_spaces_fit_their_agents(agent):
    """All static options together, and the bounds of floats."""
    env = "Pendulum-v1" if agent in ("sac", "ddpg", "td3") else "CartPole-v1"
    base = purerl.TrainConfig(env, purerl.AGENTS[agent](), total_timesteps=20_000)
    space = read_space(base, None)
    assert tuple(SPACES[agent]) == space.names
    lows = {n: x.options[0] if isinstance(x, Choice) else x.low for n, x in space.draws.items()}
    highs = {n: x.options[-1] if isinstance(x, Choice) else x.high for n, x in space.draws.items()}
    plan = plan_of(base, space.names, [lows, highs], (0,))
    assert len(plan.groups) <= 2


def test_the_winner_is_a_preset(monkeypatch, tmp_path):
    """The file has what differs from the defaults, and gives the config back."""
    base = purerl.TrainConfig(
        {"name": "CartPole-v1", "gravity": 5.0},
        purerl.PPO(lr=3e-4, hidden=(8,), network="mlp"),
        rewarder=purerl.Scale(0.5),
        total_timesteps=96,
        num_envs=4,
    )
    trial = Trial(0, {"lr": 1e-3, "K_epochs": 2}, True, Outcome([5.0], [5.0]))
    space = {"lr": LogUniform(1e-4, 1e-2), "K_epochs": Choice((2, 4))}

    class Measured:
        table = {"final_return": np.array([3.0, 5.0])}  # noqa: RUF012

    result = TuneResult(base, space, (trial,), Measured(), {}, "final_return", 1)
    file = tmp_path / "best.toml"
    file.write_text(result.preset())
    for read in (purerl.preset(file), purerl.preset(str(file), "ppo")):
        assert describe(read) == describe(result.best.config)
    assert purerl.preset(file, num_envs=8).num_envs == 8
    assert "gamma" not in result.preset()
    assert "# 4.0 [" in result.preset()
    assert "2 fresh seeds, chosen by 5.0 of 1 trial" in result.preset()
    with pytest.raises(purerl.ConfigError, match="none for any environment with dqn; it has Cart"):
        purerl.preset(file, "dqn")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no presets"),
        ("x = [", "is no TOML file"),
        ("num_envs = 3", "is no preset file: expected tables"),
        ('["A".pppo]', "no agent 'pppo'; did you mean 'ppo'"),
        ('["A".ppo]\n["B".ppo]', "2 presets for any environment with any agent; it has A with ppo"),
        ('["here:Env".ppo]', "which is code; give it too"),
    ],
)
def test_wrong_preset_files(tmp_path, text, message):
    file = tmp_path / "best.toml"
    file.write_text(text)
    with pytest.raises(purerl.ConfigError, match=message):
        purerl.preset(file)


def test_the_picture(uninterrupted, tmp_path):
    figure = purerl.plot_tune(uninterrupted, tmp_path / "tune.png")
    assert (tmp_path / "tune.png").stat().st_size > 10_000
    panels = [axes for part in figure.subfigs for axes in part.axes]
    assert [axes.get_xlabel() for axes in panels[2:]] == list(uninterrupted.importance)
    lines = panels[1].get_lines()
    x, y = uninterrupted.ranked()[0].outcome.curve
    np.testing.assert_array_equal(lines[0].get_xydata(), np.transpose([x, y]))


LINE = (
    "tune CartPole-v1 --no-preset --num-envs 4 --update-every 16 --total-timesteps 512 --hidden 4 "
    "--k-epochs 1 --trials 3 --batch 3 --seeds 1 --fresh-seeds 2 --rungs 1"
)


@pytest.mark.slow
def test_the_command(command):
    code, out, err = command(*LINE.split(), "--space", "lr=log_uniform(1e-4, 1e-2)",
                             "--space", "gamma=0.9,0.99", "--run-dir", "found")  # fmt: skip
    assert (code, err) == (0, "")
    assert "purerl train --preset found/best.toml" in out
    assert pathlib.Path("found/tune.png").exists()
    code, out, _ = command("eval", "found", "--episodes", 2)
    assert (code, "found: the best of the search, lr=" in out) == (0, True)
    code, _, err = command("resume", "found")
    assert (code, "purerl tune continues it" in err) == (1, True)


def config_of(*argv):
    parser = Parser()
    parser.add_argument("env", nargs="?")
    add_config_flags(parser, argv)
    return config_from(parser.parse(list(argv)))[0]


def test_a_preset_file_on_the_command_line(tmp_path):
    file = str(tmp_path / "best.toml")
    text = '["Pendulum-v1".ddpg]\nn_envs = 4\nenv = {g = 9.0}\nagent = {tau = 0.5, lr = 0.1}\n'
    pathlib.Path(file).write_text(text)
    config = config_of("--preset", file, "--lr", "0.2", "--env.m", "2.0")
    assert (config.num_envs, config.agent) == (4, purerl.DDPG(tau=0.5, lr=0.2))
    assert config.to_mapping()["env"] == {"name": "Pendulum-v1", "g": 9.0, "m": 2.0}
    assert config_of("Pendulum-v1", "--agent", "ddpg", "--preset", file).agent.lr == 0.1
    for argv, message in (
        (("Acrobot-v1",), "none for Acrobot-v1 with any agent; it has Pendulum-v1 with ddpg"),
        (("--agent", "ppo"), "none for any environment with ppo; it has Pendulum-v1 with ddpg"),
        (("--no-preset",), "--preset: expected without --config and --no-preset"),
    ):
        with pytest.raises(purerl.ConfigError, match=message):
            config_of(*argv, "--preset", file)
    pathlib.Path(file).write_text('["here:Env".ppo]\n')
    with pytest.raises(purerl.ConfigError, match="expected here:Env on the command line as well"):
        config_of("--preset", file)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--space", "learnin_rate=1,2"], "did you mean 'lr'"),
        (["--space", "lr"], "--space: got 'lr', expected FIELD=..."),
        (["--space", "lr=loguniform(1,2)"], "--space: lr: no 'loguniform'; did you mean 'log_unif"),
        (["--trials", "0"], "--trials: got 0, expected an integer >= 1"),
        (["--sampler", "tpa"], "did you mean 'tpe'"),
    ],
)
def test_mistakes_on_the_command_line(command, words, message):
    code, _, err = command(*LINE.split(), *words)
    assert (code, message in err) == (2, True), err
    assert not pathlib.Path("runs").exists() or not list(pathlib.Path("runs").iterdir())


@pytest.mark.release
@pytest.mark.timeout(1800)
def test_finds_a_learning_rate():
    """From one that learns nothing; with fresh seeds."""
    base = purerl.TrainConfig("CartPole-v1", purerl.PPO(lr=1e-6), 100_000)
    space = {"lr": LogUniform(1e-6, 1.0)}
    result = purerl.tune(base, space, trials=24, batch=8, seeds=2, fresh_seeds=8)
    assert 3e-4 < result.best.values["lr"] < 3e-2
    assert result.best.mean > 400
