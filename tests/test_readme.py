"""The README's Python blocks run, each on top of the one before."""

import pathlib
import re

import numpy as np
import pytest
from kit.documents import README, blocks_of, commands_of, parsed, run_blocks

import purerl


@pytest.mark.slow
def test_code_blocks_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where a run leaves its folder
    text = README.read_text()
    assert len(blocks_of(text, "python")) == 3
    # The same code on a budget that a test can pay.
    shorter = [(f"{n}00_000", "2_048") for n in (2, 5)]
    names = run_blocks(text, [*shorter, (", 64)", ", 2)"), ("-2, 8)", "-2, 2)")])
    assert names["outs"].metrics.episode_return.shape == (2, 2, 2)
    assert names["policy"].step(np.zeros(4)) in (0, 1)
    assert len(names["result"].table["seed"]) == 16
    for file in ("cartpole.policy", "cartpole.stablehlo", "cartpole.gif", "curve.png"):
        assert pathlib.Path(file).stat().st_size > 0


def test_commands_parse():
    commands = commands_of(README.read_text())
    assert len(commands) > 10
    for argv in commands:
        parsed(argv)


def test_every_file_that_is_named_is_there():
    folder = README.parent
    for page in (README, folder / "experiments/README.md", folder / "benchmarks/README.md"):
        text = page.read_text()
        linked = re.findall(r"\]\(([\w/.]+)\)", text)
        named = re.findall(r"`((?:experiments|benchmarks|purerl|tests)/[\w/]+\.py)`", text)
        listed = re.findall(r"`(\w+\.py)`", text) if page != README else []
        paths = [folder / x for x in named] + [page.parent / x for x in (*linked, *listed)]
        for path in paths:
            assert path.exists(), f"{page}: {path}"


def test_the_error_shown_is_the_error():
    shown = re.search(r">>> (.*)\nConfigError: (.*)\n", README.read_text())
    with pytest.raises(purerl.ConfigError, match=f"^{re.escape(shown[2])}$"):
        eval(shown[1], {"purerl": purerl})
