"""`fit`: chunked is whole, resumed is uninterrupted, and what can go wrong with files."""

import json
import os
import resource
import shutil
import signal
import socket
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kit.environments import faulty, walk
from kit.folders import contents
from kit.quick import full_jit, mostly_slow, quick_jit, quick_programs
from kit.runs import PRIORITIES, RUNS, small, start, stop_at, updates
from kit.trees import assert_close, assert_equal

import purerl
from purerl.records.files import sealed, unsealed

pytestmark = pytest.mark.usefixtures("compile_once")


def test_fit_is_make_train_bit_for_bit():
    config = small("PPO")
    reports = []
    with quick_programs(full_jit):
        out = purerl.fit(config, callback=reports.append, report_every=0.0)
    assert_equal(out, full_jit(purerl.make_train(config))(jax.random.key(0)))
    assert [r.start for r in reports] == [0, *[r.stop for r in reports[:-1]]]
    assert reports[-1].stop == reports[-1].num_updates == 12
    rows = [r.metrics for r in reports]
    assert_equal(jax.tree.map(lambda *xs: np.concatenate(xs), *rows), out.metrics)


def test_seeds_and_hyperparameters_are_a_vmap_of_make_train():
    config = small()
    lrs = [1e-3, 1e-2]
    out = purerl.fit(config, seeds=[5, 7], hyperparams={"lr": lrs, "gamma": 0.9})
    keys = jnp.stack([jax.random.key(5), jax.random.key(7)])
    values = {"lr": jnp.array(lrs), "gamma": jnp.array([0.9, 0.9])}
    assert_equal(out, quick_jit(jax.vmap(purerl.make_train(config)))(keys, values))
    assert out.member(1).policy(jnp.zeros((3, 1))).shape == (3, 1)
    same = purerl.fit(config, seeds=2, report_every=0.0)
    assert_equal(same.state.key[0], purerl.fit(config).state.key)


# Rollouts, an optimizer of nothing, whole episodes, a replay; the rest differs in the update alone.
ONE_OF_EACH = ("PPO", "REINFORCE, no baseline", "ActorCritic, V", "SAC")


@pytest.mark.parametrize("name", mostly_slow(RUNS, ("DQN",), slow=ONE_OF_EACH))
def test_resumed_is_uninterrupted_bit_for_bit(name, tmp_path):
    config = small(name)
    whole = purerl.fit(config, seeds=2)
    options = {"seeds": 2, "report_every": 0.0, "checkpoint_every": 0.0}
    for update in (5, 9):
        with pytest.raises(purerl.Interrupted, match="the same call again goes on from there"):
            purerl.fit(config, tmp_path, callback=stop_at(update), **options)
    first = []
    out = purerl.fit(config, tmp_path, callback=first.append, **options)
    assert first[0].start == 9
    assert_equal(out, whole)
    # Once more: nothing is left to do, and nothing is done.
    assert_equal(purerl.fit(config, tmp_path, callback=lambda _: 1 / 0, **options), whole)


def test_every_agent_is_among_the_runs():
    assert {type(agent) for _, agent, _ in RUNS.values()} == set(purerl.AGENTS.values())


@pytest.mark.slow
def test_every_checkpoint_that_is_kept_leads_to_the_same_end(tmp_path):
    """They are written while training goes on in the same memory."""
    config = small("DQN", 40)
    options = {"report_every": 0.0, "checkpoint_every": 0.0, "keep": 100}
    slowly = {"callback": lambda _: time.sleep(0.1)}
    whole = purerl.fit(config, tmp_path / "whole", **slowly, **options)
    steps = sorted(int(path.name) for path in (tmp_path / "whole" / "checkpoints").iterdir())
    assert len(steps) >= 4
    for step in steps[:-1:3]:
        shutil.copytree(tmp_path / "whole", tmp_path / str(step))
        for later in steps[steps.index(step) + 1 :]:
            shutil.rmtree(tmp_path / str(step) / "checkpoints" / str(later))
        seen = []
        out = purerl.fit(config, tmp_path / str(step), callback=seen.append, **options)
        assert seen[0].start == step
        assert_equal(out, whole)


def test_only_the_last_checkpoints_are_kept(tmp_path):
    purerl.fit(small(), tmp_path, report_every=0.0, checkpoint_every=0.0, keep=2)
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2


def test_sigterm_saves_too_and_handlers_are_put_back(tmp_path):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match=r"after update 12? of 12"):
        purerl.fit(small(), tmp_path, callback=stop_at(1, signal.SIGTERM), report_every=0.0)
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
    with pytest.raises(purerl.Interrupted, match="nothing is saved"):
        purerl.fit(small(), callback=stop_at(1))


def test_a_second_interrupt_comes_at_once(tmp_path):
    def twice(report):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt) as caught:
        purerl.fit(small(), tmp_path, callback=twice)
    assert caught.type is KeyboardInterrupt


def interrupted(tmp_path, config=None, update=4, **options):
    """A folder with a run that was stopped."""
    options = {"report_every": 0.0, "checkpoint_every": 0.0, **options}
    with pytest.raises(purerl.Interrupted):
        purerl.fit(config or small(), tmp_path, callback=stop_at(update), **options)
    return tmp_path


@pytest.fixture(scope="module")
def stopped(compile_once, tmp_path_factory):
    """The folder of a stopped run, which nothing changes."""
    return interrupted(tmp_path_factory.mktemp("stopped"), small("PPO"))


def test_strategies_for_first_states_are_compared_by_what_they_are(tmp_path):
    """None is the environment's: a run that names it is the same."""
    config = small().replace(resets="fresh")
    with pytest.raises(purerl.Interrupted):
        purerl.fit(config, tmp_path, callback=stop_at(5), report_every=0.0)
    with pytest.raises(purerl.ConfigError, match=r"config.resets is 'fresh' there, got 'spare"):
        purerl.fit(config.replace(resets="spare(2)"), tmp_path)
    assert_equal(purerl.fit(config.replace(resets=None), tmp_path), purerl.fit(config))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"agent": purerl.PPO(lr=0.5)}, r"config.agent.lr is 0.001 there, got 0.5"),
        ({"agent": purerl.PPO(actor=purerl.DefaultActor)}, "config.agent.actor is None there"),
        ({"num_envs": 8}, "config.num_envs is 4 there, got 8"),
        ({"total_timesteps": 640}, "PPO.anneal=True follows the length of the run"),
    ],
)
def test_another_run_is_refused_and_nothing_is_changed(changes, message, stopped):
    before = contents(stopped)
    config = small("PPO").replace(**changes)
    with pytest.raises(purerl.ConfigError, match=message):
        purerl.fit(config, stopped)
    with pytest.raises(purerl.ConfigError, match=r"seeds is None there, got \[0, 1\]"):
        purerl.fit(small("PPO"), stopped, seeds=2)
    with pytest.raises(purerl.ConfigError, match=r"hyperparams.lr is None there, got 0.5"):
        purerl.fit(small("PPO"), stopped, hyperparams={"lr": 0.5})
    with pytest.raises(purerl.ConfigError, match=r"resume: got False, but .* holds a run"):
        purerl.fit(small("PPO"), stopped, resume=False)
    assert contents(stopped) == before


def test_resume_wants_something_to_resume(tmp_path):
    with pytest.raises(purerl.ConfigError, match=r"resume: got True, but .* holds no run"):
        purerl.fit(small(), tmp_path, resume=True)
    with pytest.raises(purerl.ConfigError, match="where there is no run_dir"):
        purerl.fit(small(), resume=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seeds": 0}, "seeds: got 0"),
        ({"seeds": True}, "seeds: got True"),
        ({"seeds": [1, -1]}, "seeds: got -1"),
        ({"seeds": [0.5]}, "seeds: got 0.5"),
        ({"seeds": 2, "hyperparams": {"lr": [1.0, 2.0, 3.0]}}, "one for each of 2 seeds"),
        ({"hyperparams": {"lr": [1.0]}}, "expected a scalar"),
        ({"hyperparams": {"learnin_rate": 1.0}}, "did you mean 'lr'"),
        ({"seeds": 2, "hyperparams": {"lr": [0.1, -1.0]}}, "PPO.lr: got -1.0"),
        ({"keep": 0}, "keep: got 0"),
        ({"checkpoint_every": -1}, "checkpoint_every: got -1"),
        ({"report_every": "2s"}, "report_every: got '2s'"),
    ],
)
def test_bad_arguments(options, message, tmp_path):
    with pytest.raises(purerl.ConfigError, match=message):
        purerl.fit(small("PPO"), tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_a_run_without_schedules_can_be_extended(tmp_path):
    agent = purerl.DQN(batch_size=8, anneal=False, epsilon_steps=50)
    buffer = PRIORITIES.replace(anneal_beta=False)
    short = small("DQN", 12, agent=agent, buffer=buffer)
    long = small("DQN", 20, agent=agent, buffer=buffer)
    purerl.fit(short, tmp_path)
    assert_equal(purerl.fit(long, tmp_path), purerl.fit(long))
    with pytest.raises(purerl.ConfigError, match="has been trained for 160 steps already"):
        purerl.fit(short, tmp_path)
    annealing = small("DQN", 30, agent=agent)
    with pytest.raises(purerl.ConfigError, match=r"buffer.anneal_beta is False there"):
        purerl.fit(annealing, tmp_path)


@pytest.mark.parametrize(
    ("agent", "buffer", "names"),
    [
        (purerl.DQN(), None, ["DQN.anneal=True", "DQN.epsilon_steps=None"]),
        (purerl.DQN(anneal=False, epsilon_steps=9), None, []),
        (purerl.DQN(anneal=False, epsilon_steps=9), PRIORITIES, ["Buffer.anneal_beta=None"]),
        (purerl.PQN(), None, ["PQN.anneal=True", "PQN.epsilon_steps=None"]),
        (purerl.PPO(anneal=False), None, []),
    ],
)
def test_schedules_are_named(agent, buffer, names):
    assert purerl.make_loop(walk(3), agent, buffer, total_timesteps=4096).schedules == names


@pytest.mark.slow
def test_training_starts_from_the_checkpoint_before_a_damaged_one(tmp_path):
    config = small("PPO", 20)  # whose arrays are large enough for files of their own
    whole = purerl.fit(config)
    interrupted(tmp_path, config, 15)
    steps = sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir())
    newest = tmp_path / "checkpoints" / str(steps[-1])
    for file in newest.glob("state/ocdbt.process_0/d/*"):
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    damaged = contents(newest)
    seen = []
    warning = rf"checkpoint .*/{steps[-1]} is damaged .* starts from that of update {steps[-2]}$"
    with pytest.warns(UserWarning, match=warning):
        assert_equal(purerl.fit(config, tmp_path, callback=seen.append), whole)
    assert seen[0].start == steps[-2]
    aside = newest.with_name(f"{newest.name}.aside")  # nothing of it is lost
    assert contents(aside) == damaged
    assert_equal(purerl.fit(config, tmp_path), whole)


def test_where_no_checkpoint_is_good_nothing_is_changed(tmp_path):
    folder = interrupted(tmp_path, update=9)
    for file in folder.glob("checkpoints/*/about/*.json"):
        file.write_bytes(file.read_bytes()[:-9])
    before = contents(folder)
    with pytest.raises(purerl.RunError, match=r"is damaged.*nor do.*nothing was changed: put the"):
        purerl.fit(small(), folder)
    assert contents(folder) == before


def test_a_foreign_checkpoint_is_told(stopped, tmp_path):
    """The same config by every name in it, but another network under one of the names."""
    shutil.copytree(stopped, tmp_path / "a")
    other = small("PPO", agent=purerl.PPO(hidden=(16,)))
    interrupted(tmp_path / "b", other)
    shutil.rmtree(tmp_path / "a" / "checkpoints")
    shutil.copytree(tmp_path / "b" / "checkpoints", tmp_path / "a" / "checkpoints")
    with pytest.raises(purerl.RunError, match=r"another kind of run: agent.*is .*, expected .*64"):
        purerl.fit(small("PPO"), tmp_path / "a")


def test_what_is_no_run_is_told(tmp_path):
    folder = interrupted(tmp_path)
    text = (folder / "run.json").read_text()
    for broken, message in (
        (text.replace('"format": 2', '"format": 99'), "format 99, expected 2"),
        (text.replace('"seeds": null', '"seeds": 7'), "is damaged: .* checksum"),
        (text[:40], "can't be read"),
        ("[]", "format None"),
    ):
        (folder / "run.json").write_text(broken)
        with pytest.raises(purerl.RunError, match=message):
            purerl.fit(small(), folder)
    (folder / "run.json").unlink()
    with pytest.raises(purerl.RunError, match=r"checkpoints but no run.json"):
        purerl.fit(small(), folder)


def test_metrics_that_are_missing_or_damaged_are_told(tmp_path):
    folder = interrupted(tmp_path)
    file = min((folder / "metrics").iterdir())
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(purerl.RunError, match="is damaged"):
        purerl.fit(small(), folder)
    file.unlink()
    with pytest.raises(purerl.RunError, match=r"the updates from 0 to .* are missing"):
        purerl.fit(small(), folder)


def test_metrics_without_their_checkpoint_are_made_again(tmp_path):
    """As a kill leaves them between the two."""
    folder = interrupted(tmp_path)
    newest = max((folder / "checkpoints").iterdir(), key=lambda path: int(path.name))
    shutil.rmtree(newest)
    assert_equal(purerl.fit(small(), folder), purerl.fit(small()))


def test_other_versions_are_told(tmp_path):
    folder = interrupted(tmp_path)
    run = unsealed((folder / "run.json").read_text())
    assert run["versions"]["jax"] == jax.__version__
    run["versions"]["jax"] = "0.1.0"
    (folder / "run.json").write_text(json.dumps(sealed(run)))
    with pytest.warns(UserWarning, match=r"other versions.*'jax': \('0.1.0'"):
        purerl.fit(small(), folder)


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(purerl.RunError, match="can't write into"):
        purerl.fit(small(), tmp_path / "file" / "run")


def test_two_processes_do_not_train_in_one_folder(tmp_path):
    def again(report):
        with pytest.raises(purerl.RunError, match="another process is training in"):
            purerl.fit(small(), tmp_path)

    purerl.fit(small(), tmp_path, callback=again)


def test_a_full_disk_leaves_the_older_checkpoint_good(tmp_path):
    config = small(None, 30)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)

    def saved():
        return any(path.name.isdigit() for path in (tmp_path / "checkpoints").iterdir())

    def fill(report):
        while report.stop >= 10 and not saved():
            time.sleep(0.01)
        if report.stop >= 10:  # no file may grow beyond a few bytes from here on
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, limit[1]))

    options = {"report_every": 0.0, "checkpoint_every": 0.0}
    try:
        with pytest.raises(purerl.RunError, match=r"File too large.*is still good"):
            purerl.fit(config, tmp_path, callback=fill, **options)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    seen = []
    assert_equal(purerl.fit(config, tmp_path, callback=seen.append), purerl.fit(config))
    assert 0 < seen[0].start <= 11


def test_skipped_updates_are_told():
    config = purerl.TrainConfig(
        faulty(walk(3), 0.05), purerl.PPO(), 320, num_envs=4, update_every=8
    )
    with pytest.warns(UserWarning, match=r"updates were skipped \(of each seed: \["):
        out = purerl.fit(config, seeds=2)
    assert out.state.nonfinite_updates.shape == (2,)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", mostly_slow(["PPO", "DQN"], quick=(), slow=["PPO"]))
def test_another_number_of_processes_goes_on_exactly(name, tmp_path):
    """Two processes with a device each, of which one is killed: the other ends too, and one process
    with two devices goes on, to the end that it would have come to by itself."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with (
        start(name, tmp_path / "run", 60, address, 2, 0) as one,
        start(name, tmp_path / "run", 60, address, 2, 1) as other,
    ):
        while not updates(line := other.stdout.readline()) or updates(line)[0] < 20:
            assert line
        other.kill()
        assert one.wait(60) != 0
        assert updates(one.stdout.read())[-1] < 60
    ends = {}
    for folder in ("run", "alone"):
        with start(name, tmp_path / folder, 60, address, 1, 0, num_devices=2) as process:
            output = process.stdout.read()
        ends[folder] = output.splitlines()[-1]
        first = updates(output)[0]
        assert (first == 1) == (folder == "alone")
    assert ends["run"].startswith("end ")
    assert ends["run"] == ends["alone"]


def test_rows_of_several_updates_chunked_resumed_and_extended(tmp_path):
    config = small(num_updates=10, log_every=3)
    reports, keys = [], jnp.stack([jax.random.key(0), jax.random.key(1)])
    whole = purerl.fit(config, seeds=2, callback=reports.append, report_every=0.0)
    assert_close(whole, quick_jit(jax.vmap(purerl.make_train(config)))(keys), 1e-5)
    assert [(r.start, r.stop, r.num_rows) for r in reports] == [
        (0, 3, 1),
        (3, 6, 1),
        (6, 9, 1),
        (9, 10, 1),
    ]
    spent = whole.steps_per_update
    assert whole.timesteps.tolist() == [3 * spent, 6 * spent, 9 * spent, 10 * spent]
    options = {"seeds": 2, "report_every": 0.0, "checkpoint_every": 0.0}
    with pytest.raises(purerl.Interrupted):
        purerl.fit(config, tmp_path / "a", callback=stop_at(4), **options)
    with pytest.raises(
        purerl.ConfigError, match=r"log_every: .* every 3 updates, got 2; say log_e"
    ):
        purerl.fit(config.replace(log_every=2), tmp_path / "a", **options)
    assert_equal(purerl.fit(config, tmp_path / "a", **options), whole)
    curves = purerl.read_run(tmp_path / "a")
    np.testing.assert_array_equal(curves.timesteps, whole.timesteps)
    np.testing.assert_allclose(curves.returns, whole.metrics.episode_return, rtol=1e-6)
    same = purerl.Curves.of("same", whole)
    np.testing.assert_array_equal(same.timesteps, whole.timesteps)
    np.testing.assert_allclose(same.final_returns, curves.final_returns, rtol=1e-6)
    longer = config.replace(total_timesteps=12 * spent)
    with pytest.raises(purerl.ConfigError, match="after 10 updates, within a row of metrics"):
        purerl.fit(longer, tmp_path / "a", **options)
    purerl.fit(small(num_updates=6, log_every=3), tmp_path / "b", **options)
    assert_equal(purerl.fit(config, tmp_path / "b", **options), whole)
