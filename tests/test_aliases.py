"""Names of other libraries for purerl's fields."""

import argparse

import pytest
from kit.agents import Tiny
from kit.environments import target_env

import purerl
from purerl.cli.flags import add_config_flags, config_from
from purerl.records.aliases import ALIASES, HINTS
from purerl.records.fields import Record, field_names, real
from purerl.sweeps.plan import make_plan


def records():
    agents = purerl.AGENTS.values()
    return [*agents, purerl.TrainConfig, purerl.Buffer, purerl.GaussianNoise]


def test_every_alias_leads_to_a_field_and_is_none():
    fields = {name for record in records() for name in field_names(record)}
    for alias, targets in ALIASES.items():
        assert set(targets) <= fields, alias
        assert alias not in fields
        assert alias not in HINTS
    assert {field for field, _ in HINTS.values()} <= fields


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: purerl.PPO(num_minibatches=4), "here it is 'batch_size', the size of one: num_en"),
        (lambda: purerl.DDPG(polyak=0.995), "here it is 'tau', which is 1 - polyak"),
        (lambda: purerl.PPO(clip_range_vf=None), "here it is 'clip_value', True or False"),
        (lambda: purerl.DQN(exploration_fraction=0.1), "'epsilon_steps', in environment steps"),
        (lambda: purerl.PPO(policy_kwargs={}), "here it is 'hidden', units of the layers"),
    ],
)
def test_a_word_of_another_unit_says_ours(make, message):
    """Or the number would go into our field as it is: `epsilon_steps=0.1`, `tau=0.995`."""
    with pytest.raises(purerl.ConfigError, match=message):
        make()


def test_other_libraries_words():
    theirs = purerl.PPO(
        learning_rate=3e-4,
        discount=0.9,
        gae_lambda=0.8,
        clip_range=0.1,
        n_epochs=2,
        ent_coef=0.0,
        vf_coef=1.0,
        minibatch_size=64,
        norm_adv=False,
        anneal_lr=False,
    )
    ours = purerl.PPO(
        lr=3e-4,
        gamma=0.9,
        lam=0.8,
        eps_clip=0.1,
        K_epochs=2,
        entropy_beta=0.0,
        value_coef=1.0,
        batch_size=64,
        normalize_advantage=False,
        anneal=False,
    )
    assert theirs == ours
    assert purerl.PPO().replace(entropy_coef=0.5) == purerl.PPO(entropy_beta=0.5)
    assert purerl.Buffer(buffer_size=64) == purerl.Buffer(maxlen=64)
    assert purerl.DQN(n_steps=5).n_step == 5
    assert purerl.SAC(ent_coef=0.2, q_lr=1e-3) == purerl.SAC(alpha=0.2, critic_lr=1e-3)
    theirs = purerl.TD3(policy_freq=3, target_policy_noise=0.1, noise_clip=0.3)
    assert theirs == purerl.TD3(policy_delay=3, target_noise=0.1, target_noise_clip=0.3)
    config = purerl.TrainConfig(target_env(), Tiny(), n_envs=2, n_steps=4, timesteps=64)
    assert (config.num_envs, config.update_every, config.total_timesteps) == (2, 4, 64)
    assert config.replace(num_steps=8).update_every == 8


def test_a_mapping_takes_them():
    config = purerl.TrainConfig.from_mapping(
        {
            "env_name": "Pendulum-v1",
            "learning_starts": 64,
            "agent": {"name": "ddpg", "discounting": 0.9},
            "action_noise": {"std": 0.3},
            "buffer": {"capacity": 4000},
        }
    )
    assert (config.env.spec.name, config.update_after) == ("Pendulum-v1", 64)
    assert (config.agent.gamma, config.noise.sigma, config.buffer.maxlen) == (0.9, 0.3, 4000)
    assert purerl.preset("CartPole-v1", n_envs=4).num_envs == 4


def command(*argv):
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("env")
    add_config_flags(parser, argv)
    return config_from(parser.parse_args(argv))[0], parser.format_help()


def test_flags_take_them_and_help_shows_ours(tmp_path):
    given = ("--learning-rate", "1e-3", "--no-anneal-lr", "--n-epochs", "3", "--n-envs", "4")
    config, text = command("CartPole-v1", *given)
    assert (config.agent.lr, config.agent.anneal, config.agent.K_epochs) == (1e-3, False, 3)
    assert config.num_envs == 4
    assert "--lr X" in text
    assert "learning-rate" not in text
    file = tmp_path / "config.toml"
    file.write_text('n_envs = 2\n[agent]\nname = "dqn"\nlearning_rate = 0.5\n')
    on_top = ("--config", str(file), "--lr", "0.25", "--buffer-size", "4000")
    config, _ = command("CartPole-v1", *on_top)
    assert (config.num_envs, config.agent.lr, config.buffer.maxlen) == (2, 0.25, 4000)
    with pytest.raises(purerl.ConfigError, match="'ent_coef' and 'entropy_beta' are the same"):
        command("CartPole-v1", "--ent-coef", "0.1", "--entropy-beta", "0.2")
    # A rollout's steps, or those of a return? Neither is guessed.
    with pytest.raises(SystemExit):
        command("CartPole-v1", "--agent", "dqn", "--n-steps", "3")


def test_hyperparams_and_sweeps_take_them():
    config = purerl.TrainConfig(target_env(), Tiny(), num_envs=2, update_every=4)
    loop = config.make_loop({"learning_rate": 0.5, "agent.discount": 0.9})
    assert (loop.agent.lr, loop.agent.gamma) == (0.5, 0.9)
    names = {"learning_rate": [0.1], "n_steps": [4, 8]}
    plan = make_plan(config, 1, names, {"discounting": purerl.Uniform(0.8, 0.9)}, 1, None)
    assert plan.names == ("lr", "update_every", "gamma")
    same = make_plan(config, 1, {"lr": [0.1], "update_every": [4, 8]}, *SAMPLED)
    assert plan.combinations == same.combinations  # draws go by the field, whatever it is called
    for twice in ({"lr": [0.1], "learning_rate": [0.1]}, {"n_steps": [4], "update_every": [4]}):
        with pytest.raises(purerl.ConfigError, match="are the same field"):
            make_plan(config, 1, twice, None, None, None)
    with pytest.raises(purerl.ConfigError, match="'update_every' of TrainConfig or 'n_step' of"):
        make_plan(config, 1, {"agent": [purerl.DQN()], "n_steps": [4]}, None, None, None)


SAMPLED = ({"gamma": purerl.Uniform(0.8, 0.9)}, 1, None)


def test_a_field_is_never_an_alias():
    class Odd(Record):
        lr: float = real(default=0.1)
        learning_rate: float = real(default=0.2)

    assert Odd(learning_rate=0.5) == Odd(0.1, 0.5)
