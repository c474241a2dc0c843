import functools
import tomllib

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from kit.environments import reward_forever, target_env, walk

import purerl
from purerl.training.config import TrainConfig


class ThreeOutputs(purerl.Actor):
    @nn.compact
    def create_network(self, obs):
        return nn.Dense(3)(obs)


class ForgetsTheBatch(purerl.Actor):
    @nn.compact
    def create_network(self, obs):
        return nn.Dense(2)(obs).mean(axis=0)


class TwoValues(purerl.Critic):
    @nn.compact
    def create_network(self, obs):
        return nn.Dense(2)(obs)


class QCritic(purerl.Critic):
    @nn.compact
    def create_network(self, obs, action):
        return nn.Dense(1)(obs)


class Good(purerl.DefaultActor):
    """An actor of one's own."""


class Noisy(purerl.DefaultActor):
    distribution = purerl.Normal


class Still(purerl.DefaultActor):
    distribution = None


class Other(purerl.DefaultActor):
    def create_distribution(self, out, legal):
        return purerl.Normal(out, 1.0 + 0.0 * out)


class OnlyDiscrete(purerl.DefaultActor):
    distribution = purerl.Categorical


def broken_network():
    class Broken(purerl.Actor):
        @nn.compact
        def create_network(self, obs):
            raise RuntimeError("not a shape error")

    return Broken


CART = {"env": "CartPole-v1"}

BAD = [
    # Environments.
    ({}, "TrainConfig.env: missing"),
    ({"env": "CartPole-v2"}, "no environment 'CartPole-v2'; did you mean 'CartPole-v1'"),
    ({"env": "cartpole"}, "did you mean 'CartPole-v1'"),
    ({"env": "Breakout"}, "did you mean 'Breakout-MinAtar'"),
    ({"env": 3}, "env: got 3, expected a name, a purerl.Env"),
    ({"env": None}, "env: got None"),
    ({"env": "MNISTBandit-bsuite"}, "wants to download a data set"),
    # Agents.
    ({**CART, "agent": "pppo"}, "no agent 'pppo'; did you mean 'ppo'"),
    ({**CART, "agent": {"name": "es"}}, "no agent 'es'; known: actor_critic, ddpg"),
    ({**CART, "agent": purerl.PPO}, "expected an agent.*; call it: PPO()"),
    ({**CART, "agent": 3}, "TrainConfig.agent: got 3, expected an agent"),
    ({**CART, "agent": None}, "TrainConfig.agent: got None"),
    # Fields of the config.
    ({**CART, "num_env": 4}, "TrainConfig: no field 'num_env'; did you mean 'num_envs'"),
    ({**CART, "timestep": 4}, "did you mean 'total_timesteps'"),
    ({**CART, "eval_freq": 4}, "here it is 'eval_every', in updates"),
    ({**CART, "lr": 1e-3}, "TrainConfig: no field 'lr'; it is a field of PPO, 'lr'"),
    ({**CART, "num_envs": 0}, "TrainConfig.num_envs: got 0, expected an integer >= 1"),
    ({**CART, "num_envs": 2.5}, "num_envs: got 2.5, expected an integer"),
    ({**CART, "num_envs": "many"}, "num_envs: got 'many', expected an integer"),
    ({**CART, "num_envs": True}, "num_envs: got True, expected an integer"),
    ({**CART, "total_timesteps": -1}, "total_timesteps: got -1"),
    ({**CART, "total_timesteps": float("inf")}, "total_timesteps: got inf"),
    ({**CART, "update_every": 0}, "update_every: got 0, expected an integer >= 1 or None"),
    ({**CART, "normalize_obs": "yes"}, "normalize_obs: got 'yes', expected True or False"),
    ({**CART, "normalize_reward": 1}, "normalize_reward: got 1"),
    ({**CART, "buffer": 4096}, "TrainConfig.buffer: got 4096, expected a purerl.Buffer"),
    ({**CART, "buffer": purerl.Buffer}, "call it: Buffer()"),
    ({**CART, "buffer": purerl.Buffer(maxlen=10)}, "maxlen: got 10, expected 1024"),
    ({**CART, "buffer": {"maxlen": 0}}, "Buffer.maxlen: got 0"),
    ({**CART, "rewarder": 3}, "rewarder: got 3, expected a rewarder"),
    (
        {**CART, "rewarder": purerl.RunningNormalize(), "normalize_reward": True},
        "can't be set together with rewarder",
    ),
    ({**CART, "action_processor": "clip"}, "expected a function of the action"),
    ({**CART, "max_episode_steps": 0}, "max_episode_steps: got 0"),
    ({**CART, "max_episode_steps": 501}, "expected at most 500, the limit that CartPole-v1 keeps"),
    ({**CART, "skip_frames": 0}, "skip_frames: got 0"),
    ({**CART, "eval_every": 0}, "eval_every: got 0"),
    ({**CART, "eval_every": 999}, "eval_every: got 999, expected at most 489"),
    ({**CART, "eval_max_episodes": 0}, "eval_max_episodes: got 0"),
    ({**CART, "eval_max_episode_steps": "all"}, "eval_max_episode_steps: got 'all'"),
]

PENDULUM = {"env": "Pendulum-v1", "agent": "ddpg"}
DQN = {**CART, "agent": "dqn"}


def agent(name, **fields):
    """A mapping whose agent has these fields."""
    env = {"env": "Pendulum-v1"} if name in ("ddpg", "sac", "td3") else CART
    return {**env, "agent": {"name": name, **fields}}


# What came with the off-policy and the episodic agents.
BAD_FIELDS = [
    # The run's.
    (
        {**CART, "total_timesteps": None},
        "total_timesteps: got None, expected an integer, or max",
    ),
    ({**CART, "max_episodes": 0}, "max_episodes: got 0, expected an integer >= 1 or None"),
    ({**CART, "max_episodes": 2.5}, "max_episodes: got 2.5"),
    ({**CART, "update_after": -1}, "update_after: got -1, expected an integer >= 0"),
    ({**CART, "update_after": 10**6}, "update_after: got 1000000, expected less than the run's"),
    ({**DQN, "total_timesteps": 500}, "update_after: got 1000, expected less than the run's 504"),
    ({**CART, "learning_start": 100}, "did you mean 'update_after'"),
    ({**CART, "training_interval": 4}, "here it is 'update_every', in steps of each"),
    ({**CART, "reset_each_episode": 1}, "reset_each_episode: got 1, expected True or False"),
    ({**CART, "wait_end_path": "yes"}, "wait_end_path: got 'yes', expected True or False or None"),
    # Noise.
    ({**PENDULUM, "noise": "gauss"}, "noise: no noise 'gauss'; did you mean 'gaussian'"),
    ({**PENDULUM, "noise": 0.1}, "TrainConfig.noise: got 0.1, expected a noise"),
    ({**PENDULUM, "noise": purerl.GaussianNoise}, "call it: GaussianNoise()"),
    ({**PENDULUM, "noise": {"theta": 0.1}}, "GaussianNoise: no field 'theta'"),
    ({**PENDULUM, "noise": {"name": "gaussian", "sigma": -1}}, "GaussianNoise.sigma: got -1"),
    (
        {**PENDULUM, "noise": {"name": "gaussian", "sgma": 1}},
        "field 'sgma'; did you mean 'sigma'",
    ),
    (
        {**PENDULUM, "noise": {"name": "ornstein_uhlenbeck", "theta": 0.0}},
        "OrnsteinUhlenbeckNoise.theta: got 0.0, expected a float > 0.0",
    ),
    ({**PENDULUM, "noise": {"name": "gaussian", "noise_decay": 1.1}}, "noise_decay: got 1.1"),
    ({**CART, "noise": "gaussian"}, "noise: got .*, expected None: PPO explores by its own"),
    ({**DQN, "noise": "gaussian"}, "noise: got .*, expected None: DQN explores by epsilon_start"),
    # Rewarders.
    ({**CART, "rewarder": "scale"}, "Scale.factor: missing, expected a float"),
    ({**CART, "rewarder": "clamp"}, "no rewarder 'clamp'"),
    (
        {**CART, "rewarder": {"name": "clip", "low": 2.0}},
        "Clip.low: got 2.0, expected at most",
    ),
    ({**CART, "rewarder": {"name": "n_step", "n": 0}}, "NStep.n: got 0, expected an integer >= 1"),
    (
        {**DQN, "rewarder": {"name": "n_step", "n": 5}},
        "NStep.n: got 5, expected at most update_every=1",
    ),
    # The buffer.
    ({**DQN, "buffer": {"maxlen": 1001}}, "maxlen: got 1001, expected a multiple of num_envs=8"),
    ({**DQN, "buffer": {"maxlen": 4}}, "maxlen: got 4, expected at least 8, one rollout"),
    ({**DQN, "buffer": {"alpha": 0.5}}, "Buffer.alpha: is for priority_sampling=True"),
    ({**DQN, "buffer": {"beta": 0.5}}, "Buffer.beta: is for priority_sampling=True"),
    (
        {**DQN, "buffer": {"priority_sampling": True, "alpha": -1.0}},
        "Buffer.alpha: got -1.0, expected a float >= 0.0 or None",
    ),
    ({**DQN, "buffer": {"priority_sampling": True, "beta": 2}}, "Buffer.beta: got 2"),
    ({**DQN, "buffer": {"priority_sampling": "yes"}}, "priority_sampling: got 'yes'"),
    (
        {**DQN, "buffer": {"priority_sample": 1}},
        "did you mean 'priority_sampling'",
    ),
    ({**DQN, "buffer": {"lam": 0.9}}, "Buffer.lam: DQN uses no GAE"),
    ({**DQN, "buffer": {"bufer_size": 10}}, "no field 'bufer_size'; did you mean 'maxlen'"),
    (
        {**CART, "buffer": {"priority_sampling": True}},
        "priority_sampling: got True, expected",
    ),
    # REINFORCE and ActorCritic.
    (agent("reinforce", n_episodes=0), "REINFORCE.n_episodes: got 0"),
    (agent("reinforce", episode_length=0), "REINFORCE.episode_length: got 0"),
    (agent("reinforce", critic=purerl.DefaultCritic), "critic: is the baseline, for baseline=True"),
    (
        agent("reinforce", baseline=True, critic=QCritic),
        "REINFORCE.critic: QCritic is a Q critic",
    ),
    (
        {**agent("reinforce"), "num_envs": 16},
        "num_envs: got 16, expected 8: it is what REINF",
    ),
    ({**agent("reinforce"), "update_every": 64}, "update_every: got 64, expected 500"),
    ({**agent("reinforce"), "wait_end_path": False}, "wait_end_path: got False, expected True"),
    (agent("actor_critic", train_v_iters=0), "ActorCritic.train_v_iters: got 0"),
    (agent("actor_critic", lam=1.5), "ActorCritic.lam: got 1.5"),
    (
        agent("actor_critic", critic=ThreeOutputs),
        "critic: got .*ThreeOutputs.*, expected a",
    ),
    # DDPG and DQN.
    ({**CART, "agent": "ddpg"}, "agent: DDPG is for continuous actions, and CartPole-v1 has Disc"),
    ({**PENDULUM, "agent": "dqn"}, "agent: DQN is for discrete actions, and Pendulum-v1 has Box"),
    (agent("ddpg", tau=1.5), "DDPG.tau: got 1.5, expected a float >= 0.0 and <= 1.0"),
    (agent("ddpg", batch_size=0), "DDPG.batch_size: got 0"),
    (agent("ddpg", actor=Noisy), "Noisy.distribution: got Normal, expected None"),
    (
        agent("ddpg", critic=purerl.DefaultCritic),
        "DDPG.critic: got a V critic, expected",
    ),
    (agent("ddpg", layer_norm=True, critic=purerl.DefaultQCritic), "is for the default critic"),
    (agent("td3", critic=purerl.DefaultCritic), "TD3.critic: got a V critic, expected"),
    (agent("td3", actor=Noisy), "Noisy.distribution: got Normal, expected None: the policy of TD3"),
    (agent("td3", policy_delay=0), "TD3.policy_delay: got 0, expected an integer >= 1"),
    ({**CART, "agent": "td3"}, "agent: TD3 is for continuous actions, and CartPole-v1 has Disc"),
    ({**CART, "agent": "sac"}, "agent: SAC is for continuous actions, and CartPole-v1 has Disc"),
    (agent("sac", critic=purerl.DefaultCritic), "SAC.critic: got a V critic, expected"),
    (agent("sac", actor=Noisy), "Noisy.distribution: got Normal, expected TanhNormal: SAC draws"),
    (agent("sac", actor=Still), "Still.distribution: got None, expected TanhNormal"),
    (agent("sac", actor=Other), "Other.create_distribution: got Normal, expected TanhNormal"),
    (agent("sac", init_alpha=0.0), "SAC.init_alpha: got 0.0, expected a float > 0.0"),
    (agent("sac", alpha=0.1, target_entropy=-1.0), "SAC.target_entropy: is for a learned temp"),
    (agent("sac", alpha="auto"), "SAC.alpha: got 'auto', expected a float >= 0.0 or None"),
    (agent("ddpg", polyak=0.005), "DDPG: no field 'polyak'; here it is 'tau', which is 1 -"),
    (
        agent("dqn", target_fn="quadruple_q"),
        "DQN.target_fn: got 'quadruple_q', expected",
    ),
    (agent("dqn", target_fn="doubleq"), "did you mean 'double_q'"),
    (agent("dqn", critic=purerl.DefaultCritic), "DQN.critic: got a V critic, expected"),
    (agent("dqn", critic=ThreeOutputs), "DQN.critic: got .*ThreeOutputs"),
    (agent("dqn", epsilon_end=1.5), "DQN.epsilon_end: got 1.5"),
    (agent("dqn", epsilon_steps=0), "DQN.epsilon_steps: got 0, expected a float > 0.0 or None"),
    (agent("dqn", target_update_every=0), "target_update_every: got 0"),
    (agent("dqn", target_update_interval=9), "here it is 'target_update_every', in grad"),
    (agent("dqn", exploration_fraction=0.1), "here it is 'epsilon_steps', in environment"),
    (agent("dqn", buffer_size=100), "DQN: no field 'buffer_size'; it is a field of Buffer, 'max"),
    (agent("dqn", num_envs=4), "it is a field of TrainConfig, 'num_envs'"),
    (agent("dqn", n_step=0), "DQN.n_step: got 0"),
    (agent("dqn", actor=Good), "DQN: no field 'actor'"),
]

BAD_AGENT = [
    ({"learning_rat": 1e-3}, "PPO: no field 'learning_rat'; did you mean 'lr'"),
    ({"lr": 1e-3, "learning_rate": 1e-3}, "PPO: 'lr' and 'learning_rate' are the same field"),
    ({"num_minibatches": 4}, "here it is 'batch_size', the size of one"),
    ({"k_epochs": 4}, "did you mean 'K_epochs'"),
    ({"lr": -1.0}, "PPO.lr: got -1.0, expected a float >= 0"),
    ({"lr": "fast"}, "PPO.lr: got 'fast', expected a float"),
    ({"lr": jnp.ones(4)}, r"PPO.lr: got an array of shape \(4,\).*jax.vmap"),
    ({"lr": float("nan")}, "PPO.lr: got nan"),
    ({"gamma": 1.01}, "gamma: got 1.01, expected a float >= 0.0 and <= 1.0"),
    ({"lam": -0.1}, "lam: got -0.1"),
    ({"eps_clip": 0}, "eps_clip: got 0, expected a float > 0"),
    ({"entropy_beta": -1}, "entropy_beta: got -1"),
    ({"max_grad_norm": 0.0}, "max_grad_norm: got 0.0"),
    ({"target_kl": 0.0}, "target_kl: got 0.0, expected a float > 0.0 or None"),
    ({"K_epochs": 0}, "K_epochs: got 0"),
    ({"K_epochs": 1.5}, "K_epochs: got 1.5, expected an integer"),
    ({"anneal": "no"}, "anneal: got 'no', expected True or False"),
    ({"batch_size": 100}, "batch_size: got 100, expected a divisor of 1024"),
    ({"batch_size": 0}, "batch_size: got 0"),
    ({"hidden": 0}, "hidden: got 0, expected a sequence of positive integers"),
    ({"hidden": (64, 0)}, r"hidden: got \(64, 0\)"),
    ({"activation": "tahn"}, "activation: got 'tahn', expected one of .*; did you mean 'tanh'"),
    ({"network": "rnn"}, "network: got 'rnn', expected one of 'auto'"),
    ({"network": "cnn"}, r"network: got 'cnn', but observations have shape \(4,\)"),
    ({"actor": "mlp"}, "actor: got 'mlp', expected a subclass of purerl.Actor"),
    ({"actor": TwoValues}, "expected a subclass of purerl.Actor"),
    ({"critic": TwoValues()}, "pass the class itself, uninstantiated"),
    ({"actor": ThreeOutputs}, r"create_network: got shape \(2, 3\), expected \(2, 2\)"),
    ({"actor": ForgetsTheBatch}, r"create_network: got shape \(2,\), expected \(2, 2\)"),
    ({"critic": TwoValues}, r"PPO.critic: TwoValues is a Q critic, expected .*\[B, 1\]"),
    ({"critic": QCritic}, "PPO.critic: QCritic is a Q critic, expected"),
    (
        {"actor": Good, "critic": purerl.DefaultCritic, "hidden": (3,)},
        "PPO.hidden: is for the default networks",
    ),
]


@pytest.fixture
def no_compilation(monkeypatch):
    """Fails the test if anything is compiled on the way to the message."""

    def compiled(*args, **kwargs):
        pytest.fail("something was compiled before the message")

    for name in ("CartPole-v1", "Pendulum-v1"):
        purerl.make(name)  # gymnax may do as it likes when it is imported
    from jax._src import compiler

    monkeypatch.setattr(compiler, "compile_or_get_cached", compiled)


@pytest.mark.parametrize(("values", "message"), BAD + BAD_FIELDS)
def test_bad_configs(values, message, no_compilation):
    with pytest.raises(purerl.ConfigError, match=message.replace("()", r"\(\)")):
        TrainConfig.from_mapping(values)


@pytest.mark.parametrize(("values", "message"), BAD_AGENT)
def test_bad_agents(values, message, no_compilation):
    with pytest.raises(purerl.ConfigError, match=message):
        TrainConfig(env="CartPole-v1", agent=purerl.PPO(**values))


def test_messages_are_one_line():
    for values, _ in BAD + BAD_FIELDS:
        with pytest.raises(purerl.ConfigError) as caught:
            TrainConfig.from_mapping(values)
        assert "\n" not in str(caught.value)


def test_a_discrete_agent_on_a_continuous_environment(no_compilation):
    with pytest.raises(purerl.ConfigError, match="got Categorical, expected Normal, TanhNormal"):
        TrainConfig(env=target_env(), agent=purerl.PPO(actor=OnlyDiscrete))
    TrainConfig(env=walk(3), agent=purerl.PPO(actor=OnlyDiscrete))


def test_a_users_own_error_is_not_hidden():
    words = r"PPO.init .* RuntimeError in test_config.py, line \d+: not a shape error"
    with pytest.raises(purerl.ConfigError, match=words) as caught:
        TrainConfig(env="CartPole-v1", agent=purerl.PPO(actor=broken_network()))
    assert isinstance(caught.value.__cause__, RuntimeError)  # with its traceback


def test_not_a_mapping():
    with pytest.raises(purerl.ConfigError, match="expected a mapping of its fields"):
        purerl.make_train("CartPole-v1")


def test_good_configs():
    TrainConfig("CartPole-v1", purerl.PPO(actor=functools.partial(Good, hidden=(8,))), 1e5)
    TrainConfig(reward_forever(10), max_episode_steps=10)
    config = TrainConfig("CartPole-v1", total_timesteps=5e5)
    assert config.total_timesteps == 500_000
    assert config.replace(num_envs=4).num_envs == 4
    with pytest.raises(purerl.ConfigError, match="num_envs"):
        config.replace(num_envs=-4)


def test_a_config_goes_to_plain_values_and_back():
    config = TrainConfig(
        env="Pendulum-v1",
        agent=purerl.PPO(lr=1e-4, hidden=(32, 16), target_kl=0.1),
        num_envs=4,
        buffer=purerl.Buffer(gamma=0.5),
        normalize_obs=True,
    )
    plain = config.to_mapping()
    assert plain["env"] == "Pendulum-v1"
    assert plain["agent"]["name"] == "ppo"
    assert plain["agent"]["hidden"] == [32, 16]
    again = TrainConfig.from_mapping(plain)
    assert again.to_mapping() == plain
    assert again.agent == config.agent
    with pytest.raises(purerl.ConfigError, match=r"PPO.actor: .* has no plain form"):
        config.replace(agent=purerl.PPO(actor=Good)).to_mapping()


def test_every_part_goes_to_plain_values_and_back():
    config = TrainConfig(
        env="Pendulum-v1",
        agent=purerl.DDPG(tau=0.02),
        buffer=purerl.Buffer(maxlen=8_000, priority_sampling=True, alpha=0.7),
        noise=purerl.OrnsteinUhlenbeckNoise(theta=0.3),
        rewarder=purerl.Scale(0.1),
        update_after=80,
    )
    plain = config.to_mapping()
    assert plain["noise"]["name"] == "ornstein_uhlenbeck"
    assert plain["rewarder"] == {"name": "scale", "factor": 0.1}
    assert plain["buffer"]["alpha"] == 0.7
    again = TrainConfig.from_mapping(plain)
    assert again.to_mapping() == plain
    assert (again.noise, again.rewarder, again.buffer) == (
        config.noise,
        config.rewarder,
        config.buffer,
    )
    plain = TrainConfig("CartPole-v1", purerl.DQN(target_fn=purerl.q_target)).to_mapping()
    assert plain["agent"]["target_fn"] == "q"
    own = purerl.DQN(target_fn=lambda q, target: target.mean(-1))
    with pytest.raises(purerl.ConfigError, match=r"DQN.target_fn: .* has no plain form"):
        TrainConfig("CartPole-v1", own).to_mapping()


def test_one_number_is_one_hidden_layer():
    for hidden, widths in ((64, [64]), ((), []), ([8, 4], [8, 4])):
        config = TrainConfig.from_mapping({**CART, "agent": {"name": "ppo", "hidden": hidden}})
        init = functools.partial(config.agent.init, spec=config.env.spec)
        state = jax.eval_shape(init, jax.eval_shape(lambda: jax.random.key(0)))
        shapes = [x.shape for x in jax.tree.leaves(state.params["actor"])]
        assert sorted(shape[1] for shape in shapes if len(shape) == 2) == sorted([2, *widths])


def test_a_config_from_toml():
    text = """
        env = "CartPole-v1"
        total_timesteps = 1e5
        [agent]
        lr = 1
        hidden = [32]
    """
    config = TrainConfig.from_mapping(tomllib.loads(text))
    assert config.agent == purerl.PPO(lr=1.0, hidden=(32,))
    assert config.total_timesteps == 100_000


def test_a_config_can_be_made_while_tracing():
    # What jit closes over may be made inside it: nothing is run, nothing leaks.
    def trains(key):
        return purerl.make_train(TrainConfig(env=walk(3), total_timesteps=1024))(key).value(
            jnp.zeros((1, 2))
        )

    assert jax.eval_shape(trains, jax.random.key(0)).shape == (1,)
