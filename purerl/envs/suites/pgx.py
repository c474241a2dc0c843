"""Pgx: 2048, board and card games against an opponent, MinAtar. Apache-2.0, but the environments
`minatar-*` are GPL-3.0: gymnax has MinAtar's games without that licence."""

import dataclasses
import importlib
from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from purerl.envs.base import Env, EnvSpec
from purerl.envs.spaces import Discrete
from purerl.envs.suites.dynamics import LIMIT, MASK, Foreign, Maker, Outcome, SuiteDynamics, build
from purerl.records.errors import ConfigError, shown
from purerl.records.types import PyTree

Opponent: TypeAlias = Callable[[jax.Array, PyTree], jax.Array]


def known() -> list[str]:
    """The names that the installed version has."""
    return list(importlib.import_module("pgx").available_envs())


def maker(name: str) -> Maker:
    """The factory of an environment.

    Its parameters: `max_episode_steps`, None by default, since the games end; and of games of two
    players `opponent`, a `purerl.Policy`, or a function `(key, obs) -> action` of the opponent's
    observation; None is one who plays any legal action. In place of an opponent's illegal action,
    for which pgx would end the game as lost, any legal one is played.
    """
    suite = importlib.import_module("pgx")
    several = suite.make(name).num_players > 1

    def make(max_episode_steps: object = None, opponent: object = None) -> Env:
        return _env(suite.make(name), f"pgx/{name}", max_episode_steps, opponent)

    return Maker(make, {LIMIT: None, **({"opponent": None} if several else {})})


def adapt(env: Foreign, params: PyTree = None) -> Env | None:
    """An `Env` of an instance of `pgx.Env`; None for another object. Instead of parameters the pair
    may have an opponent."""
    if not isinstance(env, importlib.import_module("pgx").Env):
        return None
    return _env(env, env.id, None, params)


def _env(env: Foreign, name: str, limit: object, opponent: object) -> Env:
    if env.num_players > 2:
        raise ConfigError(f"env: {name} has {env.num_players} players, expected at most 2")
    masked = not str(env.id).startswith("minatar")
    dynamics = PgxDynamics(env, opponent=_opponent(opponent), masked=masked)
    won = ("win",) if env.num_players == 2 else ("max_tile",) if env.id == "2048" else ()
    spec = EnvSpec(
        name,
        None,
        Discrete(env.num_actions),
        metrics=won,
        legal=MASK if masked else None,
        draw=_draw_tiles if env.id == "2048" else None,
    )
    return build(dynamics, spec, limit)


@dataclasses.dataclass(frozen=True, eq=False)
class _Plays:
    """A policy as an opponent."""

    policy: Foreign  # of observations [B, ...]

    def __call__(self, key: jax.Array, obs: PyTree) -> jax.Array:
        action: jax.Array = self.policy.act(jax.tree.map(lambda x: x[None], obs), key)[0]
        return action


def _opponent(given: object) -> Opponent | None:
    if given is None:
        return None
    if hasattr(given, "act"):
        return _Plays(given)
    if not callable(given):
        raise ConfigError(
            f"env.opponent: got {shown(given)}, expected a Policy, a function of a key and an "
            "observation, or None"
        )
    function: Opponent = given
    return function


@dataclasses.dataclass(frozen=True, eq=False)
class PgxDynamics(SuiteDynamics):
    """A game from the view of player 0, who may begin or not: the opponent's moves are a part of
    the step. Rewards are player 0's.

    Attributes:
        opponent: `(key, obs) -> action`, where any legal action is played if that is illegal; None
            plays any legal action.
        masked: whether observations have a mask of legal actions.
    """

    opponent: Opponent | None = None
    masked: bool = False

    def begin(self, key: jax.Array) -> tuple[PyTree, PyTree]:
        init_key, play_key = jax.random.split(key)
        state, _ = self._answered(play_key, self.env.init(init_key))
        return self._seen(state), state

    def advance(self, key: jax.Array, state: PyTree, action: jax.Array) -> Outcome:
        step_key, play_key = jax.random.split(key)
        state = self.env.step(state, action, step_key)
        first = state.rewards[0]
        state, rest = self._answered(play_key, state)
        reward = first + rest
        info = {}
        if self.env.num_players == 2:
            info = {"win": (state.terminated & (reward > 0)).astype(jnp.float32)}
        elif self.env.id == "2048":
            info = {"max_tile": 2.0 ** jnp.max(state._board)}
        return Outcome(self._seen(state), state, reward, state.terminated, state.truncated, info)

    def _seen(self, state: PyTree) -> PyTree:
        if not self.masked:
            return state.observation
        return {"observation": state.observation, MASK: state.legal_action_mask}

    def _answered(self, key: jax.Array, state: PyTree) -> tuple[PyTree, jax.Array]:
        """The state after the opponent's moves, until it is player 0's turn or the game is over;
        and player 0's rewards on the way."""
        nothing = jnp.zeros_like(state.rewards[0])
        if self.env.num_players == 1:
            return state, nothing

        def theirs(carry: tuple[jax.Array, PyTree, jax.Array]) -> jax.Array:
            state = carry[1]
            turn: jax.Array = (state.current_player != 0) & ~state.terminated & ~state.truncated
            return turn

        def play(carry: tuple[jax.Array, PyTree, jax.Array]) -> tuple[jax.Array, PyTree, jax.Array]:
            key, state, rewards = carry
            key, choose_key, step_key = jax.random.split(key, 3)
            state = self.env.step(state, self._chosen(choose_key, state), step_key)
            return key, state, rewards + state.rewards[0]

        _, state, rewards = jax.lax.while_loop(theirs, play, (key, state, nothing))
        return state, rewards

    def _chosen(self, key: jax.Array, state: PyTree) -> jax.Array:
        legal = state.legal_action_mask
        logits = jnp.where(legal, 0.0, -jnp.inf)
        if self.opponent is None:
            return jax.random.categorical(key, logits).astype(jnp.int32)
        act_key, other_key = jax.random.split(key)
        action = jnp.asarray(self.opponent(act_key, self._seen(state)), jnp.int32)
        allowed = (action >= 0) & (action < legal.size) & legal[action]
        other = jax.random.categorical(other_key, logits).astype(jnp.int32)
        return jnp.where(allowed, action, other)


def _draw_tiles(state: PyTree) -> np.ndarray:
    """The board of 2048; of other games the observation is a picture."""
    from PIL import Image, ImageDraw, ImageFont

    size, gap = 100, 6
    image = Image.new("RGB", (4 * size, 4 * size), "#bbada0")
    brush, font = ImageDraw.Draw(image), ImageFont.load_default(34)
    for i, power in enumerate(np.asarray(state._board).ravel().tolist()):
        x, y = size * (i % 4), size * (i // 4)
        box = (x + gap, y + gap, x + size - gap, y + size - gap)
        shade = (
            (205, 193, 180) if power == 0 else (238, 228 - 14 * min(power, 14), 218 - 15 * power)
        )
        brush.rounded_rectangle(box, 8, tuple(max(part, 0) for part in shade))
        if power:
            brush.text((x + size / 2, y + size / 2), str(2**power), "#333", font, anchor="mm")
    return np.asarray(image)
