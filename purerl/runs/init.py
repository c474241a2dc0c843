"""The `init` of `fit`: learned parameters for each member of a run."""

import hashlib
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from purerl.accelerator.transfer import to_host
from purerl.deploy.policy_file import load_policy
from purerl.records.errors import ConfigError, shown
from purerl.records.fields import check_path
from purerl.records.files import by_path, counted, digest
from purerl.runs.view import RunView
from purerl.training.config import TrainConfig
from purerl.training.learned import Learned, learned_of
from purerl.training.loop import Loop
from purerl.training.policy import Policy
from purerl.training.train import TrainOutput

Init = Policy | TrainOutput | str | os.PathLike[str]


def read_init(init: Init, config: TrainConfig, loop: Loop, count: int | None) -> Learned:
    """The learned parameters that a run starts from, on every leaf `[S, ...]`.

    Args:
        init: as of `fit`.
        config: of the run.
        loop: of the run.
        count: S; None for one agent, without the axis.

    Raises:
        ConfigError: it doesn't fit the run (see `learned_of`), or has not as many policies.
        RunError: a file of it can't be read.
    """
    policy = _policy(init, config, count)
    axes = np.shape(policy.num_updates.low)
    if axes not in ((), (1,), (count,)):
        noun = "policy" if axes[:1] == (1,) else "policies"
        each = f", or one for each of {counted(count, 'seed')}" if count and count > 1 else ""
        one = f": one is {init}/policies/seed-0.policy" if _is_path(init) else ": out.member(i)"
        raise ConfigError(f"init: got {' x '.join(map(str, axes))} {noun}, expected one{each}{one}")
    first: Policy = jax.tree.map(lambda x: x[0], policy) if axes else policy
    learned = learned_of(first, loop)
    if axes == (count,):
        learned = Learned(policy.state, policy.obs_stats)
    elif count is not None:
        learned = jax.tree.map(lambda x: jnp.broadcast_to(x, (count, *jnp.shape(x))), learned)
    return learned


def digest_of(learned: Learned) -> str:
    """A digest of learned parameters: part of the identity of a run that starts from them."""
    sums = {name: digest(np.asarray(to_host(x))) for name, x in by_path(learned).items()}
    return hashlib.blake2b(repr(sums).encode(), digest_size=16).hexdigest()


def _is_path(init: object) -> bool:
    return isinstance(init, (str, os.PathLike))


def _policy(init: object, config: TrainConfig, count: int | None) -> Policy:
    """A policy, or several as one with an axis."""
    if isinstance(init, TrainOutput):
        return init.policy
    if isinstance(init, Policy):
        return init
    if not _is_path(init):
        raise ConfigError(
            f"init: got {shown(init)}, expected a policy, the output of a run, or the path of a "
            "run's folder or of a policy's file"
        )
    path: Path = check_path("init", init)
    processor = config.action_processor
    if path.is_file():
        return load_policy(path, config.agent, action_processor=processor, env=config.env)
    view = RunView(path)
    found = view.policies(view.seeds, config.env, agent=config.agent, action_processor=processor)
    policies = list(found.values())
    if len(policies) == 1:
        return policies[0]
    several: Policy = jax.tree.map(lambda *xs: jnp.stack(xs), *policies)
    return several
