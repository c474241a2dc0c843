"""Spaces, and distributions and Q values under masks, against plain numpy."""

import itertools
import json

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from kit.agents import Tiny
from kit.environments import SIZES, dials, doors, locks, target_env, walk
from kit.quick import quick_jit

import purerl
from purerl import Box, Discrete, MultiDiscrete, where_legal
from purerl.deploy.plain_space import count_elements, space_from_plain, space_to_plain
from purerl.envs.spaces import convert_spaces
from purerl.nn.defaults import DefaultActor, DefaultQCritic, DefaultQNetwork
from purerl.nn.distributions import Categorical, MultiCategorical
from purerl.nn.networks import apply, init_critic, init_network, q_values, uniform_action
from purerl.nn.views import View
from purerl.training.describe import describe

CHOICES = [Discrete(5), Discrete(1), MultiDiscrete((3, 4, 2)), MultiDiscrete([[2, 3], [4, 2]])]
SPACES = [
    *CHOICES,
    MultiDiscrete((3, 3)),
    Box(-2, 3, (2, 2)),
    Box(-np.inf, 1.0, (3,)),
    Box([0.0, 1.0], [2.0, 1.0]),
    Box(0, 255, (2, 1), jnp.uint8),
]


@pytest.mark.parametrize("space", SPACES, ids=repr)
def test_a_space_comes_back_from_wherever_it_goes(space):
    plain = json.loads(json.dumps(space_to_plain(space, "x")))
    assert space_from_plain(plain) == space
    assert count_elements(plain) == max(1, np.prod(space.shape))
    theirs = space.as_gymnasium(gymnasium.spaces)
    assert convert_spaces(theirs) == space
    assert hash(convert_spaces(theirs)) == hash(space)
    drawn = np.asarray(space.sample(jax.random.key(0)))
    assert space.contains(drawn)
    assert theirs.contains(drawn) or isinstance(space, Discrete)
    assert space.contains(np.asarray(convert_spaces(theirs).sample(jax.random.key(1))))
    for other in SPACES:
        assert (space == other) == (space is other)
    assert space.example(2, 3).shape == (2, 3, *space.shape)
    assert space.example().dtype == space.dtype


@pytest.mark.parametrize("space", SPACES, ids=repr)
def test_elements_as_numbers(space):
    x = np.stack([space.sample(key) for key in jax.random.split(jax.random.key(0), 6)])
    found = space.encode(jnp.asarray(x))
    assert found.dtype == jnp.float32
    expected = []
    for element in x:
        row = []
        for i, number in enumerate(element.reshape(-1)):
            if space.sizes is not None:
                row += [float(choice == number) for choice in range(space.sizes[i])]
            else:
                low, high = space.low.reshape(-1)[i], space.high.reshape(-1)[i]
                finite = np.isfinite([low, high])
                low, high = low if finite[0] else -1.0, high if finite[1] else 1.0
                half = (high - low) / 2
                row.append((number - (low + high) / 2) / half if half else 0.0)
        expected.append(row)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)
    assert found.shape == (6, space.num_outputs)
    clipped = space.clip(jnp.asarray(x))
    assert clipped.dtype == space.dtype
    np.testing.assert_array_equal(clipped, x)


def one_hot_by_hand(space, element):
    """Channels last, each number in place of its code, by a plain loop."""
    shape = space.shape
    first = len(shape) == 3 and 4 * shape[0] <= min(shape[1:])
    arrays = [np.asarray(x, int) for x in (element, space.low, space.high)]
    if first:
        arrays = [np.moveaxis(x, 0, -1) for x in arrays]
    if len(shape) in (0, 2):
        arrays = [x[..., None] for x in arrays]
    element, low, high = arrays
    rows = []
    for cell in element.reshape(-1, element.shape[-1]):
        row = []
        for c, number in enumerate(cell):
            least, most = low[..., c].min(), high[..., c].max()
            row += [float(number == code) for code in range(least, most + 1)]
        rows.append(row)
    return np.array(rows).reshape(*element.shape[:-1], -1)


BY_CHANNEL = np.broadcast_to([10, 5, 3], (4, 5, 3))
CODES = [
    Box(0, 10, (4, 5, 3), np.uint8),  # tile, colour, state
    Box(0, BY_CHANNEL, (4, 5, 3), np.uint8),
    Box(-1, 5, (3, 12, 13), np.int8),  # channels first
    Box(0, 11, (4, 4), int),  # a board
    Box([-1, 0, 3], [1, 63, 3], (3,), int),
    Box(0, 8, (), int),
]


@pytest.mark.parametrize(
    ("choices", "shape"),
    [
        (MultiDiscrete(np.full((4, 5, 3), [11, 6, 4])), (4, 5, 21)),
        (MultiDiscrete([[2, 3], [4, 2]]), (2, 2, 4)),  # a board, each cell as the largest
        (MultiDiscrete([3, 4, 2]), (9,)),
        (MultiDiscrete([3, 100]), (103,)),  # a code too many, but choices all the same
    ],
    ids=repr,
)
def test_several_choices_are_seen_as_codes(choices, shape):
    """By the rule of a Box with the same bounds."""
    box = Box(choices.low, choices.high, choices.shape, np.int32)
    x = np.stack([choices.sample(key) for key in jax.random.split(jax.random.key(0), 6)])
    found = choices.features(jnp.asarray(x))
    assert found.shape == (6, *shape)
    expected = choices.encode(jnp.asarray(x)) if box.codes is None else box.features(jnp.asarray(x))
    np.testing.assert_array_equal(found, expected)
    assert np.all(np.unique(found) == [0.0, 1.0])


@pytest.mark.parametrize("space", CODES, ids=repr)
def test_codes_are_one_hot(space):
    x = np.stack([space.sample(key) for key in jax.random.split(jax.random.key(0), 6)])
    found = space.features(jnp.asarray(x))
    np.testing.assert_array_equal(found, [one_hot_by_hand(space, element) for element in x])
    assert found.dtype == jnp.float32
    np.testing.assert_array_equal(found.sum(-1), len(space.codes[0]))


@pytest.mark.parametrize(
    "space",
    [
        Box(0, 255, (8, 8, 3), np.uint8),  # pixels
        Box(0, 64, (3,), int),  # 65 values: a quantity
        Box(-np.inf, np.inf, (3,), int),
        Box(0, 5, (3,)),
        Box(0, 1, (10, 10, 4), bool),
        Box(0, 3, (0,), int),
    ],
    ids=repr,
)
def test_what_is_no_code_is_unchanged(space):
    x = np.stack([space.sample(key) for key in jax.random.split(jax.random.key(0), 3)])
    np.testing.assert_array_equal(space.features(jnp.asarray(x)), x)
    floats = jnp.asarray(x, jnp.float32)  # as the statistics of observations leave no code
    np.testing.assert_array_equal(space.features(floats), floats)


@pytest.mark.parametrize(
    ("shape", "first"),
    [
        ((4, 64, 32), True),
        ((3, 84, 84), True),
        ((12, 84, 84), True),
        ((10, 10, 4), False),
        ((30, 40, 3), False),
        ((8, 8, 119), False),
        ((4, 3, 194), False),
        ((4, 64), False),
    ],
)
def test_where_the_channels_are(shape, first):
    space = Box(0.0, 1.0, shape)
    assert space.channels_first == first
    x = jax.random.uniform(jax.random.key(0), (2, *shape))
    np.testing.assert_array_equal(space.features(x), np.moveaxis(x, 1, -1) if first else x)


def test_clipping():
    space = Box([0.0, -1.0], [2.0, np.inf])
    out = space.clip(jnp.array([[[3.0, -7.0], [1.0, 1e9]]]))
    np.testing.assert_array_equal(out, [[[2.0, -1.0], [1.0, 1e9]]])


@pytest.mark.parametrize(
    ("space", "expected"),
    [
        (Box(0, 3, (1,), np.int32), [0, 0, 1, 2, 3, 3]),
        (Box(0.5, 2.5, (1,), np.uint8), [1, 1, 1, 2, 2, 2]),
        (Box(0, 1, (1,), np.bool_), [False, False, True, True, True, True]),
    ],
)
def test_integers_are_the_nearest(space, expected):
    """All of them are reached by an actor whose numbers end just inside the bounds."""
    out = space.clip(jnp.array([-1.0, 0.4, 0.6, 2.4, 2.6, 9.0])[:, None])
    assert out.dtype == space.dtype
    np.testing.assert_array_equal(out[:, 0], expected)
    assert all(space.contains(x) for x in out)


@pytest.mark.parametrize(
    ("nvec", "message"),
    [
        (3, "got 3, expected a sequence of integers"),
        ((), "expected a sequence"),
        ([[2], [3, 4]], "expected a sequence"),
        ((2, 0), "nvec: got 0, expected an integer >= 1"),
        ((2, 2.5), "nvec: got 2.5"),
        ((2, True), "nvec: got True"),
        ("ab", "expected"),
    ],
)
def test_wrong_numbers_of_choices(nvec, message):
    with pytest.raises(purerl.ConfigError, match=f"MultiDiscrete.*{message}"):
        MultiDiscrete(nvec)


def test_foreign_choices_start_at_zero():
    spaces = gymnasium.spaces
    for theirs in (spaces.Discrete(3, start=1), spaces.MultiDiscrete([3, 2], start=[0, 1])):
        with pytest.raises(purerl.ConfigError, match="that starts at 0"):
            convert_spaces(theirs)
    assert convert_spaces(spaces.MultiBinary((2, 3))) == MultiDiscrete(np.full((2, 3), 2))


def rows(space):
    """Masks, `[4, num_outputs]`: some legal, one of each choice, none, all but of the first choice
    none."""
    rng = np.random.default_rng(3)
    starts = np.cumsum([0, *space.sizes])
    some, one = rng.random(space.num_outputs) < 0.5, np.zeros(space.num_outputs, bool)
    for start, end in itertools.pairwise(starts):
        one[rng.integers(start, end)] = True
    return np.stack([some | one, one, np.zeros_like(one), np.arange(len(one)) >= space.sizes[0]])


def probabilities(logits, legal, sizes):
    """For each choice of one action its options' probabilities, in double precision."""
    starts, found = np.cumsum([0, *sizes]), []
    for start, end in itertools.pairwise(starts):
        x, mask = np.asarray(logits[start:end], np.float64), legal[start:end]
        x = np.where(mask, x, -np.inf) if mask.any() else x
        e = np.exp(x - x.max())
        found.append(e / e.sum())
    return found


def fits(counts, p):
    """Whether counts are plausible under probabilities."""
    return len(p) == 1 or scipy.stats.chisquare(counts, counts.sum() * p).pvalue > 1e-4


def distribution(space, logits, legal):
    logits = where_legal(logits, None if legal is None else jnp.asarray(legal), space.sizes)
    if space.n is not None:
        return Categorical(logits)
    return MultiCategorical(logits, space.sizes, space.shape)


@pytest.mark.parametrize("space", CHOICES, ids=repr)
@pytest.mark.parametrize("masked", [False, True])
def test_distributions_of_choices_against_numpy(space, masked):
    logits = 2.0 * jax.random.normal(jax.random.key(1), (4, space.num_outputs))
    legal = rows(space) if masked else None
    d = distribution(space, logits, legal)
    all_legal = np.ones((4, space.num_outputs), bool)
    reference = [
        probabilities(x, mask, space.sizes)
        for x, mask in zip(logits, all_legal if legal is None else legal, strict=True)
    ]
    # Every action there is.
    actions = np.array(list(itertools.product(*map(range, space.sizes))), np.int32)
    shaped = actions.reshape(-1, 1, *space.shape)
    log_probs = jax.vmap(lambda a: d.log_prob(jnp.broadcast_to(a, (4, *space.shape))))(shaped)
    for row, parts in enumerate(reference):
        expected = np.array(
            [np.prod([p[i] for p, i in zip(parts, a, strict=True)]) for a in actions]
        )
        np.testing.assert_allclose(np.exp(log_probs[:, row]), expected, rtol=1e-4, atol=1e-6)
        assert np.all(np.isfinite(log_probs[:, row]) == (expected > 0))
        entropy = sum(scipy.stats.entropy(p) for p in parts)
        assert float(d.entropy()[row]) == pytest.approx(entropy, abs=1e-5)
        mode = np.reshape([p.argmax() for p in parts], space.shape)
        np.testing.assert_array_equal(d.mode()[row], mode)
    keys = jax.random.split(jax.random.key(2), 3_000)
    drawn, drawn_log_probs = map(np.asarray, jax.vmap(d.sample_and_log_prob)(keys))
    assert drawn.dtype == np.int32
    assert drawn.shape == (3_000, 4, *space.shape)
    assert np.isfinite(drawn_log_probs).all()  # nothing illegal among them
    for row, parts in enumerate(reference):
        for i, p in enumerate(parts):
            counts = np.bincount(drawn[:, row].reshape(3_000, -1)[:, i], minlength=len(p))
            assert not counts[p == 0].any()
            assert fits(counts[p > 0], p[p > 0])


@pytest.mark.parametrize("space", CHOICES, ids=repr)
@pytest.mark.parametrize("scale", [1.0, 1e30])
def test_gradients_under_masks(space, scale):
    """Of the log probability in closed form, the choice minus the probabilities; finite, and 0 for
    what is illegal, however large the logits."""
    legal = rows(space)
    logits = scale * jax.random.normal(jax.random.key(1), (4, space.num_outputs))
    action = distribution(space, logits, legal).mode()

    def log_prob(logits):
        return distribution(space, logits, legal).log_prob(action).sum()

    def entropy(logits):
        return distribution(space, logits, legal).entropy().sum()

    found, entropy_slopes = (quick_jit(jax.grad(f))(logits) for f in (log_prob, entropy))
    assert np.isfinite(entropy_slopes).all()
    for row in range(4):
        parts = probabilities(logits[row], legal[row], space.sizes)
        chosen = np.asarray(action[row]).reshape(-1)
        expected = [np.eye(len(p))[i] - p for p, i in zip(parts, chosen, strict=True)]
        np.testing.assert_allclose(found[row], np.concatenate(expected), atol=1e-5)
        gone = np.concatenate(parts) == 0
        assert not entropy_slopes[row][gone & ~legal[row]].any()


def test_what_is_illegal_may_be_anything():
    """Infinite and NaN logits and values, of which nothing comes through."""
    legal = jnp.array([[True, False, False]])
    for bad in (jnp.inf, -jnp.inf, jnp.nan):
        logits = jnp.array([[2.0, bad, bad]])
        d = Categorical(where_legal(logits, legal))
        assert float(d.entropy()[0]) == 0.0
        assert d.mode().tolist() == [0]
        slopes = jax.grad(lambda x: Categorical(where_legal(x, legal)).entropy().sum())(logits)
        np.testing.assert_array_equal(slopes, [[0.0, 0.0, 0.0]])


@pytest.mark.parametrize("space", CHOICES, ids=repr)
def test_a_space_draws_what_is_legal_evenly(space):
    keys = jax.random.split(jax.random.key(0), 3_000)
    for mask in rows(space):
        drawn = np.asarray(jax.vmap(lambda key, m=mask: space.sample(key, jnp.asarray(m)))(keys))
        assert drawn.dtype == np.int32
        assert drawn.shape == (3_000, *space.shape)
        even = probabilities(np.zeros(space.num_outputs), mask, space.sizes)
        for i, p in enumerate(even):
            counts = np.bincount(drawn.reshape(3_000, -1)[:, i], minlength=len(p))
            assert not counts[p == 0].any()
            assert fits(counts[p > 0], p[p > 0])


def test_actors_give_what_the_space_needs():
    obs = jnp.ones((5, 3))
    for space, kind, shape in (
        (Discrete(4), Categorical, (5, 4)),
        (MultiDiscrete(SIZES), MultiCategorical, (5, 9)),
        (MultiDiscrete([[2, 3], [4, 2]]), MultiCategorical, (5, 11)),
    ):
        d = DefaultActor(space).init_with_output(jax.random.key(0), obs)[0]
        assert type(d) is kind
        assert d.logits.shape == shape
        assert d.sample(jax.random.key(1)).shape == (5, *space.shape)
    with pytest.raises(purerl.ConfigError, match="got Categorical, expected MultiCategorical"):
        DefaultActor(MultiDiscrete(SIZES), Categorical).init(jax.random.key(0), obs)
    critic = DefaultQCritic(MultiDiscrete(SIZES))
    params = init_critic(critic, jax.random.key(0), obs)
    assert params["params"]["Torso_0"]["Dense_0"]["kernel"].shape == (9 + 3, 64)
    assert apply(critic, params, obs, jnp.zeros((5, 3), jnp.int32)).shape == (5,)


@pytest.mark.parametrize("kind", [DefaultQNetwork, DefaultQCritic])
def test_q_values_of_illegal_actions(kind):
    env = doors()
    critic = kind(env.spec.action_space, view=View.of(env.spec))
    shown = jax.random.normal(jax.random.key(0), (3, 5))
    mask = jnp.array([[1, 0, 1, 0, 0], [0, 0, 0, 0, 1], [0, 0, 0, 0, 0]], bool)
    params = init_critic(critic, jax.random.key(1), {"mask": mask, "shown": shown})
    values = q_values(critic, params, {"mask": mask, "shown": shown})
    free = q_values(critic, params, {"mask": jnp.ones_like(mask), "shown": shown})
    expected = np.where(np.asarray(mask) | ~np.asarray(mask).any(1, keepdims=True), free, -np.inf)
    np.testing.assert_array_equal(values, expected)
    assert jnp.isfinite(jnp.max(values, axis=-1)).all()


def test_a_random_number_names_a_legal_action():
    env = doors()
    critic = DefaultQNetwork(env.spec.action_space, view=View.of(env.spec))
    masks = np.random.default_rng(0).random((40, 5)) < 0.4
    uniform = np.linspace(0.0, 1.0, 40, dtype=np.float32)
    obs = {"mask": jnp.asarray(masks), "shown": jnp.zeros((40, 5))}
    found = uniform_action(critic, obs, jnp.asarray(uniform))
    for row, mask, u in zip(np.asarray(found), masks, uniform, strict=True):
        legal = np.flatnonzero(mask) if mask.any() else np.arange(5)
        assert row == legal[min(int(u * len(legal)), len(legal) - 1)]


def test_actors_with_a_mask_give_no_other_action():
    env = locks()
    actor = DefaultActor(env.spec.action_space, view=View.of(env.spec))
    obs = jax.vmap(env.reset)(jax.random.split(jax.random.key(0), 50))[0]
    params = init_network(actor, jax.random.key(1), obs)
    d = apply(actor, params, obs)
    actions = np.asarray(jax.vmap(d.sample)(jax.random.split(jax.random.key(2), 50)))
    for action in (*actions, np.asarray(d.mode())):
        for part, start in enumerate((0, 3, 5)):
            assert np.all(np.asarray(obs)[np.arange(50), start + action[:, part]] > 0.5)


@pytest.mark.parametrize("make", [doors, locks, dials])
def test_environments_of_the_kit_keep_the_contract(make):
    purerl.check_env(make())


@pytest.mark.parametrize(
    ("legal", "message"),
    [
        ("masks", "spec.legal is 'masks', expected a key of the observations"),
        (3, "spec.legal is 3, expected a function"),
        (lambda obs: obs["mask"][:2], r"the mask has shape \(2,\).*expected \(5,\)"),
        (lambda obs: obs["musk"], "can't be traced"),
        (lambda obs: obs["mask"] & False, "leaves no action legal"),
    ],
)
def test_check_env_finds_wrong_masks(legal, message):
    env = doors()
    with pytest.raises(purerl.ConfigError, match=message):
        purerl.check_env(env._replace(spec=env.spec._replace(legal=legal)))


def test_a_run_is_known_by_its_mask_too():
    spec = doors().spec
    others = [
        doors()._replace(spec=spec._replace(legal=x)) for x in ("mask", None, lambda obs: obs)
    ]
    assert len({json.dumps(describe(env)) for env in others}) == 3
    assert describe(doors()) == describe(others[0])


def test_masks_are_for_choices():
    env = target_env()
    with pytest.raises(purerl.ConfigError, match=r"spec\.legal is for discrete actions"):
        purerl.TrainConfig(env._replace(spec=env.spec._replace(legal=lambda obs: obs > 0)))
    env = walk()
    masked = env._replace(spec=env.spec._replace(legal=lambda obs: obs[:1] > 0))
    assert purerl.TrainConfig(env).env.spec.legal is None
    with pytest.raises(purerl.ConfigError, match=r"expected \(2,\)"):  # though walk was checked
        purerl.TrainConfig(masked)


def test_check_env_plays_legal_actions_only():
    """An environment that breaks where it is given another."""
    env = doors()

    def step(key, state, action):
        legal = state.legal[action]
        state, timestep = env.step(key, state, action)
        reward = jnp.where(legal, timestep.reward, jnp.nan)
        return state, timestep._replace(reward=reward)

    purerl.check_env(env._replace(step=step))
    with pytest.raises(purerl.ConfigError, match="a reward is not finite"):
        purerl.check_env(env._replace(step=step, spec=env.spec._replace(legal=None)))


SMALL = {"num_envs": 4, "update_every": 16}
PATHS = {"n_episodes": 4, "episode_length": 8, "hidden": (8,)}
AGENTS = {
    "PPO": (purerl.PPO(hidden=(8,)), SMALL),
    "REINFORCE": (purerl.REINFORCE(baseline=True, **PATHS), {}),
    "ActorCritic, V": (purerl.ActorCritic(**PATHS), {}),
    "ActorCritic, Q(s, a)": (purerl.ActorCritic(critic=DefaultQCritic, **PATHS), {}),
    "ActorCritic, Q(s, .)": (purerl.ActorCritic(critic=DefaultQNetwork, **PATHS), {}),
    "PQN": (purerl.PQN(hidden=(8,)), SMALL),
    "DQN": (purerl.DQN(batch_size=8, hidden=(8,)), {"update_after": 32}),
}
ONE_CHOICE = ("DQN", "PQN", "ActorCritic, Q(s, .)")
CASES = [
    (agent, make)
    for agent in AGENTS
    for make in (doors, locks, dials)
    if make is doors or agent == "PPO" or (make is locks and agent not in ONE_CHOICE)
]


@pytest.mark.parametrize(("agent", "make"), CASES)
def test_every_agent_takes_choices_and_masks(agent, make):
    agent, options = AGENTS[agent]
    config = purerl.TrainConfig(make(), agent, total_timesteps=256, **options)
    out = jax.eval_shape(purerl.make_train(config), jax.random.key(0))
    assert out.metrics.episode_return.shape


@pytest.mark.parametrize(
    ("agent", "make"),
    [
        case
        if case in (("PPO", locks), ("DQN", doors))
        else pytest.param(*case, marks=pytest.mark.slow)
        for case in CASES
        if case[1] is not dials
    ],
)
def test_no_agent_ever_takes_an_illegal_action(agent, make):
    """Which costs 100."""
    agent, options = AGENTS[agent]
    config = purerl.TrainConfig(make(), agent, total_timesteps=640, **options)
    out = quick_jit(purerl.make_train(config))(jax.random.key(0))
    assert np.nanmin(out.metrics.episode_return_min) >= 0.0
    assert int(out.state.nonfinite_updates) == 0
    for loss in out.metrics.losses.values():
        assert np.isfinite(loss[-1])


def test_what_agents_of_other_actions_say():
    for env in (locks(), dials()):
        message = r"DQN is for one choice at a time, and \w+ has MultiDiscrete\(\(3, 2, 4\)\)"
        with pytest.raises(purerl.ConfigError, match=message):
            purerl.TrainConfig(env, purerl.DQN())
        with pytest.raises(purerl.ConfigError, match="DDPG is for continuous actions, and"):
            purerl.TrainConfig(env, purerl.DDPG())
        with pytest.raises(purerl.ConfigError, match="discrete actions, which take no noise"):
            purerl.make_loop(env, Tiny(), noise=purerl.GaussianNoise(), total_timesteps=9)


def test_masks_are_not_normalised():
    purerl.TrainConfig(doors(), normalize_obs=True)
    purerl.TrainConfig(dials(), normalize_obs=True)
    message = "legal actions of locks follow from floats of the observation, which would"
    with pytest.raises(purerl.ConfigError, match=message):
        purerl.TrainConfig(locks(), normalize_obs=True)


@pytest.mark.slow
@pytest.mark.parametrize(("make", "least"), [(doors, 7.7), (locks, 7.7), (dials, 7.3)])
def test_ppo_learns_choices_under_masks(make, least):
    agent = purerl.PPO(lr=3e-3, hidden=(32,))
    config = purerl.TrainConfig(make(), agent, 40_000, num_envs=16, update_every=32)
    outs = jax.jit(jax.vmap(purerl.make_train(config)))(jax.random.split(jax.random.key(0), 4))
    assert np.nanmean(outs.metrics.episode_return[:, -5:], 1).min() > least


@pytest.mark.slow
def test_dqn_learns_under_masks():
    agent = purerl.DQN(lr=3e-3, hidden=(32,))
    config = purerl.TrainConfig(doors(), agent, 20_000)
    out = jax.jit(purerl.make_train(config))(jax.random.key(0))
    assert np.nanmean(out.metrics.episode_return[-500:]) > 7.0
