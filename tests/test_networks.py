import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kit.environments import walk
from kit.quick import quick_jit
from kit.trees import assert_close

import purerl
from purerl.envs import Box, Discrete, Env, EnvSpec, TimeStep
from purerl.nn import defaults, networks
from purerl.nn.defaults import (
    Conv,
    DefaultActor,
    DefaultCritic,
    DefaultQNetwork,
    Impala,
    Nature,
    Torso,
    _patches,
    _thin_product,
)
from purerl.nn.distributions import Categorical, Normal, TanhNormal
from purerl.nn.networks import Actor, Critic, apply, init_network, pick, q_value, takes_action

OBS = jnp.ones((5, 3))


class Linear(Actor):
    """One layer."""

    @nn.compact
    def create_network(self, obs):
        return nn.Dense(self.action_dim)(obs)


class MeanAndScale(Actor):
    @nn.compact
    def create_network(self, obs):
        return nn.Dense(self.action_dim)(obs), nn.Dense(self.action_dim)(obs)


class Deterministic(Linear):
    distribution = None


class Squashed(Linear):
    distribution = TanhNormal


class SetUp(Actor):
    def setup(self):
        self.layer = nn.Dense(self.action_dim)

    def create_network(self, obs):
        return self.layer(obs)


def outcome(actor, obs=OBS):
    return actor.init_with_output(jax.random.key(1), obs)[0]


@pytest.mark.parametrize("actor", [Linear, SetUp, DefaultActor])
def test_default_distributions(actor):
    discrete = outcome(actor(Discrete(4)))
    assert isinstance(discrete, Categorical)
    assert discrete.logits.shape == (5, 4)
    continuous = outcome(actor(Box(-1.0, 1.0, (2, 3))))
    assert isinstance(continuous, Normal)
    assert continuous.sample(jax.random.key(0)).shape == (5, 2, 3)
    assert continuous.entropy().shape == (5,)


def test_continuous_actors_speak_in_units_of_the_range():
    space = Box([0.0, -np.inf], [4.0, 1.0])
    actor = Linear(space, init_log_std=0.5)
    params = jax.tree.map(jnp.zeros_like, actor.init(jax.random.key(0), OBS))
    params["params"]["log_std"] = jnp.full(2, 0.5)
    d = actor.apply(params, OBS)
    np.testing.assert_allclose(d.loc[0], [2.0, 0.0])  # the middle; 0 where a bound is infinite
    np.testing.assert_allclose(d.scale[0], [2 * np.exp(0.5), np.exp(0.5)], rtol=1e-6)
    assert actor.init(jax.random.key(0), OBS)["params"]["log_std"].tolist() == [0.5, 0.5]


def test_mean_and_scale_from_the_network():
    actor = MeanAndScale(Box(-1.0, 1.0, (2,)))
    params = actor.init(jax.random.key(0), OBS)
    assert "log_std" not in params["params"]
    d = actor.apply(params, jax.random.normal(jax.random.key(1), (5, 3)))
    assert len(np.unique(d.scale)) > 2


@pytest.mark.parametrize("actor", [Deterministic, Squashed])
def test_bounded_actors_stay_inside(actor):
    space = Box([-0.1, 2.0], [0.1, 5.0])
    out = outcome(actor(space), 100 * jax.random.normal(jax.random.key(0), (500, 3)))
    action = out if actor is Deterministic else out.sample(jax.random.key(2))
    assert action.shape == (500, 2)
    assert np.all(action >= space.low)
    assert np.all(action <= space.high)
    assert np.ptp(action[:, 1]) > 2.9


def bad(output, distribution=networks.DEFAULT_DISTRIBUTION):
    class Bad(Actor):
        @nn.compact
        def create_network(self, obs):
            return output(obs)

    return functools.partial(Bad, distribution=distribution)


@pytest.mark.parametrize(
    ("actor", "space", "message"),
    [
        (bad(lambda x: nn.Dense(3)(x)), Discrete(2), r"got shape \(5, 3\), expected \(5, 2\)"),
        (bad(lambda x: nn.Dense(2)(x[0])), Discrete(2), r"got shape \(2,\)"),
        (bad(lambda x: nn.Dense(2)(x)[None]), Box(-1, 1, (2,)), r"got shape \(1, 5, 2\)"),
        (bad(lambda x: "logits"), Discrete(2), "got str"),
        (bad(lambda x: (nn.Dense(2)(x), nn.Dense(2)(x))), Discrete(2), "got a pair"),
        (
            bad(lambda x: (nn.Dense(2)(x), nn.Dense(1)(x))),
            Box(-1, 1, (2,)),
            r"log_std: got shape \(5, 1\)",
        ),
        (bad(lambda x: nn.Dense(2)(x), Categorical), Box(-1, 1, (2,)), "got Categorical, expected"),
        (bad(lambda x: nn.Dense(2)(x), Normal), Discrete(2), "got Normal, expected Categorical"),
        (bad(lambda x: nn.Dense(2)(x), None), Discrete(2), "got None, expected Categorical"),
        (bad(lambda x: nn.Dense(1)(x), TanhNormal), Box(0, np.inf, (1,)), "infinite bounds"),
    ],
)
def test_wrong_actors(actor, space, message):
    with pytest.raises(purerl.ConfigError, match=message):
        outcome(actor(space))


def test_actors_without_a_network():
    with pytest.raises(NotImplementedError, match="Actor has to implement create_network"):
        outcome(Actor(Discrete(2)))
    with pytest.raises(NotImplementedError, match="Critic has to implement create_network"):
        outcome(Critic())


def test_critics():
    class Flat(Critic):
        @nn.compact
        def create_network(self, obs):
            return nn.Dense(1)(obs)[:, 0]

    class Wide(Critic):
        @nn.compact
        def create_network(self, obs):
            return nn.Dense(2)(obs)

    class Q(Critic):
        def create_network(self, obs, action):
            return obs

    assert outcome(Flat()).shape == outcome(DefaultCritic()).shape == (5,)
    with pytest.raises(purerl.ConfigError, match=r"Wide.create_network: got shape \(5, 2\)"):
        outcome(Wide())
    assert takes_action(Q)
    assert not takes_action(Flat)
    assert not takes_action(functools.partial(DefaultCritic, hidden=(8,)))


def test_patches_and_a_dense_layer_are_a_convolution():
    x = jax.random.normal(jax.random.key(0), (2, 11, 9, 4))
    kernel = jax.random.normal(jax.random.key(1), (3, 3, 4, 6))
    for stride in (1, 2, 3):
        ours = _patches(x, 3, stride) @ kernel.reshape(-1, 6)
        theirs = jax.lax.conv_general_dilated(
            x, kernel, (stride, stride), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("shape", "network", "inputs"),
    [
        ((10, 10, 4), "auto", 8 * 8 * 16),
        ((30, 40, 3), "auto", 7 * 10 * 16),  # stride 4
        ((10, 10, 4), "mlp", 400),
        ((10, 5), "auto", 50),
        ((), "auto", 1),
    ],
)
def test_torso_takes_observations_of_any_shape(shape, network, inputs):
    torso = Torso((7,), "relu", network)
    out, params = torso.init_with_output(jax.random.key(0), jnp.ones((2, *shape), jnp.uint8))
    assert out.shape == (2, 7)
    assert any(p.shape == (inputs, 7) for p in jax.tree.leaves(params))


def test_layers_are_normalised_before_the_activation(key):
    """A convolution cell by cell."""
    torso = Torso((6,), "relu", layer_norm=True)
    obs = jax.random.normal(key, (3, 5, 4, 2))
    params = torso.init(key, obs)
    params = jax.tree.map(lambda x: x + jax.random.normal(key, x.shape), params)
    found = torso.apply(params, obs)
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params["params"])

    def layer(x, number):
        dense, norm = p[f"Dense_{number}"], p[f"LayerNorm_{number}"]
        x = x @ dense["kernel"] + dense["bias"]
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
        return np.maximum(x * norm["scale"] + norm["bias"], 0.0)

    windows = np.asarray(_patches(obs, 3, 1), np.float64)
    expected = layer(layer(windows, 0).reshape(3, -1), 1)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("hidden", "layers"), [((5, 4), 2), ((4,), 1), ((), 0)])
def test_a_dueling_network_is_value_plus_centred_advantage(key, hidden, layers):
    critic = DefaultQNetwork(Discrete(3), hidden=hidden, activation="relu", dueling=True)
    params = init_network(critic, key, OBS)
    params = jax.tree.map(lambda x: x + jax.random.normal(key, x.shape), params)
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params["params"])

    def dense(x, layer):
        return x @ layer["kernel"] + layer["bias"]

    x, streams = np.asarray(OBS, np.float64), []
    if layers == 2:
        x = np.maximum(dense(x, p["Torso_0"]["Dense_0"]), 0.0)
    for stream, head in ((1, 0), (2, 1)):
        hidden_layer = p[f"Torso_{stream}"]["Dense_0"] if layers else None
        y = np.maximum(dense(x, hidden_layer), 0.0) if layers else x
        streams.append(dense(y, p[f"Dense_{head}"]))
    value, advantage = streams
    assert value.shape == (5, 1)
    expected = value + advantage - advantage.mean(-1, keepdims=True)
    np.testing.assert_allclose(apply(critic, params, OBS), expected, rtol=1e-4, atol=1e-5)


def test_a_convolution_needs_an_image():
    with pytest.raises(purerl.ConfigError, match=r"shape \(3,\), expected \(height"):
        Torso(network="cnn").init(jax.random.key(0), OBS)


def test_an_image_of_many_channels_is_seen_whole_unless_a_convolution_is_named():
    def first(network, channels):
        image = jnp.ones((2, 5, 4, channels))
        params = jax.eval_shape(Torso((7,), network=network).init, jax.random.key(0), image)
        return params["params"]["Dense_0"]["kernel"].shape

    assert first("auto", 16) == first("cnn", 16) == (9 * 16, 16)
    assert first("auto", 17) == first("mlp", 17) == (5 * 4 * 17, 7)
    assert first("cnn", 17) == (9 * 17, 16)


def test_an_image_below_three_by_three_is_seen_whole():
    out = jax.eval_shape(Torso((7,)).init, jax.random.key(0), jnp.ones((2, 2, 9, 1)))
    assert out["params"]["Dense_0"]["kernel"].shape == (18, 7)
    with pytest.raises(purerl.ConfigError, match=r"network: got 'impala', but .* \(2, 9, 1\)"):
        Torso(network="impala").init(jax.random.key(0), jnp.ones((2, 2, 9, 1)))


def convolved(x, kernel, bias, size, stride, padding):
    """By a plain loop over the outputs, in numpy: XLA's definition of the padding."""
    if padding == "SAME":
        around = []
        for n in x.shape[1:3]:
            total = max((-(-n // stride) - 1) * stride + size - n, 0)
            around.append((total // 2, total - total // 2))
        x = np.pad(x, [(0, 0), *around, (0, 0)])
    height, width = ((n - size) // stride + 1 for n in x.shape[1:3])
    kernel = kernel.reshape(size, size, x.shape[-1], -1)
    out = np.zeros((len(x), height, width, kernel.shape[-1]))
    for i in range(height):
        for j in range(width):
            window = x[:, stride * i : stride * i + size, stride * j : stride * j + size]
            out[:, i, j] = np.einsum("bhwc,hwcf->bf", window, kernel)
    return out + bias


@pytest.mark.parametrize(
    ("size", "stride", "padding"),
    [(3, 1, "SAME"), (3, 2, "SAME"), (4, 2, "VALID"), (3, 1, "VALID")],
)
def test_a_convolution_by_windows_and_by_xla(key, size, stride, padding, monkeypatch):
    x = jax.random.normal(key, (2, 7, 6, 3))
    conv = Conv(5, size, stride, padding)
    params = conv.init(jax.random.key(1), x)
    kernel, bias = params["params"]["kernel"], jnp.arange(5.0)
    assert kernel.shape == (size * size * 3, 5)
    expected = convolved(*(np.asarray(a, float) for a in (x, kernel, bias)), size, stride, padding)
    params = {"params": {"kernel": kernel, "bias": bias}}
    for on_cpu in (True, False):
        monkeypatch.setattr(defaults, "_on_cpu", lambda on_cpu=on_cpu: on_cpu)
        np.testing.assert_allclose(conv.apply(params, x), expected, rtol=1e-4, atol=1e-4)


def pooled(x):
    """The maximum over 3 x 3 with stride 2, padded as above, by a plain loop."""
    sizes = [-(-n // 2) for n in x.shape[1:3]]
    before = [max(2 * (m - 1) + 3 - n, 0) // 2 for n, m in zip(x.shape[1:3], sizes, strict=True)]
    x = np.pad(x, [(0, 0), *((n, 3) for n in before), (0, 0)], constant_values=-np.inf)
    out = np.zeros((len(x), *sizes, x.shape[-1]))
    for i in range(sizes[0]):
        for j in range(sizes[1]):
            out[:, i, j] = x[:, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3].max((1, 2))
    return out


def test_impala_is_what_the_paper_draws(key):
    """Fig. 3, right: 15 convolutions, by plain loops."""
    x = jax.random.normal(key, (2, 6, 5, 2))
    params = quick_jit(Impala().init)(key, x)
    names = sorted(params["params"], key=lambda name: int(name.split("_")[1]))
    layers = [params["params"][name] for name in names]
    assert [p["kernel"].shape[1] for p in layers] == [16] * 5 + [32] * 10
    rest = iter(layers)

    def conv(x):
        p = next(rest)
        arrays = (np.asarray(p[name], float) for name in ("kernel", "bias"))
        return convolved(x, *arrays, 3, 1, "SAME")

    expected = np.asarray(x, float)
    for _ in range(3):
        expected = pooled(conv(expected))
        for _ in range(2):
            inner = conv(np.maximum(expected, 0))
            expected = expected + conv(np.maximum(inner, 0))
    found = quick_jit(Impala().apply)(params, x)
    assert found.shape == (2, 1, 1, 32)
    np.testing.assert_allclose(found, np.maximum(expected, 0), rtol=1e-3, atol=1e-3)


def test_nature_is_what_the_paper_says(key):
    out, params = jax.eval_shape(Nature().init_with_output, key, jnp.ones((2, 84, 84, 4)))
    assert out.shape == (2, 7, 7, 64)
    shapes = [p["kernel"].shape for p in params["params"].values()]
    assert shapes == [(8 * 8 * 4, 32), (4 * 4 * 32, 64), (3 * 3 * 64, 64)]
    x = jax.random.normal(key, (1, 36, 37, 1))
    params = quick_jit(Nature().init)(key, x)
    expected = np.asarray(x, float)
    for p, (size, stride) in zip(params["params"].values(), [(8, 4), (4, 2), (3, 1)], strict=True):
        arrays = (np.asarray(p[name], float) for name in ("kernel", "bias"))
        expected = np.maximum(convolved(expected, *arrays, size, stride, "VALID"), 0)
    np.testing.assert_allclose(Nature().apply(params, x), expected, rtol=1e-3, atol=1e-3)
    with pytest.raises(purerl.ConfigError, match="images are 35 x 84, expected at least 36 x 36"):
        Nature().init(key, jnp.ones((1, 35, 84, 4)))


SCREEN = Env(
    lambda key: (jnp.zeros((4, 64, 40), jnp.bool_), jnp.int32(0)),
    lambda key, time, action: (
        time + 1,
        TimeStep(
            jnp.zeros((4, 64, 40), jnp.bool_),
            jnp.float32(1),
            time >= 3,
            jnp.zeros((), jnp.bool_),
            {},
        ),
    ),
    EnvSpec("screen", Box(0, 1, (4, 64, 40), jnp.bool_), Discrete(2)),
)


@pytest.mark.parametrize("network", ["nature", "impala", "auto"])
@pytest.mark.parametrize(
    "make",
    [purerl.PPO, purerl.DQN, purerl.PQN, purerl.REINFORCE, purerl.ActorCritic],
)
def test_agents_see_images_with_channels_first(make, network):
    config = purerl.TrainConfig(env=SCREEN, agent=make(network=network))
    loop = config.make_loop()
    state = jax.eval_shape(lambda key: loop.agent.init(key, SCREEN.spec), jax.random.key(0))
    shapes = {x.shape for x in jax.tree.leaves(state)}
    first = {"nature": (8 * 8 * 4, 32), "impala": (3 * 3 * 4, 16), "auto": (3 * 3 * 4, 16)}
    assert first[network] in shapes
    width = {"nature": (4 * 1 * 64, 512), "impala": (8 * 5 * 32, 256)}
    assert network == "auto" or width[network] in shapes


def test_torso_takes_pytrees():
    obs = {"image": jnp.ones((2, 10, 10, 1)), "speed": jnp.ones((2, 3))}
    assert Torso((7,)).init_with_output(jax.random.key(0), obs)[0].shape == (2, 7)


@pytest.mark.parametrize("members", [None, 3])
def test_the_last_layers_gradient_is_a_plain_products(key, members):
    x, kernel, dy = (
        jax.random.normal(k, shape)
        for k, shape in zip(jax.random.split(key, 3), [(50, 8), (8, 3), (50, 3)], strict=True)
    )

    def loss(product):
        return lambda x, kernel: jnp.sum(jnp.sin(product(x, kernel)) * dy)

    def both(transform):
        functions = [transform(loss(product)) for product in (_thin_product, jnp.matmul)]
        if members is not None:
            scales = jnp.arange(1.0, 1.0 + members)
            functions = [jax.vmap(lambda s, f=f: f(s * x, kernel / s)) for f in functions]
            return [f(scales) for f in functions]
        return [f(x, kernel) for f in functions]

    def forward(f):
        return lambda x, kernel: jax.jvp(f, (x, kernel), (jnp.cos(x), jnp.cos(kernel)))

    transforms = (lambda f: f, lambda f: jax.grad(f, (0, 1)), forward, lambda f: jax.hessian(f, 1))
    for transform in transforms:
        found, expected = both(transform)
        assert_close(found, expected)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (lambda: nn.BatchNorm(use_running_average=False), '"mean".*collection "batch_stats"'),
        (lambda: nn.SpectralNorm(nn.Dense(3), collection_name="norms"), 'collection "norms"'),
        (lambda: nn.Dropout(0.5, deterministic=False), 'needs PRNG for "dropout".*Dropout'),
    ],
)
def test_networks_that_change_themselves_are_refused(layer, message):
    class Changing(Actor):
        @nn.compact
        def create_network(self, obs):
            made = layer()
            x = made(obs, update_stats=True) if isinstance(made, nn.SpectralNorm) else made(obs)
            return nn.Dense(self.action_dim)(x)

    with pytest.raises(purerl.ConfigError, match=f"Changing: .*{message}"):
        purerl.TrainConfig("CartPole-v1", purerl.PPO(actor=Changing), total_timesteps=1024)


def test_a_network_without_parameters_has_nothing_that_is_trained():
    class Constant(Critic):
        @nn.compact
        def create_network(self, obs):
            return obs[:, 0] * self.variable("constants", "x", lambda: jnp.float32(2.0)).value

    params = init_network(Constant(), jax.random.key(0), OBS)
    part, join = networks.trained({"critic": params, "actor": {"params": {"w": OBS}}})
    assert [x.shape for x in jax.tree.leaves(part)] == [OBS.shape]
    joined = join([2 * OBS])
    assert joined["critic"] == params
    np.testing.assert_array_equal(joined["actor"]["params"]["w"], 2 * OBS)
    np.testing.assert_array_equal(apply(Constant(), params, OBS), 2.0 * OBS[:, 0])


class MaskedQ(Critic):
    """Action 1 can't be taken: it is worth minus infinity."""

    @nn.compact
    def create_network(self, obs):
        values = nn.Dense(self.action_dim)(obs)
        return jnp.where(jnp.arange(self.action_dim) == 1, -jnp.inf, values)


class MaskedActor(Actor):
    @nn.compact
    def create_network(self, obs):
        logits = nn.Dense(self.action_dim)(obs)
        return jnp.where(jnp.arange(self.action_dim) == 1, -jnp.inf, logits)


def test_values_of_minus_infinity_are_not_multiplied():
    values = jnp.array([[1.0, -jnp.inf], [2.0, jnp.nan]])
    action = jnp.zeros(2, jnp.int32)
    np.testing.assert_array_equal(pick(values, action), [1.0, 2.0])
    np.testing.assert_array_equal(jax.grad(lambda v: pick(v, action).sum())(values), [[1, 0]] * 2)
    target = purerl.double_q_target(jnp.array([[0.0, -jnp.inf]]), values[:1])
    np.testing.assert_array_equal(target, [1.0])
    critic = MaskedQ(Discrete(2))
    params = init_network(critic, jax.random.key(0), OBS)
    grads = jax.grad(lambda p: q_value(critic, p, OBS, jnp.zeros(5, jnp.int32)).sum())(params)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(grads))


@pytest.mark.parametrize(
    "agent",
    [
        purerl.ActorCritic(actor=MaskedActor, critic=MaskedQ, n_episodes=4),
        purerl.DQN(critic=MaskedQ, batch_size=8, n_step=1, epsilon_start=0.0, epsilon_end=0.0),
    ],
    ids=["ActorCritic", "DQN"],
)
def test_agents_learn_with_actions_that_cannot_be_taken(agent):
    options = {"update_after": 0, "buffer": purerl.Buffer(64)} if "DQN" in str(agent) else {}
    config = purerl.TrainConfig(walk(5, limit=3), agent, total_timesteps=64 * 2, **options)
    train = purerl.make_train(config)
    out = quick_jit(train)(jax.random.key(0))
    assert int(out.state.nonfinite_updates) == 0
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(out.metrics.losses))
    assert np.all(out.policy.act(jnp.ones((3, 2))) == 0)
