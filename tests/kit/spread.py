"""A run over devices, for the tests to start in processes of its own:

    python -m kit.spread AGENT [COORDINATOR NUM_PROCESSES PROCESS_ID [forever]]

Prints what it has seen as one line of JSON. The devices are those of XLA_FLAGS, and of all the
processes where there are several.
"""

import hashlib
import json
import sys

import purerl
from purerl.accelerator import devices
from purerl.experience import rewarders

SMALL = {"hidden": (8,)}
REPLAY = {"num_envs": 4, "update_every": 4, "update_after": 32}


def configs(push, walk):
    """Each agent with all that could tell one device from another."""
    buffer = purerl.Buffer(maxlen=256, priority_sampling=True)
    normal = {"normalize_obs": True, "normalize_reward": True}
    paths = {"n_episodes": 4, "episode_length": 8, **SMALL}
    q_critic = purerl.DefaultQCritic
    return {
        "ppo": (push, purerl.PPO(target_kl=0.01, **SMALL), {"num_envs": 4, "update_every": 8}),
        "gru": (push, purerl.PPO(network="gru", **SMALL), {"num_envs": 4, "update_every": 8}),
        "reinforce": (walk, purerl.REINFORCE(baseline=True, **paths), {}),
        "actor_critic": (push, purerl.ActorCritic(**paths), {"wait_end_path": True}),
        "q_actor_critic": (push, purerl.ActorCritic(critic=q_critic, **paths), {}),
        "pqn": (walk, purerl.PQN(**SMALL), {"num_envs": 4, "update_every": 8}),
        "ddpg": (push, purerl.DDPG(batch_size=16, **SMALL), {"buffer": buffer, **REPLAY}),
        "td3": (push, purerl.TD3(batch_size=16, **SMALL), {"buffer": buffer, **REPLAY}),
        "sac": (push, purerl.SAC(batch_size=16, **SMALL), {"buffer": buffer, **REPLAY}),
        "dqn": (walk, purerl.DQN(batch_size=16, **SMALL), {"buffer": buffer, **REPLAY}),
    }, normal


def digest(x):
    return hashlib.sha256(x.tobytes()).hexdigest()[:16]


def report(jax, np, out):
    """Digests of the replicas that this process has, of what should be the same on all devices and
    of the environments, which shouldn't."""
    same = (out.state._replace(buffer=None, rollout=None, rewarder=None), out.metrics)
    if isinstance(out.state.rewarder, rewarders.RunningNormalizeState):
        # Each device keeps a copy: they come as the rows [S, D] of one array.
        same = (*same, out.state.rewarder.stats)
    replicas = {}
    for path, x in jax.tree_util.tree_leaves_with_path(same):
        if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            x = jax.random.key_data(x)
        seen = [digest(np.asarray(shard.data)) for shard in x.addressable_shards]
        replicas[jax.tree_util.keystr(path)] = seen
    params = {
        jax.tree_util.keystr(path): np.asarray(x).ravel().tolist()
        for path, x in jax.tree_util.tree_leaves_with_path(out.state.agent)
        if ".params" in jax.tree_util.keystr(path)
    }
    own = out.state.rollout.env.obs.addressable_shards
    return {
        "version": jax.__version__,
        "devices": jax.device_count(),
        "local": jax.local_device_count(),
        "replicas": replicas,
        "params": params,
        "own": [digest(np.asarray(shard.data)) for shard in own],
        "skipped": int(np.asarray(out.state.nonfinite_updates).sum()),
        "learned": all(
            np.isfinite(np.asarray(x)[..., -1]).all() for x in jax.tree.leaves(out.metrics.losses)
        ),
    }


def main(agent, coordinator=None, num_processes=None, process_id=None, forever=None):
    if coordinator is not None:
        devices.start_hosts(coordinator, int(num_processes), int(process_id), heartbeat_seconds=10)
    import jax
    import numpy as np

    from .environments import push_env, walk
    from .quick import quick_jit

    table, normal = configs(push_env(), walk())
    env, agent, options = table[agent]
    num_devices = jax.device_count()
    config = purerl.TrainConfig(
        env=env, agent=agent, num_devices=num_devices, total_timesteps=160, **normal, **options
    )
    train = quick_jit(jax.vmap(purerl.make_train(config)))
    keys = jax.random.split(jax.random.key(0), 2)
    out = jax.block_until_ready(train(keys))
    print(json.dumps(report(jax, np, out)), flush=True)
    while forever:
        jax.block_until_ready(train(keys))


if __name__ == "__main__":
    main(*sys.argv[1:])
