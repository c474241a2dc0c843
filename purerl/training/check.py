"""`check_agent`, and the checks of a run's parts that every `TrainConfig` makes by tracing."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from purerl.accelerator.compiling import jit
from purerl.accelerator.devices import AXIS
from purerl.accelerator.transfer import is_key
from purerl.agents import AGENTS, Agent, RunDefaults
from purerl.agents.acting import Acting
from purerl.agents.noise import NOISES, Noise
from purerl.envs.base import Env, EnvSpec
from purerl.envs.check import dtype_name, is_real
from purerl.envs.registry import as_env
from purerl.envs.spaces import is_space
from purerl.experience.experience import Clock, Experience, see
from purerl.experience.normalize import init_stats
from purerl.experience.rewarders import REWARDERS, Identity, Rewarder
from purerl.experience.successors import NOWHERE
from purerl.experience.transition import Transition
from purerl.records.errors import ConfigError, sentence, shown
from purerl.records.fields import check_count, check_key, field_names, unchecked
from purerl.records.types import PyTree
from purerl.training.loop import Loop
from purerl.training.run import make_loop

NUM_ENVS = 4
METHODS = ("init", "acting", "policy", "update")
# Entries of batches that buffers compute: an agent's extras can't have their names.
BUFFER_ENTRIES = ("td_error", "priority", "indices", "discount", "weight")


class AgentError(ConfigError, AssertionError):
    """An agent breaks its contract."""


def check_agent(agent: Agent, env: object, key: jax.Array | None = None) -> None:
    """Checks a new agent in an environment, before it is trained.

    Checks the shapes and dtypes of actions, extras, memory and values; that memory is reset row by
    row, where an episode has ended; that `policy` and `value` need no more than `for_acting` keeps;
    that `update` keeps the structure of the agent's state and returns finite float32 scalars; that
    all is determined by the key, differs between keys, and is the same under `vmap` over keys as
    alone; that two devices learn the same state; and that every float hyperparameter may be vmapped
    over. `TrainConfig` checks the part of this that tracing shows.

    Args:
        agent: the agent.
        env: a name, an `Env`, or a gymnax `Environment`.
        key: for everything random.

    Raises:
        AgentError: the agent breaks its contract; the message has the expected and the actual
            value. It is a `ConfigError`.
        ConfigError: the agent doesn't take this environment.
    """
    env = as_env(env)
    if key is not None:
        check_key(key)
    key = jax.random.key(0) if key is None else key
    check_methods(agent)
    _check_functions(agent, env, key)
    _check_update(agent, env, key)
    _check_hyperparams(agent, env, key)


def check_methods(agent: Any) -> None:
    """Raises AgentError unless it is an agent with all methods, and with `run_defaults`."""
    name = type(agent).__name__
    _require(isinstance(agent, Agent), f"{shown(agent)} is not a purerl.Agent")
    missing = [word for word in METHODS if getattr(type(agent), word) is getattr(Agent, word)]
    words = f"expected {', '.join(METHODS)}"
    _require(not missing, f"agent: {name} doesn't implement {', '.join(missing)}, {words}")
    with sentence(f"agent: {name}.run_defaults fails", AgentError):
        defaults = agent.run_defaults
    _require(
        isinstance(defaults, RunDefaults),
        f"agent: {name}.run_defaults is {shown(defaults)}, expected a purerl.RunDefaults",
    )
    for word, least in (("num_envs", 1), ("update_every", 1), ("update_after", 0)):
        what = f"agent: {name}.run_defaults.{word}"
        check_count(what, getattr(defaults, word), at_least=least)


def check_loop(loop: Loop) -> None:
    """Checks a run's parts by tracing each once. Of an agent that ships with the package, only
    `init` is traced, which builds the networks for this environment.

    Args:
        loop: the run, on one device.

    Raises:
        AgentError, ConfigError: a part breaks its contract.
    """
    agent, spec = loop.agent, loop.env.spec
    name, key = type(agent).__name__, jax.eval_shape(lambda: jax.random.key(0))
    with sentence(f"agent: {name}.init can't be traced", AgentError):
        state = jax.eval_shape(lambda key: agent.init(key, spec), key)
    space = spec.action_space
    action = jax.ShapeDtypeStruct((loop.num_envs, *space.shape), space.dtype)
    jax.eval_shape(loop.action_map, action)  # raises for an action processor
    if loop.log is not None:
        with sentence("TrainConfig: this run can't be traced"):
            jax.eval_shape(loop.init, key)  # raises for `log`
    if ships(loop):
        return
    check_size(loop)
    obs = jax.tree.map(
        lambda space: jax.ShapeDtypeStruct((loop.num_envs, *space.shape), space.dtype),
        spec.observation_space,
        is_leaf=is_space,
    )
    if loop.normalize_obs:
        obs = jax.eval_shape(
            lambda obs: see(init_stats(jax.tree.map(lambda x: x[0], obs)), obs), obs
        )
    if loop.noise is not None and space.sizes is not None:
        raise ConfigError(f"noise: {spec.name} has discrete actions, which take no noise")
    acted = _trace_acting(
        f"{name}.acting", lambda state: agent.acting(state, loop.clock(0)), state, obs, key
    )
    _check_extras(name, acted[2], loop.num_envs)
    chosen = _trace_acting(f"{name}.policy", agent.policy, state, obs, key)
    for what, action in (("acting", acted[1]), ("policy", chosen[1])):
        _require_action(f"agent: {name}.{what}'s action", action, loop.num_envs, spec)
    if loop.noise is not None:
        _check_noise(loop.noise, action)
    _check_step(loop)


def check_size(loop: Loop) -> None:
    """Raises ConfigError if a rollout or the buffer has more transitions on a device than have an
    index: the numbers from `NOWHERE` on stand for none."""
    sizes = {
        f"num_envs={loop.num_envs} x update_every={loop.update_every}": (
            loop.num_envs * loop.update_every
        ),
        "Buffer.maxlen": loop.buffer.maxlen or 0,
    }
    for name, size in sizes.items():
        if size > NOWHERE:
            raise ConfigError(f"{name}: got {size}, expected at most {NOWHERE} on a device")


def ships(loop: Loop) -> bool:
    """Whether agent, networks, rewarder, noise and what networks see all come with the package."""
    agent: Any = loop.agent
    names = ("actor", "critic", "target_fn", "actor_obs", "critic_obs")
    functions = [x for name in names if callable(x := getattr(agent, name, None))]
    functions = [getattr(x, "func", x) for x in functions]
    parts = (
        (type(agent), AGENTS.values()),
        (type(loop.rewarder), (Identity, *REWARDERS.values())),
        (type(loop.noise), (type(None), *NOISES.values())),
    )
    return all(kind in known for kind, known in parts) and all(
        getattr(x, "__module__", "").startswith("purerl.") for x in functions
    )


def _check_noise(noise: Noise, action: jax.ShapeDtypeStruct) -> None:
    name, (num_envs, *shape) = f"noise: {type(noise).__name__}", action.shape
    key = jax.eval_shape(lambda: jax.random.key(0))
    ended = jax.ShapeDtypeStruct((num_envs,), np.bool_)
    with sentence(f"{name} can't be traced"):
        state = jax.eval_shape(lambda: noise.init(num_envs, tuple(shape)))
        after, drawn = jax.eval_shape(noise.step, state, key)
        restarted = jax.eval_shape(noise.restart, state, ended)
    _require_array(f"{name}: the noise", drawn, action.shape, np.floating, ConfigError)
    for new in (after, restarted):
        _require_same(f"{name}: its state", state, new, ConfigError)


def _check_step(loop: Loop) -> None:
    """Traces the first state and an update, with checks around the user's parts."""
    watched = dataclasses.replace(
        loop,
        agent=_watched_agent(loop.agent),
        rewarder=_WatchedRewarder(loop.rewarder),
    )
    key = jax.eval_shape(lambda: jax.random.key(0))
    index = jax.ShapeDtypeStruct((), np.int32)
    with sentence("TrainConfig: this run can't be traced"):
        state = jax.eval_shape(watched.init, key)
        new, _ = jax.eval_shape(watched.step, state, index)
    _require_same("TrainConfig: the run's state", state, new)


def _trace_acting(
    what: str, make: Callable[[PyTree], Acting], state: PyTree, obs: PyTree, key: PyTree
) -> tuple[PyTree, ...]:
    """Shapes of memory, action and extras after a step of an `Acting`."""
    num_envs = jax.tree.leaves(obs)[0].shape[0]
    done = jax.ShapeDtypeStruct((num_envs,), np.bool_)

    def play(state: PyTree, obs: PyTree, key: jax.Array, done: jax.Array) -> tuple[PyTree, ...]:
        acting = make(state)
        _require(
            isinstance(acting, Acting),
            f"agent: {what} returns {shown(acting)}, expected a purerl.Acting",
        )
        memory = acting.init(num_envs)
        _check_memory(f"agent: {what}'s memory", acting, memory, num_envs)
        out = acting.step(memory, obs, key)
        _require(
            isinstance(out, tuple) and len(out) == 3 and isinstance(out[2], dict),
            f"agent: {what}'s step must return (memory, action, extras), extras a dict of arrays "
            "[N, ...]",
        )
        return memory, *out, acting.reset(out[0], done)

    with sentence(f"agent: {what} can't be traced", AgentError):
        memory, after, action, extras, fresh = jax.eval_shape(play, state, obs, key, done)
    for new in (after, fresh):
        _require_same(f"agent: {what}'s memory", memory, new)
    return after, action, extras


def _check_memory(what: str, acting: Acting, memory: PyTree, num_envs: int) -> None:
    for leaf in jax.tree.leaves(memory):
        shape, _ = _kind(leaf)
        _require(
            shape is not None and shape[:1] == (num_envs,),
            f"{what} has a leaf of shape {shape}, expected [N, ...], N={num_envs}",
        )
        _require(
            acting.reset is not Acting._field_defaults["reset"],
            f"{what} is never reset: expected an Acting with reset, (memory, done [N]) -> memory",
        )


def _watched_agent(agent: Agent) -> Agent:
    """The agent with checks around its `update`."""
    name = type(agent).__name__

    def update(state: PyTree, experience: Experience, *args: Any) -> tuple[PyTree, ...]:
        with sentence(f"agent: {name}.update can't be traced", AgentError):
            out = type(agent).update(agent, state, experience, *args)
        _require(
            isinstance(out, tuple) and len(out) == 3 and isinstance(out[2], dict),
            f"agent: {name}.update must return (state, experience, losses), losses a dict",
        )
        _require_same(f"agent: {name}.update: the agent's state", state, out[0])
        _require_same(f"agent: {name}.update: the experience", experience, out[1])
        for word, loss in out[2].items():
            shape, dtype = _kind(loss)
            _require(
                isinstance(word, str) and shape == () and is_real(dtype),
                f"agent: {name}.update: the loss {word!r} is {dtype_name(dtype)} of shape {shape}, "
                "expected a float32 scalar",
            )
        return out

    return unchecked(agent, update=update)


class _WatchedRewarder(Rewarder):
    """A rewarder with checks around it."""

    def __init__(self, rewarder: Rewarder) -> None:
        self.rewarder, self.name = rewarder, f"rewarder: {type(rewarder).__name__}"

    def init(self, num_envs: int) -> PyTree:
        with sentence(f"{self.name}.init can't be traced"):
            return self.rewarder.init(num_envs)

    def __call__(self, state: PyTree, reward: jax.Array, *rest: Any) -> tuple[PyTree, jax.Array]:
        with sentence(f"{self.name} can't be traced"):
            out = self.rewarder(state, reward, *rest)
        if not (isinstance(out, tuple) and len(out) == 2):
            raise ConfigError(f"{self.name} must return (state, reward), and returns {shown(out)}")
        _require_same(f"{self.name}: its state", state, out[0], ConfigError)
        _require_array(f"{self.name}: the reward", out[1], reward.shape, np.floating, ConfigError)
        return out


def _check_extras(name: str, extras: dict[str, PyTree], num_envs: int) -> None:
    for word, extra in extras.items():
        what = f"agent: {name}.acting's extra {word!r}"
        _require(
            word not in Transition._fields, f"{what} has the name of an entry of the transition"
        )
        _require(
            word not in BUFFER_ENTRIES, f"{what} has the name of an entry that buffers compute"
        )
        for leaf in jax.tree.leaves(extra):
            _require(
                leaf.shape[:1] == (num_envs,),
                f"{what} has shape {leaf.shape}, expected [N, ...], N={num_envs}",
            )


def _require_action(what: str, action: object, num_envs: int, spec: EnvSpec) -> None:
    space = spec.action_space
    kind = np.number if space.sizes is None else np.integer
    _require_array(what, action, (num_envs, *space.shape), kind, AgentError)


def _require_array(
    what: str,
    x: object,
    shape: tuple[int, ...],
    kind: type[np.generic],
    error: Callable[[str], Exception],
) -> None:
    """Raises unless it is an array of real numbers of that shape and kind."""
    got, dtype = _kind(x)
    if got is None:
        raise error(f"{what} is a {type(x).__name__}, expected an array of shape {shape}")
    if got != shape or not jax.dtypes.issubdtype(dtype, kind) or not is_real(dtype):
        nouns: dict[type, str] = {np.floating: "floats", np.integer: "integers"}
        words = nouns.get(kind, "numbers")
        raise error(
            f"{what} has shape {got} and dtype {dtype_name(dtype)}, expected {shape} and {words}"
        )


def _kind(x: object) -> tuple[tuple[int, ...] | None, Any]:
    """Shape and dtype; None and the type's name for anything but arrays and numbers."""
    if hasattr(x, "shape") and hasattr(x, "dtype"):
        return x.shape, x.dtype
    if isinstance(x, (bool, int, float)):
        return (), jnp.result_type(x)
    return None, type(x).__name__


def _require_same(
    what: str, before: PyTree, after: PyTree, error: Callable[[str], Exception] = AgentError
) -> None:
    """Raises unless two pytrees have the same structure, shapes and dtypes."""
    was: Any = jax.tree.structure(before)
    now: Any = jax.tree.structure(after)
    if was != now:
        raise error(f"{what} changes its structure: it is {shown(now)} after, {shown(was)} before")
    for (path, x), y in zip(
        jax.tree_util.tree_leaves_with_path(before), jax.tree.leaves(after), strict=True
    ):
        old, new = _kind(x), _kind(y)
        if old != new:
            raise error(
                f"{what}{jax.tree_util.keystr(path)} has shape {new[0]} and dtype "
                f"{dtype_name(new[1])} after, {old[0]} and {dtype_name(old[1])} before"
            )


def _require(condition: object, message: str) -> None:
    if not condition:
        raise AgentError(message)


def _check_functions(agent: Agent, env: Env, key: jax.Array) -> None:
    obs, _ = jax.eval_shape(jax.vmap(env.reset), jax.random.split(key, NUM_ENVS))
    state = jax.eval_shape(lambda key: agent.init(key, env.spec), key)
    name = type(agent).__name__
    _, action, extras = _trace_acting(
        f"{name}.acting", lambda state: agent.acting(state, _first_clock()), state, obs, key
    )
    shape, dtype = (NUM_ENVS, *env.spec.action_space.shape), env.spec.action_space.dtype
    _require_shape("acting's action", action, shape, dtype)
    _check_extras(name, extras, NUM_ENVS)
    with sentence(f"agent: {name}.for_acting can't be traced", AgentError):
        kept = jax.eval_shape(agent.for_acting, state)
    for sample in (False, True):
        make = functools.partial(agent.policy, sample=sample)
        for words, held in (("", state), (" of the state that for_acting leaves", kept)):
            memory, chosen, _ = _trace_acting(f"{name}.policy{words}", make, held, obs, key)
            _require_shape("policy's action", chosen, shape, dtype)
    # Not every agent learns a value.
    with (
        sentence(f"agent: {name}.value can't be traced", AgentError),
        contextlib.suppress(NotImplementedError),
    ):
        value = jax.eval_shape(agent.value, kept, memory, obs)
        _require_shape("value", value, (NUM_ENVS,), np.float32)
    _check_reset(agent, env, key)


def _first_clock() -> Clock:
    return Clock(jnp.float32(0.0), jnp.float32(0.0))


def _check_reset(agent: Agent, env: Env, key: jax.Array) -> None:
    """Raises unless exactly those rows of the memory are reset whose episode has ended."""

    def play(key: jax.Array) -> tuple[PyTree, PyTree, PyTree]:
        keys = jax.random.split(key, 3)
        obs, _ = jax.vmap(env.reset)(jax.random.split(keys[0], NUM_ENVS))
        acting = agent.acting(agent.init(keys[1], env.spec), _first_clock())
        memory, _, _ = acting.step(acting.init(NUM_ENVS), obs, keys[2])
        every = jnp.ones(NUM_ENVS, bool)
        return memory, acting.reset(memory, every), acting.reset(memory, every.at[1::2].set(False))

    if not jax.tree.leaves(jax.eval_shape(play, key)):
        return
    kept, fresh, mixed = jit(play, quick=True)(key)
    rows = ((kept, slice(1, None, 2)), (fresh, slice(0, None, 2)))
    right = all(
        _equal(*(jax.tree.map(lambda x, at=at: x[at], tree) for tree in (mixed, expected)))
        for expected, at in rows
    )
    _require(right, "acting's reset: expected a fresh memory where done, [N], and no other change")


def _require_shape(
    what: str, x: jax.Array | jax.ShapeDtypeStruct, shape: tuple[int, ...], dtype: DTypeLike
) -> None:
    _require(
        x.shape == shape and x.dtype == dtype,
        f"{what} has shape {x.shape} and dtype {dtype_name(x.dtype)}, expected {shape} and "
        f"{dtype_name(dtype)}",
    )


def _trainer(agent: Agent, env: Env, num_devices: int = 1) -> Callable[..., PyTree]:
    """Two updates with the agent's defaults, as a function of key and hyperparameters; the body of
    one of several devices."""
    defaults = agent.run_defaults
    num_envs = max(defaults.num_envs, num_devices)
    steps = num_envs * defaults.update_every
    buffer = agent.make_buffer(num_envs, defaults.update_every)
    buffer = buffer.replace(maxlen=min(buffer.num_rows(1), 16 * steps))

    def train(key: jax.Array, hyperparams: dict[str, jax.Array]) -> PyTree:
        loop = make_loop(
            env,
            agent.replace(**hyperparams),
            buffer,
            total_timesteps=2 * steps,
            num_envs=num_envs,
            update_after=0,
            num_devices=num_devices,
        )
        state, metrics = loop.scan(loop.init(key))
        return state.agent, metrics.losses

    return train


def _check_update(agent: Agent, env: Env, key: jax.Array) -> None:
    def fresh(key: jax.Array) -> PyTree:
        return _trainer(agent, env)(key, {})

    train = jit(fresh, quick=True)
    keys = jax.random.split(key, 2)
    try:
        state, losses = train(keys[0])
    except TypeError as error:  # from `scan`, with the types before and after
        raise AgentError(f"update changes the structure of the state: {error}") from error
    for name, loss in losses.items():
        _require_shape(f"loss {name!r} of an update", loss[0], (), np.float32)
        _require(np.all(np.isfinite(loss)), f"loss {name!r} is not finite: {loss}")
    _require(
        _equal(state, train(keys[0])[0]), "the same key gave another agent: update is not pure"
    )
    _require(not _equal(state, train(keys[1])[0]), "another key gave the same agent")
    together = jit(jax.vmap(fresh), quick=True)(keys)[0]
    first = jax.tree.map(lambda x: x[0], together)
    _require(_equal(state, first, 1e-3), "vmap over keys gave another agent than the key alone")
    _check_devices(agent, env, keys[0])


def _check_devices(agent: Agent, env: Env, key: jax.Array) -> None:
    """Raises unless two devices, each with half of the environments, learn the same state. They are
    an axis of `vmap` here, with the same collectives."""

    def both(key: jax.Array) -> PyTree:
        body = jax.vmap(_trainer(agent, env, 2), (None, None), axis_name=AXIS, axis_size=2)
        return body(key, {})[0]

    try:
        program = jit(both, quick=True).lower(key)
    except AgentError:
        raise
    except ConfigError:  # it has a size that two devices can't share
        return
    states = program.compile()(key)
    first, second = (jax.tree.map(lambda x, i=i: x[i], states) for i in (0, 1))
    _require(
        _equal(first, second, 1e-6),
        "two devices learned different states: gradients, and all else that enters the state, have "
        "to be averaged by clock.devices.mean",
    )


def _check_hyperparams(agent: Agent, env: Env, key: jax.Array) -> None:
    train = jax.vmap(lambda hyperparams: _trainer(agent, env)(key, hyperparams))
    values = {name: getattr(agent, name) for name in field_names(type(agent), traced=True)}
    values = {name: jnp.asarray([v, v]) for name, v in values.items() if v is not None}
    if not values:
        return
    try:
        jax.eval_shape(train, values)
    except Exception as error:
        raise AgentError(f"its float fields can't be vmapped over: {error}") from error


def _equal(x: PyTree, y: PyTree, tolerance: float = 0.0) -> bool:
    numbers = [
        [jax.random.key_data(leaf) if is_key(leaf) else leaf for leaf in jax.tree.leaves(tree)]
        for tree in (x, y)
    ]
    pairs = zip(*numbers, strict=True)
    return all(np.allclose(a, b, rtol=tolerance, atol=tolerance) for a, b in pairs)
