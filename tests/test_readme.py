"""The README's Python blocks run, each on top of the one before."""

import pathlib
import re

import numpy as np
import pytest

import purerl

README = pathlib.Path(__file__).parent.parent / "README.md"


@pytest.mark.slow
def test_code_blocks_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where a run leaves its folder
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.S)
    assert len(blocks) == 3
    names = {}
    for block in blocks:
        # The same code on a budget that a test can pay.
        block = re.sub("[25]00_000", "2_048", block)
        block = block.replace(", 64)", ", 2)").replace("-2, 8)", "-2, 2)")
        exec(block, names)
    assert names["outs"].metrics.episode_return.shape == (2, 2, 2)
    assert names["policy"].step(np.zeros(4)) in (0, 1)
    assert len(names["result"].table["seed"]) == 16
    for file in ("cartpole.policy", "cartpole.stablehlo", "cartpole.gif", "curve.png"):
        assert pathlib.Path(file).stat().st_size > 0


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
