"""What an update learns from, and when it is: `Experience` and `Clock`."""

from collections.abc import Sequence
from typing import NamedTuple, Self

import jax
from flax import struct

from purerl.accelerator.devices import ALONE, Devices
from purerl.experience.buffer import Batch, Buffer, BufferState, Writable
from purerl.experience.normalize import RunningStats, normalize
from purerl.records.types import PyTree


class Clock(NamedTuple):
    """How far a run is, and on which devices.

    Attributes:
        timesteps: `[]` float32, environment steps before this update, over all devices.
        progress: `[]` float32, how much of the run is over, from 0 to 1.
        devices: those that the run is spread over; what comes into the agent's state has to be
            their mean (`clock.devices.mean(grads)`), so that it stays the same on all.
    """

    timesteps: jax.Array | float = 0.0
    progress: jax.Array | float = 0.0
    devices: Devices = ALONE


class Experience(struct.PyTreeNode):
    """A buffer with all that reading it takes, as one value.

    Attributes:
        buffer: its spec.
        state: what it holds: observations as the environment gave them.
        clock: how far the run is.
        obs_stats: by which observations are normalised when they are read; None where they aren't.
        memory: of whoever acted, `[N, ...]`, before the newest rollout.
        writable: `[]` bool, whether this update counts: else priorities stay as they were.
    """

    buffer: Buffer
    state: BufferState
    clock: Clock = Clock()
    obs_stats: RunningStats | None = None
    memory: PyTree = ()
    writable: Writable = None

    def see(self, obs: PyTree) -> PyTree:
        """Observations as the agent sees them."""
        return see(self.obs_stats, obs)

    def read(self) -> Batch:
        """All entries, `[L, N, ...]`, as `Buffer.read` has them."""
        return self._seen(self.buffer.read(self.state))

    def sample(
        self,
        key: jax.Array,
        batch_size: int,
        *,
        keys: Sequence[str] | None = None,
        n_step: int = 1,
    ) -> Batch:
        """Transitions drawn from it, `[B, ...]`; arguments and entries as in `Buffer.sample`."""
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

    def update_priorities(self, indices: jax.Array, td_error: jax.Array) -> Self:
        """The same with the errors `[B]` of the transitions `[B]`, where there are priorities."""
        state = self.buffer.update_priorities(self.state, indices, td_error, self.writable)
        return self.replace(state=state)

    def _seen(self, batch: Batch) -> Batch:
        if self.obs_stats is None:
            return batch
        names = [name for name in ("obs", "next_obs") if name in batch]
        return batch | {name: self.see(batch[name]) for name in names}


def see(stats: RunningStats | None, obs: PyTree) -> PyTree:
    """Observations as the agent sees them: normalised by statistics, if there are any."""
    return obs if stats is None else normalize(stats, obs)
