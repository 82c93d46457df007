"""Every settings file and documented command is read by its own parser, also where it cannot run here."""

import re
import shlex
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/*.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
SETTINGS = sorted(path for top in ("configs", "examples", "benchmarks") for path in ROOT.glob(f"{top}/**/*.y*ml"))
NEEDED = "tasks: desk\nmodel_name_or_path: starter\noutput_dir: out\n"
CPU = ["--use_cpu", "true", "--bf16", "false"]

pytest.importorskip("trl")


def blocks(*languages):
    """The blocks of all pages in these languages, with the page's name and their number in it."""
    for page in PAGES:
        found = [text for language, text in BLOCK.findall(page.read_text()) if language in languages]
        for number, text in enumerate(found):
            yield pytest.param(text, id=f"{page.name}-{number}")


def commands():
    for block in blocks("bash", "console"):
        lines = block.values[0].replace("\\\n", " ").splitlines()
        prompted = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]  # the others are output
        for line in prompted or lines:
            words = shlex.split(line, comments=True)
            if words[:1] == ["fission-grpo"] and "--help" not in words:
                yield pytest.param(words[1:], id=f"{block.id}-{shlex.join(words[1:])[:60]}")


@pytest.fixture
def at_root(monkeypatch):
    """Parsers may look for files that the commands name."""
    monkeypatch.chdir(ROOT)


def read_settings(path):
    """Read a settings file with what reads it in use: `train`, accelerate, verl or the runner of evidence suites."""
    if "accelerate" in path.parts:
        from accelerate.commands.config.config_args import load_config_from_file

        return load_config_from_file(str(path))
    if "verl" in path.parts:  # tests/verl composes these with verl's own, in its environment
        return yaml.safe_load(path.read_text())
    if "\nsuite:" in path.read_text():
        import sys

        sys.path.insert(0, str(ROOT / "benchmarks" / "evidence"))
        from suite import read_suite

        return read_suite(path)
    from fission_grpo.cli.train import parse

    return parse(["--config", str(path), *CPU])


@pytest.mark.parametrize("path", SETTINGS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_settings_file_is_read(path, at_root):
    assert read_settings(path)


def yaml_blocks():
    return list(blocks("yaml", "yml"))


def test_there_are_settings_in_the_pages():
    assert yaml_blocks()


@pytest.mark.parametrize("text", yaml_blocks())
def test_every_yaml_block_of_the_pages_is_read_and_its_sources_are_known(text, tmp_path, monkeypatch):
    from fission_grpo.cli.train import parse
    from fission_grpo.feedback.spec import closing, endpoint_options, make_chain

    path = tmp_path / "c.yaml"
    given = {line.split(":")[0] for line in text.splitlines() if re.match(r"\w+:", line)}
    path.write_text("".join(line for line in NEEDED.splitlines(True) if line.split(":")[0] not in given) + text)
    script, *_ = parse(["--config", str(path), *CPU])
    monkeypatch.chdir(tmp_path)
    with closing(make_chain(script.feedback, *endpoint_options(script.feedback_model))) as chain:
        assert chain


def read_command(words):
    """Read the options of a command with its own parser."""
    from fission_grpo.cli import check_environment, compare, doctor, evaluate, tasks, train
    from fission_grpo.recipes.bfcl_tasks import generate
    from fission_grpo.recipes.error_simulator import check, data
    from fission_grpo.recipes.error_simulator import train as simulator_train

    command, *rest = words
    if command == "train":
        return train.parse([*rest, *CPU])
    if command == "eval":
        return evaluate.eval_parser().parse_args(rest)
    if command == "simulator" and rest[0] == "train":
        return simulator_train.parse(rest[1:])
    if command == "tasks" and rest[0] == "generate":
        return generate._parser().parse_args(rest[1:])
    parsers = {"compare": compare, "doctor": doctor, "tasks": tasks, "check-environment": check_environment}
    parsers |= {"simulator data": data, "simulator check": check}
    if command == "simulator":
        command, rest = f"simulator {rest[0]}", rest[1:]
    if command in ("report", "doctor"):
        return rest
    return parsers[command]._parser().parse_args(rest)


@pytest.mark.parametrize("words", list(commands()))
def test_every_command_of_the_pages_is_read_by_its_parser(words, at_root):
    assert read_command(words) is not None
