"""Suites of other packages, `"suite/Env"`: a file for each, imported when one is asked for.

Each adapter hands over raw dynamics: no reset inside, `terminated` apart from `truncated`, the true
last observation, the suite's time limit as purerl's own truncation. Importing most suites starts
JAX's backend and takes seconds, so that their names are listed without.
"""

import functools
import importlib
import importlib.metadata
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterable
from typing import NamedTuple

from purerl.envs.base import Env
from purerl.envs.suites.dynamics import LIMIT, Foreign, Maker, theirs
from purerl.envs.suites.names import NAMES
from purerl.records.errors import ConfigError, raised, sentence, shown, suggest
from purerl.records.fields import check_count


class Suite(NamedTuple):
    """A suite of environments.

    Attributes:
        about: what it has, in a few words.
        modules: the modules that have to be there, the first one is the suite's.
        resets: the strategy for initial states where a run names none.
        python: the oldest version of Python for which the extra installs it.
    """

    about: str
    modules: tuple[str, ...]
    resets: str = "fresh"
    python: tuple[int, int] = (3, 11)


SUITES = {
    "brax": Suite("robots on four physics engines", ("brax",)),
    "playground": Suite(
        "MuJoCo Playground: DM Control, locomotion, manipulation",
        ("mujoco_playground",),
        "spare(256)",
    ),
    "craftax": Suite("Craftax and Craftax-Classic", ("craftax",), "spare(64)"),
    "navix": Suite("MiniGrid", ("navix",), "spare(64)", (3, 12)),
    "xminigrid": Suite("MiniGrid and XLand", ("xminigrid",), "spare(64)"),
    "jumanji": Suite("combinatorial tasks, with masks", ("jumanji",), "spare(64)"),
    "pgx": Suite("2048, board games against an opponent, MinAtar", ("pgx",)),
    "octax": Suite("CHIP-8 arcade games", ("octax", "cv2")),
    "functional": Suite("Gymnasium's functional environments", ("gymnasium",)),
}
# Suites that are not offered, and why.
REFUSED = {
    "popgym_arcade": "its dependency stable-gymnax overwrites files of gymnax, which purerl needs",
    "kinetix": "it needs JAX 0.9 or older",
    "jaxgcrl": "it needs JAX 0.4.25",
    "pobax": "its package can't be imported",
    "jaxtari": "its games need assets to be downloaded, and a statement that only you can make; "
    "bring one as module:name",
    "jaxmarl": "it is for several agents; bring one as module:name",
}
GROUP = "purerl.environments"  # of entry points


def names(suite: str | None = None) -> list[str]:
    """Full names of the environments of a suite, or of all; nothing is imported."""
    chosen = NAMES if suite is None else {suite: NAMES[suite]}
    return [f"{suite}/{name}" for suite, found in chosen.items() for name in found]


def installed(suite: str) -> bool:
    """Whether a suite's modules are there; none is imported."""
    return all(importlib.util.find_spec(module) is not None for module in SUITES[suite].modules)


def pip_line(suite: str) -> str:
    """The command that installs a suite."""
    return f"pip install 'purerl[{suite}]'"


def adapter(suite: str) -> Foreign:
    """The module of a suite's adapter, after the suite is found to be there.

    Raises:
        ConfigError: the suite isn't offered, isn't installed, or can't be imported.
    """
    word = suite.replace("-", "_")
    if word in REFUSED:
        raise ConfigError(f"env: purerl has no suite {suite!r}: {REFUSED[word]}")
    if suite not in SUITES:
        raise ConfigError(f"env: no suite {suite!r}; {suggest(suite, SUITES)}")
    if not installed(suite):
        oldest = SUITES[suite].python
        if sys.version_info < oldest:
            version = ".".join(map(str, oldest))
            raise ConfigError(
                f"env: {suite} isn't installed, and needs Python {version}; with that: "
                f"{pip_line(suite)}"
            )
        raise ConfigError(f"env: {suite} isn't installed: {pip_line(suite)}")
    module = importlib.import_module(f"{__name__}.{suite}")
    try:
        _known(module)
    except Exception as error:  # from another package's import
        raise ConfigError(
            f"env: {suite} can't be imported: {raised(error)}; perhaps another version can: "
            f"{pip_line(suite)}"
        ) from error
    return module


def _known(module: Foreign) -> list[str]:
    """The names that a suite's installed version has, after its import."""
    with theirs():
        found: list[str] = module.known()
    return found


def maker(full_name: str) -> Maker:
    """The factory of an environment `"suite/Env"`.

    Raises:
        ConfigError: see `adapter`; or the suite has no such environment, or can't make it.
    """
    suite, _, name = full_name.partition("/")
    if suite in SUITES and name not in NAMES[suite]:
        gained = _known(adapter(suite)) if installed(suite) else []
        if name not in gained:
            known = [*names(suite), *(f"{suite}/{x}" for x in gained if x not in NAMES[suite])]
            raise ConfigError(f"env: no environment {full_name!r}; {suggest(full_name, known)}")
    module = adapter(suite)
    with sentence(f"env: {full_name!r} can't be made"), theirs():
        made: Maker = module.maker(name)
    return made._replace(call=functools.partial(_call, made.call))


def _call(function: Callable[..., Env], **params: object) -> Env:
    if params.get(LIMIT) is not None:
        params[LIMIT] = check_count(f"env.{LIMIT}", params[LIMIT])
    with theirs():
        return function(**params)


def adapt(env: object, params: object = None) -> Env | None:
    """An `Env` of an instance of a suite's environment class; None for any other object.

    Args:
        env: the instance.
        params: its parameters, of a suite that keeps them apart; of pgx an opponent.

    Raises:
        ConfigError: it is a wrapper that resets by itself, or can't be adapted; parameters of a
            suite that has none apart.
    """
    roots = _packages(env)
    for suite, facts in SUITES.items():
        if facts.modules[0] in roots:
            module = adapter(suite)
            rest = {} if params is None else {"params": params}
            if rest and "params" not in inspect.signature(module.adapt).parameters:
                raise ConfigError(
                    f"env: got a pair of a {type(env).__name__} and {shown(params)}, expected the "
                    f"first alone: the environments of {suite} have their parameters in them"
                )
            with theirs():
                made: Env | None = module.adapt(env, **rest)
            if made is not None:
                return made
    return None


def _packages(env: object) -> set[str]:
    """The packages of an object's class and of those that it inherits from."""
    return {cls.__module__.partition(".")[0] for cls in type(env).__mro__}


def is_foreign(env: object) -> bool:
    """Whether an object's class is, or inherits from, one of a suite that is imported."""
    return not _packages(env).isdisjoint(facts.modules[0] for facts in SUITES.values())


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of an error message about an unknown name, over all suites' names too: those whose
    part after the suite is the same come first."""
    word = name.rpartition("/")[2].lower()
    same = [x for x in names() if x.partition("/")[2].lower() == word]
    if same:
        return f"did you mean {' or '.join(map(repr, same))}?"
    hint = suggest(name, [*known, *names()])
    if hint.startswith("did you mean"):
        return hint
    return f"{suggest(name, known)}; and those of {', '.join(SUITES)}: see purerl.env_names(suite)"


def plugged() -> dict[str, importlib.metadata.EntryPoint]:
    """Environments of other packages by name: their entry points of the group
    `purerl.environments`, of which nothing is imported."""
    return {point.name: point for point in importlib.metadata.entry_points(group=GROUP)}
