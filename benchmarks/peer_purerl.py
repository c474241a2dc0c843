"""The program of `peers.py` for purerl."""

from peer_worker import Clock, serve

PPO = {
    "lr": "lr",
    "epochs": "K_epochs",
    "clip": "eps_clip",
    "gamma": "gamma",
    "lam": "lam",
    "entropy": "entropy_beta",
    "value": "value_coef",
    "max_grad_norm": "max_grad_norm",
}
DQN = {
    "lr": "lr",
    "gamma": "gamma",
    "batch_size": "batch_size",
    "epsilon_end": "epsilon_end",
    "epsilon_steps": "epsilon_steps",
    "target_every": "target_update_every",
}
PQN = {
    "lr": "lr",
    "epochs": "K_epochs",
    "gamma": "gamma",
    "lam": "lam",
    "epsilon_end": "epsilon_end",
    "epsilon_steps": "epsilon_steps",
    "max_grad_norm": "max_grad_norm",
}
REPLAY = {"lr": "lr", "gamma": "gamma", "tau": "tau", "batch_size": "batch_size"}
TD3 = {
    "target_noise": "target_noise",
    "target_noise_clip": "target_noise_clip",
    "policy_delay": "policy_delay",
}


def agent(purerl, case):
    """The case's agent, without features that the peers lack."""
    size = case["num_envs"] * case["num_steps"]
    networks = {"hidden": tuple(case["hidden"]), "activation": case["activation"]}
    networks |= {"network": case.get("network", "mlp")}
    networks |= {"memory": case["memory"]} if "memory" in case else {}

    def named(names):
        return {ours: case[name] for name, ours in names.items()} | networks

    if case["algorithm"] in ("ppo", "pqn"):
        make, names = {"ppo": (purerl.PPO, PPO), "pqn": (purerl.PQN, PQN)}[case["algorithm"]]
        return make(batch_size=size // case["minibatches"], anneal=False, **named(names))
    if case["algorithm"] == "actor_critic":
        return purerl.ActorCritic(
            n_episodes=case["num_envs"],
            episode_length=case["num_steps"],
            lr=case["lr"],
            gamma=case["gamma"],
            train_v_iters=1,
            anneal=False,
            **networks,
        )
    if case["algorithm"] == "dqn":
        target = purerl.double_q_target if case["double_q"] else purerl.q_target
        return purerl.DQN(n_step=1, anneal=False, target_fn=target, **named(DQN))
    once = {"gradient_steps": 1}
    if case["algorithm"] == "ddpg":
        return purerl.DDPG(**once, **named(REPLAY))
    if case["algorithm"] == "sac":
        return purerl.SAC(**once, **named(REPLAY))
    return purerl.TD3(**once, **named(REPLAY | TD3))


def load(case):
    clock = Clock()
    if case["devices"] > 1:
        import os

        count = f"--xla_force_host_platform_device_count={case['devices']}"
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {count}"
    import jax
    import jax.numpy as jnp

    import purerl
    from purerl.training.episodes import play_episodes

    costs = {"import": clock()}
    options = {
        "env": case["env"],
        "agent": agent(purerl, case),
        "num_envs": case["num_envs"],
        "update_every": case["num_steps"],
        "total_timesteps": case["steps"],
        "num_devices": case["devices"],
    }
    if "buffer" in case:
        options |= {"buffer": purerl.Buffer(maxlen=case["buffer"]), "update_after": case["fill"]}
    if "noise" in case:
        options |= {"noise": purerl.GaussianNoise(sigma=case["noise"])}
    config = purerl.TrainConfig(**options)
    costs["config"] = clock()
    members = case["members"]
    if members == 1:
        key = jax.random.key(0)
        train = jax.jit(purerl.make_train(config), compiler_options=purerl.compiler_options())
        lowered = train.lower(key)
        costs["trace"] = clock()
        train = lowered.compile()
        costs["compile"] = clock()
        jax.block_until_ready(train(key))
    else:
        purerl.fit(config, seeds=members)
    costs["first run"] = clock()

    env, episodes = config.env, case["episodes"]

    @jax.jit
    def play(state, key):
        acting = config.agent.policy(state, sample=case["sampled"])
        limit = env.spec.max_episode_steps
        return jnp.mean(play_episodes(purerl.vectorize(env), acting, key, episodes, limit)[0])

    def run(seed):
        if members == 1:
            out = jax.block_until_ready(train(jax.random.key(seed)))
            return lambda: float(play(out.state.agent, jax.random.key(seed)))
        out = purerl.fit(config, seeds=range(members * seed, members * (seed + 1)))
        plays = jax.vmap(play, (0, None))
        return lambda: float(plays(out.state.agent, jax.random.key(seed)).mean())

    def target(seed):
        size = case["num_envs"] * case["num_steps"]
        evaluated = config.replace(
            eval_every=-(-case["evaluate_every"] // size),
            eval_max_episodes=episodes,
        )
        out = jax.jit(purerl.make_train(evaluated))(jax.random.key(seed))
        for index, reached in enumerate(out.metrics.eval.episode_return):
            if reached >= case["target"]:
                return int(out.timesteps[index])
        return None

    return costs, run, target


serve(load)
