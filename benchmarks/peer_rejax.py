"""The program of `peers.py` for rejax."""

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
REPLAY = {"batch_size": "batch_size", "buffer": "buffer_size", "fill": "fill_buffer"}


def settings(case):
    networks = {"activation": {"silu": "swish"}.get(case["activation"], case["activation"])}
    options = {"env": case["env"], "total_timesteps": case["steps"]}
    options |= {theirs: case[name] for name, theirs in COMMON.items()}
    if case["algorithm"] in ("ppo", "actor_critic"):
        if case["algorithm"] == "actor_critic":  # one gradient step on the whole rollout
            case = {**case, "epochs": 1, "minibatches": 1, "clip": 0.2, "value": 0.5}
        options |= {theirs: case[name] for name, theirs in PPO.items()}
        return options | {"agent_kwargs": {**networks, "hidden_layer_sizes": case["hidden"]}}
    if case["hidden"] != [64, 64]:
        raise SystemExit("rejax fixes the hidden layers of its replay algorithms: 64, 64")
    options |= {theirs: case[name] for name, theirs in REPLAY.items()}
    if case["algorithm"] == "dqn":
        options |= {
            "ddqn": case["double_q"],
            "eps_end": case["epsilon_end"],
            "exploration_fraction": case["epsilon_steps"] / case["steps"],
            "target_update_freq": case["target_every"] * case["num_envs"],
            "polyak": 0.0,
        }
        return options | {"agent_kwargs": networks}
    options |= {"polyak": 1.0 - case["tau"]}
    return options | {"actor_kwargs": networks, "critic_kwargs": dict(networks)}


def load(case):
    clock = Clock()
    import jax
    import rejax
    from rejax.evaluate import evaluate

    costs = {"import": clock()}
    algorithms = {"ppo": rejax.PPO, "actor_critic": rejax.PPO, "dqn": rejax.DQN, "ddpg": rejax.TD3}
    algorithm = algorithms[case["algorithm"]]
    every = case["steps"]
    options = {**settings(case), "skip_initial_evaluation": True}
    agent = algorithm.create(**options, eval_freq=every)
    agent = agent.replace(eval_callback=lambda *_: ())  # none inside the timed run
    costs["config"] = clock()
    key = jax.random.PRNGKey(0)
    lowered = jax.jit(agent.train).lower(key)
    costs["trace"] = clock()
    train = lowered.compile()
    costs["compile"] = clock()
    jax.block_until_ready(train(key))
    costs["first run"] = clock()
    limit = agent.env_params.max_steps_in_episode

    def episodes(agent, state, key):
        act = agent.make_act(state)
        return evaluate(act, key, agent.env, agent.env_params, case["episodes"], limit)[1].mean()

    play = jax.jit(lambda state, key: episodes(agent, state, key))

    def run(seed):
        state, _ = jax.block_until_ready(train(jax.random.PRNGKey(seed)))
        return lambda: float(play(state, jax.random.PRNGKey(seed + 1000)))

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
