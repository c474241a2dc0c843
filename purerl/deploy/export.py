"""Export of a policy to StableHLO, a program that runs without purerl."""

import os
from collections.abc import Sequence

import jax

from purerl.envs.spaces import map_spaces
from purerl.records.errors import ConfigError, shown
from purerl.records.fields import check_path
from purerl.records.files import reason, write_bytes
from purerl.records.types import PyTree
from purerl.training.policy import Policy

PLATFORMS = ("cpu", "cuda", "tpu")
KNOWN_PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


def export_policy(
    policy: Policy,
    path: str | os.PathLike,
    batch: int | None = None,
    *,
    platforms: Sequence[str] = PLATFORMS,
) -> None:
    """Writes the greedy policy as StableHLO: a file that needs JAX and nothing else to run.

    Observations are normalised inside, and actions are those of `Policy.act`: as the environment
    takes them. To run it:

        exported = jax.export.deserialize(bytearray(pathlib.Path("policy.stablehlo").read_bytes()))
        policy = jax.jit(exported.call)
        action = policy(obs)  # [B, *obs_shape], in the environment's dtype; `policy.asks`

    A policy with a memory takes it and returns it: `memory, action = policy(memory, obs)`, from
    `policy.memory(B)`, a pytree of arrays `[B, ...]`, at the start of an episode.

    Later versions of JAX read such a file for six months after it was written; keep one of
    `save_policy` too.

    Args:
        policy: such as `out.policy`.
        path: the file; an existing one is replaced.
        batch: B, to fix it; None for any B.
        platforms: some of "cpu", "cuda", "rocm", "tpu".

    Raises:
        ConfigError: it isn't one policy; or its network can't be traced with an unknown batch
            size, or for such observations.
        RunError: the file can't be written.
    """
    if not isinstance(policy, Policy):
        raise ConfigError(f"policy: got {type(policy).__name__}, expected a Policy: out.policy")
    if batch is not None and (isinstance(batch, bool) or not isinstance(batch, int) or batch < 1):
        raise ConfigError(f"batch: got {batch!r}, expected an integer >= 1, or None")
    several = isinstance(platforms, Sequence) and not isinstance(platforms, str)
    if not several or not platforms or not all(name in KNOWN_PLATFORMS for name in platforms):
        raise ConfigError(
            f"platforms: got {shown(platforms)}, expected some of {', '.join(KNOWN_PLATFORMS)}"
        )
    target = check_path("path", path)
    # A late import: it takes time, with flatbuffers, and only exports need it.
    from jax import export

    (size,) = export.symbolic_shape("batch") if batch is None else (batch,)
    try:
        policy.check_one()
        obs = map_spaces(lambda s: jax.ShapeDtypeStruct((size, *s.shape), s.dtype), policy.asks)
        acting = policy.acting()
        memory = jax.eval_shape(lambda: policy.memory(1))
        memory = jax.tree.map(lambda x: jax.ShapeDtypeStruct((size, *x.shape[1:]), x.dtype), memory)
        remembers = bool(jax.tree.leaves(memory))

        def act(*inputs: PyTree) -> PyTree:
            memory, obs = inputs if remembers else ((), *inputs)
            memory, action, _ = acting.step(memory, obs, None)
            return (memory, action) if remembers else action

        inputs = (memory, obs) if remembers else (obs,)
        packed = export.export(jax.jit(act), platforms=tuple(platforms))(*inputs).serialize()
    except Exception as error:  # a user's network may raise anything
        hint = "; try batch=1" if batch is None else ""
        raise ConfigError(f"policy: can't be exported: {reason(error)}{hint}") from error
    write_bytes(target, packed, "the policy")
