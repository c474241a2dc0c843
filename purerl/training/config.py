"""`TrainConfig`: a run's options, checked, and their plain form for files."""

from collections.abc import Mapping
from typing import Self, cast

import jax

from purerl.agents import AGENTS
from purerl.agents.noise import NOISES
from purerl.envs.base import Env
from purerl.envs.check import check_new_env
from purerl.envs.registry import plain_env, source_of
from purerl.experience.buffer import Buffer
from purerl.experience.rewarders import REWARDERS
from purerl.records.errors import ConfigError, sentence, shown, suggest
from purerl.records.fields import (
    Record,
    field_names,
    field_options,
    read_names,
    unchecked,
)
from purerl.records.types import Plain
from purerl.training import card
from purerl.training.check import check_loop, check_methods
from purerl.training.effective import DEFAULTS, in_force, split_defaults, with_file_defaults
from purerl.training.hyperparams import Hyperparams, with_hyperparams
from purerl.training.loop import Loop
from purerl.training.options import Options
from purerl.training.purejaxrl import from_purejaxrl
from purerl.training.run import assemble

# The classes that mappings name.
REGISTRIES: dict[str, Mapping[str, type]] = {
    "agent": AGENTS,
    "noise": NOISES,
    "rewarder": REWARDERS,
    "buffer": {"buffer": Buffer},
}
DEFAULT_NAMES = {"agent": "ppo", "buffer": "buffer", "noise": "gaussian"}


class TrainConfig(Options):
    """The configuration of a run, checked on construction, before anything is compiled.

    It pickles if the functions in it do. Start other processes by
    `multiprocessing.get_context("spawn")`: a config starts JAX, which hangs in forked processes.

    Raises:
        ConfigError: a field that can't be used, or doesn't fit another; the message has the field,
            its value, the allowed values, and the nearest right spelling.
    """

    def check(self) -> None:
        """Checks the fields against each other: networks are initialised abstractly, and the
        user's functions are traced."""
        super().check()
        object.__setattr__(self, "env", check_new_env(self.env))
        if self.eval_env is not None:
            object.__setattr__(self, "eval_env", check_new_env(self.eval_env, "eval_env"))
        check_methods(self.agent)
        with sentence("TrainConfig: this run can't be put together"):
            loop = self.make_loop()
            # The devices' shares were checked; the parts are traced once, as on one device.
            one = loop if self.num_devices == 1 else unchecked(self, num_devices=1).make_loop()
            check_loop(one)

    def __repr__(self) -> str:
        fields = {"env": self.env, "agent": self.agent} | self.given()
        source = source_of(self.env)
        words = {name: repr(value) for name, value in fields.items()}
        if source is not None and not source.params:
            words["env"] = repr(source.name)
        return f"TrainConfig({', '.join(f'{name}={x}' for name, x in words.items())})"

    def _repr_html_(self) -> str:
        others = {n: x for n, x in self.given().items() if n not in ("env", "agent")}
        rows = {f"agent.{n}": x for n, x in self.agent.given().items()} | others
        return card.card(
            card.title(self.agent, self.env.spec.name),
            [card.plan(self.make_loop())],
            card.table((name, shown(x, 80)) for name, x in rows.items()),
        )

    def make_loop(self, hyperparams: Hyperparams = None) -> Loop:
        """The run's pure functions.

        Args:
            hyperparams: values for float fields of the run's parts by path, such as `lr` or
                `noise.sigma` or `env.gravity`; scalars, which may be traced.
        """
        changed = with_hyperparams(self.parts(), hyperparams)
        if "rewarder" in changed:  # it may be the one of `normalize_reward`
            changed["normalize_reward"] = False
        return assemble(unchecked(self, **changed))

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Plain]) -> Self:
        """A config from plain values, such as those of TOML, YAML or a command line.

        Args:
            mapping: fields by name. `agent`, `noise` and `rewarder` are names, such as `"ppo"`, or
                mappings of their fields with the name under `"name"`; `buffer` is a mapping.
                `defaults`, as in the `config.toml` of a run, are fields that the others go over.

        Raises:
            ConfigError: see the class.
        """
        if not isinstance(mapping, Mapping):
            raise ConfigError(
                f"TrainConfig: got {shown(mapping)}, expected a mapping of its fields"
            )
        values = with_file_defaults(read_names(cls, _named(cls, mapping)))
        for field in REGISTRIES:
            if isinstance(values.get(field), (str, Mapping)):
                values[field] = _from_plain(field, values[field])
        return cls(**values)

    @classmethod
    def from_purejaxrl(cls, config: Mapping[str, Plain]) -> Self:
        """A config from the upper-case keys of PureJaxRL's PPO or DQN.

        One `UserWarning` lists the differences.

        Raises:
            ConfigError: a key that PureJaxRL doesn't have, or see the class.
        """
        return cls.from_mapping(from_purejaxrl(config))

    def to_mapping(self) -> dict[str, Plain]:
        """The fields that aren't None as plain values, for `from_mapping`.

        Raises:
            ConfigError: a field holds a function, a class, or an environment that `make` can't
                make, which have no plain form.
        """
        return to_plain(self)


def to_file(config: TrainConfig, left: list[str]) -> dict[str, Plain]:
    """The plain form of a config for a file: what was given, and under `defaults` what the run
    takes in place of the rest.

    Args:
        config: of a run.
        left: a list to which the paths of fields without a plain form are appended.
    """
    plain = to_plain(config, left)
    defaults = split_defaults(plain, to_plain(in_force(config), []))
    agent = plain.get("agent")
    if not defaults or not isinstance(agent, dict):
        return plain
    if "episode_length" in agent:  # from which they follow
        defaults = {n: x for n, x in defaults.items() if n not in ("num_envs", "update_every")}
    defaults["agent"] = {"name": agent["name"], **defaults.get("agent", {})}
    return {**plain, DEFAULTS: defaults}


def _named(cls: type, mapping: Mapping[str, Plain]) -> dict[str, Plain]:
    """The mapping as a dict. Raises ConfigError for a key that is no string."""
    names: list[object] = list(mapping)
    for name in names:
        if not isinstance(name, str):
            known = suggest(name, field_names(cls))
            raise ConfigError(f"{cls.__name__}: no field {shown(name)}; {known}")
    return dict(mapping)


def _from_plain(field: str, spec: str | Mapping[str, Plain]) -> object:
    """An agent, noise, rewarder or buffer from its name, or from a mapping with its name."""
    registry = REGISTRIES[field]
    values = {"name": spec} if isinstance(spec, str) else dict(spec)
    name = values.pop("name", DEFAULT_NAMES.get(field))
    if name is None:
        raise ConfigError(f"{field}: no name in {shown(spec)}; known: {', '.join(registry)}")
    if str(name).lower() not in registry:
        raise ConfigError(f"{field}: no {field} {shown(name)}; {suggest(name, registry)}")
    cls = registry[str(name).lower()]
    return cls(**_named(cls, values))


def to_plain(record: Record, left: list[str] | None = None, path: str = "") -> dict[str, Plain]:
    """Plain values of a record's fields, those that aren't their default `None`.

    Args:
        record: a config, or a part of one.
        left: a list to which the paths of fields without a plain form are appended; None raises
            for them.
        path: the prefix of these paths.

    Raises:
        ConfigError: as `TrainConfig.to_mapping`.
    """
    plain: dict[str, Plain] = {}
    for name, field in field_options(type(record)).items():
        value = getattr(record, name)
        if value is None and field.default is None:
            continue
        try:
            plain[name] = plain_value(type(record), name, value, left, path + name)
        except ConfigError:
            if left is None:
                raise
            left.append(path + name)
    return plain


def plain_value(
    cls: type, name: str, value: object, left: list[str] | None = None, path: str = ""
) -> Plain:
    """The plain form of a field's value. Raises ConfigError if it has none."""
    for kind, known in REGISTRIES.get(name, {}).items():
        if type(value) is known:
            named = {"name": kind} if name != "buffer" else {}
            return named | to_plain(cast(Record, value), left, f"{path}.")
    options = field_options(cls)[name].metadata.get("options", {})
    for word, known in options.items():
        if value is known:
            return word
    if isinstance(value, jax.Array) and value.shape == ():
        return float(value)
    if isinstance(value, Env):
        with sentence(f"{cls.__name__}.{name}"):
            return plain_env(value)
    if isinstance(value, tuple):
        return list(value)
    if value is not None and not isinstance(value, (bool, int, float, str)):
        raise ConfigError(f"{cls.__name__}.{name}: {value!r} has no plain form")
    return value
