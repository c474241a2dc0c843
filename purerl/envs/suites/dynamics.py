"""What the adapters of all suites share: outputs put right, spaces found, the time limit lifted."""

import contextlib
import dataclasses
import functools
import inspect
import os
import types
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from purerl.envs.base import Dynamics, Env, EnvSpec, TimeStep, time_limit
from purerl.envs.loose import cast, common_dtypes, usual_promotion
from purerl.envs.params import is_float
from purerl.envs.spaces import Box, map_spaces
from purerl.records.errors import ConfigError, sentence, shown
from purerl.records.types import PyTree

Foreign: TypeAlias = Any  # an object of a suite, whose classes are not imported here
LIMIT = "max_episode_steps"  # the parameter that every environment of a suite has
NEVER = 2**30  # steps: the limit of a suite that is lifted
OUTPUTS = ("space", "dtypes", "rules")  # fields of dynamics that follow from the others
# Types of attributes that are described as they are.
PLAIN = (bool, int, float, str, tuple, list, np.ndarray, np.generic, jax.Array, functools.partial)
MASK = "action_mask"  # the key of the mask of legal actions in a dict observation


class Maker(NamedTuple):
    """The factory of one environment.

    Attributes:
        call: `(**parameters) -> Env`.
        defaults: its parameters by name, with their defaults; a default of None takes any value.
    """

    call: Callable[..., Env]
    defaults: dict[str, object]


class Outcome(NamedTuple):
    """A step as a suite gives it, with any dtypes. Attributes as in `TimeStep`, and the state."""

    obs: PyTree
    state: PyTree
    reward: PyTree
    terminated: PyTree
    truncated: PyTree = False
    info: Mapping[str, PyTree] = {}


@dataclasses.dataclass(frozen=True, eq=False)
class SuiteDynamics(Dynamics):
    """The dynamics of a suite's environment. Subclasses write `begin` and `advance`.

    Attributes:
        env: the suite's environment.
        given: its parameters, a dataclass, where the suite keeps them apart; the float ones are
            parameters of the `Env`, which may be traced.
        space: the observation space; None before it is known.
        dtypes: of the state's leaves, in its structure; None before they are known.
    """

    env: Foreign
    given: PyTree = None
    space: PyTree = None
    dtypes: PyTree = None

    def begin(self, key: jax.Array) -> tuple[PyTree, PyTree]:
        """The observation and state at an episode's start."""
        raise NotImplementedError

    def advance(self, key: jax.Array, state: PyTree, action: jax.Array) -> Outcome:
        """A step of the raw dynamics, without any reset."""
        raise NotImplementedError

    def reset(self, key: jax.Array) -> tuple[PyTree, PyTree]:
        with theirs():
            obs, state = self.begin(key)
        return self._observed(obs), cast(state, self.dtypes)

    def step(self, key: jax.Array, state: PyTree, action: jax.Array) -> tuple[PyTree, TimeStep]:
        with theirs():
            out = self.advance(key, state, action)
        terminated = jnp.asarray(out.terminated, bool).reshape(())
        truncated = jnp.asarray(out.truncated, bool).reshape(()) & ~terminated
        reward = jnp.asarray(out.reward, jnp.float32).reshape(())
        info = {name: cast(x) for name, x in out.info.items()}
        timestep = TimeStep(self._observed(out.obs), reward, terminated, truncated, info)
        return cast(out.state, self.dtypes), timestep

    def _observed(self, obs: PyTree) -> PyTree:
        obs = as_dicts(obs)
        return cast(obs, None if self.space is None else map_spaces(lambda s: s.dtype, self.space))

    def identity(self) -> dict[str, object]:
        fields = [f.name for f in dataclasses.fields(self) if f.name not in OUTPUTS]
        return {
            "suite": type(self.env),
            "attributes": attributes(self.env),
            **{name: getattr(self, name) for name in fields if name != "env"},
        }

    def params(self) -> dict[str, object]:
        return {name: x for name, x in fields_of(self.given).items() if is_float(x)}

    def replace_params(self, values: Mapping[str, object]) -> "SuiteDynamics":
        return dataclasses.replace(self, given=dataclasses.replace(self.given, **values))


def attributes(env: Foreign, depth: int = 3) -> dict[str, object]:
    """The attributes that tell environments of a class apart, by name: numbers, text, arrays,
    dataclasses, functions, and the same of objects of the suite among them, such as the environment
    inside a wrapper; no viewers and no caches, which change as the environment is used."""
    suite = type(env).__module__.partition(".")[0]
    found: dict[str, object] = {}
    for name, x in getattr(env, "__dict__", {}).items():
        cached = isinstance(getattr(type(env), name, None), functools.cached_property)
        if cached or "viewer" in name or isinstance(x, types.ModuleType):
            continue
        named = hasattr(x, "__qualname__")
        if isinstance(x, str) and os.path.isabs(x):
            found[name] = os.path.basename(x)  # the folder is the machine's
        elif x is None or isinstance(x, PLAIN) or named or dataclasses.is_dataclass(x):
            found[name] = x
        elif hasattr(x, "items"):  # a dict, or a config that is none
            found[name] = dict(x.items())
        elif depth and type(x).__module__.partition(".")[0] == suite:
            found[name] = {"class": type(x), **attributes(x, depth - 1)}
    return found


@contextlib.contextmanager
def theirs() -> Iterator[None]:
    """A context for code of suites: JAX's default promotion, and none of the warnings that only a
    suite's authors can do something about."""
    with usual_promotion(), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        warnings.filterwarnings("ignore", "Brax System, piplines and environments", UserWarning)
        yield


def fields_of(params: PyTree) -> dict[str, object]:
    """The fields of a dataclass by name; `{}` for anything else."""
    if not dataclasses.is_dataclass(params) or isinstance(params, type):
        return {}
    return {field.name: getattr(params, field.name) for field in dataclasses.fields(params)}


def build(
    dynamics: SuiteDynamics,
    spec: EnvSpec,
    limit: object = None,
) -> Env:
    """An `Env` of a suite's dynamics.

    Args:
        dynamics: without `space` and `dtypes`, which are found by tracing.
        spec: of the environment; where its observation space is None, shapes and dtypes of the
            observations give it, with infinite bounds for numbers.
        limit: a time limit to be counted here; None if there is none, or the dynamics count.

    Raises:
        ConfigError: it can't be traced, or the limit is no integer >= 1.
    """
    key = jax.eval_shape(lambda: jax.random.key(0))
    with sentence(f"env: {spec.name!r} can't be traced"):
        obs, first = jax.eval_shape(dynamics.reset, key)
        space = spec.observation_space
        space = jax.tree.map(box_of, obs) if space is None else space
        action = jax.eval_shape(spec.action_space.sample, key)
        second, timestep = jax.eval_shape(dynamics.step, key, first, action)
        dtypes = common_dtypes(first, second)
    metrics = tuple(name for name in spec.metrics if timestep.info[name].shape == ())
    spec = spec._replace(observation_space=space, metrics=metrics)
    env = dataclasses.replace(dynamics, space=space, dtypes=dtypes).as_env(spec)
    return env if limit is None else time_limit(env, limit)  # type: ignore[arg-type]


def box_of(x: jax.ShapeDtypeStruct) -> Box:
    """A Box for arrays of which only shape and dtype are known."""
    if x.dtype == np.bool_:
        return Box(0, 1, x.shape, x.dtype)
    if x.dtype == np.uint8:
        return Box(0, 255, x.shape, x.dtype)
    return Box(-np.inf, np.inf, x.shape, x.dtype)


def as_dicts(tree: PyTree) -> PyTree:
    """A pytree with dicts in place of NamedTuples, dataclasses and other mappings, so that spaces
    have the same structure, and go into files."""
    if isinstance(tree, Mapping):
        return {str(name): as_dicts(x) for name, x in tree.items()}
    if isinstance(tree, tuple):
        fields = getattr(tree, "_fields", None)
        if fields is None:
            return tuple(map(as_dicts, tree))
        return {name: as_dicts(x) for name, x in zip(fields, tree, strict=True)}
    if dataclasses.is_dataclass(tree) and not hasattr(tree, "dtype"):
        return {name: as_dicts(x) for name, x in fields_of(tree).items()}
    return tree


def plain_defaults(
    function: Callable[..., object], without: Iterable[str] = ()
) -> dict[str, object]:
    """The parameters of a suite's constructor that have a number, a text or a tuple as default."""
    kinds = (bool, int, float, str, tuple)
    parameters = inspect.signature(function).parameters
    return {
        name: x.default
        for name, x in parameters.items()
        if name not in without and isinstance(x.default, kinds)
    }


def refuse_wrapper(env: object, words: Iterable[str], instead: str) -> None:
    """Raises ConfigError if an environment, or one inside it, is of a class that resets by itself.

    Args:
        env: a suite's environment, or a wrapper, whose inner environment is its attribute `env` or
            `_env`.
        words: names of such classes.
        instead: what to do, for the message.
    """
    names, inside = set(words), env
    while inside is not None:
        for cls in type(inside).__mro__:
            if cls.__name__ in names:
                raise ConfigError(
                    f"env: got {shown(type(env).__name__)}: {cls.__name__} resets, or counts time "
                    f"by itself, which purerl does; {instead}"
                )
        inside = (
            vars(inside).get("env", vars(inside).get("_env"))
            if hasattr(inside, "__dict__")
            else None
        )
