"""`check_env`: whether an environment keeps the contract that everything else relies on."""

import contextlib
import inspect
import re
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from purerl.envs.base import Env, TimeStep, vectorize, where
from purerl.envs.registry import as_env
from purerl.envs.spaces import is_space, split_choices
from purerl.records.errors import ConfigError, sentence, shown
from purerl.records.fields import check_count, check_key

# What is run here is tiny: let XLA compile it quickly, not well.
QUICK_COMPILE = {"xla_backend_optimization_level": 0}
EPISODES = 8
# A time limit up to this is played out; without one, or with a longer one, so few steps are played.
PLAYED_OUT, PLAYED = 5_000, 256
# Primitives of which two traces don't say whether they give the same, or whether vmap does.
OPAQUE = re.compile(r"\b(custom_vmap_call|ffi_call|\w*_?callback)\[")


class EnvError(ConfigError, AssertionError):
    """An environment breaks its contract."""


def check_env(
    env: Any, key: jax.Array | None = None, num_steps: int | None = None, *, quick: bool = False
) -> None:
    """Checks an environment: run it on a new environment before training on it.

    Shapes and dtypes of every output against the spec; traceable by `jit`; no leaked tracer; the
    state keeps its structure. `TrainConfig` checks as much of it as training needs.

    Unless `quick`: determined by its key, with no hidden state, and the same under `vmap` as alone;
    over 8 episodes of random legal actions observations inside their space, with a legal action at
    each, rewards finite, `terminated` and `truncated` never together, `truncated` at the spec's
    time limit and not before. An episode is played to its end or through `num_steps`. It is one
    program, whose memory doesn't grow with the number of steps.

    Args:
        env: a name, an `Env`, or a gymnax `Environment`, with its parameters or without.
        key: for resets, actions and steps.
        num_steps: how many steps to play at most; None for the spec's time limit, or for 256 where
            it has none or one above 5,000.
        quick: only what tracing shows: nothing is compiled, and nothing is played.

    Raises:
        EnvError: what is broken, and what was found. It is a `ConfigError`.
        ConfigError: arguments that can't be used.
    """
    if key is not None:
        check_key(key)
    if num_steps is not None:
        num_steps = check_count("num_steps", num_steps, optional=True)
    env = as_env(env)
    trace_env(env)
    if quick:
        return
    key = jax.random.key(0) if key is None else key
    _check_transforms(env, key)
    _check_episodes(env, key, num_steps)


class Traced(NamedTuple):
    """Shapes and dtypes of the outputs of an environment's functions."""

    obs: Any
    state: Any
    timestep: TimeStep


def trace_env(env: Env, *, strict: bool = True) -> Traced:
    """Checks an environment by tracing: nothing is compiled.

    Args:
        env: the environment.
        strict: dtypes as the contract has them, and no leaked tracers; else only what training
            can't put right: shapes, structures, and the state's dtypes.

    Raises:
        EnvError: see `check_env`.
    """
    _check_spec(env)
    key = jax.eval_shape(lambda: jax.random.key(0))
    obs, state = _check_reset(env, key, strict)
    _check_legal(env, obs)
    timestep = _check_step(env, key, state, strict)
    return Traced(obs, state, timestep)


def check_new_env(env: Any) -> Env:
    """An `Env` from what a user gives for one, checked as far as training needs; each environment
    is traced once, however many configs are made of it.

    Raises:
        EnvError: see `check_env`.
        ConfigError: it is no environment, or can't be made.
    """
    with sentence(f"env: {shown(env)} can't be made", EnvError):
        made = as_env(env)
    owner = getattr(made.step, "__self__", made.step)
    with contextlib.suppress(TypeError):  # what isn't hashable, or takes no weak reference
        reset, step, spec = _traced_before.get(owner, (None, None, None))
        known = None if reset is None else (reset(), step(), spec)
        # `legal` is no part of a spec's equality.
        if known == tuple(made) and spec.legal == made.spec.legal:
            return made
    trace_env(made, strict=False)
    with contextlib.suppress(TypeError):
        _traced_before[owner] = _reference(made.reset), _reference(made.step), made.spec
    return made


_traced_before: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()


def _reference(function: Any) -> Any:
    return (weakref.WeakMethod if inspect.ismethod(function) else weakref.ref)(function)


def _require(condition: Any, message: str) -> None:
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
    try:
        hash(spec)
    except TypeError:
        raise EnvError("spec is not hashable: is an array in it? Use spaces and tuples") from None


def _check_obs(env: Env, obs: Any, where: str, strict: bool) -> None:
    space = env.spec.observation_space
    structure: Any = jax.tree.structure(obs)
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


def _require_array(x: Any, shape: tuple, dtype: Any, what: str) -> None:
    """Raises EnvError unless it is an array of that shape and dtype; None for any real one."""
    _require(hasattr(x, "dtype"), f"{what} is a {type(x).__name__}, expected an array")
    right = is_real(x.dtype) if dtype is None else x.dtype == dtype
    wanted = "numbers" if dtype is None else dtype_name(dtype)
    _require(
        x.shape == shape and right,
        f"{what} has shape {x.shape} and dtype {dtype_name(x.dtype)}, expected {shape} and "
        f"{wanted}",
    )


def is_real(dtype: Any) -> bool:
    """Whether it is a dtype of floats, integers or booleans."""
    kinds = (np.floating, np.integer, np.bool_)
    return any(jax.dtypes.issubdtype(dtype, kind) for kind in kinds)


def dtype_name(dtype: Any) -> str:
    """The name of a dtype; typed keys have none of numpy's."""
    try:
        return np.dtype(dtype).name
    except TypeError:
        return str(dtype)


def _traced(function: Callable, *args: Any, what: str, strict: bool) -> Any:
    """The shapes of a function's output."""
    leaks = jax.checking_leaks() if strict else contextlib.nullcontext()
    with sentence(f"{what} can't be traced by jax.jit", EnvError), leaks:
        return jax.eval_shape(function, *args)


def _check_reset(env: Env, key: Any, strict: bool) -> tuple[Any, Any]:
    out = _traced(env.reset, key, what="reset(key)", strict=strict)
    _require(
        isinstance(out, tuple) and len(out) == 2,
        f"reset must return (obs, env_state), and returns {_kind(out)}",
    )
    _check_obs(env, out[0], "reset", strict)
    return out


def _check_legal(env: Env, obs: Any) -> None:
    """The shape of the mask of legal actions."""
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
    mask = _traced(spec.legal_actions, obs, what="spec.legal(obs)", strict=False)
    what, shape = "spec.legal: the mask", (space.num_outputs,)
    _require_array(mask, shape, np.bool_, what)


def _check_step(env: Env, key: Any, state: Any, strict: bool) -> TimeStep:
    action = jax.eval_shape(env.spec.action_space.sample, key)

    def step(key: jax.Array, state: Any, action: jax.Array) -> Any:
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

    next_state, timestep = _traced(
        step, key, state, action, what="step(key, env_state, action)", strict=strict
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
    before: Any = jax.tree.structure(state)
    after = jax.tree.structure(next_state)
    _require(before == after, f"reset's state is {before}, step's is {after}")
    for path_leaf, next_leaf in zip(
        jax.tree_util.tree_leaves_with_path(state), jax.tree.leaves(next_state), strict=True
    ):
        path, leaf = path_leaf
        name = f"step: env_state{jax.tree_util.keystr(path)}"
        _require_array(next_leaf, leaf.shape, leaf.dtype, name)
    return timestep


def _kind(x: Any) -> str:
    """A type in words; of a tuple, the types in it."""
    if type(x) is tuple:
        return f"({', '.join(type(part).__name__ for part in x)})"
    return type(x).__name__


def _check_transforms(env: Env, key: jax.Array) -> None:
    """Whether the key alone decides, and vmap changes nothing.

    Where two traces are the same program, of primitives that JAX itself maps over, nothing has to
    be run for that. Else one environment and four under `vmap` are compiled and compared.
    """

    def program() -> tuple[str, list[Any]]:
        closed = jax.make_jaxpr(lambda key: _start_and_step(env, key))(key)
        return re.sub(r" at 0x[0-9a-f]+", "", str(closed.jaxpr)), closed.consts

    (text, consts), (again, others) = program(), program()
    if text == again and not OPAQUE.search(text) and _equal_constants(consts, others):
        return
    keys = jax.random.split(key, 4)
    jitted = jax.jit(lambda key: _start_and_step(env, key), compiler_options=QUICK_COMPILE)
    alone = [jitted(k) for k in keys]
    _require_equal(alone[0], jitted(keys[0]), "the same key gave another result", exact=True)
    # Traced anew: hidden state would show as well as what vmap does wrong.
    mapped = jax.vmap(lambda key: _start_and_step(env, key))
    together = jax.jit(mapped, compiler_options=QUICK_COMPILE)(keys)
    stacked = jax.tree.map(lambda *xs: jnp.stack(xs), *alone)
    message = "traced a second time, under vmap, the same key gave another result"
    _require_equal(stacked, together, message)


def _equal_constants(some: list[Any], others: list[Any]) -> bool:
    def same(a: Any, b: Any) -> bool:
        return a is b or bool(np.array_equal(_plain(a), _plain(b), equal_nan=True))

    return len(some) == len(others) and all(map(same, some, others))


def _plain(x: Any) -> np.ndarray:
    """An array of numpy's, of keys their data."""
    is_key = jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(x) if is_key else x)


def _start_and_step(env: Env, key: jax.Array) -> Any:
    reset_key, action_key, step_key = jax.random.split(key, 3)
    obs, state = env.reset(reset_key)
    return obs, env.step(step_key, state, env.spec.random_action(action_key, obs))


def _require_equal(x: Any, y: Any, message: str, exact: bool = False) -> None:
    tolerance = 0.0 if exact else 1e-4
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(x), jax.tree.leaves(y), strict=True
    ):
        a, b = _plain(a), _plain(b)
        same = np.allclose(a, b, rtol=tolerance, atol=tolerance, equal_nan=True)
        _require(same, f"{message}, at {jax.tree_util.keystr(path)}: {a} and {b}")


class _Seen(NamedTuple):
    """Observed facts about episodes, each up to its end: `[E]`, and `[E, ...]` of observations."""

    over: jax.Array
    length: jax.Array
    truncated: jax.Array
    both: jax.Array
    broken_reward: jax.Array
    stuck: jax.Array
    low: Any
    high: Any


def _play(env: Env, key: jax.Array, num_steps: jax.Array) -> tuple[Any, _Seen]:
    """First observations, and observed facts about episodes with random legal actions."""
    many = vectorize(env)
    reset_key, play_key = jax.random.split(key)
    first, state = many.reset(jax.random.split(reset_key, EPISODES))
    no = jnp.zeros(EPISODES, bool)
    start = _Seen(no, jnp.zeros(EPISODES, jnp.int32), no, no, no, no, first, first)

    def going(carry: tuple) -> jax.Array:
        return (carry[0] < num_steps) & ~jnp.all(carry[3].over)

    def step(carry: tuple) -> tuple:
        time, obs, state, seen = carry
        keys = jax.random.split(jax.random.fold_in(play_key, time), (2, EPISODES))
        action = jax.vmap(env.spec.random_action)(keys[0], obs)
        stuck = jax.vmap(lambda obs: _no_legal_action(env, obs))(obs)
        state, timestep = many.step(keys[1], state, action)
        valid = ~seen.over

        def widened(pick: Callable, bound: Any) -> Any:
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


def _no_legal_action(env: Env, obs: Any) -> jax.Array:
    """`[]` bool, whether some choice of an action has no legal option."""
    legal, sizes = env.spec.legal_actions(obs), env.spec.action_space.sizes
    if legal is None or sizes is None:
        return jnp.bool_(False)
    return ~jnp.all(jnp.any(split_choices(legal, sizes, False), axis=-1))


def _check_episodes(env: Env, key: jax.Array, num_steps: int | None) -> None:
    """Plays environments side by side; each ends for good at its first end."""
    limit = env.spec.max_episode_steps
    if num_steps is None:
        num_steps = limit if limit is not None and limit <= PLAYED_OUT else PLAYED

    def played(key: jax.Array, num_steps: jax.Array) -> Any:
        return _play(env, key, num_steps)

    run = jax.jit(played, compiler_options=QUICK_COMPILE)
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
    for over, length, truncated in zip(seen.over, seen.length, seen.truncated, strict=True):
        if limit is None:
            break
        _require(
            not truncated or length == limit,
            f"truncated after {length} steps, spec.max_episode_steps says {limit}; a natural end "
            "is terminated",
        )
        _require(
            length < limit or (length == limit and over),
            f"an episode took more than {limit} steps, which spec.max_episode_steps says",
        )
    _check_inside(env, first, first, "reset")
    _check_inside(env, seen.low, seen.high, "step")


def _check_inside(env: Env, lowest: Any, highest: Any, where: str) -> None:
    """Whether observations are inside their space, by the lowest and highest of each number."""
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
