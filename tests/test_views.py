"""What networks see of observations, and what follows for policies outside of training."""

import functools

import flax.linen as nn
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from kit.environments import ALL, SIZES, category, doors, hidden_goal, locks, walk
from kit.policies import make_policy, observations
from kit.quick import mostly_slow, quick_jit
from kit.trees import assert_equal

import purerl
from purerl import Box, Discrete, EnvSpec
from purerl.nn.defaults import DefaultActor, DefaultActorCritic, DefaultCritic
from purerl.nn.distributions import Categorical, Normal
from purerl.nn.memory import PolicyAndValue
from purerl.nn.networks import (
    Actor,
    ActorCriticNetwork,
    Critic,
    apply,
    check_parameters,
    init_network,
    is_q_critic,
    takes_action,
)
from purerl.nn.views import View, filled, reads, without_unread


def first_layer(spec, sees=None, network=DefaultCritic):
    """Shapes of the kernels of a default network's first layers."""
    made = network(spec.action_space, view=View.of(spec, sees), hidden=(7,))
    obs = observations(spec.observation_space, 2)
    params = jax.eval_shape(lambda: init_network(made, jax.random.key(0), obs))["params"]
    return sorted(x.shape for x in jax.tree.leaves(params["Torso_0"]) if x.ndim == 2)


@pytest.mark.parametrize(
    ("env", "sees", "shapes"),
    [
        (doors(), None, [(5, 7)]),  # the mask is no feature
        (doors(), "shown", [(5, 7)]),
        (doors(), "mask", [(5, 7)]),  # unless there is nothing else
        (doors(), lambda obs: obs["mask"], [(5, 7)]),
        (doors(), lambda obs: {"x": obs["shown"][:2], "y": obs["mask"]}, [(2, 7)]),
        (locks(), None, [(9, 7)]),  # here the mask is made of it
        (category(6), None, [(6, 7)]),  # one-hot
        (category(6), lambda obs: obs, [(6, 7)]),
        (category(6), lambda obs: obs + 1, [(1, 7)]),  # a number as any other
        (hidden_goal(), "privileged", [(1, 7)]),
        (hidden_goal(), ("room", "wheel"), [(4, 7)]),
        (hidden_goal(), lambda obs: obs["wheel"][0], [(1, 7)]),
        (hidden_goal(), "camera", [(9, 16), (64, 7)]),
        (hidden_goal(), None, [(9, 16), (64 + 1 + 2 + 2, 7)]),
    ],
)
def test_what_default_networks_see(env, sees, shapes):
    for network in (DefaultCritic, DefaultActor, DefaultActorCritic):
        assert first_layer(env.spec, sees, network) == shapes


def test_features_are_the_numbers_themselves():
    spec = hidden_goal().spec
    obs = observations(spec.observation_space, 3)
    camera, privileged, room, *wheel = View.of(spec).features(obs)
    np.testing.assert_array_equal(room, np.eye(2)[np.asarray(obs["room"])])
    np.testing.assert_array_equal(privileged, obs["privileged"])
    np.testing.assert_array_equal(camera, obs["camera"])
    assert [x.shape for x in wheel] == [(3, 1), (3,)]
    # A picture of bytes goes into the convolution between 0 and 1.
    critic = DefaultCritic(spec.action_space, view=View.of(spec, "camera"))
    params = init_network(critic, jax.random.key(0), obs)
    plain = DefaultCritic(spec.action_space)
    expected = apply(plain, params, jnp.asarray(obs["camera"], jnp.float32) / 255)
    np.testing.assert_allclose(apply(critic, params, obs), expected, rtol=1e-5)


def test_a_function_takes_one_observation():
    spec = EnvSpec("x", Box(0.0, 1.0, (4,)), Discrete(2), legal=lambda obs: obs[2:] > 0.5)
    view = View.of(spec, lambda obs: obs[:2])
    obs = jax.random.uniform(jax.random.key(0), (5, 4))
    np.testing.assert_array_equal(view.seen(obs), obs[:, :2])
    np.testing.assert_array_equal(view.mask(obs), obs[:, 2:] > 0.5)
    assert View.of(walk().spec).mask(obs) is None
    assert view == View.of(spec, view.sees)
    assert hash(view) == hash(View.of(spec, view.sees))
    assert View.of(hidden_goal().spec) != view
    hash(View.of(hidden_goal().spec))


PRIVILEGED = purerl.PPO(
    lr=3e-3, hidden=(16,), actor_obs=("room", "wheel"), critic_obs=["privileged", "room"]
)


@pytest.mark.parametrize(
    ("agent", "env", "message"),
    [
        (purerl.PPO(actor_obs="rom"), hidden_goal(), "PPO.actor_obs: got 'rom'.* 'room'"),
        (purerl.PPO(critic_obs=("room", "x")), hidden_goal(), "PPO.critic_obs: got 'x', expected"),
        (purerl.PPO(actor_obs="x"), walk(), "observations of walk are no dict, expected a func"),
        (purerl.PPO(actor_obs=lambda o: o["x"]), walk(), "actor_obs: <lambda> can't take one"),
    ],
)
def test_wrong_parts(agent, env, message):
    with pytest.raises(purerl.ConfigError, match=message):
        purerl.TrainConfig(env, agent)


@pytest.mark.parametrize("value", [3, (), ("x", 2), ["x", None]])
def test_what_is_no_part(value):
    with pytest.raises(purerl.ConfigError, match=r"PPO.actor_obs: .*expected a key of the obs"):
        purerl.PPO(actor_obs=value)
    with pytest.raises(purerl.ConfigError, match=r"DQN.actor_obs: .*expected critic_obs"):
        purerl.DQN(actor_obs="x")


def test_parts_go_into_files_and_out():
    purerl.register("hidden-goal", hidden_goal)
    config = purerl.TrainConfig("hidden-goal", PRIVILEGED)
    agent = config.to_mapping()["agent"]
    assert agent["actor_obs"] == ["room", "wheel"]
    assert purerl.PPO(actor_obs=agent["actor_obs"]).actor_obs == ("room", "wheel")


@pytest.fixture(scope="module")
def learned():
    """A policy that doesn't see what its critic saw."""
    config = purerl.TrainConfig(
        hidden_goal(), PRIVILEGED, 8_192, num_envs=16, update_every=32, normalize_obs=True
    )
    return quick_jit(purerl.make_train(config))(jax.random.key(0))


def test_ppo_learns_with_a_privileged_critic(learned):
    assert np.nanmean(learned.metrics.episode_return[-3:]) > 4.0
    kernels = jax.tree.map(jnp.shape, learned.state.agent.params)
    assert kernels["actor"]["params"]["Torso_0"]["Dense_0"]["kernel"] == (4, 16)
    assert kernels["critic"]["params"]["Torso_0"]["Dense_0"]["kernel"] == (3, 16)


def test_a_policy_asks_for_the_actors_part(learned, tmp_path):
    policy, space = learned.policy, hidden_goal().spec.observation_space
    assert policy.asks == {"room": space["room"], "wheel": space["wheel"]}
    whole = observations(space, 5)
    part = {"room": whole["room"], "wheel": whole["wheel"]}
    expected = policy(whole)
    np.testing.assert_array_equal(policy(part), expected)
    ones = [jax.tree.map(lambda x, i=i: np.asarray(x[i]), part) for i in range(5)]
    assert [policy.step(one) for one in ones] == expected.tolist()
    with pytest.raises(purerl.ConfigError, match=r"obs: no 'wheel', expected 'room', 'wheel'"):
        policy.step({"room": 1})
    with pytest.raises(purerl.ConfigError, match=r"obs: no 'wheel'.*did you mean 'weel'"):
        policy.step({"room": 1, "weel": 2})
    purerl.save_policy(policy, tmp_path / "policy")
    loaded = purerl.load_policy(tmp_path / "policy")
    assert loaded.agent.actor_obs == ("room", "wheel")
    np.testing.assert_array_equal(loaded(part), expected)
    purerl.export_policy(policy, tmp_path / "policy.hlo", platforms=["cpu"])
    packed = bytearray((tmp_path / "policy.hlo").read_bytes())
    np.testing.assert_array_equal(jax.export.deserialize(packed).call(part), expected)


def test_entries_that_nobody_reads():
    space = {
        "a": Box(0, 1, (2,)),
        "b": {"c": Discrete(3), "d": Discrete(2)},
        "e": (Discrete(2),) * 2,
    }

    def function(obs):
        return obs["b"]["c"] + obs["e"][1]

    read = reads(function, space)
    assert read == [False, True, False, False, True]
    asked = without_unread(space, read, lambda x: isinstance(x, purerl.envs.Space))
    assert asked == {"b": {"c": Discrete(3)}, "e": space["e"]}
    out = filled(space, asked, {"b": {"c": 1}, "e": (0, 1), "z": 3}, (4,))
    assert out["a"].shape == (4, 2)
    assert out["b"]["d"].shape == (4,)
    assert {**out, "a": 0, "b": 0} == {"a": 0, "b": 0, "e": (0, 1), "z": 3}


@pytest.mark.filterwarnings("ignore:.*symmetric and normalized")
@pytest.mark.filterwarnings("ignore:.*infinity. This is probably too")
@pytest.mark.parametrize("make", mostly_slow(ALL, (doors, locks, hidden_goal)))
def test_environments_with_everything_in_gymnasium_and_in_files(make, tmp_path):
    env = make()
    theirs, vector = purerl.to_gymnasium(env), purerl.to_gymnasium(env, 3)
    check_env(theirs)
    obs, info = theirs.reset(seed=1)
    many, infos = vector.reset(seed=1)
    for _ in range(3):
        legal = env.spec.legal_actions(jax.tree.map(jnp.asarray, obs))
        assert ("action_mask" in info) == (legal is not None) == ("_action_mask" in infos)
        if legal is not None:
            flat = np.concatenate(jax.tree.leaves(info["action_mask"]))
            assert flat.dtype == np.int8
            np.testing.assert_array_equal(flat, legal)
            first = [x[0] for x in jax.tree.leaves(infos["action_mask"])]
            np.testing.assert_array_equal(np.concatenate(first), legal)
        action = theirs.action_space.sample(info.get("action_mask"))
        obs, *_, info = theirs.step(action)
        many, *_, infos = vector.step(np.stack([action] * 3))
        jax.tree.map(lambda x, y: np.testing.assert_array_equal(x[0], y), many, obs)
    policy = make_policy(purerl.PPO(hidden=(4,)), env, normalize_obs=make is not locks)
    returns, _ = purerl.evaluate_in_gymnasium(policy, theirs, 2)
    assert returns.min() > -7.0  # nothing illegal was done
    purerl.save_policy(policy, tmp_path / "policy")
    if make is locks:
        for other in (None, walk(), doors()):
            with pytest.raises(purerl.RunError, match=r"locks.*lambda.*load_policy\(path, env="):
                purerl.load_policy(tmp_path / "policy", env=other)
        loaded = purerl.load_policy(tmp_path / "policy", env=env)
    else:
        loaded = purerl.load_policy(tmp_path / "policy", env=env)
    seen = observations(env.spec.observation_space, 16)
    np.testing.assert_array_equal(loaded(seen), policy(seen))


def test_a_policy_finds_the_mask_in_gymnasiums_info():
    """Where the environment has it there, and not in its observations."""
    env = purerl.to_gymnasium(doors())
    policy = make_policy(purerl.PPO(hidden=(4,)), doors())

    class Bare:
        action_space = env.action_space

        def reset(self, seed=None):
            obs, info = env.reset(seed=seed)
            return obs["shown"], info

        def step(self, action):
            obs, *rest = env.step(action)
            return obs["shown"], *rest

    found = purerl.evaluate_in_gymnasium(policy, Bare(), 3)
    np.testing.assert_array_equal(found, purerl.evaluate_in_gymnasium(policy, env, 3))
    with pytest.raises(purerl.ConfigError, match=r"its actions are MultiDiscrete.*expected"):
        purerl.evaluate_in_gymnasium(policy, purerl.to_gymnasium(locks()))


class Training(Critic):
    """A V critic: it has another parameter, which isn't called action."""

    @nn.compact
    def create_network(self, obs, train=False):
        return nn.Dense(1 + train)(obs)


class ByKeyword(Critic):
    @nn.compact
    def create_network(self, obs, *, action, scale=1.0):
        return scale * nn.Dense(1)(jnp.concatenate([obs, action], axis=-1))


def test_the_kind_of_a_critic_follows_from_the_name_of_a_parameter():
    obs = jnp.ones((5, 3))
    assert takes_action(ByKeyword)
    assert is_q_critic(ByKeyword(Discrete(2)), obs)
    for critic in (Training, functools.partial(Training)):
        assert not takes_action(critic)
        check_parameters(critic)
    assert not is_q_critic(Training(Discrete(2)), obs)
    purerl.TrainConfig(walk(), purerl.PPO(critic=Training))
    purerl.TrainConfig(walk(), purerl.DQN(critic=ByKeyword))
    with pytest.raises(purerl.ConfigError, match="is a Q critic"):
        purerl.TrainConfig(walk(), purerl.PPO(critic=ByKeyword))


@pytest.mark.parametrize(
    ("base", "function", "names"),
    [
        (
            Critic,
            lambda self, obs, a: obs,
            r"\(self, obs, a\).*or create_network\(self, obs, action",
        ),
        (Critic, lambda self, action, obs: obs, r"\(self, action, obs\)"),
        (Critic, lambda self: 0, r"\(self\)"),
        (
            Actor,
            lambda self, obs, action: obs,
            r"\(self, obs, action\), expected create_network\(s",
        ),
        (Actor, lambda self, obs, *, mode: obs, r"\(self, obs, mode\)"),
    ],
)
def test_parameters_that_nobody_gives(base, function, names):
    network = type("Net", (base,), {"create_network": function})
    field = "critic" if base is Critic else "actor"
    with pytest.raises(purerl.ConfigError, match=f"Net.create_network: got the parameters {names}"):
        purerl.TrainConfig(walk(), purerl.PPO(**{field: network}))


class Cautious(Actor):
    """A distribution of its own: the logits are halved."""

    @nn.compact
    def create_network(self, obs):
        return {"logits": nn.Dense(self.action_dim)(obs["shown"])}

    def create_distribution(self, out, legal):
        return Categorical(purerl.where_legal(out["logits"] / 2, legal))


class Scaled(Actor):
    """Another one, with a parameter."""

    @nn.compact
    def create_network(self, obs):
        return nn.Dense(self.action_dim)(obs)

    @nn.compact
    def create_distribution(self, out, legal):
        return Normal(
            out, jnp.exp(self.param("scale", nn.initializers.zeros, out.shape[-1:])) + 0 * out
        )


def test_a_distribution_of_a_users_own():
    spec = doors().spec
    actor = Cautious(spec.action_space, view=View.of(spec))
    obs = observations(spec.observation_space, 6)
    params = init_network(actor, jax.random.key(0), obs)
    logits = apply(actor, params, obs).logits
    dense = params["params"]["Dense_0"]
    expected = (obs["shown"] @ dense["kernel"] + dense["bias"]) / 2
    legal = np.asarray(obs["mask"])
    np.testing.assert_allclose(np.asarray(logits)[legal], np.asarray(expected)[legal], rtol=1e-5)
    assert np.all(np.asarray(logits)[~legal] == -np.inf)
    config = purerl.TrainConfig(doors(), purerl.PPO(actor=Cautious), num_envs=4, update_every=8)
    jax.eval_shape(purerl.make_train(config), jax.random.key(0))
    box = Scaled(Box(-1.0, 1.0, (2,)))
    params = init_network(box, jax.random.key(0), jnp.ones((3, 4)))
    assert params["params"]["scale"].shape == (2,)
    assert apply(box, params, jnp.ones((3, 4))).log_prob(jnp.zeros((3, 2))).shape == (3,)


class Shared(ActorCriticNetwork):
    @nn.compact
    def create_network(self, obs):
        x = nn.tanh(nn.Dense(4)(obs))
        return nn.Dense(self.action_dim)(x), nn.Dense(1)(x)


class SharedPair(ActorCriticNetwork):
    @nn.compact
    def create_network(self, obs):
        x = nn.tanh(nn.Dense(4)(obs))
        return (nn.Dense(self.action_dim)(x), nn.Dense(self.action_dim)(x)), nn.Dense(1)(x)[:, 0]


@pytest.mark.parametrize(
    ("network", "space"),
    [
        (Shared, Discrete(3)),
        (Shared, purerl.MultiDiscrete(SIZES)),
        (Shared, Box(-1.0, 1.0, (2,))),
        (SharedPair, Box(-1.0, 1.0, (2,))),
        (DefaultActorCritic, Discrete(3)),
    ],
)
def test_one_network_for_policy_and_value(network, space):
    obs = jax.random.normal(jax.random.key(1), (5, 3))
    both = network(space)
    params = {"actor": init_network(both, jax.random.key(0), obs), "critic": {}}

    def outputs(params):
        return PolicyAndValue(both).step(params, (), obs)[1]

    distribution, value = outputs(params)
    alone = apply(both, params["actor"], obs)
    assert_equal(distribution, alone)
    assert value.shape == (5,)
    assert value.dtype == jnp.float32
    # A gradient of the value reaches what the policy has in common with it.
    slopes = jax.grad(lambda p: outputs(p)[1].sum())(params)["actor"]["params"]
    moved = {name for name, x in slopes.items() if any(map(np.any, jax.tree.leaves(x)))}
    assert len(moved) == 2
    assert moved < set(slopes)


def test_two_networks_for_policy_and_value():
    obs = jnp.ones((5, 3))
    actor, critic = DefaultActor(Discrete(2)), DefaultCritic(Discrete(2))
    params = {
        "actor": init_network(actor, jax.random.key(0), obs),
        "critic": init_network(critic, jax.random.key(1), obs),
    }
    _, (distribution, value) = PolicyAndValue(actor, critic).step(params, (), obs)
    np.testing.assert_array_equal(value, apply(critic, params["critic"], obs))
    np.testing.assert_array_equal(distribution.logits, apply(actor, params["actor"], obs).logits)


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (lambda x: nn.Dense(2)(x), r"got shape \(5, 2\), expected a pair"),
        (lambda x: (nn.Dense(3)(x), nn.Dense(1)(x)), r"got shape \(5, 3\), expected \(5, 2\)"),
        (lambda x: (nn.Dense(2)(x), nn.Dense(2)(x)), r"got shape \(5, 2\), expected \(5,\) or"),
    ],
)
def test_wrong_shared_networks(output, message):
    class Wrong(ActorCriticNetwork):
        @nn.compact
        def create_network(self, obs):
            return output(obs)

    with pytest.raises(purerl.ConfigError, match=f"Wrong.create_network: {message}"):
        Wrong(Discrete(2)).init(jax.random.key(0), jnp.ones((5, 3)))


def test_agents_that_cannot_share_say_so():
    for agent in (purerl.DDPG, purerl.REINFORCE, purerl.SAC, purerl.TD3):
        with pytest.raises(purerl.ConfigError, match=r"actor: got an ActorCriticNetwork, expected"):
            agent(actor=Shared)


def test_ppo_takes_one_network_for_both(tmp_path):
    agent = purerl.PPO(lr=0.01, actor=DefaultActorCritic)
    config = purerl.TrainConfig(
        category(), agent, num_envs=8, update_every=16, total_timesteps=4096
    )
    out = quick_jit(purerl.make_train(config))(jax.random.key(0))
    assert np.nanmean(out.metrics.episode_return[-3:]) > 6.0
    assert float(out.metrics.losses["explained_variance"][-1]) != 0.0
    obs = jnp.arange(6)
    assert out.policy.value(obs).shape == (6,)
    purerl.save_policy(out.policy, tmp_path / "policy")
    loaded = purerl.load_policy(tmp_path / "policy")
    np.testing.assert_array_equal(loaded(obs), out.policy(obs))
    for options, message in (
        ({"critic": DefaultCritic}, "PPO.critic: the actor is an ActorCriticNetwork"),
        ({"critic_obs": "x"}, "PPO.critic_obs: the actor is an ActorCriticNetwork"),
        ({"hidden": (3,)}, "PPO.hidden: is for the default networks, but actor is given"),
    ):
        with pytest.raises(purerl.ConfigError, match=message):
            purerl.PPO(actor=Shared, **options)
