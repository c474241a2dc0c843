"""The README and the pages of the documentation, as programs.

The Python blocks of a page share a namespace, each on top of the one before. What a test can't pay
is shortened by comments in the page, which readers don't see:

    <!-- test: 200_000 -> 4_096; seeds=16 -> seeds=4 -->

Blocks that can't run here, such as another library's, are of the language `text`.
"""

import importlib
import pathlib
import re
import shlex

from purerl.cli import COMMANDS, Parser

ROOT = pathlib.Path(__file__).parents[2]
README = ROOT / "README.md"
DOCS = ROOT / "experiments" / "docs"
PAGES = sorted(DOCS.rglob("*.md"))


def name_of(page):
    """A page's path in the documentation."""
    return page.relative_to(DOCS).as_posix()


def blocks_of(text, language):
    """The blocks of a language in a page, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.M | re.S)


def shortenings(text):
    """Pairs of a text in the page's blocks and what is run instead."""
    comments = re.findall(r"<!-- test: (.*?) -->", text)
    pairs = [pair.split(" -> ") for comment in comments for pair in comment.split("; ")]
    return [(old, new) for old, new in pairs]


def run_blocks(text, replaced=()):
    """Runs a page's Python blocks: what they define."""
    names = {"__name__": "page"}
    for i, block in enumerate(blocks_of(text, "python")):
        for old, new in (*shortenings(text), *replaced):
            block = block.replace(old, new)
        exec(compile(block, f"block {i}", "exec"), names)
    return names


def commands_of(text):
    """The calls of `purerl` in a page's Bash blocks, as lists of words."""
    lines = "".join(blocks_of(text, "bash")).replace("\\\n", " ").splitlines()
    calls = (part for line in lines for part in line.split("&&"))
    words = (shlex.split(call, comments=True) for call in calls)
    return [x[1:] for x in words if x and x[0].rpartition("/")[2] == "purerl"]


def parsed(argv):
    """The arguments of a call of the command, parsed and not run."""
    name = argv[0].replace("-", "_")
    module = importlib.import_module(f"purerl.cli.{COMMANDS[argv[0]][0]}")
    parser = Parser(prog=f"purerl {argv[0]}", description="")
    getattr(module, f"add_{name}")(parser, argv[1:])
    return parser.parse(argv[1:])


def slug(heading):
    """The anchor that a heading gets, as mkdocs makes it."""
    given = re.search(r"\{#([\w-]+)\}", heading)
    if given:
        return given[1]
    plain = re.sub(r"[^\w\s-]", "", heading.replace("`", "")).strip().lower()
    return re.sub(r"[-\s]+", "-", plain)


def anchors_of(text):
    """The anchors of a page's headings."""
    outside = re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)
    return [slug(heading) for heading in re.findall(r"^#+ (.*)$", outside, re.M)]
