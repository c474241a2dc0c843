"""One list of options: TrainConfig and run have the same, with the same documentation."""

import inspect

import jax
import numpy as np
import pytest
from kit.agents import Tiny
from kit.environments import target_env
from kit.quick import quick_jit

import purerl
from purerl.records.docs import documented
from purerl.records.fields import Record, field_options, integer, real

SMALL = {"num_envs": 4, "update_every": 8, "total_timesteps": 96}
FUNCTIONS = [purerl.run, purerl.make_loop]


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.__name__)
def test_functions_show_the_configs_fields(function):
    parameters = inspect.signature(function).parameters
    fields = field_options(purerl.TrainConfig)
    assert set(parameters) - {"key"} == set(fields)
    assert list(parameters)[:3] == ["env", "agent", "buffer"]  # by their places, as at first
    for name, field in fields.items():
        if name not in ("env", "agent", "total_timesteps"):
            assert parameters[name].default == field.default, name
        assert f"    {name}: " in inspect.getdoc(function), name
    assert parameters["total_timesteps"].default is None
    assert set(documented(purerl.TrainConfig)) == set(fields)


def test_run_is_train_without_a_config():
    options = {**SMALL, "normalize_reward": True, "noise": purerl.GaussianNoise(), "n_envs": 2}
    del options["num_envs"]
    key = jax.random.key(0)
    state, metrics = quick_jit(lambda key: purerl.run(target_env(), Tiny(), key=key, **options))(
        key
    )
    config = purerl.TrainConfig(target_env(), Tiny(), **options)
    out = quick_jit(purerl.make_train(config))(key)
    np.testing.assert_array_equal(state.agent["w"], out.state.agent["w"])
    np.testing.assert_array_equal(metrics.episode_return, out.metrics.episode_return)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_env": 4}, "run: no argument 'num_env'; did you mean 'num_envs'"),
        ({"lr": 0.1}, "run: no argument 'lr'; it is a field of PPO"),
        ({"skip_frames": 0}, "run.skip_frames: got 0, expected an integer >= 1"),
        ({"normalize_obs": 1}, "run.normalize_obs: got 1, expected True or False"),
        ({"noise": 0.1}, "run.noise: got 0.1, expected a noise"),
        ({"buffer": 64}, "run.buffer: got 64, expected a purerl.Buffer"),
        ({"normalize_reward": True, "rewarder": purerl.Scale(1.0)}, "run.normalize_reward"),
        ({"total_timesteps": None}, "total_timesteps: got None, expected an integer, or max_ep"),
    ],
)
def test_what_run_refuses(options, message):
    with pytest.raises(purerl.ConfigError, match=message):
        purerl.run(target_env(), Tiny(), key=jax.random.key(0), **{**SMALL, **options})


class Above(Record):
    """A record.

    Attributes:
        one, two: a pair.
        three: said here.
    """

    one: int = integer(default=1)
    two: int = integer(default=2)
    three: int = integer(default=3)


class Below(Above):
    """Another.

    Attributes:
        three: said anew.
        four: over
            two lines.

    Raises:
        ConfigError: never.
    """

    four: float = real(default=4.0)


def test_a_docstring_has_what_it_inherits():
    assert Below.__doc__ == (
        "Another.\n\nAttributes:\n    one, two: a pair.\n    three: said anew.\n"
        "    four: over\n        two lines.\n\nRaises:\n    ConfigError: never.\n"
    )
    for record in [*purerl.AGENTS.values(), purerl.TrainConfig, purerl.OrnsteinUhlenbeckNoise]:
        assert set(field_options(record)) <= set(documented(record)), record
        for name in field_options(record):
            assert name in record.__doc__
