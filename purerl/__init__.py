"""Reinforcement learning in JAX: a whole training run is one pure function.

    config = purerl.TrainConfig(env="CartPole-v1", agent=purerl.PPO(lr=1e-3))
    train = purerl.make_train(config)
    out = jax.jit(train)(jax.random.key(0))                                # one run
    outs = jax.jit(jax.vmap(train))(jax.random.split(jax.random.key(0), 64))  # 64 runs
    out.metrics.episode_return                                             # the learning curve
    out.policy.step(obs)                                                   # the trained policy

Train
    TrainConfig, preset         a run's options; tuned ones for an environment and an agent
    make_train                  a pure function of a key, for `jit` and `vmap`
    fit                         the same with reports, checkpoints, and resuming after a kill
    sweep                       seeds and a grid of hyperparameters, over all devices
    tune                        a search for hyperparameters, with Optuna
    evolve                      population-based training: schedules of hyperparameters
    run, make_loop              the loop from plain arguments; its steps, to be scanned by you
    compiler_options            for `jit`, to compile faster on a CPU and run faster on a GPU
    TrainOutput, SweepResult, TuneResult, EvolveResult    metrics, the final state, the policy

Agents
    PPO, PQN, DQN, SAC, TD3, DDPG, ActorCritic, REINFORCE
    Actor, Critic               bases of networks: `PPO(actor=MyActor)`
    GaussianNoise, OrnsteinUhlenbeckNoise    exploration of deterministic policies
    Buffer                      rollouts and replay, uniform or by priorities
    Scale, Clip, RunningNormalize, NStep    rewarders: rewards as the agent learns from them
    Agent, check_agent, fields  to write an agent, check it, declare its hyperparameters
    gae, lambda_return, n_step_return, reward_to_go

Environments
    make, env_names, env_params by name, with parameters: `make("CartPole-v1", gravity=1.6)`
    env_suites                  suites of other packages: `make("brax/ant")`
    Env, EnvSpec, check_env     to write an environment, and check it
    Box, Discrete, MultiDiscrete
    time_limit, action_repeat, map_actions, randomize, remember_action, vectorize

Results
    Policy                      acts, also outside JAX
    save_policy, load_policy, export_policy, to_gymnasium, render
    evaluate, evaluate_in_gymnasium
    load_run                    what training has reached in a folder
    load_sweep                  all members of a sweep from its folder
    read_run, read_runs         learning curves from folders
    plot_curves, plot_comparison, plot_sweep, plot_tune, plot_evolution, statistics
    csv_sink, tensorboard_sink, wandb_sink, console_sink    callbacks for `fit`

`help(purerl.PPO)` has every hyperparameter, `help(purerl.TrainConfig)` every option. The command
`purerl` trains, sweeps, plots and plays from a terminal. Errors are subclasses of `purerl.Error`.
"""

from importlib.metadata import PackageNotFoundError, version

from purerl.accelerator.machine import avoid_faults, use_all_cores

avoid_faults()

from purerl import statistics  # noqa: E402
from purerl.accelerator.compiling import compiler_options  # noqa: E402
from purerl.accelerator.devices import start_hosts  # noqa: E402
from purerl.agents import (  # noqa: E402
    AGENTS,
    DDPG,
    DQN,
    PPO,
    PQN,
    REINFORCE,
    SAC,
    TD3,
    ActorCritic,
    Agent,
    NetworkAgent,
    RunDefaults,
    double_q_target,
    q_target,
)
from purerl.agents.acting import Acting, memoryless  # noqa: E402
from purerl.agents.noise import GaussianNoise, Noise, OrnsteinUhlenbeckNoise  # noqa: E402
from purerl.deploy.export import export_policy  # noqa: E402
from purerl.deploy.gymnasium_env import evaluate_in_gymnasium, to_gymnasium  # noqa: E402
from purerl.deploy.policy_file import load_policy, save_policy  # noqa: E402
from purerl.deploy.render import render  # noqa: E402
from purerl.envs import (  # noqa: E402
    Box,
    Discrete,
    Env,
    EnvError,
    EnvSpec,
    MultiDiscrete,
    TimeStep,
    VectorEnv,
    action_repeat,
    auto_reset,
    check_env,
    env_names,
    env_params,
    env_suites,
    gymnasium_env,
    gymnax_env,
    make,
    map_actions,
    randomize,
    register,
    remember_action,
    time_limit,
    vector_env,
    vectorize,
)
from purerl.envs.spaces import where_legal  # noqa: E402
from purerl.experience.buffer import Buffer, BufferState  # noqa: E402
from purerl.experience.experience import Clock, Experience  # noqa: E402
from purerl.experience.metrics import Episodes, Metrics  # noqa: E402
from purerl.experience.returns import gae, lambda_return, n_step_return, reward_to_go  # noqa: E402
from purerl.experience.rewarders import Clip, NStep, RunningNormalize, Scale  # noqa: E402
from purerl.experience.transition import Transition  # noqa: E402
from purerl.nn.defaults import (  # noqa: E402
    DefaultActor,
    DefaultActorCritic,
    DefaultCritic,
    DefaultQCritic,
    DefaultQNetwork,
    DefaultSquashedActor,
    Torso,
)
from purerl.nn.distributions import Categorical, MultiCategorical, Normal, TanhNormal  # noqa: E402
from purerl.nn.networks import Actor, ActorCriticNetwork, Critic  # noqa: E402
from purerl.plots.evolution import plot_evolution  # noqa: E402
from purerl.plots.runs import plot_comparison, plot_curves  # noqa: E402
from purerl.plots.sweeps import plot_slices, plot_sweep, plot_sweep_curves  # noqa: E402
from purerl.plots.tuning import plot_tune  # noqa: E402
from purerl.records import fields  # noqa: E402
from purerl.records.draws import Choice, LogUniform, Uniform  # noqa: E402
from purerl.records.errors import ConfigError, Error, MemberError, RunError  # noqa: E402
from purerl.runs.console import console_sink  # noqa: E402
from purerl.runs.curves import Curves  # noqa: E402
from purerl.runs.fit import Interrupted, fit  # noqa: E402
from purerl.runs.report import Report  # noqa: E402
from purerl.runs.sinks import csv_sink, tensorboard_sink, wandb_sink  # noqa: E402
from purerl.runs.view import load_run, read_run, read_runs  # noqa: E402
from purerl.sweeps.evolution import EvolveResult  # noqa: E402
from purerl.sweeps.evolve import evolve  # noqa: E402
from purerl.sweeps.result import SweepResult  # noqa: E402
from purerl.sweeps.sweep import sweep  # noqa: E402
from purerl.sweeps.tune import tune  # noqa: E402
from purerl.sweeps.tuned import TuneResult  # noqa: E402
from purerl.sweeps.view import load_sweep  # noqa: E402
from purerl.training.check import AgentError, check_agent  # noqa: E402
from purerl.training.config import TrainConfig  # noqa: E402
from purerl.training.evaluate import evaluate  # noqa: E402
from purerl.training.loop import Loop, RunState  # noqa: E402
from purerl.training.policy import Policy  # noqa: E402
from purerl.training.presets import preset  # noqa: E402
from purerl.training.rollout import rollout  # noqa: E402
from purerl.training.run import make_loop, run  # noqa: E402
from purerl.training.train import TrainOutput, make_train  # noqa: E402

try:
    __version__ = version("purerl")
except PackageNotFoundError:  # a checkout that isn't installed
    __version__ = "0+unknown"

__all__ = [
    "AGENTS",
    "DDPG",
    "DQN",
    "PPO",
    "PQN",
    "REINFORCE",
    "SAC",
    "TD3",
    "Acting",
    "Actor",
    "ActorCritic",
    "ActorCriticNetwork",
    "Agent",
    "AgentError",
    "Box",
    "Buffer",
    "BufferState",
    "Categorical",
    "Choice",
    "Clip",
    "Clock",
    "ConfigError",
    "Critic",
    "Curves",
    "DefaultActor",
    "DefaultActorCritic",
    "DefaultCritic",
    "DefaultQCritic",
    "DefaultQNetwork",
    "DefaultSquashedActor",
    "Discrete",
    "Env",
    "EnvError",
    "EnvSpec",
    "Episodes",
    "Error",
    "EvolveResult",
    "Experience",
    "GaussianNoise",
    "Interrupted",
    "LogUniform",
    "Loop",
    "MemberError",
    "Metrics",
    "MultiCategorical",
    "MultiDiscrete",
    "NStep",
    "NetworkAgent",
    "Noise",
    "Normal",
    "OrnsteinUhlenbeckNoise",
    "Policy",
    "Report",
    "RunDefaults",
    "RunError",
    "RunState",
    "RunningNormalize",
    "Scale",
    "SweepResult",
    "TanhNormal",
    "TimeStep",
    "Torso",
    "TrainConfig",
    "TrainOutput",
    "Transition",
    "TuneResult",
    "Uniform",
    "VectorEnv",
    "action_repeat",
    "auto_reset",
    "check_agent",
    "check_env",
    "compiler_options",
    "console_sink",
    "csv_sink",
    "double_q_target",
    "env_names",
    "env_params",
    "env_suites",
    "evaluate",
    "evaluate_in_gymnasium",
    "evolve",
    "export_policy",
    "fields",
    "fit",
    "gae",
    "gymnasium_env",
    "gymnax_env",
    "lambda_return",
    "load_policy",
    "load_run",
    "load_sweep",
    "make",
    "make_loop",
    "make_train",
    "map_actions",
    "memoryless",
    "n_step_return",
    "plot_comparison",
    "plot_curves",
    "plot_evolution",
    "plot_slices",
    "plot_sweep",
    "plot_sweep_curves",
    "plot_tune",
    "preset",
    "q_target",
    "randomize",
    "read_run",
    "read_runs",
    "register",
    "remember_action",
    "render",
    "reward_to_go",
    "rollout",
    "run",
    "save_policy",
    "start_hosts",
    "statistics",
    "sweep",
    "tensorboard_sink",
    "time_limit",
    "to_gymnasium",
    "tune",
    "use_all_cores",
    "vector_env",
    "vectorize",
    "wandb_sink",
    "where_legal",
]
