"""Your agent: advantage-weighted regression in a page, next to PPO on CartPole, eight seeds each.

    python experiments/own_agent.py             # about a minute on two CPU cores

An agent is a frozen record of hyperparameters with pure methods. Floats made by `fields.real` are
traced, so that one program trains several temperatures; integers fix the program. The loop
does rollouts, metrics, evaluations and the guard against NaN. `purerl.check_agent` tests an agent
before you train with it.

Advantage-weighted regression (Peng et al. 2019, arXiv:1910.00177) imitates the actions of the last
rollout, each weighted by exp(advantage / temperature). Prints the return at the end.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct

import purerl

SEEDS = 8
TEMPERATURES = (0.1, 0.2, 0.3, 1.0)


@struct.dataclass
class AWRState:
    """Parameters and the optimizer's state; the networks, which are static."""

    params: dict[str, Any]
    opt_state: optax.OptState
    actor: purerl.Actor = struct.field(pytree_node=False)
    critic: purerl.Critic = struct.field(pytree_node=False)


class AWR(purerl.Agent):
    """Advantage-weighted regression on one rollout, for discrete and continuous actions.

    Attributes:
        lr: learning rate.
        gamma, lam: discount, and lambda of GAE(lambda).
        temperature: the lower, the more only the best actions count.
        max_weight: the largest weight of an action.
        num_steps: gradient steps in each update, each on the whole rollout.
    """

    lr: float = purerl.fields.real(default=2.5e-3, at_least=0.0)
    gamma: float = purerl.fields.real(default=0.99, at_least=0.0, at_most=1.0)
    lam: float = purerl.fields.real(default=0.95, at_least=0.0, at_most=1.0)
    temperature: float = purerl.fields.real(default=0.3, above=0.0)
    max_weight: float = purerl.fields.real(default=20.0, above=0.0)
    num_steps: int = purerl.fields.integer(default=4, at_least=1)

    def init(self, key, spec):
        actor = purerl.DefaultActor(spec.action_space, hidden=(64, 64))
        critic = purerl.DefaultCritic(spec.action_space, hidden=(64, 64))
        actor_key, critic_key = jax.random.split(key)
        obs = jnp.zeros((1, *spec.observation_space.shape))
        params = {"actor": actor.init(actor_key, obs), "critic": critic.init(critic_key, obs)}
        return AWRState(params, self.optimizer(purerl.Clock()).init(params), actor, critic)

    def acting(self, state, clock):
        """Actions `[N, *action_shape]`, and extras for `update`, which are stored too."""

        def act(obs, key):
            distribution = state.actor.apply(state.params["actor"], obs)
            return distribution.sample(key), {"value": self.value(state, (), obs)}

        return purerl.memoryless(act)

    def policy(self, state, *, sample=False):
        def act(obs, key):
            distribution = state.actor.apply(state.params["actor"], obs)
            return distribution.sample(key) if sample else distribution.mode(), {}

        return purerl.memoryless(act)

    def value(self, state, memory, obs):
        return state.critic.apply(state.params["critic"], obs)

    def update(self, state, experience, key, clock):
        data = experience.read()  # [T, N, ...] each
        next_value = jax.vmap(lambda obs: self.value(state, (), obs))(data["next_obs"])
        ends = data["terminated"], data["truncated"]
        advantage = purerl.gae(
            data["reward"], data["value"], next_value, *ends, self.gamma, self.lam
        )
        target = advantage + data["value"]
        scaled = advantage / (jnp.std(advantage) + 1e-8)
        weight = jnp.minimum(jnp.exp(scaled / self.temperature), self.max_weight)

        def loss_fn(params):
            distribution = jax.vmap(lambda obs: state.actor.apply(params["actor"], obs))(
                data["obs"]
            )
            value = jax.vmap(lambda obs: state.critic.apply(params["critic"], obs))(data["obs"])
            policy_loss = -jnp.mean(weight * distribution.log_prob(data["action"]))
            value_loss = 0.5 * jnp.mean((value - target) ** 2)
            losses = {"policy_loss": policy_loss, "value_loss": value_loss}
            return policy_loss + 0.5 * value_loss, losses

        optimizer = self.optimizer(clock)

        def step(carry, _):
            params, opt_state = carry
            (loss, losses), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
            grads = clock.devices.mean(grads)  # over all devices of the run
            updates, opt_state = optimizer.update(grads, opt_state)
            return (optax.apply_updates(params, updates), opt_state), {"loss": loss, **losses}

        carry = state.params, state.opt_state
        (params, opt_state), losses = jax.lax.scan(step, carry, length=self.num_steps)
        losses = jax.tree.map(jnp.mean, losses)
        return state.replace(params=params, opt_state=opt_state), experience, losses

    def optimizer(self, clock):
        """Adam, with a learning rate that falls to 0 by the end of the run."""
        lr = self.lr * (1.0 - clock.progress)
        return optax.chain(optax.clip_by_global_norm(0.5), optax.adam(lr))


def main(total_timesteps=200_000, seeds=SEEDS):
    purerl.check_agent(AWR(), "CartPole-v1")
    keys = jax.vmap(jax.random.key)(np.arange(seeds))
    rows = {}
    for agent, swept in ((AWR(), {"temperature": jnp.array(TEMPERATURES)}), (purerl.PPO(), {})):
        config = purerl.TrainConfig("CartPole-v1", agent, total_timesteps=total_timesteps)
        train = jax.vmap(purerl.make_train(config), (0, None))
        if swept:
            train = jax.vmap(train, (None, 0))
        out = jax.jit(train)(keys, swept)
        returns = np.asarray(out.metrics.episode_return)[..., -20:]  # [temperatures, seeds, rows]
        names = [f"AWR, temperature {x}" for x in TEMPERATURES] if swept else ["PPO"]
        rows |= dict(zip(names, np.atleast_2d(np.nanmean(returns, axis=-1)), strict=True))
    for name, returns in rows.items():
        print(f"{name}: {returns.mean():.1f}, worst seed {returns.min():.1f}")
    return rows


if __name__ == "__main__":
    main()
