"""The adapter for gymnax: its environments, and a user's `gymnax` `Environment`.

The adapter calls the raw dynamics (`reset_env`, `step_env`, `is_truncated`), without gymnax's
auto-reset, and corrects their outputs: rewards become float32 scalars, `terminated` takes
precedence over `truncated`, a `Discrete` observation becomes one-hot, the spec has the dtypes that
observations really have, bounds that are known to be wrong become infinite, and states keep their
dtypes.
"""

import ast
import contextlib
import dataclasses
import importlib
import importlib.metadata
import importlib.util
import inspect
import pathlib
import sys
import warnings
from collections.abc import Callable, Mapping
from typing import TypeGuard

import jax
import jax.numpy as jnp
import numpy as np
from jax.interpreters import partial_eval

from purerl.envs.base import Dynamics, Env, EnvSource, EnvSpec, TimeStep
from purerl.envs.gymnax_wrappers import (
    GymnaxEnv,
    Watch,
    check_called,
    packed,
    unpacked,
    watched,
    whole_step,
    without_resets,
    wrapped,
)
from purerl.envs.loose import cast, common_dtypes, usual_promotion
from purerl.envs.params import (
    Made,
    Rule,
    check_acting,
    differing,
    followed,
    given_among,
    is_same,
    rules_of,
)
from purerl.envs.spaces import Box, convert_spaces, is_space
from purerl.records.errors import ConfigError, sentence, shown
from purerl.records.types import PyTree

NEEDS_DOWNLOAD = ("MNISTBandit-bsuite",)
# Environments whose observations exceed the bounds of their spaces.
WRONG_BOUNDS = ("MemoryChain-bsuite", "MetaMaze-misc", "GaussianBandit-misc")
LIMIT = "max_steps_in_episode"


def names() -> list[str]:
    """Names of the registered gymnax environments.

    Importing gymnax takes seconds: until it is imported, the names are parsed from its source.
    """
    if "gymnax" not in sys.modules:
        with contextlib.suppress(Exception):  # another version of gymnax is imported instead
            return _names_in_source()
    return list(importlib.import_module("gymnax").registered_envs)


def _names_in_source() -> list[str]:
    spec = importlib.util.find_spec("gymnax")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    source = pathlib.Path(spec.submodule_search_locations[0], "registration.py").read_text()
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_BUILTIN_ENV_IDS":
            return list(ast.literal_eval(node.value))
    raise LookupError


def construct(name: str, kwargs: Mapping[str, object]) -> GymnaxEnv:
    """A registered gymnax environment.

    Args:
        name: such as `"CartPole-v1"`.
        kwargs: for its constructor.

    Raises:
        ConfigError: the environment can't be made, such as MNISTBandit-bsuite, which needs a
            download.
    """
    _check_files()
    try:
        made: GymnaxEnv = importlib.import_module("gymnax").make(name, **kwargs)[0]
        return made
    except OSError as error:
        why = "it wants to download a data set" if name in NEEDS_DOWNLOAD else str(error)
        raise ConfigError(f"env: {name!r} can't be made here: {why}") from error
    except Exception as error:
        given = f" with {kwargs}" if kwargs else ""
        raise ConfigError(f"env: {name!r} can't be made{given}: {error}") from error


def _check_files() -> None:
    """Raises ConfigError if another package has overwritten gymnax."""
    base = importlib.import_module("gymnax.environments.environment").Environment
    if hasattr(base, "is_truncated"):
        return
    try:
        importlib.metadata.version("stable-gymnax")
    except importlib.metadata.PackageNotFoundError:
        return
    raise ConfigError(
        "env: gymnax's files are overwritten by the package stable-gymnax, of popgym-arcade, which "
        "has the same folder: pip uninstall stable-gymnax, then pip install --force-reinstall "
        "--no-deps gymnax"
    )


def is_gymnax(env: object) -> TypeGuard[GymnaxEnv]:
    """Whether it is a gymnax environment or a wrapper of one; False for a class."""
    return hasattr(env, "step_env") and not isinstance(env, type)


def params_by_name(params: PyTree) -> dict[str, object]:
    """A gymnax environment's parameters by name."""
    if not dataclasses.is_dataclass(params):
        return {}
    return {field.name: getattr(params, field.name) for field in dataclasses.fields(params)}


def known_source(env: GymnaxEnv, params: PyTree = None) -> EnvSource | None:
    """The call of `make` that gives the same environment as a gymnax environment and its parameters
    (None for the defaults). None if there is none: an unregistered class, attributes that its
    constructor doesn't reproduce, parameters of another class, or traced ones."""
    with jax.ensure_compile_time_eval():
        return _known_source(env, env.default_params if params is None else params)


def _known_source(env: GymnaxEnv, params: PyTree) -> EnvSource | None:
    try:
        if env.name not in names() or _has_tracers((vars(env), params)):
            return None
        default = construct(env.name, {})
        if type(env) is not type(default):
            return None
        given = {
            name: getattr(env, name)
            for name in inspect.signature(type(env)).parameters
            if hasattr(env, name) and not is_same(getattr(env, name), getattr(default, name, None))
        }
        again = construct(env.name, given) if given else default
        if not _same_attributes(vars(again), vars(env)):
            return None
        usual = again.default_params
        if type(usual) is not type(params):
            return None
        changed = given_among(params_by_name(params), params_by_name(usual))
        return EnvSource(env.name, tuple(sorted((*differing(given, {}), *changed))))
    except Exception:  # from a user's class: then no call of `make` gives it
        return None


def _same_attributes(one: Mapping[str, object], other: Mapping[str, object]) -> bool:
    if one.keys() != other.keys():
        return False
    pairs = ((jax.tree.leaves(x), jax.tree.leaves(other[name])) for name, x in one.items())
    return all(len(a) == len(b) and all(map(is_same, a, b)) for a, b in pairs)


def _has_tracers(tree: PyTree) -> bool:
    return any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(tree))


def gymnax_env(env: GymnaxEnv, params: PyTree = None, name: str | None = None) -> Env:
    """An `Env` from a gymnax `Environment`, or a wrapper of one, and its parameters.

    Parameters may be traced, to be mapped by `jax.vmap`: bounds of spaces are then those of the
    default parameters, and a traced time limit is in the dynamics, but not in the spec.

    Args:
        env: the environment. If a wrapper overrides `step` or `reset`, these are called, without
            the auto-reset of the environment inside.
        params: its parameters; None for the defaults.
        name: the spec's; None for `env.name`, in parentheses after the names of such wrappers.

    Raises:
        ConfigError: an action space other than Discrete, MultiDiscrete or Box; or an overridden
            `step` or `reset` that can't be used (the message names the method to override).
    """
    made = raw_gymnax_env(env, params, name)
    source = known_source(env, params)
    if source is None or source.name != made.spec.name:
        return made
    made = made._replace(spec=made.spec._replace(source=source))
    for word, x in source.params:
        check_acting(made, word, x)
    return Made(made).as_env(made.spec)


def raw_gymnax_env(
    env: GymnaxEnv,
    params: PyTree = None,
    name: str | None = None,
    rules: tuple[Rule, ...] | None = None,
) -> Env:
    """`gymnax_env` without a source in the spec, for callers that set it; with the rules by which
    parameters follow from others, None for those that hold."""
    if not hasattr(env, "step_env") and not hasattr(env, "step"):
        raise ConfigError(f"env: got {shown(env)}, expected a gymnax Environment")
    with jax.ensure_compile_time_eval():
        params = env.default_params if params is None else params
        known = env.default_params if _has_tracers(params) else params
        space = env.observation_space(known)
        action_space = convert_spaces(env.action_space(known))
        limit = getattr(params, LIMIT, None)
        limit = None if limit is None or isinstance(limit, jax.core.Tracer) else int(limit)
    if not is_space(action_space):
        raise ConfigError(
            f"env: {env.name!r} has the action space {env.action_space(known)}, "
            "expected Discrete, MultiDiscrete or Box"
        )
    played, innermost = without_resets(env)
    if name is None:
        name = env.name if innermost is None else _wrapped_name(env)
    if rules is None:
        rules = rules_of(params_by_name(env.default_params), params_by_name(params))
    categories = _categories(space)
    dynamics = GymnaxDynamics(played, params, categories, innermost is not None, rules=rules)
    key = jax.eval_shape(lambda: jax.random.key(0))
    action = jax.eval_shape(action_space.sample, key)
    with sentence(f"env: {name!r} can't be traced"):
        obs, reset_state = jax.eval_shape(dynamics.reset, key)
        if innermost is not None:
            innermost.called.clear()
        step_state, _ = jax.eval_shape(dynamics.step, key, reset_state, action)
        dtypes = common_dtypes(reset_state, step_state)
    if innermost is not None and innermost.called != {"step"}:
        raise ConfigError(
            f"env: {name} resets in its own step, which can't be undone: let it call the step of "
            "the environment that it wraps, or override step_env in place of step"
        )
    _check_wrappers(name, dynamics, key, action)
    core = env if innermost is None else innermost.env
    _warn_of_deadly_limit(GymnaxDynamics(core, params), name, key, action)
    observation_space = _observation_space(space, obs)
    if env.name in WRONG_BOUNDS:
        observation_space = Box(-np.inf, np.inf, obs.shape, obs.dtype)
    spec = EnvSpec(name, observation_space, action_space, limit)
    return dataclasses.replace(dynamics, dtypes=dtypes).as_env(spec)


def _check_wrappers(
    name: str,
    dynamics: "GymnaxDynamics",
    key: jax.ShapeDtypeStruct,
    action: jax.ShapeDtypeStruct,
) -> None:
    """Raises ConfigError if a reset and a step pass by a method of a wrapper."""
    called: set[Watch] = set()
    copy, methods = watched(dynamics.env, called)
    if methods:
        traced = dataclasses.replace(dynamics, env=copy)
        state = jax.eval_shape(traced.reset, key)[1]
        jax.eval_shape(traced.step, key, state, action)
        check_called(name, methods, called)


@dataclasses.dataclass(frozen=True, eq=False)
class GymnaxDynamics(Dynamics):
    """The dynamics of a gymnax environment.

    Attributes:
        env: the environment.
        given: its parameters.
        categories: in the structure of observations, n for a `Discrete` part and 0 for a `Box`.
        whole: whether `step` and `reset` are called, with auto-reset disabled, instead of
            `step_env` and `reset_env`.
        dtypes: of the state's leaves, in its structure; None before they are known.
        rules: by which parameters follow from others.
    """

    env: GymnaxEnv
    given: PyTree
    categories: PyTree = 0
    whole: bool = False
    dtypes: PyTree = None
    rules: tuple[Rule, ...] = ()

    def reset(self, key: jax.Array) -> tuple[PyTree, PyTree]:
        reset = self.env.reset if self.whole else self.env.reset_env
        with usual_promotion():
            obs, state = reset(key, self.given)
        return _observe(obs, self.categories), self._cast(state)

    def step(self, key: jax.Array, state: PyTree, action: jax.Array) -> tuple[PyTree, TimeStep]:
        obs, state, reward, terminated, truncated, info = self.raw_step(key, state, action)
        terminated = jnp.asarray(terminated, bool).reshape(())
        truncated = jnp.asarray(truncated, bool).reshape(())
        reward = jnp.asarray(reward, jnp.float32).reshape(())
        obs = _observe(obs, self.categories)
        timestep = TimeStep(obs, reward, terminated, truncated & ~terminated, dict(info))
        return self._cast(state), timestep

    def raw_step(self, key: jax.Array, state: PyTree, action: jax.Array) -> tuple[PyTree, ...]:
        """Observation, state, reward, terminated, truncated and info, uncorrected."""
        with usual_promotion():
            if self.whole:
                return whole_step(self.env, key, state, action, self.given)
            inputs = (key, state, action, self.given)
            obs, state, reward, terminated, info = self.env.step_env(*inputs)
            truncated = self.env.is_truncated(state, self.given)
        return obs, state, reward, terminated, truncated, info

    def _cast(self, state: PyTree) -> PyTree:
        return state if self.dtypes is None else cast(state, self.dtypes)

    def identity(self) -> dict[str, object]:
        return {"gymnax": self.env, "params": self.given}

    def params(self) -> dict[str, object]:
        return params_by_name(self.given)

    def fixes_spec(self, name: str) -> bool:
        if name == LIMIT:
            return True

        def probe(x: jax.Array) -> None:
            space = self.env.action_space(dataclasses.replace(self.given, **{name: x}))
            if _has_tracers(list(vars(space).values())):
                raise TypeError

        try:
            jax.eval_shape(probe, jax.ShapeDtypeStruct((), jnp.float32))
        except Exception:  # a space's error for a tracer
            return True
        return False

    def replace_params(self, values: Mapping[str, object]) -> "GymnaxDynamics":
        values, rules = followed(params_by_name(self.given), values, self.rules)
        given = dataclasses.replace(self.given, **values)
        return dataclasses.replace(self, given=given, rules=rules)

    def __reduce__(self) -> tuple[Callable[..., "GymnaxDynamics"], tuple[object, ...]]:
        rest = (self.given, self.categories, self.whole, self.dtypes, self.rules)
        return _restored, (packed(self.env), *rest)


def _restored(env: object, *rest: PyTree) -> GymnaxDynamics:
    made: PyTree = unpacked(env)
    return GymnaxDynamics(made, *rest)


def _wrapped_name(env: GymnaxEnv) -> str:
    inner = wrapped(env)
    return env.name if inner is None else f"{type(env).__name__}({_wrapped_name(inner)})"


def _warn_of_deadly_limit(
    dynamics: GymnaxDynamics, name: str, key: jax.ShapeDtypeStruct, action: jax.ShapeDtypeStruct
) -> None:
    """Warns if the time limit among the parameters sets `terminated`.

    Environments for gymnax before 1.0 were written so. Dead-code elimination for each of the two
    outputs, `terminated` and `truncated`, shows whether it depends on the limit.
    """
    kind, params = type(dynamics.env), dynamics.given
    if kind.__module__.startswith("gymnax.") or not hasattr(params, LIMIT):
        return

    def ends(limit: jax.Array, key: jax.Array, state: PyTree, action: jax.Array) -> list[jax.Array]:
        limited = dataclasses.replace(params, max_steps_in_episode=limit)
        out = dataclasses.replace(dynamics, given=limited).raw_step(key, state, action)
        return [jnp.asarray(out[3]), jnp.asarray(out[4])]

    try:
        state = jax.eval_shape(dynamics.env.reset_env, key, params)[1]
        jaxpr = jax.make_jaxpr(ends)(jax.ShapeDtypeStruct((), jnp.int32), key, state, action).jaxpr
        uses = [partial_eval.dce_jaxpr(jaxpr, [i == 0, i == 1])[1][0] for i in (0, 1)]
    except Exception:  # a user's code may fail on a traced limit
        return
    if all(uses):
        warnings.warn(
            f"env: {name!r} takes its time limit for a death: max_steps_in_episode is a part of "
            "`terminated` too, and the value beyond it is 0. Leave it out of "
            f"{kind.__name__}.is_terminal and step_env, since gymnax 1.0 has it in is_truncated; "
            "or, where it is a death, override is_truncated to return False",
            stacklevel=4,
        )


def _observation_space(space: PyTree, obs: PyTree) -> PyTree:
    """Spaces in the structure of an observation, with its dtypes."""
    if getattr(space, "n", None) is not None:
        return Box(0.0, 1.0, (int(space.n),))
    children = getattr(space, "spaces", None)
    if children is None:
        low, high = np.asarray(space.low), np.asarray(space.high)
        if any(x.ndim and x.shape != obs.shape for x in (low, high)):
            raise ConfigError(
                f"env: observations have shape {obs.shape}, and the observation_space has "
                f"{low.shape}, expected the same: a wrapper of one has to override the other"
            )
        return Box(low, high, obs.shape, obs.dtype)
    if isinstance(children, dict):
        return {name: _observation_space(child, obs[name]) for name, child in children.items()}
    return tuple(_observation_space(child, o) for child, o in zip(children, obs, strict=True))


def _categories(space: PyTree) -> PyTree:
    """For each part of an observation, n if it is `Discrete`, else 0."""
    if getattr(space, "n", None) is not None:
        return int(space.n)
    children = getattr(space, "spaces", None)
    if children is None:
        return 0
    if isinstance(children, dict):
        return {name: _categories(child) for name, child in children.items()}
    return tuple(_categories(child) for child in children)


def _observe(obs: PyTree, categories: PyTree) -> PyTree:
    """An observation in dicts and tuples, with its categories one-hot."""
    if isinstance(categories, dict):
        at = (lambda name: obs[name]) if isinstance(obs, Mapping) else (lambda x: getattr(obs, x))
        return {name: _observe(at(name), part) for name, part in categories.items()}
    if isinstance(categories, tuple):
        return tuple(_observe(o, part) for o, part in zip(obs, categories, strict=True))
    if categories:
        return jax.nn.one_hot(obs, categories)
    return cast(obs)
