"""Runs that are killed by SIGKILL at any moment: the same call ends in the very same state."""

import signal
import time

import numpy as np
import pytest
from kit.runs import RUNS, small, start, updates
from kit.trees import assert_equal

import purerl

pytestmark = pytest.mark.usefixtures("compile_once")
NUM_UPDATES = 200
TINY = ""  # as `small` takes it


def kill_one(name, folder, wait, early):
    """Trains in a process, and kills it.

    Args:
        name: of the run.
        folder: the run's.
        wait: seconds to the kill.
        early: whether they count from the process' beginning, else from its first chunk.

    Returns:
        The update that was reached, and the seconds to the first chunk; 0 where none was.
    """
    began, first = time.monotonic(), ""
    with start(name, folder, NUM_UPDATES) as process:
        if not early:
            first = process.stdout.readline()
        seconds = time.monotonic() - began
        time.sleep(wait)
        process.kill()
        reached = updates(first + process.stdout.read())
    assert process.returncode == -signal.SIGKILL
    return max(reached, default=0), 0.0 if early else seconds


def kill_in_turns(names, folder, num_kills, early):
    """Kills the runs of some names in turns, at random moments, the early ones in the seconds
    before the first chunk; then they all end in the state that they would have ended in."""
    rng = np.random.default_rng(0)
    seconds = []
    for turn in range(num_kills):
        name = names[turn % len(names)]
        where = folder / (name or "tiny")
        wait = rng.uniform(0.0, min(seconds) if turn in early else 0.6)
        reached, first = kill_one(name, where, wait, turn in early)
        seconds += [first] if first else []
        print(f"{name}: killed after {wait:.2f} s, {turn in early=}, at update {reached}")
    for name in names:
        config = small(name, NUM_UPDATES)
        where = folder / (name or "tiny")
        checkpoints = where.glob("checkpoints/*")
        saved = [int(path.name) for path in checkpoints if path.name.isdigit()]
        seen = []
        end = purerl.fit(config, where, seeds=2, callback=seen.append)
        assert seen[0].start == max(saved, default=0) < NUM_UPDATES
        assert_equal(end, purerl.fit(config, seeds=2))


@pytest.mark.slow
def test_killed_three_times(tmp_path):
    kill_in_turns([TINY], tmp_path, 3, early={1})


@pytest.mark.release
@pytest.mark.timeout(1800)
def test_killed_twice_each(tmp_path):
    """All agents take turns; three of the kills come in the first seconds, two of them in the first
    of all."""
    names = list(RUNS)
    early = {len(names) - 1, len(names), len(names) + 5}
    kill_in_turns(names, tmp_path, 2 * len(names), early)
