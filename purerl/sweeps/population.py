"""A population's hyperparameters: their space, who is replaced by whom, and how copies differ.

Plain numpy on the host: these are a few numbers for each interval, and the members' states, which
are large, stay where they are.
"""

from collections.abc import Mapping, Sequence

import jax
import numpy as np

from purerl.envs.base import Env
from purerl.envs.params import check_traceable
from purerl.experience.metrics import Metrics
from purerl.records.draws import Uniform
from purerl.records.errors import ConfigError, shown
from purerl.records.fields import field_names
from purerl.statistics import mean_returns
from purerl.sweeps.plan import read_name, rng_of
from purerl.sweeps.result import last_eval
from purerl.training.config import TrainConfig
from purerl.training.hyperparams import (
    Parts,
    is_hyperparam,
    known_fields,
    read_paths,
    with_hyperparams,
)

# Distributions by path, as `str(Path)` writes it; and values `[P]` float32 by path.
Space = dict[str, Uniform]
Values = dict[str, np.ndarray]


def read_space(config: TrainConfig, space: object) -> Space:
    """A space with its names resolved, and its bounds checked.

    Args:
        config: of the run.
        space: distributions by name, as for `purerl.evolve`.

    Raises:
        ConfigError: no mapping, no distribution with bounds, an unknown name, a field that can't be
            traced, or a bound that the field doesn't allow.
    """
    if not isinstance(space, Mapping) or not space:
        raise ConfigError(
            f"space: got {shown(space)}, expected a mapping of names to distributions, such as "
            '{"lr": purerl.LogUniform(1e-5, 1e-2)}'
        )
    parts = config.parts()
    paths = [f"{part}.{field}" for part in parts for field in known_fields(parts[part])]
    names = {name: _field(config, name, paths) for name in space}
    resolved: Space = {}
    for path, name in read_paths(parts, names.values(), "space"):
        given = next(x for x, field in names.items() if field == name)
        _check_traced(parts, path.part, path.field)
        if not isinstance(space[given], Uniform):
            raise ConfigError(
                f"space[{given!r}]: got {shown(space[given])}, expected a distribution with "
                "bounds, purerl.Uniform or purerl.LogUniform: members' values are perturbed"
            )
        resolved[str(path)] = space[given]
    for ends in ("low", "high"):
        with_hyperparams(parts, {name: getattr(x, ends) for name, x in resolved.items()})
    return resolved


def _field(config: TrainConfig, name: object, paths: Sequence[str]) -> str:
    """A field of a part by a name or an alias. Raises ConfigError."""
    if not isinstance(name, str):
        raise ConfigError(f"space: got the name {shown(name)}, expected names of fields")
    field = read_name(type(config.agent), name, paths, "space")
    if field in field_names(TrainConfig):
        raise ConfigError(f"space: TrainConfig.{field} {_STATIC}")
    return field


_STATIC = (
    "is static, it fixes the program, which all members share; expected a float of the agent, "
    "noise, rewarder, buffer or environment (purerl.sweep tries several values of static fields)"
)


def _check_traced(parts: Parts, part: str, field: str) -> None:
    """Raises ConfigError, with the reason, unless a field can be traced."""
    there = parts[part]
    if isinstance(there, Env):
        check_traceable(there, field)
    elif not is_hyperparam(there, field):
        raise ConfigError(f"space: {type(there).__name__}.{field} {_STATIC}")


def draw(space: Space, key: jax.Array, count: int) -> Values:
    """`[count]` values of each name: those of `sweep` with the space as its samples."""
    return {name: _inside(x.draw(rng_of(key, name), count), x) for name, x in space.items()}


def fitness_of(metrics: Metrics) -> np.ndarray:
    """`[P]` float32 of an interval's metrics `[P, rows]`: the return of the last evaluation, or
    without evaluations the mean return of the training episodes that ended; NaN for none, -inf
    where numbers that weren't finite are why."""
    if metrics.eval is not None:
        found = last_eval(metrics)
    else:
        found = mean_returns(metrics.episode_return, metrics.num_episodes)
    diverged = np.isnan(found) & (np.sum(metrics.nonfinite_updates, axis=1) > 0)
    return np.where(diverged, -np.inf, found).astype(np.float32)


def select(fitness: np.ndarray, fraction: float, rng: np.random.Generator) -> np.ndarray:
    """Truncation selection: each of the worst members is to copy one of the best, drawn uniformly.

    Args:
        fitness: `[P]`; members whose fitness is NaN neither copy nor are copied, those whose it is
            -inf are the worst, and not copied.
        fraction: of the members, those that are worst, and those that are best.
        rng: for the draws.

    Returns:
        `[P]` int32, the member that each one copies; its own index where it keeps what it has, also
        where the drawn one isn't better.
    """
    source = np.arange(len(fitness), dtype=np.int32)
    known = np.flatnonzero(~np.isnan(fitness))
    count = min(num_replaced(len(fitness), fraction), len(known) // 2)
    ranked = known[np.argsort(fitness[known], kind="stable")]
    best = [i for i in ranked[len(ranked) - count :] if np.isfinite(fitness[i])]
    if not best:
        return source
    worst, parents = ranked[:count], rng.choice(best, count)
    better = fitness[parents] > fitness[worst]
    source[worst[better]] = parents[better]
    return source


def num_replaced(population: int, fraction: float) -> int:
    """Members that are replaced at most: at least one, unless the fraction is 0."""
    return max(1, int(fraction * population + 1e-9)) if fraction > 0 else 0


def perturb(
    values: Values,
    space: Space,
    source: np.ndarray,
    rngs: Mapping[str, np.random.Generator],
    *,
    factors: Sequence[float],
    resample: float,
) -> Values:
    """The values after a selection: copies have those of their source, each multiplied by one of
    the factors, or drawn anew, and clipped to the space's bounds; the others keep theirs.

    Args:
        values: before it.
        space: of the values.
        source: `[P]`, from `select`.
        rngs: by name, so that the names' order changes nothing.
        factors: all equally likely.
        resample: probability that a value is drawn from the space's distribution.
    """
    number = len(source)
    copies = source != np.arange(number)
    new = {}
    for name, rng in rngs.items():
        old = values[name]
        scaled = old[source] * rng.choice(np.asarray(factors, np.float32), number)
        drawn = np.asarray(space[name].draw(rng, number), np.float32)
        changed = np.where(rng.random(number) < resample, drawn, scaled)
        new[name] = np.where(copies, _inside(changed, space[name]), old)
    return new


def _inside(values: Sequence[float] | np.ndarray, bounds: Uniform) -> np.ndarray:
    """Values as float32, clipped to the bounds."""
    array = np.asarray(values, np.float32)
    return np.clip(array, np.float32(bounds.low), np.float32(bounds.high))
