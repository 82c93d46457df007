"""The command line: help, and one clear line about every mistake. Training for real is in test_trainer."""

import importlib.util
import json
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

import fission_grpo.cli.main as main_module
from fission_grpo.cli.main import main
from fission_grpo.core.timing import format_duration
from fission_grpo.training.callbacks import RunProgress, progress_line

CONFIGS = sorted((Path(__file__).parent.parent.parent / "configs").glob("*.yaml"))
training = pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="trl is not installed")


def run(*arguments):
    return subprocess.run([sys.executable, "-m", "fission_grpo.cli", *arguments], capture_output=True, text=True)


@pytest.mark.parametrize("arguments", [(), ("--help",), ("tasks", "--help"), ("eval", "--help"), ("report", "--help")])
def test_help_is_quick(arguments):
    started = time.perf_counter()
    done = run(*arguments)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: fission-grpo")
    assert time.perf_counter() - started < 2


def test_an_unknown_command_lists_the_commands(capsys):
    assert main(["trian"]) == 2
    names = "train, eval, compare, doctor, report, simulator, tasks, check-environment"
    assert capsys.readouterr().err == f"error: unknown command 'trian'; commands: {names}\n"


def test_checking_a_good_file_says_what_is_in_it(tmp_path, capsys):
    path = tmp_path / "t.jsonl"
    row = {
        "messages": [{"role": "user", "content": "hi"}],
        "tools": [{"name": "f", "description": ""}],
        "reference": [{"name": "f", "arguments": {}}] * 2,
    }
    path.write_text(json.dumps(row))
    assert main(["tasks", "check", str(path)]) == 0
    assert capsys.readouterr().out == f"{path}: ok, 1 tasks (2 calls: 1; 1.0 tools each on average)\n"


def test_checking_a_bad_file_fails_with_one_line(tmp_path, capsys):
    path = tmp_path / "t.jsonl"
    path.write_text("{}\n")
    assert main(["tasks", "check", str(path)]) == 1
    assert capsys.readouterr().err.startswith(f"error: {path}, row 1, field 'messages': missing")
    assert main(["tasks", "check", str(tmp_path / "none")]) == 1
    assert main(["tasks", "convert", "--from", "toolrl", str(path), str(tmp_path / "out")]) == 1


@training
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("num_generatons: 8\n", "unknown key 'num_generatons' (did you mean num_generations"),
        ("- a\n- b\n", "must be a mapping"),
        ("a: [\n", "not YAML"),
        (None, "cannot be read"),
    ],
    ids=["typo", "list", "broken", "missing"],
)
def test_a_bad_config_file_is_one_error_and_no_traceback(text, expected, tmp_path):
    from fission_grpo.cli.train import parse
    from fission_grpo.core.errors import UsageError

    path = tmp_path / "c.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UsageError) as caught:
        parse(["--config", str(path)])
    assert str(path) in str(caught.value)
    assert expected in str(caught.value)


@training
def test_an_unknown_option_ends_the_command_with_status_2():
    done = run("train", "--num_recovery_generation", "3")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        "error: unknown option '--num_recovery_generation' "
        "(did you mean num_recovery_generations, recovery_ratio, num_generations?); see --help"
    )
    assert "Traceback" not in done.stderr


@training
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_configs_parse_and_can_be_overridden(path, tmp_path):
    from fission_grpo.cli.train import parse

    script, args, model, reward = parse(["--config", str(path), "--max_steps", "3", f"--output_dir={tmp_path}"])
    assert script.tasks or script.rows
    assert model.model_name_or_path
    assert (args.max_steps, args.output_dir) == (3, str(tmp_path))
    assert reward.correctness_threshold == 2.0
    if args.fission:
        assert args.generation_batch_size % args.num_recovery_generations == 0


@training
def test_the_two_desk_configs_differ_in_fission_only(tmp_path):
    import yaml

    fission, grpo = (
        yaml.safe_load(next(path for path in CONFIGS if path.stem == name).read_text())
        for name in ("desk_fission", "desk_grpo")
    )
    ours = {"num_recovery_generations", "buffer_capacity", "max_age_steps", "max_depth", "buffer_order", "feedback"}
    assert {key for key in fission if fission[key] != grpo.get(key)} == ours | {"fission", "output_dir"}
    assert fission.keys() - grpo.keys() == ours


@training
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--tasks", "desk"], "model_name_or_path is missing"),
        (["--tasks", "desk", "--model_name_or_path", "./nowhere"], "the folder ./nowhere does not exist"),
        (["--model_name_or_path", "starter"], "tasks is missing"),
        (["--model_name_or_path", "starter", "--tasks", "t.csv"], "neither 'desk' nor"),
        (["--model_name_or_path", "starter", "--tasks", "nowhere.jsonl"], "nowhere.jsonl: cannot be read"),
        (["--tasks", "desk", "--num_recovery_generations", "3"], "num_recovery_generations (3) does not divide"),
        (["--tasks", "desk", "--resume_from_checkpoint", "true"], "no checkpoint-*"),
        (["--tasks", "desk", "--resume_from_checkpoint", "."], "has no fission buffer"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_are_found_before_training(options, expected, tmp_path, capsys):
    from fission_grpo.cli.train import train_command

    machine = ["--output_dir", str(tmp_path), "--use_cpu", "true", "--bf16", "false"]
    assert train_command([*machine, *options]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    assert expected in error


def test_progress_tells_rate_and_time_left():
    # 4 of 10 steps and 900 tokens in 20 s: 45 tokens/s, 6 * 20 / 4 = 30 s left
    moment = RunProgress(step=4, max_steps=10, seconds=20, tokens=900)
    logs = {"fission/phase": 1.0, "reward": 0.614, "recovery/rate": 0.25, "fission/buffer": 3.0, "loss": 1.0}
    assert progress_line(moment, logs) == (
        "step 4/10 · recover · reward 0.614 · recoveries right 0.25 · buffer 3 · 45 tokens/s · 0:30 left"
    )


def test_time_left_heeds_the_token_budget_and_a_resume():
    # resumed at step 2 with 100 tokens: 800 / 20 s = 40 tokens/s; the budget ends in 100 / 40 = 2.5 s
    moment = RunProgress(step=4, max_steps=10, seconds=20, first_step=2, tokens=900, first_tokens=100, max_tokens=1000)
    assert moment.tokens_per_second == 40
    assert moment.seconds_left == 2.5
    assert RunProgress(step=2, max_steps=10, seconds=5, first_step=2).seconds_left is None
    assert RunProgress(step=3, max_steps=10, seconds=5, tokens=9, first_tokens=None).tokens_per_second is None


def test_clock_shows_hours_only_where_there_are_any():
    assert [format_duration(5), format_duration(65), format_duration(3725)] == ["0:05", "1:05", "1:02:05"]


@pytest.mark.parametrize("code", [0, None, 3, "bye"])
@pytest.mark.parametrize("command", ["train", "eval", "compare"])
def test_a_library_that_exits_does_not_look_like_success(command, code, monkeypatch, capsys):
    def run(words):
        sys.exit(code)

    place = SimpleNamespace(**{main_module.COMMANDS[command][1]: run})
    monkeypatch.setattr(main_module, "import_module", lambda name: place)
    assert main([command]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"error: {command} was ended by SystemExit({code!r}) from {__file__}, line ")


@pytest.mark.parametrize(("words", "code"), [(["--help"], 0), (["--no_such_option"], 2)])
@pytest.mark.parametrize("command", ["eval", "compare", "report", "check-environment"])
def test_the_exits_of_the_command_line_parser_keep_their_status(command, words, code, capsys):
    with pytest.raises(SystemExit) as caught:
        main([command, *words])
    assert caught.value.code == code
    assert "was ended by" not in capsys.readouterr().err
