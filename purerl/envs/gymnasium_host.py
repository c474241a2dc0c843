"""`gymnasium_env`: Gymnasium's environments, simulated on the host."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from purerl.envs.base import Env
from purerl.envs.host import PREFIX, host_env
from purerl.envs.registry import make

if TYPE_CHECKING:
    from purerl.envs.host import Given


def gymnasium_env(
    env: "Given", num_envs: int | None = None, *, metrics: Sequence[str] = (), **kwargs: object
) -> Env:
    """An environment of Gymnasium, simulated on the host: MuJoCo in C, or a user's.

        purerl.TrainConfig(env=purerl.gymnasium_env("HalfCheetah-v5", num_envs=8))
        purerl.TrainConfig(env="gymnasium/HalfCheetah-v5")  # the same, with the agent's num_envs

    Agents, normalisation, metrics and `fit` are those of environments in JAX. The program calls
    back to the host once a step, where N simulators step one after the other; what ends is reset in
    the same call. Successors are the true ones, before the reset, and a time limit of Gymnasium
    truncates. First states follow from the run's key, if the simulators follow from their seeds.
    Those of EnvPool, which steps N on a pool of threads, are `purerl.make("envpool/Pong-v5")`.

    What is on the host can't be mapped by `jax.vmap`: `fit` trains one seed, `sweep` one after the
    other, on one device. `skip_frames`, `remember_action` and `resets` are for environments in JAX.
    A checkpoint doesn't have the simulators' state: where `fit` resumes, they are reset, so that
    the rest differs from that of an uninterrupted run; a warning says so.

    Args:
        env: the id of a registered environment, as for `gymnasium.make`; or a function that returns
            a `gymnasium.Env`; or N of them as a `gymnasium.vector.VectorEnv`, whose autoreset mode
            is SAME_STEP or DISABLED, and which evaluations can't use.
        num_envs: N; None for the run's.
        metrics: names of numbers in `info`, as in `EnvSpec.metrics`.
        **kwargs: for `gymnasium.make`, or for the function.

    Raises:
        ConfigError: Gymnasium or a package of the environment isn't installed (the message has the
            line that installs it); an unknown id; spaces other than Box, Discrete, MultiDiscrete
            and MultiBinary, with observations also Dict and Tuple of these.
    """
    if isinstance(env, str):
        return make(PREFIX + env, num_envs=num_envs, metrics=metrics, **kwargs)
    return host_env(env, num_envs, metrics=metrics, **kwargs)
