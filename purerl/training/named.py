"""Environments by their names in files. Such a name may be of code, which is imported only if the
user names it too."""

from collections.abc import Mapping

from purerl.records.errors import ConfigError
from purerl.records.types import Plain


def is_code(env: Plain) -> bool:
    """Whether an environment's name refers to code to be imported: `module:name`. Files may come
    from anywhere, so that such a name is used only if the user gives it, too."""
    name = env_name(env)
    return isinstance(name, str) and ":" in name


def refuse_code(there: Mapping[str, Plain], given: Mapping[str, Plain], file: object) -> None:
    """Raises ConfigError for an environment of evaluations that is code, which a file names, and
    the user doesn't."""
    env = there.get("eval_env")
    if is_code(env) and env_name(given.get("eval_env")) != env_name(env):
        raise ConfigError(
            f"--eval-env: expected --eval-env {env_name(env)}: {file} names it, and it is code "
            "that would be run"
        )


def env_name(env: Plain) -> Plain:
    """The name in an environment's plain form, with or without parameters."""
    return env.get("name") if isinstance(env, Mapping) else env


def named_env(env: Plain, name: str, params: Mapping[str, Plain] | None = None) -> Plain:
    """The plain form of an environment that the user names, with the parameters of `env` if that
    has the same name, updated by `params`."""
    same = isinstance(env, Mapping) and env_name(env) == name
    merged = {**(env if same else {}), **(params or {})}
    return {**merged, "name": name} if merged else name
