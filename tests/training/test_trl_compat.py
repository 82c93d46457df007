"""Which TRL and transformers are refused, and what is told; and what we hold on to in the TRL that is installed."""

import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest

from fission_grpo.core.errors import UnsupportedVersionError
from fission_grpo.training.trl_compat import (
    NEEDED_ATTRIBUTES,
    SUPPORTED,
    check_names,
    check_versions,
    context_length,
    missing_names,
    parse_version,
    tools_of_every_row,
)

ROOT = Path(__file__).parent.parent.parent


def installed(**versions):
    def version(package):
        if package not in versions:
            raise metadata.PackageNotFoundError(package)
        return versions[package]

    return version


@pytest.fixture(autouse=True)
def variable_unset(monkeypatch):
    monkeypatch.delenv("FISSION_GRPO_ANY_TRL", raising=False)


@pytest.mark.parametrize("version", ["1.14.0", "1.14.2", "1.16.0", "1.16.9", "1.14.0rc1"])
def test_supported_versions_pass_without_a_warning(version, caplog):
    check_versions(installed(trl=version, transformers="5.15.0"))
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("versions", "parts"),
    [
        (
            {"trl": "1.13.0"},
            ["trl 1.13.0 is installed", "trl>=1.14,!=1.15.*,<1.17", "pip install 'trl>=1.14,!=1.15.*,<1.17'"],
        ),
        ({"trl": "1.15.0"}, ["trl 1.15.0 is installed", "fails without Triton"]),
        ({"trl": "0.29.1"}, ["trl 0.29.1 is installed"]),
        ({"trl": "1.16.0", "transformers": "4.57.6"}, ["transformers 4.57.6 is installed"]),
        ({"trl": "unknown"}, ["trl unknown is installed"]),
        (
            {"trl": "1.16.0", "transformers": "5.14.1"},
            ["transformers 5.14.1 is installed", "transformers>=5.15,<6", "`parse_response` with tools"],
        ),
    ],
)
def test_other_versions_are_refused_with_what_is_supported_and_the_fix(versions, parts):
    with pytest.raises(UnsupportedVersionError) as error:
        check_versions(installed(**versions))
    assert all(part in str(error.value) for part in parts)


@pytest.mark.parametrize(
    ("versions", "said"),
    [
        ({"trl": "1.17.0"}, "trl 1.17.0 is newer than trl 1.16.0, the newest one tested; trying it"),
        ({"trl": "1.17.0.dev0"}, "trl 1.17.0.dev0 is newer"),
        ({"trl": "1.21.3"}, "pip install 'trl>=1.14,!=1.15.*,<1.17'"),
        ({"trl": "2.0"}, "trl 2.0 is newer"),
        ({"trl": "1.16.0", "transformers": "6.0.0"}, "transformers 6.0.0 is newer than transformers 5.24.0"),
    ],
)
def test_a_newer_one_is_tried_with_one_warning(versions, said, caplog):
    check_versions(installed(**versions))
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert said in record.getMessage()


def test_an_attribute_that_a_newer_trl_sets_in_a_parent_is_there():
    class Parent:
        def __init__(self):
            self.tools = None

    class Newer(Parent):
        def __init__(self):
            super().__init__()
            self.beta = 0

    missing = missing_names(Newer)
    assert "the attribute tools" not in missing
    assert "the attribute beta" not in missing
    assert "the attribute tools" in missing_names(type("Other", (), {"__init__": lambda self: None}))


def test_a_newer_trl_that_lacks_a_name_is_refused_in_one_line_that_has_the_name():
    trl = pytest.importorskip("trl")

    class Newer(trl.GRPOTrainer):
        _tool_call_loop = None

        def _calculate_rewards(self, batch): ...

    with pytest.raises(UnsupportedVersionError) as error:
        check_names(Newer, installed(trl="1.17.0"))
    said = str(error.value)
    assert "Newer of trl 1.17.0 lacks what fission-grpo needs: _calculate_rewards(inputs, prompts," in said
    assert "_tool_call_loop()" in said
    assert "\n" not in said


def test_a_name_that_a_package_no_longer_has_is_one_line_of_the_command():
    code = """
import sys, types, trl
newer = types.ModuleType("trl")  # has the trainer, but not what the command reads options with
newer.GRPOConfig, newer.GRPOTrainer = trl.GRPOConfig, trl.GRPOTrainer
sys.modules["trl"] = newer
from fission_grpo.cli.main import main
sys.exit(main(["train", "--help-all"]))
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert said.returncode == 1
    assert said.stderr.splitlines()[-1].startswith("error: train: cannot import name 'ModelConfig' from 'trl'")
    assert "Traceback" not in said.stderr


def test_packages_that_are_missing_are_left_to_their_import():
    check_versions(installed())


def test_numbers_of_versions():
    assert parse_version("1.17.0.dev0") == (1, 17, 0)
    assert parse_version("5.15.0rc1") == (5, 15, 0)
    assert parse_version("unknown") == ()


def test_the_ranges_are_those_of_pyproject_and_the_tested_versions_are_within():
    extra = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["train"]
    for package, known in SUPPORTED.items():
        assert f"{package}{known.pip}" in extra
        assert all(known.first <= parse_version(version) for version in known.tested)
        assert all(parse_version(version)[: len(known.last)] <= known.last for version in known.tested)
    minors = [parse_version(version)[:2] for version in SUPPORTED["trl"].tested]
    assert minors == [(1, minor) for minor in (14, 16)]


def test_an_unsupported_version_stops_the_import_of_the_trainer_and_the_command_says_so():
    code = """
import sys, importlib.metadata as m
real = m.version
m.version = lambda name: "1.13.0" if name == "trl" else real(name)
if sys.argv[1:]:
    from fission_grpo.cli.main import main
    sys.exit(main(sys.argv[1:]))
try:
    from fission_grpo import FissionGRPOTrainer
except ImportError as error:
    print(error)
assert "trl" not in sys.modules
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stderr
    assert "trl 1.13.0 is installed" in said.stdout
    for command in (["train"], ["simulator", "train"]):
        said = subprocess.run([sys.executable, "-c", code, *command], capture_output=True, text=True, check=False)
        assert said.returncode == 1
        assert said.stderr.startswith("error: trl 1.13.0 is installed")
        assert len(said.stderr.splitlines()) == 1


def test_the_trl_that_is_installed_has_all_that_we_hold_on_to():
    trl = pytest.importorskip("trl")
    assert missing_names(trl.GRPOTrainer) == []


def test_a_patched_trl_is_refused_with_what_is_missing(monkeypatch, caplog):
    class Patched:
        def __init__(self):
            self.tools = self._metrics = None

        def _prepare_inputs(self, batch): ...

        def _save_checkpoint(self, model, trial, metrics=None): ...

    missing = missing_names(Patched)
    assert "_calculate_rewards()" in missing
    assert "_prepare_inputs(generation_batch), which takes (batch) here" in missing
    assert not any("_save_checkpoint" in one for one in missing)  # more parameters do no harm
    attributes = {one.removeprefix("the attribute ") for one in missing if one.startswith("the attribute")}
    assert attributes == set(NEEDED_ATTRIBUTES) - {"tools", "_metrics"}
    with pytest.raises(UnsupportedVersionError, match=r"_prepare_inputs\(generation_batch\).*patched"):
        check_names(Patched)
    monkeypatch.setenv("FISSION_GRPO_ANY_TRL", "1")
    check_names(Patched)
    assert len(caplog.records) == 1


def test_tools_of_every_row_are_those_that_all_environments_share():
    def move(): ...

    def copy(): ...

    def paint(): ...

    alone = SimpleNamespace(environment_factories=None, tools=[move])
    assert tools_of_every_row(alone) == [move]
    several = SimpleNamespace(
        environment_factories={"a": 1, "b": 2}, _env_tools={"a": [move, copy], "b": [paint, copy]}
    )
    assert tools_of_every_row(several) == [copy]
    apart = SimpleNamespace(environment_factories={"a": 1, "b": 2}, _env_tools={"a": [move], "b": [paint]})
    assert tools_of_every_row(apart) == []


def test_without_a_rows_tools_parse_errors_are_reported_as_a_tool_that_all_rows_have():
    pytest.importorskip("torch")
    from fission_grpo.core.types import PARSE_ERROR
    from fission_grpo.inference.pretrained import load_starter
    from fission_grpo.training.tool_call_parser import report_parse_errors

    def move(): ...

    _, tokenizer = load_starter()
    ids = tokenizer('<tool_call>\n{"name": "move", "arguments": {\n</tool_call><|im_end|>')["input_ids"]
    assert report_parse_errors(tokenizer, [move])
    function = tokenizer.parse_response(ids)["tool_calls"][0]["function"]  # as TRL before 1.16 calls it
    assert function["name"] == "move"
    assert list(function["arguments"]) == [PARSE_ERROR]


def with_context(positions, use_vllm=False, mode="server", configured=None, engine=None):
    config = SimpleNamespace(max_position_embeddings=positions) if positions != "none" else SimpleNamespace()
    model = SimpleNamespace(config=SimpleNamespace(get_text_config=lambda: config))
    engine = SimpleNamespace(model_config=SimpleNamespace(max_model_len=engine))
    return SimpleNamespace(
        model=model, accelerator=SimpleNamespace(unwrap_model=lambda one: one), use_vllm=use_vllm, vllm_mode=mode,
        args=SimpleNamespace(vllm_max_model_length=configured),
        vllm_generation=SimpleNamespace(llm=SimpleNamespace(llm_engine=engine)),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("trainer", "length"),
    [
        (with_context(128), 128),
        (with_context("none"), None),
        (with_context(None), None),
        (with_context(-1), None),
        (with_context(4096, True), 4096),
        (with_context(4096, True, configured=1024), 1024),
        (with_context(4096, True, "colocate", None, 2048), 2048),
        (with_context("none", True, "colocate", 512, 2048), 512),
        (with_context(4096, False, "colocate", 512, 2048), 4096),
    ],
)
def test_the_context_is_the_models_or_the_shorter_one_of_vllm(trainer, length):
    assert context_length(trainer) == length
