"""The plan of a sweep: its members, and the programs that train them."""

import dataclasses
import itertools
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import jax
import numpy as np

from purerl.accelerator.devices import check_one_host
from purerl.envs.registry import with_params
from purerl.records.aliases import field_of
from purerl.records.draws import list_values
from purerl.records.errors import ConfigError, shown, suggest
from purerl.records.fields import check_key, check_value, field_names, read_names, unchecked
from purerl.training.config import TrainConfig
from purerl.training.hyperparams import (
    Parts,
    is_hyperparam,
    known_fields,
    read_path,
    read_paths,
    replace_fields,
    with_hyperparams,
)
from purerl.training.train import list_seeds

Values = dict[str, Any]


class Distribution(Protocol):
    """`Uniform`, `LogUniform`, `Choice`, or the user's, to draw hyperparameters from."""

    def draw(self, rng: np.random.Generator, count: int, /) -> list[Any]:
        """`[count]` values."""
        ...


@dataclasses.dataclass(frozen=True)
class Group:
    """S members that one program trains: they differ in seeds and in float hyperparameters only.

    Attributes:
        config: of all of them; hyperparameters in `hyperparams` have an arbitrary value in it.
        static: the swept values that fix the program, by name.
        members: `[S]` int64, indices in the sweep.
        keys: `[S, ...]` uint32, key data.
        hyperparams: `[S]` float32 each, by name.
    """

    config: TrainConfig
    static: Values
    members: np.ndarray
    keys: np.ndarray
    hyperparams: dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Plan:
    """All members of a sweep: member i has combination `i // len(seeds)`, seed `i % len(seeds)`.

    Attributes:
        config: common to all members.
        names: the swept fields.
        combinations: values by name.
        seeds: seed s trains with `jax.random.key(s)`.
        groups: one for each program.
    """

    config: TrainConfig
    names: tuple[str, ...]
    combinations: tuple[Values, ...]
    seeds: tuple[int, ...]
    groups: tuple[Group, ...]

    @property
    def num_members(self) -> int:
        """Agents that are trained."""
        return len(self.combinations) * len(self.seeds)


def make_plan(
    config: TrainConfig | Mapping[str, object],
    seeds: int | Sequence[int],
    grid: Mapping[str, object] | None,
    samples: Mapping[str, Distribution] | None,
    num_samples: int | None,
    key: jax.Array | None,
) -> Plan:
    """Lists a sweep's members, and checks them all; arguments and errors as in `sweep`."""
    config = check_base(config)
    seeds = list_seeds(seeds)
    axes, distributions = _axes(grid), _distributions(samples, num_samples, key)
    names = read_fields(config, axes, distributions)
    points = [dict(zip(axes, point, strict=True)) for point in itertools.product(*axes.values())]
    points = [{names[name]: value for name, value in point.items()} for point in points]
    draws = _draw({names[name]: x for name, x in distributions.items()}, num_samples, key)
    combinations = [{**point, **draw} for draw in draws for point in points]
    return plan_of(config, tuple(names.values()), combinations, seeds)


def check_base(config: TrainConfig | Mapping[str, object]) -> TrainConfig:
    """The config that all members have in common. Raises ConfigError where it can't be swept."""
    check_one_host("sweep")
    if not isinstance(config, TrainConfig):
        config = TrainConfig.from_mapping(config)
    if getattr(config, "num_devices", 1) not in (None, 1):
        raise ConfigError(
            "num_devices: a sweep lays whole members over the devices, leave it out of the config"
        )
    return config


def plan_of(
    config: TrainConfig,
    names: tuple[str, ...],
    combinations: Sequence[Values],
    seeds: tuple[int, ...],
    misfits: dict[int, str] | None = None,
) -> Plan:
    """The plan of given combinations.

    Args:
        config: common to all members.
        names: of the swept fields, as `read_fields` returns them.
        combinations: values by name.
        seeds: of each combination.
        misfits: a dict that gets the error of each combination that can't be trained, by its index;
            such a combination is in no group. None raises the first error.

    Raises:
        ConfigError: an invalid value, or values that don't fit each other.
    """
    groups = _groups(config, seeds, combinations, misfits)
    return Plan(config, names, tuple(combinations), seeds, groups)


def _axes(grid: Mapping[str, object] | None) -> dict[str, list[object]]:
    """The values of each name of the grid. Raises ConfigError."""
    if grid is not None and not isinstance(grid, Mapping):
        raise ConfigError(f"grid: got {shown(grid)}, expected a mapping of names to values")
    for name in grid or {}:
        if not isinstance(name, str):
            raise ConfigError(f"grid: got the name {shown(name)}, expected names of fields")
    return {name: list_values(f"grid[{name!r}]", values) for name, values in (grid or {}).items()}


def _distributions(
    samples: Mapping[str, Distribution] | None, num_samples: int | None, key: jax.Array | None
) -> Mapping[str, Distribution]:
    """Distributions by name, {} for none. Raises ConfigError."""
    if samples is None:
        if num_samples is not None or key is not None:
            raise ConfigError("num_samples, key: are for samples, expected samples as well")
        return {}
    if not isinstance(samples, Mapping) or not samples:
        raise ConfigError(
            f"samples: got {shown(samples)}, expected a mapping of names to distributions"
        )
    if isinstance(num_samples, bool) or not isinstance(num_samples, int) or num_samples < 1:
        raise ConfigError(f"num_samples: got {shown(num_samples)}, expected an integer >= 1")
    for name, distribution in samples.items():
        if not isinstance(name, str):
            raise ConfigError(f"samples: got the name {shown(name)}, expected names of fields")
        if not hasattr(distribution, "draw") or isinstance(distribution, type):
            raise ConfigError(
                f"samples[{name!r}]: got {shown(distribution)}, expected a distribution: "
                "purerl.Uniform, purerl.LogUniform or purerl.Choice"
            )
    return samples


def read_fields(
    config: TrainConfig,
    axes: Mapping[str, Sequence[object]],
    distributions: Mapping[str, object],
    argument: str = "sweep",
) -> dict[str, str]:
    """Each given name, perhaps an alias, with its field in the plan's notation.

    Args:
        config: common to all members.
        axes: lists of values by name.
        distributions: further names.
        argument: the first word of errors.

    Raises:
        ConfigError: no such field in the config or in a part of the run, or two names of one field.
    """
    for name in axes:
        if name in distributions:
            raise ConfigError(f"samples: {name!r} is in the grid too, expected in one of them")
    given = [*axes, *distributions]
    read_names(TrainConfig, dict.fromkeys(given))  # raises where two names are of one field
    firsts = {name: values[0] for name, values in axes.items()}
    parts = parts_of(config, read_names(TrainConfig, firsts))
    paths = [f"{part}.{field}" for part in parts for field in known_fields(parts[part])]
    agent = type(parts["agent"])
    names = {name: read_name(agent, name, paths, argument) for name in given}
    of_parts = [name for name in given if not of_config(names[name])]
    return names | {name: str(path) for path, name in read_paths(parts, of_parts, argument)}


def _draw(
    distributions: Mapping[str, Distribution], num_samples: int | None, key: jax.Array | None
) -> list[Values]:
    """Drawn values. Those of a name depend on the key and the name only; with a larger
    `num_samples` the first ones stay the same."""
    if not distributions or num_samples is None:
        return [{}]
    key = jax.random.key(0) if key is None else key
    check_key(key)
    drawn = {name: x.draw(rng_of(key, name), num_samples) for name, x in distributions.items()}
    return [dict(zip(drawn, row, strict=True)) for row in zip(*drawn.values(), strict=True)]


def rng_of(key: jax.Array, name: str, *numbers: int) -> np.random.Generator:
    """A generator on the host for what is drawn under a name, and numbers, from a key."""
    entropy = np.asarray(jax.random.key_data(key)).tolist()
    return np.random.default_rng([*entropy, zlib.crc32(name.encode()), *numbers])


def _groups(
    config: TrainConfig,
    seeds: tuple[int, ...],
    combinations: Sequence[Values],
    misfits: dict[int, str] | None,
) -> tuple[Group, ...]:
    """Combinations grouped by the static values that fix a program; arguments and errors as in
    `plan_of`."""
    groups: list[tuple[Values, Parts, TrainConfig, list[int]]] = []
    for i, values in enumerate(combinations):
        try:
            _group(config, values, groups).append(i)
        except ConfigError as error:
            if misfits is None:
                raise
            misfits[i] = str(error)
    num, keys = len(seeds), np.stack([jax.random.key_data(jax.random.key(s)) for s in seeds])
    made = []
    for static, _, of_group, indices in groups:
        if not indices:  # its only combination is a misfit
            continue
        members = (np.array(indices)[:, None] * num + np.arange(num)).reshape(-1)
        names = [name for name in combinations[indices[0]] if name not in static]
        hyperparams = {
            name: np.repeat(np.array([combinations[i][name] for i in indices], np.float32), num)
            for name in names
        }
        tiled = np.tile(keys, (len(indices), 1))
        made.append(Group(of_group, static, members, tiled, hyperparams))
    return tuple(made)


def _group(
    config: TrainConfig,
    values: Values,
    groups: list[tuple[Values, Parts, TrainConfig, list[int]]],
) -> list[int]:
    """The combinations of the group that a combination belongs to, which may be a new one. Raises
    ConfigError for any invalid value."""
    parts = parts_of(config, values)
    # None is no number that could be mapped over: it fixes the program too.
    traced = [n for n in values if values[n] is not None and is_traced(parts, n)]
    static = {name: value for name, value in values.items() if name not in traced}
    group = next((g for g in groups if same_values(g[0], static)), None)
    if group is None:
        group = static, parts, configure(config, values), []
        groups.append(group)
    with_hyperparams(group[1], {name: values[name] for name in traced})
    return group[3]


def same_values(one: Values, other: Values) -> bool:
    """Whether values are equal and of equal types: True is not 1."""
    return one.keys() == other.keys() and all(
        type(one[name]) is type(other[name]) and bool(one[name] == other[name]) for name in one
    )


def parts_of(config: TrainConfig, values: Values) -> Parts:
    """The parts of the run with the config's fields replaced. Raises ConfigError."""
    changes = {n: check_value(TrainConfig, n, x) for n, x in values.items() if of_config(n)}
    return unchecked(config, **changes).parts()


def of_config(name: str) -> bool:
    """Whether a name is a field of the config itself."""
    return name in field_names(TrainConfig)


def is_traced(parts: Parts, name: str) -> bool:
    """Whether a swept value is a hyperparameter, which members of one program may differ in."""
    if of_config(name):
        return False
    path = read_path(parts, name, "sweep")
    return is_hyperparam(parts[path.part], path.field)


def read_name(agent: type, name: str, paths: Iterable[str] = (), argument: str = "sweep") -> str:
    """The field of the config or of the agent with this name or alias. Paths, such as
    `noise.sigma`, are returned as they are; the plan resolves them.

    Args:
        agent: the agent's class.
        name: of a swept field.
        paths: fields of the other parts, for the error's suggestions.
        argument: the first word of errors.

    Raises:
        ConfigError: neither has such a field, or both have one under this name.
    """
    if "." in name:
        return name
    of_config, of_agent = field_names(TrainConfig), field_names(agent)
    found = [field for known in (of_config, of_agent) if (field := field_of(name, known)) in known]
    if not found:
        meant = [repr(path) for path in paths if path.endswith(f".{name}")]
        hint = f"did you mean {' or '.join(meant)}?" if meant else ""
        raise ConfigError(
            f"{argument}: neither TrainConfig nor {agent.__name__} has a field {name!r}; "
            f"{hint or suggest(name, of_agent + of_config)}"
        )
    if len(set(found)) > 1:
        raise ConfigError(
            f"{argument}: {name!r} may be {found[0]!r} of TrainConfig or {found[1]!r} of "
            f"{agent.__name__}, expected one of them"
        )
    return found[0]


def configure(config: TrainConfig, values: Values) -> TrainConfig:
    """The config with values replaced in it and in the parts of the run.

    Raises:
        ConfigError: a name that none of them has, or an invalid value.
    """
    changes = {name: value for name, value in values.items() if of_config(name)}
    parts = parts_of(config, values)
    of_parts: dict[str, Values] = {}
    for path, name in read_paths(parts, [name for name in values if name not in changes], "sweep"):
        of_parts.setdefault(path.part, {})[path.field] = values[name]
    for part, fields in of_parts.items():
        # The environment is made again, so that its spec and its source have the values.
        replace = with_params if part == "env" else replace_fields
        changes[part] = replace(parts[part], fields)
    if "rewarder" in of_parts:
        changes["normalize_reward"] = False  # the config has the rewarder in its place
    return config.replace(**changes)
