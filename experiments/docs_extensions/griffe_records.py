"""What the reference has beyond the source: an extension of griffe, which reads it without import.

Records, named tuples and flax's modules get their constructors at import, and records the
attributes of their bases in their docstrings: here both are derived from the source. Public names
in docstrings become links.
"""

import ast
import importlib.util
import inspect
import pathlib
import re

import griffe

ROOT = pathlib.Path(__file__).parents[2] / "purerl"
RECORD = "purerl.records.fields.Record"
# Bases that make a constructor of a class's annotations.
MAKERS = ("NamedTuple", "nn.Module", "struct.PyTreeNode", "Record")
# Functions that declare a field; those of the second line have None as its default.
FIELDS = ("real", "integer", "flag", "choice", "sizes", "static", "named")
OF_NONE = ("module_field", "sees_field", "optimizer_field")
PLAIN = ("field", "struct.field", "dataclasses.field")
NAME = re.compile(r"(?<![\[`\w])`(purerl\.\w+)(\([^`]*\))?`(?!`)")
# A power, 2**31, which in Markdown would be bold.
POWER = re.compile(r"(?<=\d)\*\*(?=\d)")
# An entry of several names: "low, high: the bounds.", "episode_return, ... num_episodes: ...".
SEVERAL = re.compile(r"^( +)(\w+), ([\w, .]+): (.*(?:\n\1 +.*)*)", re.M)


class Records(griffe.Extension):
    """Constructors of records, their inherited attributes, and links between docstrings."""

    def on_package(self, *, pkg, loader, **_):
        """Called once, when all is read."""
        loader.resolve_aliases(implicit=False)
        docs, public = _docs(), {f"purerl.{name}" for name in public_names(pkg)}
        things = list(_things(pkg))
        texts = {x.path: x.docstring.value for x in things if x.is_class and x.docstring}
        written = {x.path for x in things if x.is_class and {"__init__", "__new__"} & {*x.members}}
        for cls in (x for x in things if x.is_class):
            lineage = [
                *reversed([base for base in cls.mro() if base.is_class]),
                cls,
            ]
            made = any(str(base) in MAKERS for x in lineage for base in x.bases)
            if made and not any(x.path in written for x in lineage):
                _construct(cls, _fields(lineage))
            if cls.path in texts and any(base.path == RECORD for base in lineage):
                cls.docstring.value = _completed(cls, lineage, docs, texts)
        for thing in things:
            if thing.docstring:
                text = SEVERAL.sub(_one_by_one, thing.docstring.value)
                text = POWER.sub(r"\\*\\*", text)
                thing.docstring.value = NAME.sub(
                    lambda x: f"[{x[0]}][{x[1]}]" if x[1] in public else x[0], text
                )


def public_names(pkg):
    """The names in `__all__` of the package, as griffe or `ast` has read it."""
    return ast.literal_eval(str(pkg["__all__"].value))


def _docs():
    """`purerl.records.docs`, without importing the package."""
    spec = importlib.util.spec_from_file_location("docs", ROOT / "records" / "docs.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _things(parent):
    """All that is defined in a module or class, with what is inside."""
    for thing in list(parent.members.values()):
        if not thing.is_alias:
            yield thing
            if thing.is_module or thing.is_class:
                yield from _things(thing)


def _fields(lineage):
    """The attributes that a constructor takes, in its order."""
    fields = {}
    for base in lineage:
        for name, member in base.members.items():
            if member.is_alias or not member.is_attribute or name.startswith("_"):
                continue
            # ClassVars aren't instance attributes, and other class variables aren't annotated.
            if member.annotation is not None and "instance-attribute" in member.labels:
                fields[name] = member
    return fields


def _construct(cls, fields):
    """Gives a class the constructor that its annotations make."""
    kind = griffe.ParameterKind.positional_or_keyword
    parameters = [griffe.Parameter("self", kind=kind)]
    for name, field in fields.items():
        options = {"annotation": field.annotation, "default": _default(field.value)}
        parameters.append(griffe.Parameter(name, kind=kind, **options))
    init = griffe.Function("__init__", parameters=griffe.Parameters(*parameters))
    cls.set_member("__init__", init)


def _completed(cls, lineage, docs, texts):
    """A record's docstring as it is at run time."""
    stand_in = object
    for base in lineage:  # classes with the same docstrings, one above the other
        stand_in = type(base.name, (stand_in,), {"__doc__": texts.get(base.path)})
    return inspect.cleandoc(docs.complete(stand_in, list(_fields(lineage))))


def _default(value):
    """A field's default: the argument `default` of the function that declares it, or the first."""
    function = str(value.function) if isinstance(value, griffe.ExprCall) else ""
    if function in OF_NONE:
        return "None"
    if function not in FIELDS + PLAIN:
        return value
    for argument in value.arguments:
        if not isinstance(argument, griffe.ExprKeyword):
            return argument
        if argument.name == "default":
            return argument.value
        if argument.name == "default_factory":
            return f"{argument.value}()"
    return None


def _one_by_one(entry):
    """An entry of several names as one of the first, and a reference to it for each other."""
    space, first, others, text = entry.groups()
    lines = [f"{space}{first}: {text}"]
    lines += [f"{space}{name}: see `{first}`." for name in re.findall(r"\w+", others)]
    return "\n".join(lines)
