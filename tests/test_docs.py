"""The documentation: what it shows runs, and what newcomers look for is found."""

import ast
import inspect
import json
import re
import shutil
import subprocess
import sys
import tomllib

import pytest
from kit.documents import (
    DOCS,
    PAGES,
    ROOT,
    anchors_of,
    blocks_of,
    commands_of,
    name_of,
    parsed,
    run_blocks,
    shortenings,
)

import purerl
from purerl.cli import COMMANDS

CONFIG = DOCS.parent / "mkdocs.yml"
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
WIDEST = 86  # columns of code that a page shows without scrolling

# What somebody from Stable-Baselines3 types into the search, the page that answers, and its
# section. The page has the words, and is the first that is found or, of QUESTIONS, among three.
FIRST = [
    ("save the best model", "how-to/save-the-best-model", "the-best-policy-by-evaluation"),
    ("continue training", "how-to/continue-training", "for-longer"),
    ("custom environment", "how-to/custom-environment", "two-pure-functions-and-a-spec"),
    ("custom network", "how-to/custom-network", "your-own-in-flax"),
    ("tune hyperparameters", "how-to/tune", "the-winner"),
    ("multiple seeds with confidence bands", "how-to/multiple-seeds", "the-numbers"),
    ("confidence bands", "how-to/multiple-seeds", "train-seeds-at-once-plot-the-band"),
    ("export", "how-to/export", "run-it-with-jax-alone"),
]
QUESTIONS = [
    *FIRST,
    (
        "EvalCallback best_model_save_path",
        "how-to/save-the-best-model",
        "the-best-policy-by-evaluation",
    ),
    (
        "StopTrainingOnRewardThreshold",
        "how-to/save-the-best-model",
        "stop-when-it-is-good-enough",
    ),
    ("fine-tune load parameters", "how-to/continue-training", "fine-tune-load-learned-parameters"),
    ("set_parameters", "how-to/continue-training", "fine-tune-load-learned-parameters"),
    ("logger.record", "how-to/callbacks", "metrics-of-your-own"),
    ("watch live", "how-to/callbacks", "look-while-it-trains"),
    ("mp4 video", "how-to/evaluation", "a-gif-or-a-video"),
    ("notebook progress bar", "how-to/notebooks", "a-progress-bar-and-curves-while-it-trains"),
    ("reproduce a run", "how-to/reproduce", "the-same-run-again"),
    ("load_sweep", "how-to/sweeps", "from-its-folder"),
    ("load a saved model", "how-to/save-the-best-model", "save-and-load-a-policy"),
    ("reset_num_timesteps", "how-to/continue-training", ""),
    ("resume after a kill", "how-to/continue-training", "after-ctrl-c-or-a-kill-resume"),
    ("check_env", "reference/environments", "to-write-an-environment"),
    ("policy_kwargs net_arch", "how-to/custom-network", "sizes-and-kinds-no-code"),
    ("ONNX", "how-to/export", ""),
    ("evaluate_policy", "how-to/evaluation", "afterwards"),
    ("BaseCallback", "how-to/callbacks", "a-callback-of-your-own"),
    ("tensorboard_log", "how-to/callbacks", "tensorboard-weights-biases-csv"),
    ("RecurrentPPO LSTM", "how-to/memory", "act-with-it"),
    ("MaskablePPO action masks", "how-to/masks-and-dicts", "action-masks"),
    ("learning rate schedule", "how-to/hyperparameters", "schedules"),
    ("VecNormalize", "coming-from/stable-baselines3", "what-is-called-what"),
    ("PPO MlpPolicy", "coming-from/stable-baselines3", "the-same-small-program"),
]


def page_named(name):
    return (DOCS / f"{name}.md").read_text()


def test_every_page_is_in_the_navigation_once():
    listed = re.findall(r": ([\w/-]+\.md)$", CONFIG.read_text(), re.M)
    assert sorted(listed) == sorted(map(name_of, PAGES))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_code_parses(page, tmp_path, monkeypatch):
    """Python as Python, each line of Bash that calls the command as its arguments; no line is wider
    than the page."""
    text = page.read_text()
    blocks = blocks_of(text, "python")
    for block in blocks:
        ast.parse(block)
    for language in ("python", "bash", "text"):
        for line in "".join(blocks_of(text, language)).splitlines():
            assert len(line) <= WIDEST, line
    for old, _ in shortenings(text):
        assert any(old in block for block in blocks), f"nothing to shorten: {old}"
    assert len(re.findall("^```", text, re.M)) == 2 * sum(
        len(blocks_of(text, x)) for x in ("python", "bash", "text", "bibtex")
    )
    monkeypatch.chdir(tmp_path)
    files = {"best.toml": '["Acrobot-v1".ppo]\nlr = 1e-3\n', "config.toml": 'env = "CartPole-v1"\n'}
    for argv in commands_of(text):
        for word in argv:
            file = tmp_path / word
            if file.name in files:
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(files[file.name])
        if argv[0] not in ("--version", "--help") and argv[1:] != ["--help"]:
            parsed(argv)


@pytest.mark.slow
@pytest.mark.usefixtures("quick_programs")
@pytest.mark.parametrize(
    "page", [x for x in PAGES if blocks_of(x.read_text(), "python")], ids=name_of
)
def test_code_runs(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run_blocks(page.read_text())


LISTING = ("agents", "envs", "presets", "check-env", "--version")


@pytest.mark.slow
def test_commands_that_list_run(command):
    calls = {tuple(argv) for page in PAGES for argv in commands_of(page.read_text())}
    calls = {argv for argv in calls if argv[0] in LISTING and ":" not in "".join(argv)}
    assert len(calls) > 3
    for argv in calls:
        code, out, err = command(*argv)
        assert (code, err) == (0, ""), argv
        assert out


def documented():
    """The names that reference pages show, with their pages."""
    for page in sorted((DOCS / "reference").glob("*.md")):
        for name in re.findall(r"^::: purerl\.([\w.]+)$", page.read_text(), re.M):
            yield name, page.name


def test_every_public_name_is_in_the_reference_once():
    names = [name for name, _ in documented()]
    assert sorted(names) == sorted(set(names))
    public = set(purerl.__all__)
    for module in ("statistics", "fields"):
        here = vars(getattr(purerl, module))
        inside = {
            n
            for n, x in here.items()
            if not n.startswith("_") and getattr(x, "__module__", "") == here["__name__"]
        }
        shown = {x.partition(".")[2] for x in names if x.startswith(f"{module}.")}
        assert shown <= inside
        if module == "statistics":
            assert shown == {n for n in inside if inspect.getdoc(here[n])}
    assert {name for name in names if "." not in name} == public


def test_every_command_is_in_the_reference():
    table = re.findall(r"^\| `purerl ([\w-]+)", page_named("reference/command-line"), re.M)
    assert table == list(COMMANDS)


def test_every_room_is_explained():
    table = page_named("how-it-works").partition("## Rooms")[2]
    rows = re.findall(r"^\| (`.*?`) \|", table, re.M)
    named = re.findall(r"`(\w+)`", "".join(rows))
    rooms = {path.parent.name for path in (ROOT / "purerl").glob("*/__init__.py")}
    assert set(named) == rooms | {"statistics"}


def test_the_version_is_that_of_the_package():
    assert f"## {VERSION}" in page_named("changelog")
    assert f"version = {{{VERSION}}}" in page_named("citing")


def test_links_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
            path, _, anchor = target.partition("#")
            assert not path.startswith(("http:", "https:", "/")), f"{name_of(page)}: {target}"
            there = (page.parent / path).resolve() if path else page
            assert there in PAGES, f"{name_of(page)}: {target}"
            assert not anchor or anchor in anchors_of(there.read_text()), target


@pytest.mark.parametrize(("question", "page", "anchor"), QUESTIONS, ids=lambda x: str(x) or "page")
def test_what_newcomers_look_for_has_a_page_and_a_section(question, page, anchor):
    text = page_named(page)
    assert not anchor or anchor in anchors_of(text)
    for word in question.split():
        assert word.lower() in text.lower(), f"{page}: {word}"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The documentation, built as .ci/run builds it."""
    for package in ("material", "mkdocstrings", "lunr"):
        pytest.importorskip(package, reason="pip install 'purerl[docs]'")
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", CONFIG, "-d", folder],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_site_needs_no_network(site):
    for page in site.rglob("*.html"):
        text = page.read_text()
        loaded = re.findall(r"<(?:script|img|iframe)[^>]* src=\"?([^\s\">]+)", text)
        loaded += re.findall(r"<link[^>]* href=\"?([^\s\">]+)", text)
        loaded += re.findall(r"url\(([^)]+)\)", text)
        assert loaded
        assert not [x for x in loaded if "//" in x], page


@pytest.mark.slow
def test_the_reference_has_names_defaults_and_inherited_fields(site):
    pages = {x.name: x.read_text() for x in (site / "reference").glob("*.html")}
    for name, page in documented():
        assert f'id="purerl.{name}"' in pages[page.replace(".md", ".html")], name
    plain = re.sub(r"<[^>]+>", "", pages["agents.html"])
    assert re.search(r"PPO\(\s*hidden: tuple\[int, \.\.\.\] \| None = None,", plain)
    assert "lr: float = 0.001" in plain
    assert "widths of the default networks" in plain.partition("PQN(")[0]


def check_found(questions, ask):
    """Each question's page is among the first that `ask` finds, pages without their sections."""
    for question, page, anchor in questions:
        found = list(dict.fromkeys(ask(question)))
        most = 1 if (question, page, anchor) in FIRST else 3
        assert page in found[:most], f"{question}: {found[:5]}"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_search_index_answers_newcomers(site):
    """By lunr, as the page's script has it: text without tags, cut where the index says, and words
    in titles count most."""
    from lunr import lunr

    made = json.loads((site / "search" / "search_index.json").read_text())

    def words(text):
        return re.sub(made["config"]["separator"], " ", re.sub(r"<[^>]*>", " ", text))

    documents = [{**x, "title": words(x["title"]), "text": words(x["text"])} for x in made["docs"]]
    fields = [{"field_name": "title", "boost": 1000}, "text"]
    index = lunr(ref="location", fields=fields, documents=documents)

    def ask(question):
        for hit in index.search(words(question)):
            yield hit["ref"].partition("#")[0].removesuffix(".html")

    check_found(QUESTIONS, ask)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(shutil.which("chromium") is None, reason="no Chromium")
def test_the_search_in_a_browser_answers_newcomers(site, tmp_path):
    """The page's own search, opened from the disk without a server."""
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}"]

    def ask(question):
        url = f"{(site / 'index.html').as_uri()}?q={question.replace(' ', '+')}"
        done = subprocess.run(
            ["chromium", *options, "--virtual-time-budget=8000", "--dump-dom", url],
            capture_output=True,
            text=True,
            timeout=250,
            check=True,
        )
        results = done.stdout.partition("md-search-result__list")[2].partition("</ol>")[0]
        return re.findall(r'<a href="[^"]*?((?:[\w-]+/)?[\w-]+)\.html', results)

    check_found(FIRST, ask)
