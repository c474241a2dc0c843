"""Values known in closed form, learned by whole agents: a Markov decision process, a time limit."""

import jax
import jax.numpy as jnp
import numpy as np

import purerl
from purerl.nn.networks import q_values

from .environments import reward_forever
from .networks import LinearQ, LinearQs, LinearV
from .quick import quick_jit
from .trials import Trial

GAMMA = 0.9
MOST_ERROR = 0.05  # relative, of what is learned

# 4 states, 2 actions, P[s, a, s'], the mean reward R[s, a], and the probability END[s, a] that the
# step terminates.
P = np.random.default_rng(5).dirichlet(np.ones(4), size=(4, 2))
R = np.array([[1.0, 0.2], [0.5, 2.0], [0.1, 0.3], [3.0, 1.5]])
END = np.array([[0.0, 0.1], [0.3, 0.5], [0.0, 0.05], [0.6, 0.0]])
STATES = jnp.eye(4)
PQN_STEPS = 16


def mdp() -> purerl.Env:
    """The Markov decision process, its state one-hot."""

    def reset(key):
        state = jax.random.randint(key, (), 0, 4)
        return jax.nn.one_hot(state, 4), state

    def step(key, state, action):
        move, end = jax.random.split(key)
        reward = jnp.asarray(R, jnp.float32)[state, action]
        terminated = jax.random.uniform(end) < jnp.asarray(END)[state, action]
        state = jax.random.categorical(move, jnp.log(jnp.asarray(P))[state, action])
        obs = jax.nn.one_hot(state, 4)
        return state, purerl.TimeStep(obs, reward, terminated, jnp.zeros((), bool), {})

    spec = purerl.EnvSpec("mdp", purerl.Box(0.0, 1.0, (4,)), purerl.Discrete(2))
    return purerl.Env(reset, step, spec)


def optimal_q() -> np.ndarray:
    """`[4, 2]`, Q of the best policy, by value iteration."""
    q = np.zeros((4, 2))
    for _ in range(1_000):
        q = R + GAMMA * (1 - END) * (P @ q.max(-1))
    return q


def uniform_v() -> np.ndarray:
    """`[4]`, V of random actions: V = r + gamma M V, solved for V."""
    moves = ((1 - END)[..., None] * P).mean(1)
    return np.linalg.solve(np.eye(4) - GAMMA * moves, R.mean(1))


def uniform_q() -> np.ndarray:
    """`[4, 2]`, Q of random actions."""
    return R + GAMMA * (1 - END) * (P @ uniform_v())


def pengs_q(lam: float, num_steps: int = PQN_STEPS) -> np.ndarray:
    """`[4, 2]`, the fixed point of Peng's Q(lambda) under random actions: the expected lambda
    return of a step, averaged over the steps of a rollout."""
    q = np.zeros((4, 2))
    for _ in range(1_000):
        targets, later = [], q.max(-1)
        for _ in range(num_steps):  # from the last step on, whose return is of one step
            targets.append(R + GAMMA * (1 - END) * (P @ later))
            later = (1 - lam) * q.max(-1) + lam * targets[-1].mean(-1)
        q = np.mean(targets, axis=0)
    return q


class Uniform(purerl.Actor):
    def create_network(self, obs):
        return jnp.zeros((obs.shape[0], self.action_dim))


def _relative(found, expected: np.ndarray) -> np.ndarray:
    """`[S]`, each seed's largest relative error, of `[S, *expected.shape]`."""
    error = np.abs(np.asarray(found) / expected - 1.0)
    return error.reshape(len(error), -1).max(1)


def dqn_from_random_actions(keys: jax.Array) -> np.ndarray:
    """`[S, 2]`: the largest relative error of Q, and how many states have a wrong best action, of
    those whose actions' values differ by more than the error that passes."""
    agent = purerl.DQN(
        lr=0.05,
        gamma=GAMMA,
        critic=LinearQs,
        n_step=1,
        max_grad_norm=1e9,
        epsilon_start=1.0,
        epsilon_end=1.0,
        target_update_every=50,
        batch_size=128,
    )

    def found(key):
        state, _ = purerl.run(
            mdp(),
            agent,
            purerl.Buffer(maxlen=128_000),
            key=key,
            num_envs=64,
            total_timesteps=128_000,
        )
        _, best, _ = agent.policy(state.agent).step((), STATES, None)
        return q_values(state.agent.critic, state.agent.params, STATES), best

    values, best = quick_jit(jax.vmap(found))(keys)
    q = optimal_q()
    apart = q.max(-1) - q.min(-1) > MOST_ERROR * q.max(-1)
    wrong = ((np.asarray(best) != q.argmax(-1)) & apart).sum(1)
    return np.stack([_relative(values, optimal_q()), wrong], axis=1)


def pqn_from_random_actions(lam: float, keys: jax.Array) -> np.ndarray:
    """`[S]`, the largest relative error of Q."""
    agent = purerl.PQN(
        lr=0.05,
        gamma=GAMMA,
        lam=lam,
        critic=LinearQs,
        K_epochs=1,
        batch_size=1024,
        epsilon_start=1.0,
        epsilon_end=1.0,
    )
    options = {"num_envs": 64, "update_every": PQN_STEPS, "total_timesteps": 512_000}

    def found(key):
        state, _ = purerl.run(mdp(), agent, key=key, **options)
        return q_values(state.agent.critic, state.agent.params, STATES)

    return _relative(quick_jit(jax.vmap(found))(keys), pengs_q(lam))


def actor_critic_of_random_actions(critic, keys: jax.Array) -> np.ndarray:
    """`[S]`, the largest relative error of V, and of Q where the critic has one."""
    agent = purerl.ActorCritic(
        n_episodes=64,
        actor=Uniform,
        critic=critic,
        lr=0.0,
        critic_lr=0.02,
        gamma=GAMMA,
        train_v_iters=4,
        max_grad_norm=1e9,
    )

    def found(key):
        state, _ = purerl.run(mdp(), agent, key=key, total_timesteps=512_000)
        values = agent.value(state.agent, (), STATES)
        if critic is LinearV:
            return values, ()
        return values, q_values(state.agent.critic, state.agent.critic_params, STATES)

    values, q = quick_jit(jax.vmap(found))(keys)
    error = _relative(values, uniform_v())
    return error if critic is LinearV else np.maximum(error, _relative(q, uniform_q()))


def time_limit(deadly: bool, keys: jax.Array) -> np.ndarray:
    """`[S]`, V of reward 1 forever, cut or ended after 10 steps."""
    agent = purerl.PPO(lr=1e-2, gamma=GAMMA, clip_value=False)
    env = reward_forever(10, deadly=deadly)
    config = purerl.TrainConfig(env, agent, 20_000, num_envs=4, update_every=25)

    def value(key):
        return purerl.make_train(config)(key).value(jnp.ones((1, 1)))[0]

    return np.asarray(quick_jit(jax.vmap(value))(keys))


VALUES = {
    "DQN, optimal values of an MDP": Trial(
        dqn_from_random_actions,
        lambda figures: bool(np.all(figures[:, 0] < MOST_ERROR) and np.all(figures[:, 1] == 0)),
        num_seeds=1,
    ),
    "PQN, values of an MDP by Peng's Q(lambda)": Trial(
        lambda keys: pqn_from_random_actions(0.5, keys),
        lambda error: bool(np.all(error < MOST_ERROR)),
        num_seeds=1,
    ),
    "ActorCritic, V of random actions": Trial(
        lambda keys: actor_critic_of_random_actions(LinearV, keys),
        lambda error: bool(np.all(error < MOST_ERROR)),
        num_seeds=1,
    ),
    "ActorCritic, Q of random actions": Trial(
        lambda keys: actor_critic_of_random_actions(LinearQ, keys),
        lambda error: bool(np.all(error < MOST_ERROR)),
        num_seeds=1,
    ),
    # Worth 10 where a time limit cuts the episode, and at most 6.5 where it ends.
    "PPO, a time limit is not death": Trial(
        lambda keys: time_limit(False, keys),
        lambda values: bool(np.all(np.abs(values - 10.0) < 0.2)),
        num_seeds=3,
    ),
    "PPO, a death is one": Trial(
        lambda keys: time_limit(True, keys),
        lambda values: bool(np.all(values < 6.5)),
        num_seeds=3,
    ),
}
