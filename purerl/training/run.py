"""`run`: a loop put together from its arguments, and scanned. One for every agent."""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from purerl.accelerator.devices import Devices, check_divides
from purerl.agents.base import Agent
from purerl.agents.noise import Noise
from purerl.envs.base import Env, EnvSpec, action_repeat, time_limit, typed
from purerl.envs.registry import as_env, source_of
from purerl.envs.spaces import Space
from purerl.experience.buffer import Buffer
from purerl.experience.metrics import Metrics
from purerl.experience.rewarders import Identity, Rewarder
from purerl.nn.views import check_mask_is_kept
from purerl.records.errors import ConfigError, sentence, shown, suggest
from purerl.records.fields import INT32, INT64, check_count, check_key, total_names
from purerl.training.loop import Loop, RunState

MOST_ROWS = 10_000  # of metrics, where `log_every` isn't given
COUNTED = 2**30  # updates in a row, and rows in a run, at most


def make_loop(
    env: Any,
    agent: Agent,
    buffer: Buffer | None = None,
    *,
    num_envs: int | None = None,
    total_timesteps: int | None = None,
    max_episodes: int | None = None,
    update_every: int | None = None,
    update_after: int | None = None,
    rewarder: Rewarder | None = None,
    noise: Noise | None = None,
    action_processor: Callable[[jax.Array], jax.Array] | None = None,
    normalize_obs: bool = False,
    stop_if_nonfinite: bool = False,
    log_every: int | None = None,
    max_episode_steps: int | None = None,
    skip_frames: int = 1,
    reset_each_episode: bool = False,
    wait_end_path: bool | None = None,
    eval_every: int | None = None,
    eval_max_episodes: int = 10,
    eval_max_episode_steps: int | None = None,
    num_devices: int = 1,
) -> Loop:
    """Puts a run together; `run` says what the arguments mean."""
    _check_agent(agent)
    raw_env = as_env(env)
    env = limit_env(raw_env, max_episode_steps, skip_frames)
    env = env._replace(spec=env.spec._replace(source=source_of(raw_env)))
    defaults = agent.run_defaults
    num_envs = defaults.num_envs if num_envs is None else num_envs
    update_every = defaults.update_every if update_every is None else update_every
    update_after = defaults.update_after if update_after is None else update_after
    wait_end_path = defaults.wait_end_path if wait_end_path is None else wait_end_path

    buffer = _fit_buffer(buffer, agent, num_envs, update_every)
    options = {"noise": noise, "wait_end_path": wait_end_path}
    agent.check_run(num_envs, update_every, buffer, options)
    if noise is not None and raw_env.spec.action_space.sizes is not None:
        raise ConfigError(f"noise: {raw_env.spec.name} has discrete actions, which take no noise")
    if normalize_obs:
        check_mask_is_kept(raw_env.spec)
    rewarder = _own_discount(Identity() if rewarder is None else rewarder, agent)
    if hasattr(rewarder, "check_run"):
        rewarder.check_run(num_envs, update_every)
    limit = env.spec.max_episode_steps
    if wait_end_path:
        limit = min(limit or update_every, update_every)
    if total_timesteps is not None:
        num_updates = -(-total_timesteps // (num_envs * update_every))
    else:
        num_updates = _longest(max_episodes, limit, num_envs, update_every, wait_end_path)
    log_every = _log_every(log_every, num_updates)
    before_learning = -(-update_after // (num_envs * update_every))
    first_update = max(before_learning - 1, 0)
    _check_length(num_updates, num_envs * update_every, first_update, update_after, eval_every)
    loop = Loop(
        env=env,
        agent=agent,
        buffer=buffer,
        rewarder=rewarder,
        noise=defaults.noise if noise is None else noise,
        action_map=action_map(raw_env.spec, action_processor),
        num_envs=num_envs,
        update_every=update_every,
        num_updates=num_updates,
        log_every=log_every,
        first_update=first_update,
        random_rollouts=before_learning if defaults.random_start else 0,
        max_episodes=max_episodes,
        reset_each_episode=reset_each_episode,
        wait_end_path=wait_end_path,
        normalize_obs=normalize_obs,
        stop_if_nonfinite=stop_if_nonfinite,
        eval_every=eval_every,
        eval_max_episodes=eval_max_episodes,
        eval_max_episode_steps=eval_max_episode_steps or env.spec.max_episode_steps or 10_000,
    )
    return loop if num_devices == 1 else _divide(loop, num_devices)


def _check_length(
    num_updates: int, steps: int, first_update: int, update_after: int, eval_every: int | None
) -> None:
    """Raises ConfigError where the run is over before it has learned, or was evaluated."""
    if first_update >= num_updates:
        raise ConfigError(
            f"update_after: got {update_after}, expected less than the run's "
            f"{num_updates * steps} steps: nothing would be learned"
        )
    if eval_every is not None and eval_every > num_updates:
        raise ConfigError(
            f"eval_every: got {eval_every}, expected at most {num_updates}, the updates of the run"
        )


def run(
    env: Any, agent: Agent, buffer: Buffer | None = None, *, key: jax.Array, **options: Any
) -> tuple[RunState, Metrics]:
    """Trains an agent in an environment: the whole of it one `lax.scan`.

    Args:
        env: a name, an `Env`, or a gymnax `Environment`.
        agent: the agent.
        buffer: what it learns from; None for the agent's own choice.
        key: everything random in the run follows from it.
        num_envs: N, environments side by side; None for the agent's default.
        total_timesteps: environment steps in all, over all N; rounded up to whole updates. Steps
            are decisions: with frame skip each of them is several frames.
        max_episodes: the run is over with the update in which so many episodes have ended, over all
            N: nothing changes in the state after that, and metrics are NaN. At least one of this
            and `total_timesteps` is given; alone it needs a time limit, to know how long at most.
            An episode that NaN or infinity broke off doesn't count. Schedules go by the episodes or
            by the steps, whichever are nearer to their end.
        update_every: T, steps of each environment between updates; None for the agent's default.
        update_after: environment steps, over all N, before anything is learned; None for the
            agent's default. Until then DDPG's actions are drawn from the action space, evenly
            between its bounds.
        rewarder: transforms the reward that is learned from.
        noise: exploration noise for agents that act deterministically, added to their actions; what
            they learn from are the sums. None for the agent's default.
        action_processor: from the agent's action to the environment's, just before the step; the
            buffer keeps the agent's own. None clips to a Box's bounds.
        normalize_obs: floats, by running mean and variance over all environments.
        stop_if_nonfinite: the run is over once NaN or infinity came from the environment or would
            have come into the agent, or numbers beyond 1e15 into running statistics. Such an update
            is always skipped, such numbers are kept out, and both are counted in the metrics; by
            default the run goes on after it.
        log_every: updates that make a row of metrics: means, minima, maxima and counts over all of
            them. None for the fewest with which the run has no more than 10,000 rows, which is 1
            for runs of up to 10,000 updates.
        max_episode_steps: a time limit: sets `truncated`, never `terminated`.
        skip_frames: how often each action is repeated; rewards are summed.
        reset_each_episode: empty the buffer before each rollout.
        wait_end_path: episodic rollouts: all environments are reset and play T steps, a time limit;
            what follows the first end of each is not `valid`: losses over paths leave it out. None
            for the agent's default.
        eval_every: evaluate after every so many updates; None for never.
        eval_max_episodes: episodes in each evaluation.
        eval_max_episode_steps: an evaluation's episodes stop there; None for the environment's own
            limit, or 10,000 where it has none.
        num_devices: D, the devices (of all hosts) that the environments are spread over. Sizes stay
            totals: each device has a D-th of the environments, of the buffer, of every batch and of
            an evaluation's episodes. What is learned is the same on all.

    Returns:
        The run's final state, and metrics with a leading axis `[num_rows]`.

    Raises:
        ConfigError: arguments that don't fit together.
    """
    check_key(key)
    loop = make_loop(env, agent, buffer, **_checked(options))
    return loop.spread(loop.scan)(loop.start(key))


def _check_agent(agent: Any) -> None:
    if not isinstance(agent, Agent):
        raise ConfigError(f"agent: got {shown(agent)}, expected an agent, such as purerl.PPO()")


def _checked(options: dict[str, Any]) -> dict[str, Any]:
    """Options of `run`, sizes as integers. Raises ConfigError: an unknown name, or no such size."""
    known = inspect.signature(make_loop).parameters
    checked = dict(options)
    for name, value in options.items():
        if name not in known:
            raise ConfigError(f"run: no argument {name!r}; {suggest(name, known)}")
        if value is not None and str(known[name].annotation).startswith("int"):
            counter = name in ("total_timesteps", "max_episodes", "update_after")
            least, most = int(name != "update_after"), INT64 if counter else INT32
            checked[name] = check_count(name, value, at_least=least, at_most=most)
    return checked


def _divide(loop: Loop, num_devices: int) -> Loop:
    """One device's part of the run. Raises ConfigError where D doesn't divide it."""
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


def _part(record: Any, num_devices: int) -> Any:
    """A record with one device's part of the sizes that are totals. Raises ConfigError where D
    doesn't divide one."""
    totals = {name: getattr(record, name) for name in total_names(type(record))}
    totals = {name: size for name, size in totals.items() if size is not None}
    for name, size in totals.items():
        check_divides(num_devices, f"{type(record).__name__}.{name}", size)
    return record.replace(**{name: size // num_devices for name, size in totals.items()})


def limit_env(env: Env, max_episode_steps: int | None, skip_frames: int) -> Env:
    """The environment with the run's frame skip and time limit, and the dtypes of `typed`.

    Raises:
        ConfigError: the time limit is beyond the environment's own, where it would do nothing.
    """
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


def action_map(
    spec: EnvSpec, action_processor: Callable[[jax.Array], jax.Array] | None
) -> Callable[[jax.Array], jax.Array]:
    """From the agent's actions `[N, *action_shape]` to the environment's: inside its bounds.

    Raises:
        ConfigError: from what it returns, where that is traced: the processor gives other shapes or
            kinds of numbers than the environment takes.
    """
    space = spec.action_space
    if action_processor is not None:
        return functools.partial(_processed, action_processor, space)
    return space.clip


def _processed(processor: Callable[[Any], Any], space: Space, action: jax.Array) -> jax.Array:
    """What a user's processor makes of actions, `[N, *action_shape]` as they have to be."""
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
    """The buffer with what it leaves open filled in by the agent."""
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
    """How many updates so many episodes can take, at most."""
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
    """A buffer or rewarder with the agent's gamma and lam, where it has none of its own."""
    missing = {
        name: getattr(agent, name)
        for name in ("gamma", "lam")
        if getattr(part, name, 0.0) is None and hasattr(agent, name)
    }
    return part.replace(**missing) if missing else part
