"""The arguments of an agent's update: `Experience` and `Clock`."""

from collections.abc import Sequence
from typing import NamedTuple, Self

import jax
import jax.numpy as jnp
from flax import struct

from purerl.accelerator.devices import ALONE, Devices
from purerl.experience.buffer import Batch, Buffer, BufferState, Writable
from purerl.experience.normalize import RunningStats, normalize
from purerl.experience.successors import Successors
from purerl.records.types import PyTree


class Clock(NamedTuple):
    """Progress of a run, and its devices.

    Attributes:
        timesteps: `[]` float32, environment steps before this update, over all devices.
        progress: `[]` float32, the elapsed fraction of the run, from 0 to 1.
        devices: the run's. Updates of the agent's state have to be the devices' mean
            (`clock.devices.mean(grads)`), so that the state is the same on all.
        updates: `[]` int32, updates before this one, modulo 2**30. It isn't mapped by `vmap`, so
            that what is done every few updates stays a branch.
    """

    timesteps: jax.Array | float = 0.0
    progress: jax.Array | float = 0.0
    devices: Devices = ALONE
    updates: jax.Array | int = 0


class Experience(struct.PyTreeNode):
    """A buffer together with everything that reading it needs.

    Attributes:
        buffer: the spec.
        state: the contents, with observations from the environment, not normalised.
        clock: progress of the run.
        obs_stats: statistics to normalise observations when they are read; None for no
            normalisation.
        memory: the acting policy's, `[N, ...]`, before the newest rollout.
        writable: `[]` bool, whether the update is kept; if False, priorities don't change.
    """

    buffer: Buffer
    state: BufferState
    clock: Clock = Clock()
    obs_stats: RunningStats | None = None
    memory: PyTree = ()
    writable: Writable = None

    def see(self, obs: PyTree) -> PyTree:
        """Observations as the agent sees them, normalised by `obs_stats`."""
        return see(self.obs_stats, obs)

    def read(self) -> Batch:
        """All entries, `[L, N, ...]`, as from `Buffer.read`, with observations normalised."""
        return self._seen(self.buffer.read(self.state))

    def sample(
        self,
        key: jax.Array,
        batch_size: int,
        *,
        keys: Sequence[str] | None = None,
        n_step: int = 1,
    ) -> Batch:
        """A batch of transitions, `[B, ...]`; arguments and entries as in `Buffer.sample`."""
        batch = self.buffer.sample(
            self.state,
            key,
            batch_size,
            keys=keys,
            n_step=n_step,
            progress=self.clock.progress,
            devices=self.clock.devices,
        )
        return self._seen(batch)

    def successors(self) -> tuple[PyTree, jax.Array]:
        """The true successors that no row of `read` has as its observation, of a buffer that one
        rollout of T steps fills.

        Returns:
            Observations `[K, N, *obs_shape]`, normalised, and the rows `[K, N]` of the transitions
            that they follow; T for an observation without one. If the environment's time limit is
            unknown, K is T, and observation k follows row k. The last are those of the last row.
        """
        data, stored = self.state.data, self.state.successors
        if isinstance(stored, Successors):
            return self.see(stored.obs), stored.row
        num_steps = len(data["truncated"])
        used = (data["truncated"] & ~data["terminated"]).at[-1].set(True)
        rows = jnp.arange(num_steps, dtype=jnp.int32)[:, None]
        return self.see(data["next_obs"]), jnp.where(used, rows, num_steps)

    def update_priorities(self, indices: jax.Array, td_error: jax.Array) -> Self:
        """The experience with the TD errors `[B]` of transitions `[B]` stored, for priorities."""
        state = self.buffer.update_priorities(self.state, indices, td_error, self.writable)
        return self.replace(state=state)

    def _seen(self, batch: Batch) -> Batch:
        if self.obs_stats is None:
            return batch
        names = [name for name in ("obs", "next_obs") if name in batch]
        return batch | {name: self.see(batch[name]) for name in names}


def see(stats: RunningStats | None, obs: PyTree) -> PyTree:
    """Observations normalised by statistics; unchanged if these are None."""
    return obs if stats is None else normalize(stats, obs)
