"""`TrainConfig`: what a user may say about a run, and every check of it."""

from collections.abc import Callable, Mapping
from typing import Any, Self, cast

import jax

from purerl.agents import AGENTS, PPO, Agent
from purerl.agents.noise import NOISES, Noise
from purerl.envs.base import Env
from purerl.envs.check import check_new_env
from purerl.envs.registry import source_of
from purerl.experience.buffer import Buffer
from purerl.experience.rewarders import REWARDERS, Rewarder, RunningNormalize
from purerl.records.errors import ConfigError, sentence, shown, suggest
from purerl.records.fields import (
    Record,
    field_names,
    field_options,
    flag,
    integer,
    read_names,
    static,
)
from purerl.training.check import check_loop, check_methods
from purerl.training.hyperparams import Parts, with_hyperparams
from purerl.training.loop import Loop
from purerl.training.purejaxrl import from_purejaxrl
from purerl.training.run import make_loop

# What a name stands for in a mapping.
REGISTRIES: dict[str, Mapping[str, type]] = {
    "agent": AGENTS,
    "noise": NOISES,
    "rewarder": REWARDERS,
    "buffer": {"buffer": Buffer},
}
DEFAULT_NAMES = {"agent": "ppo", "buffer": "buffer", "noise": "gaussian"}


def _instance(base: type) -> Callable[[Any], Any]:
    def check(value: Any) -> Any:
        if isinstance(value, base):
            return value
        raise ValueError(f"call it: {value.__name__}()" if isinstance(value, type) else "")

    return check


def _function(value: Any) -> Any:
    if not callable(value):
        raise ValueError
    return value


def _rewarder(value: Any) -> Any:
    if isinstance(value, type):
        raise ValueError(f"call it: {value.__name__}()")
    if not callable(value) or not callable(getattr(value, "init", None)):
        raise ValueError("it has init(num_envs), and can be called")
    return value


class TrainConfig(Record):
    """A run, said in full. Checked when it is made, before anything is compiled.

    It pickles where the functions in it do, and so goes to other processes. These are to be started
    by `multiprocessing.get_context("spawn")`: a config starts JAX, whose threads a forked process
    doesn't have, and there JAX hangs.

    Attributes:
        env: a name such as `"CartPole-v1"`, a `purerl.Env`, a gymnax `Environment` or a wrapper of
            one, or a pair of such a one and its parameters.
        agent: such as `purerl.PPO(lr=3e-4)`.
        total_timesteps: environment steps (decisions) in all; rounded up to whole updates. None
            where `max_episodes` ends the run.
        max_episodes: the run is over once so many episodes have ended.
        num_envs: N, environments side by side; None for the agent's default.
        update_every: T, steps of each environment between updates; None for the agent's default.
        update_after: environment steps before anything is learned; None for the agent's default.
        buffer: None for the agent's own.
        normalize_obs: observations by running mean and variance over all environments.
        stop_if_nonfinite: end the run once an update was skipped, since NaN or infinity came from
            the environment or would have come into the agent, or once numbers beyond 1e15 were kept
            out of running statistics; by default it goes on.
        log_every: updates that make a row of metrics; None for the fewest with which the run has no
            more than 10,000 rows: 1 for runs of up to 10,000 updates.
        normalize_reward: rewards by the running standard deviation of the discounted return.
        rewarder: another transform of the reward, in place of `normalize_reward`.
        noise: exploration noise, for deterministic agents; None for the agent's default.
        action_processor: from the agent's actions `[N, *action_shape]` to the environment's; None
            clips to a Box's bounds.
        max_episode_steps: a time limit below the environment's own: truncates, never terminates.
        skip_frames: how often each action is repeated.
        reset_each_episode: empty the buffer before each rollout.
        wait_end_path: episodic rollouts; None for the agent's default.
        eval_every: evaluate after every so many updates, with the greedy policy; None for never.
        eval_max_episodes: episodes in each evaluation.
        eval_max_episode_steps: where an evaluation's episodes stop; None for the environment's
            limit.
        num_devices: D, how many devices (of all hosts) the environments are spread over; it divides
            num_envs, batch sizes, the buffer and eval_max_episodes, which all are totals.

    Raises:
        ConfigError: says which field, what it got, what is allowed, and the nearest right spelling.
    """

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
    reset_each_episode: bool = flag(default=False)
    wait_end_path: bool | None = flag(default=None, optional=True)
    eval_every: int | None = integer(default=None, at_least=1, at_most=2**30, optional=True)
    eval_max_episodes: int = integer(default=10, at_least=1)
    eval_max_episode_steps: int | None = integer(default=None, at_least=1, optional=True)
    num_devices: int = integer(default=1, at_least=1)

    def check(self) -> None:
        """Everything that can be known before compiling: the networks too are built, on paper, and
        what a user has written is traced."""
        if self.normalize_reward and self.rewarder is not None:
            raise ConfigError("TrainConfig.normalize_reward: can't be set together with rewarder")
        object.__setattr__(self, "env", check_new_env(self.env))
        check_methods(self.agent)
        with sentence("TrainConfig: this run can't be put together"):
            loop = self.make_loop()
            # Devices share the work, not the shapes of its parts.
            check_loop(loop if self.num_devices == 1 else self.tell(num_devices=1).make_loop())

    def make_loop(self, hyperparams: Mapping[str, Any] | None = None) -> Loop:
        """The run as an `init` and a `step`.

        Args:
            hyperparams: values for float fields of the run's parts by path, such as `lr` or
                `noise.sigma`; scalars, which may be traced.
        """
        options = {
            name: getattr(self, name)
            for name in field_names(TrainConfig)
            if name not in ("env", "agent", "buffer", "normalize_reward")
        }
        if self.normalize_reward:
            options["rewarder"] = RunningNormalize()
        changed = with_hyperparams(self.parts(), hyperparams)
        agent = changed.pop("agent", self.agent)
        buffer = changed.pop("buffer", self.buffer)
        return make_loop(self.env, agent, buffer, **options | changed)

    def parts(self) -> Parts:
        """What the run is made of, with defaults filled in: the records whose float fields are
        hyperparameters, by the first word of their paths. None for what the run doesn't have."""
        agent, buffer = self.agent, self.buffer
        defaults = agent.run_defaults
        if buffer is None:
            num_envs, update_every = self.num_envs, self.update_every
            buffer = agent.make_buffer(
                defaults.num_envs if num_envs is None else num_envs,
                defaults.update_every if update_every is None else update_every,
            )
        return {
            "agent": agent,
            "noise": defaults.noise if self.noise is None else self.noise,
            "rewarder": RunningNormalize() if self.normalize_reward else self.rewarder,
            "buffer": buffer,
        }

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> Self:
        """A config from plain values, as TOML, YAML or a command line give them.

        Args:
            mapping: fields by name. `agent`, `noise` and `rewarder` are names, such as `"ppo"`, or
                mappings of their fields with the name under `"name"`; `buffer` is a mapping.

        Raises:
            ConfigError: see the class.
        """
        if not isinstance(mapping, Mapping):
            raise ConfigError(
                f"TrainConfig: got {shown(mapping)}, expected a mapping of its fields"
            )
        values = read_names(cls, _named(cls, mapping))
        for field in REGISTRIES:
            if isinstance(values.get(field), (str, Mapping)):
                values[field] = _from_plain(field, values[field])
        return cls(**values)

    @classmethod
    def from_purejaxrl(cls, config: Mapping[str, Any]) -> Self:
        """A config from PureJaxRL's upper-case keys, those of its PPO or of its DQN.

        What differs is told in one `UserWarning`.

        Raises:
            ConfigError: a key that PureJaxRL doesn't have, or see the class.
        """
        return cls.from_mapping(from_purejaxrl(config))

    def to_mapping(self) -> dict[str, Any]:
        """Plain values again, those that aren't None; `from_mapping` takes them.

        Raises:
            ConfigError: a field holds a function, a class or an environment, which have no plain
                form (an environment that `make` makes of its name alone has).
        """
        return to_plain(self)


def _named(cls: type, mapping: Mapping[Any, Any]) -> dict[str, Any]:
    """A mapping whose keys are words. Raises ConfigError."""
    for name in mapping:
        if not isinstance(name, str):
            known = suggest(name, field_names(cls))
            raise ConfigError(f"{cls.__name__}: no field {shown(name)}; {known}")
    return dict(mapping)


def _from_plain(field: str, spec: str | Mapping[str, Any]) -> Any:
    """An agent, noise, rewarder or buffer from its name, or from a mapping with the name in it."""
    registry = REGISTRIES[field]
    values = {"name": spec} if isinstance(spec, str) else dict(spec)
    name = values.pop("name", DEFAULT_NAMES.get(field))
    if name is None:
        raise ConfigError(f"{field}: no name in {shown(spec)}; known: {', '.join(registry)}")
    if str(name).lower() not in registry:
        raise ConfigError(f"{field}: no {field} {shown(name)}; {suggest(name, registry)}")
    cls = registry[str(name).lower()]
    return cls(**_named(cls, values))


def to_plain(record: Record, left: list[str] | None = None, path: str = "") -> dict[str, Any]:
    """Plain values of a record's fields, those that aren't their default `None`.

    Args:
        record: a config, or a part of one.
        left: takes the full names of fields without a plain form; None raises for them.
        path: what stands before their names.

    Raises:
        ConfigError: as `TrainConfig.to_mapping`.
    """
    plain: dict[str, Any] = {}
    for name, field in field_options(type(record)).items():
        value = getattr(record, name)
        if value is None and field.default is None:
            continue
        try:
            plain[name] = plain_value(type(record), name, value, left, path + name)
        except ConfigError:
            if left is None:
                raise
            left.append(path + name)
    return plain


def plain_value(
    cls: type, name: str, value: Any, left: list[str] | None = None, path: str = ""
) -> Any:
    """A field's value in plain ones, as `to_plain` has it. Raises ConfigError where there is no
    such form."""
    for kind, known in REGISTRIES.get(name, {}).items():
        if type(value) is known:
            named = {"name": kind} if name != "buffer" else {}
            return named | to_plain(cast(Record, value), left, f"{path}.")
    options = field_options(cls)[name].metadata.get("options", {})
    for word, known in options.items():
        if value is known:
            return word
    if isinstance(value, jax.Array) and value.shape == ():
        return float(value)
    if isinstance(value, Env):
        source = source_of(value)
        if source is None or source.params:
            raise ConfigError(
                f"{cls.__name__}.{name}: this {value.spec.name} has no plain form, which only an "
                "environment has that is given by its name, without parameters (purerl.register "
                "gives names)"
            )
        return source.name
    if isinstance(value, tuple):
        return list(value)
    if value is not None and not isinstance(value, (bool, int, float, str)):
        raise ConfigError(f"{cls.__name__}.{name}: {value!r} has no plain form")
    return value
