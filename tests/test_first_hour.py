"""A new user's first hour, before a real terminal."""

import json
import os
import pty
import re
import select
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

import purerl

SEEDS = 8


class Terminal:
    """A command in a pseudo-terminal: what it shows, and keys that are pressed."""

    def __init__(self, line, folder):
        self.shown = ""
        self.file, its_end = pty.openpty()
        ours = ("XLA_FLAGS", "JAX_")  # what the tests have set
        environment = {name: x for name, x in os.environ.items() if not name.startswith(ours)}
        environment |= {"TERM": "xterm-256color", "COLUMNS": "100", "LINES": "40"}
        environment["XDG_CACHE_HOME"] = str(folder / "cache")
        # Keys become signals for whose terminal it is, which a new session has to ask for.
        own = "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
        own += "os.execv(sys.executable, [sys.executable, '-m', *sys.argv[1:]])"
        self.process = subprocess.Popen(
            [sys.executable, "-c", own, *line.split()],
            stdin=its_end,
            stdout=its_end,
            stderr=its_end,
            cwd=folder,
            env=environment,
            start_new_session=True,
        )
        os.close(its_end)

    def read(self, until=None, seconds=280.0):
        """Reads until a pattern is shown, or the end."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            ready, _, _ = select.select([self.file], [], [], 0.2)
            if ready:
                try:
                    got = os.read(self.file, 65536)
                except OSError:  # the other end is closed
                    return self.shown
                self.shown += got.decode(errors="replace")
                if not got:
                    return self.shown
                if until and re.search(until, self.shown):
                    return self.shown
        raise AssertionError(f"not seen in {seconds} s: {until}\n{self.shown}")

    def press(self, keys):
        os.write(self.file, keys)

    def end(self):
        """Reads to the end: exit code, and what was shown without its colours and movements."""
        self.read()
        code = self.process.wait(250)
        os.close(self.file)
        return code, re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", self.shown)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_first_hour(tmp_path):
    train = Terminal(f"purerl train CartPole-v1 --seeds {SEEDS}", tmp_path)
    train.read(until=r"compiling")
    train.read(until=r"steps/s.*return [\d.]+ \([\d.]+ to [\d.]+\)")
    train.press(b"\x03")
    code, shown = train.end()
    assert code == 130, shown
    assert re.search(r"compiled in [\d.]+ s", shown)
    assert "which are saved; to continue:" in shown
    assert "purerl resume runs/CartPole-v1-ppo-1" in shown
    assert "Traceback" not in shown
    folder = tmp_path / "runs" / "CartPole-v1-ppo-1"
    assert not json.loads((folder / "summary.json").read_text())["finished"]

    code, shown = Terminal("purerl resume", tmp_path).end()
    assert code == 0, shown
    assert "going on after" in shown
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["finished"]
    assert summary["final_return"]["mean"] > 450

    code, shown = Terminal("purerl eval --episodes 20", tmp_path).end()
    assert code == 0, shown
    assert float(re.search(r"^mean ([\d.]+)", shown, re.M)[1]) > 450
    for command in ("render", "plot", "export"):
        code, shown = Terminal(f"purerl {command}", tmp_path).end()
        assert code == 0, shown
    check_files(folder)


def check_files(folder):
    """Every file is there and opens; the GIF moves; the exported policy scores in Gymnasium what
    the policy itself does."""
    from PIL import Image

    with Image.open(folder / "episode.gif") as gif:
        assert gif.n_frames > 100
        frames = []
        for i in (0, 40, 80):
            gif.seek(i)
            frames.append(np.asarray(gif.convert("RGB")))
    assert not np.array_equal(frames[0], frames[1])
    assert not np.array_equal(frames[1], frames[2])
    with Image.open(folder / "curve.png") as picture:
        picture.verify()
    rows = (folder / "metrics.csv").read_text().splitlines()
    num_updates = purerl.preset("CartPole-v1").make_loop().num_updates
    assert len(rows) == 1 + SEEDS * num_updates
    assert len(list((folder / "tensorboard").glob("seed-*/events*"))) >= SEEDS
    program = jax.export.deserialize(bytearray((folder / "policy.stablehlo").read_bytes()))
    returns = json.loads((folder / "summary.json").read_text())["final_return"]["by_seed"]
    policy = purerl.load_policy(folder / "policies" / f"seed-{int(np.argmax(returns))}.policy")
    acts = {
        "exported": lambda obs: int(program.call(obs[None])[0]),
        "policy": policy.step,
    }
    scores = {}
    for name, act in acts.items():
        scores[name] = purerl.evaluate_in_gymnasium(act, "CartPole-v1", 3)[0].tolist()
    assert scores["exported"] == scores["policy"]
    assert np.mean(scores["policy"]) > 450


MISTAKES = [
    "trian CartPole-v1",
    "train CartPol-v1",
    "train CartPole-v1 --agent poo",
    "train CartPole-v1 --seeds none",
    "train CartPole-v1 --sedes 2",
    "train CartPole-v1 --learnin-rate 1",
    "train CartPole-v1 --lr fast",
    "train CartPole-v1 --num-envs 0",
    "train CartPole-v1 --noise gauss",
    "train CartPole-v1 --config nowhere.toml",
    "resume runs/x --total-timestep 3",
    "eval --episode 3",
    "render --outt x.gif",
    "plot --x hours",
    "export --off 3",
    "envs --all",
    "agents dqm",
    "presets Acrobat-v1",
    "check-env CartPole-v2",
    "bench CartPole-v1 --repeat 3",
    # The last one, because it makes an environment: the name may be that of a parameter of it.
    "sweep CartPole-v1 --grid learnin_rate=1,2",
]


def test_each_typo_is_answered_before_anything_is_compiled(tmp_path):
    """One line each, and JAX hasn't looked for a device yet."""
    (tmp_path / "runs" / "x").mkdir(parents=True)
    (tmp_path / "runs" / "x" / "run.json").write_text("{}")
    (tmp_path / "runs" / "x" / "lock").write_text("")
    script = """
import contextlib, io, json, sys
from jax._src import xla_bridge
from purerl.cli import main

def answer(line):
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        code = main(line.split())
    return code, said.getvalue(), xla_bridge.backends_are_initialized()

print(json.dumps([answer(line) for line in sys.stdin.read().splitlines()]))
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        input="\n".join(MISTAKES),
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=250,
    )
    assert done.returncode == 0, done.stderr
    for line, (code, said, begun) in zip(MISTAKES, json.loads(done.stdout), strict=True):
        assert code == 2, (line, said)
        assert said.startswith("purerl: "), (line, said)
        assert said.count("\n") == 1, (line, said)
        assert line == MISTAKES[-1] or not begun, line
