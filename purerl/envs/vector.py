"""Vectorized environments with auto-reset, and strategies for drawing initial states.

Under `vmap` every environment's reset runs at every step, whether its episode ended or not. If a
reset is as expensive as a step or more, such as that of a generated world, fewer are enough:

    fresh           N resets a step: one for each episode
    optimistic(r)   N / r resets a step, assigned to the environments that end, as in Craftax
                    (Matthews et al. 2024, arXiv:2402.16801)
    spare(r)        N / r resets a step, which refill a reserve of one initial state for each
                    environment, so that all may end together
"""

import dataclasses
import re
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
_SOON = 2**30  # steps


class VectorEnv(NamedTuple):
    """N environments with auto-reset, the interface for rollouts.

    Attributes:
        reset: `(keys [N]) -> (obs [N, ...], state)`.
        step: `(keys [N], state, actions [N, ...]) -> (state, TimeStep [N, ...])`. `TimeStep.obs` is
            the true successor; `state.obs` is the observation to act on next, that of a new episode
            if one ended. `info["nonfinite"]` is True where NaN or infinity has cut an episode.
        spec: the `EnvSpec` of a single environment.
        num_envs: N.
    """

    reset: Reset
    step: Step
    spec: EnvSpec
    num_envs: int


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
        first: `[N, ...]`, the reserved initial state and observation of each environment.
        age: `[N]` int32, the steps since it was used; 0 if it wasn't.
    """

    env: PyTree
    obs: PyTree
    num_shared: jax.Array
    first: tuple[PyTree, PyTree]
    age: jax.Array


def vector_env(env: Env, num_envs: int, resets: str | None = None) -> VectorEnv:
    """N environments with auto-reset, and a strategy for the initial states of new episodes.

    Every initial state is drawn from the environment's distribution, independently of why and when
    the previous episode ended. With `optimistic` and `spare` several episodes may share one; they
    are counted in `state.num_shared`, and True in `info["shared_start"]`:

    - `optimistic(r)`: if more than N / r environments end in one step.
    - `spare(r)`: if an environment ends again before its reserve is refilled, which takes about r
      steps if all end together. It then restarts where its previous episode did, never where
      another environment does.

    Args:
        env: the raw environment, of one.
        num_envs: N.
        resets: `"fresh"`, `"optimistic(r)"` or `"spare(r)"`; r is 16 by default. None for the
            environment's, `env.spec.resets`.

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
    if kind != "fresh":
        cls = _Optimistic if kind == "optimistic" else _Spare
        made = cls(env, -(-num_envs // ratio)).as_env(made.spec)
    return VectorEnv(made.reset, made.step, made.spec, num_envs)


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


@dataclasses.dataclass(frozen=True, eq=False)
class _FewResets(Adapter):
    """Base of strategies with fewer resets: `env` is a single environment, states are of N.

    Attributes:
        num_resets: R, the number of initial states drawn in a step.
    """

    num_resets: int

    def _advance(
        self, keys: jax.Array, state: PyTree, action: jax.Array
    ) -> tuple[PyTree, TimeStep, jax.Array]:
        """Inner states, time steps as those of `auto_reset`, and R keys for resets."""
        split = jax.vmap(jax.random.split)(keys)
        inner, timestep = jax.vmap(self.env.step)(split[:, 0], state, action)
        broken = ~jax.vmap(all_finite)((timestep.obs, timestep.reward))
        cut = timestep.truncated | (broken & ~timestep.terminated)
        info = {**timestep.info, "nonfinite": broken}
        return inner, timestep._replace(truncated=cut, info=info), split[: self.num_resets, 1]


def _begin(
    done: jax.Array, first: tuple[PyTree, PyTree], inner: PyTree, obs: PyTree
) -> tuple[PyTree, PyTree]:
    """States and observations, replaced by `first` where an episode ended."""
    begun: tuple[PyTree, PyTree] = jax.vmap(where)(done, first, (inner, obs))
    return begun


def _counted(num_shared: jax.Array, shared: jax.Array) -> jax.Array:
    total = num_shared + jnp.sum(shared, dtype=jnp.int32)
    return jnp.where(total < 0, 2**31 - 1, total)  # saturates instead of overflowing


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
        # The k-th environment that ends gets the (k mod R)-th reset.
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
        # Used reserves are redrawn: those that are needed now first, then the oldest. If fewer than
        # R were used, unused ones are replaced too.
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
