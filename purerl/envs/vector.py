"""Vectorized environments with auto-reset, and strategies for drawing initial states.

Under `vmap` every environment's reset runs at every step, whether its episode ended or not. If a
reset is as expensive as a step or more, such as that of a generated world, fewer are enough:

    fresh           N resets a step: one for each episode
    optimistic(r)   N / r resets a step, assigned to the environments that end, as in Craftax
                    (Matthews et al. 2024, arXiv:2402.16801)
    spare(r)        N / r resets a step on average, many at once between rollouts, which refill a
                    reserve of N initial states, so that all environments may end together
"""

import dataclasses
import re
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from purerl.envs.base import (
    Adapter,
    Env,
    EnvSpec,
    Reset,
    Step,
    TimeStep,
    all_finite,
    auto_reset,
    host_of,
    typed,
    vectorize,
    where,
)
from purerl.records.errors import ConfigError, shown, suggest
from purerl.records.fields import check_count
from purerl.records.types import PyTree

KINDS = ("fresh", "optimistic", "spare")
RATIO = 16  # as in Craftax
MOST = 4  # initial states in reserve for each environment


class VectorEnv(NamedTuple):
    """N environments with auto-reset, the interface for rollouts.

    Attributes:
        reset: `(keys [N]) -> (obs [N, ...], state)`.
        step: `(keys [N], state, actions [N, ...]) -> (state, TimeStep [N, ...])`. `TimeStep.obs` is
            the true successor; `state.obs` is the observation to act on next, that of a new episode
            if one ended. `info["nonfinite"]` is True where NaN or infinity has cut an episode.
        spec: the `EnvSpec` of a single environment.
        num_envs: N.
        refill: `(key, state) -> state`, to be called before every T steps, where `vector_env` was
            given T; None where there is nothing to refill.
    """

    reset: Reset
    step: Step
    spec: EnvSpec
    num_envs: int
    refill: Callable[[jax.Array, PyTree], PyTree] | None = None


class FewResetsState(NamedTuple):
    """State of environments with `optimistic` resets.

    Attributes:
        env: the inner states, `[N, ...]`.
        obs: `[N, *obs_shape]`, the observations to act on next.
        num_shared: `[]` int32, the number of episodes so far that began in the initial state of
            another one.
    """

    env: PyTree
    obs: PyTree
    num_shared: jax.Array


class SpareState(NamedTuple):
    """State of environments with `spare` resets.

    Attributes:
        env, obs, num_shared: as in `FewResetsState`.
        first: `[M, ...]`, the reserve, a ring of initial states and their observations.
        start: `[]` int32, the index of the one that is used next.
        unused: `[]` int32, how many from there haven't been used.
    """

    env: PyTree
    obs: PyTree
    num_shared: jax.Array
    first: tuple[PyTree, PyTree]
    start: jax.Array
    unused: jax.Array


def vector_env(
    env: Env, num_envs: int, resets: str | None = None, every: int | None = None
) -> VectorEnv:
    """N environments with auto-reset, and a strategy for the initial states of new episodes.

    Every initial state is drawn from the environment's distribution, independently of why and when
    the previous episode ended. With `optimistic` and `spare` several episodes may share one; they
    are counted in `state.num_shared`, and True in `info["shared_start"]`:

    - `optimistic(r)`: if more than N / r environments end in one step.
    - `spare(r)`: if more episodes end than initial states are drawn, one for each r steps of an
      environment: where episodes are shorter than r steps on average, or all begin together and are
      shorter than that. Each initial state is used by one episode until the reserve of N has run
      out; then its states are used again, in turn, the oldest first: by one or another environment,
      whatever happened in the episodes, so that no state is favoured. Environments that end in the
      same step never share one. With episodes of L steps a state is used by r / L of them.

    A larger r is cheaper, and costs variety: choose it by the length of episodes. With `every` the
    states are drawn at once for all T steps, N T / r in a batch, rounded up; this is cheaper than
    one by one. Without, or if these were more than 4 N, N / r are drawn in each step, rounded up.

    Args:
        env: the raw environment, of one.
        num_envs: N.
        resets: `"fresh"`, `"optimistic(r)"` or `"spare(r)"`; r is 16 by default. None for the
            environment's, `env.spec.resets`.
        every: T, the steps between calls of `refill`; None if nobody calls it.

    Raises:
        ConfigError: an unknown strategy, or an invalid number; for an environment of the host, a
            strategy other than "fresh", or another number of environments than its own.
    """
    num_envs = check_count("num_envs", num_envs)
    env = typed(env)
    kind, ratio = parse_resets(env.spec.resets if resets is None else resets)
    host = host_of(env)
    if host is not None:
        if kind != "fresh":
            raise ConfigError(
                f"resets: got {resets!r}, expected 'fresh': {env.spec.name} is simulated on the "
                "host, which resets nothing but what has ended"
            )
        many = host.vectorized(num_envs)
        return VectorEnv(many.reset, many.step, env.spec, num_envs)
    made: Env = vectorize(auto_reset(env))
    if kind == "optimistic":
        made = _Optimistic(env, -(-num_envs // ratio)).as_env(made.spec)
    if kind != "spare":
        return VectorEnv(made.reset, made.step, made.spec, num_envs)
    drawn = -(-num_envs * (every or 1) // ratio)
    each_step = every is None or drawn > MOST * num_envs
    drawn = -(-num_envs // ratio) if each_step else drawn
    spare = _Spare(env, max(num_envs, drawn), drawn, each_step)
    refill = None if each_step else spare.refill
    return VectorEnv(spare.reset, spare.step, made.spec, num_envs, refill)


def parse_resets(resets: object) -> tuple[str, int]:
    """The name and ratio of a strategy; the ratio of `fresh` is 1.

    Raises:
        ConfigError: an unknown strategy, or a ratio that is no integer >= 1.
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


def _stepped(
    env: Env, keys: jax.Array, state: PyTree, action: jax.Array
) -> tuple[PyTree, TimeStep]:
    """Inner states and time steps `[N, ...]`, as those of `auto_reset` before any reset."""
    inner, timestep = jax.vmap(env.step)(keys, state, action)
    broken = ~jax.vmap(all_finite)((timestep.obs, timestep.reward))
    cut = timestep.truncated | (broken & ~timestep.terminated)
    info = {**timestep.info, "nonfinite": broken}
    return inner, timestep._replace(truncated=cut, info=info)


def _begin(
    done: jax.Array, first: tuple[PyTree, PyTree], inner: PyTree, obs: PyTree
) -> tuple[PyTree, PyTree]:
    """States and observations, replaced by `first` where an episode ended."""
    begun: tuple[PyTree, PyTree] = jax.vmap(where)(done, first, (inner, obs))
    return begun


def _counted(num_shared: jax.Array, shared: jax.Array) -> jax.Array:
    total = num_shared + jnp.sum(shared, dtype=jnp.int32)
    return jnp.where(total < 0, 2**31 - 1, total)  # saturates instead of overflowing


@dataclasses.dataclass(frozen=True, eq=False)
class _Optimistic(Adapter):
    """N environments, as an `Env` of all; `env` is of one.

    Attributes:
        num_resets: R, the initial states drawn in a step.
    """

    num_resets: int

    def reset(self, keys: jax.Array) -> tuple[PyTree, FewResetsState]:
        obs, state = jax.vmap(self.env.reset)(keys)
        return obs, FewResetsState(state, obs, jnp.int32(0))

    def step(
        self, keys: jax.Array, state: FewResetsState, action: jax.Array
    ) -> tuple[FewResetsState, TimeStep]:
        split = jax.vmap(jax.random.split)(keys)
        inner, timestep = _stepped(self.env, split[:, 0], state.env, action)
        done = timestep.terminated | timestep.truncated
        first_obs, first = jax.vmap(self.env.reset)(split[: self.num_resets, 1])
        # The k-th environment that ends gets the (k mod R)-th reset.
        rank = jnp.cumsum(done.astype(jnp.int32)) - 1
        given = jax.tree.map(lambda x: x[rank % self.num_resets], (first, first_obs))
        shared = done & (rank >= self.num_resets)
        new = FewResetsState(
            *_begin(done, given, inner, timestep.obs), _counted(state.num_shared, shared)
        )
        return new, timestep._replace(info={**timestep.info, "shared_start": shared})


@dataclasses.dataclass(frozen=True, eq=False)
class _Spare(Adapter):
    """N environments, as an `Env` of all; `env` is of one.

    Attributes:
        size: M >= N, the initial states in reserve.
        num_resets: R <= M, the initial states drawn by a `refill`.
        each_step: whether each step begins with a refill.
    """

    size: int
    num_resets: int
    each_step: bool

    def reset(self, keys: jax.Array) -> tuple[PyTree, SpareState]:
        num, size = len(keys), self.size
        split = jax.vmap(lambda key: jax.random.split(key, 1 + -(-size // num)))(keys)
        # The environments' own states first, then the reserve, by one program for both.
        drawn = jax.vmap(self.env.reset)(jnp.swapaxes(split, 0, 1).reshape(-1)[: num + size])
        (obs, state), (spare_obs, spare) = (
            jax.tree.map(lambda x, part=part: x[part], drawn)
            for part in (slice(0, num), slice(num, None))
        )
        start, unused = jnp.int32(0), jnp.int32(size)
        return obs, SpareState(state, obs, jnp.int32(0), (spare, spare_obs), start, unused)

    def refill(self, key: jax.Array, state: SpareState) -> SpareState:
        return self._refill(jax.random.split(key, self.num_resets), state)

    def _refill(self, keys: jax.Array, state: SpareState) -> SpareState:
        """Draws R states, in place of used ones; if fewer than R were used, also in place of those
        that are unused for longest."""
        drawn_obs, drawn = jax.vmap(self.env.reset)(keys)
        num, size = self.num_resets, self.size
        place = (state.start + state.unused + jnp.arange(num, dtype=jnp.int32)) % size
        first = jax.tree.map(lambda x, y: x.at[place].set(y), state.first, (drawn, drawn_obs))
        lost = jnp.maximum(state.unused + num - size, 0)
        return state._replace(
            first=first,
            start=(state.start + lost) % size,
            unused=state.unused + num - lost,
        )

    def step(
        self, keys: jax.Array, state: SpareState, action: jax.Array
    ) -> tuple[SpareState, TimeStep]:
        if self.each_step:
            split = jax.vmap(jax.random.split)(keys)
            keys, state = split[:, 0], self._refill(split[: self.num_resets, 1], state)
        inner, timestep = _stepped(self.env, keys, state.env, action)
        done = timestep.terminated | timestep.truncated
        # The k-th environment that ends gets the k-th state from the start of the ring.
        count = jnp.cumsum(done.astype(jnp.int32))
        place = jax.lax.rem(state.start + jnp.maximum(count - 1, 0), jnp.int32(self.size))
        given = jax.tree.map(lambda x: x.at[place].get(mode="promise_in_bounds"), state.first)
        shared = done & (count > state.unused)
        new = SpareState(
            *_begin(done, given, inner, timestep.obs),
            _counted(state.num_shared, shared),
            state.first,
            (state.start + count[-1]) % self.size,
            jnp.maximum(state.unused - count[-1], 0),
        )
        return new, timestep._replace(info={**timestep.info, "shared_start": shared})
