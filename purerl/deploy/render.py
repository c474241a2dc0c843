"""`render`: one episode as a GIF or an MP4."""

import io
import os
import subprocess
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from subprocess import PIPE
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from purerl.accelerator.compiling import jit
from purerl.agents.acting import memoryless
from purerl.deploy.drawing import draw
from purerl.envs.base import Env, typed, where
from purerl.envs.last_action import as_remembered
from purerl.envs.registry import as_env
from purerl.records.errors import ConfigError, RunError
from purerl.records.fields import check_key, check_path
from purerl.records.files import reason, write_bytes
from purerl.records.types import PyTree
from purerl.training.policy import Policy
from purerl.training.train import check_seed

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

MOST_FRAMES = 500  # besides the first
MILLISECONDS = 40  # a frame
PAUSE = 1_000  # on the last one
STEPS_WITHOUT_LIMIT = 500


def render(
    policy: Policy | None,
    env: object,
    path: str | os.PathLike,
    seed: int = 0,
    max_steps: int | None = None,
    key: jax.Array | None = None,
) -> tuple[float, int]:
    """Plays one episode and writes it as a GIF, or an MP4 (H.264, `pip install 'purerl[video]'`).

    CartPole, Pendulum, Acrobot and both MountainCars are drawn as in Gymnasium, environments whose
    spec has `draw`, as those of suites, by that. Of all others the observation is drawn: an image
    `[H, W]` or `[H, W, C]` as a grid with a color for each channel, anything else as bars. Of an
    episode of more than 500 steps only every k-th is drawn.

    Args:
        policy: such as `out.policy`; None for random actions.
        env: a name, a `purerl.Env`, or a gymnax `Environment`, with its parameters or without.
        path: the file, `.gif` or `.mp4`; an existing one is replaced.
        seed: of the initial state and the dynamics.
        max_steps: where a longer episode is cut off; None for the environment's time limit, or 500
            where it has none.
        key: to sample actions; None for the mode.

    Returns:
        The episode's return and its length.

    Raises:
        ConfigError: invalid arguments, or an MP4 without imageio-ffmpeg.
        RunError: the file can't be written.
    """
    if policy is not None and not isinstance(policy, Policy):
        raise ConfigError(f"policy: got {type(policy).__name__}, expected a Policy: out.policy")
    if key is not None:
        check_key(key)
    film = Film(env, policy, max_steps=max_steps)
    target = check_path("path", path)
    write = _writer(target)
    frames, total, length = film.play(policy, check_seed("seed", seed), key)
    write(frames, target)
    return total, length


class Film:
    """Films single episodes, by a program that is compiled once for all policies of a run.

    Args:
        env, max_steps: as for `render`.
        policy: one of those to film, or None for random actions.
    """

    def __init__(self, env: object, policy: Policy | None, *, max_steps: int | None = None) -> None:
        env = typed(as_env(env))
        if policy is not None:
            if policy.spec.action_space != env.spec.action_space:
                raise ConfigError(
                    f"env: {env.spec.name} has {env.spec.action_space}, expected the policy's "
                    f"actions, {policy.spec.action_space}"
                )
            env = as_remembered(policy.spec, env)
        limit = env.spec.max_episode_steps or STEPS_WITHOUT_LIMIT
        max_steps = limit if max_steps is None else max_steps
        if isinstance(max_steps, bool) or not isinstance(max_steps, int) or max_steps < 1:
            raise ConfigError(f"max_steps: got {max_steps!r}, expected an integer >= 1, or None")
        self._env = env
        self._play = _player(env, max_steps)

    def play(
        self, policy: Policy | None, seed: int, key: jax.Array | None = None
    ) -> tuple[list["Picture"], float, int]:
        """The frames of an episode, its return and its length; arguments as for `render`."""
        states, observations, returns, length = self._play(policy, jax.random.key(seed), key)
        states = jax.tree.map(_on_host, states)
        observations, returns = jax.tree.map(np.asarray, (observations, returns))
        length = int(length)
        frames = []
        for i in _shown(length):
            state, obs = (
                jax.tree.map(lambda x, i=i: x[i], tree) for tree in (states, observations)
            )
            frames.append(draw(self._env.spec, state, obs, i, returns[i]))
        return frames, float(returns[length]), length


def _shown(length: int) -> list[int]:
    """Indices of the frames: 0 to `length`, evenly spaced, and the last."""
    every = max(1, -(-length // MOST_FRAMES))
    return sorted({*range(0, length + 1, every), length})


def _player(env: Env, max_steps: int) -> Callable[..., tuple]:
    """A program from a policy, a key and a key for actions to states and observations
    `[T + 1, ...]`, returns so far `[T + 1]`, and the episode's length.

    T is `max_steps`; after the episode's end its last moment is repeated.
    """

    def choose(obs: PyTree, key: jax.Array) -> tuple[jax.Array, dict]:
        return jax.vmap(env.spec.random_action)(key[None], obs), {}

    by_chance = memoryless(choose)

    def play(policy: Policy | None, key: jax.Array, sample_key: jax.Array | None) -> tuple:
        acting = by_chance if policy is None else policy.acting(sample=sample_key is not None)
        reset_key, play_key = jax.random.split(key)
        obs, state = env.reset(reset_key)
        start = (state, obs, jnp.float32(0), jnp.int32(0), jnp.bool_(False), acting.init(1))

        def step(carry: tuple, index: jax.Array) -> tuple[tuple, tuple]:
            state, obs, total, length, over, memory = carry
            step_key, action_key = jax.random.split(jax.random.fold_in(play_key, index))
            if sample_key is not None:
                action_key = jax.random.fold_in(sample_key, index)
            seen = jax.tree.map(lambda x: x[None], obs)
            memory, action, _ = acting.step(memory, seen, action_key)
            after, timestep = env.step(step_key, state, action[0])
            new = (
                after,
                timestep.obs,
                total + timestep.reward,
                length + 1,
                timestep.terminated | timestep.truncated,
                memory,
            )
            carry = where(over, carry, new)
            return carry, carry[:3]

        last, moments = jax.lax.scan(step, start, jnp.arange(max_steps))
        whole = jax.tree.map(lambda x, xs: jnp.concatenate([x[None], xs]), start[:3], moments)
        return *whole, last[3]

    return jit(play)


def _on_host(x: jax.Array) -> jax.Array | np.ndarray:
    """An array in numpy, which is quick to index; keys stay as they are."""
    return x if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else np.asarray(x)


def _writer(path: Path) -> Callable[[list["Picture"], Path], None]:
    """What writes frames into a file of such a name. Raises ConfigError."""
    kind = path.suffix.lower()
    if kind not in (".gif", ".mp4"):
        raise ConfigError(f"path: got {str(path)!r}, expected a name that ends in .gif or .mp4")
    if kind == ".mp4" and find_spec("imageio_ffmpeg") is None:
        raise ConfigError(
            f"path: {str(path)!r} needs imageio-ffmpeg: pip install 'purerl[video]'; a .gif needs "
            "nothing"
        )
    return _write_gif if kind == ".gif" else _write_mp4


def _write_gif(frames: list["Picture"], path: Path) -> None:
    write_bytes(path, as_gif(frames), "the picture")


def as_gif(frames: list["Picture"]) -> bytes:
    """A film as a GIF."""
    from PIL import Image

    # Pillow's default palette takes ten times as long and is less accurate.
    method = Image.Quantize.FASTOCTREE
    first, *rest = (x.quantize(256, method=method, dither=Image.Dither.NONE) for x in frames)
    durations = [MILLISECONDS] * (len(frames) - 1) + [PAUSE]
    options = {"save_all": True, "append_images": rest, "duration": durations, "loop": 0}
    first.save(packed := io.BytesIO(), "GIF", **options)
    return packed.getvalue()


def _write_mp4(frames: list["Picture"], path: Path) -> None:
    import imageio_ffmpeg

    width, height = frames[0].size
    form = ("-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}")
    even = ("-vf", "pad=ceil(iw/2)*2:ceil(ih/2)*2")  # as H.264 needs it
    coded = ("-c:v", "libx264", "-pix_fmt", "yuv420p", *even)
    early = ("-movflags", "+faststart")  # plays before all of it is loaded
    with tempfile.TemporaryDirectory() as folder:
        film = Path(folder) / "film.mp4"
        try:
            program = (imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error")
            command = (*program, *form, "-r", f"{1000 / MILLISECONDS:g}", "-i", "-", *coded, *early)
            with subprocess.Popen((*command, str(film)), stdin=PIPE, stderr=PIPE) as encoder:
                assert encoder.stdin is not None
                for frame in [*frames, *[frames[-1]] * (PAUSE // MILLISECONDS - 1)]:
                    encoder.stdin.write(frame.convert("RGB").tobytes())
                _, said = encoder.communicate()
            if encoder.returncode:
                raise OSError(said.decode(errors="replace"))
            packed = film.read_bytes()
        except (OSError, RuntimeError) as error:  # no ffmpeg for this machine, a full disk
            raise RunError(f"the video can't be encoded: {reason(error)}") from None
    write_bytes(path, packed, "the video")
