"""Translation of PureJaxRL's upper-case configs."""

import warnings
from collections.abc import Mapping

from purerl.records.errors import ConfigError, shown, suggest
from purerl.records.types import Plain

# PureJaxRL's keys to fields of the config ("") or of the agent.
COMMON = {
    "ENV_NAME": ("", "env"),
    "TOTAL_TIMESTEPS": ("", "total_timesteps"),
    "NUM_ENVS": ("", "num_envs"),
    "LR": ("agent", "lr"),
    "GAMMA": ("agent", "gamma"),
}
PPO_KEYS = COMMON | {
    "NUM_STEPS": ("", "update_every"),
    "UPDATE_EPOCHS": ("agent", "K_epochs"),
    "GAE_LAMBDA": ("agent", "lam"),
    "CLIP_EPS": ("agent", "eps_clip"),
    "ENT_COEF": ("agent", "entropy_beta"),
    "VF_COEF": ("agent", "value_coef"),
    "MAX_GRAD_NORM": ("agent", "max_grad_norm"),
    "ACTIVATION": ("agent", "activation"),
    "ANNEAL_LR": ("agent", "anneal"),
}
DQN_KEYS = COMMON | {
    "BUFFER_BATCH_SIZE": ("agent", "batch_size"),
    "EPSILON_START": ("agent", "epsilon_start"),
    "EPSILON_FINISH": ("agent", "epsilon_end"),
    "EPSILON_ANNEAL_TIME": ("agent", "epsilon_steps"),
    "LR_LINEAR_DECAY": ("agent", "anneal"),
    "TAU": ("agent", "tau"),
    "LEARNING_STARTS": ("", "update_after"),
}
# Keys whose translation isn't a new name, and keys that don't affect training.
WORKED_OUT = {
    "ppo": ("NUM_MINIBATCHES", "NORMALIZE_ENV"),
    "dqn": ("BUFFER_SIZE", "TRAINING_INTERVAL", "TARGET_UPDATE_INTERVAL"),
}
OUTSIDE = {
    "SEED": "the seed is train's key: jax.random.key(SEED)",
    "NUM_SEEDS": "seeds are jax.vmap(train)(keys), or purerl.fit(config, seeds=NUM_SEEDS)",
    "DEBUG": "metrics come out of train, or as they come by purerl.fit(config, callback=...)",
    "WANDB_MODE": "purerl.fit(config, callback=purerl.wandb_sink(...))",
    "ENTITY": "purerl.wandb_sink(entity=...)",
    "PROJECT": "purerl.wandb_sink(project=...)",
}
DIFFERENCES = {
    "both": (
        "a time limit isn't the end of the MDP: the value beyond it is that of the true successor",
        "returns are means over episodes, each counted once, and not over steps",
        "total_timesteps is rounded up to whole updates, not down",
    ),
    "ppo": (
        "minibatches are of shuffled blocks of neighbouring environments, each step once an epoch",
    ),
    "dqn": ("gradients are clipped at the norm of 1e6, which is next to not at all",),
}


def from_purejaxrl(config: Mapping[str, Plain]) -> dict[str, Plain]:
    """A mapping for `TrainConfig.from_mapping` from a config of PureJaxRL's PPO or DQN.

    The key `BUFFER_SIZE` makes it a DQN. One `UserWarning` lists the differences.

    Raises:
        ConfigError: a key that neither of them has; a value that can't be used.
    """
    if not isinstance(config, Mapping):
        raise ConfigError(f"from_purejaxrl: got {shown(config)}, expected a mapping of its keys")
    kind = "dqn" if "BUFFER_SIZE" in config else "ppo"
    keys = DQN_KEYS if kind == "dqn" else PPO_KEYS
    known = [*keys, *WORKED_OUT[kind], *OUTSIDE]
    for key in config:
        if key not in known:
            raise ConfigError(f"from_purejaxrl: no key {key!r}; {suggest(str(key), known)}")
    mapping: dict[str, Plain] = {"agent": {"name": kind}}
    for key, (part, name) in keys.items():
        if key in config:
            (mapping["agent"] if part else mapping)[name] = config[key]
    work_out = _dqn if kind == "dqn" else _ppo
    work_out(config, mapping)
    notes = [*DIFFERENCES["both"], *DIFFERENCES[kind]]
    notes += [f"{key}: {text}" for key, text in OUTSIDE.items() if key in config]
    warnings.warn(f"what differs from PureJaxRL: {'; '.join(notes)}", stacklevel=3)
    return mapping


def _number(config: Mapping[str, Plain], key: str, default: int) -> int:
    value = config.get(key, default)
    whole = isinstance(value, (int, float)) and float(value).is_integer()
    if isinstance(value, bool) or not whole or value < 1:
        raise ConfigError(f"from_purejaxrl: {key}: got {value!r}, expected an integer >= 1")
    return int(value)


def _ppo(config: Mapping[str, Plain], mapping: dict[str, Plain]) -> None:
    num_envs, num_steps = _number(config, "NUM_ENVS", 4), _number(config, "NUM_STEPS", 128)
    parts = _number(config, "NUM_MINIBATCHES", 4)
    if num_envs * num_steps % parts:
        raise ConfigError(
            f"from_purejaxrl: NUM_MINIBATCHES: got {parts}, expected a divisor of NUM_ENVS x "
            f"NUM_STEPS = {num_envs * num_steps}"
        )
    mapping |= {"num_envs": num_envs, "update_every": num_steps}
    mapping["agent"]["batch_size"] = num_envs * num_steps // parts
    # Its programs for continuous actions, which alone have this key, have the wider networks.
    mapping["agent"].setdefault("hidden", [256, 256] if "NORMALIZE_ENV" in config else [64, 64])
    if config.get("NORMALIZE_ENV"):
        mapping |= {"normalize_obs": True, "normalize_reward": True}


def _dqn(config: Mapping[str, Plain], mapping: dict[str, Plain]) -> None:
    num_envs = _number(config, "NUM_ENVS", 10)
    steps = max(1, round(_number(config, "TRAINING_INTERVAL", 10) / num_envs))
    mapping |= {"num_envs": num_envs, "update_every": steps}
    size = _number(config, "BUFFER_SIZE", 10_000)
    mapping["buffer"] = {"maxlen": -(-size // num_envs) * num_envs}
    # Counted in environment steps there, in gradient steps here.
    every = _number(config, "TARGET_UPDATE_INTERVAL", 500) / (steps * num_envs)
    mapping["agent"] |= {
        "target_update_every": max(1, round(every)),
        "target_fn": "q",
        "n_step": 1,
        "hidden": [120, 84],
        "activation": "relu",
        "max_grad_norm": 1e6,
    }
