"""Parallelised Q-network (Gallici et al. 2024, arXiv:2407.04811)."""

from collections.abc import Callable
from typing import ClassVar

import jax
import jax.numpy as jnp
import optax
from flax import struct

from purerl.agents.acting import Acting, Memory
from purerl.agents.base import (
    RecurrentAgent,
    RunDefaults,
    RunFacts,
    check_one_rollout,
    example_obs,
    module_field,
)
from purerl.agents.epsilon_greedy import (
    FIELDS,
    act_greedily,
    epsilon_at,
    explore,
    make_q_network,
)
from purerl.agents.gradients import Losses, Number, annealed, descend, global_norm, mean_gradient
from purerl.agents.learning import minibatch_steps, next_values, outputs
from purerl.envs.base import EnvSpec
from purerl.experience import returns
from purerl.experience.buffer import Buffer
from purerl.experience.experience import Clock, Experience
from purerl.nn.memory import ActionValues, begins
from purerl.nn.networks import Critic, init_critic, pick, q_value
from purerl.records.fields import flag, integer, real
from purerl.records.types import PyTree


class PQNState(struct.PyTreeNode):
    """Parameters and the optimizer's state."""

    params: PyTree
    opt_state: optax.OptState
    critic: Critic = struct.field(pytree_node=False)

    @property
    def network(self) -> ActionValues:
        """The Q network, with its memory."""
        return ActionValues(self.critic)


class PQN(RecurrentAgent):
    """Q-learning from parallel environments, without replay and target network.

    After each epsilon-greedy rollout, gradient steps of Q(s, a) on its transitions towards lambda
    returns, computed once from the values that the rollout acted on:

        G_t = r_t + gamma ((1 - lam) max_a Q(s_{t+1}, a) + lam G_{t+1})

    This is Peng's Q(lambda) (Peng and Williams 1994; Kozuno et al. 2021, arXiv:2103.00107): unlike
    in Watkins's, returns aren't cut at exploratory actions, so that with lam > 0 they estimate
    values between those of the greedy policy and of the exploring one; the two meet as epsilon
    falls. LayerNorm keeps the updates stable in place of a target network.

    A network with a memory is trained through each environment's whole rollout, from the memory
    that it began with: minibatches are of whole environments.

    Attributes:
        batch_size: transitions in a minibatch; None for a sixteenth of the rollout (where 16
            divides it, or each device's share of it; else all). With a memory a multiple of
            `update_every`.
        critic: an uninstantiated Q `Critic`, of one action or of all; None for the default.
        lr: learning rate.
        K_epochs: passes through the rollout in each update.
        gamma: discount.
        lam: lambda of the returns.
        epsilon_start, epsilon_end: probability of a random action, at first and at last.
        epsilon_steps: environment steps in which it falls, linearly; None for a tenth of the run.
        max_grad_norm: the gradient's global norm is clipped to it.
        anneal: lower lr linearly to 0 over the run.
        layer_norm: normalise the layers of the default network.
        dueling: the default network has a stream for V(s) and one for the advantages, whose sum is
            Q (Wang et al. 2016, arXiv:1511.06581).
    """

    default_activation: ClassVar[str] = "relu"
    num_minibatches: ClassVar[int] = 16

    batch_size: int | None = integer(default=None, at_least=1, optional=True, total=True)
    critic: Callable[..., Critic] | None = module_field(base=Critic)
    lr: float = real(default=1e-3, at_least=0.0)
    K_epochs: int = integer(default=4, at_least=1)
    gamma: float = real(default=0.99, at_least=0.0, at_most=1.0)
    lam: float = real(default=0.65, at_least=0.0, at_most=1.0)
    epsilon_start: float = real(default=1.0, at_least=0.0, at_most=1.0)
    epsilon_end: float = real(default=0.05, at_least=0.0, at_most=1.0)
    epsilon_steps: float | None = real(default=None, above=0.0, optional=True)
    max_grad_norm: float = real(default=10.0, above=0.0)
    anneal: bool = flag(default=True)
    layer_norm: bool = flag(default=True)
    dueling: bool = flag(default=False)

    @property
    def run_defaults(self) -> RunDefaults:
        return RunDefaults(num_envs=64, update_every=32)

    @property
    def schedules(self) -> tuple[str, ...]:
        return super().schedules + (("epsilon_steps",) if self.epsilon_steps is None else ())

    def check_run(
        self, num_envs: int, update_every: int, buffer: Buffer, options: RunFacts
    ) -> None:
        check_one_rollout(self, num_envs, update_every, buffer, options, FIELDS)
        self.check_minibatches(num_envs, update_every)

    def init(self, key: jax.Array, spec: EnvSpec) -> PQNState:
        critic = make_q_network(
            self, self.critic, spec, layer_norm=self.layer_norm, dueling=self.dueling
        )
        params = init_critic(critic, key, example_obs(spec))
        return self._begin(params, critic)

    def _begin(self, params: PyTree, critic: Critic) -> PQNState:
        return PQNState(params, self._optimizer(Clock()).init(params), critic)

    def start_from(self, state: PQNState, learned: PQNState) -> PQNState:
        return self._begin(learned.params, state.critic)

    def acting(self, state: PQNState, clock: Clock) -> Acting:
        return explore(state.critic, state.params, self._epsilon(clock), with_value=True)

    def policy(self, state: PQNState, *, sample: bool = False) -> Acting:
        """The greedy policy; with `sample` epsilon-greedy, epsilon being `epsilon_end`."""
        if sample:
            return explore(state.critic, state.params, self.epsilon_end)
        return act_greedily(state.critic, state.params)

    def for_acting(self, state: PQNState) -> PQNState:
        return state.replace(opt_state=None)

    def value(self, state: PQNState, memory: Memory, obs: PyTree) -> jax.Array:
        return state.network.step(state.params, memory, obs)[1][1]

    def update(
        self, state: PQNState, experience: Experience, key: jax.Array, clock: Clock
    ) -> tuple[PQNState, Experience, Losses]:
        data, buffer = experience.read(), experience.buffer
        ends = data["terminated"], data["truncated"]
        next_value = next_values(state.network, state.params, experience)
        target = returns.lambda_return(data["reward"], next_value, *ends, buffer.gamma, buffer.lam)
        batch = {name: data[name] for name in ("obs", "action", "valid")} | {"target": target}
        if state.network.remembers:
            batch["fresh"] = begins(*ends)
        state, losses = minibatch_steps(
            lambda state, rows: self._learn(state, rows, clock),
            state,
            batch,
            key,
            batch_size=self.minibatch_size(*reversed(target.shape)),
            num_epochs=self.K_epochs,
            devices=clock.devices,
            memory=experience.memory if state.network.remembers else (),
        )
        losses["epsilon"] = jnp.asarray(self._epsilon(clock), jnp.float32)
        return state, experience, losses

    def _learn(
        self, state: PQNState, batch: dict[str, PyTree], clock: Clock
    ) -> tuple[PQNState, Losses]:
        """One gradient step."""

        def loss_fn(params: PyTree, rows: dict[str, PyTree]) -> Losses:
            if state.network.remembers:
                (values, _), rows = outputs(state.network, params, rows)
                q = pick(values, rows["action"])
            else:  # of a critic that takes the action only the one that was taken
                q = q_value(state.critic, params, rows["obs"], rows["action"])
            return {"loss": 0.5 * (q - rows["target"]) ** 2, "q": q}

        losses, grads = mean_gradient(loss_fn, state.params, batch, batch["weight"], clock.devices)
        params, opt_state = descend(self._optimizer(clock), grads, state.opt_state, state.params)
        losses["grad_norm"] = global_norm(grads)
        return state.replace(params=params, opt_state=opt_state), losses

    def _epsilon(self, clock: Clock) -> Number:
        return epsilon_at(clock, self.epsilon_start, self.epsilon_end, self.epsilon_steps)

    def _optimizer(self, clock: Clock) -> optax.GradientTransformation:
        lr = annealed(self.lr, clock.progress, self.anneal)
        return self.optimize(lr, self.max_grad_norm, clock)
