"""Text from outside is shown as text: no escape sequence or direction override reaches a terminal or page."""

import ast
import io
import json
import logging
import sys
import warnings
from pathlib import Path

import pytest
from broken_streams import BrokenStream, closed_stream

from fission_grpo.core.terminal import get_logger, printable, quiet_libraries, show, tolerant_output

SOURCE = Path(__file__).parents[2] / "src" / "fission_grpo"
HOSTILE = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202egnp.exe\u2066\u2069\x08\r\x00\x7f\u2028"
FORBIDDEN = {chr(n) for n in (*range(32), *range(127, 160), *range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x2028)}


def assert_clean(text):
    assert {letter for letter in text if letter in FORBIDDEN - {"\n", "\t"}} == set()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b]0;x\x07", r"\x1b]0;x\x07"),
        ("\x1b[2J\x9b2J", r"\x1b[2J\x9b2J"),
        ("a\u202eb\u2066c\u2069", r"a\u202eb\u2066c\u2069"),
        ("a\u200eb\u061c", r"a\u200eb\u061c"),
        ("a\nb\tc\r", r"a\nb\tc\r"),
        ("\ud800", r"\ud800"),
        ("\U000e0041", r"\U000e0041"),
        ("\x00\x7f\x85\u2028", r"\x00\x7f\x85\u2028"),
        ("é 漢字 שלום \U0001f468\u200d\U0001f469 a\\x1b", "é 漢字 שלום \U0001f468\u200d\U0001f469 a\\x1b"),
        ("", ""),
    ],
)
def test_controls_are_escapes_that_can_be_read_and_other_text_stays(text, shown):
    assert printable(text) == shown


def test_what_is_kept_is_kept():
    assert printable("a\n\x1b\tb\r", keep="\n\t") == "a\n\\x1b\tb\\r"


@pytest.mark.parametrize("error", [False, True])
def test_a_text_is_shown_on_the_chosen_stream(capsys, error):
    show(f"two\nlines {HOSTILE}", error=error)
    out, err = capsys.readouterr()
    assert (out == "", err == "") == (error, not error)
    assert_clean(out + err)
    assert (out + err).startswith("two\nlines \\x1b]0;owned")


def test_a_terminal_without_unicode_gets_escapes(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    show("5 · é")
    assert raw.getvalue() == b"5 \\xb7 \\xe9\n"


def test_log_records_and_their_tracebacks_are_printable(caplog):
    logger = get_logger("fission_grpo.test_terminal")
    get_logger("fission_grpo.test_terminal")
    try:
        raise ValueError(HOSTILE)
    except ValueError:
        logger.warning("task %s failed: 100%%", HOSTILE, exc_info=True)
    logger.warning("plain 100%")
    said = "".join(logging.Formatter("%(message)s").format(record) for record in caplog.records)
    assert_clean(said)
    assert "failed: 100%" in said
    assert said.endswith("plain 100%")


def test_nothing_but_this_module_prints_or_makes_loggers():
    for path in SOURCE.rglob("*.py"):
        if path.name == "terminal.py":
            continue
        calls = [node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        assert not any(isinstance(name, ast.Name) and name.id == "print" for name in calls), path
        if path.name != "secrets.py":  # it reads the loggers of libraries
            assert not any(isinstance(name, ast.Attribute) and name.attr == "getLogger" for name in calls), path


def trace(name):
    call = {"function": {"name": f"f{HOSTILE}", "arguments": "{}"}}
    return {
        "id": name,
        "category": f"kind {HOSTILE}",
        "messages": [
            {"role": "user", "content": HOSTILE},
            {"role": "assistant", "content": HOSTILE, "tool_calls": [call]},
            {"role": "tool", "content": HOSTILE},
            {"role": "assistant", "content": "done"},
        ],
    }


@pytest.fixture
def evaluations(tmp_path, capsys):
    """Two evaluations of transcripts, whose ids, categories, tools and names are hostile."""
    from fission_grpo.cli.evaluate import evaluate_command

    folders = []
    for name in ("a", "b"):
        path = tmp_path / f"{name}{HOSTILE.replace(chr(0), '')}.jsonl"
        ids = [f"t{i}{HOSTILE}" for i in range(3)] + ([f"only{HOSTILE}"] if name == "b" else [])
        path.write_text("".join(json.dumps(trace(one)) + "\n" for one in ids))
        output = tmp_path / name
        assert evaluate_command(["--traces", str(path), "--output", str(output)]) == 0
        folders.append(next(output.iterdir()))
    yield folders
    assert_clean("".join(capsys.readouterr()))


def test_tables_of_evaluations_and_refused_comparisons_are_clean(evaluations, capsys):
    from fission_grpo.cli.compare import compare_command

    assert_clean("".join(capsys.readouterr()))
    assert compare_command(list(map(str, evaluations))) == 2
    error = capsys.readouterr().err
    assert_clean(error)
    assert "only\\x1b]0;owned" in error


@pytest.mark.parametrize(
    "words",
    [
        ["eval", "--traces", f"none{HOSTILE[1:20]}.jsonl"],
        ["tasks", "check", "none\x1b[2J.jsonl"],
        ["report", "none\x1b[2J"],
        ["compare", "none\x1b[2J", "none\x1b[2J"],
        ["check-environment", "none\x1b[2J.py:X"],
        ["none\x1b[2J"],
    ],
    ids=lambda words: words[0][:9],
)
def test_names_of_files_are_clean_in_errors(words, capsys):
    from fission_grpo.cli.main import main

    assert main(words) in (1, 2)
    out, err = capsys.readouterr()
    assert_clean(out + err)
    assert "\\x1b[2J" in err or "none" in err


def test_a_report_shows_controls_as_text(tmp_path):
    pytest.importorskip("matplotlib")
    from report_support import GRPO, PUSHED, write_run

    from fission_grpo.report.page import write_report

    pushed = PUSHED | {"feedback": f"say {HOSTILE}", "root": HOSTILE, "kind": f"k{HOSTILE}"}
    run = write_run(tmp_path / "run", fission=[pushed], evaluations=[GRPO | {"name": f"n{HOSTILE}"}])
    page = write_report(run).read_text()
    assert_clean(page)
    assert "say \\x1b]0;owned\\x07" in page
    assert "<td" in page


@pytest.mark.parametrize("status", [400, 500])
def test_errors_of_an_endpoint_are_clean_wherever_they_go(status, monkeypatch, caplog):
    pytest.importorskip("openai")
    from fission_grpo.inference.endpoint import EndpointOptions, EndpointPolicy
    from fission_grpo.inference.http_client import Tries

    monkeypatch.setenv("OPENAI_API_KEY", "none")
    policy = EndpointPolicy("m", "http://localhost:1/v1", EndpointOptions())
    tries = Tries(1.0, 1.0, policy._counts, reason=f"HTTP {status}", detail=f"no {HOSTILE}")
    reply = policy._counted(tries)
    policy.close()
    assert_clean(reply.lost)
    assert "no \\x1b]0;owned" in reply.lost


def test_the_verdict_on_an_environment_has_one_clean_line_for_each_check():
    from fission_grpo.envs.check import Finding, Report

    report = Report.__new__(Report)
    report.findings, report.environment = (Finding("calls", "failed", f"says\n{HOSTILE}"),), "Odd"
    lines = str(report).split("\n")
    assert_clean("".join(lines))
    assert len(lines) == 2


ODD = {
    "dead pipe": lambda: BrokenStream(BrokenPipeError(32, "Broken pipe"), None),
    "full disk": lambda: BrokenStream(OSError(28, "No space left on device"), None),
    "written by a signal handler": lambda: BrokenStream(
        RuntimeError("reentrant call inside <_io.BufferedWriter>"), None
    ),
    "closed": closed_stream,
    "none": lambda: None,
}


@pytest.mark.parametrize("error", [True, False], ids=["stderr", "stdout"])
@pytest.mark.parametrize("stream", ODD)
def test_showing_a_text_on_a_stream_that_cannot_be_written_raises_nothing(stream, error, monkeypatch):
    monkeypatch.setattr(sys, "stderr" if error else "stdout", ODD[stream]())
    show("lost", error=error)


@pytest.mark.parametrize("stream", ODD)
def test_in_tolerant_output_whatever_writes_there_raises_nothing(stream, monkeypatch):
    monkeypatch.setattr(sys, "stdout", ODD[stream]())
    monkeypatch.setattr(sys, "stderr", ODD[stream]())
    with tolerant_output() as output:
        print("lost", flush=True)
        sys.stderr.writelines(["a", "b"])
        logging.getLogger("somebody").warning("lost")
        assert not sys.stderr.isatty()
        assert output.problem
    print("into nothing", flush=True)


def test_tolerant_output_passes_everything_on(capsys):
    before = sys.stdout, sys.stderr
    with tolerant_output() as output:
        print("out")
        show("err", error=True)
        assert sys.stdout.encoding == before[0].encoding
    assert (sys.stdout, sys.stderr) == before
    assert capsys.readouterr() == ("out\n", "err\n")
    assert output.problem is None


@pytest.mark.parametrize("command", [["eval"], ["compare"], ["report"], ["tasks"], ["simulator", "check"], ["train"]])
@pytest.mark.parametrize("word", ["--x\x1b[2J", "x\x9b2J", "--\u202ey", "--a\x1b]0;owned\x07=3"])
def test_options_of_a_command_line_are_clean_in_its_errors(command, word, capsys):
    from fission_grpo.cli.main import main

    try:
        status = main([*command, word, word, word])
    except SystemExit as ended:
        status = ended.code
    assert status in (1, 2)
    assert_clean("".join(capsys.readouterr()))


def test_every_command_has_the_parser_that_cleans_its_messages():
    for path in SOURCE.rglob("*.py"):
        if path.name != "terminal.py":
            assert "argparse.ArgumentParser(" not in path.read_text(), path


def test_an_error_that_nobody_catches_is_shown_clean(capsys, monkeypatch):
    import sys

    from fission_grpo.cli import main as cli
    from fission_grpo.core.terminal import show_traceback

    monkeypatch.setattr(sys, "argv", ["fission-grpo", "--version"])
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    assert cli.main() == 0
    assert sys.excepthook is show_traceback
    try:
        raise KeyError(HOSTILE)
    except KeyError as error:
        show_traceback(KeyError, error, error.__traceback__)
    try:
        raise RuntimeError(HOSTILE) from ValueError(HOSTILE)
    except RuntimeError as error:
        show_traceback(RuntimeError, error, error.__traceback__)
    told = capsys.readouterr().err
    assert_clean(told)
    assert "Traceback" in told


def test_only_the_listed_messages_of_libraries_are_left_out(caplog):
    logger = logging.getLogger("transformers.trainer")
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        with quiet_libraries():
            for module in ("transformers.training_args", "mine"):
                for text in ("`gradient_checkpointing` is deprecated", "`other` is deprecated"):
                    warnings.warn_explicit(text, FutureWarning, f"{module}.py", 1, module)
            logger.warning("There were missing keys in the checkpoint model loaded: ['lm_head.weight'].")
            logger.warning("There were missing keys in the checkpoint model loaded: ['lm_head.weight', 'wte'].")
    assert [(str(one.message), one.filename) for one in shown] == [
        ("`other` is deprecated", "transformers.training_args.py"),
        ("`gradient_checkpointing` is deprecated", "mine.py"),
        ("`other` is deprecated", "mine.py"),
    ]
    assert [record.getMessage().split(": ")[1] for record in caplog.records] == ["['lm_head.weight', 'wte']."]
