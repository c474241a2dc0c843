"""Flags of the command line, one for each field of a config, made from the records."""

import argparse
import dataclasses
import tomllib
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from purerl.agents import AGENTS
from purerl.agents.noise import NOISES
from purerl.envs import Env
from purerl.experience.buffer import Buffer
from purerl.experience.rewarders import REWARDERS
from purerl.records.aliases import aliases_of
from purerl.records.docs import documented
from purerl.records.errors import ConfigError, suggest
from purerl.records.fields import field_names, field_options, read_names
from purerl.records.files import reason
from purerl.runs.view import read_toml
from purerl.training.config import TrainConfig
from purerl.training.effective import SIZES, in_force
from purerl.training.named import env_name, is_code, named_env, refuse_code
from purerl.training.options import Options
from purerl.training.presets import choose_preset, find_preset, read_presets

# Parts that are chosen by name; the fields of the chosen ones become flags.
PARTS: dict[str, Mapping[str, type]] = {"agent": AGENTS, "noise": NOISES, "rewarder": REWARDERS}
MOST_SEEDS = 2**20
# A config in plain values, as in TOML: its fields by name, parts as mappings.
Fields = dict[str, Any]
# Fields that hold functions or classes, which no word on the command line can express.
UNSPOKEN = (
    *("env", "agent", "buffer", "noise", "rewarder", "action_processor", "log"),
    *("actor", "critic"),
)


class Flag(NamedTuple):
    """A field that a flag sets: `--lr` sets `agent.lr`."""

    part: str  # "" for the config itself
    name: str
    record: type

    @property
    def word(self) -> str:
        return self.spelled(self.name)

    def spelled(self, name: str) -> str:
        """The flag of this field under a name, which may be an alias."""
        prefix = f"{self.part}." if self.part not in ("", "agent") else ""
        return "--" + prefix + name.replace("_", "-").lower()


def list_flags(chosen: Mapping[str, str | None]) -> list[Flag]:
    """All flags, for parts chosen by name; of a part with None the fields of all alternatives."""
    records: dict[str, list[type]] = {"": [TrainConfig]}
    for part, name in chosen.items():
        known = PARTS[part]
        records[part] = list(known.values()) if name is None else [known[name]]
    records["buffer"] = [Buffer]
    flags: dict[str, Flag] = {}
    for part, alternatives in records.items():
        for record in alternatives:
            for name in field_names(record):
                if name not in UNSPOKEN:
                    flags.setdefault(f"{part}.{name}", Flag(part, name, record))
    return list(flags.values())


def add_config_flags(parser: argparse.ArgumentParser, argv: Iterable[str]) -> None:
    """Adds the flags of the config, and of the parts that the arguments choose: `args.chosen`.

    Raises:
        ConfigError: an unknown part, or a config file that can't be read.
    """
    group = parser.add_argument_group("environment, agent and files")
    group.add_argument("--config", metavar="FILE", help="a TOML file of fields; flags come on top")
    group.add_argument("--preset", metavar="FILE", help="such as best.toml of purerl tune")
    group.add_argument("--no-preset", action="store_true", help="the agent's defaults only")
    for part, known in PARTS.items():
        group.add_argument(f"--{part}", metavar="NAME", help=f"one of {', '.join(known)}")
    add_env_flags(group, argv := list(argv))
    chosen = _chosen(argv)
    titles = {"": "the run", "agent": f"the agent, {chosen['agent']}", "buffer": "the buffer"}
    groups: dict[str, argparse._ArgumentGroup] = {}
    flags = list_flags(chosen)
    words = _words_in_force(argv, chosen) if {"-h", "--help"} & set(argv) else {}
    for flag in flags:
        if flag.part not in groups:
            name = chosen.get(flag.part)
            title = titles.get(flag.part, f"the {flag.part}" + (f", {name}" if name else ""))
            groups[flag.part] = parser.add_argument_group(title)
        _add(groups[flag.part], flag, shown=words.get((flag.part, flag.name)))
    _add_aliases(parser, flags)
    parser.set_defaults(chosen=chosen)


def add_env_flags(group: argparse._ActionsContainer, argv: Iterable[str]) -> None:
    """Adds a flag for each environment parameter in the arguments. They are checked later: the
    environment has to be made first, which may take seconds and run the user's code."""
    group.add_argument("--env.NAME", metavar="X", dest="_", default=argparse.SUPPRESS,
                       help="a parameter of the environment: see purerl envs ENV")  # fmt: skip
    words = (word.partition("=")[0] for word in argv if word.startswith("--env."))
    for word in {word: None for word in words if word != "--env.NAME"}:
        dest = "env." + word.removeprefix("--env.").replace("-", "_")
        options: dict[str, Any] = {"metavar": "X", "default": argparse.SUPPRESS}
        group.add_argument(word, dest=dest, help=argparse.SUPPRESS, **options)


def env_values(args: argparse.Namespace) -> Fields:
    """The environment's parameters in the arguments."""
    given = {n.removeprefix("env."): x for n, x in vars(args).items() if n.startswith("env.")}
    # A comma in a distribution, uniform(4.9, 9.8), makes no list.
    return {name: x if "(" in x else literal(x) for name, x in given.items()}


def _add_aliases(parser: argparse.ArgumentParser, flags: list[Flag]) -> None:
    """Adds flags for aliases of fields, which --help doesn't list; none for a word that is a flag
    already, or that is an alias of two fields."""
    words: dict[str, list[tuple[Flag, str]]] = {}
    for flag in flags:
        for alias, field in aliases_of(field_names(flag.record)).items():
            if field == flag.name:
                words.setdefault(flag.spelled(alias), []).append((flag, alias))
                if alias == "buffer_size":  # other libraries have it without a prefix
                    words.setdefault("--buffer-size", []).append((flag, alias))
    taken = {word for action in parser._actions for word in action.option_strings}
    for word, found in words.items():
        if word not in taken and len(found) == 1:
            flag, alias = found[0]
            _add(parser, flag, word, alias)


def _add(
    group: argparse._ActionsContainer,
    flag: Flag,
    word: str | None = None,
    alias: str | None = None,
    shown: str | None = None,
) -> None:
    """Adds the flag of a field, or of one of its aliases; `shown` is the value in force, if it
    isn't the field's default."""
    field = field_options(flag.record)[flag.name]
    if shown is None and field.default is not None and field.default is not dataclasses.MISSING:
        shown = default_word(field)
    about = "" if shown is None else f" ({shown})"
    help_text = (documented(flag.record).get(flag.name, "") + about).replace("%", "%%")
    options: dict[str, Any] = {"default": argparse.SUPPRESS, "help": help_text}
    if alias is not None:
        options["help"] = argparse.SUPPRESS
    word, dest = word or flag.word, f"{flag.part}.{alias or flag.name}"
    if field.metadata["expected"].startswith("True or False"):
        group.add_argument(word, dest=dest, action=argparse.BooleanOptionalAction, **options)
    else:
        group.add_argument(word, dest=dest, metavar=_metavar(field.metadata), **options)


def _words_in_force(
    argv: list[str], chosen: Mapping[str, str | None]
) -> dict[tuple[str, str], str]:
    """The values that `--help` shows, by part and field: those of the environment's preset, if the
    arguments name one, and what the agent takes in place of None."""
    words = (word for word in argv if not word.startswith("-"))
    preset: Fields = {}
    if not {"--no-preset", "--config", "--preset"} & {word.partition("=")[0] for word in argv}:
        preset = find_preset(next(words, None), chosen["agent"])
    return values_in_force(str(chosen["agent"]), preset)


def values_in_force(
    agent: str, preset: Mapping[str, Any], env: Env | None = None
) -> dict[tuple[str, str], str]:
    """Values by part and field, as flags take them: those of a preset, and defaults in place of
    None.

    Args:
        agent: its name.
        preset: fields of a config, {} for none.
        env: the environment; None for any.
    """
    fields = {name: x for name, x in preset.items() if name not in (*PARTS, "buffer")}
    of_agent = {n: x for n, x in preset.get("agent", {}).items() if n != "name"}
    options = in_force(Options(env=env, agent=AGENTS[agent](**of_agent), **fields))
    shown = {}
    parts = {
        "": (options, fields),
        "agent": (options.agent, of_agent),
        "buffer": (options.buffer, {}),
    }
    for part, (record, given) in parts.items():
        for name in field_names(type(record)) if record is not None else ():
            value = getattr(record, name)
            if name not in UNSPOKEN and value is not None:
                note = ", by the preset" if name in given else ""
                shown[part, name] = _as_flag(field_options(type(record))[name], value) + note
    return shown


def _as_flag(field: dataclasses.Field, value: object) -> str:
    """A field's value as its flag takes it."""
    for word, known in field.metadata.get("options", {}).items():
        if known is value:
            return word
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def default_word(field: dataclasses.Field) -> str:
    """A field's default as a flag takes it."""
    return _as_flag(field, field.default)


def _metavar(metadata: Mapping[str, Any]) -> str:
    expected = metadata["expected"]
    for start, metavar in (("a float", "X"), ("an integer", "N"), ("a sequence", "N,N,...")):
        if expected.startswith(start):
            return metavar
    return "NAME"


def config_from(args: argparse.Namespace) -> tuple[TrainConfig, Fields]:
    """The config of a command line, and the preset under it (or {}).

    Raises:
        ConfigError: see `TrainConfig`; or the environment of a config file is code, and isn't named
            on the command line too.
    """
    given: Fields = {}
    for part in PARTS:
        if getattr(args, part) is not None:
            given[part] = {"name": getattr(args, part).lower()}
    for dest, value in vars(args).items():
        part, dot, name = dest.partition(".")
        if dot and part != "env":
            where = given.setdefault(part, {}) if part else given
            where[name] = literal(value)
    start: Fields = {}
    if args.config:
        agent, fields = given.get("agent", {}), _by_fields(given, args.chosen)
        sized = {**fields, **fields.get("agent", {})}.keys() & set(SIZES)
        swept = any(hasattr(args, name) for name in ("grid", "space"))
        start = read_config(args.config, agent.get("name"), sizes=not (sized or swept))
    there = start.get("env")
    name = args.env if args.env is not None else env_name(there)
    preset: Fields = {}
    if args.preset:
        if args.config or args.no_preset:
            raise ConfigError("--preset: expected without --config and --no-preset")
        agent = given.get("agent", {}).get("name")
        name, _, preset = choose_preset(args.preset, name, agent)
        params = preset.pop("env", None)
        there = None if params is None else {**params, "name": name}
        preset = _by_fields(preset, args.chosen)
    if name is None:
        raise ConfigError("ENV: missing, expected an environment: see purerl envs")
    file = args.preset or args.config
    if args.env is None and is_code(name):
        raise ConfigError(
            f"ENV: missing, expected {name} on the command line as well: {file} names it, "
            "and it is code that would be run"
        )
    refuse_code({**start, **preset}, given, file)
    given, start = (_by_fields(layer, args.chosen) for layer in (given, start))
    env = named_env(there, name, env_values(args))
    if not (args.config or args.preset or args.no_preset):
        preset = find_preset(name, given.get("agent", {}).get("name"))
    mapping = {"agent": {"name": "ppo"}}
    for layer in (preset, start, given):
        mapping = _over(mapping, layer)
    return TrainConfig.from_mapping({**mapping, "env": env}), preset


def _by_fields(layer: Mapping[str, object], chosen: Mapping[str, str | None]) -> Fields:
    """A mapping with aliases replaced by the fields' names, so that mappings can be merged. Raises
    ConfigError where a field is there under two names."""
    fields = read_names(TrainConfig, layer)
    for part, known in {**PARTS, "buffer": {"buffer": Buffer}}.items():
        inner = fields.get(part)
        if isinstance(inner, Mapping):
            name = str(inner.get("name", chosen.get(part, part))).lower()
            fields[part] = read_names(known[name], inner) if name in known else dict(inner)
    return fields


def _over(below: Fields, above: Mapping[str, Any]) -> Fields:
    """Merges mappings, the second one wins. A part with another name takes nothing of the first."""
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        value = {"name": value} if key in PARTS and isinstance(value, str) else value
        if isinstance(old, dict) and isinstance(value, Mapping):
            same = value.get("name", old.get("name")) == old.get("name")
            value = {**(old if same else {}), **value}
        merged[key] = value
    return merged


def _chosen(argv: list[str]) -> dict[str, str | None]:
    """The parts that the arguments choose by name, before all flags are known."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for word in (*PARTS, "config", "preset"):
        first.add_argument(f"--{word}")
    try:
        found = vars(first.parse_known_args(argv)[0])
    except argparse.ArgumentError:  # reported when all arguments are read
        found = dict.fromkeys((*PARTS, "config", "preset"))
    start = read_config(found["config"]) if found["config"] else {}
    if found["preset"]:
        agents = {agent for agents in read_presets(found["preset"]).values() for agent in agents}
        start |= {"agent": agents.pop()} if len(agents) == 1 else {}
    chosen: dict[str, str | None] = {}
    for part, known in PARTS.items():
        there = start.get(part)
        name = found[part] or (there.get("name") if isinstance(there, dict) else there)
        if name is None and part == "agent":
            name = "ppo"
        if name is not None and str(name).lower() not in known:
            raise ConfigError(f"--{part}: no {part} {name!r}; {suggest(str(name), known)}")
        chosen[part] = None if name is None else str(name).lower()
    return chosen


def read_config(path: str, agent: str | None = None, *, sizes: bool = True) -> Fields:
    """The fields in the file of `--config`; `agent` and `sizes` as of `with_file_defaults`.

    Raises:
        ConfigError: it can't be read, or isn't TOML.
    """
    try:
        return read_toml(path, agent, sizes=sizes)
    except (OSError, ValueError) as error:
        about = "" if isinstance(error, ValueError) else f"can't read {path}: "
        raise ConfigError(f"--config: {about}{reason(error)}") from None


def literal(text: Any) -> Any:
    """A value as in TOML; a bare word is a string, and commas make a list."""
    if not isinstance(text, str):
        return text
    if text.lower() == "none":
        return None
    if "," in text and not text.startswith(("[", "{")):
        return [literal(part) for part in text.split(",") if part]
    text = text.lower() if text in ("True", "False") else text
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def integers(flag: str, text: str) -> int | list[int]:
    """An integer, or several, separated by commas. Raises ConfigError."""
    try:
        numbers = [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        numbers = []
    zero = numbers == [0] and "," not in text
    if not numbers or zero or not 0 <= min(numbers) <= max(numbers) < 2**32:
        shown = text if len(text) < 80 else text[:77] + "..."
        raise ConfigError(f"{flag}: got {shown!r}, expected a number >= 1, or several: 3,7,12")
    if "," in text:
        return numbers
    if numbers[0] > MOST_SEEDS:
        raise ConfigError(f"{flag}: got {numbers[0]}, expected at most {MOST_SEEDS:,} at once")
    return numbers[0]


def check_integer(flag: str, value: int | None, least: int, most: int = 2**31 - 1) -> None:
    """Raises ConfigError where a flag's number (None where it wasn't given) is out of range."""
    if value is not None and not least <= value <= most:
        shown = str(value) if abs(value) < 10**20 else f"{value:.3g}"
        expected = f"an integer >= {least}" if value < least else f"at most {most:,}"
        raise ConfigError(f"{flag}: got {shown}, expected {expected}")


def check_key(value: int) -> None:
    """Raises ConfigError unless a number is a seed of `jax.random.key`."""
    check_integer("--key", value, 0, 2**32 - 1)


def spelled_out(mapping: Fields, prefix: str = "") -> list[str]:
    """Fields of a preset as `name=value`."""
    words = []
    for name, value in mapping.items():
        if isinstance(value, dict):
            words += [f"{name}={value['name']}"] if "name" in value and name != "agent" else []
            inner = {n: x for n, x in value.items() if n != "name"}
            words += spelled_out(inner, "" if name == "agent" else f"{name}.")
        else:
            shown = f"{value:,}" if isinstance(value, int) and value >= 10_000 else value
            words.append(f"{prefix}{name}={shown}")
    return words
