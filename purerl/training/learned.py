"""`Learned`: parameters that a run starts from, instead of random ones."""

import dataclasses
from typing import NamedTuple

import jax

from purerl.envs.spaces import is_space
from purerl.experience.normalize import RunningStats
from purerl.records.errors import ConfigError, shown
from purerl.records.files import by_path
from purerl.records.types import PyTree
from purerl.training.describe import describe, differences
from purerl.training.loop import Loop
from purerl.training.policy import Policy


class Learned(NamedTuple):
    """What a run takes of a policy.

    Attributes:
        agent: the part of the agent's state that `Agent.for_acting` keeps.
        obs_stats: running statistics of observations; None if they aren't normalised.
    """

    agent: PyTree
    obs_stats: RunningStats | None


def learned_of(policy: object, loop: Loop) -> Learned:
    """What a run takes of a policy as its `init`.

    Raises:
        ConfigError: it is no policy, or that of several runs; or of another agent, other spaces or
            other networks than the run's, or one of the two doesn't normalise observations.
    """
    if not isinstance(policy, Policy):
        raise ConfigError(f"init: got {shown(policy)}, expected a purerl.Policy")
    policy.check_one()
    found, wanted = type(policy.agent).__name__, type(loop.agent).__name__
    if found != wanted:
        raise ConfigError(f"init: got a policy of {found}, expected one of the run's {wanted}")
    spec = loop.env.spec
    for name in ("observation_space", "action_space"):
        there, here = getattr(policy.spec, name), getattr(spec, name)
        if _kind(there) != _kind(here):
            raise ConfigError(
                f"init: got a policy of {policy.spec.name} with the {name} {shown(there)}, "
                f"expected that of {spec.name}, {shown(here)}"
            )
    if (policy.obs_stats is None) == loop.normalize_obs:
        has = "doesn't normalise" if policy.obs_stats is None else "normalises"
        raise ConfigError(
            f"init: got a policy that {has} observations, expected normalize_obs="
            f"{not loop.normalize_obs} of the run, as of the policy's"
        )
    state = jax.eval_shape(lambda key: loop.start(key), jax.random.key(0))
    like = loop.agent.for_acting(state.agent)
    _check_leaves(policy.state, like)
    _check_networks(policy.state, like)
    return Learned(policy.state, policy.obs_stats)


def _kind(space: PyTree) -> tuple[object, ...]:
    """The structure, shapes and dtypes of a space, whatever its bounds: parameters of an
    environment may change these, and those of a network fit all the same."""
    leaves, structure = jax.tree.flatten(space, is_leaf=is_space)
    return structure, [(type(x).__name__, x.shape, x.dtype, x.n, x.sizes) for x in leaves]


def _check_leaves(there: PyTree, here: PyTree) -> None:
    """Raises ConfigError for the first parameter that is missing, or of another shape."""
    found, wanted = (
        {name: f"{x.dtype} {x.shape}" for name, x in by_path(tree).items()}
        for tree in (there, here)
    )
    for name in {**wanted, **found}:
        old, new = found.get(name, "missing"), wanted.get(name, "missing")
        if old != new:
            raise ConfigError(
                f"init: its networks aren't the run's: {name} is {old}, expected {new}"
            )


def _check_networks(there: PyTree, here: PyTree) -> None:
    """Raises ConfigError where networks of the same shapes compute something else."""
    if not dataclasses.is_dataclass(here):
        return
    for field in dataclasses.fields(here):
        if not field.metadata.get("pytree_node", True):
            old, new = describe(getattr(there, field.name)), describe(getattr(here, field.name))
            differing = next(differences(old, new, field.name), None)
            if differing is not None:
                raise ConfigError(f"init: its networks aren't the run's: {differing}")
