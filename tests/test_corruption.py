"""Damaged files: bits flipped, files cut, lost, exchanged. Whatever is done to the folder of a run
or of a sweep, the next call ends in the right state, or says in one line what is wrong.

    python tests/test_corruption.py [SEED]

does the whole campaign, and prints what was done and what came of it.
"""

import collections
import contextlib
import functools
import io
import json
import os
import shutil
import signal
import sys
import tempfile
import time
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kit.agents import Tiny
from kit.environments import push_env
from kit.folders import contents
from kit.quick import mostly_slow, quick_jit

import purerl
from purerl.accelerator import members
from purerl.accelerator.transfer import is_key
from purerl.records.files import sealed, unsealed
from purerl.runs import fit as host_fit
from purerl.runs.chunks import Program
from purerl.sweeps import sweep as host_sweep
from purerl.training.describe import describe

# Flips and other damage of each, in the whole campaign and in the slow test.
FULL = {"run": (350, 140), "sweep": (150, 60)}
FIFTH = {name: tuple(n // 5 for n in counts) for name, counts in FULL.items()}


class Quick(Program):
    """Compiled once, for all calls."""

    known: dict = {}  # noqa: RUF012

    @classmethod
    def of(cls, config, keys, values, learned):
        assert learned is None
        name = repr((describe(config), keys.shape))
        if name not in cls.known:
            cls.known[name] = cls(config, keys, values)
        return cls.known[name]

    def compile(self, *, begun=False):
        del begun  # others begin
        if not hasattr(self, "_run"):
            super().compile()


def once(function, name_of):
    """The function, called once for all arguments of a name."""
    known = {}

    @functools.wraps(function)
    def call(*args):
        name = name_of(*args)
        if name not in known:
            known[name] = function(*args)
        return known[name]

    return call


def compile_once(patch):
    patch.setattr(host_fit, "Program", Quick.of)
    patch.setattr(members, "jit", quick_jit)
    by_config = lambda group, *rest: repr((describe(group.config), rest))  # noqa: E731
    for name in ("compile_group", "member_shapes"):
        patch.setattr(host_sweep, name, once(getattr(host_sweep, name), by_config))


def data(tree):
    """The bits of all leaves."""
    leaves = jax.tree.leaves(tree)
    leaves = [jax.random.key_data(x) if is_key(jnp.asarray(x)) else x for x in leaves]
    return [np.asarray(x).tobytes() for x in leaves]


def stop():
    os.kill(os.getpid(), signal.SIGINT)


CONFIG = purerl.TrainConfig(
    push_env(), Tiny(), 12 * 32, num_envs=4, update_every=8, normalize_obs=True
)


def read_curves(folder):
    found = purerl.read_run(folder)
    fields = found.timesteps, found.returns, found.num_episodes  # the clock's time isn't covered
    return data(fields), found.name


class Run:
    """A run of two seeds, stopped between checkpoints, and what its files are read by."""

    name = "run"

    def make(self, folder):
        def slowly(report):
            time.sleep(0.05)  # time for checkpoints
            if report.stop == 9:
                stop()

        options = {"report_every": 0.0, "checkpoint_every": 0.0}
        with pytest.raises(purerl.Interrupted):
            purerl.fit(CONFIG, folder, seeds=2, callback=slowly, **options)
        assert len(list(folder.glob("checkpoints/*"))) == 3
        self.whole = data(purerl.fit(CONFIG, seeds=2))
        self.curves = read_curves(folder)
        policies = [purerl.load_policy(file, Tiny) for file in self.policies(folder)]
        self.states = [data((x.state, x.obs_stats)) for x in policies]

    def policies(self, folder):
        return [folder / "policies" / f"seed-{seed}.policy" for seed in (0, 1)]

    def entries(self, folder):
        """Calls, each with whether what it returns is right."""

        def policy(i):
            found = purerl.load_policy(self.policies(folder)[i], Tiny)
            # A policy's file may have any name: that of the other seed is a whole one.
            return data((found.state, found.obs_stats)) in self.states

        def curves():
            return read_curves(folder) == self.curves

        yield "load_policy", lambda: policy(0)
        yield "load_policy", lambda: policy(1)
        yield "read_run", curves
        yield "fit", lambda: data(purerl.fit(CONFIG, folder, seeds=2)) == self.whole


class Sweep:
    """A sweep of two programs, of two slices each."""

    name = "sweep"

    def sweep(self, folder):
        grid = {"rewarder": [purerl.Scale(1.0), purerl.Scale(3.0)]}
        result = purerl.sweep(
            CONFIG, seeds=4, grid=grid, slice_size=2, run_dir=folder, verbose=False
        )
        members = [result.member(i) for i in range(8)]
        return data((result.metrics, members, [result.table["final_return"]]))

    def best(self, folder):
        found = purerl.load_policy(folder / "best" / "policies" / "seed-0.policy", Tiny)
        return data((found.state, found.obs_stats))

    def make(self, folder):
        self.whole = self.sweep(folder)
        self.curves = read_curves(folder)
        files = (folder / "best" / "policies").iterdir()
        policies = [purerl.load_policy(file, Tiny) for file in files]
        self.policies = [data((x.state, x.obs_stats)) for x in policies]

    def entries(self, folder):
        yield "load_policy", lambda: self.best(folder) in self.policies
        yield "read_run", lambda: read_curves(folder) == self.curves
        yield "sweep", lambda: self.sweep(folder) == self.whole


def flip(rng, folder, file):
    content = bytearray(file.read_bytes())
    if not content:
        return "nothing"
    place, bit = rng.integers(len(content)), int(rng.integers(8))
    content[place] ^= 1 << bit
    file.write_bytes(content)
    return f"bit {bit} of byte {place} of {len(content)} flipped"


def truncate(rng, folder, file):
    content = file.read_bytes()
    file.write_bytes(content[: rng.integers(len(content) + 1)])


def empty(rng, folder, file):
    file.write_bytes(b"")


def delete(rng, folder, file):
    file.unlink()


def delete_folder(rng, folder, file):
    parents = [x for x in file.parents if folder in x.parents]
    shutil.rmtree(parents[rng.integers(len(parents))] if parents else folder)


def append(rng, folder, file):
    file.write_bytes(file.read_bytes() + rng.bytes(rng.integers(1, 100)))


def directory(rng, folder, file):
    file.unlink()
    file.mkdir()


def zeros(rng, folder, file):
    file.write_bytes(bytes(file.stat().st_size))


def zero_block(rng, folder, file):
    content = bytearray(file.read_bytes())
    start = int(rng.integers(len(content) + 1))
    content[start : start + 512] = bytes(len(content[start : start + 512]))
    file.write_bytes(content)


def akin(rng, folder, file):
    """Another file of the same kind, where there is one."""
    files = [x for x in all_files(folder) if x != file]
    near = [x for x in files if x.suffix == file.suffix and x.parent.name == file.parent.name]
    return (near or files)[rng.integers(len(near or files))]


def swap(rng, folder, file):
    other = akin(rng, folder, file)
    contents = file.read_bytes(), other.read_bytes()
    file.write_bytes(contents[1])
    other.write_bytes(contents[0])
    return f"exchanged with {other.relative_to(folder)}"


def copy(rng, folder, file):
    other = akin(rng, folder, file)
    shutil.copy(other, file)
    return f"replaced by {other.relative_to(folder)}"


def swap_folders(rng, folder, file):
    """Checkpoints in each other's place."""
    found = sorted(x for x in folder.glob("checkpoints/*"))
    if len(found) > 1:
        one, other = rng.choice(len(found), 2, replace=False)
        found[one].rename(folder / "x")
        found[other].rename(found[one])
        (folder / "x").rename(found[other])
    return "checkpoints exchanged"


OTHERS = (
    truncate,
    empty,
    delete,
    delete_folder,
    append,
    directory,
    zeros,
    zero_block,
    swap,
    copy,
    swap_folders,
)


def all_files(folder):
    return sorted(x for x in folder.rglob("*") if x.is_file() and x.name != "lock")


def call(entry):
    """What comes of a call: `right`, `told: ...`, or what is wrong with it."""
    noise = io.StringIO()
    with warnings.catch_warnings(record=True) as caught, contextlib.redirect_stderr(noise):
        warnings.simplefilter("always")
        try:
            right = entry()
        except (purerl.RunError, purerl.ConfigError) as error:
            return f"told: {error}" if "\n" not in str(error) else f"LINES: {error}"
        except Exception as error:
            return f"RAW: {type(error).__name__}: {error}"
    said = [str(x.message) for x in caught]
    if noise.getvalue():
        return f"NOISE: {noise.getvalue()}"
    if not right:
        return f"SILENT: wrong, with {said}"
    return f"mended: {said[0]}" if said else "right"


def campaign(subject, flips, others, seed, folder):
    """Damages copies of `folder/whole`; yields what was done, by which call, what came of it."""
    rng = np.random.default_rng(seed)
    kinds = [flip] * flips + [OTHERS[i % len(OTHERS)] for i in range(others)]
    for kind in kinds:
        yield from damaged(subject, rng, kind, folder, lambda x: x[rng.integers(len(x))])


def each_kind_emptied(subject, folder):
    """As `campaign`, without chance: the last file of each kind is emptied."""
    names = [x.relative_to(folder / "whole") for x in all_files(folder / "whole")]
    last = {kind_of(str(name)): name for name in names}
    for name in last.values():
        yield from damaged(subject, None, empty, folder, lambda x, n=name: folder / "copy" / n)


def damaged(subject, rng, kind, folder, choose):
    """One damage, to the file of a copy that is chosen."""
    copied = folder / "copy"
    shutil.copytree(folder / "whole", copied)
    file = choose(all_files(copied))
    name = file.relative_to(copied)
    said = kind(rng, copied, file) or kind.__name__
    for entry, function in subject.entries(copied):
        yield subject.name, entry, str(name), said, call(function)
    shutil.rmtree(copied, ignore_errors=True)


def kind_of(name):
    """The kind of a file, for a table."""
    parts = Path(name).parts
    if parts[0] == "checkpoints":
        return "/".join(["checkpoints/N", *parts[2:3], *(parts[3:4] if len(parts) == 4 else ["*"])])
    return parts[0] if len(parts) == 1 and "group-" not in name else f"*{Path(name).suffix}"


def failures(results):
    """Those that are neither right nor told in one line."""
    return [x for x in results if not x[-1].startswith(("right", "told: ", "mended: "))]


def report(results):
    """Prints how often each thing came of each call, for each kind of file."""
    outcomes = [(x[0], x[1], kind_of(x[2]), x[-1].split(":")[0]) for x in results]
    for key, count in sorted(collections.Counter(outcomes).items()):
        print(f"{count:5d}  {'  '.join(key)}")
    for key, count in sorted(collections.Counter((x[1], x[3]) for x in outcomes).items()):
        print(f"{count:5d}  {'  '.join(key)}")


@pytest.fixture(scope="module")
def subjects(tmp_path_factory):
    """Folders of a run and of a sweep, `whole`, which nothing changes."""
    made = {}
    with pytest.MonkeyPatch.context() as patch:
        compile_once(patch)
        for subject in (Run(), Sweep()):
            folder = tmp_path_factory.mktemp(subject.name)
            subject.make(folder / "whole")
            made[subject.name] = subject, folder
        yield made


@pytest.fixture
def run(subjects, tmp_path):
    """A run and a copy of its folder."""
    subject, folder = subjects["run"]
    shutil.copytree(folder / "whole", tmp_path / "run")
    return subject, tmp_path / "run"


def trained(folder):
    return data(purerl.fit(CONFIG, folder, seeds=2))


def numbers(folder):
    return sorted(int(x.name) for x in folder.glob("checkpoints/*") if x.name.isdigit())


@pytest.mark.parametrize("name", mostly_slow(["run", "sweep"], ["run"]))
def test_damage_is_mended_or_told_in_a_line(name, subjects):
    found = list(campaign(subjects[name][0], 12, 11, 1, subjects[name][1]))
    # Which files that hits, orbax's random names decide too.
    sure = list(each_kind_emptied(subjects[name][0], subjects[name][1]))
    found += sure
    report(found)
    assert {x[-1].split(":")[0] for x in sure} == {"right", "told", "mended"}
    assert not failures(found)


@pytest.mark.release
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("name", ["run", "sweep"])
def test_100_flipped_bits_and_40_other_damages(name, subjects):
    found = list(campaign(subjects[name][0], *FIFTH[name], 0, subjects[name][1]))
    report(found)
    assert not failures(found)


def test_checkpoints_that_lost_what_orbax_notes_of_them_are_good(run):
    subject, folder = run
    for name in ("_CHECKPOINT_METADATA", "commit_success.txt"):
        for file in folder.rglob(name):
            file.unlink()
    before = numbers(folder)
    assert trained(folder) == subject.whole
    assert set(numbers(folder)) >= set(before[1:])  # three are kept, and there is a newer one


def test_nothing_that_may_be_a_checkpoint_is_deleted_for_being_damaged(run):
    subject, folder = run
    newest = folder / "checkpoints" / str(numbers(folder)[-1])
    for file in list(newest.rglob("*.json")):
        file.unlink()
    before = contents(newest)
    with pytest.warns(UserWarning, match="put aside, training starts from that of update"):
        assert trained(folder) == subject.whole
    aside = newest.with_name(f"{newest.name}.aside")
    assert contents(aside) == before


def test_of_three_checkpoints_one_is_enough(run):
    subject, folder = run
    oldest, *rest = numbers(folder)
    for number in rest:
        next(folder.glob(f"checkpoints/{number}/about/*.json")).write_text("{}")
    message = f"2 checkpoints put aside, training starts from that of update {oldest}$"
    with pytest.warns(UserWarning, match=message):
        assert trained(folder) == subject.whole
    assert trained(folder) == subject.whole  # and nothing is told any more


def test_metrics_without_any_checkpoint_are_an_error_with_a_way_out(run):
    subject, folder = run
    shutil.rmtree(folder / "checkpoints")
    (folder / "checkpoints").mkdir()
    before = contents(folder)
    message = r"metrics of 9 updates but no checkpoint.*nothing was changed.*remove .*metrics$"
    with pytest.raises(purerl.RunError, match=message):
        trained(folder)
    assert contents(folder) == before
    shutil.rmtree(folder / "metrics")
    assert trained(folder) == subject.whole


def test_killed_in_its_first_checkpoint_a_run_begins_anew(run):
    """There are metrics and no checkpoint, but it is known that there never was one."""
    subject, folder = run
    about = unsealed((folder / "run.json").read_text())
    assert about["saved"] is True
    (folder / "run.json").write_text(json.dumps(sealed(about | {"saved": False})))
    first, *rest = numbers(folder)
    for number in rest:
        shutil.rmtree(folder / "checkpoints" / str(number))
    partial = folder / "checkpoints" / f"{first}.orbax-checkpoint-tmp"
    (folder / "checkpoints" / str(first)).rename(partial)
    (folder / "checkpoints" / ".removed-0").mkdir()  # and in the middle of a removal
    for file in sorted(folder.glob("metrics/*"))[1:]:
        file.unlink()
    assert trained(folder) == subject.whole
    assert all(x.name.isdigit() for x in (folder / "checkpoints").iterdir())
    assert unsealed((folder / "run.json").read_text())["saved"] is True


def test_files_in_each_others_place_do_not_pass(run, tmp_path):
    subject, folder = run
    one, other = sorted(folder.glob("metrics/*"))[:2]
    last = max(folder.glob("checkpoints/*"), key=lambda x: int(x.name))
    contents = one.read_bytes(), other.read_bytes()
    one.write_bytes(contents[1])
    other.write_bytes(contents[0])
    with pytest.raises(purerl.RunError, match=r"in another's place: it is of the updates \d to \d"):
        trained(folder)
    one.write_bytes(contents[0])
    other.write_bytes(contents[1])
    # The same of another run: other seeds, other numbers, the same shapes.
    with pytest.raises(purerl.Interrupted):
        purerl.fit(CONFIG, tmp_path / "b", seeds=[5, 6], callback=lambda _: stop())
    other = next((tmp_path / "b").glob("checkpoints/*"))
    shutil.rmtree(last)
    shutil.copytree(other, last)
    with pytest.warns(UserWarning, match=r"in another's place: it is of update 1 of another run"):
        assert trained(folder) == subject.whole


if __name__ == "__main__":
    seed = int(sys.argv[1]) if len(sys.argv) > 1 else 0
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        compile_once(patch)
        found = []
        for subject in (Run(), Sweep()):
            (place := Path(folder, subject.name)).mkdir()
            subject.make(place / "whole")
            found += campaign(subject, *FULL[subject.name], seed, place)
    report(found)
    for line in failures(found):
        print(*line)
