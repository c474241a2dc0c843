"""`check_env`: tests of an environment against its contract."""

import contextlib
import inspect
import re
import warnings
import weakref
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from purerl.accelerator.compiling import jit
from purerl.envs.base import Env, EnvSpec, TimeStep, dynamics_of, host_of, vectorize, where
from purerl.envs.registry import as_env
from purerl.envs.spaces import is_space, split_choices
from purerl.envs.vector import parse_resets
from purerl.records.errors import ConfigError, sentence, shown
from purerl.records.fields import check_count, check_key
from purerl.records.types import PyTree, Structure

EPISODES = 8
# The longest time limit up to which whole episodes are played, and the steps played otherwise.
PLAYED_OUT, PLAYED = 5_000, 256
# Primitives that may differ between calls, or under vmap, although their traces are equal.
OPAQUE = re.compile(r"\b(custom_vmap_call|ffi_call|\w*_?callback)\[")


class EnvError(ConfigError, AssertionError):
    """An environment violates its contract."""


def check_env(
    env: object, key: jax.Array | None = None, num_steps: int | None = None, *, quick: bool = False
) -> None:
    """Checks an environment; use it on a new environment before training.

    By tracing: outputs have the spec's shapes and dtypes, `jit` can trace the functions, no tracer
    leaks, the state keeps its structure. `TrainConfig` checks the part that training needs.

    Unless `quick`, also by running: outputs depend on the key alone, without hidden state, and are
    the same under `vmap`. Over 8 episodes of random legal actions, observations are inside their
    space and each has a legal action, rewards are finite, `terminated` and `truncated` are never
    both set, and `truncated` is set at the spec's time limit and not before. An episode is played
    to its end or for `num_steps`, all in one program, whose memory doesn't grow with the steps. Of
    an environment of the host only the part by tracing: it has a hidden state, its simulators'.

    If all these episodes take as many steps as the limit allows, and all are `terminated`, it warns
    that the limit may be taken for a death, whose value is 0; it is right if the task ends there.

    Args:
        env: a name, an `Env`, or a gymnax `Environment`, alone or paired with its parameters.
        key: for resets, actions and steps.
        num_steps: the most steps to play; None for the spec's time limit, or for 256 if it has none
            or one above 5,000.
        quick: only check by tracing, without compiling or running anything.

    Raises:
        EnvError: a violation of the contract, with the value found. A `ConfigError`.
        ConfigError: an invalid argument.
    """
    if key is not None:
        check_key(key)
    if num_steps is not None:
        num_steps = check_count("num_steps", num_steps, optional=True)
    env = as_env(env)
    trace_env(env)
    if quick or host_of(env) is not None:
        return
    key = jax.random.key(0) if key is None else key
    _check_transforms(env, key)
    _check_episodes(env, key, num_steps)


class Traced(NamedTuple):
    """Shapes and dtypes of the outputs of an environment's functions."""

    obs: PyTree
    state: PyTree
    timestep: TimeStep


def trace_env(env: Env, *, strict: bool = True) -> Traced:
    """Checks an environment by tracing: nothing is compiled.

    Args:
        env: the environment.
        strict: also check for the contract's dtypes and for leaked tracers; else only what training
            can't correct: shapes, structures, and the state's dtypes.

    Raises:
        EnvError: see `check_env`.
    """
    _check_spec(env)
    key = jax.eval_shape(lambda: jax.random.key(0))
    obs, state = _check_reset(env, key, strict)
    _check_legal(env, obs)
    timestep = _check_step(env, key, state, strict)
    return Traced(obs, state, timestep)


def check_new_env(env: object, name: str = "env") -> Env:
    """An `Env` from a user's argument (see `as_env`), with the checks that training needs; each
    environment is traced once, for any number of configs. `name` is the argument's, for errors.

    Raises:
        EnvError: see `check_env`.
        ConfigError: it is no environment, or can't be created.
    """
    with sentence(f"{name}: {shown(env)} can't be made", EnvError):
        made = as_env(env)
    owner = getattr(made.step, "__self__", made.step)
    with contextlib.suppress(TypeError):  # not hashable, or without weak references
        before = _traced_before.get(owner)
        if before is not None:
            reset, step, spec = before
            if (reset(), step()) == (made.reset, made.step) and spec.is_same(made.spec):
                return made
    trace_env(made, strict=False)
    with contextlib.suppress(TypeError):
        _traced_before[owner] = _reference(made.reset), _reference(made.step), made.spec
    return made


_Reference: TypeAlias = Callable[[], object]  # weak: None after its object is gone
_traced_before: weakref.WeakKeyDictionary[object, tuple[_Reference, _Reference, EnvSpec]] = (
    weakref.WeakKeyDictionary()
)


def _reference(function: Callable[..., object]) -> _Reference:
    return (weakref.WeakMethod if inspect.ismethod(function) else weakref.ref)(function)


def _require(condition: object, message: str) -> None:
    if not condition:
        raise EnvError(message)


def _check_spec(env: Env) -> None:
    spec = env.spec
    for name in ("reset", "step"):
        got = getattr(env, name)
        _require(callable(got), f"Env.{name}: got {shown(got)}, expected a function")
    fields = ("name", "observation_space", "action_space", "max_episode_steps", "legal")
    _require(
        all(hasattr(spec, field) for field in fields),
        f"Env.spec: got {shown(spec)}, expected a purerl.EnvSpec",
    )
    _require(isinstance(spec.name, str), f"spec.name is {shown(spec.name)}, expected text")
    _require(
        is_space(spec.action_space),
        f"spec.action_space is {shown(spec.action_space)}, expected Discrete, MultiDiscrete or Box",
    )
    with sentence("spec.observation_space is no pytree", EnvError):  # keys that can't be sorted
        spaces = jax.tree.leaves(spec.observation_space, is_leaf=is_space)
    _require(
        spaces and all(is_space(space) for space in spaces),
        f"spec.observation_space is {shown(spec.observation_space)}, expected a space or a pytree "
        "of spaces, such as purerl.Box(-jnp.inf, jnp.inf, (4,))",
    )
    limit = spec.max_episode_steps
    _require(
        limit is None or (isinstance(limit, int) and not isinstance(limit, bool) and limit >= 1),
        f"spec.max_episode_steps is {shown(limit)}, expected a positive integer or None",
    )
    metrics = getattr(spec, "metrics", ())
    words = isinstance(metrics, tuple) and all(isinstance(x, str) for x in metrics)
    _require(words, f"spec.metrics is {shown(metrics)}, expected a tuple of names")
    drawn = getattr(spec, "draw", None)
    _require(drawn is None or callable(drawn), f"spec.draw is {shown(drawn)}, expected a function")
    try:
        parse_resets(getattr(spec, "resets", "fresh"))
    except ConfigError as error:
        raise EnvError(f"spec.{error}") from None
    try:
        hash(spec)
    except TypeError:
        raise EnvError("spec is not hashable: is an array in it? Use spaces and tuples") from None


def _check_obs(env: Env, obs: PyTree, where: str, strict: bool) -> None:
    space = env.spec.observation_space
    structure: Structure = jax.tree.structure(obs)
    expected = jax.tree.structure(space, is_leaf=is_space)
    _require(
        structure == expected,
        f"{where}: the observation is {structure}, the spec says {expected}",
    )
    for leaf, part in zip(
        jax.tree.leaves(obs), jax.tree.leaves(space, is_leaf=is_space), strict=True
    ):
        what = f"{where}: the observation"
        _require_array(leaf, part.shape, part.dtype if strict else None, what)


def _require_array(x: PyTree, shape: tuple[int, ...], dtype: DTypeLike | None, what: str) -> None:
    """Raises EnvError unless x is an array of a shape and dtype; None for any real dtype."""
    _require(hasattr(x, "dtype"), f"{what} is a {type(x).__name__}, expected an array")
    right = is_real(x.dtype) if dtype is None else x.dtype == dtype
    wanted = "numbers" if dtype is None else dtype_name(dtype)
    _require(
        x.shape == shape and right,
        f"{what} has shape {x.shape} and dtype {dtype_name(x.dtype)}, expected {shape} and "
        f"{wanted}",
    )


def is_real(dtype: DTypeLike) -> bool:
    """Whether a dtype is one of floats, integers or booleans."""
    kinds = (np.floating, np.integer, np.bool_)
    return any(jnp.issubdtype(dtype, kind) for kind in kinds)


def dtype_name(dtype: DTypeLike) -> str:
    """The name of a dtype; numpy has none for typed keys."""
    try:
        return np.dtype(dtype).name
    except TypeError:
        return str(dtype)


def _traced(function: Callable[..., PyTree], *args: PyTree, what: str, leaks: bool) -> PyTree:
    """The shapes of a function's output; with `leaks`, tracers that it leaks are an error."""
    checked = jax.checking_leaks() if leaks else contextlib.nullcontext()
    with sentence(f"{what} can't be traced by jax.jit", EnvError), checked:
        return jax.eval_shape(function, *args)


def _leak_free(env: Env) -> bool:
    dynamics = dynamics_of(env)
    return dynamics is None or dynamics.leak_free()


def _check_reset(env: Env, key: jax.ShapeDtypeStruct, strict: bool) -> tuple[PyTree, PyTree]:
    leaks = strict and _leak_free(env)
    out = _traced(env.reset, key, what="reset(key)", leaks=leaks)
    _require(
        isinstance(out, tuple) and len(out) == 2,
        f"reset must return (obs, env_state), and returns {_kind(out)}",
    )
    obs, state = out
    _check_obs(env, obs, "reset", strict)
    return obs, state


def _check_legal(env: Env, obs: PyTree) -> None:
    """Checks the mask of legal actions."""
    spec = env.spec
    if getattr(spec, "legal", None) is None:
        return
    space, legal = spec.action_space, spec.legal
    _require(
        isinstance(legal, str) or callable(legal),
        f"spec.legal is {shown(legal)}, expected a function of an observation, or a key of one",
    )
    _require(
        space.sizes is not None,
        f"spec.legal is for discrete actions, and the actions are {space}; expected None",
    )
    if isinstance(legal, str):
        known = spec.observation_space
        _require(
            isinstance(known, dict) and legal in known,
            f"spec.legal is {legal!r}, expected a key of the observations, {shown(known)}",
        )
    mask = _traced(spec.legal_actions, obs, what="spec.legal(obs)", leaks=False)
    what, shape = "spec.legal: the mask", (space.num_outputs,)
    _require_array(mask, shape, np.bool_, what)


def _check_step(env: Env, key: jax.ShapeDtypeStruct, state: PyTree, strict: bool) -> TimeStep:
    action = jax.eval_shape(env.spec.action_space.sample, key)

    def step(key: jax.Array, state: PyTree, action: jax.Array) -> PyTree:
        out = env.step(key, state, action)
        _require(
            isinstance(out, tuple) and len(out) == 2 and isinstance(out[1], TimeStep),
            f"step must return (env_state, TimeStep), and returns {_kind(out)}",
        )
        for name in ("reward", "terminated", "truncated"):
            value = getattr(out[1], name)
            number = isinstance(value, (bool, int, float)) and not strict
            what = f"step: {'the ' if name == 'reward' else ''}{name}"
            _require(
                hasattr(value, "dtype") or number,
                f"{what} is a {type(value).__name__}, expected an array",
            )
        return out

    timestep: TimeStep
    leaks = strict and _leak_free(env)
    next_state, timestep = _traced(
        step, key, state, action, what="step(key, env_state, action)", leaks=leaks
    )
    _check_obs(env, timestep.obs, "step", strict)
    for name, dtype in (("reward", np.float32), ("terminated", np.bool_), ("truncated", np.bool_)):
        what = f"step: {'the ' if name == 'reward' else ''}{name}"
        _require_array(getattr(timestep, name), (), dtype if strict else None, what)
    _require(
        isinstance(timestep.info, dict), f"step: info must be a dict, and is {_kind(timestep.info)}"
    )
    for name in env.spec.metrics:
        _require(name in timestep.info, f"step: info has no {name!r}, which spec.metrics names")
        _require_array(timestep.info[name], (), None, f"step: info[{name!r}]")
    before: Structure = jax.tree.structure(state)
    after = jax.tree.structure(next_state)
    _require(before == after, f"reset's state is {before}, step's is {after}")
    for path_leaf, next_leaf in zip(
        jax.tree_util.tree_leaves_with_path(state), jax.tree.leaves(next_state), strict=True
    ):
        path, leaf = path_leaf
        name = f"step: env_state{jax.tree_util.keystr(path)}"
        _require_array(next_leaf, leaf.shape, leaf.dtype, name)
    return timestep


def _kind(x: object) -> str:
    """The name of a type; for a tuple, the types of its elements."""
    if type(x) is tuple:
        return f"({', '.join(type(part).__name__ for part in x)})"
    return type(x).__name__


def _check_transforms(env: Env, key: jax.Array) -> None:
    """Checks that outputs depend on the key alone, and are the same under `vmap`.

    If two traces give the same program, of primitives with JAX's batching rules, nothing has to
    run. Else one environment and four under `vmap` are compiled and compared.
    """

    def program() -> tuple[str, list[PyTree]]:
        closed = jax.make_jaxpr(lambda key: _start_and_step(env, key))(key)
        return re.sub(r" at 0x[0-9a-f]+", "", str(closed.jaxpr)), closed.consts

    (text, consts), (again, others) = program(), program()
    if text == again and not OPAQUE.search(text) and _equal_constants(consts, others):
        return
    keys = jax.random.split(key, 4)
    jitted = jit(lambda key: _start_and_step(env, key), quick=True)
    alone = [jitted(k) for k in keys]
    _require_equal(alone[0], jitted(keys[0]), "the same key gave another result", exact=True)
    # Traced again, which reveals hidden state as well as differences under vmap.
    mapped = jax.vmap(lambda key: _start_and_step(env, key))
    together = jit(mapped, quick=True)(keys)
    stacked = jax.tree.map(lambda *xs: jnp.stack(xs), *alone)
    message = "traced a second time, under vmap, the same key gave another result"
    _require_equal(stacked, together, message)


def _equal_constants(some: list[PyTree], others: list[PyTree]) -> bool:
    def same(a: PyTree, b: PyTree) -> bool:
        return a is b or bool(np.array_equal(_plain(a), _plain(b), equal_nan=True))

    return len(some) == len(others) and all(map(same, some, others))


def _plain(x: PyTree) -> np.ndarray:
    """The numpy array of an array; typed keys become their key data."""
    is_key = jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(x) if is_key else x)


def _start_and_step(env: Env, key: jax.Array) -> PyTree:
    reset_key, action_key, step_key = jax.random.split(key, 3)
    obs, state = env.reset(reset_key)
    return obs, env.step(step_key, state, env.spec.random_action(action_key, obs))


def _require_equal(x: PyTree, y: PyTree, message: str, exact: bool = False) -> None:
    tolerance = 0.0 if exact else 1e-4
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(x), jax.tree.leaves(y), strict=True
    ):
        a, b = _plain(a), _plain(b)
        same = np.allclose(a, b, rtol=tolerance, atol=tolerance, equal_nan=True)
        _require(same, f"{message}, at {jax.tree_util.keystr(path)}: {a} and {b}")


class _Seen(NamedTuple):
    """Statistics of E episodes, each up to its end: `[E]`, of observations `[E, ...]`."""

    over: jax.Array
    length: jax.Array
    truncated: jax.Array
    both: jax.Array
    broken_reward: jax.Array
    stuck: jax.Array
    low: PyTree
    high: PyTree


_Carry: TypeAlias = tuple[jax.Array, PyTree, PyTree, _Seen]


def _play(env: Env, key: jax.Array, num_steps: jax.Array) -> tuple[PyTree, _Seen]:
    """First observations, and statistics of episodes with random legal actions."""
    many = vectorize(env)
    reset_key, play_key = jax.random.split(key)
    first, state = many.reset(jax.random.split(reset_key, EPISODES))
    no = jnp.zeros(EPISODES, bool)
    start = _Seen(no, jnp.zeros(EPISODES, jnp.int32), no, no, no, no, first, first)

    def going(carry: _Carry) -> jax.Array:
        return (carry[0] < num_steps) & ~jnp.all(carry[3].over)

    def step(carry: _Carry) -> _Carry:
        time, obs, state, seen = carry
        keys = jax.random.split(jax.random.fold_in(play_key, time), (2, EPISODES))
        action = jax.vmap(env.spec.random_action)(keys[0], obs)
        stuck = jax.vmap(lambda obs: _no_legal_action(env, obs))(obs)
        state, timestep = many.step(keys[1], state, action)
        valid = ~seen.over

        def widened(pick: Callable[..., jax.Array], bound: PyTree) -> PyTree:
            return jax.vmap(where)(valid, jax.tree.map(pick, bound, timestep.obs), bound)

        both = timestep.terminated & timestep.truncated
        return (
            time + 1,
            timestep.obs,
            state,
            _Seen(
                over=seen.over | timestep.terminated | timestep.truncated,
                length=seen.length + valid,
                truncated=seen.truncated | (valid & timestep.truncated),
                both=seen.both | (valid & both),
                broken_reward=seen.broken_reward | (valid & ~jnp.isfinite(timestep.reward)),
                stuck=seen.stuck | (valid & stuck),
                low=widened(jnp.minimum, seen.low),
                high=widened(jnp.maximum, seen.high),
            ),
        )

    return first, jax.lax.while_loop(going, step, (jnp.int32(0), first, state, start))[3]


def _no_legal_action(env: Env, obs: PyTree) -> jax.Array:
    """`[]` bool, whether some number of an action has no legal choice."""
    legal, sizes = env.spec.legal_actions(obs), env.spec.action_space.sizes
    if legal is None or sizes is None:
        never: jax.Array = jnp.bool_(False)
        return never
    return ~jnp.all(jnp.any(split_choices(legal, sizes, False), axis=-1))


def _check_episodes(env: Env, key: jax.Array, num_steps: int | None) -> None:
    """Checks one episode in each of `EPISODES` parallel environments."""
    limit = env.spec.max_episode_steps
    if num_steps is None:
        num_steps = limit if limit is not None and limit <= PLAYED_OUT else PLAYED

    def played(key: jax.Array, num_steps: jax.Array) -> PyTree:
        return _play(env, key, num_steps)

    run = jit(played, quick=True)
    first, seen = jax.tree.map(np.asarray, run(key, num_steps))
    _require(not seen.broken_reward.any(), "step: a reward is not finite")
    _require(
        not seen.stuck.any(),
        "spec.legal: an observation in an episode leaves no action legal; expected one at least",
    )
    _require(
        not seen.both.any(),
        "step: terminated and truncated are set together; terminated has to win",
    )
    if limit is not None:
        _check_limit(seen, limit)
    _check_inside(env, first, first, "reset")
    _check_inside(env, seen.low, seen.high, "step")


def _check_limit(seen: _Seen, limit: int) -> None:
    """Checks that episodes are cut at the time limit, and not before."""
    for over, length, truncated in zip(seen.over, seen.length, seen.truncated, strict=True):
        _require(
            not truncated or length == limit,
            f"truncated after {length} steps, spec.max_episode_steps says {limit}; a natural end "
            "is terminated",
        )
        _require(
            length < limit or (length == limit and over),
            f"an episode took more than {limit} steps, which spec.max_episode_steps says",
        )
    if np.all(seen.length == limit) and not np.any(seen.truncated):
        warnings.warn(
            f"step: all {EPISODES} episodes were terminated after {limit} steps, which "
            "spec.max_episode_steps says, and none was truncated: if the time limit ends them, set "
            "truncated in place of terminated; if the task ends there, all is well",
            stacklevel=4,
        )


def _check_inside(env: Env, lowest: PyTree, highest: PyTree, where: str) -> None:
    """Checks that observations are inside their space, by the extremes of each number."""
    spaces = jax.tree.leaves(env.spec.observation_space, is_leaf=is_space)
    for least, most, space in zip(
        jax.tree.leaves(lowest), jax.tree.leaves(highest), spaces, strict=True
    ):
        finite = np.isfinite(least).all() and np.isfinite(most).all()
        _require(finite, f"{where}: an observation is not finite")
        below, above = least < space.low - 1e-4, most > space.high + 1e-4
        for extreme, outside in ((least, below), (most, above)):
            _require(
                not outside.any(),
                f"{where}: an observation is outside {space}: {extreme[outside][:1]}",
            )
