"""Evaluations on disk: a line per case, resumed after a kill; step tasks judged as in training."""

import json

import pytest

from fission_grpo.core.chat import render_call
from fission_grpo.core.errors import RunFileError
from fission_grpo.core.types import ErrorKind, Task, ToolCall
from fission_grpo.evaluation.episodes import run_step
from fission_grpo.evaluation.records import (
    CASES,
    CallRecord,
    CaseRecord,
    StepRecord,
    TurnRecord,
    read_records,
    to_line,
)
from fission_grpo.evaluation.run import Manifest, Progress, evaluate_run, read_manifest, write_manifest
from fission_grpo.inference.base import Reply

TOOL = {
    "name": "weather",
    "description": "Weather of a city",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
MANIFEST = Manifest("test", {"kind": "step", "sha256": "0", "count": 3}, {"format": "chat"}, {"temperature": 0.0})


def task(name, city):
    prompt = ({"role": "user", "content": f"Rain in {city}?"},)
    return Task(name, prompt, (TOOL,), (ToolCall("weather", {"city": city}),))


def plays(*cities):
    return {city: lambda city=city: run_step(task(city, city)) for city in cities}


class Writer:
    """Writes what a function makes of the question, and counts how often it is asked."""

    def __init__(self, write):
        self.write, self.asked = write, []

    def reply(self, requests):
        questions = [request.messages[-1]["content"] for request in requests]
        self.asked += questions
        return [self.write(question) for question in questions]


def right(question):
    return Reply(render_call(ToolCall("weather", {"city": question[len("Rain in ") : -1]})), tokens=9)


def test_a_step_task_succeeds_if_it_would_not_fail_in_training(tmp_path):
    def write(question):
        if "Oslo" in question:
            return right(question)
        if "Rome" in question:
            return Reply(render_call(ToolCall("weather", {"town": "Rome"})))
        return Reply('<tool_call>{"name": </tool_call>')

    records = evaluate_run(tmp_path, MANIFEST, Writer(write), plays("Oslo", "Rome", "Bern"))
    assert [record.success for record in records] == [True, False, False]
    assert records[0].calls[0].error is None
    assert records[0].verdict is None
    assert records[1].calls[0].kind is ErrorKind.BAD_ARGUMENTS
    assert records[2].steps[0].unread is not None
    assert read_records(tmp_path / CASES) == records


def test_a_killed_evaluation_goes_on_where_it_was(tmp_path, capsys):
    evaluate_run(tmp_path, MANIFEST, Writer(right), plays("Oslo", "Rome", "Bern"))
    whole = (tmp_path / CASES).read_bytes()
    lines = whole.splitlines(keepends=True)
    (tmp_path / CASES).write_bytes(lines[0] + lines[1][:40])  # killed in the middle of the second line
    policy = Writer(right)
    records = evaluate_run(tmp_path, MANIFEST, policy, plays("Oslo", "Rome", "Bern"))
    assert policy.asked == ["Rain in Rome?", "Rain in Bern?"]
    assert [record.id for record in records] == ["Oslo", "Rome", "Bern"]
    assert [json.loads(line)["id"] for line in (tmp_path / CASES).read_bytes().splitlines()] == [
        "Oslo",
        "Rome",
        "Bern",
    ]
    assert "1 of 3 cases are there already" in capsys.readouterr().err


def test_a_lost_case_is_missing_and_played_again_when_resumed(tmp_path):
    lost = evaluate_run(
        tmp_path,
        MANIFEST,
        Writer(lambda question: Reply("", lost="503") if "Rome" in question else right(question)),
        plays("Oslo", "Rome"),
    )
    assert [(record.success, record.missing) for record in lost] == [(True, None), (None, "503")]
    policy = Writer(right)
    records = evaluate_run(tmp_path, MANIFEST, policy, plays("Oslo", "Rome"))
    assert policy.asked == ["Rain in Rome?"]
    assert [record.success for record in records] == [True, True]
    assert read_records(tmp_path / CASES) == records


@pytest.mark.parametrize(
    ("other", "named"),
    [
        (
            Manifest("t", {"kind": "step", "sha256": "1", "count": 3}, {"format": "chat"}, {"temperature": 0.0}),
            "sha256",
        ),
        (Manifest("t", MANIFEST.tasks, {"format": "qwen-fc"}, {"temperature": 0.0}), "prompt.format"),
        (Manifest("t", MANIFEST.tasks, MANIFEST.prompt, {"temperature": 0.0, "seed": 1}), "decoding.seed"),
        (Manifest("t", MANIFEST.tasks, MANIFEST.prompt, MANIFEST.decoding, {"model": "other"}), "policy"),
    ],
)
def test_another_evaluation_never_writes_into_the_same_directory(tmp_path, other, named):
    evaluate_run(tmp_path, MANIFEST, Writer(right), plays("Oslo"))
    before = (tmp_path / CASES).read_bytes()
    with pytest.raises(RunFileError, match=named):
        evaluate_run(tmp_path, other, Writer(right), plays("Oslo"))
    assert (tmp_path / CASES).read_bytes() == before


def test_what_was_done_is_kept_when_the_policy_breaks(tmp_path):
    def write(question):
        if "Bern" in question:
            raise KeyboardInterrupt
        return right(question)

    with pytest.raises(KeyboardInterrupt):
        evaluate_run(tmp_path, MANIFEST, Writer(write), plays("Oslo", "Rome", "Bern"), in_flight=1)
    assert [record.id for record in read_records(tmp_path / CASES)] == ["Oslo", "Rome"]


def test_progress_tells_success_and_the_time_left():
    progress = Progress(total=10, done=2, clock_=iter([0.0]).__next__)
    progress.done, progress.judged, progress.succeeded, progress.missing = 6, 3, 2, 1
    assert progress.line(8.0) == "6/10 cases · success 0.67 · 1 missing · 0:08 left"


def test_the_old_name_of_the_feedback_mode_is_still_read(tmp_path):
    manifest = Manifest("old", {}, {"format": "qwen-fc", "mode": "told"}, {})
    write_manifest(tmp_path, manifest)
    assert read_manifest(tmp_path).prompt == {"format": "qwen-fc", "mode": "feedback"}


LINE = to_line(
    CaseRecord(
        "a",
        turns=(TurnRecord((StepRecord("x", (CallRecord("f", {}, "r"),), tokens=3),), valid=True),),
        success=True,
        seconds=1.0,
    )
)


@pytest.mark.parametrize(
    "number", ["9" * 400, "9" * 5000, "-1", "NaN", "Infinity", '"3"', "true", "null", "1.5", "1e999"]
)
@pytest.mark.parametrize("field", ["tokens", "seconds"])
def test_results_with_numbers_that_are_none_are_one_error_with_file_and_line(tmp_path, field, number):
    path = tmp_path / "cases.jsonl"
    text = LINE.replace('"tokens": 3', f'"tokens": {number}') if field == "tokens" else LINE.replace("1.0", number)
    assert text != LINE
    path.write_text(LINE.replace('"a"', '"b"') + "\n" + text + "\n")
    if (field, number) == ("seconds", "1.5"):
        assert read_records(path)[1].seconds == 1.5
        return
    with pytest.raises(RunFileError, match=rf"cases\.jsonl, line 2: .*({field}|not a JSON object)") as error:
        read_records(path)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"text": "x"', '"text": 3'),
        ('"name": "f"', '"name": null'),
        ('"arguments": {}', '"arguments": [1]'),
        ('"result": "r"', '"result": 7'),
        ('"truncated": false', '"truncated": "no"'),
        ('"injected": false', '"injected": 2'),
        ('"valid": true', '"valid": "yes"'),
        ('"error": null', '"error": 3'),
    ],
)
def test_results_of_other_types_are_one_error_with_file_and_line(tmp_path, old, new):
    path = tmp_path / "cases.jsonl"
    assert old in LINE
    path.write_text(LINE.replace(old, new) + "\n")
    with pytest.raises(RunFileError, match=r"cases\.jsonl, line 1: field 'turns'"):
        read_records(path)


class Killed(BaseException):
    """The process ends here."""


def test_a_killed_evaluation_goes_on_with_the_replies_that_it_would_have_had(tmp_path, monkeypatch):
    from fission_grpo.evaluation import run as run_module
    from fission_grpo.evaluation.task_sets import TaskSpec, task_set
    from fission_grpo.inference.local import LocalPolicy
    from fission_grpo.inference.pretrained import load_starter

    cases, starter = task_set(TaskSpec("desk", count=6)).cases, load_starter()
    manifest = Manifest("test", {"kind": "desk"}, {}, {"temperature": 1.0, "seed": 3})

    def evaluated(folder):
        records = evaluate_run(folder, manifest, LocalPolicy(*starter, max_new_tokens=24), cases, 3)
        return [[step.text for step in record.steps] for record in records]

    whole = evaluated(tmp_path / "whole")
    append = run_module.append_line

    def kill_after_two(path, *args, **kwargs):
        if path.is_file() and len(path.read_text().splitlines()) == 2:
            raise Killed
        append(path, *args, **kwargs)

    monkeypatch.setattr(run_module, "append_line", kill_after_two)
    with pytest.raises(Killed):
        evaluated(tmp_path / "killed")
    monkeypatch.setattr(run_module, "append_line", append)
    assert evaluated(tmp_path / "killed") == whole
    other = Manifest("test", {"kind": "desk"}, {}, {"temperature": 1.0, "seed": 4})
    records = evaluate_run(tmp_path / "other", other, LocalPolicy(*starter, max_new_tokens=24), cases, 3)
    assert [[step.text for step in record.steps] for record in records] != whole


def test_every_request_of_an_evaluation_has_a_seed_of_its_own(tmp_path):
    seen = []

    class Keeps(Writer):
        def reply(self, requests):
            seen.extend(request.seed for request in requests)
            return super().reply(requests)

    manifest = Manifest("test", MANIFEST.tasks, MANIFEST.prompt, {"temperature": 1.0, "seed": 0})
    evaluate_run(tmp_path, manifest, Keeps(right), plays("Oslo", "Rome"))
    assert len(set(seen)) == 2
    assert all(0 < seed < 2**31 for seed in seen)
