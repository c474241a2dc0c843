"""Hyperparameters by path: the float fields of a run's parts.

A path is a part and a field of it, such as `noise.sigma`; a bare name is a field of the agent.
A part is a record, or the environment, whose fields are its parameters: `env.gravity`.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from purerl.envs.base import Env
from purerl.envs.params import (
    check_traceable,
    env_params,
    is_drawn,
    is_float,
    is_traceable,
    replace_params,
)
from purerl.records.aliases import field_of
from purerl.records.errors import ConfigError, shown, suggest
from purerl.records.fields import Record, check_value, field_names

# A run's records and its environment by prefix; None for a part that the run doesn't have.
Parts = dict[str, Any]
# Values by path: scalars, or `[S]` for S runs.
Value = jax.Array | np.ndarray | np.generic | float | Sequence[float]
Hyperparams = Mapping[str, Value] | None


class Path(NamedTuple):
    """A field of a run's part."""

    part: str
    field: str

    def __str__(self) -> str:
        return self.field if self.part == "agent" else f"{self.part}.{self.field}"


def read_path(parts: Parts, name: object, argument: str = "hyperparams") -> Path:
    """The path of a field of the run, static ones included, from its name or an alias.

    Raises:
        ConfigError: there is no such part, the run doesn't have it, or it has no such field.
    """
    if not isinstance(name, str):
        raise ConfigError(_no_field(parts, argument, "agent", name))
    prefix, dot, field = name.rpartition(".")
    part = prefix if dot else "agent"
    if part not in parts:
        raise ConfigError(
            f"{argument}: no part {shown(prefix)} in {shown(name)}; {suggest(prefix, parts)}"
        )
    if parts[part] is None:
        raise ConfigError(f"{argument}: got {shown(name)}, but the run has no {part}")
    field = field_of(field, known_fields(parts[part]))
    if field not in known_fields(parts[part]):
        raise ConfigError(_no_field(parts, argument, part, field))
    return Path(part, field)


def _no_field(parts: Parts, argument: str, part: str, field: object) -> str:
    """The message for a name that a part doesn't have, with suggestions."""
    here = [str(Path(part, known)) for known in known_fields(parts[part], traced=True)]
    paths = [Path(p, f) for p in parts for f in known_fields(parts[p], traced=True)]
    elsewhere = [str(path) for path in paths if path.field == field and path.part != part]
    hint = f"did you mean {' or '.join(map(repr, elsewhere))}?" if elsewhere else ""
    name = str(Path(part, field)) if isinstance(field, str) else field
    if not here and not hint:
        return f"{argument}: got {shown(name)}, but {_title(parts[part])} has no parameters"
    hint = hint or suggest(name, here)
    return f"{argument}: {_title(parts[part])} has no {shown(field)}; {hint}"


def _title(part: object) -> str:
    return part.spec.name if isinstance(part, Env) else type(part).__name__


def check_hyperparams(parts: Parts, hyperparams: Hyperparams) -> dict[Path, Value]:
    """Hyperparameters by path, {} for None. Values aren't checked; `check_field` does.

    Raises:
        ConfigError: they are no mapping; a name of no float field of the run; a field given twice.
    """
    if hyperparams is None:
        return {}
    if not isinstance(hyperparams, Mapping):
        raise ConfigError(
            f"hyperparams: got {shown(hyperparams)}, expected a mapping of names to values, such "
            'as {"lr": 3e-4}'
        )
    found: dict[Path, Value] = {}
    for path, name in read_paths(parts, hyperparams):
        if path.field not in known_fields(parts[path.part], traced=True):
            raise ConfigError(
                f"hyperparams: {_title(parts[path.part])}.{path.field} is static, it fixes "
                "the program: make a config for each of its values"
            )
        found[path] = hyperparams[name]
    return found


def read_paths(
    parts: Parts, names: Iterable[str], argument: str = "hyperparams"
) -> Iterator[tuple[Path, str]]:
    """Each path with its name. Raises ConfigError as `read_path`, and for two names of a field."""
    found: dict[Path, str] = {}
    for name in names:
        path = read_path(parts, name, argument)
        if path in found:
            raise ConfigError(
                f"{argument}: {shown(found[path])} and {shown(name)} are the same field, expected "
                "one of them"
            )
        found[path] = name
        yield path, name


def with_hyperparams(parts: Parts, hyperparams: Hyperparams) -> Parts:
    """The parts that hyperparameters change, with the new values, which may be traced.

    Args:
        parts: from `TrainConfig.parts`.
        hyperparams: scalars by name, or None.

    Raises:
        ConfigError: a name that is no float field, or a value that can't be used.
    """
    changes: dict[str, dict[str, Value]] = {}
    for (part, field), value in check_hyperparams(parts, hyperparams).items():
        check_field(parts[part], field, value)
        # Arrays of another precision would promote all that is computed with them.
        array = isinstance(value, (jax.Array, np.ndarray))
        changes.setdefault(part, {})[field] = jnp.asarray(value, jnp.float32) if array else value
    return {part: replace_fields(parts[part], values) for part, values in changes.items()}


def known_fields(part: object, traced: bool | None = None) -> list[str]:
    """Names of a part's fields; with `traced` the float ones only. A rewarder that is a user's
    function has none."""
    if isinstance(part, Env):
        params = env_params(part).items()
        return [n for n, x in params if traced in (None, is_float(x) or is_drawn(x))]
    return field_names(type(part), traced) if isinstance(part, Record) else []


def is_hyperparam(part: object, field: str) -> bool:
    """Whether a field may be traced; some float parameters of environments may not."""
    if isinstance(part, Env):
        return is_traceable(part, field)
    return field in known_fields(part, traced=True)


def env_hyperparams(parts: Parts, hyperparams: Hyperparams) -> dict[str, jax.Array]:
    """The environment's parameters among the hyperparameters, `[]` float32 each, by name. Raises
    ConfigError as `check_hyperparams`."""
    found = check_hyperparams(parts, hyperparams)
    return {p.field: jnp.asarray(x, jnp.float32) for p, x in found.items() if p.part == "env"}


def check_field(part: object, field: str, value: object) -> Any:
    """The value, converted to the field's type. Raises ConfigError if it can't be used."""
    if isinstance(part, Env):
        check_traceable(part, field, value)
        return value
    return check_value(type(part), field, value)


def replace_fields(part: Any, values: Mapping[str, Value]) -> Any:
    """The part with some fields changed. Raises ConfigError if they don't fit together."""
    return replace_params(part, values) if isinstance(part, Env) else part.replace(**values)
