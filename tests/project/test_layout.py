"""Rules of the source tree: import order, line budgets, names, and a light import."""

import ast
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "fission_grpo"
BUDGETS = {  # lines of each package, in import order: a package imports only earlier ones
    "core": 3500,
    "shared_prefix": 2020,
    "envs": 4300,
    "data": 1940,
    "inference": 1700,
    "feedback": 2480,
    "fission": 1850,
    "engines": 1450,
    "training": 3660,
    "evaluation": 4120,
    "report": 1230,
    "recipes": 4100,
    "cli": 1170,
}
TOTAL = 33_450
ORDER = list(BUDGETS)
MAY_IMPORT_TRL = {"engines", "training", "recipes", "cli"}
SMALL_MODULES: dict[str, str] = {  # modules under 120 lines with one importer, and why they stand alone
    **{
        f"recipes.bfcl_tasks.templates.{name}": "one module per BFCL class"
        for name in ("files", "maths", "message", "ticket", "twitter", "vehicle")
    },
    "fission.schedule": "when to recover, apart from what is recovered from; tested alone",
    "recipes.bfcl_tasks.contamination": "checks the generator's output against BFCL's test set",
    "recipes.starter_policy.bfcl_demos": "needs bfcl-eval, the demonstrations in Desk do not",
    "training.lockstep": "one of the trainer's three mixins, each in a file that can be left out",
}
FORBIDDEN = {
    "told",
    "vain",
    "world",
    "worlds",
    "player",
    "players",
    "play",
    "plays",
    "played",
    "ground",
    "ledger",
    "card",
    "mend",
    "mended",
    "sheet",
    "material",
    "materials",
    "lesson",
    "lessons",
    "anew",
    "stranger",
    "strangers",
    "tidy",
    "journal",
    "diagnose",
    "diagnoses",
}
NAMES_OF_OTHERS = {  # identifiers of libraries and of BFCL's APIs
    "world_size",
    "get_world_size",
    "is_world_process_zero",
    "card_id",
    "create_model_card",
    "credit_card_list",
    "ground_truth",
}
SOURCES = sorted(PACKAGE.rglob("*.py"))
FILES = [
    *SOURCES,
    *(path for folder in ("examples", "tests", "scripts", "benchmarks") for path in (ROOT / folder).rglob("*.py")),
]


def module_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def package_of(path: Path) -> str | None:
    parts = path.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else None


def imports_of(path: Path, top_only: bool = False) -> set[str]:
    """Modules that a file imports, ours as full module names."""
    tree, found = ast.parse(path.read_text()), set()
    for node in tree.body if top_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names if node.module.startswith("fission_grpo")}
    return found


MODULES = {module_of(path): path for path in SOURCES}
GRAPH = {name: {one for one in imports_of(path) if one in MODULES} - {name} for name, path in MODULES.items()}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_package_imports_only_earlier_packages(path):
    own = package_of(path)
    if own is None:
        return
    others = {name.split(".")[1] for name in imports_of(path) if name.startswith("fission_grpo.")}
    later = {other for other in others & set(ORDER) if ORDER.index(other) > ORDER.index(own)}
    assert later == set()
    assert not (own == "evaluation" and "training" in others), "evaluation and training do not know each other"


def test_modules_import_each_other_in_no_circle():
    state: dict[str, int] = {}

    def visit(name: str, way: list[str]) -> None:
        assert state.get(name) != 1, " -> ".join([*way, name])
        if name in state:
            return
        state[name] = 1
        for other in GRAPH[name]:
            if not name.startswith(other + "."):  # a package's __init__ is loaded before its modules
                visit(other, [*way, name])
        state[name] = 2

    for name in GRAPH:
        if name != "fission_grpo":  # its names are loaded on first use
            visit(name, [])


def test_every_package_is_in_the_import_order_and_within_its_budget():
    lines: dict[str, int] = defaultdict(int)
    for path in SOURCES:
        lines[package_of(path) or ""] += len(path.read_text().splitlines())
    assert set(lines) - {""} == set(BUDGETS)
    assert {name: count for name, count in lines.items() if name and count > BUDGETS[name]} == {}
    assert sum(lines.values()) <= TOTAL


def test_only_training_recipes_and_cli_import_trl_at_the_top():
    importers = {
        package_of(path) for path in SOURCES if any(name.split(".")[0] == "trl" for name in imports_of(path, True))
    }
    assert importers <= MAY_IMPORT_TRL


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_functions_have_at_most_60_lines_and_files_400(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno - node.lineno + 1 <= 60, f"{node.name} is too long"


def test_small_modules_with_one_importer_are_merged():
    importers: dict[str, set[str]] = defaultdict(set)
    for name, others in GRAPH.items():
        for other in others:
            importers[other].add(name)
    small = {
        name.removeprefix("fission_grpo.")
        for name, path in MODULES.items()
        if path.stem != "__init__"
        and package_of(path) != "cli"  # one file a command, imported by main
        and len(path.read_text().splitlines()) < 120
        and len(importers[name] - {"fission_grpo"}) == 1
    }
    assert small - set(SMALL_MODULES) == set()
    assert set(SMALL_MODULES) - small == set(), "remove these from SMALL_MODULES"


def identifiers(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Name):
            found.add(node.id)
        elif isinstance(node, ast.Attribute):
            found.add(node.attr)
        elif isinstance(node, ast.arg | ast.keyword):
            found.add(node.arg or "")
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.alias):
            found |= {*node.name.split("."), node.asname or ""}
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_identifiers_use_the_words_of_the_field(path):
    names = identifiers(path) | set(path.relative_to(PACKAGE).with_suffix("").parts)
    words = {
        word.lower(): name for name in names - NAMES_OF_OTHERS for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", name)
    }
    assert {words[word] for word in FORBIDDEN if word in words} == set()


def test_no_class_name_stands_twice():
    places: dict[str, list[str]] = defaultdict(list)
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                places[node.name].append(str(path.relative_to(PACKAGE)))
    assert {name: where for name, where in places.items() if len(where) > 1} == {}


def test_import_is_light_and_fast():
    code = (
        "import sys, time; start = time.perf_counter(); import fission_grpo; spent = time.perf_counter() - start;"
        "print(spent, *sorted({'torch', 'trl', 'transformers', 'numpy', 'scipy'} & set(sys.modules)))"
    )
    runs = [subprocess.check_output([sys.executable, "-c", code], text=True).split() for _ in range(3)]
    assert [heavy for _, *heavy in runs] == [[], [], []]
    assert min(float(seconds) for seconds, *_ in runs) < 0.3  # the best of three, as machines are shared
