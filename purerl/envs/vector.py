"""N environments side by side, with a new episode where one ends: how first states are drawn.

Under `vmap` every environment's reset runs at every step, whether its episode ended or not. Where a
reset costs as much as a step or more, as of a generated world, few resets a step do:

    fresh           N a step: each episode has one made for it
    optimistic(r)   N / r a step, given to those that end; as Craftax has it (Matthews et al. 2024,
                    arXiv:2402.16801)
    spare(r)        N / r a step, which fill a reserve of a first state for each environment, so
                    that all may end together
"""

import dataclasses
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from purerl.envs.base import (
    Adapter,
    Env,
    EnvSpec,
    PyTree,
    TimeStep,
    all_finite,
    auto_reset,
    typed,
    vectorize,
    where,
)
from purerl.records.errors import ConfigError, shown, suggest
from purerl.records.fields import check_count

KINDS = ("fresh", "optimistic", "spare")
RATIO = 16  # as of Craftax
_SOON = 2**30  # steps


class VectorEnv(NamedTuple):
    """N environments that begin new episodes where theirs end: all that a rollout knows of them.

    Attributes:
        reset: `(keys [N]) -> (obs [N, ...], state)`.
        step: `(keys [N], state, actions [N, ...]) -> (state, TimeStep [N, ...])`. `TimeStep.obs` is
            the true successor; `state.obs` is what to act on next, of a new episode where one
            ended. `info["nonfinite"]` is True where NaN or infinity has cut it.
        spec: the `EnvSpec` of one.
        num_envs: N.
    """

    reset: Any
    step: Any
    spec: EnvSpec
    num_envs: int


class FewResetsState(NamedTuple):
    """State of environments with `optimistic` resets.

    Attributes:
        env: the inner states, `[N, ...]`.
        obs: `[N, *obs_shape]`, the observations to act on next.
        num_shared: `[]` int32, how many episodes so far began in a first state that wasn't theirs
            alone.
    """

    env: PyTree
    obs: PyTree
    num_shared: jax.Array


class SpareState(NamedTuple):
    """State of environments with `spare` resets.

    Attributes:
        env, obs, num_shared: as in `FewResetsState`.
        first: `[N, ...]`, the first state and observation that each environment has in reserve.
        age: `[N]` int32, how many steps ago it was taken; 0 where it wasn't.
    """

    env: PyTree
    obs: PyTree
    num_shared: jax.Array
    first: tuple[PyTree, PyTree]
    age: jax.Array


def vector_env(env: Env, num_envs: int, resets: str = "fresh") -> VectorEnv:
    """N environments side by side, with a strategy for the first states of new episodes.

    Every first state is drawn from the environment's distribution, independently of why and when
    the episode before it ended. With `optimistic` and `spare` some of them may be drawn once
    for several episodes; these are counted in `state.num_shared`, and True in
    `info["shared_start"]`:

    - `optimistic(r)`: where more than N / r environments end in one step.
    - `spare(r)`: where an environment ends again before its reserve was filled again, which takes
      about r steps if all end together; it begins then where its episode before began, never where
      another one begins.

    Args:
        env: raw, of one environment.
        num_envs: N.
        resets: `"fresh"`, `"optimistic(r)"` or `"spare(r)"`; r is 16 where it isn't given.

    Raises:
        ConfigError: no such strategy, or no such number.
    """
    num_envs = check_count("num_envs", num_envs)
    kind, ratio = parse_resets(resets)
    made: Env = vectorize(auto_reset(env))
    if kind != "fresh":
        cls = _Optimistic if kind == "optimistic" else _Spare
        made = cls(typed(env), -(-num_envs // ratio)).as_env(made.spec)
    return VectorEnv(made.reset, made.step, made.spec, num_envs)


def parse_resets(resets: Any) -> tuple[str, int]:
    """A strategy's name and its ratio, 1 for `fresh`.

    Raises:
        ConfigError: there is no such strategy, or the ratio is no integer >= 1.
    """
    text = resets if isinstance(resets, str) else ""
    match = re.fullmatch(r"(\w+)(?:\((\d+)\))?", text.replace(" ", ""))
    if match is None or (match[1] == "fresh" and match[2]):
        raise ConfigError(
            f"resets: got {shown(resets)}, expected 'fresh', 'optimistic(16)' or 'spare(16)'"
        )
    if match[1] not in KINDS:
        raise ConfigError(f"resets: no {match[1]!r}; {suggest(match[1], KINDS)}")
    if match[1] == "fresh":
        return "fresh", 1
    return match[1], check_count("resets", RATIO if match[2] is None else int(match[2]))


@dataclasses.dataclass(frozen=True, eq=False)
class _FewResets(Adapter):
    """Base of strategies: `env` is of one environment, keys and states are those of N.

    Attributes:
        num_resets: R, how many first states are drawn in a step.
    """

    num_resets: int

    def _advance(
        self, keys: jax.Array, state: PyTree, action: jax.Array
    ) -> tuple[PyTree, TimeStep, jax.Array]:
        """Inner states and time steps, as `auto_reset` has them, and the R keys of new resets."""
        split = jax.vmap(jax.random.split)(keys)
        inner, timestep = jax.vmap(self.env.step)(split[:, 0], state, action)
        broken = ~jax.vmap(all_finite)((timestep.obs, timestep.reward))
        cut = timestep.truncated | (broken & ~timestep.terminated)
        info = {**timestep.info, "nonfinite": broken}
        return inner, timestep._replace(truncated=cut, info=info), split[: self.num_resets, 1]


def _begin(
    done: jax.Array, first: tuple[PyTree, PyTree], inner: PyTree, obs: PyTree
) -> tuple[PyTree, PyTree]:
    """States and observations, those of `first` where an episode ended."""
    return jax.vmap(where)(done, first, (inner, obs))


def _counted(num_shared: jax.Array, shared: jax.Array) -> jax.Array:
    total = num_shared + jnp.sum(shared, dtype=jnp.int32)
    return jnp.where(total < 0, 2**31 - 1, total)  # rather than starting again from below


class _Optimistic(_FewResets):
    def reset(self, keys: jax.Array) -> tuple[PyTree, FewResetsState]:
        obs, state = jax.vmap(self.env.reset)(keys)
        return obs, FewResetsState(state, obs, jnp.int32(0))

    def step(
        self, keys: jax.Array, state: FewResetsState, action: jax.Array
    ) -> tuple[FewResetsState, TimeStep]:
        inner, timestep, reset_keys = self._advance(keys, state.env, action)
        done = timestep.terminated | timestep.truncated
        first_obs, first = jax.vmap(self.env.reset)(reset_keys)
        # The first that ends gets the first, and so on; beyond R they are given again.
        rank = jnp.cumsum(done.astype(jnp.int32)) - 1
        given = jax.tree.map(lambda x: x[rank % self.num_resets], (first, first_obs))
        shared = done & (rank >= self.num_resets)
        new = FewResetsState(
            *_begin(done, given, inner, timestep.obs), _counted(state.num_shared, shared)
        )
        return new, timestep._replace(info={**timestep.info, "shared_start": shared})


class _Spare(_FewResets):
    def reset(self, keys: jax.Array) -> tuple[PyTree, SpareState]:
        split = jax.vmap(jax.random.split)(keys)
        obs, state = jax.vmap(self.env.reset)(split[:, 0])
        spare_obs, spare = jax.vmap(self.env.reset)(split[:, 1])
        zeros = jnp.zeros(len(keys), jnp.int32)
        return obs, SpareState(state, obs, jnp.int32(0), (spare, spare_obs), zeros)

    def step(
        self, keys: jax.Array, state: SpareState, action: jax.Array
    ) -> tuple[SpareState, TimeStep]:
        inner, timestep, reset_keys = self._advance(keys, state.env, action)
        done = timestep.terminated | timestep.truncated
        drawn_obs, drawn = jax.vmap(self.env.reset)(reset_keys)
        # What was taken is drawn anew, of those that need it now first, and the oldest first. Where
        # fewer were taken, one that nobody has seen takes another's place.
        wanted = state.age + jnp.where(done & (state.age > 0), _SOON, 0)
        place = jax.lax.top_k(wanted, self.num_resets)[1]
        first = jax.tree.map(lambda x, y: x.at[place].set(y), state.first, (drawn, drawn_obs))
        age = state.age.at[place].set(0)
        shared = done & (age > 0)
        age = jnp.where(done, 1, jnp.where(age > 0, jnp.minimum(age + 1, _SOON - 1), 0))
        new = SpareState(
            *_begin(done, first, inner, timestep.obs),
            _counted(state.num_shared, shared),
            first,
            age,
        )
        return new, timestep._replace(info={**timestep.info, "shared_start": shared})
