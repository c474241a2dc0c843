"""Parts of updates that agents share: losses over paths, minibatches, replay."""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax

from purerl.accelerator.devices import ALONE, Devices
from purerl.agents.acting import Acting, Extras, Key, Memory, another_key
from purerl.agents.gradients import (
    AgentState,
    Losses,
    descend,
    global_norm,
    mean_gradient,
    moments,
    standard_moments,
    standardize,
    valid_count,
)
from purerl.envs.base import where
from purerl.experience.buffer import Batch
from purerl.experience.experience import Experience
from purerl.nn.distributions import drawn_actions, log_prob_of
from purerl.nn.memory import (
    ActionValues,
    PolicyAndValue,
    begins,
    init_memory,
    memories,
    remembers,
    reset_memory,
)
from purerl.nn.memory import step as step_network
from purerl.nn.networks import Actor
from purerl.records.types import PyTree

Pair: TypeAlias = tuple[PyTree, PyTree]  # of what a scan carries, or of its inputs


def actor_policy(actor: Actor, params: PyTree, sample: bool) -> Acting:
    """The policy of an actor with a distribution, and its memory: samples of it, or its mode."""

    def act(memory: Memory, obs: PyTree, key: Key) -> tuple[Memory, jax.Array, Extras]:
        memory, distribution = step_network(actor, params, memory, obs)
        return memory, distribution.sample(key) if sample else distribution.mode(), {}

    return Acting(
        act,
        lambda num_envs: init_memory(actor, num_envs),
        lambda memory, done: reset_memory(actor, memory, done),
    )


def actor_value(
    both: PolicyAndValue, params: dict[str, PyTree], memory: Memory, obs: PyTree
) -> jax.Array:
    """V(s) `[N]` under the memory of the policy, which is the actor's.

    Raises:
        NotImplementedError: the critic has a memory, which a policy doesn't keep.
    """
    if remembers(both.critic):
        raise NotImplementedError(
            f"{type(both.critic).__name__} has a memory of its own, which a policy doesn't keep; "
            "with one network for policy and value (share_network=True) the values are the policy's"
        )
    return both.step(params, (memory, ()), obs)[1][1]


def flatten(batch: PyTree) -> PyTree:
    """`[T, N, ...]` to `[T N, ...]`, leaf by leaf."""
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), batch)


def path_batch(
    data: Batch, *others: jax.Array, devices: Devices = ALONE, memory: Memory = ()
) -> PyTree:
    """A batch `[T N, ...]` of paths `[T, N, ...]`: obs, action (with the draws that gave it), and
    weight, which gives means over the valid steps; and the others, flattened likewise.

    With a memory, of the networks before the rollout, it is a batch of sequences for `outputs`:
    nothing is flattened, and the entries `memory` and `fresh` are added.
    """
    weight = data["valid"].astype(jnp.float32) / valid_count(data["valid"], devices)
    batch = {"obs": data["obs"], **drawn_actions(data), "weight": weight}
    if not jax.tree.leaves(memory):
        return flatten((batch, *others))
    fresh = begins(data["terminated"], data["truncated"])
    memory = jax.tree.map(lambda x: x[None], memory)
    return batch | {"memory": memory, "fresh": fresh}, *others


def standardize_batch(
    advantage: jax.Array, weight: jax.Array, devices: Devices = ALONE
) -> jax.Array:
    """Advantages of a batch, standardised by the weights of `path_batch`, of the same shape."""
    return standardize(
        advantage, *standard_moments(advantage.reshape(-1), weight.reshape(-1), devices)
    )


def policy_terms(
    distribution: PyTree, batch: Batch, advantage: jax.Array, entropy_beta: jax.Array | float
) -> Losses:
    """-(log pi(a | s) advantage + entropy_beta entropy), and its parts, `[B]` each.

    Args:
        distribution: pi(. | s), with batch shape `[B]`.
        batch: has the output of `draw`, `[B, ...]`.
        advantage: `[B]`, or `[T, n]` of sequences.
        entropy_beta: weight of the entropy bonus.
    """
    policy_loss = -log_prob_of(distribution, batch) * advantage.reshape(-1)
    entropy = distribution.entropy()
    loss = policy_loss - entropy_beta * entropy
    return {"loss": loss, "policy_loss": policy_loss, "entropy": entropy}


def policy_gradient(
    policy: Callable[[PyTree, Batch], tuple[PyTree, Batch]],
    params: PyTree,
    batch: Batch,
    advantage: jax.Array,
    entropy_beta: jax.Array | float,
    devices: Devices = ALONE,
) -> tuple[PyTree, Losses]:
    """Gradient of the weighted mean of `policy_terms`.

    Args:
        policy: from parameters and rows of the batch to distributions `[B]`, and the entries that
            belong to them.
        params: the policy's.
        batch: from `path_batch`.
        advantage: of its shape.
        entropy_beta: weight of the entropy bonus.
        devices: those that the batch is spread over.
    """

    def loss_fn(params: PyTree, rows: tuple[Batch, jax.Array]) -> Losses:
        batch, advantage = rows
        return policy_terms(*policy(params, batch), advantage, entropy_beta)

    rows = (batch, advantage)
    losses, grads = mean_gradient(loss_fn, params, rows, batch["weight"], devices)
    return grads, {**losses, "grad_norm": global_norm(grads)}


def fit_value(
    value_fn: Callable[[PyTree, Batch], jax.Array],
    params: PyTree,
    opt_state: optax.OptState,
    batch: Batch,
    target: jax.Array,
    optimizer: optax.GradientTransformation,
    num_iters: int,
    devices: Devices = ALONE,
) -> tuple[PyTree, optax.OptState, jax.Array]:
    """Gradient steps on half the weighted mean squared error of `value_fn(params, batch)`, `[B]`,
    for a batch from `path_batch` and targets of its shape.

    Returns:
        Parameters, the optimizer's state, and the mean of the losses.
    """

    def loss_fn(params: PyTree, rows: tuple[Batch, jax.Array]) -> Losses:
        batch, target = rows
        return {"loss": 0.5 * (value_fn(params, batch) - target.reshape(-1)) ** 2}

    def step(carry: Pair, _: None) -> tuple[Pair, jax.Array]:
        params, opt_state = carry
        rows = (batch, target)
        losses, grads = mean_gradient(loss_fn, params, rows, batch["weight"], devices)
        return descend(optimizer, grads, opt_state, params), losses["loss"]

    (params, opt_state), losses = jax.lax.scan(step, (params, opt_state), length=num_iters)
    return params, opt_state, jnp.mean(losses)


def replay(
    learn: Callable[
        [AgentState, Batch, jax.Array, jax.Array], tuple[AgentState, jax.Array, Losses]
    ],
    state: AgentState,
    experience: Experience,
    key: jax.Array,
    *,
    num_steps: int,
    batch_size: int,
    n_step: int,
) -> tuple[AgentState, Experience, Losses]:
    """Gradient steps on transitions drawn from a buffer, with new priorities after each.

    Args:
        learn: from a state, a batch of B transitions, a key and the step's number in this update,
            `[]` int32, to the state after one step, the TD errors `[B]` and losses.
        state, experience, key: as in `Agent.update`.
        num_steps: number of gradient steps.
        batch_size: B.
        n_step: see `Buffer.sample`.

    Returns:
        State, experience, and the losses' means.
    """
    keys = ("obs", "action", "reward", "next_obs")

    def step(carry: Pair, inputs: tuple[jax.Array, jax.Array]) -> tuple[Pair, Losses]:
        (state, stored), (key, number) = carry, inputs
        held = experience.replace(state=stored)
        batch = held.sample(key, batch_size, keys=keys, n_step=n_step)
        state, td_error, losses = learn(state, batch, another_key(key, 0), number)
        return (state, held.update_priorities(batch["indices"], td_error).state), losses

    step_keys = jax.random.split(key, num_steps) if num_steps > 1 else key[None]
    inputs = (step_keys, jnp.arange(num_steps, dtype=jnp.int32))
    (state, stored), losses = jax.lax.scan(step, (state, experience.state), inputs)
    return state, experience.replace(state=stored), jax.tree.map(jnp.mean, losses)


def td_target(batch: Batch, beyond: jax.Array) -> jax.Array:
    """The n-step TD target `[B]`: discounted rewards plus the discounted value `beyond`, which is
    0 after a termination, even where the network's is NaN."""
    reward: jax.Array = batch["reward"]
    discount: jax.Array = batch["discount"]
    return reward + discount * jnp.where(discount > 0, beyond, 0.0)


def successor_values(
    value_fn: Callable[..., jax.Array], experience: Experience, value: jax.Array, *steps: PyTree
) -> jax.Array:
    """V of every transition's true successor, with network passes only where a path is cut.

    Inside a path V(s_{t+1}) is the next row's value. For the others the network is evaluated: for
    all that are stored if these are few, because the time limit is known; else for those of the
    last row and of truncated episodes, N at a time in a `while_loop`. Derivatives, which can't go
    through that loop, evaluate every successor.

    Args:
        value_fn: `(obs [B, *obs_shape], *steps [B, ...]) -> [B]`, the function that gave `value`.
        experience: one rollout.
        value: `[T, N]`, V(s_t).
        steps: more inputs of it, `[T, N, ...]`, row t for the successor of step t: such as the
            memory after each step.

    Returns:
        `[T, N]`; entries of terminated transitions have no meaning.
    """
    obs, row = experience.successors()
    num_steps, num_envs = value.shape
    if len(row) == num_steps:  # as many as there are: the truncated ones are evaluated
        # Closed-over tracers become arguments, so that derivatives go through them too.
        rows = (obs, *steps)
        value_fn, closed = jax.closure_convert(value_fn, *jax.tree.map(lambda x: x[-1], rows))
        return _look_at_cuts(value_fn, (row < num_steps).at[-1].set(False), closed, value, rows)
    env = jnp.arange(num_envs, dtype=jnp.int32)
    steps = jax.tree.map(lambda x: x.at[row, env].get(mode="clip"), steps)
    seen = value_fn(*flatten((obs, *steps))).reshape(row.shape)
    after = jnp.concatenate([value[1:], seen[-1:]])
    return after.at[row[:-1], env].set(seen[:-1], mode="drop")


def next_values(
    networks: PolicyAndValue | ActionValues, params: PyTree, experience: Experience
) -> jax.Array:
    """V of the true successors of a rollout, `[T, N]`, as from `successor_values`.

    With a memory it is V under the memory after the step, before its reset.

    Args:
        networks, params: those that acted.
        experience: the rollout, with their values as the entry `value`.
    """
    data = experience.read()
    after: Memory = ()
    if networks.remembers:
        fresh = begins(data["terminated"], data["truncated"])
        after = memories(networks, params, experience.memory, fresh, data["obs"])

    def value_fn(obs: PyTree, memory: Memory) -> jax.Array:
        return networks.step(params, memory, obs)[1][1]

    return successor_values(value_fn, experience, data["value"], after)


def outputs(
    networks: PolicyAndValue | ActionValues, params: PyTree, batch: Batch
) -> tuple[tuple[PyTree, jax.Array], Batch]:
    """Distribution, or Q(s, .), and V(s) of a minibatch from `minibatch_steps`, `[B]`, and the
    entries that belong to them, `[B, ...]`: those of sequences `[T, n, ...]` are flattened."""
    if not networks.remembers:
        return networks.step(params, (), batch["obs"])[1], batch
    batch = dict(batch)
    memory, fresh = batch.pop("memory"), batch.pop("fresh")
    memory = jax.tree.map(lambda x: x[0], memory)
    return networks.unroll(params, memory, fresh, batch["obs"])[1], flatten(batch)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _look_at_cuts(
    value_fn: Callable[..., jax.Array],
    cut: jax.Array,
    closed: list[jax.Array],
    value: jax.Array,
    rows: tuple[PyTree, ...],
) -> jax.Array:
    """The next row's value, or `value_fn` of the inputs `[T, N, ...]` where `cut`, `[T, N]` bool,
    and in the last row."""
    num_steps, num_envs = value.shape
    last = value_fn(*jax.tree.map(lambda x: x[-1], rows), *closed)
    shifted = jnp.concatenate([value[1:], last[None]]).reshape(-1)
    cut = cut.reshape(-1)
    count = jnp.sum(cut, dtype=jnp.int32)
    index = jnp.nonzero(cut, size=cut.size, fill_value=cut.size)[0].reshape(num_steps, num_envs)
    flat = flatten(rows)

    def more(carry: tuple[jax.Array, jax.Array]) -> jax.Array:
        return carry[0] * num_envs < count

    def look(carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        row, values = carry
        at = index[row]
        seen = value_fn(*jax.tree.map(lambda x: x.at[at].get(mode="clip"), flat), *closed)
        return row + 1, values.at[at].set(seen, mode="drop")

    _, values = jax.lax.while_loop(more, look, (jnp.int32(0), shifted))
    return values.reshape(num_steps, num_envs)


@_look_at_cuts.defjvp
def _(
    value_fn: Callable[..., jax.Array], primals: tuple[PyTree, ...], tangents: tuple[PyTree, ...]
) -> tuple[jax.Array, jax.Array]:
    def look_at_all(
        cut: jax.Array, closed: list[jax.Array], value: jax.Array, rows: tuple[PyTree, ...]
    ) -> jax.Array:
        seen = jax.vmap(lambda *row: value_fn(*row, *closed))(*rows)
        return jnp.where(cut.at[-1].set(True), seen, jnp.concatenate([value[1:], seen[-1:]]))

    return jax.jvp(look_at_all, primals, tangents)


def minibatch_steps(
    learn: Callable[[AgentState, Batch], tuple[AgentState, Losses]],
    state: AgentState,
    batch: Batch,
    key: jax.Array,
    *,
    batch_size: int,
    num_epochs: int,
    standardized: Sequence[str] = (),
    target_kl: jax.Array | float | None = None,
    devices: Devices = ALONE,
    memory: PyTree = (),
) -> tuple[AgentState, Losses]:
    """Gradient steps on shuffled minibatches of a rollout.

    For networks with a memory, minibatches are of whole environments: their sequences through the
    rollout, `[T, n, ...]`, n environments each, in place of `[batch_size, ...]`. The entry `memory`
    is then what they begin with, `[1, n, ...]`.

    Args:
        learn: from a state and a minibatch `[batch_size, ...]` to the state after one step, and
            losses. In place of `valid` the minibatch has `weight`, as `mean_gradient` takes it,
            for means over the valid rows.
        state: the agent's.
        batch: entries `[T, N, ...]` by name, `valid` among them.
        key: for the order.
        batch_size: on each device; it divides T N. With a memory it is T n, where n divides N.
        num_epochs: passes through the rollout.
        standardized: entries to be standardised to mean 0 and standard deviation 1, over the valid
            rows of each minibatch on all devices.
        target_kl: stop (keep the state) from the first minibatch on whose loss `approx_kl` is
            larger; None for never.
        devices: those that the rollout is spread over.
        memory: the acting policy's before the rollout, `[N, ...]`; `()` for none.

    Returns:
        The state, and the losses' means.
    """
    num_steps, num_envs = batch["valid"].shape
    batches: Minibatches | Sequences
    if jax.tree.leaves(memory):
        batches = shuffle_environments(key, num_envs, batch_size // num_steps, num_epochs)
    else:
        batches = shuffle(key, num_steps, num_envs, batch_size, num_epochs)

    # For all minibatches at once: one collective, not one for each.
    def known(blocks: jax.Array) -> tuple[jax.Array, list[tuple[jax.Array, jax.Array]]]:
        entries, valid = batches.take(([batch[x] for x in standardized], batch["valid"]), blocks)
        count = valid_count(valid, devices)
        weight = valid.reshape(-1).astype(jnp.float32) / count
        return count, [standard_moments(x.reshape(-1), weight, devices) for x in entries]

    def step(carry: Pair, minibatch: Pair) -> tuple[Pair, Losses]:
        state, stopped = carry
        blocks, (count, found) = minibatch
        rows = batches.take(batch, blocks)
        rows["weight"] = rows.pop("valid").astype(jnp.float32) / count
        if isinstance(batches, Sequences):
            rows["memory"] = jax.tree.map(lambda x: x[blocks][None], memory)
        for name, moved in zip(standardized, found, strict=True):
            rows[name] = standardize(rows[name], *moved)
        new, losses = learn(state, rows)
        if target_kl is None:
            return (new, stopped), losses
        stopped = stopped | (devices.mean(losses["approx_kl"]) > target_kl)
        kept = where(stopped, state, new)
        return (kept, stopped), {**losses, "stopped": stopped.astype(jnp.float32)}

    minibatches = (batches.blocks, jax.vmap(known)(batches.blocks))
    (state, _), losses = jax.lax.scan(step, (state, jnp.bool_(False)), minibatches)
    return state, jax.tree.map(jnp.mean, losses)


def explained_variance(
    target: jax.Array, value: jax.Array, valid: jax.Array, devices: Devices = ALONE
) -> jax.Array:
    """1 - Var(target - value) / Var(target) over the valid entries, `[T, N]`, of all devices."""
    weight = valid.astype(jnp.float32) / valid_count(valid, devices)
    both = jnp.stack([target - value, target])
    _, (residual, variance) = jax.vmap(
        lambda x: moments(x.reshape(-1), weight.reshape(-1), devices)
    )(both)
    unexplained: jax.Array = residual / (variance + 1e-8)
    return 1.0 - unexplained


class Minibatches(NamedTuple):
    """Indices of the transitions in each minibatch.

    Attributes:
        blocks: `[num_epochs * num_minibatches, blocks]`, the blocks of each minibatch.
        block: size of a block: neighbouring environments at one time step.
    """

    blocks: jax.Array
    block: int

    def take(self, batch: PyTree, chosen: jax.Array) -> PyTree:
        """One minibatch, `[batch_size, ...]`, of `[T, N, ...]`."""

        def pick(x: jax.Array) -> jax.Array:
            blocks = x.reshape(-1, self.block, *x.shape[2:])
            return blocks[chosen].reshape(-1, *x.shape[2:])

        return jax.tree.map(pick, batch)


def shuffle(
    key: jax.Array, num_steps: int, num_envs: int, batch_size: int, num_epochs: int
) -> Minibatches:
    """Minibatches in random order, every transition once an epoch.

    Blocks of up to 16 environments at one time step are shuffled, not single transitions: the
    permutation is shorter, and the gather reads whole cache lines. A block stays together in every
    epoch. Where environments run in lockstep, so that neighbours resemble each other, minibatches
    are less varied than those of single transitions.

    Args:
        key: for the permutations.
        num_steps, num_envs: T and N.
        batch_size: transitions in a minibatch; divides T N.
        num_epochs: number of epochs.
    """
    divides = [n for n in range(1, 17) if num_envs % n == 0 and batch_size % n == 0]
    block = max(divides)
    orders = _orders(key, num_steps * num_envs // block, num_epochs)
    return Minibatches(orders.reshape(-1, batch_size // block), block)


class Sequences(NamedTuple):
    """Indices of the environments in each minibatch.

    Attributes:
        blocks: `[num_epochs * num_minibatches, n]`, the environments of each minibatch.
    """

    blocks: jax.Array

    def take(self, batch: PyTree, chosen: jax.Array) -> PyTree:
        """One minibatch, `[T, n, ...]`, of `[T, N, ...]`."""
        return jax.tree.map(lambda x: x[:, chosen], batch)


def shuffle_environments(
    key: jax.Array, num_envs: int, environments: int, num_epochs: int
) -> Sequences:
    """Minibatches of whole environments in random order, each environment once an epoch.

    Args:
        key: for the permutations.
        num_envs: N.
        environments: in a minibatch, n; divides N.
        num_epochs: number of epochs.
    """
    return Sequences(_orders(key, num_envs, num_epochs).reshape(-1, environments))


def _orders(key: jax.Array, rows: int, num_epochs: int) -> jax.Array:
    """`[num_epochs, rows]`, a permutation for each epoch."""
    # Sorted by random numbers, drawn for all epochs at once; two for each of many rows, against
    # ties.
    bits = jax.random.bits(key, (1 if rows <= 1024 else 2, num_epochs, rows), jnp.uint32)
    order = jnp.broadcast_to(jnp.arange(rows, dtype=jnp.int32), (num_epochs, rows))
    return jax.lax.sort((*bits, order), num_keys=len(bits))[-1]
