"""The program of `peers.py` for ajax-rl, whose PPO may have a memory: a GRU in the actor, another
in the critic, trained through whole rollouts, as PureJaxRL's PPO-RNN does."""

from peer_worker import Clock, serve

PPO = {
    "num_envs": "n_envs",
    "num_steps": "n_steps",
    "epochs": "n_epochs",
    "minibatches": "num_minibatches",
    "gamma": "gamma",
    "lam": "gae_lambda",
    "clip": "clip_range",
    "entropy": "ent_coef",
    "value": "vf_coef",
    "max_grad_norm": "max_grad_norm",
}


def agent(case):
    import ajax
    from ajax.networks.memory import MemoryConfig

    layers = tuple(x for size in case["hidden"] for x in (str(size), case["activation"]))
    return ajax.PPO(
        case["env"],
        actor_learning_rate=case["lr"],
        critic_learning_rate=case["lr"],
        actor_architecture=layers,
        critic_architecture=layers,
        memory=MemoryConfig(case["network"], case["memory"]),
        **{theirs: case[name] for name, theirs in PPO.items()},
    )


def load(case):
    clock = Clock()
    import os

    os.environ["AJAX_NO_COMPILE_CACHE"] = "1"  # so that the time to compile is one
    import jax
    from ajax.evaluate import evaluate

    costs = {"import": clock()}
    made = agent(case)
    untimed = made.get_make_train()(
        env_args=made.env_args,
        actor_optimizer_args=made.actor_optimizer_args,
        critic_optimizer_args=made.critic_optimizer_args,
        network_args=made.network_args,
        agent_config=made.agent_config,
        total_timesteps=case["steps"],
        num_episode_test=case["episodes"],
    )
    costs["config"] = clock()
    key = jax.random.PRNGKey(0)
    lowered = jax.jit(lambda key: untimed(key)[0]).lower(key)
    costs["trace"] = clock()
    train = lowered.compile()
    costs["compile"] = clock()
    jax.block_until_ready(train(key))
    costs["first run"] = clock()

    @jax.jit
    def play(actor, key):
        env, params = made.env_args.env, made.env_args.env_params
        return evaluate(env, actor, case["episodes"], key, params, recurrent=True)

    def run(seed):
        state = jax.block_until_ready(train(jax.random.PRNGKey(seed)))
        return lambda: float(play(state.actor_state, jax.random.PRNGKey(seed + 1000))[0])

    return costs, run, None


serve(load)
