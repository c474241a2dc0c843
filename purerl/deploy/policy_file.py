"""A policy as one small file: its arrays, and a description in JSON.

The file is a NumPy archive (`.npz`), uncompressed. Loading reads arrays and plain values, never
code, and allocates no more than the file's size before its parts are found to fit each other.
"""

import contextlib
import io
import json
import math
import os
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from purerl.agents import AGENTS, Agent
from purerl.deploy.plain_space import count_elements, space_from_plain, space_to_plain
from purerl.envs.base import EnvSpec
from purerl.envs.registry import as_env, make, plain_source, source_from_plain
from purerl.experience.metrics import Count
from purerl.experience.normalize import init_stats
from purerl.nn import defaults
from purerl.nn.networks import Actor, Critic
from purerl.records.errors import ConfigError, RunError
from purerl.records.fields import check_path, field_names
from purerl.records.files import by_path, open_file, plain_bytes, reason, write_bytes
from purerl.records.types import PyTree
from purerl.training.config import plain_value
from purerl.training.describe import describe, versions
from purerl.training.policy import Interface, Policy

FORMAT = 2
KIND = "purerl policy"
ABOUT = "about"
MOST_ABOUT = 2**26  # bytes of the description
# Elements of all spaces that any policy may have, however few its parameters: 1024 x 1024 x 4.
MOST_ELEMENTS = 2**22
# Networks of purerl that an agent may name as its actor or critic.
NETWORKS: dict[str, type] = {
    name: c
    for name, c in vars(defaults).items()
    if isinstance(c, type) and issubclass(c, (Actor, Critic)) and c.__module__ == defaults.__name__
}


def save_policy(policy: Policy, path: str | os.PathLike) -> None:
    """Writes a policy into one small file, whole or not at all.

    The file has the networks' parameters, observation statistics, hyperparameters, and the
    environment's spaces, name and parameters, with the run's time limit and frame skip.

    Args:
        policy: such as `out.policy`, or `out.member(i).policy` of several runs.
        path: the file; an existing one is replaced.

    Raises:
        ConfigError: it isn't one policy, observations are pytrees of other containers than dicts
            and tuples, or the bounds of a space are too many to be written down.
        RunError: the file can't be written.
    """
    if not isinstance(policy, Policy):
        raise ConfigError(f"policy: got {type(policy).__name__}, expected a Policy: out.policy")
    try:
        policy.check_one()
    except ValueError as error:
        raise ConfigError(f"policy: {error}") from None
    path = check_path("path", path)
    leaves = _leaves(policy.state, policy.obs_stats)
    arrays: dict[str, Any] = {name: _stored(x) for name, x in leaves.items()}
    processor, spec = policy.interface.action_processor, policy.spec
    about = {
        "kind": KIND,
        "format": FORMAT,
        "versions": versions(),
        "agent": _plain_agent(jax.tree.map(float, policy.agent)),
        "normalize_obs": policy.obs_stats is not None,
        "num_updates": int(np.asarray(policy.num_updates)),
        "action_processor": None if processor is None else describe(processor),
        "limits": policy.interface.limits,
        "spec": {
            "name": spec.name,
            "observation_space": space_to_plain(spec.observation_space, "observation_space"),
            "action_space": space_to_plain(spec.action_space, "action_space"),
            "max_episode_steps": spec.max_episode_steps,
            "source": _plain_source(spec),
            "legal": _plain_legal(spec),
        },
    }
    text = json.dumps(about, indent=1).encode()
    if len(text) > MOST_ABOUT:
        raise ConfigError(
            f"policy: its description has {len(text):,} bytes, expected at most {MOST_ABOUT:,}: "
            "give the spaces of the environment one bound for all elements"
        )
    arrays[ABOUT] = np.frombuffer(text, np.uint8)
    np.savez(packed := io.BytesIO(), **arrays)
    write_bytes(path, packed.getbuffer(), "the policy")


def load_policy(
    path: str | os.PathLike,
    agent: Agent | type[Agent] | None = None,
    *,
    action_processor: Callable[[jax.Array], jax.Array] | None = None,
    env: object = None,
) -> Policy:
    """Reads a policy that `save_policy` wrote; its actions are those of the saved one, bit for bit.

    Args:
        path: the file.
        agent: needed where the agent has classes or functions of the user's, which aren't in the
            file: an agent with them, such as `purerl.PPO(actor=MyActor)`; where the agent is a
            user's subclass, that class. All else comes from the file.
        action_processor: that of the run, where it had one.
        env: the environment, needed where it is the user's and its `EnvSpec.legal` is a function: a
            name, an `Env`, or a gymnax `Environment`.

    Raises:
        RunError: the file can't be read, is damaged, is no policy's or another version's, or the
            agent (or action_processor, or env) has to be given, or is another than the file's.
    """
    path = check_path("path", path)
    with _opened(path) as archive:
        about = _read_about(path, archive)
        try:
            spec = _spec(about["spec"], archive)
            spec = spec._replace(legal=_legal(path, about["spec"], spec, env))
            made = _make_agent(path, _plausible(about["agent"], archive), agent)
            processor = about["action_processor"]
            if (processor is None) != (action_processor is None):
                wanted = f"action_processor={processor}" if processor else "no action_processor"
                raise RunError(f"{path} is of a policy with {wanted}: load it with that")
            like = jax.eval_shape(lambda: made.for_acting(made.init(jax.random.key(0), spec)))
            # A space has the shape of its observations.
            stats = None
            if about["normalize_obs"]:
                stats = jax.eval_shape(lambda: init_stats(spec.observation_space))
            found = _unpacked(path, archive, like, stats)
            trained = Count.of(about.get("num_updates", 0))
            interface = Interface(spec, action_processor, _limits(about))
            return Policy(made, *found, interface, num_updates=trained)
        except (RunError, ConfigError) as error:
            raise RunError(str(error)) from None
        except Exception as error:  # a user's agent may raise anything
            raise RunError(f"{path} can't be made a policy: {reason(error)}") from error


class _Shape(NamedTuple):
    """Dtype and shape of an array."""

    dtype: np.dtype
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.dtype} {self.shape}"


class _Archive:
    """The arrays of a file: shapes are read at once, values by `read`.

    Attributes:
        shapes: by name.

    Raises:
        Exception: of any type, where the file is damaged, or isn't as `save_policy` writes it.
    """

    def __init__(self, file: BinaryIO) -> None:
        if not zipfile.is_zipfile(file):
            raise ValueError("it is no archive")
        self._zip = zipfile.ZipFile(file)
        members = self._zip.infolist()
        if any(x.compress_type != zipfile.ZIP_STORED or x.flag_bits & 1 for x in members):
            raise ValueError("it is compressed")
        if sum(x.file_size for x in members) > os.fstat(file.fileno()).st_size:
            raise ValueError("its arrays are larger than the file")
        self._members = {x.filename.removesuffix(".npy"): x for x in members}
        if len(self._members) < len(members):
            raise ValueError("an array is there twice")
        self.shapes = {name: self._shape(name) for name in self._members}

    def _shape(self, name: str) -> _Shape:
        """The shape in the array's header, which has to account for all bytes of the member."""
        member = self._members[name]
        with self._zip.open(member) as stream:
            if np.lib.format.read_magic(stream) != (1, 0):
                raise ValueError(f"the array {name!r} is of an unknown format")
            shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
            size = stream.tell() + math.prod(shape) * dtype.itemsize
        if dtype.hasobject or size != member.file_size:
            raise ValueError(f"the array {name!r} is not of the size that its header has")
        return _Shape(dtype, shape)

    def read(self, name: str) -> np.ndarray:
        """Reads an array. Raises ValueError or BadZipFile where its checksum differs."""
        with self._zip.open(self._members[name]) as stream:
            array = np.lib.format.read_array(stream, allow_pickle=False)
            if stream.read(1):  # at the end of the member the checksum is compared
                raise ValueError(f"the array {name!r} is longer than it should be")
        return array

    @property
    def num_elements(self) -> int:
        """The number of elements of all arrays."""
        return sum(math.prod(x.shape) for x in self.shapes.values())


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[_Archive]:
    with contextlib.ExitStack() as exits:
        try:
            archive = _Archive(exits.enter_context(open_file(path)))
        except OSError as error:
            raise RunError(f"the policy {path} can't be read: {reason(error)}") from None
        except Exception as error:
            raise _damaged(path, error) from None
        yield archive


def _damaged(path: Path, error: Exception) -> RunError:
    return RunError(f"{path} is damaged, or no policy that save_policy wrote: {reason(error)}")


def _read_about(path: Path, archive: _Archive) -> dict[str, Any]:
    """The description in the file. Raises RunError."""
    try:
        shape = archive.shapes.pop(ABOUT)
        if shape.dtype != np.uint8 or len(shape.shape) != 1 or shape.shape[0] > MOST_ABOUT:
            raise ValueError(f"its description is {shape}")
        about = json.loads(archive.read(ABOUT).tobytes())
        kind = about.get("kind")
    except Exception as error:  # the readers may raise anything
        raise _damaged(path, error) from None
    if kind != KIND:
        raise RunError(f"{path} is no policy that save_policy wrote, but {kind!r}")
    if about.get("format") != FORMAT:
        wrote = about.get("versions", {}).get("purerl")
        raise RunError(
            f"{path} has format {about.get('format')}, expected {FORMAT}: purerl {wrote} wrote it"
        )
    return about


def _leaves(state: PyTree, stats: PyTree) -> dict[str, jax.Array]:
    """Leaves of the state and the statistics, by path."""
    return by_path({"state": state, "obs_stats": stats})


def _stored(x: jax.Array) -> np.ndarray:
    """An array as the archive keeps it: key data for keys, raw bits for bfloat16 and its like."""
    if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
        x = jax.random.key_data(x)
    return plain_bytes(np.asarray(x))


def _unpacked(path: Path, archive: _Archive, state: PyTree, stats: PyTree) -> tuple[PyTree, PyTree]:
    """State and statistics of the given shapes, from the archive. Raises RunError."""
    wanted = _leaves(state, stats)
    stored = {name: jax.eval_shape(_as_stored, x) for name, x in wanted.items()}
    shapes = {name: _Shape(np.dtype(x.dtype), x.shape) for name, x in stored.items()}
    for name in {**archive.shapes, **shapes}:
        found, expected = archive.shapes.get(name), shapes.get(name)
        if found != expected:
            raise RunError(
                f"{path} is of other networks than the agent's: {name} is {found or 'missing'} "
                f"there, expected {expected or 'missing'}"
            )
    try:
        arrays = {name: archive.read(name) for name in wanted}
    except Exception as error:  # the readers may raise anything
        raise _damaged(path, error) from None
    leaves = [_restored(arrays[name], x.dtype) for name, x in wanted.items()]
    whole = jax.tree.unflatten(jax.tree.structure({"state": state, "obs_stats": stats}), leaves)
    return whole["state"], whole["obs_stats"]


def _as_stored(x: jax.Array) -> jax.Array:
    if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
        return jax.random.key_data(x)
    if np.dtype(x.dtype).isbuiltin == 1:
        return x
    return x.view(f"u{x.dtype.itemsize}")


def _restored(array: np.ndarray, dtype: np.dtype) -> jax.Array:
    if jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(jnp.asarray(array))
    return jnp.asarray(array.view(dtype))


def _spec(plain: Mapping[str, Any], archive: _Archive) -> EnvSpec:
    most = max(MOST_ELEMENTS, archive.num_elements)
    parts = plain["observation_space"], plain["action_space"]
    if (size := sum(map(count_elements, parts))) > most:
        raise ValueError(f"its spaces have {size:,} elements, expected at most {most:,}")
    name, limit = plain["name"], plain["max_episode_steps"]
    # Files of earlier versions have none: in them the name stands for the whole environment.
    source = plain.get("source", name)
    if not isinstance(name, str) or (limit is not None and type(limit) is not int):
        raise ValueError(f"the environment's name is {name!r}, its limit {limit!r}")
    observation, action = map(space_from_plain, parts)
    return EnvSpec(name, observation, action, limit, source_from_plain(source) if source else None)


def _limits(about: Mapping[str, Any]) -> tuple[int | None, int] | None:
    """The run's time limit and frame skip; None in files of earlier versions."""
    plain = about.get("limits")
    if plain is None:
        return None
    limit, skip = plain
    if not all(type(x) is int and x >= 1 for x in (1 if limit is None else limit, skip)):
        raise ValueError(f"its time limit and frame skip are {plain!r:.80}")
    return limit, skip


def _plain_source(spec: EnvSpec) -> object:
    """The environment's source in plain values; None where it has no such form."""
    with contextlib.suppress(ConfigError):
        return plain_source(spec.source) if spec.source is not None else None
    return None


def _plain_legal(spec: EnvSpec) -> dict[str, str] | None:
    """The key of the mask of legal actions, or the name of the function that returns it."""
    if spec.legal is None:
        return None
    return {"key": spec.legal} if isinstance(spec.legal, str) else {"function": _name(spec.legal)}


def _legal(
    path: Path, plain: Mapping[str, Any], spec: EnvSpec, env: object
) -> str | Callable[[PyTree], jax.Array] | None:
    """`EnvSpec.legal`: the key in the file, or the function of the given environment, or of the one
    that the file names. Where that name imports code (`module:name`), the user has to pass the
    environment: no file decides which code runs. Raises RunError.
    """
    saved = plain.get("legal")  # which files of earlier versions don't have
    if saved is None or "key" in saved:
        return None if saved is None else str(saved["key"])
    if env is None and spec.source is not None and ":" not in spec.source.name:
        env = make(spec.source.name, **dict(spec.source.params))
    found = None if env is None else as_env(env).spec
    if found is None or found.legal is None or found.action_space != spec.action_space:
        got = "" if found is None else f"; got {found.name}, which is another"
        raise RunError(
            f"{path} is of {spec.name}, whose legal actions follow from {saved['function']}, which "
            "isn't in the file: give the environment, as load_policy(path, env=...) or by --env"
            + got
        )
    return found.legal


def _plausible(agent: dict[str, Any], archive: _Archive) -> dict[str, Any]:
    """An agent's plain values, as they are. Raises ValueError where one has more parts (such as
    layers) than the file has arrays."""
    for name, value in agent["fields"].items():
        if isinstance(value, list) and len(value) > 100 + len(archive.shapes):
            raise ValueError(f"{name} has {len(value):,} parts, and there are fewer arrays")
    return agent


def _plain_agent(agent: Agent) -> dict[str, object]:
    """An agent in plain values; of the user's classes and functions, the names."""
    cls = type(agent)
    fields, networks, named, none = {}, {}, {}, []
    for name in field_names(cls):
        value = getattr(agent, name)
        if value is None:
            none.append(name)
        elif NETWORKS.get(getattr(value, "__name__", "")) is value:
            networks[name] = _last(_name(value))
        else:
            try:
                fields[name] = plain_value(cls, name, value)
            except ConfigError:
                if name != "optimizer":  # a policy acts without
                    named[name] = _name(value)
    kind = next((name for name, known in AGENTS.items() if cls is known), None)
    return {
        "kind": kind,
        "class": _name(cls),
        "fields": fields,
        "none": none,
        "networks": networks,
        "own": named,
    }


def _name(value: object) -> str:
    described = describe(value)
    return described if isinstance(described, str) else json.dumps(described)


def _make_agent(path: Path, plain: Mapping[str, Any], given: Agent | type[Agent] | None) -> Agent:
    """The agent in the file, with the classes and functions of the given one. Raises RunError."""
    named = ", ".join(f"{name}={value}" for name, value in plain["own"].items())
    needed = plain["kind"] is None or named
    call = f"{plain['class'].rpartition('.')[2]}({named})"
    if given is None and needed:
        raise RunError(
            f"{path} is of {call}, whose code isn't in the file: give it, as "
            f"load_policy(path, agent={call})"
        )
    if given is None:
        cls: type = AGENTS[plain["kind"]]
    else:
        cls = given if isinstance(given, type) else type(given)
    if not issubclass(cls, Agent) or _last(_name(cls)) != _last(plain["class"]):
        raise RunError(f"agent: got {_name(cls)}, expected {call}, which {path} is of")
    rest = {} if isinstance(given, type) else {n: getattr(given, n, None) for n in plain["own"]}
    for name, value in plain["own"].items():
        got = "nothing" if rest.get(name) is None else _name(rest[name])
        if _last(got) != _last(value):
            raise RunError(f"agent: {name} is {got}, expected {value}, which {path} is of")
    networks = {name: NETWORKS[value] for name, value in plain["networks"].items()}
    values = {**plain["fields"], **networks, **rest}
    return cls(**dict.fromkeys(plain["none"]), **values)


def _last(name: str) -> str:
    """The name without its module, which differs for a script (`__main__`) and a module."""
    return name.rpartition(".")[2]
