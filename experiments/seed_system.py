"""A tour of the system: the buffer, `run` with all its arguments, your networks, four agents.

    python experiments/seed_system.py           # about a minute on two CPU cores

Each chapter is a function that prints lines with its name, and returns its results. The budgets are
tiny: enough to see learning, not to compare agents.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import purerl

KEY = jax.random.key(0)  # everything random below follows from it


# Networks: subclass, write `create_network`, and give the class itself to an agent.


class MyActor(purerl.Actor):
    """Logits of discrete actions; the means of continuous ones."""

    @nn.compact
    def create_network(self, obs):  # [B, *obs_shape]
        x = nn.tanh(nn.Dense(32)(obs))
        return nn.Dense(self.action_dim)(x)


class MyDeterministicActor(MyActor):
    """The same network with the action as its output: the policy of DDPG."""

    distribution = None


class MyVCritic(purerl.Critic):
    """V(s)."""

    @nn.compact
    def create_network(self, obs):
        x = nn.tanh(nn.Dense(32)(obs))
        return nn.Dense(1)(x)


class MyQCritic(purerl.Critic):
    """Q(s, a): a Q critic by its parameter `action`, one-hot where that is discrete."""

    @nn.compact
    def create_network(self, obs, action):
        x = jnp.concatenate([obs, action], axis=-1)
        x = nn.relu(nn.Dense(64)(x))
        x = nn.relu(nn.Dense(64)(x))
        return nn.Dense(1)(x)


def train(env, agent, buffer=None, **options):
    """`purerl.run`, compiled: a pure function of the key."""
    env = purerl.make(env)
    run = jax.jit(lambda key: purerl.run(env, agent, buffer, key=key, **options))
    return run(KEY)


def report(name, metrics):
    """Prints the return of the first and of the last episodes; returns both."""
    returns = np.asarray(metrics.episode_return)  # [rows], NaN where no episode ended
    returns = returns[~np.isnan(returns)]
    part = max(1, len(returns) // 10)
    first, last = float(returns[:part].mean()), float(returns[-part:].mean())
    print(f"{name}: return {first:.1f} at first, {last:.1f} at the end")
    return first, last


def chapter_buffer():
    """A buffer is a spec; its contents are a state that its methods take and return."""
    num_envs, num_steps = 4, 3
    buffer = purerl.Buffer(maxlen=32, priority_sampling=True, gamma=0.99, lam=0.95)

    time = jnp.broadcast_to(jnp.arange(num_steps)[:, None], (num_steps, num_envs))
    never = jnp.zeros((num_steps, num_envs), bool)
    steps = purerl.Transition(  # [T, N, ...]: three steps of four environments
        obs=time[..., None].astype(jnp.float32),
        action=jnp.zeros_like(time),
        reward=jnp.ones(time.shape),
        next_obs=time[..., None] + 1.0,
        terminated=never,
        truncated=never,
        episode=jnp.zeros_like(time),
        valid=~never,
        # Extras of the action, for `update`.
        extras={"value": jnp.zeros(time.shape), "log_prob": jnp.zeros(time.shape)},
    )
    example = jax.tree.map(lambda x: x[0], steps)
    rollout = purerl.Buffer(maxlen=num_steps * num_envs, gamma=0.99, lam=0.95)
    full = rollout.push(rollout.init(example, num_envs), steps)
    state = buffer.init(example, num_envs)
    state = buffer.push(state, steps)
    print(f"buffer: {int(state.size)} of {buffer.num_rows(num_envs)} rows written")
    entries = buffer.read(state)
    # Entries that follow from the critic's values are computed on request.
    entries |= rollout.path_entries(full, next_value=jnp.zeros((num_steps, num_envs)))
    for name, entry in entries.items():
        print(f"buffer: entry {name} {entry.shape} {entry.dtype}")

    # Equal priorities at first. After this, transition 5 is drawn almost always.
    error = jnp.where(jnp.arange(num_steps * num_envs) == 5, 1_000.0, 0.001)
    state = buffer.update_priorities(state, jnp.arange(num_steps * num_envs), error)
    batch = buffer.sample(state, KEY, 100, keys=("obs", "reward"))
    share = float(jnp.mean(batch["indices"] == 5))
    print(f"buffer: sampled {sorted(batch)}")
    print(f"buffer: transition 5 is {'most' if share > 0.9 else 'not most'} of a prioritised batch")
    return {"state": state, "entries": entries, "batch": batch, "share": share}


def chapter_run():
    """One loop for every agent, which sets the default of an argument that is left out."""
    state, metrics = train(
        "Pendulum-v1",
        purerl.DDPG(batch_size=64),
        purerl.Buffer(maxlen=2_000, priority_sampling=True),
        num_envs=4,
        total_timesteps=2_000,  # at most; max_episodes comes first
        max_episodes=16,
        max_episode_steps=50,  # a time limit: truncates, doesn't terminate
        update_every=2,  # steps of each environment between updates
        update_after=200,  # steps before anything is learned
        rewarder=purerl.Scale(0.1),  # for learning; episode_return stays unscaled
        noise=purerl.OrnsteinUhlenbeckNoise(noise_decay=0.9),
        action_processor=lambda action: jnp.clip(action, -1.5, 1.5),
        normalize_obs=True,
        skip_frames=2,  # each action twice
        reset_each_episode=False,
        wait_end_path=False,  # rollouts continue where the last one stopped
        eval_every=20,
        eval_max_episodes=4,
        eval_sample=False,
        eval_max_episode_steps=50,
        num_devices=1,  # the environments of one agent can be spread over several
        stop_if_nonfinite=False,  # an update that yields NaN is skipped and counted
        log_every=1,  # updates in each row of metrics
    )
    evaluated = int(np.sum(np.asarray(metrics.eval.num_episodes)))
    print(
        f"run: over after {int(state.num_updates)} updates and {int(state.num_episodes)} episodes"
    )
    print(f"run: {int(state.buffer.size)} rows in the buffer, {evaluated} episodes of evaluation")
    return state, metrics


def chapter_networks():
    """Networks are passed as classes; their outputs are checked before training."""
    agent = purerl.PPO(actor=MyActor, critic=MyVCritic)
    spec = purerl.make("CartPole-v1").spec
    state = agent.init(KEY, spec)
    obs = jnp.zeros((5, 4))
    _, actions, _ = agent.policy(state).step((), obs, None)
    values = agent.value(state, (), obs)
    print(f"networks: actions {actions.shape}, values {values.shape}")
    try:
        purerl.PPO(critic=MyQCritic).init(KEY, spec)
    except purerl.ConfigError as error:
        print(f"networks: {error}")
    return agent, state


def chapter_reinforce():
    """Whole episodes: every rollout is one of each environment, and the buffer starts empty."""
    agent = purerl.REINFORCE(n_episodes=8, episode_length=200, actor=MyActor, lr=1e-2)
    _, metrics = train(
        "CartPole-v1", agent, total_timesteps=64_000, wait_end_path=True, reset_each_episode=True
    )
    return report("REINFORCE", metrics)


def chapter_actor_critic():
    """The same agent with a V critic and with a Q critic, by the parameters of `create_network`."""
    results = {}
    for name, critic in (("V", MyVCritic), ("Q", MyQCritic)):
        agent = purerl.ActorCritic(actor=MyActor, critic=critic, lr=3e-3)
        _, metrics = train("CartPole-v1", agent, total_timesteps=64_000)
        results[name] = report(f"ActorCritic with {name} critic", metrics)
    return results


def chapter_ppo():
    agent = purerl.PPO(actor=MyActor, critic=MyVCritic, K_epochs=4, eps_clip=0.2)
    _, metrics = train("CartPole-v1", agent, total_timesteps=64_000)
    return report("PPO", metrics)


def chapter_ddpg():
    """Off-policy learning from a replay buffer, with exploration noise."""
    agent = purerl.DDPG(actor=MyDeterministicActor, critic=MyQCritic, gamma=0.95, gradient_steps=4)
    noise = purerl.GaussianNoise(sigma=0.2)
    _, metrics = train("Pendulum-v1", agent, total_timesteps=16_000, noise=noise)
    return report("DDPG", metrics)


def main():
    return {
        "buffer": chapter_buffer(),
        "run": chapter_run(),
        "networks": chapter_networks(),
        "reinforce": chapter_reinforce(),
        "actor_critic": chapter_actor_critic(),
        "ppo": chapter_ppo(),
        "ddpg": chapter_ddpg(),
    }


if __name__ == "__main__":
    main()
