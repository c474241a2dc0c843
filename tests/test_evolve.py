"""Population-based training: who is replaced by what, and that nothing else changes."""

import csv
import dataclasses
import json
import os
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kit.agents import Tiny
from kit.environments import walk
from kit.populations import FORTY, FOUR, OPTIONS, PUSH, SPACE, check_copies, evolve
from kit.quick import quick_jit, quick_programs
from kit.sweeps import config
from kit.trees import assert_close, assert_equal, data

import purerl
from purerl.accelerator import members
from purerl.accelerator.members import Layout
from purerl.accelerator.transfer import is_key
from purerl.records.files import unsealed
from purerl.sweeps import evolve as evolving
from purerl.sweeps.evolution import EvolveResult, History
from purerl.sweeps.population import draw, fitness_of, num_replaced, perturb, read_space, select


@pytest.fixture(scope="module")
def grown():
    """A population, trained once for all tests that look at it."""
    with quick_programs():
        return evolve()


@pytest.fixture
def cores(monkeypatch):
    """Sets the number of programs at a time. Before JAX 0.11 they run one after the other."""
    if jax.__version_info__ < (0, 11):
        monkeypatch.setattr(members, "in_threads", lambda calls: [call() for call in calls])
    return lambda number: monkeypatch.setattr(members, "programs_at_once", lambda: number)


@pytest.mark.parametrize("num_cores", [1, 2, 3])
def test_copies_are_those_of_a_loop(num_cores, cores, monkeypatch):
    monkeypatch.setattr(members, "jit", quick_jit)
    cores(num_cores)
    check_copies(Layout.of(7))


def test_copies_need_memory_for_themselves_only(cores, monkeypatch):
    """And are compiled once, for any members."""
    compiled = []

    def jit(fn, **options):
        jitted = quick_jit(fn, **options)
        compiled.append(jitted)
        return jitted

    monkeypatch.setattr(members, "jit", jit)
    cores(1)
    layout, big = Layout.of(8), 10_000
    parts = [{"x": jnp.zeros((8, big)), "y": jnp.zeros((8, big))}]
    for source in ([0, 0, 2, 3, 4, 5, 6, 7], [0, 1, 2, 3, 7, 7, 6, 7]):
        parts = layout.copy(parts, np.array(source), 2)
    (program,) = compiled
    assert program._cache_size() == 1
    one = [jax.ShapeDtypeStruct((8, big), jnp.float32)]
    at = jax.ShapeDtypeStruct((2,), np.int32)
    sizes = program.lower([one], at, at).compile().memory_analysis()
    assert sizes.alias_size_in_bytes == 8 * big * 4
    assert sizes.temp_size_in_bytes < 5 * big * 4  # two members, read and written


def test_without_selection_each_member_is_what_it_is_alone(traces):
    base = config(**FOUR)
    result = evolve(base, fraction=0.0)
    assert len(traces) == 2  # the first state and an interval
    assert (result.history.parents == np.arange(6)).all()
    keys = jax.random.split(OPTIONS["key"], 6)
    swept = purerl.sweep(base, samples=SPACE, num_samples=6, key=OPTIONS["key"])
    alone = quick_jit(purerl.make_train(base))
    for i in range(6):
        values = {name: x[0, i] for name, x in result.history.values.items()}
        assert values == {name: np.float32(swept.table[name][i]) for name in SPACE}
        one = alone(keys[i], values)
        member = result.member(i)
        assert_close(member.state, one.state._replace(buffer=None))
        assert_close(member.metrics, one.metrics, 1e-3)
        assert float(member.agent.lr) == pytest.approx(values["lr"])
    for x in result.history.values.values():
        np.testing.assert_array_equal(x, np.tile(x[0], (4, 1)))


def test_the_population_is_that_of_a_plain_loop(traces):
    """Members trained one by one, and copied by numpy; keys stay where they are."""
    base = config(**PUSH)
    result = evolve(base)
    assert len(traces) == 3  # the first state, an interval, and copies: whatever the values
    history, keys = result.history, jax.random.split(OPTIONS["key"], 6)
    assert (history.parents[1:] != np.arange(6)).any()
    start = quick_jit(lambda key, values: base.make_loop(values).start(key))
    step = quick_jit(lambda values, state, i: base.make_loop(values).step(state, i))
    values = [{n: x[0, i] for n, x in history.values.items()} for i in range(6)]
    states = [start(key, value) for key, value in zip(keys, values, strict=True)]
    rows = [[] for _ in range(6)]
    for i in range(4):
        if i:
            before = states
            for place, origin in enumerate(history.parents[i]):
                copy = jax.tree.map(
                    lambda own, other: own if is_key(own) else other, before[place], before[origin]
                )
                states = [*states[:place], copy, *states[place + 1 :]]
            values = [{n: x[i, j] for n, x in history.values.items()} for j in range(6)]
        for place in range(6):
            for update in (2 * i, 2 * i + 1):
                states[place], row = step(values[place], states[place], jnp.int32(update))
                rows[place].append(row)
    for place in range(6):
        assert_close(result.member(place).state, states[place]._replace(buffer=None), 1e-3)
        whole = jax.tree.map(lambda *xs: np.stack(xs), *rows[place])
        assert_close(result.member(place).metrics, whole, 1e-3)


def test_copies_go_on_with_keys_of_their_own(grown):
    result = grown
    replaced = result.history.parents != np.arange(6)
    assert replaced.sum() >= 3
    for name in ("key", "eval_key"):
        keys = data(getattr(result.output.state, name))
        assert len(np.unique(keys, axis=0)) == 6
    # Right after a copy the two have equal networks, and draw other actions: their returns differ.
    interval, place = np.argwhere(replaced)[0]
    returns = result.metrics.episode_return[:, 2 * interval]
    assert returns[place] != returns[result.history.parents[interval, place]]


def test_lineage_and_schedule_follow_the_parents(grown):
    result = grown
    history, table = result.history, result.table
    size = len(table["interval"])
    assert size == 24
    for i in range(1, 4):
        for place, origin in enumerate(history.parents[i]):
            if place == origin:
                continue
            assert history.fitness[i - 1, origin] > history.fitness[i - 1, place]
            for name, x in history.values.items():
                # A multiple, unless it was drawn anew, and always inside.
                assert np.float32(SPACE[name].low) <= x[i, place] <= np.float32(SPACE[name].high)
    row = {name: column[9] for name, column in table.items()}
    assert (row["interval"], row["member"], row["start"], row["stop"]) == (1, 3, 64, 128)
    assert row["lr"] == history.values["lr"][1, 3]
    assert row["fitness"] == history.fitness[1, 3]
    assert row["parent"] == history.parents[1, 3]
    for place in range(6):
        line = result.lineage(place)
        assert line[-1] == place
        for i in range(1, 4):
            assert line[i - 1] == history.parents[i, line[i]]
        schedule = result.schedule(place)
        np.testing.assert_array_equal(schedule["member"], line)
        np.testing.assert_array_equal(schedule["lr"], history.values["lr"][np.arange(4), line])
        own = result.lineage_metrics(place).episode_return
        slots = result.metrics.episode_return
        want = np.concatenate([slots[line[i], 2 * i : 2 * i + 2] for i in range(4)])
        np.testing.assert_array_equal(own, want)
        final = {name: float(x[-1, place]) for name, x in history.values.items()}
        agent = result.config(place).agent
        assert {"lr": agent.lr, "gamma": agent.gamma} == final
    best = result.best()
    assert best.fitness == history.fitness[-1].max() == history.fitness[-1, best.member]
    assert best.output.policy(jnp.zeros((3, 1))).shape == (3, 1)
    np.testing.assert_array_equal(best.schedule["lr"], result.schedule()["lr"])


def test_the_same_key_gives_the_same_population(grown, traces):
    backwards = dict(reversed(SPACE.items()))
    other = evolve(space=backwards)
    assert list(other.history.values) == list(backwards)
    assert_equal(grown.output, other.output)
    assert_equal(grown.history, other.history)
    assert not np.array_equal(
        draw(SPACE, jax.random.key(4), 6)["lr"], grown.history.values["lr"][0]
    )


def test_intervals_are_whole_rows_and_the_last_is_longer(traces):
    base = config(total_timesteps=32 * 11, log_every=2)
    result = evolve(base, interval=70)  # three updates, of rows of two
    np.testing.assert_array_equal(result.steps, [0, 128, 352])
    assert result.metrics.num_episodes.shape == (6, 6)
    with pytest.raises(purerl.ConfigError, match="warmup: got 300, which come to 448 steps"):
        evolve(base, interval=70, warmup=300)
    loop = base.make_loop()
    assert evolving._bounds(loop, 64, 150) == (0, 6, 8, 11)
    assert evolving._bounds(loop, 64, 32) == (0, 2, 4, 6, 8, 11)
    assert result.history.fitness.shape == (2, 6)
    np.testing.assert_array_equal(result.member(0).state.num_updates, 11)


def test_chunks_change_nothing(grown, traces, monkeypatch):
    """An interval whose metrics don't fit a chunk is trained in several."""
    whole = grown
    monkeypatch.setattr("purerl.runs.chunks.CHUNK_BYTES", 1)
    parts = evolve()
    np.testing.assert_array_equal(parts.history.parents, whole.history.parents)
    assert_close(parts.output, whole.output)  # it is another program


def test_a_member_does_not_depend_on_the_layout(cores, monkeypatch):
    monkeypatch.setattr(members, "jit", quick_jit)
    outputs = []
    for number in (1, 2, 4):  # 4: parts of two, in three
        cores(number)
        outputs.append(evolve())
    for other in outputs[1:]:
        np.testing.assert_array_equal(other.history.parents, outputs[0].history.parents)
        assert_close(other.history, outputs[0].history, 1e-4)
        assert_close(other.output, outputs[0].output, 1e-3)


@pytest.mark.slow
def test_over_devices(tmp_path, quick_programs):
    """Five members over three devices, of 2, 2 and 1, in another process; resumed here."""
    code = """
import numpy as np
from kit.populations import check_copies, evolve
from purerl.accelerator.members import Layout
layout = Layout.of(7)
assert layout.on_devices and layout.num_parts == 3
check_copies(layout)
result = evolve(population=5, run_dir=sys.argv[1])
np.save(sys.argv[1] + ".npy", result.history.parents)
"""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=3"
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path += {sys.path!r}\n{code}", tmp_path / "run"],
        env={**os.environ, "XLA_FLAGS": flags},
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.returncode == 0, done.stderr
    here = evolve(population=5)
    np.testing.assert_array_equal(np.load(tmp_path / "run.npy"), here.history.parents)
    there = evolve(population=5, run_dir=tmp_path / "run")
    assert there.effort.seconds == 0  # it was finished
    assert_close(there.history, here.history, 1e-4)
    assert_close(there.output, here.output, 1e-3)


def test_selection():
    rng = np.random.default_rng(0)
    fitness = np.array([5.0, 1.0, np.nan, 7.0, 3.0, 2.0, 9.0, 4.0])
    seen = set()
    for _ in range(50):
        source = select(fitness, 0.25, rng)
        changed = np.flatnonzero(source != np.arange(8))
        assert changed.tolist() == [1, 5]  # the two worst
        seen |= set(source[changed].tolist())
    assert seen == {3, 6}  # of the two best
    for other, fraction in (
        (fitness, 0.0),
        (np.full(8, np.nan), 0.25),
        (np.full(8, 3.0), 0.5),  # none is better than another
        (np.array([np.nan, 1.0]), 0.5),
    ):
        np.testing.assert_array_equal(select(other, fraction, rng), np.arange(len(other)))
    inf = np.inf  # one that diverged is replaced, and never copied
    source = select(np.array([np.nan, -inf, 2.0, -inf]), 0.5, rng)
    np.testing.assert_array_equal(source, [0, 2, 2, 3])
    np.testing.assert_array_equal(select(np.array([-inf, -inf, 1.0]), 0.25, rng), [2, 1, 2])
    np.testing.assert_array_equal(select(np.full(4, -inf), 0.5, rng), np.arange(4))
    few = select(np.array([1.0, np.nan, 2.0, np.nan]), 0.5, rng)
    np.testing.assert_array_equal(few, [2, 1, 2, 3])
    assert [num_replaced(n, f) for n, f in ((16, 0.25), (3, 0.25), (10, 0.3), (5, 0))] == [
        4,
        1,
        3,
        0,
    ]


def test_perturbed_values_stay_inside():
    space = {"lr": purerl.LogUniform(1e-3, 1e-2), "x": purerl.Uniform(-1.0, 2.0)}
    rng, source = np.random.default_rng(0), np.arange(100) // 2 * 2
    rngs = dict.fromkeys(space, rng)
    copies = source != np.arange(100)
    values = draw(space, jax.random.key(0), 100)
    scaled = 0
    for resample in (0.0, 0.5, 1.0):
        for _ in range(20):
            options = {"factors": (0.5, 3.0), "resample": resample}
            new = perturb(values, space, source, rngs, **options)
            for name, x in new.items():
                low, high = (np.float32(b) for b in (space[name].low, space[name].high))
                assert x.dtype == np.float32
                assert ((x >= low) & (x <= high)).all()
                np.testing.assert_array_equal(x[~copies], values[name][~copies])
                old = values[name][source]
                kinds = [np.clip(old * np.float32(f), low, high) for f in (0.5, 3.0)]
                multiple = np.any([x == kind for kind in kinds], axis=0)[copies]
                assert multiple.all() or resample > 0
                scaled += multiple.mean() if resample == 0.5 else 0
            values = new
    assert 0.4 < scaled / 40 < 0.7  # some drawn anew are at a bound too


def test_fitness_counts_each_episode_once():
    counts = np.array([[1, 3], [0, 0]])
    returns = np.array([[2.0, 6.0], [np.nan, np.nan]], np.float32)
    for skipped, without in ((0, np.nan), (1, -np.inf)):
        flawed = np.full((2, 2), skipped)
        metrics = purerl.Metrics(returns, *[returns] * 5, counts, {}, flawed, None)
        np.testing.assert_array_equal(fitness_of(metrics), np.array([5.0, without], np.float32))


class Bursting(Tiny):
    """Its numbers aren't finite with large learning rates."""

    def update(self, state, experience, key, clock):
        state, experience, losses = Tiny.update(self, state, experience, key, clock)
        return {**state, "w": jnp.where(self.lr > 0.3, jnp.nan, state["w"])}, experience, losses


def test_who_is_frozen_is_replaced(traces, tmp_path):
    """By `stop_if_nonfinite`, in the first update; and never the best, whatever it returned."""
    base = config(agent=Bursting(), stop_if_nonfinite=True, **FOUR)
    result = evolve(base, fraction=0.5, resample=0.0)
    lrs, (fitness, *later) = result.history.values["lr"], result.history.fitness
    burst = lrs[0] > 0.3
    assert 0 < burst.sum() <= 3
    np.testing.assert_array_equal(np.isneginf(fitness), burst)
    assert (~burst[result.history.parents[1]]).all()
    for values, found in zip(lrs[1:], later, strict=True):
        np.testing.assert_array_equal(np.isneginf(found), values > 0.3)
    assert np.isfinite(result.best().fitness)
    purerl.plot_evolution(result, tmp_path / "evolution.png")


def test_fitness_is_that_of_evaluations_where_there_are_any(traces, capsys):
    result = evolve(config(**PUSH), verbose=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert "evolve: training, 3 of 4 intervals" in err
    last = result.metrics.eval.episode_return[:, 1::2]  # every second update
    np.testing.assert_array_equal(result.history.fitness, last.T)
    assert "evaluation return" in str(result)


def test_environments_evolve_too():
    space = read_space(
        purerl.TrainConfig("CartPole-v1", purerl.DQN()),
        {"env.gravity": purerl.Uniform(5, 15), "learning_rate": purerl.LogUniform(1e-4, 1e-2)},
    )
    assert list(space) == ["env.gravity", "lr"]
    with_part = read_space(config(), {"agent.lr": purerl.Uniform(0.1, 0.2)})
    assert list(with_part) == ["lr"]


class StopError(Exception):
    pass


def stop_after(number, monkeypatch):
    """Training ends with an error after a number of checkpoints."""
    save, calls = evolving._Population._save, []

    def saved(self):
        save(self)
        calls.append(self.done)
        if len(calls) == number:
            self.folder.wait()
            raise StopError

    monkeypatch.setattr(evolving._Population, "_save", saved)
    return calls


@pytest.mark.parametrize("number", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_resumed_is_uninterrupted(traces, tmp_path, monkeypatch, number):
    options = {"run_dir": tmp_path / "run", "checkpoint_every": 0.0}
    base = config(**PUSH)
    whole = evolve(base)  # all from the cache but for the first
    with monkeypatch.context() as patch:
        calls = stop_after(number, patch)
        with pytest.raises(StopError):
            evolve(base, **options)
        assert calls == list(range(1, number + 1))
    programs = len(traces)
    result = evolve(base, **options)
    assert len(traces) <= programs + 2
    assert_equal(result.history, whole.history)
    assert_equal(result.output, whole.output)
    again = evolve(base, **options)
    assert_equal(again.history, whole.history)
    assert_equal(again.output, whole.output)
    with open(tmp_path / "run" / "schedules.csv") as file:
        rows = list(csv.DictReader(file))
    assert [np.float32(row["lr"]) for row in rows] == result.table["lr"].tolist()
    curves = purerl.read_run(tmp_path / "run")
    best = result.best()
    np.testing.assert_allclose(curves.returns[0], best.output.metrics.episode_return, rtol=1e-6)
    name = f"seed-{best.member}.policy"
    policy = purerl.load_policy(tmp_path / "run" / "best" / "policies" / name, agent=Tiny())
    obs = jnp.ones((2, 1))
    np.testing.assert_array_equal(policy(obs), best.output.policy(obs))


def test_a_damaged_checkpoint_is_put_aside(grown, traces, tmp_path):
    options = {"run_dir": tmp_path / "run", "checkpoint_every": 0.0}
    whole = evolve(**options)
    assert_equal(whole.history, grown.history)
    newest = max((tmp_path / "run" / "checkpoints").iterdir(), key=lambda path: int(path.name))
    (newest / "about" / "host-0.json").write_text("{}")
    with pytest.warns(UserWarning, match="put aside, training starts from that of update 6"):
        again = evolve(**options)
    assert_equal(again.history, whole.history)
    assert_equal(again.output, whole.output)


@pytest.mark.parametrize(
    ("base", "options", "message"),
    [
        ({"agent": Tiny(bias=0.5)}, {}, "config.agent.bias is None there, got 0.5"),
        ({"total_timesteps": 512}, {}, "config.total_timesteps is 256 there, got 512"),
        ({}, {"population": 8}, "population is 6 there, got 8"),
        ({}, {"interval": 32}, r"bounds is \[0, 2, 4, 6, 8\] there, got \[0, 1, 2"),
        ({}, {"key": jax.random.key(4)}, r"key is \[0, 3\] there, got \[0, 4\]"),
        ({}, {"factors": (0.5, 2.0)}, r"factors is \[0.8, 1.25\] there, got \[0.5, 2.0\]"),
        ({}, {"space": {"lr": purerl.Uniform(0, 1)}}, "space.lr is 'log_uniform.*got 'uniform"),
    ],
)
def test_another_population_is_not_overwritten(tmp_path, monkeypatch, base, options, message):
    monkeypatch.setattr(evolving, "_Population", None)
    with pytest.raises(TypeError):
        evolve(run_dir=tmp_path)
    text = (tmp_path / "evolve.json").read_text()
    with pytest.raises(purerl.ConfigError, match=message):
        evolve(config(**{**FOUR, **base}), run_dir=tmp_path, **options)
    assert (tmp_path / "evolve.json").read_text() == text
    assert unsealed(text)["versions"]["jax"] == jax.__version__


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(purerl.ConfigError, match="is no population's folder: it has"):
        evolve(run_dir=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


LR = {"lr": purerl.LogUniform(1e-4, 1e-2)}
MISTAKES = [
    ({"space": {}}, {}, "space: got {}, expected a mapping"),
    ({"space": ["lr"]}, {}, "space: got .*expected a mapping"),
    ({"space": {"learnin_rate": 1}}, {}, "space: neither .* 'learnin_rate'; did you mean 'lr'"),
    ({"space": {"lr": purerl.Choice([1, 2])}}, {}, r"space\['lr'\]: got Choice.*with bounds"),
    ({"space": {"lr": (1e-4, 1e-2)}}, {}, r"space\['lr'\]: got \(0.0001, 0.01\)"),
    ({"space": {"lr": purerl.Uniform(-1, 1)}}, {}, "PPO.lr: got -1.0, expected a float >= 0"),
    ({"space": {"gamma": purerl.Uniform(0.9, 2)}}, {}, "PPO.gamma: got 2.0"),
    ({"space": {"K_epochs": purerl.Uniform(1, 4)}}, {}, "PPO.K_epochs is static, it fixes the pro"),
    ({"space": {"num_envs": purerl.Uniform(1, 4)}}, {}, "TrainConfig.num_envs is static"),
    ({"space": {"noise.sigma": purerl.Uniform(0, 1)}}, {}, "the run has no noise"),
    ({"space": {**LR, "agent.lr": purerl.Uniform(0, 1)}}, {}, "are the same field"),
    ({"space": {"env.gravity": purerl.Uniform(0, 1)}}, {}, "target has no parameters"),
    ({"population": 1}, {}, "population: got 1, expected an integer >= 2"),
    ({"interval": 0}, {}, "interval: got 0"),
    ({"interval": 150}, {}, "interval: got 150, .* 320 steps .* the run's 256: no member"),
    ({"warmup": -1}, {}, "warmup: got -1"),
    ({"fraction": 0.6}, {}, "fraction: got 0.6, expected a number >= 0 and <= 0.5"),
    ({"fraction": True}, {}, "fraction: got True"),
    ({"resample": -1}, {}, "resample: got -1"),
    ({"factors": ()}, {}, r"factors: got \(\)"),
    ({"factors": (0.8, 0)}, {}, r"factors: got \(0.8, 0\), expected numbers > 0"),
    ({"factors": 1.2}, {}, "factors: got 1.2"),
    ({"key": 0}, {}, "key: got 0, expected a typed key"),
    ({"checkpoint_every": -1}, {}, "checkpoint_every: got -1"),
    ({"verbose": 1}, {}, "verbose: got 1"),
    ({}, {"max_episodes": 5}, "max_episodes: got 5, expected None"),
    ({}, {"stop_at_return": 5.0}, "stop_at_return: got 5.0, expected None"),
    ({}, {"eval_every": 4}, "eval_every: got 4 updates, expected at most the 2 of an interval"),
    ({"run_dir": ""}, {}, "run_dir: got ''"),
]


@pytest.mark.parametrize(("options", "changes", "message"), MISTAKES)
def test_mistakes_are_told_before_anything_is_compiled(monkeypatch, options, changes, message):
    monkeypatch.setattr(evolving, "_Population", None)
    base = config(agent=purerl.PPO(), **{**FOUR, **changes})
    with pytest.raises(purerl.ConfigError, match=message):
        evolve(base, options.pop("space", LR), **options)


def test_no_devices_of_one_agent_and_nothing_on_the_host(monkeypatch):
    monkeypatch.setattr(evolving, "_Population", None)
    base = config(**FOUR)
    object.__setattr__(base, "num_devices", 2)
    with pytest.raises(purerl.ConfigError, match="num_devices: a population lays whole members"):
        evolve(base)


def test_nothing_ended(traces, tmp_path):
    base = config(walk(1000), purerl.PPO(hidden=(4,)), **FOUR)
    result = evolve(base, LR, population=3, run_dir=tmp_path / "run")
    assert np.isnan(result.table["fitness"]).all()
    assert (result.history.parents == np.arange(3)).all()
    assert "no episode ended" in str(result)
    assert not (tmp_path / "run" / "best").exists()
    for call in (result.best, result.schedule, lambda: purerl.plot_evolution(result)):
        with pytest.raises(purerl.ConfigError, match="no member has a fitness"):
            call()


def test_the_overview_has_the_lengths_of_intervals(grown):
    history = grown.history
    first = {name: x[:2] for name, x in history.values.items()}
    history = History(first, history.fitness[:2], history.parents[:2])
    evolution = dataclasses.replace(grown.evolution, bounds=(0, 2, 8))
    text = str(EvolveResult(evolution, history, grown.output, grown.effort))
    assert text.startswith("Tiny on target: 6 members, 2 intervals of 64 to 192 steps; ")


def test_overview_and_picture(grown, tmp_path):
    result = grown
    text = str(result)
    assert text.startswith("Tiny on target: 6 members, 4 intervals of 64 steps; ")
    assert "1,536 environment steps in all" in text
    assert len(text.splitlines()) <= 10
    assert repr(result) == "EvolveResult(6 members x 4 intervals)"
    figure = purerl.plot_evolution(result, tmp_path / "evolution.png")
    assert (tmp_path / "evolution.png").read_bytes().startswith(b"\x89PNG")
    panels = figure.axes[:3]
    best = result.best()
    # The lineage's line in each panel of values, and a segment for each member and interval.
    for axes, name in zip(panels[1:], SPACE, strict=True):
        (line,) = axes.lines
        np.testing.assert_array_equal(line.get_ydata()[:-1], best.schedule[name])
        (segments,) = axes.collections
        assert len(segments.get_segments()) == 24
        assert axes.get_yscale() == ("log" if name == "lr" else "linear")
    assert len(panels[0].lines) == 7
    with pytest.raises(purerl.ConfigError, match="result: got 3"):
        purerl.plot_evolution(3)
    with pytest.raises(purerl.MemberError, match="member 6 of 6"):
        result.lineage(6)


@pytest.mark.slow
def test_killed_and_resumed(tmp_path, quick_programs):
    """By SIGKILL after a few intervals, and again; the end is that of an uninterrupted run."""
    run_dir, reached = tmp_path / "run", []
    argv = [sys.executable, "-m", "kit.populations", str(run_dir)]
    options = {"cwd": os.path.dirname(__file__), "stdout": subprocess.PIPE, "text": True}
    for more in (3, 4):
        with subprocess.Popen(argv, **options) as process:
            reached += [int(process.stdout.readline()) for _ in range(more)]
            time.sleep(0.07)
            process.kill()
    assert max(reached) < 40, "it was over before it could be killed"
    base = config(**FORTY)
    result = evolve(base, run_dir=run_dir)
    assert result.effort.seconds > 0
    whole = evolve(base)
    assert_equal(result.history, whole.history)
    assert_equal(result.output, whole.output)


@pytest.mark.slow
def test_the_command(command):
    argv = (
        *("evolve", "CartPole-v1", "--range", "agent.lr=log_uniform(1e-5,1e-2)"),
        *("--range", "entropy-beta=uniform(0, 0.05)", "--population", 3, "--interval", 1024),
        *("--total-timesteps", 4096, "--update-every", 32, "--hidden", 8, "--run-dir", "grown"),
    )
    code, out, err = command(*argv)
    assert (code, err) == (0, "")
    assert out.startswith("PPO on CartPole-v1: 3 members, 4 intervals of 1,024 steps; ")
    assert "all of it is in grown/" in out
    with open("grown/schedules.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 12
    assert all(1e-5 <= float(row["lr"]) <= 1e-2 for row in rows)
    assert list(rows[0])[4:6] == ["lr", "entropy_beta"]
    for name in ("evolution.png", "best/config.toml", "best/metrics.csv", "best/summary.json"):
        assert os.path.exists(f"grown/{name}"), name
    with open("grown/best/summary.json") as file:
        best = json.load(file)["best"]
    assert best.keys() == {"lr", "entropy_beta"}
    code, out, err = command("eval", "grown", "--episodes", 2)
    assert (code, err) == (0, "")
    assert f"best of the population, lr={best['lr']:.4g} entropy_beta=" in out
    assert command("plot", "grown")[0] == 0
    code, _, err = command("resume", "grown")
    assert (code, "purerl evolve continues it" in err) == (1, True)
    code, out, _ = command(*argv)  # nothing is left to do
    assert (code, "trained in" in out) == (0, False)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("evolve CartPole-v1", "--range: missing, expected what evolves"),
        ("evolve CartPole-v1 --range lr", "--range: got 'lr', expected FIELD=..."),
        ("evolve CartPole-v1 --range lr=0.1", "--range: lr: got '0.1', expected uniform(a, b)"),
        ("evolve CartPole-v1 --range learnin_rate=uniform(0,1)", "did you mean 'lr'"),
        ("evolve CartPole-v1 --range num_envs=uniform(1,8)", "TrainConfig.num_envs is static"),
        ("evolve CartPole-v1 --range lr=choice(1,2)", "expected a distribution with bounds"),
        ("evolve CartPole-v1 --range lr=uniform(0,1) --population 1", "--population: got 1"),
    ],
)
def test_mistakes_on_the_command_line(line, message, command):
    code, out, err = command(*line.split())
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1
    assert not os.path.exists("runs") or not os.listdir("runs")
