"""A full disk: the error names the file, what was written stays usable, and the same command goes on later."""

import json
import re
import resource
import signal
import subprocess
import sys

import pytest

from fission_grpo.cli.evaluate import evaluate_command
from fission_grpo.core.errors import RunDirectoryError
from fission_grpo.core.files import append_line, write_file, writing
from fission_grpo.evaluation.records import read_records
from fission_grpo.evaluation.run import Manifest, evaluate_run
from fission_grpo.evaluation.transcripts import read_traces
from fission_grpo.fission.event_log import EventLog
from fission_grpo.report.page import report_command


@pytest.fixture
def largest_file():
    """Set the largest size of a file; the system refuses what goes beyond, as a full disk does."""
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


def free(largest_file):
    largest_file(resource.getrlimit(resource.RLIMIT_FSIZE)[1])


def test_a_line_is_appended_whole_or_not_at_all(tmp_path, largest_file):
    path = tmp_path / "lines.jsonl"
    append_line(path, "a" * 99)
    largest_file(150)
    for _ in range(2):
        with pytest.raises(RunDirectoryError, match=r"lines\.jsonl could not be written \(File too large\)"):
            append_line(path, "b" * 99)
    free(largest_file)
    append_line(path, "c", sync=True)
    assert path.read_text() == "a" * 99 + "\nc\n"


def test_a_file_is_replaced_whole_or_kept(tmp_path, largest_file):
    path = tmp_path / "deep" / "file.json"
    write_file(path, "old")
    largest_file(50)
    with pytest.raises(RunDirectoryError, match=r"file\.json could not be written"):
        write_file(path, "new" * 99)
    assert path.read_text() == "old"
    assert list(path.parent.iterdir()) == [path]


def test_an_error_that_has_no_words_is_named_by_its_type(tmp_path):
    with pytest.raises(RunDirectoryError, match=r"x could not be written \(AssertionError\)"):  # noqa: SIM117
        with writing(tmp_path / "x", Exception):
            raise AssertionError


def test_a_device_and_a_link_are_written_through(tmp_path):
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_text("old")
    link.symlink_to(target)
    write_file(link, "new")
    assert (link.is_symlink(), target.read_text()) == (True, "new")
    full = tmp_path / "full"
    full.symlink_to("/dev/full")
    for write in (write_file, append_line):
        with pytest.raises(RunDirectoryError, match=r"full could not be written \(No space left on device\)"):
            write(full, "x")


SAID = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
TRACES = "".join(json.dumps({"id": f"t{i}", "messages": SAID}) + "\n" for i in range(40))


@pytest.mark.parametrize("size", [10, 600, 3000])
def test_an_evaluation_that_met_a_full_disk_goes_on_with_the_same_command(tmp_path, largest_file, size):
    (tmp_path / "t.jsonl").write_text(TRACES)
    finished = {record.id: record for record in read_traces(tmp_path / "t.jsonl", [])}
    ran = []

    def case(name):
        def start():
            ran.append(name)
            return finished[name]
            yield

        return start

    cases = {name: case(name) for name in finished}
    manifest = Manifest("test", {"kind": "traces", "sha256": "0", "count": 40}, {}, {})
    largest_file(size)
    with pytest.raises(RunDirectoryError, match=r"(cases\.jsonl|manifest\.json) could not be written"):
        evaluate_run(tmp_path / "run", manifest, None, cases)
    free(largest_file)
    kept = read_records(tmp_path / "run" / "cases.jsonl") if (tmp_path / "run" / "cases.jsonl").exists() else []
    ran.clear()
    assert evaluate_run(tmp_path / "run", manifest, None, cases) == list(finished.values())
    assert len(ran) == 40 - len(kept)
    assert size < 600 or kept


def test_commands_that_meet_a_full_disk_name_the_file_and_keep_the_old_one(tmp_path, largest_file, capsys):
    (tmp_path / "t.jsonl").write_text(TRACES)
    traces = ["eval", "--traces", str(tmp_path / "t.jsonl"), "--output", str(tmp_path / "out")]
    assert evaluate_command(traces[1:]) == 0
    run = tmp_path / "out" / "eval-t"
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    log = EventLog(tmp_path / "run" / "fission.jsonl")
    log.start()
    line = {"name": "n", "step": 1, "generated_tokens": 1, "tasks": 1, "success": 1.0, "success_ci": [0.1, 1.0]}
    line |= {"error_cases": 0, "recovered": 0, "errors": 0, "recovery_rate": None}
    write_file(tmp_path / "run" / "eval.jsonl", json.dumps(line) + "\n")
    capsys.readouterr()
    commands = [
        (lambda: evaluate_command(traces[1:]), 300, r"(manifest\.json|cases\.jsonl) could not be written"),
        (lambda: report_command([str(tmp_path / "run")]), 300, r"report/.* could not be written"),
    ]
    for command, size, said in commands:
        largest_file(size)
        status = command()
        free(largest_file)
        error = capsys.readouterr().err.splitlines()[-1]
        assert status in (1, 2)
        assert error.startswith("error: ")
        assert re.search(said, error), error
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before


@pytest.mark.parametrize("words", [["eval", "--traces", "t.jsonl"], ["tasks", "check", "tasks.jsonl"]], ids=str)
def test_a_full_standard_output_is_named_too(tmp_path, words):
    (tmp_path / "t.jsonl").write_text(TRACES)
    tool = {"name": "f", "parameters": {"type": "object", "properties": {}}}
    row = {"id": "a", "messages": SAID[:1], "tools": [tool], "reference": [{"name": "f", "arguments": {}}]}
    (tmp_path / "tasks.jsonl").write_text(json.dumps(row) + "\n")
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "fission_grpo.cli", *words]
        done = subprocess.run(command, cwd=tmp_path, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode in (1, 2)
    assert done.stderr.splitlines()[-1] == "error: standard output could not be written (No space left on device)"
    assert "Traceback" not in done.stderr
