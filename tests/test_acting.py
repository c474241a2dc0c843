"""An agent with a memory through every contract."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kit.agents import Tiny
from kit.environments import push_env, target_env
from kit.quick import quick_jit
from kit.recurrent import Recurrent, recall_env
from kit.trees import assert_close, assert_equal

import purerl
from purerl.agents.acting import another_key

pytestmark = pytest.mark.usefixtures("quick_programs")

CONFIG = purerl.TrainConfig(env=recall_env(), agent=Recurrent(), total_timesteps=32 * 16 * 150)


@pytest.fixture(scope="module")
def out():
    return quick_jit(purerl.make_train(CONFIG))(jax.random.key(0))


def test_what_was_seen_before_is_learned_from(out):
    """Without a memory the mean return is 0."""
    assert float(out.metrics.episode_return[-10:].mean()) > 0.9
    env, acting = recall_env(), out.policy.acting()
    episodes = purerl.evaluate(env, acting, jax.random.key(1), 100, 10)
    assert float(episodes.episode_return) == 1.0
    sampled = purerl.evaluate(env, out.policy.acting(sample=True), jax.random.key(1), 100, 10)
    assert 0.8 < float(sampled.episode_return) <= 1.0
    blind = purerl.TrainConfig(env=env, agent=purerl.PPO(hidden=(8,)), total_timesteps=32 * 16 * 20)
    blind = quick_jit(purerl.make_train(blind))(jax.random.key(0))
    assert abs(float(blind.metrics.episode_return[-10:].mean())) < 0.3


def test_a_key_beside_another_is_none_of_those_made_of_it(key):
    """A noise may split its key as it likes, and the actor's remains another one."""
    split = [x for n in (2, 3, 5) for x in jax.random.split(key, n)]
    keys = [key, *split, *(jax.random.fold_in(key, i) for i in range(5))]
    made = {np.asarray(jax.random.key_data(x)).tobytes() for x in keys}
    beside = {np.asarray(jax.random.key_data(another_key(key, i))).tobytes() for i in range(2)}
    assert len(beside) == 2
    assert not beside & made


@pytest.mark.parametrize("episodic", [False, True])
@pytest.mark.parametrize("normalize", [False, True])
def test_an_update_sees_the_memory_that_acted(episodic, normalize, key):
    """What the network gives for the rollout's sequence, from the memory before it, is what it gave
    step by step; also where rollouts are not whole episodes."""

    class Checking(Recurrent):
        def update(self, state, experience, key, clock):
            new, experience, losses = super().update(state, experience, key, clock)
            logits, value, _ = self.replayed(state.params, experience)
            data = experience.read()
            kept = data["valid"]
            far = jnp.abs(logits - data["logits"]).max(-1) + jnp.abs(value - data["value"])
            return new, experience, losses | {"far": jnp.where(kept, far, 0.0).max()}

    loop = purerl.make_loop(
        recall_env(4),
        Checking(),
        num_envs=6,
        update_every=7,
        total_timesteps=6 * 7 * 8,
        wait_end_path=episodic,
        normalize_obs=normalize,
    )
    _, metrics = quick_jit(lambda key: loop.scan(loop.init(key)))(key)
    assert np.asarray(metrics.losses["far"]).max() < 1e-5


def test_many_at_once_are_as_each_alone(out):
    config = CONFIG.replace(total_timesteps=32 * 16 * 5)
    train, keys = purerl.make_train(config), jax.random.split(jax.random.key(1), 3)
    together = quick_jit(jax.vmap(train))(keys)
    alone = quick_jit(train)(keys[1])
    params = (out.state.agent.params for out in (together.member(1), alone))
    assert_close(*params, 1e-3, 1e-5)
    with pytest.raises(purerl.ConfigError, match="this is the output of"):
        together.policy.acting()


def test_a_run_that_was_broken_off_ends_in_the_same_state(tmp_path):
    config = CONFIG.replace(update_every=15, total_timesteps=32 * 15 * 13)

    def stop(report):
        if report.stop >= 4:
            raise RuntimeError("enough")

    options = {"seeds": 2, "report_every": 1e-3}
    whole = purerl.fit(config, **options)
    with pytest.raises(RuntimeError, match="enough"):
        purerl.fit(config, tmp_path, callback=stop, **options)
    resumed = purerl.fit(config, tmp_path, **options)
    assert np.abs(np.asarray(resumed.state.rollout.memory)).max() > 0.0
    assert_equal(whole.state, resumed.state)


def test_a_policy_with_a_memory_is_played_with_it(out):
    with pytest.raises(purerl.ConfigError, match=r"has a memory.*policy\.acting"):
        out.policy(jnp.zeros((3, 2)))
    with pytest.raises(purerl.ConfigError, match=r"action, memory = .*memory = policy\.memory"):
        out.policy.step(np.zeros(2))
    for cue in (-1.0, 1.0):
        memory = out.policy.memory()
        for time in range(4):
            obs = np.array([cue if time == 0 else 0.0, time / 3])
            action, memory = out.policy.step(obs, memory=memory)
        assert action == (cue > 0)
    values = out.value(jnp.zeros((5, 2)), out.policy.memory(5))
    assert values.shape == (5,)


def test_files_and_pictures_know_the_memory(out, tmp_path):
    policy, env = out.policy, recall_env()
    purerl.save_policy(policy, tmp_path / "a.policy")
    loaded = purerl.load_policy(tmp_path / "a.policy", agent=Recurrent)
    assert int(loaded.num_updates) == 150
    purerl.export_policy(policy, tmp_path / "a.stablehlo")
    exported = jax.export.deserialize(bytearray((tmp_path / "a.stablehlo").read_bytes()))
    acting, memory = policy.acting(), policy.memory(4)
    theirs, ours, mine = memory, memory, memory
    for time in range(4):
        obs = jnp.stack([jnp.array([1.0, -1.0, 1.0, -1.0]) * (time == 0), jnp.full(4, time / 3)], 1)
        ours, action, _ = acting.step(ours, obs, None)
        theirs, found = exported.call(theirs, obs)
        mine, again, _ = loaded.acting().step(mine, obs, None)
        np.testing.assert_array_equal(action, found)
        np.testing.assert_array_equal(action, again)
    np.testing.assert_array_equal(action, [1, 0, 1, 0])
    assert purerl.render(policy, env, tmp_path / "a.gif") == (1.0, 4)
    returns, lengths = purerl.evaluate_in_gymnasium(policy, purerl.to_gymnasium(env), 20)
    assert returns.tolist() == [1.0] * 20
    assert lengths.tolist() == [4] * 20


class Forgetful(Recurrent):
    """Its memory isn't reset."""

    def _remembering(self, step):
        return purerl.Acting(step, super()._remembering(step).init)


class AllAtOnce(Recurrent):
    """Every row is reset where one is."""

    def _remembering(self, step):
        def reset(memory, done):
            return jnp.where(done.any(), 0.0, memory)

        return super()._remembering(step)._replace(reset=reset)


class Counting(Recurrent):
    """One number for all environments."""

    def _remembering(self, step):
        acting = super()._remembering(step)

        def counted(memory, obs, key):
            hidden, *rest = step(memory[0], obs, key)
            return (hidden, memory[1] + 1), *rest

        return purerl.Acting(
            counted,
            lambda num_envs: (acting.init(num_envs), jnp.int32(0)),
            lambda memory, done: (acting.reset(memory[0], done), memory[1]),
        )


class Stripped(Tiny):
    """Keeps less than its policy needs."""

    def for_acting(self, state):
        return {"calls": state["calls"]}


class Weighing(Tiny):
    def act(self, state, obs, key):
        return super().act(state, obs, key)[0], {"weight": jnp.ones(len(obs))}


@pytest.mark.slow
def test_an_agent_with_a_memory_is_checked():
    purerl.check_agent(Recurrent(), recall_env())
    for agent, message in (
        (Forgetful(), "Forgetful.acting's memory is never reset: expected an Acting with reset"),
        (AllAtOnce(), r"acting's reset: expected a fresh memory where done, \[N\], and no other"),
        (Counting(), r"memory has a leaf of shape \(\), expected \[N, \.\.\.\], N=4"),
        (Stripped(), "Stripped.policy of the state that for_acting leaves can't be traced"),
        (Weighing(), "extra 'weight' has the name of an entry that buffers compute"),
    ):
        with pytest.raises(purerl.AgentError, match=message):
            purerl.check_agent(agent, recall_env())


def test_an_agent_without_hyperparameters_passes():
    class Fixed(purerl.Agent):
        def init(self, key, spec):
            return jax.random.normal(key, (spec.action_space.n,))

        def acting(self, state, clock):
            return purerl.memoryless(
                lambda obs, key: (jax.random.categorical(key, state, shape=(len(obs),)), {})
            )

        def policy(self, state, *, sample=False):
            return self.acting(state, None)

        def update(self, state, experience, key, clock):
            reward = clock.devices.mean(experience.read()["reward"].mean())
            return state + reward, experience, {"loss": state.sum()}

    purerl.check_agent(Fixed(), recall_env())


def test_an_agent_gets_what_its_contract_says():
    class Asking(Tiny):
        def acting(self, state, clock):
            assert clock.progress.dtype == clock.timesteps.dtype == jnp.float32
            return super().acting(state, clock)

        def check_run(self, num_envs, update_every, buffer, options):
            asked.append(options)

    asked = []
    purerl.TrainConfig(recall_env(), Asking(), reset_each_episode=True)
    purerl.check_agent(Asking(), recall_env())
    assert asked[0] == {"noise": None, "wait_end_path": False, "reset_each_episode": True}

    class Noisy(Tiny):
        @property
        def run_defaults(self):
            return purerl.RunDefaults(noise=purerl.GaussianNoise())

    with pytest.raises(purerl.ConfigError, match="noise: recall has discrete actions"):
        purerl.TrainConfig(recall_env(), Noisy())


@pytest.mark.parametrize("episodic", [False, True])
@pytest.mark.parametrize("random_start", [False, True])
def test_memory_beside_noise(random_start, episodic, key):
    """Of an episodic rollout with noise: both memories go through whole episodes, and an update
    gets the agent's alone, as the rollout began with it."""

    class Steps(Tiny):
        @property
        def run_defaults(self):
            return purerl.RunDefaults(3, 4, noise=purerl.GaussianNoise(), random_start=random_start)

        def acting(self, state, clock):
            def step(memory, obs, key):
                action, _ = self.act(state, obs, key)
                return memory + 1, action, {"time": memory}

            def reset(memory, done):
                return jnp.where(done, 100 * (memory // 100 + 1), memory)

            return purerl.Acting(step, lambda num_envs: jnp.zeros(num_envs, jnp.int32), reset)

        def update(self, state, experience, key, clock):
            first = experience.read()["time"][0] - experience.memory
            new, experience, losses = super().update(state, experience, key, clock)
            return new, experience, losses | {"first": jnp.abs(first).sum().astype(jnp.float32)}

    loop = purerl.make_loop(
        target_env() if episodic else push_env(),
        Steps(),
        total_timesteps=3 * 4 * 6,
        update_after=24,
        wait_end_path=episodic,
    )
    trained = quick_jit(jax.vmap(jax.vmap(lambda key: loop.scan(loop.init(key)))))
    state, metrics = trained(jax.random.split(key, (2, 2)))
    np.testing.assert_array_equal(np.nan_to_num(metrics.losses["first"]), 0.0)
    assert state.rollout.memory.agent.shape == (2, 2, 3)
