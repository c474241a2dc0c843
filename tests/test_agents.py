"""What agents share, and the contract, over all agents and kinds of environments."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from jax.experimental.key_reuse._core import check_key_reuse
from kit.agents import act
from kit.buffers import one_rollout
from kit.environments import faulty, image_env, push_env, reward_forever, target_env, walk
from kit.quick import mostly_slow, quick_jit

import purerl
from purerl.accelerator.devices import ALONE
from purerl.agents import gradients
from purerl.agents.gradients import (
    masked_sum,
    mean_gradient,
    moments,
    standard_moments,
    standardize,
    valid_count,
)
from purerl.agents.learning import path_batch, policy_gradient, shuffle, successor_values
from purerl.nn.networks import apply
from purerl.records.fields import field_names

BOTH = {
    "PPO": purerl.PPO(target_kl=0.5),
    "REINFORCE": purerl.REINFORCE(n_episodes=4, episode_length=8, baseline=True),
    "ActorCritic, V": purerl.ActorCritic(n_episodes=4, critic_lr=1e-3),
    "ActorCritic, Q": purerl.ActorCritic(n_episodes=4, critic=purerl.DefaultQCritic),
}
DISCRETE = BOTH | {
    "DQN": purerl.DQN(epsilon_steps=1e4, target_update_every=5, tau=0.5, dueling=True),
    "PQN": purerl.PQN(epsilon_steps=1e4, network="gru", hidden=(8,)),
}
LIGHT = {"hidden": (16,), "batch_size": 32}  # their defaults are of 256
CONTINUOUS = BOTH | {
    "DDPG": purerl.DDPG(actor_lr=1e-3, critic_lr=1e-3),
    "TD3": purerl.TD3(**LIGHT),
    "SAC": purerl.SAC(target_entropy=-2.0, alpha_lr=1e-3, **LIGHT),
}
ENVS = {
    "discrete": (walk(5, limit=3), DISCRETE),
    "time limit": (reward_forever(10), DISCRETE),
    "image": (image_env(), DISCRETE),
    "continuous": (push_env(), CONTINUOUS),
    "one step": (target_env(), CONTINUOUS),
    "scalar action": (target_env(0.0, 0.1, ()), CONTINUOUS),
    "matrix action": (target_env(-1.0, 3.0, (2, 2)), CONTINUOUS),
}
CASES = [(agent, env) for env, (_, agents) in ENVS.items() for agent in agents]
KINDS = [case for case in CASES if case[1] in ("discrete", "continuous")]


def small_options(agent):
    """Arguments of a run of 4 environments with a small buffer."""
    size = {"num_envs": 4, "update_every": agent.run_defaults.update_every}
    if isinstance(agent, purerl.PPO | purerl.PQN):
        size["update_every"] = 8
    buffer = agent.make_buffer(**size)
    maxlen = min(buffer.maxlen, 64 * 4 * size["update_every"])
    return {**size, "buffer": buffer.replace(maxlen=maxlen), "update_after": 0}


def small_run(agent, env, num_updates, **options):
    """A function that trains for a few updates with a small buffer, from key and hyperparameters.

    Returns the agent's state and the losses of every update."""
    options = small_options(agent) | options
    options["total_timesteps"] = num_updates * options["num_envs"] * options["update_every"]

    def train(key, hyperparams):
        state, metrics = purerl.run(env, agent.replace(**hyperparams), key=key, **options)
        return state.agent, metrics.losses

    return train


# Each agent once: in `.ci/run`, the others before a release; in the default suite one of each loop.
ONCE = [
    *(("PPO", "continuous"), ("REINFORCE", "discrete"), ("ActorCritic, V", "discrete")),
    *(("ActorCritic, Q", "continuous"), ("DQN", "discrete"), ("PQN", "discrete")),
    *(("DDPG", "continuous"), ("TD3", "continuous"), ("SAC", "continuous")),
]


@pytest.mark.parametrize(
    ("agent", "env"), mostly_slow(KINDS, [ONCE[0], ("DQN", "discrete"), ONCE[-1]], slow=ONCE)
)
def test_contract(agent, env):
    env, agents = ENVS[env]
    purerl.check_agent(agents[agent], env)


@pytest.mark.parametrize(("agent", "env"), [case for case in CASES if case not in KINDS])
def test_other_kinds_of_environments(agent, env):
    env, agents = ENVS[env]
    train = small_run(agents[agent], env, 2)
    shapes = jax.eval_shape(lambda key: train(key, {}), jax.random.key(0))
    assert all(loss.shape == (2,) for loss in shapes[1].values())


def test_every_agent_is_among_the_cases():
    tested = {type(agent) for agent in (DISCRETE | CONTINUOUS).values()}
    assert tested == set(purerl.AGENTS.values())


def test_no_agent_takes_what_it_cannot():
    spaces = r"DDPG is for continuous actions, and walk has Discrete\(2\)"
    with pytest.raises(purerl.ConfigError, match=spaces):
        purerl.TrainConfig(walk(), purerl.DDPG())
    with pytest.raises(purerl.ConfigError, match="DQN is for discrete actions, and target has"):
        purerl.TrainConfig(target_env(), purerl.DQN())


# Valid, and as far out as anybody may go.
EXTREMES = {
    "lr": (0.0, 10.0),
    "critic_lr": (10.0,),
    "gamma": (0.0, 1.0),
    "lam": (0.0, 1.0),
    "tau": (0.0, 1.0),
    "eps_clip": (1e-6,),
    "max_grad_norm": (1e-8, 1e8),
    "entropy_beta": (100.0,),
    "value_coef": (1e4,),
    "target_kl": (1e-9,),
    "epsilon_start": (0.0,),
    "epsilon_end": (1.0,),
    "epsilon_steps": (1e-3, 1e12),
    "init_alpha": (1e-6, 1e3),
    "target_entropy": (-100.0, 100.0),
}


@pytest.mark.parametrize(("agent", "env"), mostly_slow(KINDS, quick=(), slow=ONCE))
def test_every_float_can_be_swept_to_its_extremes_and_matters(agent, env):
    """A lane with nothing changed, and one for each extreme value of each float field: after 100
    updates all are finite, and another agent than the first."""
    env, agents = ENVS[env]
    agent = agents[agent]
    names = [n for n in field_names(type(agent), True) if getattr(agent, n) is not None]
    if isinstance(agent, purerl.DDPG):
        names.remove("lr")  # actor_lr and critic_lr stand in its place
    lanes = [(n, x) for n in names for x in EXTREMES.get(n, (0.0,))]
    assert len({n for n, _ in lanes}) == len(names)
    values = {
        n: jnp.array([getattr(agent, n), *(x if m == n else getattr(agent, n) for m, x in lanes)])
        for n in names
    }
    train = small_run(agent, env, 100)
    states, losses = quick_jit(jax.vmap(train, (None, 0)))(jax.random.key(0), values)
    for leaf in jax.tree.leaves((states, losses)):
        assert np.isfinite(leaf).all()
    weights = [x for x in jax.tree.leaves(states) if jnp.issubdtype(x.dtype, jnp.floating)]
    changed = {
        name
        for lane, (name, _) in enumerate(lanes, start=1)
        if any(np.abs(w[0] - w[lane]).max() > 1e-7 for w in weights)
    }
    assert changed == set(names)


QUICK = [("PPO", "discrete"), ("DQN", "discrete"), ("DDPG", "continuous")]


@pytest.mark.parametrize(("agent", "env"), mostly_slow(KINDS, QUICK, slow=ONCE))
def test_nan_and_infinity_stay_outside(agent, env):
    """Of 30 updates some are skipped: they leave the agent as it was, bit for bit; the others go
    on learning. Nothing that stays is spoilt."""
    env, agents = ENVS[env]
    agent = agents[agent]
    options = small_options(agent)
    loop = purerl.make_loop(
        faulty(env, 0.02),
        agent,
        total_timesteps=30 * options["num_envs"] * options["update_every"],
        normalize_obs=True,
        rewarder=purerl.RunningNormalize(gamma=0.9),
        **options,
    )

    def step(state, index):
        new, metrics = loop.step(state, index)
        same = jax.tree.map(lambda x, y: jnp.all(x == y), new.agent, state.agent)
        return new, (metrics, jnp.all(jnp.array(jax.tree.leaves(same))))

    start = quick_jit(loop.init)(jax.random.key(1))
    state, (metrics, same) = quick_jit(lambda s: jax.lax.scan(step, s, jnp.arange(30)))(start)
    skipped = np.asarray(metrics.nonfinite_updates)
    assert 2 <= skipped.sum() <= 28
    assert int(state.nonfinite_updates) == skipped.sum()
    np.testing.assert_array_equal(same, skipped == 1)
    if options["buffer"].maxlen == loop.steps_per_update:
        state = state._replace(buffer=None)  # the next rollout takes its place, whole
    for leaf in jax.tree.leaves(state):
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            assert np.isfinite(leaf).all()
    np.testing.assert_array_equal(np.isfinite(metrics.episode_return), metrics.num_episodes > 0)


@pytest.mark.parametrize(("agent", "env"), KINDS)
def test_no_key_is_used_twice(agent, env):
    env, agents = ENVS[env]
    train = small_run(agents[agent], env, 2, eval_every=1, eval_max_episodes=2, normalize_obs=True)
    check_key_reuse(lambda key: train(key, {}), jax.random.key(0))


def test_the_checker_of_keys_does_check():
    with pytest.raises(Exception, match="already consumed"):
        check_key_reuse(lambda k: jax.random.normal(k) + jax.random.uniform(k), jax.random.key(1))


def test_masked_means():
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(3.0, 2.0, (5, 4)), jnp.float32)
    valid = jnp.asarray(rng.random((5, 4)) < 0.6)
    kept = np.asarray(x)[np.asarray(valid)]
    weight = (valid / valid_count(valid)).reshape(-1)
    beyond = jnp.where(valid, x, jnp.nan).reshape(-1)
    assert float(masked_sum(beyond, weight)) == pytest.approx(kept.mean(), rel=1e-5)
    mean, variance = moments(x.reshape(-1), weight)
    assert float(mean) == pytest.approx(kept.mean(), rel=1e-5)
    assert float(variance) == pytest.approx(kept.var(), rel=1e-5)
    expected = (kept - kept.mean()) / kept.std()
    found = standardize(x, mean, variance)[valid]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    nothing = jnp.zeros_like(valid)
    assert float(valid_count(nothing)) == 1.0
    assert [float(x) for x in moments(x.reshape(-1), 0.0 * weight)] == [0.0, 0.0]
    assert standard_moments(x.reshape(-1), weight) == (mean, variance)
    single = (jnp.arange(x.size) == 3).astype(jnp.float32)
    assert [float(x) for x in standard_moments(x.reshape(-1), single)] == [0.0, 1.0]


@pytest.mark.parametrize(
    "agent",
    [
        purerl.PPO(hidden=(4,), entropy_beta=0.0, batch_size=1),
        purerl.ActorCritic(hidden=(4,), entropy_beta=0.0, n_episodes=1, episode_length=1),
    ],
)
def test_a_single_step_is_learned_from(agent):
    """Standardised, its advantage would be 0 in each update: one-step actor-critic."""
    sizes = {"num_envs": 1, "update_every": 1} if isinstance(agent, purerl.PPO) else {}
    loop = purerl.TrainConfig(walk(), agent, total_timesteps=8, **sizes).make_loop()
    state = loop.init(jax.random.key(0))
    after, _ = quick_jit(loop.step)(state, 0)

    def actor(agent_state):
        params = agent_state.params["actor"] if sizes else agent_state.actor_params
        return jax.tree.leaves(params)

    pairs = zip(actor(state.agent), actor(after.agent), strict=True)
    assert any(float(jnp.max(jnp.abs(x - y))) > 1e-5 for x, y in pairs)


@pytest.mark.parametrize(("size", "num_blocks"), [(24, 3), (28, 4), (8, 1), (26, 1)])
@pytest.mark.parametrize("cores", [1, 2])
def test_the_gradient_of_a_mean_in_blocks(size, num_blocks, cores, monkeypatch):
    """Against the closed form; 26 has no divisor of 3 to 8 rows, and two cores share the rows."""
    monkeypatch.setattr(gradients, "ROWS_AT_ONCE", 8)
    monkeypatch.setattr(gradients, "num_cores", lambda: cores)
    rng = np.random.default_rng(0)
    x, y, params = rng.normal(size=(size, 3)), rng.normal(size=size), {"w": rng.normal(size=3)}
    valid = rng.random(size) < 0.7
    x[~valid] = 100.0
    weight = valid / valid.sum()

    def loss_fn(params, batch):
        error = batch["x"] @ params["w"] - batch["y"]
        return {"loss": 0.5 * error**2, "error": error}

    to_jax = lambda tree: jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree)  # noqa: E731
    inputs = to_jax(({"w": params["w"]}, {"x": x, "y": y}, weight))
    called = jax.make_jaxpr(lambda *args: mean_gradient(loss_fn, *args))(*inputs)
    lengths = [e.params["length"] for e in called.eqns if e.primitive.name == "scan"]
    assert lengths == ([num_blocks] if num_blocks > 1 and cores == 1 else [])
    losses, grads = mean_gradient(loss_fn, *inputs)
    error = (x @ params["w"] - y)[valid]
    assert float(losses["loss"]) == pytest.approx(0.5 * np.mean(error**2), rel=1e-4)
    assert float(losses["error"]) == pytest.approx(np.mean(error), rel=1e-4)
    expected = np.mean(error[:, None] * x[valid], axis=0)
    np.testing.assert_allclose(grads["w"], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("num_steps", "num_envs", "batch_size"),
    [(128, 4, 128), (16, 64, 256), (32, 48, 96), (7, 5, 7), (6, 17, 34), (5, 1, 1), (4, 6, 24)],
)
def test_shuffle_shows_everything_once_an_epoch(key, num_steps, num_envs, batch_size):
    batches = shuffle(key, num_steps, num_envs, batch_size, num_epochs=3)
    number = jnp.arange(num_steps * num_envs).reshape(num_steps, num_envs)
    batch = {"number": number, "pair": jnp.stack([number, -number], axis=-1)}
    taken = jax.lax.map(lambda chosen: batches.take(batch, chosen), batches.blocks)
    assert taken["number"].shape == (3 * num_steps * num_envs // batch_size, batch_size)
    np.testing.assert_array_equal(taken["pair"][..., 0], taken["number"])
    np.testing.assert_array_equal(taken["pair"][..., 1], -taken["number"])
    for epoch in np.asarray(taken["number"]).reshape(3, -1):
        np.testing.assert_array_equal(np.sort(epoch), np.arange(num_steps * num_envs))


def test_shuffle_is_uniform():
    # Where a transition lands is uniform over the minibatches, for each of them.
    def landing(key):
        batches = shuffle(key, 8, 6, 12, num_epochs=1)
        number = jnp.arange(48).reshape(8, 6)
        taken = jax.vmap(lambda chosen: batches.take(number, chosen))(batches.blocks)
        return jnp.argsort(taken.reshape(-1)) // 12

    where = np.asarray(jax.vmap(landing)(jax.random.split(jax.random.key(0), 4000)))
    for transition in range(48):
        counts = np.bincount(where[:, transition], minlength=4)
        assert scipy.stats.chisquare(counts).pvalue > 1e-5


def test_different_epochs_have_different_orders(key):
    blocks = shuffle(key, 64, 16, 256, num_epochs=4).blocks.reshape(4, -1)
    assert len(np.unique(blocks, axis=0)) == 4


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 1.0])
def test_successor_values_are_those_of_the_successors(share):
    rng = np.random.default_rng(0)
    truncated = rng.random((9, 4)) < share
    terminated = (rng.random((9, 4)) < 0.2) & ~truncated
    obs = jnp.asarray(rng.normal(size=(9, 4, 2)), jnp.float32)
    # Inside a path the successor is the next row's observation; where one ends, it is not.
    next_obs = jnp.concatenate([obs[1:], obs[:1]])
    terminated, truncated = jnp.asarray(terminated), jnp.asarray(truncated)
    ended = terminated | truncated
    next_obs = jnp.where(ended[..., None], next_obs + 100.0, next_obs).at[-1].add(7.0)

    def value_fn(obs):
        return obs["x"] @ jnp.array([1.0, 3.0])

    value = jax.vmap(value_fn)({"x": obs})
    found = successor_values(value_fn, one_rollout({"x": next_obs}, terminated, truncated), value)
    exact = jax.vmap(value_fn)({"x": next_obs})
    alive = ~terminated
    np.testing.assert_allclose(found[alive], exact[alive], rtol=1e-5)
    assert np.all(np.isfinite(found))


def test_successor_values_under_vmap():
    # Lanes have different numbers of time limits, and each gets its own.
    obs = jnp.arange(24.0).reshape(2, 6, 2)
    truncated = jnp.zeros((2, 6, 2), bool).at[0, 1:4].set(True)
    no = jnp.zeros((2, 6, 2), bool)
    args = (obs, obs + 50.0, no, truncated)

    def values(value, next_obs, *ends):
        return successor_values(lambda o: 2 * o, one_rollout(next_obs, *ends), value)

    together = jax.vmap(values)(*args)
    for lane in range(2):
        alone = values(*(a[lane] for a in args))
        np.testing.assert_array_equal(together[lane], alone)


def still(act):
    """An agent's `acting` or `policy`, whatever its state."""
    return lambda *args, **options: purerl.memoryless(act)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"acting": still(lambda o, k: (jnp.zeros(3), {}))}, "acting's action has shape"),
        (
            {"acting": still(lambda o, k: (jnp.zeros(4, jnp.int32), {"value": jnp.float32(0)}))},
            "extra 'value'",
        ),
        ({"policy": still(lambda o, k: (jnp.zeros(4), {}))}, "policy's action has"),
        ({"value": lambda s, m, o: jnp.zeros((4, 1))}, "value has shape"),
        ({"update": lambda s, e, k, clock: (s, e, {})}, "another key gave the same agent"),
    ],
)
def test_check_agent_finds(changes, message):
    if message.startswith("another"):
        changes["init"] = lambda key, spec: jnp.zeros(3)
        changes["acting"] = still(lambda o, k: (jnp.zeros(len(o), jnp.int32), {}))
        changes["policy"] = still(lambda o, k: (jnp.zeros(len(o), jnp.int32), {}))
        changes["value"] = lambda s, m, o: jnp.zeros(len(o))
        changes["for_acting"] = lambda state: state
    methods = {name: staticmethod(function) for name, function in changes.items()}
    broken = type("Broken", (purerl.PPO,), methods)
    with pytest.raises(purerl.AgentError, match=message):
        purerl.check_agent(broken(), walk())


def test_check_agent_finds_a_loss_that_is_not_a_float_scalar():
    class Chatty(purerl.PPO):
        def update(self, *args):
            state, experience, losses = super().update(*args)
            return state, experience, {**losses, "count": jnp.int32(1)}

    with pytest.raises(purerl.AgentError, match=r"loss 'count'.*int32"):
        purerl.check_agent(Chatty(), walk())


def test_check_agent_finds_an_impure_update():
    calls = []

    class Impure(purerl.PPO):
        def init(self, key, spec):
            calls.append(1)
            return super().init(jax.random.fold_in(jax.random.key(0), len(calls)), spec)

    with pytest.raises(purerl.AgentError, match="another"):
        purerl.check_agent(Impure(), walk())


def test_check_agent_finds_an_update_of_one_device_alone():
    class Alone(purerl.DQN):
        def update(self, state, experience, key, clock):
            return super().update(state, experience, key, clock._replace(devices=ALONE))

    with pytest.raises(purerl.AgentError, match=r"two devices.*clock\.devices\.mean"):
        purerl.check_agent(Alone(hidden=(8,)), walk())


def test_check_agent_wants_an_agent():
    with pytest.raises(purerl.AgentError, match=r"is not a purerl\.Agent"):
        purerl.check_agent(purerl.PPO, walk())


class Saturated(purerl.Actor):
    """Means of 8 before the squashing, where tanh is 1 but for 2e-7."""

    distribution = purerl.TanhNormal
    init_log_std = -0.7

    @nn.compact
    def create_network(self, obs):
        loc = self.param("loc", lambda key: jnp.float32(8.0))
        return jnp.full((obs.shape[0], self.action_dim), loc)


@pytest.mark.parametrize("name", ["PPO", "REINFORCE", "ActorCritic, V"])
def test_a_saturated_policy_is_learned_from_what_it_drew(name, key):
    """The ratio at unchanged parameters is 1, and the gradient is that of the numbers that were
    squashed, though the actions have lost them."""
    agent, env = BOTH[name].replace(actor=Saturated), push_env()
    state = agent.init(key, env.spec)
    obs = jnp.zeros((512, 1))
    action, extras = act(agent.acting(state, purerl.Clock()), obs, key)
    assert np.mean(action > 1.999999) > 0.3  # the bound, but for a bit by some instruction sets
    batch = {"obs": obs, "action": action, **extras}
    x = np.asarray(extras["pre_action"], np.float64)
    scale = np.exp(-0.7)
    advantage = jnp.where(jnp.arange(512) % 2 == 0, 1.0, -0.5)
    expected = -np.mean((x[:, 0] - 8.0) / scale**2 * np.asarray(advantage))
    if name == "PPO":
        batch |= {"advantage": advantage, "target": batch["value"]}
        losses = agent._loss(state.params, state, batch)
        assert np.abs(losses["approx_kl"]).max() < 1e-5
        assert np.all(losses["clip_fraction"] == 0)
        loss = lambda p: jnp.mean(agent._loss(p, state, batch)["policy_loss"])  # noqa: E731
        grads = jax.grad(loss)(state.params)["actor"]
    else:
        rollout = jax.tree.map(lambda x: x[None], {**batch, "valid": jnp.ones(512, bool)})
        (paths,) = path_batch(rollout)
        policy = lambda p, rows: (apply(state.actor, p, rows["obs"]), rows)  # noqa: E731
        grads, _ = policy_gradient(policy, state.actor_params, paths, advantage, 0.0)
    assert float(grads["params"]["loc"]) == pytest.approx(expected, rel=1e-3)
