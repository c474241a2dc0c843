"""The default networks of agents."""

import math
from collections.abc import Callable, Sequence
from typing import TypeAlias, cast

import flax.linen as nn
import jax
import jax.numpy as jnp

from purerl.nn.cells import CELLS, Cell
from purerl.nn.distributions import TanhNormal
from purerl.nn.networks import Actor, ActorCriticNetwork, Critic
from purerl.nn.views import View
from purerl.records.errors import ConfigError
from purerl.records.types import PyTree

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "tanh": nn.tanh,
    "relu": nn.relu,
    "elu": nn.elu,
    "gelu": nn.gelu,
    "silu": nn.silu,
}
IMAGES = ("cnn", "nature", "impala")  # convolutions
NETWORKS = ("auto", "mlp", *IMAGES, *CELLS)
# The dense layers after the larger ones, by an agent's default, with ReLU.
AFTER: dict[str, tuple[int, ...]] = {"nature": (512,), "impala": (256,)}
LEAST = 3  # rows and columns of an image, for a convolution of 3 x 3
FILTERS = 16  # of the small convolution


def _orthogonal(gain: float) -> jax.nn.initializers.Initializer:
    return nn.initializers.orthogonal(gain)


Pair: TypeAlias = tuple[jax.Array, jax.Array]


@jax.custom_jvp
def _thin_product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`[B, m]` times `[m, n]` for a small n, with a fast gradient on the CPU.

    The kernel's gradient, `x.T @ dy`, has a large inner and a small outer dimension, and XLA:CPU
    takes twelve times as long for it as for its transpose, `dy.T @ x`. The tangent is written so
    that its transposition computes the latter; the barriers keep XLA from reverting it. PPO is 1.03
    to 1.10 times as fast, DQN 1.04 (benchmarks/tricks.py, one core, JAX 0.11.2, November 2026).
    """
    return x @ kernel


@_thin_product.defjvp
def _(primals: Pair, tangents: Pair) -> Pair:
    (x, kernel), (dx, dkernel) = primals, tangents
    barrier = jax.lax.optimization_barrier
    return x @ kernel, dx @ kernel + barrier((barrier(barrier(dkernel.T) @ x.T)).T)


def _head(size: int, gain: float) -> nn.Dense:
    """The last layer, of a few outputs."""

    def product(x: jax.Array, kernel: jax.Array, *_: object, **__: object) -> jax.Array:
        return _thin_product(x, kernel)

    # With one output the plain product is fast.
    return nn.Dense(size, kernel_init=_orthogonal(gain), dot_general=product if size > 1 else None)


class Torso(nn.Module):
    """Features of an observation, `[B, *obs_shape]` to `[B, hidden[-1]]`.

    A convolution comes first for images `[B, height, width, channels]` of at least 3 x 3, unless
    `network` is "mlp"; then dense layers. It is, by `network`:

    - "cnn": one layer of 16 filters of 3 x 3 (Young and Tian 2019, arXiv:1903.03176), with a stride
      that leaves at most 10 x 10 cells: for small images.
    - "auto": the same for images of at most 16 channels, which are the number of filters. Others,
      as grids of codes are, go into the dense layers as they are: PPO learns navix's Empty-8x8 in
      as many steps so, and does 5 times as many a second, XLand-MiniGrid's 4 times
      (benchmarks/README.md, one core, JAX 0.11.2, November 2026).
    - "nature": three layers, 32 filters of 8 x 8 with stride 4, 64 of 4 x 4 with stride 2, 64 of
      3 x 3, each with a ReLU (Mnih et al. 2015, Nature 518); for images of at least 36 x 36. By an
      agent's default a dense layer of 512 with a ReLU follows, as there.
    - "impala": three sections of 16, 32 and 32 filters of 3 x 3, each a convolution, a maximum over
      3 x 3 with stride 2, and two residual blocks (Espeholt et al. 2018, arXiv:1802.01561, fig. 3);
      for images of any size. By an agent's default a dense layer of 256 with a ReLU follows.

    Images of uint8 are divided by 255. With `layer_norm` the sums of each dense layer and of the
    small convolution are normalised before the activation (Ba et al. 2016, arXiv:1607.06450), those
    of a convolution cell by cell.
    """

    hidden: Sequence[int] = (64, 64)
    activation: str = "tanh"
    network: str = "auto"
    layer_norm: bool = False

    @nn.compact
    def __call__(self, obs: PyTree) -> jax.Array:
        leaves = jax.tree.leaves(obs)
        if self.network in IMAGES and not any(map(_is_image, leaves)):
            raise ConfigError(
                f"network: got {self.network!r}, but observations have shape "
                f"{leaves[0].shape[1:]}, expected (height, width, channels)"
            )
        leaves = [self._flatten(_as_floats(leaf)) for leaf in leaves]
        x = leaves[0] if len(leaves) == 1 else jnp.concatenate(leaves, axis=-1)
        for size in self.hidden:
            x = self._layer(size, x)
        return x

    def _layer(self, size: int, x: jax.Array) -> jax.Array:
        x = nn.Dense(size, kernel_init=_orthogonal(math.sqrt(2)))(x)
        if self.layer_norm:
            x = nn.LayerNorm()(x)
        return ACTIVATIONS[self.activation](x)

    def _flatten(self, x: jax.Array) -> jax.Array:
        if _is_image(x) and self.network in ("nature", "impala"):
            x = (Nature if self.network == "nature" else Impala)()(x)
        elif _is_image(x) and (self.network == "cnn" or self._is_narrow(x)):
            stride = -(-max(x.shape[1:3]) // 10)
            x = self._layer(FILTERS, _patches(x, 3, stride))
        return x.reshape(x.shape[0], -1)

    def _is_narrow(self, x: jax.Array) -> bool:
        return self.network == "auto" and x.shape[-1] <= FILTERS


def _is_image(x: jax.Array) -> bool:
    return x.ndim == 4 and min(x.shape[1:3]) >= LEAST


def _as_floats(x: jax.Array) -> jax.Array:
    pixels = x.dtype == jnp.uint8 and x.ndim == 4
    return x.astype(jnp.float32) / 255.0 if pixels else x.astype(jnp.float32)


def _patches(x: jax.Array, size: int, stride: int) -> jax.Array:
    """`[B, H, W, C]` to `[B, H', W', size * size * C]`, the windows that a convolution sees.

    A dense layer on them is the convolution, as a matrix product. On the CPU, XLA's convolution is
    some 70 times slower inside a loop, as all of training is: PPO on Breakout is 9.6 times as fast
    so (benchmarks/tricks.py, one core, JAX 0.11.2, November 2026).
    """
    height, width = ((n - size) // stride + 1 for n in x.shape[1:3])
    rows, cols = (stride * (n - 1) + 1 for n in (height, width))
    windows = [
        x[:, i : i + rows : stride, j : j + cols : stride] for i in range(size) for j in range(size)
    ]
    return jnp.concatenate(windows, axis=-1)


class Conv(nn.Module):
    """A convolution, `[B, H, W, C]` to `[B, H', W', filters]`; its parameters are those of a dense
    layer on the windows, on every device.

    On a CPU it is that layer, see `_patches`; on other devices, XLA's convolution.
    """

    filters: int
    size: int
    stride: int = 1
    padding: str = "VALID"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (self.size**2 * x.shape[-1], self.filters)
        kernel = self.param("kernel", _orthogonal(math.sqrt(2)), shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.filters,), jnp.float32)
        out = self.by_windows(x, kernel) if _on_cpu() else self.by_convolution(x, kernel)
        return out + bias.reshape(1, 1, 1, -1)

    def by_windows(self, x: jax.Array, kernel: jax.Array) -> jax.Array:
        """The sums, by a matrix product."""
        if self.padding == "SAME":
            around = [_same(n, self.size, self.stride) for n in x.shape[1:3]]
            x = jnp.pad(x, [(0, 0), *around, (0, 0)])
        return _patches(x, self.size, self.stride) @ kernel

    def by_convolution(self, x: jax.Array, kernel: jax.Array) -> jax.Array:
        """The sums, by `jax.lax.conv_general_dilated`."""
        kernel = kernel.reshape(self.size, self.size, -1, self.filters)
        numbers = ("NHWC", "HWIO", "NHWC")
        strides = (self.stride, self.stride)
        return jax.lax.conv_general_dilated(
            x, kernel, strides, self.padding, dimension_numbers=numbers
        )


def _on_cpu() -> bool:
    return jax.default_backend() == "cpu"


def _same(length: int, size: int, stride: int) -> tuple[int, int]:
    """The padding of "SAME" before and after an axis."""
    total = max((-(-length // stride) - 1) * stride + size - length, 0)
    return total // 2, total - total // 2


class Nature(nn.Module):
    """The convolutions of `network="nature"`; see `Torso`."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        if min(x.shape[1:3]) < 36:
            raise ConfigError(
                f"network: got 'nature', but images are {x.shape[1]} x {x.shape[2]}, expected at "
                "least 36 x 36; 'impala' takes smaller ones"
            )
        for filters, size, stride in ((32, 8, 4), (64, 4, 2), (64, 3, 1)):
            x = nn.relu(Conv(filters, size, stride)(x))
        return x


class Impala(nn.Module):
    """The convolutions of `network="impala"`; see `Torso`."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for filters in (16, 32, 32):
            x = Conv(filters, 3, padding="SAME")(x)
            x = nn.max_pool(x, (3, 3), (2, 2), "SAME")
            for _ in range(2):
                inner = Conv(filters, 3, padding="SAME")(nn.relu(x))
                x = x + Conv(filters, 3, padding="SAME")(nn.relu(inner))
        return nn.relu(x)


class DefaultActor(Actor):
    """A policy: a `Torso` and a dense layer."""

    hidden: Sequence[int] = (64, 64)
    activation: str = "tanh"
    network: str = "auto"

    @nn.compact
    def create_network(self, obs: PyTree) -> jax.Array:
        x = Torso(self.hidden, self.activation, self.network)(self.view.features(obs))
        return _head(self.action_dim, 0.01)(x)


class DefaultSquashedActor(Actor):
    """A policy whose mean and scale depend on the observation, squashed into the action's bounds: a
    `Torso` and a dense layer for both."""

    hidden: Sequence[int] = (64, 64)
    activation: str = "tanh"
    network: str = "auto"
    distribution = TanhNormal

    @nn.compact
    def create_network(self, obs: PyTree) -> tuple[jax.Array, jax.Array]:
        x = Torso(self.hidden, self.activation, self.network)(self.view.features(obs))
        mean, log_std = jnp.split(_head(2 * self.action_dim, 0.01)(x), 2, axis=-1)
        return mean, log_std


class DefaultActorCritic(ActorCriticNetwork):
    """A policy and a V critic: a shared `Torso`, and a dense layer for each."""

    hidden: Sequence[int] = (64, 64)
    activation: str = "tanh"
    network: str = "auto"

    @nn.compact
    def create_network(self, obs: PyTree) -> tuple[jax.Array, jax.Array]:
        x = Torso(self.hidden, self.activation, self.network)(self.view.features(obs))
        return _head(self.action_dim, 0.01)(x), _head(1, 1.0)(x)


class DefaultCritic(Critic):
    """A V critic: a `Torso` and a dense layer."""

    hidden: Sequence[int] = (64, 64)
    activation: str = "tanh"
    network: str = "auto"

    @nn.compact
    def create_network(self, obs: PyTree) -> jax.Array:
        x = Torso(self.hidden, self.activation, self.network)(self.view.features(obs))
        return _head(1, 1.0)(x)


class DefaultQCritic(Critic):
    """A Q critic, Q(s, a): a `Torso` on the action and the observation, and a dense layer."""

    hidden: Sequence[int] = (64, 64)
    activation: str = "tanh"
    network: str = "auto"
    layer_norm: bool = False

    @nn.compact
    def create_network(self, obs: PyTree, action: jax.Array) -> jax.Array:
        x = Torso(self.hidden, self.activation, self.network, self.layer_norm)(
            {"action": action, "obs": self.view.features(obs)}
        )
        return _head(1, 1.0)(x)


class DefaultQNetwork(Critic):
    """A Q critic for n discrete actions, with the values of all as outputs, `[B, n]`.

    With `dueling` the last hidden layer is two of that width, one for V(s) and one for the
    advantages, and Q(s, a) = V(s) + A(s, a) - mean_a' A(s, a') (Wang et al. 2016, arXiv:1511.06581,
    eq. 9).
    """

    hidden: Sequence[int] = (64, 64)
    activation: str = "tanh"
    network: str = "auto"
    layer_norm: bool = False
    dueling: bool = False

    @nn.compact
    def create_network(self, obs: PyTree) -> jax.Array:
        shared = self.hidden[:-1] if self.dueling else self.hidden
        x = Torso(shared, self.activation, self.network, self.layer_norm)(self.view.features(obs))
        if not self.dueling:
            return _head(self.action_dim, 1.0)(x)
        streams = [Torso(self.hidden[-1:], self.activation, "mlp", self.layer_norm) for _ in "VA"]
        return _dueling(_head(1, 1.0)(streams[0](x)), _head(self.action_dim, 1.0)(streams[1](x)))


def _dueling(value: jax.Array, advantage: jax.Array) -> jax.Array:
    """Q(s, .) `[B, n]` from V(s) `[B, 1]` and advantages `[B, n]`."""
    return value + advantage - jnp.mean(advantage, axis=-1, keepdims=True)


class _Remembering:
    """Default networks with a memory: a `Torso`, a recurrent layer, and dense layers.

    Attributes:
        network: the recurrent layer, one of `CELLS`.
        memory: its width; None for that of the last hidden layer.
    """

    hidden: Sequence[int]
    activation: str
    network: str
    memory: int | None
    view: View

    def initial_memory(self, batch: int) -> PyTree:
        return self._cell(None).initial(batch)

    def _recur(
        self, obs: PyTree, memory: PyTree, fresh: jax.Array | None, layer_norm: bool = False
    ) -> tuple[jax.Array, PyTree]:
        """The recurrent layer's output and memory; arguments as in `Actor.initial_memory`."""
        torso = Torso(self.hidden, self.activation, layer_norm=layer_norm)
        x = torso(self.view.features(obs))
        return self._cell(cast(nn.Module, self))(x, memory, fresh)

    def _cell(self, parent: nn.Module | None) -> Cell:
        width = self.hidden[-1] if self.memory is None else self.memory
        return CELLS[self.network](width, parent=parent)


class RecurrentActor(_Remembering, Actor):
    """A policy with a memory: a `Torso`, a recurrent layer and a dense layer."""

    hidden: Sequence[int] = (64, 64)
    activation: str = "tanh"
    network: str = "gru"
    memory: int | None = None

    @nn.compact
    def create_network(  # type: ignore[override]  # with a memory
        self, obs: PyTree, memory: PyTree, fresh: jax.Array | None = None
    ) -> tuple[jax.Array, PyTree]:
        x, memory = self._recur(obs, memory, fresh)
        return _head(self.action_dim, 0.01)(x), memory


class RecurrentActorCritic(_Remembering, ActorCriticNetwork):
    """A policy and a V critic with one memory: a `Torso`, a recurrent layer, and a dense layer for
    each."""

    hidden: Sequence[int] = (64, 64)
    activation: str = "tanh"
    network: str = "gru"
    memory: int | None = None

    @nn.compact
    def create_network(  # type: ignore[override]  # with a memory
        self, obs: PyTree, memory: PyTree, fresh: jax.Array | None = None
    ) -> tuple[Pair, PyTree]:
        x, memory = self._recur(obs, memory, fresh)
        return (_head(self.action_dim, 0.01)(x), _head(1, 1.0)(x)), memory


class RecurrentCritic(_Remembering, Critic):
    """A V critic with a memory: a `Torso`, a recurrent layer and a dense layer."""

    hidden: Sequence[int] = (64, 64)
    activation: str = "tanh"
    network: str = "gru"
    memory: int | None = None

    @nn.compact
    def create_network(
        self, obs: PyTree, memory: PyTree, fresh: jax.Array | None = None
    ) -> tuple[jax.Array, PyTree]:
        x, memory = self._recur(obs, memory, fresh)
        return _head(1, 1.0)(x), memory


class RecurrentQNetwork(_Remembering, Critic):
    """A Q critic with a memory, for n discrete actions, with the values of all as outputs.

    With `layer_norm` the layers of the `Torso` are normalised. With `dueling` the values are those
    of `DefaultQNetwork`, without a hidden layer after the recurrent one.
    """

    hidden: Sequence[int] = (64, 64)
    activation: str = "tanh"
    network: str = "gru"
    memory: int | None = None
    layer_norm: bool = False
    dueling: bool = False

    @nn.compact
    def create_network(
        self, obs: PyTree, memory: PyTree, fresh: jax.Array | None = None
    ) -> tuple[jax.Array, PyTree]:
        x, memory = self._recur(obs, memory, fresh, self.layer_norm)
        if not self.dueling:
            return _head(self.action_dim, 1.0)(x), memory
        return _dueling(_head(1, 1.0)(x), _head(self.action_dim, 1.0)(x)), memory


# The default networks with a memory in place of those without.
RECURRENT: dict[type[Actor | Critic], type[Actor | Critic]] = {
    DefaultActor: RecurrentActor,
    DefaultActorCritic: RecurrentActorCritic,
    DefaultCritic: RecurrentCritic,
    DefaultQNetwork: RecurrentQNetwork,
}
