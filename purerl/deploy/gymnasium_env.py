"""Gymnasium, both ways: purerl's environments as Gymnasium's, and policies in Gymnasium's.

Gymnasium is imported late: only those who use it wait for it.
"""

import importlib
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import TYPE_CHECKING, overload

import numpy as np

from purerl.envs.base import EnvSpec, typed
from purerl.envs.last_action import LAST_ACTION, LAST_REWARD
from purerl.envs.registry import as_env
from purerl.envs.spaces import Space, convert_spaces, is_space
from purerl.records.errors import ConfigError, shown, suggest
from purerl.records.fields import check_count
from purerl.records.types import PyTree
from purerl.training.policy import Policy
from purerl.training.train import check_seed

if TYPE_CHECKING:
    import gymnasium

    from purerl.deploy.gymnasium_classes import GymnasiumEnv, GymnasiumVectorEnv

RENDER_MODES = (None, "rgb_array")
# From one observation to one action; and from an observation, the last reward, and the info.
Act = Callable[[PyTree], PyTree]
ActWithInfo = Callable[[PyTree, float, dict[str, PyTree]], PyTree]


@overload
def to_gymnasium(
    env: object, num_envs: None = None, *, render_mode: str | None = None
) -> "GymnasiumEnv": ...


@overload
def to_gymnasium(
    env: object, num_envs: int, *, render_mode: str | None = None
) -> "GymnasiumVectorEnv": ...


def to_gymnasium(
    env: object, num_envs: int | None = None, *, render_mode: str | None = None
) -> "GymnasiumEnv | GymnasiumVectorEnv":
    """A Gymnasium environment from one of purerl's; the first step compiles.

    With `num_envs`, a `gymnasium.vector.VectorEnv` that steps all of them at once. It resets in the
    step that ends an episode (`AutoresetMode.SAME_STEP`): the last observation of an episode is in
    `info["final_obs"]`, the rest of that step's info in `info["final_info"]`.

    Where the environment has illegal actions, the legal ones are in `info["action_mask"]` of every
    reset and step, as `env.action_space.sample(mask)` takes them: int8, of a `MultiDiscrete` a
    tuple with the mask of each choice. A vector's have a leading axis `[N]`.

    `reset(seed=s)` fixes all episodes that follow. The i-th environment of a vector that is reset
    with seed s plays the same episodes as a single one that is reset with seed s + i.

    Args:
        env: a name, a `purerl.Env`, or a gymnax `Environment`, with its parameters or without.
        num_envs: N, for a vector; None for a single `gymnasium.Env`.
        render_mode: "rgb_array" for `render()`, or None.

    Raises:
        ConfigError: invalid arguments, observations that are pytrees of other containers than
            dicts and tuples, or Gymnasium isn't installed.
    """
    env = typed(as_env(env))
    if render_mode not in RENDER_MODES:
        raise ConfigError(f"render_mode: got {render_mode!r}, expected 'rgb_array' or None")
    whole = isinstance(num_envs, int) and not isinstance(num_envs, bool)
    if num_envs is not None and (not whole or num_envs < 1):
        raise ConfigError(f"num_envs: got {num_envs!r}, expected an integer >= 1, or None")
    _gymnasium()
    from purerl.deploy.gymnasium_classes import GymnasiumEnv, GymnasiumVectorEnv

    if num_envs is None:
        return GymnasiumEnv(env, render_mode=render_mode)
    return GymnasiumVectorEnv(env, num_envs, render_mode=render_mode)


def evaluate_in_gymnasium(
    policy: Policy | Act,
    env: "str | gymnasium.Env",
    num_episodes: int = 10,
    seed: int = 0,
    max_steps: int = 100_000,
) -> tuple[np.ndarray, np.ndarray]:
    """Plays whole episodes of a Gymnasium environment, one after the other, with the greedy policy.

    Where `EnvSpec.legal` of the policy is a key of its observations, the mask is taken from
    `info["action_mask"]`, unless the environment's observations have it.

    Args:
        policy: a `Policy`, or a function from one observation to one action.
        env: the id of a registered environment, such as `"CartPole-v1"`, or a `gymnasium.Env`.
        num_episodes: E.
        seed: of the first episode's reset; the i-th episode is reset with `seed + i`.
        max_steps: where a longer episode is cut off, with its return so far.

    Returns:
        Their returns, `[E]` float64, and their lengths, `[E]` int64.

    Raises:
        ConfigError: no such environment, its action space isn't the policy's, or Gymnasium isn't
            installed.
    """
    num_episodes = check_count("num_episodes", num_episodes)
    max_steps = check_count("max_steps", max_steps)
    seed = check_seed("seed", seed)
    if not callable(policy):
        raise ConfigError(f"policy: got {shown(policy)}, expected a Policy, or a function")
    gymnasium = _gymnasium()
    made = _make(gymnasium, env) if isinstance(env, str) else env
    if not all(hasattr(made, name) for name in ("reset", "step", "action_space")):
        raise ConfigError(f"env: got {shown(env)}, expected an id or a gymnasium.Env")
    if isinstance(policy, Policy):
        _check_actions(policy.spec.action_space, made.action_space)
    try:
        players = (_player(policy) for _ in range(num_episodes))
        played = [_play(made, act, seed + i, max_steps) for i, act in enumerate(players)]
    finally:
        if made is not env:
            made.close()
    returns, lengths = zip(*played, strict=True) if played else ((), ())
    return np.array(returns, np.float64), np.array(lengths, np.int64)


def _player(policy: Policy | Act) -> ActWithInfo:
    """A function from an observation, the last reward and the info to an action, for one episode:
    with a fresh memory, where the policy has one."""
    if not isinstance(policy, Policy):
        return lambda obs, reward, info: policy(obs)
    remembers, memory, action = policy.has_memory, policy.memory(), None

    def act(obs: PyTree, reward: float, info: dict[str, PyTree]) -> PyTree:
        nonlocal memory, action
        obs = _with_mask(policy.spec, obs, info)
        if not (isinstance(obs, Mapping) and LAST_ACTION in obs):
            obs = policy.with_last(obs, action, reward)
        if remembers:
            action, memory = policy.step(obs, memory=memory)
        else:
            action = policy.step(obs)
        return action

    return act


def _with_mask(spec: EnvSpec, obs: PyTree, info: dict[str, PyTree]) -> PyTree:
    """The observation with the mask of legal actions in it, where the policy looks for it there and
    the environment has it only in `info["action_mask"]`."""
    key, known = spec.legal, spec.observation_space
    there = isinstance(obs, Mapping)
    if not isinstance(key, str) or "action_mask" not in info or (there and key in obs):
        return obs
    mask = info["action_mask"]
    mask = np.concatenate(mask) if isinstance(mask, tuple) else mask
    rest = [name for name in known if name not in (key, LAST_ACTION, LAST_REWARD)]
    if there:
        return {**obs, key: mask}
    return {rest[0]: obs, key: mask} if len(rest) == 1 else obs


def _play(env: "gymnasium.Env", act: ActWithInfo, seed: int, max_steps: int) -> tuple[float, int]:
    obs, info = env.reset(seed=seed)
    reward, total, length, over = 0.0, 0.0, 0, False
    while not over and length < max_steps:
        obs, gained, terminated, truncated, info = env.step(act(obs, reward, info))
        reward = float(gained)
        total, length, over = total + reward, length + 1, terminated or truncated
    return total, length


def _gymnasium() -> ModuleType:
    try:
        return importlib.import_module("gymnasium")
    except ImportError:
        raise ConfigError("gymnasium isn't installed: pip install 'purerl[gymnasium]'") from None


def _make(gymnasium: ModuleType, name: str) -> "gymnasium.Env":
    try:
        return gymnasium.make(name)
    except gymnasium.error.UnregisteredEnv:
        known = suggest(name, gymnasium.registry)
        hint = f"; {known}" if known.startswith("did") else ""
        raise ConfigError(f"env: gymnasium has no environment {name!r}{hint}") from None
    except gymnasium.error.Error as error:
        raise ConfigError(f"env: gymnasium can't make {name!r}: {error}") from None


def _check_actions(ours: Space, theirs: object) -> None:
    try:
        found = convert_spaces(theirs)
    except ConfigError:  # choices that don't start at 0
        found = theirs
    alike = is_space(found) and (found.kind, found.shape, found.sizes) == (
        ours.kind,
        ours.shape,
        ours.sizes,
    )
    if not alike:
        raise ConfigError(f"env: its actions are {theirs}, expected the policy's, {ours}")
