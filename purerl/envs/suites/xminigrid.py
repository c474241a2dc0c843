"""XLand-MiniGrid: MiniGrid's tasks, and worlds of rules and goals. Apache-2.0."""

import dataclasses
import functools
import importlib
import warnings

import jax
import numpy as np

from purerl.envs.base import Env, EnvSpec
from purerl.envs.spaces import Box, Discrete, Space
from purerl.envs.suites.dynamics import (
    LIMIT,
    Foreign,
    Maker,
    Outcome,
    SuiteDynamics,
    box_of,
    build,
    plain_defaults,
    refuse_wrapper,
)
from purerl.records.errors import ConfigError
from purerl.records.types import PyTree

RESETTING = ("GymAutoResetWrapper", "DmEnvAutoResetWrapper")
FIXED = ("height", "width", "max_steps", "render_mode")


def known() -> list[str]:
    """The names that the installed version has."""
    return list(importlib.import_module("xminigrid").registered_environments())


def maker(name: str) -> Maker:
    """The factory of an environment.

    Its parameters: `direction=True` adds the agent's direction to observations; `rules=True` adds
    the goal and the rules; `view_size`; the time limit, which the suite itself keeps, because its
    rewards depend on it; and of XLand's environments `ruleset`, an object of the suite, without
    which they have no goal.

    The reward of success falls with the steps taken, as a part of the suite's time limit.
    `max_episode_steps` of `make` replaces that limit, and so changes rewards; a run's smaller
    `max_episode_steps` cuts episodes and leaves the rewards as they are.
    """
    suite = importlib.import_module("xminigrid")
    wrappers = importlib.import_module("xminigrid.wrappers")
    _, usual = suite.make(name)
    limit = int(usual.max_steps)
    # Of the environment, which differ from those of the class.
    plain = {word: getattr(usual, word) for word in plain_defaults(type(usual), FIXED)}
    plain |= {"view_size": int(usual.view_size)}
    ruled = hasattr(usual, "ruleset")

    def make(
        max_episode_steps: object = limit,
        direction: bool = False,
        rules: bool = False,
        ruleset: object = None,
        **given: object,
    ) -> Env:
        if ruled and ruleset is None:
            warnings.warn(
                f"env: {name} has no goal, and its rewards are 0, without a ruleset, such as "
                "xminigrid.load_benchmark('trivial-1m').get_ruleset(0)",
                stacklevel=2,
            )
        rest = given if ruleset is None else {**given, "ruleset": ruleset}
        env, params = suite.make(name, max_steps=max_episode_steps, **rest)
        env = wrappers.DirectionObservationWrapper(env) if direction else env
        env = wrappers.RulesAndGoalsObservationWrapper(env) if rules else env
        return _env(env, params, f"xminigrid/{name}")

    extra: dict[str, object] = {"rules": False, "ruleset": None} if ruled else {}
    return Maker(make, {**plain, "direction": False, **extra, LIMIT: limit})


def adapt(env: Foreign, params: PyTree = None) -> Env | None:
    """An `Env` of an instance of the suite's `Environment`, with its parameters; None for another
    object."""
    if not isinstance(env, importlib.import_module("xminigrid.environment").Environment):
        return None
    refuse_wrapper(env, RESETTING, "give the environment inside it")
    if params is None:
        raise ConfigError(
            f"env: got a {type(env).__name__}, expected a pair of it and its parameters, as "
            "xminigrid.make returns"
        )
    return _env(env, params, type(env).__name__)


def _env(env: Foreign, params: PyTree, name: str) -> Env:
    constants = importlib.import_module("xminigrid.core.constants")
    high = [constants.NUM_TILES - 1, constants.NUM_COLORS - 1]
    key = jax.eval_shape(lambda: jax.random.key(0))
    obs = jax.eval_shape(lambda key: env.reset(params, key).observation, key)

    def space(x: jax.ShapeDtypeStruct) -> Space:
        """Pairs of codes, of a tile and a colour, with their bounds, so that networks get them
        one-hot; pixels as bytes."""
        coded = x.dtype == np.uint8 and len(x.shape) == 3 and x.shape[-1] == 2
        return Box(0, high, x.shape, x.dtype) if coded else box_of(x)

    actions = Discrete(int(env.num_actions(params)))
    spec = EnvSpec(
        name,
        jax.tree.map(space, obs),
        actions,
        int(params.max_steps),
        metrics=("success",),
        resets="spare(64)",
        draw=functools.partial(_draw, env, params),
    )
    return build(XMiniGridDynamics(env, fixed=params), spec)


def _draw(env: Foreign, params: PyTree, timestep: PyTree) -> np.ndarray:
    return np.asarray(env.render(params, timestep), np.uint8)


@dataclasses.dataclass(frozen=True, eq=False)
class XMiniGridDynamics(SuiteDynamics):
    """Dynamics whose state is the suite's whole `TimeStep`.

    Attributes:
        fixed: the suite's `EnvParams`, none of which is a float.
    """

    fixed: PyTree = None

    def begin(self, key: jax.Array) -> tuple[PyTree, PyTree]:
        timestep = self.env.reset(self.fixed, key)
        return timestep.observation, timestep

    def advance(self, key: jax.Array, state: PyTree, action: jax.Array) -> Outcome:
        timestep = self.env.step(self.fixed, state, action)
        last, goes_on = timestep.last(), timestep.discount > 0
        # Memory's wrong end is a termination too, without a reward.
        info = {"success": (last & ~goes_on & (timestep.reward > 0)).astype(np.float32)}
        ends = last & ~goes_on, last & goes_on
        return Outcome(timestep.observation, timestep, timestep.reward, *ends, info)
