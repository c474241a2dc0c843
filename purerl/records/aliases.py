"""Other names of fields: those of Stable-Baselines3, PureJaxRL, CleanRL, rejax and Brax.

An alias is accepted wherever its field is, in Python, TOML and flags; it means the same, in the
same unit, but for Stable-Baselines3's `vf_coef`, which is of the squared error: ours, as CleanRL's,
PureJaxRL's and rejax's, is of half of it. A name that resembles a field but means another quantity
is only a hint in an error.
"""

# The fields that each alias may mean; a record takes the one that it has.
ALIASES: dict[str, tuple[str, ...]] = {
    # Agents.
    "learning_rate": ("lr",),
    "actor_learning_rate": ("actor_lr",),
    "policy_learning_rate": ("actor_lr",),
    "policy_lr": ("actor_lr",),
    "critic_learning_rate": ("critic_lr",),
    "q_lr": ("critic_lr",),
    "alpha_learning_rate": ("alpha_lr",),
    "discount": ("gamma",),
    "discount_factor": ("gamma",),
    "discounting": ("gamma",),
    "gae_lambda": ("lam",),
    "td_lambda": ("lam",),
    "clip_eps": ("eps_clip",),
    "clip_range": ("eps_clip",),
    "clip_coef": ("eps_clip",),
    "clipping_epsilon": ("eps_clip",),
    "clip_vloss": ("clip_value",),
    "ent_coef": ("entropy_beta", "alpha"),
    "entropy_coef": ("entropy_beta",),
    "entropy_cost": ("entropy_beta",),
    "vf_coef": ("value_coef",),
    "value_loss_coef": ("value_coef",),
    "n_epochs": ("K_epochs",),
    "num_epochs": ("K_epochs",),
    "update_epochs": ("K_epochs",),
    "num_updates_per_batch": ("K_epochs",),
    "minibatch_size": ("batch_size",),
    "buffer_batch_size": ("batch_size",),
    "norm_adv": ("normalize_advantage",),
    "normalize_advantages": ("normalize_advantage",),
    "anneal_lr": ("anneal",),
    "lr_linear_decay": ("anneal",),
    "hidden_sizes": ("hidden",),
    "hidden_layer_sizes": ("hidden",),
    "temperature": ("alpha",),
    "init_temperature": ("init_alpha",),
    "initial_temperature": ("init_alpha",),
    "policy_freq": ("policy_delay",),
    "policy_frequency": ("policy_delay",),
    "policy_noise": ("target_noise",),
    "target_policy_noise": ("target_noise",),
    "noise_clip": ("target_noise_clip",),
    "grad_updates_per_step": ("gradient_steps",),
    "q_network_layer_norm": ("layer_norm",),
    "exploration_initial_eps": ("epsilon_start",),
    "exploration_final_eps": ("epsilon_end",),
    "epsilon_finish": ("epsilon_end",),
    "start_e": ("epsilon_start",),
    "end_e": ("epsilon_end",),
    "eps_start": ("epsilon_start",),
    "eps_end": ("epsilon_end",),
    "eps_finish": ("epsilon_end",),
    # Runs.
    "env_name": ("env",),
    "env_id": ("env",),
    "n_envs": ("num_envs",),
    "n_steps": ("n_step", "update_every"),  # of returns, or of a rollout
    "num_steps": ("update_every",),
    "train_freq": ("update_every",),
    "train_frequency": ("update_every",),
    "timesteps": ("total_timesteps",),
    "num_timesteps": ("total_timesteps",),
    "learning_starts": ("update_after",),
    "frame_skip": ("skip_frames",),
    "action_repeat": ("skip_frames",),
    "norm_obs": ("normalize_obs",),
    "normalize_observations": ("normalize_obs",),
    "norm_reward": ("normalize_reward",),
    "normalize_rewards": ("normalize_reward",),
    "action_noise": ("noise",),
    "n_eval_episodes": ("eval_max_episodes",),
    # Buffers and noises.
    "buffer_size": ("maxlen",),
    "capacity": ("maxlen",),
    "std": ("sigma",),
    "std_dev": ("sigma",),
}
# The nearest field, in another unit or of another meaning, and what it is: for errors only, because
# the number that was meant for the other would do harm here.
HINTS = {
    "num_minibatches": ("batch_size", "the size of one: num_envs * update_every / num_minibatches"),
    "eval_freq": ("eval_every", "in updates, of num_envs * update_every steps each"),
    "eval_frequency": ("eval_every", "in updates, of num_envs * update_every steps each"),
    "training_interval": ("update_every", "in steps of each environment"),
    "target_update_interval": ("target_update_every", "in gradient steps"),
    "target_network_frequency": ("target_update_every", "in gradient steps"),
    "target_update_freq": ("target_update_every", "in gradient steps"),
    "exploration_fraction": ("epsilon_steps", "in environment steps, not a share of the run"),
    "eps_decay": ("epsilon_steps", "in environment steps"),
    "autotune": ("alpha", "None to learn it, a number to keep it"),
    "utd_ratio": ("gradient_steps", "of an update, which follows num_envs * update_every steps"),
    "polyak": ("tau", "which is 1 - polyak"),
    "exploration_noise": ("noise", "such as purerl.GaussianNoise(sigma=0.1)"),
    "clip_range_vf": ("clip_value", "True or False; the range is eps_clip"),
    "policy_kwargs": ("hidden", "units of the layers; besides there are activation and network"),
    "net_arch": ("hidden", "units of the layers, of actor and critic alike"),
    "activation_fn": ("activation", "by name, such as 'relu'"),
}


def field_of(name: str, known: list[str]) -> str:
    """The known field that a name means, directly or as an alias; the name if there is none."""
    if name in known:
        return name
    return next((field for field in ALIASES.get(name, ()) if field in known), name)


def aliases_of(known: list[str]) -> dict[str, str]:
    """Every alias of these fields, mapped to its field."""
    found = {alias: field_of(alias, known) for alias in ALIASES}
    return {alias: field for alias, field in found.items() if field != alias}
