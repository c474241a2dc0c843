"""The README's Python blocks run, each on top of the one before."""

import pathlib
import re

import pytest

import purerl

README = pathlib.Path(__file__).parent.parent / "README.md"


@pytest.mark.slow
def test_code_blocks_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where a run leaves its folder
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.S)
    assert len(blocks) == 8
    names = {}
    for block in blocks:
        # The same code on a budget that a test can pay.
        block = re.sub("[25]00_000", "2_048", block)
        block = block.replace(", 64)", ", 2)").replace("-2, 8)", "-2, 2)")
        exec(block, names)
    assert names["outs"].metrics.episode_return.shape == (2, 2, 2)
    config = purerl.TrainConfig("CartPole-v1", names["agent"])
    assert config.agent.actor is names["MyActor"]


def test_the_error_shown_is_the_error():
    shown = re.search(r">>> (.*)\nConfigError: (.*)\n", README.read_text())
    with pytest.raises(purerl.ConfigError, match=f"^{re.escape(shown[2])}$"):
        eval(shown[1], {"purerl": purerl})
