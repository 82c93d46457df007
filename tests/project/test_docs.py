"""The documentation shows what the repository holds: commands run, paths and options exist, metrics are explained.

Blocks by language: ```bash and ```python run here, page by page; ```console and ```py are shown only, because they
need a GPU, a model hub, a server or hours. A ```json or ```python block after "Save this as `NAME`" is written to that
file.
"""

import ast
import contextlib
import doctest
import io
import json
import pkgutil
import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest

import fission_grpo
from fission_grpo.data.rows import load_rows

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))
from old_names import METRICS, OPTIONS  # noqa: E402

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *sorted(ROOT.glob("docs/*.md"))]
ALL_PAGES = [*PAGES, ROOT / "CHANGELOG.md", ROOT / "LOG.md", *sorted(ROOT.glob("benchmarks/**/*.md"))]
TEXTS = {page: page.read_text(encoding="utf-8") for page in ALL_PAGES}
TOP_FOLDERS = "src|docs|benchmarks|tests|configs|examples|scripts|requirements"
COMMANDS = (
    "train",
    "eval",
    "compare",
    "report",
    "check-environment",
    "tasks check",
    "tasks convert",
    "tasks generate",
    "simulator data",
    "simulator train",
    "simulator check",
)
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
SAVED = re.compile(
    r"Save this as `([^`]+)`[^\n]*(?:\n[^\n]+)*\n\n```(?:json|python)\n(.*?)^```$", re.DOTALL | re.MULTILINE
)


def by_page(pages):
    return pytest.mark.parametrize("page", pages, ids=lambda page: str(page.relative_to(ROOT)))


def blocks(page, *languages):
    return [text for language, text in BLOCK.findall(TEXTS[page]) if language in languages]


def commands(page, *languages):
    """The commands of a page's blocks, each as words; a line that ends with a backslash goes on in the next."""
    for block in blocks(page, *languages):
        lines = block.replace("\\\n", " ").splitlines()
        prompted = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]  # the others are output
        for line in prompted or lines:
            words = shlex.split(line, comments=True)
            if words:
                yield words


def inline_code(page):
    return re.findall(r"`([^`\n]+)`", BLOCK.sub("", TEXTS[page]))


def run_command(words):
    """Run `fission-grpo ...` or `python FILE ...` in this process, which has loaded torch already."""
    if words[0] == "fission-grpo":
        from fission_grpo.cli.main import main

        status = main(words[1:])
        assert status in (0, None), f"{shlex.join(words)}: exit status {status}"
        return
    assert words[0] == "python", f"cannot run {shlex.join(words)}; use a console block"
    runpy.run_path(words[1], run_name="__main__")


def save_files(page, folder):
    for name, text in SAVED.findall(TEXTS[page]):
        if not name.endswith(".jsonl"):
            (folder / name).write_text(text)
            continue
        rows, rest, decoder = [], text.strip(), json.JSONDecoder()
        while rest:
            row, end = decoder.raw_decode(rest)
            rows.append(json.dumps(row))
            rest = rest[end:].strip()
        (folder / name).write_text("\n".join(rows) + "\n")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A temporary directory that looks like the repository to a command; what it writes stays there."""
    for name in ("configs", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@by_page([page for page in PAGES if blocks(page, "bash")])
def test_bash_blocks_run(page, folder, monkeypatch, capsys):
    save_files(page, folder)
    for words in commands(page, "bash"):
        monkeypatch.setattr(sys, "argv", words[1:])
        run_command(words)
    capsys.readouterr()


@by_page([page for page in PAGES if blocks(page, "python")])
def test_python_blocks_run(page, folder):
    names = {"__name__": page.stem}
    examples = "".join(block for block in blocks(page, "python") if block.startswith(">>>"))
    for block in blocks(page, "python"):
        if not block.startswith(">>>"):
            exec(compile(block, page.name, "exec"), names)
    test = doctest.DocTestParser().get_doctest(examples, names, page.name, str(page), 0)
    output = io.StringIO()
    results = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(test, out=output.write)
    assert results.failed == 0, output.getvalue()


@by_page([page for page in PAGES if blocks(page, "py")])
def test_python_blocks_that_are_only_shown_compile(page):
    for block in blocks(page, "py"):
        ast.parse(block)


@by_page(PAGES)
def test_blocks_have_a_known_language(page):
    assert {language for language, _ in BLOCK.findall(TEXTS[page])} <= {
        *("bash", "console", "python", "py", "json", "yaml", "text"),
    }


@by_page(ALL_PAGES)
def test_links_between_pages_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", TEXTS[page]):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), target
        if anchor:
            assert anchor in anchors(linked), target


def anchors(page):
    """Anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", BLOCK.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def code_words(page):
    """Words of inline code and of blocks that are commands or settings."""
    code = [*inline_code(page), *blocks(page, "bash", "console", "yaml", "py", "python")]
    return {word.strip("`'\",;()[]") for text in code for word in re.split(r"[\s=]+", text)}


@by_page(PAGES)
def test_paths_exist(page):
    for word in code_words(page):
        word = re.sub(r":\w+$", "", word)  # FILE:Class
        if re.match(rf"({TOP_FOLDERS})/", word) and not re.search(r"[<>]", word):
            assert any(ROOT.glob(word.rstrip("/"))), word
        elif re.fullmatch(r"test_[\w*]+\.py", word):
            assert any(ROOT.glob(f"tests/**/{word}")), word
        elif re.fullmatch(r"(core|envs|data|inference|feedback|fission|training|evaluation)/[\w/]+\.py", word):
            assert (ROOT / "src" / "fission_grpo" / word).exists(), word


@by_page(PAGES)
def test_dotted_names_exist(page):
    for name in re.findall(r"\bfission_grpo(?:\.\w+)+", TEXTS[page]):
        pkgutil.resolve_name(name)


@pytest.fixture(scope="module")
def options():
    """The options of every command, read from its help."""
    from fission_grpo.cli.main import main

    found = {}
    for command in COMMANDS:
        output = io.StringIO()
        with contextlib.redirect_stdout(output), contextlib.suppress(SystemExit):
            main([*command.split(), "--help"])
        found[command] = set(re.findall(r"(?<![\w-])--[\w-]+", output.getvalue())) | {"--config"}
        assert len(found[command]) > 1, f"{command} --help names no option"
    return found


def command_of(words):
    return next((name for name in COMMANDS if words[: len(name.split())] == name.split()), None)


@by_page(PAGES)
def test_options_exist(page, options):
    shown = [*commands(page, "bash", "console"), *(code.split() for code in inline_code(page))]
    for words in shown:
        if "fission-grpo" not in words and "fission_grpo.cli" not in words:
            continue
        start = words.index("fission-grpo" if "fission-grpo" in words else "fission_grpo.cli")
        command = command_of(words[start + 1 :])
        given = {word.split("=")[0] for word in words[start:] if word.startswith("--")}
        assert given <= (options[command] if command else {"--help", "--version"}), shlex.join(words)
    every = set().union(*options.values())
    for block in blocks(page, "yaml"):
        for key in re.findall(r"^(\w+):", block, re.MULTILINE):
            assert f"--{key}" in every, key


@by_page(PAGES)
def test_make_targets_exist(page):
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    shown = [*commands(page, "bash", "console"), *(code.split() for code in inline_code(page))]
    named = {words[1] for words in shown if words[0] == "make" and len(words) > 1}
    assert named - targets == set()


@by_page(PAGES)
def test_no_page_has_an_old_name(page):
    words = {word.split(":")[0].lstrip("-") for word in code_words(page)} | code_words(page)
    assert words & ({*OPTIONS} | {*METRICS} | {"branch", "journal", "simulator_options"}) == set()


def test_every_option_of_ours_is_explained():
    from fission_grpo.cli.train_options import TrainArguments
    from fission_grpo.core.rewards import RewardConfig
    from fission_grpo.fission.options import FissionOptions

    explained = set(inline_code(ROOT / "docs" / "fission-grpo.md"))
    for settings in (FissionOptions, RewardConfig, TrainArguments):
        assert set(settings.__annotations__) - explained == set()


def explained_metrics():
    """Patterns of the metrics that the algorithm page explains: NAME and * stand for any word."""
    rows = re.findall(r"^\| (`.*?`) \|", TEXTS[ROOT / "docs" / "fission-grpo.md"], re.MULTILINE)
    keys = [key for row in rows for key in re.findall(r"`([^`]+)`", row)]
    return [re.sub(r"[A-Z]+", r"[\\w.]+", re.escape(key)).replace(r"\*", r"\w+") for key in keys]


@pytest.mark.parametrize(
    "settings",
    [{"num_recovery_generations": 8}, {"max_depth": 2, "max_tool_result_chars": 8}],
    ids=["usual", "limited"],
)
def test_every_metric_that_a_training_run_logs_is_explained(tmp_path, settings):
    from trainer_support import desk_trainer

    trainer = desk_trainer(tmp_path, **settings)
    trainer.train()
    logged = {key for entry in trainer.state.log_history for key in entry}
    assert {"fission/success", "fission/buffer", "feedback/seconds", "recovery/rate"} <= logged
    assert {key for key in logged if not any(re.fullmatch(one, key) for one in explained_metrics())} == set()


def test_pages_named_in_code_exist():
    files = [ROOT / "pyproject.toml", ROOT / "Makefile", *ROOT.glob("configs/**/*.yaml")]
    for top in ("src", "tests", "examples", "scripts", "benchmarks"):
        files += ROOT.glob(f"{top}/**/*.py")
    for file in files:
        for page in re.findall(r"\bdocs/[\w-]+\.md", file.read_text(encoding="utf-8")):
            assert (ROOT / page).exists(), f"{file}: {page}"


def test_the_environment_of_the_guide_is_the_example_and_about_40_lines():
    shown = blocks(ROOT / "docs" / "environments.md", "python")[0]
    assert shown.strip() in (ROOT / "examples" / "two_lines_environment.py").read_text()
    assert len(shown.splitlines()) <= 45


def test_the_verdict_in_the_guide_is_what_the_command_prints(folder, capsys):
    guide = ROOT / "docs" / "environments.md"
    save_files(guide, folder)
    run_command(next(words for words in commands(guide, "bash") if "check-environment" in words))
    assert capsys.readouterr().out == blocks(guide, "text")[0]


def test_the_snapshots_of_the_guide_keep_the_contract(folder):
    guide = ROOT / "docs" / "environments.md"
    save_files(guide, folder)
    names = {}
    for block in blocks(guide, "python"):
        if "\nclass " in f"\n{block}":
            exec(block, names)
    rows = load_rows(folder / "examples" / "data" / "cabinet.jsonl")
    report = fission_grpo.check_environment(names["QuickCabinet"], rows)
    assert {one.check: one.status for one in report.findings}["snapshot"] == "ok"
    assert report.ok


def test_readme_is_short():
    lines = TEXTS[ROOT / "README.md"].splitlines()
    assert len(lines) <= 120
    assert max(map(len, lines)) <= 100


def test_readme_names_every_package():
    packages = {path.parent.name for path in (ROOT / "src" / "fission_grpo").glob("*/__init__.py")}
    tree = blocks(ROOT / "README.md", "text")[-1]
    assert set(re.findall(r"^  (\w+)/", tree, re.MULTILINE)) == packages
