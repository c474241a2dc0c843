"""`Options`, the one list of a run's options: fields of `TrainConfig`, arguments of `run`."""

from collections.abc import Callable
from typing import Any, Self, cast

import jax

from purerl.agents import PPO, Agent
from purerl.agents.noise import Noise
from purerl.envs.base import Env, host_of
from purerl.envs.registry import as_env
from purerl.envs.vector import parse_resets
from purerl.experience.buffer import Buffer
from purerl.experience.log import Log
from purerl.experience.rewarders import Rewarder, RunningNormalize
from purerl.records.errors import ConfigError
from purerl.records.fields import Record, flag, integer, real, static, title, unchecked
from purerl.training.hyperparams import Parts


def _instance(base: type) -> Callable[[object], object]:
    def check(value: object) -> object:
        if isinstance(value, base):
            return value
        raise ValueError(f"call it: {value.__name__}()" if isinstance(value, type) else "")

    return check


def _number(value: object) -> float:
    return float(real().metadata["check"](value))


def _function(value: object) -> object:
    if not callable(value):
        raise ValueError
    return value


def _rewarder(value: object) -> object:
    if isinstance(value, type):
        raise ValueError(f"call it: {value.__name__}()")
    if not callable(value) or not callable(getattr(value, "init", None)):
        raise ValueError("it has init(num_envs), and can be called")
    return value


def _resets(value: object) -> str:
    try:
        kind, ratio = parse_resets(value)
    except ConfigError as error:
        hint = str(error).rpartition("; ")[2]
        raise ValueError(hint if hint.startswith("did you mean") else "") from None
    return kind if kind == "fresh" else f"{kind}({ratio})"


class Options(Record):
    """The options of a run, each checked alone.

    Attributes:
        env: a name such as `"CartPole-v1"`, a mapping of a name and parameters such as
            `{"name": "CartPole-v1", "gravity": 1.6}`, a `purerl.Env`, a gymnax `Environment` or
            wrapper, or a pair of one of these and its parameters.
        agent: an agent with its hyperparameters, such as `purerl.PPO(lr=3e-4)`.
        total_timesteps: environment steps in total, over all N; rounded up to whole updates. A step
            is one action: with frame skip it is several frames. None if `max_episodes` ends the
            run.
        max_episodes: the run ends with the update in which this many episodes have ended, over all
            N: after it the state is frozen, and metrics are NaN. Without `total_timesteps` it needs
            a time limit, so that the longest run is known. An episode that NaN or infinity has cut
            doesn't count. Schedules follow the episodes or the steps, whichever are nearer to their
            end.
        num_envs: N, the number of parallel environments; None for that of `purerl.gymnasium_env`,
            or the agent's default.
        update_every: T, steps of each environment between updates; None for the agent's default.
        update_after: environment steps, over all N, before the first update; None for the agent's
            default. Until then DDPG, TD3 and SAC draw actions uniformly from the action space.
        buffer: the replay or rollout buffer; None for the agent's default.
        normalize_obs: normalise observations by the running mean and variance over all
            environments.
        normalize_reward: divide rewards by the running standard deviation of the discounted return:
            `rewarder=purerl.RunningNormalize()`.
        stop_at_return: the run ends with the first update whose return is at least this: its
            evaluation's, where there is one (`eval_every`), else the mean over the training
            episodes that ended in it, which may be few. After it the state is frozen, and metrics
            are NaN. Schedules still follow `total_timesteps`. None for no such end.
        stop_if_nonfinite: end the run at the first NaN or infinity from the environment or in the
            agent's new state, or number beyond 1e15 in running statistics. Such an update is always
            skipped, such numbers are left out, and both are counted in the metrics; by default the
            run continues.
        log_every: updates in a row of metrics: means, minima, maxima and counts over all of them.
            None for the fewest that give at most 10,000 rows: 1 for runs of up to 10,000 updates.
        rewarder: transforms rewards before the agent learns from them.
        noise: exploration noise for deterministic agents, added to their actions; the sum is
            stored. None for the agent's default.
        action_processor: maps the agent's actions `[N, *action_shape]` to the environment's, just
            before the step; the buffer stores the agent's. None clips to a Box's bounds.
        max_episode_steps: a time limit below the environment's: sets `truncated`, never
            `terminated`.
        skip_frames: repeats of each action; rewards are summed.
        remember_action: the last action and the last reward are part of the observations, for
            networks with a memory: see `purerl.remember_action`.
        resets: strategy for the first states of new episodes. "fresh" draws one for each
            environment at every step, and uses it where an episode has ended. "optimistic(16)"
            draws N / 16 a step, and "spare(16)" N T / 16 a rollout, faster where a reset costs as
            much as a step; with a number above the length of episodes some of them begin alike: see
            `purerl.vector_env`. None for the environment's, which is "fresh" but for some suites.
        reset_each_episode: empty the buffer before each rollout.
        wait_end_path: episodic rollouts: all environments are reset and play T steps, a time limit;
            steps after the first end of each are not `valid`, and losses over paths leave them out.
            None for the agent's default.
        eval_every: updates between evaluations of the policy, the best of which is kept:
            `TrainOutput.best_policy`. None for no evaluations.
        eval_env: the environment of evaluations, given as `env`, with the same spaces and metrics:
            such as the nominal one, where `env` is randomised. Frame skip and time limit are the
            run's; hyperparameters such as `env.gravity` are of `env` alone. None for `env`.
        eval_max_episodes: the number of episodes in each evaluation (it plays exactly this many).
        eval_max_episode_steps: a time limit for an evaluation's episodes; None for the
            environment's, or 10,000 where it has none.
        eval_sample: draw the actions of evaluations from the policy, where its mode fails, such as
            by going in circles; else they are greedy.
        log: metrics of yours: a function of a `Transition`, one step of N environments, to a dict
            of numbers by name, `[N]` or `[]`, such as `lambda step: {"speed": step.obs[:, 1]}`.
            Here `reward` is the environment's, and `next_obs` the true successor. Finite values are
            averaged over the steps of each update, in the scan: `metrics.log["speed"]`, and
            `log/speed` in all files and sinks.
        num_devices: D, the number of devices (of all hosts) over which the environments are
            sharded. Sizes are totals: each device has a D-th of `num_envs`, of the buffer, of every
            batch and of `eval_max_episodes`, which D divides. The agent's state is the same on all.
    """

    _title = "run"  # in errors, where it is no TrainConfig

    env: Any = static()
    agent: Agent = static(
        default=PPO(),
        check=_instance(Agent),
        expected="an agent, such as purerl.PPO()",
        optional=False,
    )
    total_timesteps: int | None = integer(default=500_000, at_least=1, optional=True, counter=True)
    max_episodes: int | None = integer(default=None, at_least=1, optional=True, counter=True)
    num_envs: int | None = integer(default=None, at_least=1, optional=True)
    update_every: int | None = integer(default=None, at_least=1, optional=True)
    update_after: int | None = integer(default=None, at_least=0, optional=True, counter=True)
    buffer: Buffer | None = static(
        default=None, check=_instance(Buffer), expected="a purerl.Buffer"
    )
    normalize_obs: bool = flag(default=False)
    normalize_reward: bool = flag(default=False)
    stop_at_return: float | None = static(default=None, check=_number, expected="a float")
    stop_if_nonfinite: bool = flag(default=False)
    log_every: int | None = integer(default=None, at_least=1, at_most=2**30, optional=True)
    rewarder: Rewarder | None = static(
        default=None, check=_rewarder, expected="a rewarder, such as purerl.Scale(0.1)"
    )
    noise: Noise | None = static(
        default=None,
        check=_instance(Noise),
        expected="a noise, such as purerl.GaussianNoise()",
    )
    action_processor: Callable[[jax.Array], jax.Array] | None = static(
        default=None, check=_function, expected="a function of the action"
    )
    max_episode_steps: int | None = integer(default=None, at_least=1, optional=True)
    skip_frames: int = integer(default=1, at_least=1)
    remember_action: bool = flag(default=False)
    resets: str | None = static(
        default=None,
        check=_resets,
        expected="'fresh', 'optimistic(16)' or 'spare(16)', of any number",
    )
    reset_each_episode: bool = flag(default=False)
    wait_end_path: bool | None = flag(default=None, optional=True)
    eval_every: int | None = integer(default=None, at_least=1, at_most=2**30, optional=True)
    eval_env: Any = static(default=None)
    eval_max_episodes: int = integer(default=10, at_least=1)
    eval_max_episode_steps: int | None = integer(default=None, at_least=1, optional=True)
    eval_sample: bool = flag(default=False)
    log: Log | None = static(default=None, check=_function, expected="a function of a Transition")
    num_devices: int = integer(default=1, at_least=1)

    def check(self) -> None:
        super().check()
        if self.eval_env is not None and self.eval_every is None:
            raise ConfigError(
                f"{title(type(self))}.eval_env: is for evaluations, expected eval_every with it"
            )
        if self.normalize_reward and self.rewarder is not None:
            name = title(type(self))
            raise ConfigError(f"{name}.normalize_reward: can't be set together with rewarder")

    def with_defaults(self) -> Self:
        """The options, with the agent's defaults in place of None."""
        defaults = self.agent.run_defaults
        names = ("num_envs", "update_every", "update_after", "wait_end_path")
        left = {name: getattr(defaults, name) for name in names if getattr(self, name) is None}
        host = host_of(self.env) if isinstance(self.env, Env) else None
        if "num_envs" in left and host is not None and host.num_envs is not None:
            left["num_envs"] = host.num_envs
        if self.normalize_reward:
            left |= {"rewarder": RunningNormalize(), "normalize_reward": False}
        return unchecked(self, **left)

    @property
    def limits(self) -> tuple[int | None, int]:
        """The run's time limit and frame skip, as `limit_env` takes them."""
        return self.max_episode_steps, self.skip_frames

    def parts(self) -> Parts:
        """The run's records and environment, with defaults, by the first word of the paths of
        their hyperparameters; None for a part that the run doesn't have."""
        whole, agent = self.with_defaults(), self.agent
        default = agent.make_buffer(cast(int, whole.num_envs), cast(int, whole.update_every))
        return {
            "agent": agent,
            "noise": agent.run_defaults.noise if self.noise is None else self.noise,
            "rewarder": whole.rewarder,
            "buffer": default if self.buffer is None else self.buffer,
            "env": as_env(self.env),
        }
