import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kit.agents import Tiny
from kit.environments import push_env, target_env
from kit.quick import mostly_slow, quick_jit
from kit.sweeps import LRS, config
from kit.trees import assert_close, assert_equal

import purerl
from purerl import sweep
from purerl.accelerator import members
from purerl.accelerator.machine import free_memory, num_cores
from purerl.records.files import read_arrays, write_arrays
from purerl.runs.status import status_of
from purerl.sweeps import slices
from purerl.sweeps import sweep as host_sweep
from purerl.sweeps.plan import configure, make_plan
from purerl.training.train import final_return


@pytest.mark.parametrize(
    ("agent", "lrs"),
    [
        pytest.param(Tiny(), LRS, id="tiny"),
        pytest.param(purerl.PPO(hidden=(8,)), [1e-3, 1e-2], id="ppo", marks=pytest.mark.slow),
    ],
)
def test_a_member_is_what_it_is_alone(traces, agent, lrs):
    """To rounding, as under `vmap`: 1e-4 after 3 updates (48 gradient steps of PPO)."""
    base = config(agent=agent)
    result = sweep(base, seeds=[3, 0, 7], grid={"lr": lrs, "gamma": [0.5, 0.99]}, slice_size=5)
    assert len(traces) == 1
    alone = quick_jit(purerl.make_train(base))
    for i in (0, 4, 11):
        row = {name: column[i] for name, column in result.table.items()}
        hyperparams = {"lr": row["lr"], "gamma": row["gamma"]}
        one = alone(jax.random.key(int(row["seed"])), hyperparams)
        one = one.replace(state=one.state._replace(buffer=None))
        member = result.member(i)
        assert_close(member.state, one.state)
        assert_close(member.metrics, one.metrics, 1e-3)
        obs = jnp.ones((2, 1))
        np.testing.assert_allclose(member.policy(obs), one.policy(obs), rtol=1e-4, atol=1e-4)
        own = result.config(i)
        assert (own.agent.lr, own.agent.gamma) == (row["lr"], row["gamma"])
    np.testing.assert_array_equal(result.table["seed"], [3, 0, 7] * 4)
    np.testing.assert_array_equal(result.table["lr"], np.repeat(lrs, 6))
    np.testing.assert_array_equal(result.table["gamma"], np.tile(np.repeat([0.5, 0.99], 3), 2))


def test_slices_change_nothing(traces):
    """Bit for bit on one program's slices; padding is never seen."""
    whole = sweep(config(), seeds=7, grid={"lr": LRS}, slice_size=4)
    assert whole.effort.slices == 4  # of 4, 4, 4 and 2
    part = sweep(config(), seeds=range(5, 7), grid={"lr": LRS[1:]}, slice_size=4)
    for name in ("final_return", "num_timesteps"):
        np.testing.assert_array_equal(whole.table[name][-2:], part.table[name])
    assert_close(whole.member(-1).state, part.member(1).state, 1e-6)
    assert whole.metrics.episode_return.shape == (14, 3)
    one_slice = sweep(config(), seeds=7, grid={"lr": LRS}, slice_size=14)
    assert one_slice.effort.slices == 1
    assert_close(one_slice.metrics, whole.metrics)


def test_static_fields_are_looped_over(traces):
    grid = {"lr": LRS, "num_envs": [4, 8], "repeats": [1, 2]}
    result = sweep(config(total_timesteps=32), seeds=2, grid=grid)
    assert len(traces) == len(result.groups) == 4
    assert "4 programs, one after the other, since num_envs, repeats can't be mapped over" in str(
        result
    )
    np.testing.assert_array_equal(result.table["num_envs"], [4, 4, 4, 4, 8, 8, 8, 8] * 2)
    np.testing.assert_array_equal(result.table["num_timesteps"], ([32] * 4 + [64] * 4) * 2)
    # One update each, so that they can be put together.
    assert result.metrics.num_episodes.shape == (16, 1)
    np.testing.assert_array_equal(result.metrics.num_episodes[:, 0], result.table["num_timesteps"])
    member = result.member(13)
    assert member.state.rollout.length.shape == (8,)
    alone = quick_jit(purerl.make_train(result.config(13)))(jax.random.key(1))
    assert_close(member.metrics, alone.metrics, 1e-3)


def test_none_among_floats_is_a_program_of_its_own(traces):
    result = sweep(config(total_timesteps=32), grid={"bias": [None, 0.01, 0.02]})
    assert [len(group.group.members) for group in result.groups] == [1, 2]
    assert list(result.table["bias"]) == [None, 0.01, 0.02]


def test_groups_of_different_lengths(traces):
    result = sweep(config(), grid={"total_timesteps": [32, 64]})
    with pytest.raises(ValueError, match="differ in their numbers of updates"):
        _ = result.metrics
    assert [group.metrics.num_episodes.shape for group in result.groups] == [(1, 1), (1, 2)]
    np.testing.assert_array_equal(result.table["num_timesteps"], [32, 64])


def test_random_search(traces):
    samples = {
        "lr": purerl.LogUniform(1e-4, 1e-2),
        "gamma": purerl.Uniform(0.9, 0.99),
        "flip": purerl.Choice([True, False]),
    }
    options = {"samples": samples, "num_samples": 4, "key": jax.random.key(5)}
    result = sweep(config(total_timesteps=32), seeds=2, **options)
    assert set(result.table) >= {"lr", "gamma", "flip", "seed"}
    assert len(result.table["lr"]) == 8
    assert len(set(result.table["lr"])) == 4
    best = result.best()
    assert best.hyperparams == {n: result.table[n][best.member] for n in samples}
    scores = result.table["final_return"].reshape(4, 2)
    row = scores.mean(axis=1).argmax()
    assert best.mean == pytest.approx(scores[row].mean())
    assert best.std == pytest.approx(abs(scores[row, 0] - scores[row, 1]) / 2**0.5)
    assert best.member == 2 * row + scores[row].argmax()
    assert best.output.policy(jnp.zeros((3, 1))).shape == (3, 1)


def test_what_is_drawn():
    samples = {"lr": purerl.LogUniform(1e-4, 1e-2), "gamma": purerl.Uniform(0.9, 0.99)}

    def draw(samples, count, seed=0):
        plan = make_plan(config(), 1, None, samples, count, jax.random.key(seed))
        return {name: [x[name] for x in plan.combinations] for name in plan.names}

    many = draw(samples, 400)
    # More of them begin with the fewer, and another name beside changes nothing.
    assert draw(samples, 3)["lr"] == many["lr"][:3]
    assert draw({"lr": samples["lr"]}, 400)["lr"] == many["lr"]
    assert draw(samples, 400, 1)["lr"] != many["lr"]
    lr, gamma = np.log10(many["lr"]), np.array(many["gamma"])
    assert lr.min() >= -4
    assert lr.max() <= -2
    # Means of 400 uniform draws lie within 4 standard errors, 4 / sqrt(12 * 400) = 0.058 widths.
    assert abs(lr.mean() + 3) < 0.058 * 2
    assert abs(gamma.mean() - 0.945) < 0.058 * 0.09
    assert abs(np.corrcoef(lr, gamma)[0, 1]) < 0.2
    chosen = draw({"repeats": purerl.Choice([1, 2])}, 400)["repeats"]
    assert 150 < chosen.count(1) < 250


def test_samples_beside_a_grid():
    plan = make_plan(
        config(), 2, {"lr": LRS}, {"gamma": purerl.Uniform(0.9, 0.99)}, 3, jax.random.key(0)
    )
    assert len(plan.combinations) == 6
    assert plan.num_members == 12
    assert [x["lr"] for x in plan.combinations] == LRS * 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"grid": {"learnin_rate": [1e-3]}}, "has a field 'learnin_rate'; did you mean 'lr'"),
        ({"grid": {"num_env": [1, 2]}}, "neither TrainConfig nor PPO.*did you mean 'num_envs'"),
        ({"grid": {"lr": [1e-3, -1.0]}}, r"PPO.lr: got -1.0, expected a float >= 0"),
        ({"grid": {"lr": [1e-3, "fast"]}}, "PPO.lr: got 'fast'"),
        ({"grid": {"lr": []}}, r"grid\['lr'\]: got no values"),
        ({"grid": {"lr": 1e-3}}, r"grid\['lr'\]: got 0.001, expected a sequence"),
        ({"grid": {"network": "mlp"}}, "got 'mlp', expected a sequence"),
        ({"grid": {"network": ["mlp", "cmn"]}}, "PPO.network: got 'cmn'.*did you mean 'cnn'"),
        ({"grid": {"lr": np.ones((2, 2))}}, r"an array of shape \(2, 2\)"),
        ({"grid": {"num_envs": [4, 0]}}, "TrainConfig.num_envs: got 0, expected an integer >= 1"),
        ({"grid": {"batch_size": [8, 7]}}, "PPO.batch_size: got 7, expected a divisor of 32"),
        ({"grid": [1e-3]}, "grid: got .*expected a mapping"),
        ({"seeds": 0}, "seeds: got 0, expected an integer >= 1"),
        ({"seeds": []}, "seeds: got no values"),
        ({"seeds": [1, 1]}, "seeds: some are there twice"),
        ({"seeds": [0, -1]}, "seeds: got -1"),
        ({"seeds": [0.5]}, "seeds: got 0.5"),
        (
            {"samples": {"lr": [1, 2]}, "num_samples": 2},
            r"samples\['lr'\].*expected a distribution",
        ),
        ({"samples": {"lr": purerl.Uniform(0, 1)}}, "num_samples: got None"),
        ({"samples": {}, "num_samples": 2}, "samples: got {}"),
        ({"num_samples": 2}, "expected samples as well"),
        (
            {"samples": {"gamma": purerl.Uniform(1.5, 2)}, "num_samples": 1},
            "PPO.gamma: got 1.*expected a float >= 0.0 and <= 1.0",
        ),
        (
            {"samples": {"lr": purerl.Uniform(0, 1)}, "grid": {"lr": [1]}, "num_samples": 1},
            "'lr' is in the grid too",
        ),
        (
            {"samples": {"lr": purerl.Uniform(0, 1)}, "num_samples": 1, "key": 0},
            "key: got 0, expected a typed key",
        ),
        ({"slice_size": 0}, "slice_size: got 0"),
        ({"slice_size": True}, "slice_size: got True"),
    ],
)
def test_mistakes_are_told_before_anything_is_compiled(monkeypatch, options, message):
    monkeypatch.setattr(slices, "compile_group", None)
    monkeypatch.setattr(host_sweep, "compile_group", None)
    with pytest.raises(purerl.ConfigError, match=message):
        sweep(config(agent=purerl.PPO()), **options)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: purerl.Uniform(1, 0),
            r"Uniform: got \(1, 0\), expected finite bounds, low < high",
        ),
        (lambda: purerl.Uniform(0, float("inf")), "expected finite"),
        (lambda: purerl.LogUniform(0, 1), "expected low > 0"),
        (lambda: purerl.Uniform("a", 1), "expected two floats"),
        (lambda: purerl.Choice([]), "Choice: got no values"),
        (lambda: purerl.Choice("mlp"), "expected a sequence"),
    ],
)
def test_wrong_distributions(make, message):
    with pytest.raises(purerl.ConfigError, match=message):
        make()


def test_agents_and_environments_can_be_swept():
    agents = [purerl.PPO(), purerl.REINFORCE()]
    base = purerl.TrainConfig("CartPole-v1")
    plan = make_plan(base, 2, {"agent": agents, "lr": LRS}, None, None, None)
    assert [type(group.config.agent).__name__ for group in plan.groups] == ["PPO", "REINFORCE"]
    assert [sorted(group.hyperparams) for group in plan.groups] == [["lr"]] * 2
    plan = make_plan(base, 2, {"env": ["CartPole-v1", "Acrobot-v1"]}, None, None, None)
    assert plan.groups[1].config.env.spec.name == "Acrobot-v1"
    assert configure(base, {"num_envs": 4, "K_epochs": 2}).agent.K_epochs == 2


def test_final_return_is_of_the_last_tenth():
    """20 updates are planned; the first member runs all, the second is over after 11, of which the
    last two are a tenth, rounded up; in the third no episode ends there."""
    counts = np.ones((3, 20), np.int32)
    returns = np.tile(np.arange(20, dtype=np.float32), (3, 1))
    counts[0, 18] = 3
    counts[1, 11:], returns[1, 11:] = 0, np.nan
    counts[2, 18:], returns[2, 18:] = 0, np.nan
    metrics = purerl.Metrics(returns, *[returns] * 5, counts, {}, counts, None)
    got = final_return(metrics, np.array([20, 11, 20]))
    np.testing.assert_allclose(got, [(3 * 18 + 19) / 4, 9.5, np.nan])


def test_table_csv_and_evaluation(traces, tmp_path):
    base = config(eval_every=2, eval_max_episodes=2)
    result = sweep(base, seeds=2, grid={"lr": LRS}, run_dir=tmp_path / "run")
    for i in range(4):  # the only evaluation is the best one
        assert result.member(i).best_return == result.table["eval_return"][i]
    best = json.loads((tmp_path / "run" / "best" / "summary.json").read_text())["best_evaluation"]
    rows = result.table["eval_return"].reshape(2, 2)
    assert best["by_seed"] in rows.tolist()
    assert best["timesteps"] == [64, 64]
    assert (tmp_path / "run" / "best" / "policies" / "best-seed-1.policy").is_file()
    last = result.metrics.eval.episode_return[:, 1]  # the third update has no evaluation
    np.testing.assert_array_equal(result.table["eval_return"], last)
    assert result.best("eval_return").mean == pytest.approx(last.reshape(2, 2).mean(1).max())
    with pytest.raises(purerl.ConfigError, match="expected one of 'final_return', 'eval_return'"):
        result.best("lr")
    result.to_csv(tmp_path / "sweep.csv")
    rows = list(csv.DictReader((tmp_path / "sweep.csv").read_text().splitlines()))
    assert list(rows[0]) == list(result.table)
    assert [float(row["lr"]) for row in rows] == list(result.table["lr"])
    assert [float(row["final_return"]) for row in rows] == list(result.table["final_return"])
    text = str(result)
    assert "2 combinations x 2 seeds" in text
    assert "eval" in text
    assert len(text.splitlines()) == 6
    with pytest.raises(IndexError, match="member 4 of 4"):
        result.member(4)


def test_curves_of_all_members_are_one_table(traces, tmp_path):
    """Also of members that measure different things, over different numbers of updates."""
    agents = [Tiny(), Tiny(repeats=2)]
    grid = {"agent": agents, "update_every": [8, 12]}
    result = sweep(config(log=lambda step: {"speed": step.reward}), seeds=2, grid=grid)
    table = result.metrics_table()
    assert {len(column) for column in table.values()} == {4 * 3 + 4 * 2}
    np.testing.assert_array_equal(np.bincount(table["member"]), [3, 3, 2, 2, 3, 3, 2, 2])
    third = table["member"] == 2
    np.testing.assert_array_equal(table["update_every"][third], [12, 12])
    np.testing.assert_array_equal(table["timesteps"][third], [48, 96])
    own = result.member(2).metrics
    np.testing.assert_array_equal(table["episode_return"][third], own.episode_return)
    np.testing.assert_array_equal(table["log/speed"][third], own.log["speed"])
    result.write_metrics(tmp_path / "curves.csv")
    rows = list(csv.DictReader((tmp_path / "curves.csv").read_text().splitlines()))
    assert list(rows[0]) == list(table)
    assert [float(row["loss"]) for row in rows] == pytest.approx(table["loss"].tolist())
    with pytest.raises(purerl.ConfigError, match=r"ends in \.csv or \.parquet"):
        result.write_metrics(tmp_path / "curves.txt")
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    result.write_metrics(tmp_path / "curves.parquet")
    read = pandas.read_parquet(tmp_path / "curves.parquet")
    np.testing.assert_array_equal(read["log/speed"], table["log/speed"])


@pytest.fixture
def named(monkeypatch):
    """A config whose parts have names, so that a folder has all of it."""
    monkeypatch.setitem(purerl.AGENTS, "tiny", Tiny)
    purerl.register("target", target_env)
    return config(purerl.make("target"))


def test_a_folder_is_read_back(named, traces, tmp_path):
    options = {"seeds": 2, "grid": {"lr": LRS, "gamma": [0.5, 0.9]}, "slice_size": 3}
    result = sweep(named, **options, run_dir=tmp_path)
    read = purerl.load_sweep(tmp_path)
    assert read.trained.all()
    assert_equal(read.metrics, result.metrics)
    assert_equal(read.member(5).state, result.member(5).state)
    assert read.config(5).agent == result.config(5).agent
    # While it trains, or with a slice that is damaged, there are the others; nothing is changed.
    first, second, _ = sorted(tmp_path.glob("*.npz"))
    first.write_bytes(b"")
    second.unlink()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    with pytest.warns(UserWarning, match="its members are left out"):
        part = purerl.load_sweep(tmp_path)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    assert part.trained.tolist() == [False] * 6 + [True] * 2
    assert np.isnan(part.table["final_return"]).tolist() == [True] * 6 + [False] * 2
    assert part.best().member in (6, 7)
    assert_equal(part.member(7).state, result.member(7).state)
    assert set(part.metrics_table()["member"]) == {6, 7}
    with pytest.raises(purerl.MemberError, match="member 0 isn't trained yet"):
        part.member(0)


def test_what_a_folder_does_not_have_is_told(named, traces, tmp_path):
    sweep(named.replace(action_processor=jnp.zeros_like), run_dir=tmp_path)
    with pytest.raises(purerl.RunError, match=r"config.action_processor is .* there, got None"):
        purerl.load_sweep(tmp_path)
    with pytest.raises(purerl.RunError, match=r"it has no sweep\.json"):
        purerl.load_sweep(tmp_path / "best")


def test_a_folder_of_an_earlier_version_goes_on(traces, tmp_path, monkeypatch):
    """Whose description lacks an option that was added since, with its default."""
    known = host_sweep.describe_sweep

    def earlier(plan, keep_buffer):
        about = known(plan, keep_buffer)
        return {**about, "config": {n: x for n, x in about["config"].items() if n != "log"}}

    monkeypatch.setattr(host_sweep, "describe_sweep", earlier)
    sweep(config(), seeds=2, run_dir=tmp_path)
    monkeypatch.setattr(host_sweep, "describe_sweep", known)
    assert sweep(config(), seeds=2, run_dir=tmp_path).effort.slices == 0


def test_two_processes_do_not_train_in_one_folder(tmp_path, monkeypatch):
    refused = []
    real = host_sweep.Job.train

    def train(job, results):
        with pytest.raises(purerl.RunError, match="another process is training in"):
            sweep(config(), seeds=2, run_dir=tmp_path)
        refused.append(status_of(tmp_path).state)
        monkeypatch.undo()
        return real(job, results)

    monkeypatch.setattr(host_sweep.Job, "train", train)
    sweep(config(), seeds=2, run_dir=tmp_path)
    assert refused == ["running"]  # as `purerl ls` says
    assert status_of(tmp_path).state == "finished"


def test_a_sweep_that_another_process_finished_meanwhile_is_not_trained_again(
    tmp_path, monkeypatch
):
    real = host_sweep.locked

    def locked(file):
        monkeypatch.undo()
        sweep(config(), seeds=2, run_dir=tmp_path)  # between loading and the lock
        return real(file)

    monkeypatch.setattr(host_sweep, "locked", locked)
    assert sweep(config(), seeds=2, run_dir=tmp_path).effort.slices == 0


def test_nothing_ended(traces):
    still = {"action_processor": jnp.zeros_like, "update_every": 4, "total_timesteps": 16}
    result = sweep(config(push_env(), **still))
    assert np.isnan(result.table["final_return"]).all()
    assert "-" in str(result)
    with pytest.raises(purerl.ConfigError, match="no episode ended, train for longer"):
        result.best()


def test_buffers_stay_behind_unless_asked_for(traces):
    base = config(total_timesteps=64)
    kept = sweep(base, seeds=2, keep_buffer=True)
    assert kept.member(1).state.buffer.data["obs"].shape[0] > 0
    dropped = sweep(base, seeds=2)
    assert dropped.member(1).state.buffer is None
    assert_close(kept.member(1).state._replace(buffer=None), dropped.member(1).state)


def test_slices_fit_the_memory(traces, monkeypatch):
    monkeypatch.setattr(slices, "MEMBERS_PER_CORE", 8)
    monkeypatch.setattr(members, "programs_at_once", lambda: 1)
    group = make_plan(config(), 8, None, None, None, None).groups[0]
    roomy = slices.compile_group(group, 8, None, False)
    assert roomy.compiled == 1
    assert roomy.memory == roomy.call.memory > 0
    # With room for little more than half of that, fewer members are trained at once.
    monkeypatch.setattr(slices, "free_memory", lambda: 0.6 * roomy.memory)
    tight = slices.compile_group(group, 8, None, False)
    assert tight.memory <= 0.6 * roomy.memory
    assert 1 <= tight.slice_size < roomy.slice_size
    assert tight.compiled == 2
    # What a user asks for stands.
    assert slices.compile_group(group, 8, 8, False).slice_size == 8
    assert 2**20 < free_memory() < 2**50


def files(folder):
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*.npz")}


def test_goes_on_from_what_is_there(traces, tmp_path, monkeypatch):
    options = {"seeds": 3, "grid": {"lr": LRS}, "slice_size": 2, "run_dir": tmp_path}
    whole = sweep(config(), **{**options, "run_dir": None})
    saved, calls = host_sweep.Store.save, []

    def die(*args):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        saved(*args)

    monkeypatch.setattr(host_sweep.Store, "save", die)
    with pytest.raises(KeyboardInterrupt):
        sweep(config(), **options)
    monkeypatch.setattr(host_sweep.Store, "save", saved)
    before = files(tmp_path)
    assert len(before) == 2
    # Slices may be of another size by then.
    result = sweep(config(), **{**options, "slice_size": 1})
    assert result.effort.slices == 2
    assert {name: files(tmp_path)[name] for name in before} == before
    assert_close(result.metrics, whole.metrics)
    assert_close(result.member(5).state, whole.member(5).state)
    # Once more: nothing is left to do.
    programs = len(traces)
    again = sweep(config(), **options)
    assert again.effort.slices == 0
    assert len(traces) == programs
    assert_equal(again.metrics, result.metrics)


DAMAGES = ("truncate", "empty", "garbage", "flip", "wrong shape", "place")


@pytest.mark.parametrize("damage", mostly_slow(DAMAGES, ("truncate", "flip", "place")))
def test_a_damaged_slice_is_put_aside_and_trained_anew(traces, tmp_path, damage):
    options = {"seeds": 4, "slice_size": 2, "run_dir": tmp_path}
    whole = sweep(config(), **options)
    file = sorted(tmp_path.glob("*.npz"))[0]
    content = file.read_bytes()
    if damage == "wrong shape":
        about, arrays = read_arrays(file)
        with file.open("wb") as opened:
            write_arrays(opened, about, {**arrays, "leaf_000": arrays["leaf_000"][:1]})
    elif damage == "place":  # the same slice of another sweep
        sweep(config(agent=Tiny(lr=0.5)), **{**options, "run_dir": tmp_path / "other"})
        shutil.copy(tmp_path / "other" / file.name, file)
    else:
        at = content.index(b"leaf_000") + 180  # in its data
        flipped = content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :]
        other = {"truncate": content[:-200], "empty": b"", "flip": flipped}
        file.write_bytes(other.get(damage, b"x" * 1000))
    damaged = file.read_bytes()
    with pytest.warns(UserWarning, match=rf"{file.name} can't be used .* are trained again"):
        result = sweep(config(), **options)
    assert file.with_name(f"{file.name}.aside").read_bytes() == damaged
    assert result.effort.slices == 1
    assert_close(result.metrics, whole.metrics, 0)


def test_a_slice_of_another_group_does_not_pass(traces, tmp_path):
    """Slices of two groups whose members' shapes are alike, in each other's place."""
    options = {"grid": {"rewarder": [purerl.Scale(1.0), purerl.Scale(3.0)]}, "run_dir": tmp_path}
    whole = sweep(config(), **options)
    one, other = sorted(tmp_path.glob("*.npz"))
    contents = one.read_bytes(), other.read_bytes()
    one.write_bytes(contents[1])
    other.write_bytes(contents[0])
    with pytest.warns(UserWarning, match=r"in another's place: group is \d there, got \d"):
        again = sweep(config(), **options)
    assert_close(again.metrics, whole.metrics, 0)
    assert_close(again.member(1).state, whole.member(1).state, 0)


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"num_envs": 8}, {}, "config.num_envs is 4 there, got 8"),
        ({"agent": Tiny(gamma=0.9)}, {}, "config.agent.gamma is 0.99 there, got 0.9"),
        ({}, {"seeds": 3}, r"seeds is \[0, 1\] there, got \[0, 1, 2\]"),
        ({}, {"grid": {"lr": [1e-3]}}, r"names is \[\] there, got \['lr'\]"),
        ({}, {"keep_buffer": True}, "keep_buffer is False there, got True"),
        ({"action_processor": jnp.tanh}, {}, "config.action_processor is None there, got .*tanh"),
    ],
)
def test_another_sweep_is_not_overwritten(tmp_path, changes, options, message, monkeypatch):
    monkeypatch.setattr(host_sweep.Job, "train", lambda self, results: None)
    base = {"seeds": 2, "run_dir": tmp_path}
    sweep(config(), **base)
    text = (tmp_path / "sweep.json").read_text()
    with pytest.raises(purerl.ConfigError, match=message):
        sweep(config(**changes), **{**base, **options})
    assert (tmp_path / "sweep.json").read_text() == text
    assert json.loads(text)["versions"]["jax"] == jax.__version__


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(purerl.ConfigError, match="no sweep's folder"):
        sweep(config(), run_dir=tmp_path)
    (tmp_path / "sweep.json").write_text("{")
    with pytest.raises(purerl.ConfigError, match="can't be read"):
        sweep(config(), run_dir=tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def test_progress_is_quiet_where_nobody_watches(traces, capsys):
    sweep(config(total_timesteps=32), seeds=2, slice_size=1)
    assert capsys.readouterr() == ("", "")
    sweep(config(total_timesteps=32), seeds=2, slice_size=1, verbose=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert "1 of 2 agents" in err
    assert "2 of 2 agents" in err


SCRIPT = """
import sys
import threading
sys.path.insert(0, sys.argv[2])
import purerl
from kit.sweeps import config

if __name__ == "__main__":
    purerl.sweep(config(**{long}), run_dir=sys.argv[1], {options})
"""
LONG = {"num_envs": 64, "update_every": 64, "total_timesteps": 4_000_000}


@pytest.mark.slow
def test_killed_and_gone_on_with(tmp_path):
    """By SIGKILL after the first slice."""
    script = SCRIPT.replace("{long}", str(LONG)).replace("{options}", "seeds=6, slice_size=2")
    run_dir, tests = tmp_path / "run", os.path.dirname(__file__)
    process = subprocess.Popen([sys.executable, "-c", script, str(run_dir), tests])
    try:
        deadline = time.monotonic() + 250
        while not files(run_dir):
            assert process.poll() is None, "it was over before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    before = files(run_dir)
    assert 1 <= len(before) < 3
    result = sweep(config(**LONG), seeds=6, slice_size=2, run_dir=run_dir)
    assert {name: files(run_dir)[name] for name in before} == before
    assert result.effort.slices == 3 - len(before)
    whole = sweep(config(**LONG), seeds=6, slice_size=2)
    np.testing.assert_array_equal(result.table["num_timesteps"], whole.table["num_timesteps"])
    for x, y in zip(result.table.values(), whole.table.values(), strict=True):
        np.testing.assert_array_equal(x, y)


def run_python(code, **environ):
    folder = os.path.dirname(__file__)
    env = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    return subprocess.run(
        [
            sys.executable,
            "-W",
            "error",
            "-c",
            f"import sys; sys.path.append({folder!r})\n{code}",
        ],
        capture_output=True,
        text=True,
        timeout=280,
        env={**env, **environ},
    )


@pytest.mark.slow
def test_several_devices_train_the_same(traces):
    code = """
import purerl, numpy as np
purerl.use_all_cores()
from kit.sweeps import LRS, config
result = purerl.sweep(config(), seeds=5, grid={"lr": LRS}, slice_size=6)
print(result.effort.parts, result.effort.slices)
print(*result.metrics.episode_return.reshape(-1).tolist())
"""
    expected = sweep(config(), seeds=5, grid={"lr": LRS}).metrics.episode_return
    done = run_python(code)
    assert done.returncode == 0, done.stderr
    counts, returns = done.stdout.splitlines()
    size = -(-5 // num_cores())  # of a part
    assert counts.split() == [str(-(-5 // size)), "2"]
    np.testing.assert_allclose(
        np.array(returns.split(), float).reshape(10, 3), expected, rtol=1e-4, atol=1e-4
    )


def test_use_all_cores_comes_first():
    code = """
import purerl
purerl.TrainConfig("CartPole-v1")
purerl.use_all_cores()
"""
    done = run_python(code)
    assert "ConfigError: use_all_cores: JAX has started already" in done.stderr
    flags = "--xla_force_host_platform_device_count=3"
    done = run_python(
        "import purerl, jax; purerl.use_all_cores(); print(jax.device_count())", XLA_FLAGS=flags
    )
    assert done.stdout.strip() == "3"
