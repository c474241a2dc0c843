"""What a search searches: distributions by field, the usual ones of each agent, Optuna's form."""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING

from purerl.agents import AGENTS
from purerl.records.draws import Choice, LogUniform, Uniform, list_values
from purerl.records.errors import ConfigError, shown
from purerl.records.fields import check_value
from purerl.sweeps.plan import Values, is_traced, of_config, parts_of, read_fields
from purerl.training.config import TrainConfig
from purerl.training.hyperparams import Parts, check_field, read_path

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

Draws = Mapping[str, Uniform | Choice]

GAMMA = Choice((0.95, 0.98, 0.99, 0.995, 0.999))
# What is searched unless a space is given, by agent: what decides whether it learns, around its
# defaults (ranges after RL Zoo's). Fields with whole numbers have two values each, since every
# combination of those is compiled.
SPACES: dict[str, Draws] = {
    "ppo": {
        "lr": LogUniform(1e-4, 1e-2),
        "gamma": GAMMA,
        "lam": Uniform(0.8, 1.0),
        "entropy_beta": LogUniform(1e-4, 1e-1),
        "eps_clip": Uniform(0.1, 0.4),
        "K_epochs": Choice((4, 10)),
        "num_envs": Choice((8, 32)),
    },
    "pqn": {
        "lr": LogUniform(1e-4, 1e-2),
        "gamma": GAMMA,
        "lam": Uniform(0.3, 0.95),
        "epsilon_end": LogUniform(0.005, 0.1),
        "K_epochs": Choice((2, 4)),
        "num_envs": Choice((32, 128)),
    },
    "dqn": {
        "lr": LogUniform(1e-4, 1e-2),
        "gamma": GAMMA,
        "epsilon_end": LogUniform(0.005, 0.1),
        "n_step": Choice((1, 3)),
        "batch_size": Choice((64, 256)),
    },
    "sac": {
        "lr": LogUniform(1e-4, 3e-3),
        "gamma": GAMMA,
        "tau": LogUniform(0.002, 0.05),
        "batch_size": Choice((128, 256)),
    },
    "td3": {
        "lr": LogUniform(1e-4, 3e-3),
        "gamma": GAMMA,
        "tau": LogUniform(0.002, 0.05),
        "target_noise": Uniform(0.05, 0.5),
        "noise.sigma": Uniform(0.05, 0.5),
        "batch_size": Choice((128, 256)),
    },
    "ddpg": {
        "lr": LogUniform(1e-4, 3e-3),
        "gamma": GAMMA,
        "tau": LogUniform(0.002, 0.05),
        "noise.sigma": Uniform(0.05, 0.5),
        "batch_size": Choice((64, 256)),
    },
    "actor_critic": {
        "lr": LogUniform(1e-4, 1e-2),
        "gamma": GAMMA,
        "lam": Uniform(0.8, 1.0),
        "entropy_beta": LogUniform(1e-4, 1e-1),
        "n_episodes": Choice((8, 32)),
        "episode_length": Choice((16, 64)),
    },
    "reinforce": {
        "lr": LogUniform(1e-4, 1e-2),
        "gamma": GAMMA,
        "entropy_beta": LogUniform(1e-4, 1e-1),
        "n_episodes": Choice((4, 16)),
        "baseline": Choice((True, False)),
    },
}
# Fields of the config by which scores of different trials would be of different things: what is
# measured, in which environment, and after how many steps.
MEASURES = (
    "env",
    "eval_env",
    "eval_every",
    "eval_max_episodes",
    "eval_max_episode_steps",
    "eval_sample",
    "max_episode_steps",
    "total_timesteps",
    "max_episodes",
    "stop_at_return",
    "stop_if_nonfinite",
)


@dataclasses.dataclass(frozen=True)
class Space:
    """The fields of a search, in a sweep's notation, with their distributions."""

    draws: dict[str, Uniform | Choice]

    @property
    def names(self) -> tuple[str, ...]:
        """The searched fields."""
        return tuple(self.draws)

    def distributions(self) -> "dict[str, BaseDistribution]":
        """As Optuna has them."""
        from optuna.distributions import CategoricalDistribution, FloatDistribution

        found: dict[str, BaseDistribution] = {}
        for name, draw in self.draws.items():
            if isinstance(draw, Choice):
                found[name] = CategoricalDistribution(list(_words(draw)))
            else:
                log = isinstance(draw, LogUniform)
                found[name] = FloatDistribution(draw.low, draw.high, log=log)
        return found

    def values(self, params: Mapping[str, object]) -> Values:
        """The values that Optuna's parameters stand for."""
        return {name: self._value(name, params[name]) for name in self.draws}

    def _value(self, name: str, param: object) -> object:
        draw = self.draws[name]
        return _words(draw)[str(param)] if isinstance(draw, Choice) else param


def _words(choice: Choice) -> dict[str, object]:
    """The options by a word of each: Optuna stores plain values only, and takes True for 1."""
    words = [str(getattr(x, "__name__", x)) for x in choice.options]
    if len(set(words)) < len(words) or max(map(len, words)) > 40:
        words = [f"option {i}" for i in range(len(words))]
    return dict(zip(words, choice.options, strict=True))


def read_space(config: TrainConfig, space: Mapping[str, object] | None) -> Space:
    """A search's space, checked.

    Args:
        config: common to all trials.
        space: distributions, or lists of values, by name; None for the usual one of the agent.

    Raises:
        ConfigError: no such field; a distribution that the field can't have, or a value.
    """
    if space is None:
        space = _usual(config)
    if not isinstance(space, Mapping) or not space:
        raise ConfigError(f"space: got {shown(space)}, expected a mapping of names to draws")
    given = {name: _draw(name, draw) for name, draw in space.items()}
    choices = {name: list(x.options) for name, x in given.items() if isinstance(x, Choice)}
    floats = {name: x for name, x in given.items() if name not in choices}
    names = read_fields(config, choices, floats, "space")
    draws = {names[name]: draw for name, draw in given.items()}
    for name, draw in draws.items():
        if name in MEASURES:
            raise ConfigError(
                f"space[{name!r}]: got {draw}, expected it in the config, one value for all "
                "trials: their scores wouldn't compare"
            )
    firsts = {name: x.options[0] for name, x in draws.items() if isinstance(x, Choice)}
    parts = parts_of(config, {name: x for name, x in firsts.items() if of_config(name)})
    for name, draw in draws.items():
        _check(parts, name, draw)
    return Space(draws)


def _usual(config: TrainConfig) -> Draws:
    """The usual space of the config's agent. Raises ConfigError for an agent of the user's."""
    for name, known in AGENTS.items():
        if type(config.agent) is known:
            return SPACES[name]
    raise ConfigError(
        f"space: missing, {type(config.agent).__name__} has no usual one; expected a mapping of "
        'fields to draws, such as {"lr": purerl.LogUniform(1e-4, 1e-2)}'
    )


def _draw(name: object, draw: object) -> Uniform | Choice:
    """A distribution of the space; a list of values is a choice."""
    if not isinstance(name, str):
        raise ConfigError(f"space: got the name {shown(name)}, expected names of fields")
    if isinstance(draw, (Uniform, Choice)):
        return draw
    if isinstance(draw, type) or hasattr(draw, "draw"):
        raise ConfigError(
            f"space[{name!r}]: got {shown(draw)}, expected purerl.Uniform(a, b), "
            "purerl.LogUniform(a, b), purerl.Choice(options) or a list of values"
        )
    return Choice(list_values(f"space[{name!r}]", draw))


def _check(parts: Parts, name: str, draw: Uniform | Choice) -> None:
    """Raises ConfigError unless the field can have all values of a distribution."""
    if isinstance(draw, Choice):
        values: list[object] = list(draw.options)
    elif is_traced(parts, name):
        values = [draw.low, draw.high]
    else:
        raise ConfigError(
            f"space[{name!r}]: got {draw}, but each value of this field is compiled; expected a "
            f"few: purerl.Choice(...), on the command line {name}=A,B"
        )
    if of_config(name):
        for value in values:
            check_value(TrainConfig, name, value)
        return
    path = read_path(parts, name, "space")
    if path.part == "env" and not is_traced(parts, name):
        return  # the environment is made anew with each, and checks it
    for value in values:
        check_field(parts[path.part], path.field, value)
