"""The program of `peers.py` for rejax."""

import functools

from peer_worker import Clock, serve

COMMON = {"lr": "learning_rate", "gamma": "gamma", "num_envs": "num_envs"}
PPO = {
    "epochs": "num_epochs",
    "clip": "clip_eps",
    "lam": "gae_lambda",
    "entropy": "ent_coef",
    "value": "vf_coef",
    "max_grad_norm": "max_grad_norm",
    "num_steps": "num_steps",
    "minibatches": "num_minibatches",
}
PQN = {
    "epochs": "num_epochs",
    "lam": "td_lambda",
    "max_grad_norm": "max_grad_norm",
    "num_steps": "num_steps",
    "minibatches": "num_minibatches",
}
REPLAY = {"batch_size": "batch_size", "buffer": "buffer_size", "fill": "fill_buffer"}
# In units of half the range of actions, which rejax doesn't know.
NOISE = {
    "noise": "exploration_noise",
    "target_noise": "target_noise",
    "target_noise_clip": "target_noise_clip",
}
ALGORITHMS = {
    "ppo": "PPO",
    "actor_critic": "PPO",
    "pqn": "PQN",
    "dqn": "DQN",
    "ddpg": "TD3",
    "sac": "SAC",
    "td3": "TD3",
}


def named(case, names):
    return {theirs: case[name] for name, theirs in names.items()}


def settings(case):
    algorithm = case["algorithm"]
    networks = {"activation": {"silu": "swish"}.get(case["activation"], case["activation"])}
    options = {"env": case["env"], "total_timesteps": case["steps"], **named(case, COMMON)}
    if algorithm in ("ppo", "actor_critic"):
        if algorithm == "actor_critic":  # one gradient step on the whole rollout
            case = {**case, "epochs": 1, "minibatches": 1, "clip": 0.2, "value": 0.5}
        options |= named(case, PPO)
        return options | {"agent_kwargs": {**networks, "hidden_layer_sizes": case["hidden"]}}
    if algorithm == "sac":
        options |= named(case, REPLAY) | {"hidden_layer_sizes": case["hidden"]}
        return options | {"polyak": 1.0 - case["tau"], "agent_kwargs": networks}
    if case["hidden"] != [64, 64]:
        raise SystemExit(f"rejax fixes the hidden layers of its {ALGORITHMS[algorithm]}: 64, 64")
    if algorithm in ("pqn", "dqn"):
        options |= {
            "eps_end": case["epsilon_end"],
            "exploration_fraction": case["epsilon_steps"] / case["steps"],
        }
    if algorithm == "pqn":  # its activation is fixed
        return options | named(case, PQN)
    options |= named(case, REPLAY)
    if algorithm == "dqn":
        options |= {
            "ddqn": case["double_q"],
            "target_update_freq": case["target_every"] * case["num_envs"],
            "polyak": 0.0,
        }
        return options | {"agent_kwargs": networks}
    if algorithm == "td3":
        scaled = {x: case["half_range"] * case[name] for name, x in NOISE.items()}
        options |= scaled | {"policy_delay": case["policy_delay"]}
    options |= {"polyak": 1.0 - case["tau"]}
    return options | {"actor_kwargs": networks, "critic_kwargs": dict(networks)}


def load(case):
    clock = Clock()
    import jax
    import rejax
    from rejax.evaluate import evaluate

    costs = {"import": clock()}
    algorithm = getattr(rejax, ALGORITHMS[case["algorithm"]])
    every = case["steps"]
    options = {**settings(case), "skip_initial_evaluation": True}
    agent = algorithm.create(**options, eval_freq=every)
    agent = agent.replace(eval_callback=lambda *_: ())  # none inside the timed run
    costs["config"] = clock()
    members = case["members"]
    one = members == 1

    def keys(seed):
        key = jax.random.PRNGKey(seed)
        return key if one else jax.random.split(key, members)

    lowered = jax.jit(agent.train if one else jax.vmap(agent.train)).lower(keys(0))
    costs["trace"] = clock()
    train = lowered.compile()
    costs["compile"] = clock()
    jax.block_until_ready(train(keys(0)))
    costs["first run"] = clock()
    limit = agent.env_params.max_steps_in_episode

    def episodes(agent, state, key):
        act = agent.make_act(state)
        return evaluate(act, key, agent.env, agent.env_params, case["episodes"], limit)[1].mean()

    plays = functools.partial(episodes, agent)
    play = jax.jit(plays if one else jax.vmap(plays))

    def run(seed):
        state, _ = jax.block_until_ready(train(keys(seed)))
        return lambda: float(play(state, keys(seed + 1000)).mean())

    def target(seed):
        size = case["num_envs"] * case["num_steps"]
        every = -(-case["evaluate_every"] // size) * size
        evaluated = algorithm.create(
            **settings(case), skip_initial_evaluation=True, eval_freq=every
        )
        evaluated = evaluated.replace(eval_callback=episodes)
        _, returns = jax.jit(evaluated.train)(jax.random.PRNGKey(seed))
        for index, reached in enumerate(returns):
            if reached >= case["target"]:
                return (index + 1) * every
        return None

    return costs, run, target


serve(load)
