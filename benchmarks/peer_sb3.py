"""The programs of `peers.py` for Stable-Baselines3 (PyTorch) and its JAX version sbx."""

from peer_worker import Clock, serve

PPO = {
    "lr": "learning_rate",
    "epochs": "n_epochs",
    "clip": "clip_range",
    "gamma": "gamma",
    "lam": "gae_lambda",
    "entropy": "ent_coef",
    "value": "vf_coef",
    "max_grad_norm": "max_grad_norm",
    "num_steps": "n_steps",
}
REPLAY = {
    "lr": "learning_rate",
    "gamma": "gamma",
    "batch_size": "batch_size",
    "buffer": "buffer_size",
    "fill": "learning_starts",
}


def make(case, library, activation, env, seed):
    networks = {"net_arch": case["hidden"], "activation_fn": activation}
    common = {"policy_kwargs": networks, "seed": seed, "device": "cpu"}
    if case["algorithm"] == "ppo":
        size = case["num_envs"] * case["num_steps"] // case["minibatches"]
        named = {theirs: case[name] for name, theirs in PPO.items()}
        return library.PPO("MlpPolicy", env, batch_size=size, **named, **common)
    named = {theirs: case[name] for name, theirs in REPLAY.items()}
    named |= {"train_freq": 1, "gradient_steps": 1}
    if case["algorithm"] == "dqn":
        named |= {
            "exploration_fraction": min(1.0, case["epsilon_steps"] / case["steps"]),
            "exploration_final_eps": case["epsilon_end"],
            "target_update_interval": case["target_every"] * case["num_envs"],
        }
        return library.DQN("MlpPolicy", env, **named, **common)
    return library.DDPG("MlpPolicy", env, tau=case["tau"], **named, **common)


def load(case):
    clock = Clock()
    import torch
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.evaluation import evaluate_policy

    torch.set_num_threads(case["cores"] or torch.get_num_threads())
    if case["peer"] == "sbx":
        import flax.linen
        import sbx as library

        activation = getattr(flax.linen, case["activation"])
    else:
        import stable_baselines3 as library

        activation = {"tanh": torch.nn.Tanh, "relu": torch.nn.ReLU, "silu": torch.nn.SiLU}
        activation = activation[case["activation"]]
    costs = {"import": clock()}

    def envs(count, seed):
        return make_vec_env(case["env"], n_envs=count, seed=seed)

    def reached(model, seed):
        return float(
            evaluate_policy(
                model,
                envs(8, seed + 1000),
                n_eval_episodes=case["episodes"],
                deterministic=not case["sampled"],
            )[0]
        )

    model = make(case, library, activation, envs(case["num_envs"], 0), 0)
    costs["config"] = clock()
    warm = case.get("fill", 0) + 4 * case["num_envs"] * case["num_steps"]
    model.learn(min(warm, case["steps"]))  # sbx compiles at the first call
    costs["first run"] = clock()

    def run(seed):
        model = make(case, library, activation, envs(case["num_envs"], seed), seed)
        model.learn(case["steps"])
        return lambda: reached(model, seed)

    def target(seed):
        model = make(case, library, activation, envs(case["num_envs"], seed), seed)
        every = case["evaluate_every"]
        for steps in range(every, case["steps"] + 1, every):
            model.learn(every, reset_num_timesteps=False)
            if reached(model, seed) >= case["target"]:
                return steps
        return None

    return costs, run, target


serve(load)
