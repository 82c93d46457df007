"""The verdict on environments: a good one, and every kind of bad one we could think of."""

import json
import subprocess
import sys
import time

import pytest
from environments_on_trial import (
    Async,
    ByReference,
    ChangingReward,
    Clock,
    Dice,
    Door,
    Exits,
    ForgetsAField,
    ForgetsToReset,
    Hangs,
    Library,
    Megabytes,
    Mutates,
    NeedsArguments,
    NeedsColumns,
    NoReset,
    NoReward,
    NoTools,
    RaisesOddly,
    SharedList,
    Slotted,
    Things,
    Till,
    Undocumented,
    WordyLibrary,
)
from error_words import Orders

from fission_grpo.cli.main import main
from fission_grpo.core.result_errors import error_rule
from fission_grpo.core.types import ToolCall
from fission_grpo.envs.check import check_environment
from fission_grpo.envs.desk.env import Desk
from fission_grpo.envs.desk.tasks import make_rows


def failed(make, **options):
    report = check_environment(make, seconds=0.3, **options)
    return {one.check: one.detail for one in report.findings if one.status == "failed"}


@pytest.mark.parametrize("make", [Till, Async])
def test_a_good_environment_passes_and_its_calls_were_really_answered(make):
    report = check_environment(make)
    assert report.ok, str(report)
    by_name = {one.check: one for one in report.findings}
    assert {one.status for one in report.findings} == {"ok"}
    assert int(by_name["errors are results"].detail.split()[0]) > 5
    assert str(report).endswith("it can be trained and recovered in")


def test_the_built_in_environment_passes_with_rows():
    assert check_environment(Desk, make_rows(2, 0, "train")).ok


@pytest.mark.parametrize(
    ("make", "check", "words"),
    [
        (SharedList, "isolation", "keep state in self"),
        (ForgetsToReset, "nothing left behind", "reset leaves something behind"),
        (Dice, "determinism, replay", "answer differently"),
        (Clock, "determinism, replay", "total"),
        (ByReference, "snapshot", "change a snapshot"),
        (ForgetsAField, "snapshot", "coin number"),
        (Exits, "errors are results", "exits the process"),
        (Hangs, "errors are results", "hangs for more than 0.3 s"),
        (Things, "errors are results", "which is no JSON"),
        (Megabytes, "errors are results", "10000000 characters"),
        (Mutates, "errors are results", "changes its arguments"),
        (RaisesOddly, "errors are results", "NotAnError"),
        (Undocumented, "tools", "total"),
        (NoReward, "reward", "must be a finite number"),
        (ChangingReward, "reward", "must not change anything"),
        (Slotted, "tools", "__slots__"),
        (NeedsArguments, "tools", "size"),
        (NeedsColumns, "reset", "--rows FILE"),
        (NoTools, "tools", "public methods"),
        (NoReset, "tools", "reset"),
    ],
)
def test_a_bad_environment_gets_a_verdict_that_says_what_is_wrong(make, check, words):
    assert words in failed(make).get(check, "nothing found")


def test_rows_are_given_to_reset_and_the_rest_is_checked():
    assert not failed(NeedsColumns, rows=[{"coins": [1]}])


def test_calls_of_ones_own_are_tried():
    calls = [ToolCall("put", {"amount": 7}), ToolCall("total")]
    report = check_environment(Till, calls=calls)
    assert {one.check: one.detail for one in report.findings}["determinism, replay"] == "2 calls, twice the same"


def command(tmp_path, *arguments):
    whole = [sys.executable, "-m", "fission_grpo.cli", "check-environment", *arguments]
    return subprocess.run(whole, capture_output=True, text=True, cwd=tmp_path, check=False)


def test_the_command_checks_a_file(tmp_path):
    source = "class Lamp:\n    def reset(self, **row):\n        self.on = False\n\n"
    source += '    def switch(self) -> str:\n        """Switch it."""\n'
    source += "        self.on = not self.on\n        return str(self.on)\n"
    (tmp_path / "lamp.py").write_text(source)
    for name in ("lamp:Lamp", "lamp.py:Lamp"):
        done = command(tmp_path, name)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "Lamp: it can be trained and recovered in" in done.stdout
    done = command(tmp_path, "lamp:Lamp", "--json")
    assert json.loads(done.stdout)["ok"] is True


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nowhere:Lamp", "nowhere"),
        ("lamp:Lamp", "it has Torch"),
        ("lamp", "module:Class"),
        ("gone.py:X", "no such file"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_clear_line(tmp_path, name, words):
    (tmp_path / "lamp.py").write_text("class Torch: ...\n")
    done = command(tmp_path, name)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert words in done.stderr
    assert done.stderr.count("\n") == 1


def test_every_row_given_is_tried():
    calls = [ToolCall("open_door"), ToolCall("open_door"), ToolCall("open_door"), ToolCall("unlock_door")]
    assert check_environment(Door, [{"locked": False}], calls).ok
    report = check_environment(Door, [{"locked": False}, {"locked": True}], calls)
    assert [finding.check for finding in report.findings if finding.status == "failed"] == ["snapshot"]


def ends_in(method, how):
    """A class whose method hangs or raises."""

    def end(self, *_, **__):
        if how == "hangs":
            time.sleep(30)
        raise how

    return type("Ends", (Till,), {method: end})


@pytest.mark.parametrize("how", ["hangs", SystemExit(0), GeneratorExit()], ids=repr)
@pytest.mark.parametrize("method", ["reset", "get_reward", "_snapshot", "_restore", "_progress"])
def test_a_method_that_hangs_or_ends_the_process_is_a_failed_check(method, how):
    found = failed(ends_in(method, how), calls=[ToolCall("put", {"amount": 7}), ToolCall("put", {"amount": 1})])
    assert found
    said = " ".join(found.values())
    assert ("hangs" if how == "hangs" else type(how).__name__) in said


def test_a_tool_that_raises_what_ctrl_c_raises_stops_the_check():
    class Interrupts(Till):
        def total(self) -> int:
            """Say how much there is."""
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        failed(Interrupts)


def test_errors_in_words_are_a_warning_until_they_can_be_told_apart():
    def finding(**options):
        report = check_environment(Orders, rows=[{"orders": {"12": "paid"}}], **options)
        return next(one for one in report.findings if one.check == "errors in words"), report

    silent, report = finding()
    assert (silent.status, report.ok) == ("warning", True)
    assert str(report).endswith("it can be trained and recovered in; see the warning")
    assert "results begin like errors and count as successes (such as 'Error: order" in silent.detail
    assert 'return {"error": ...}, or give error_pattern' in silent.detail
    told, report = finding(error_if=error_rule("^Error"))
    assert (told.status, report.ok) == ("ok", True)


def of_tools(report):
    return next(one.detail for one in report.findings if one.check == "errors are results")


@pytest.mark.parametrize("rows", [[{"title": "The Old Man and the Sea"}], []], ids=["row", "result"])
def test_a_text_of_a_row_or_a_result_is_tried_whole(rows):
    report = check_environment(Library, rows)
    assert report.answered["lend"]
    assert "not checked" not in str(report)


def test_a_tool_of_which_every_result_is_an_error_in_words_was_not_answered():
    report = check_environment(WordyLibrary)
    assert "lend 0" in of_tools(report)
    assert "not checked: lend, as no call of them succeeded" in str(report)
    said_so = check_environment(WordyLibrary, error_if=lambda text: text == "x")  # the user says that it is none
    assert "lend 0" not in of_tools(said_so)


@pytest.mark.parametrize("row", ['{"title": "Emma"}', '{"title": "Emma", "prompt": ""}'])
def test_rows_that_training_would_refuse_are_a_warning(tmp_path, capsys, row):
    (tmp_path / "rows.jsonl").write_text(row)
    name, path = "environments_on_trial:Library", str(tmp_path / "rows.jsonl")
    assert main(["check-environment", name, "--rows", path]) == 0
    printed = capsys.readouterr().out
    assert "rows.jsonl, row 1, field 'prompt': " in next(line for line in printed.splitlines() if line[:5] == "rows ")
    assert "see the warning" in printed
    (tmp_path / "rows.jsonl").write_text('{"title": "Emma", "prompt": "Lend Emma."}')
    assert main(["check-environment", name, "--rows", path]) == 0
    assert "warning" not in capsys.readouterr().out


def test_a_file_without_rows_is_named(tmp_path, capsys):
    (tmp_path / "rows.jsonl").write_text("")
    assert main(["check-environment", "environments_on_trial:Library", "--rows", str(tmp_path / "rows.jsonl")]) == 2
    assert "rows.jsonl: no rows in it" in capsys.readouterr().err


def test_a_pattern_on_the_command_line_tells_errors_apart(capsys):
    name = "error_words:Orders"
    assert main(["check-environment", name]) == 0
    assert "warning" in next(line for line in capsys.readouterr().out.splitlines() if "errors in words" in line)
    assert main(["check-environment", name, "--error_pattern", "^Error"]) == 0
    assert main(["check-environment", name, "--error_pattern", "("]) == 2
    assert "is no regular expression" in capsys.readouterr().err


class Lit:
    """A lamp that knows how it is lit."""

    def reset(self, **_):
        self.on = False

    def switch(self) -> str:
        """Switch it."""
        self.on = not self.on
        return "ok"

    def _reference(self):
        return [ToolCall("switch")]


def test_a_reward_that_the_right_calls_do_not_earn_is_a_warning():
    def reward(factor):
        report = check_environment(
            Lit, reward_funcs=lambda environments, **_: [factor * one.on for one in environments]
        )
        return next(one for one in report.findings if one.check == "reward")

    silent, paid = reward(0.0), reward(1.0)
    assert (silent.status, paid.status) == ("warning", "ok")
    assert "the calls of _reference earn no more: 0" in silent.detail
    assert "after the calls of _reference 1 to 1" in paid.detail
