"""`run` and `make_loop`: a `Loop` from options, the same for every agent."""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp

from purerl.accelerator.devices import Devices, check_divides
from purerl.agents.base import Agent, RunFacts
from purerl.envs.base import Env, EnvSpec, action_repeat, host_of, refuse_host, time_limit, typed
from purerl.envs.last_action import remember_action
from purerl.envs.params import env_params
from purerl.envs.registry import as_env, as_made, source_of, with_params
from purerl.envs.spaces import Space, map_spaces
from purerl.envs.vector import vector_env
from purerl.experience.buffer import Buffer
from purerl.experience.metrics import Metrics
from purerl.experience.rewarders import Identity
from purerl.nn.views import check_mask_is_kept
from purerl.records.docs import documented, section
from purerl.records.errors import ConfigError, sentence, shown
from purerl.records.fields import (
    Record,
    check_key,
    field_options,
    read_names,
    total_names,
    unchecked,
)
from purerl.training.loop import Loop, RunState
from purerl.training.options import Options

F = TypeVar("F", bound=Callable[..., object])
R = TypeVar("R", bound=Record)

MOST_ROWS = 10_000  # of metrics, if `log_every` isn't given
COUNTED = 2**30  # updates in a row, and rows in a run, at most


def assemble(options: Options) -> Loop:
    """The loop of a run, for one device or as each device's share.

    Raises:
        ConfigError: options that don't fit together.
    """
    options = unchecked(options, env=as_env(options.env)).with_defaults()
    agent, noise, rewarder = options.agent, options.noise, options.rewarder
    num_envs, update_every = cast(int, options.num_envs), cast(int, options.update_every)
    update_after, wait_end_path = cast(int, options.update_after), bool(options.wait_end_path)
    raw_env: Env = options.env
    env = _limited(raw_env, options)
    env = env._replace(spec=env.spec._replace(source=source_of(raw_env)))
    if host_of(env) is not None:
        vector_env(env, num_envs, options.resets)  # raises for what it can't do
    buffer = _fit_buffer(options.buffer, agent, num_envs, update_every)
    facts = RunFacts(
        noise=noise, wait_end_path=wait_end_path, reset_each_episode=options.reset_each_episode
    )
    agent.check_run(num_envs, update_every, buffer, facts)
    if noise is not None and raw_env.spec.action_space.sizes is not None:
        raise ConfigError(f"noise: {raw_env.spec.name} has discrete actions, which take no noise")
    if options.normalize_obs:
        check_mask_is_kept(env.spec)
    rewarder = _own_discount(Identity() if rewarder is None else rewarder, agent)
    if hasattr(rewarder, "check_run"):
        rewarder.check_run(num_envs, update_every)
    eval_env = _eval_env(env, options)
    longest = eval_env.spec.max_episode_steps or 10_000
    limit = env.spec.max_episode_steps
    if wait_end_path:
        limit = min(limit or update_every, update_every)
    if options.total_timesteps is not None:
        num_updates = -(-options.total_timesteps // (num_envs * update_every))
    else:
        num_updates = _longest(options.max_episodes, limit, num_envs, update_every, wait_end_path)
    before_learning = -(-update_after // (num_envs * update_every))
    first_update = max(before_learning - 1, 0)
    _check_length(num_updates, num_envs * update_every, first_update, options)
    loop = Loop(
        env=env,
        eval_env=eval_env,
        agent=agent,
        buffer=buffer,
        rewarder=rewarder,
        noise=agent.run_defaults.noise if noise is None else noise,
        action_map=action_map(raw_env.spec, options.action_processor),
        num_envs=num_envs,
        update_every=update_every,
        num_updates=num_updates,
        log_every=_log_every(options.log_every, num_updates),
        first_update=first_update,
        random_rollouts=before_learning if agent.run_defaults.random_start else 0,
        max_episodes=options.max_episodes,
        resets=env.spec.resets if options.resets is None else options.resets,
        reset_each_episode=options.reset_each_episode,
        wait_end_path=wait_end_path,
        normalize_obs=options.normalize_obs,
        stop_at_return=options.stop_at_return,
        stop_if_nonfinite=options.stop_if_nonfinite,
        eval_every=options.eval_every,
        eval_max_episodes=options.eval_max_episodes,
        eval_max_episode_steps=options.eval_max_episode_steps or longest,
        log=options.log,
    )
    return loop if options.num_devices == 1 else _divide(loop, options.num_devices)


def _limited(env: Env, options: Options) -> Env:
    """The environment with the run's frame skip, time limit, and memory of actions."""
    env = limit_env(env, options.max_episode_steps, options.skip_frames)
    return remember_action(env) if options.remember_action else env


def _eval_env(env: Env, options: Options) -> Env:
    """The environment of evaluations, as that of the run. Raises ConfigError unless its spaces and
    metrics are the run's."""
    if options.eval_env is None:
        return env
    made = _limited(as_env(options.eval_env), options)
    for name in ("observation_space", "action_space", "metrics"):
        here, there = getattr(made.spec, name), getattr(env.spec, name)
        if name == "observation_space":
            here, there = (map_spaces(lambda x: x.widened(), space) for space in (here, there))
        if here != there:
            raise ConfigError(
                f"eval_env: {made.spec.name} has the {name} {shown(here)}, expected that of "
                f"{env.spec.name}, {shown(there)}"
            )
    if options.num_devices != 1:
        refuse_host(made, "num_devices")
    return made


def _check_length(num_updates: int, steps: int, first_update: int, options: Options) -> None:
    """Raises ConfigError if the run is over before its first update or evaluation."""
    if first_update >= num_updates:
        raise ConfigError(
            f"update_after: got {options.update_after}, expected less than the run's "
            f"{num_updates * steps} steps: nothing would be learned"
        )
    if options.eval_every is not None and options.eval_every > num_updates:
        raise ConfigError(
            f"eval_every: got {options.eval_every}, expected at most {num_updates}, the updates of "
            "the run"
        )


def _with_options(function: F) -> F:
    """Adds the fields of `Options` to a function's signature and docstring."""
    signature, fields = inspect.signature(function), field_options(Options)
    first = [x for x in signature.parameters.values() if x.kind is not x.VAR_KEYWORD]
    keyword = inspect.Parameter.KEYWORD_ONLY
    rest = [
        inspect.Parameter(
            name,
            keyword,
            default=None if name == "total_timesteps" else field.default,
            annotation=field.type,
        )
        for name, field in fields.items()
        if name not in signature.parameters
    ]
    function.__signature__ = signature.replace(parameters=[*first, *rest])  # type: ignore[attr-defined]
    if function.__doc__ is not None:
        texts = documented(Options) | {"key": "decides everything random in the run."}
        names = [parameter.name for parameter in (*first, *rest)]
        arguments = section("Args", {name: texts[name] for name in names})
        function.__doc__ = inspect.cleandoc(function.__doc__).replace("ARGS", arguments)
    return function


@_with_options
def make_loop(env: Any, agent: Agent, buffer: Buffer | None = None, **options: Any) -> Loop:
    """A run's pure functions, to be scanned by the caller.

    ARGS

    Raises:
        ConfigError: arguments that can't be used, or don't fit together.
    """
    given = {"total_timesteps": None, **read_names(Options, options)}
    return assemble(Options(env=env, agent=agent, buffer=buffer, **given))


@_with_options
def run(
    env: Any, agent: Agent, buffer: Buffer | None = None, *, key: jax.Array, **options: Any
) -> tuple[RunState, Metrics]:
    """Trains an agent in an environment, in one `lax.scan`.

    At least one of `total_timesteps` and `max_episodes` is needed.

    ARGS

    Returns:
        The run's final state, and metrics with a leading axis `[num_rows]`.

    Raises:
        ConfigError: arguments that can't be used, or don't fit together.
    """
    check_key(key)
    loop = make_loop(env, agent, buffer, **options)
    return loop.spread(loop.scan)(loop.start(key))


def _divide(loop: Loop, num_devices: int) -> Loop:
    """One device's share of the run. Raises ConfigError if D doesn't divide it."""
    refuse_host(loop.env, "num_devices")
    evaluated = loop.eval_max_episodes
    check_divides(num_devices, "num_envs", loop.num_envs)
    if loop.eval_every is not None:
        check_divides(num_devices, "eval_max_episodes", evaluated)
    return dataclasses.replace(
        loop,
        agent=_part(loop.agent, num_devices),
        buffer=_part(loop.buffer, num_devices),
        num_envs=loop.num_envs // num_devices,
        eval_max_episodes=evaluated // num_devices,
        devices=Devices(num_devices),
    )


def _part(record: R, num_devices: int) -> R:
    """A record with one device's share of the sizes that are totals. Raises ConfigError if D
    doesn't divide one."""
    totals = {name: getattr(record, name) for name in total_names(type(record))}
    totals = {name: size for name, size in totals.items() if size is not None}
    for name, size in totals.items():
        check_divides(num_devices, f"{type(record).__name__}.{name}", size)
    return record.replace(**{name: size // num_devices for name, size in totals.items()})


def limit_env(env: Env, max_episode_steps: int | None, skip_frames: int) -> Env:
    """The environment with the run's frame skip and time limit, and the dtypes of `typed`.

    A limit above the environment's replaces it if that is a parameter of `make`, as in suites.

    Raises:
        ConfigError: the time limit is above the environment's, where it would have no effect.
    """
    made = source_of(as_made(env)) is not None and "max_episode_steps" in env_params(env)
    if max_episode_steps is not None and made:
        usual, most = env.spec.max_episode_steps, max_episode_steps * skip_frames
        if usual is not None and most > usual:
            env = _with_limit(env, most)
    env = typed(env)
    if skip_frames > 1:
        env = action_repeat(env, skip_frames)
    if max_episode_steps is None:
        return env
    own = env.spec.max_episode_steps
    if own is not None and max_episode_steps > own:
        raise ConfigError(
            f"max_episode_steps: got {max_episode_steps}, expected at most {own}, the limit that "
            f"{env.spec.name} keeps by itself; make the environment with other parameters"
        )
    return time_limit(env, max_episode_steps)


def _with_limit(env: Env, limit: int) -> Env:
    """An environment of `make` with another time limit, with the hyperparameters in it, and with
    what a user has replaced in its spec that is no part of equality."""
    spec, made = env.spec, with_params(as_made(env), {"max_episode_steps": limit})
    kept = made.spec._replace(resets=spec.resets, draw=spec.draw, legal=spec.legal)
    return made._replace(spec=kept)


def action_map(
    spec: EnvSpec, action_processor: Callable[[jax.Array], jax.Array] | None
) -> Callable[[jax.Array], jax.Array]:
    """The function from the agent's actions `[N, *action_shape]` to the environment's.

    Raises:
        ConfigError: from the function, if the processor's shape or dtype isn't the environment's.
    """
    space = spec.action_space
    if action_processor is not None:
        return functools.partial(_processed, action_processor, space)
    return space.clip


def _processed(
    processor: Callable[[jax.Array], jax.Array], space: Space, action: jax.Array
) -> jax.Array:
    """A user's processor of actions, with its output checked."""
    with sentence("action_processor: can't be traced"):
        out = processor(action)
    shape = (*action.shape[: action.ndim - len(space.shape)], *space.shape)
    floats = jnp.issubdtype(space.dtype, jnp.floating)
    kind, words = (jnp.floating, "floats") if floats else (jnp.integer, "integers")
    if not hasattr(out, "shape") or not hasattr(out, "dtype"):
        raise ConfigError(
            f"action_processor: the action is a {type(out).__name__}, expected an array of shape "
            f"{shape}"
        )
    if out.shape != shape or not jnp.issubdtype(out.dtype, kind):
        raise ConfigError(
            f"action_processor: the action has shape {out.shape} and dtype {out.dtype}, expected "
            f"{shape} and {words}: [N, *action_shape], as the environment takes them, {space}"
        )
    return out.astype(space.dtype)


def _fit_buffer(buffer: Buffer | None, agent: Agent, num_envs: int, update_every: int) -> Buffer:
    """The buffer with the agent's defaults in place of None."""
    own = agent.make_buffer(num_envs, update_every)
    buffer = _own_discount(buffer or own, agent)
    buffer = buffer.replace(maxlen=own.maxlen) if buffer.maxlen is None else buffer
    if buffer.maxlen is not None and buffer.maxlen >= num_envs * update_every:
        buffer.num_rows(num_envs)
    return buffer


def _longest(
    max_episodes: int | None,
    limit: int | None,
    num_envs: int,
    update_every: int,
    wait_end_path: bool,
) -> int:
    """The most updates that `max_episodes` can take."""
    if max_episodes is None:
        raise ConfigError("total_timesteps: got None, expected an integer, or max_episodes")
    after_each_other = -(-max_episodes // num_envs)
    if wait_end_path:  # an episode of each environment in every rollout
        return after_each_other
    if limit is None:
        raise ConfigError(
            f"total_timesteps: got None, expected an integer: max_episodes={max_episodes} could "
            "take for ever, since the environment has no time limit (or set max_episode_steps)"
        )
    return -(-after_each_other * limit // update_every)  # every episode runs into its limit


def _log_every(log_every: int | None, num_updates: int) -> int:
    """Updates in a row of metrics."""
    if num_updates > COUNTED**2:
        raise ConfigError(
            f"total_timesteps: got a run of {num_updates} updates, expected at most {COUNTED**2}"
        )
    if log_every is None:
        return min(-(-num_updates // MOST_ROWS), COUNTED)
    least, most = -(-num_updates // COUNTED), min(num_updates, COUNTED)
    if not least <= log_every <= most:
        raise ConfigError(
            f"log_every: got {log_every}, expected an integer from {least} to {most}, in a run of "
            f"{num_updates} updates"
        )
    return log_every


def _own_discount(part: Any, agent: Agent) -> Any:
    """A buffer or rewarder with the agent's gamma and lam in place of None."""
    missing = {
        name: getattr(agent, name)
        for name in ("gamma", "lam")
        if getattr(part, name, 0.0) is None and hasattr(agent, name)
    }
    return part.replace(**missing) if missing else part
