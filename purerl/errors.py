"""What is said of a mistake."""

import difflib
from collections.abc import Iterable

# What a hyperparameter is called elsewhere (Stable-Baselines3, PureJaxRL, rejax, CleanRL) and here.
SYNONYMS = {
    "learning_rate": "lr",
    "n_envs": "num_envs",
    "n_steps": "update_every",
    "num_steps": "update_every",
    "timesteps": "total_timesteps",
    "n_epochs": "K_epochs",
    "num_epochs": "K_epochs",
    "update_epochs": "K_epochs",
    "minibatch_size": "batch_size",
    "num_minibatches": "batch_size",
    "clip_eps": "eps_clip",
    "clip_range": "eps_clip",
    "clip_coef": "eps_clip",
    "ent_coef": "entropy_beta",
    "vf_coef": "value_coef",
    "gae_lambda": "lam",
    "env_name": "env",
    "env_id": "env",
    "anneal_lr": "anneal",
    "normalize_observations": "normalize_obs",
    "normalize_rewards": "normalize_reward",
    "eval_freq": "eval_every",
    "learning_starts": "update_after",
    "train_freq": "update_every",
    "training_interval": "update_every",
    "buffer_size": "maxlen",
    "polyak": "tau",
    "target_update_interval": "target_update_every",
    "target_network_frequency": "target_update_every",
    "exploration_initial_eps": "epsilon_start",
    "exploration_final_eps": "epsilon_end",
    "action_noise": "noise",
    "std": "sigma",
    "std_dev": "sigma",
}


class ConfigError(ValueError):
    """A value that a user gave can't be used: says which, what it was and what is allowed."""


class RunError(RuntimeError):
    """A run's folder can't be written or read: says which file, why, and what is still good."""


def suggest(word: str, known: Iterable[str]) -> str:
    """The rest of an error message: the nearest right spelling, or else every right one."""
    known = list(known)
    synonym = SYNONYMS.get(word.lower())
    lowered = {name.lower(): name for name in known}
    near = difflib.get_close_matches(word.lower(), lowered, n=3, cutoff=0.6)
    if synonym in known:
        return f"did you mean {synonym!r}?"
    if near:
        return f"did you mean {' or '.join(repr(lowered[name]) for name in near)}?"
    return f"known: {', '.join(known)}"
