"""The contract of every task set of `fission-grpo eval --tasks`, tested in the same way on each."""

import json
import os
import tempfile
from importlib.util import find_spec

import pytest
from scripted_policy import ScriptedPolicy

from fission_grpo.core.chat import render_call
from fission_grpo.core.types import ErrorKind, ToolCall
from fission_grpo.evaluation.records import CaseRecord, read_records, to_line
from fission_grpo.evaluation.runner import run_cases
from fission_grpo.evaluation.task_sets import TaskSpec, task_set

os.environ.setdefault("BFCL_PROJECT_ROOT", tempfile.mkdtemp())  # else bfcl-eval makes folders beside itself
needs_bfcl = pytest.mark.skipif(find_spec("bfcl_eval") is None, reason="bfcl-eval is not installed")
TOOL = {
    "name": "weather",
    "description": "Weather of a city",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}


def write_step_tasks(path):
    rows = [
        {
            "id": city,
            "messages": [{"role": "user", "content": f"Rain in {city}?"}],
            "tools": [TOOL],
            "reference": [{"name": "weather", "arguments": {"city": city}}],
        }
        for city in ("Oslo", "Rome", "Bern")
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_cases(path):
    """Official multi-turn cases as a case file."""
    from fission_grpo.envs.bfcl.official import multi_turn_cases

    def turn(messages, reference):
        calls = [{"name": call.name, "arguments": dict(call.arguments)} for call in reference]
        return {"request": messages[0]["content"], "reference": calls, "without": []}

    rows = [
        {
            "id": f"case-{number}",
            "classes": list(case.classes),
            "config": dict(case.config),
            "variant": "base",
            "turns": [turn(*pair) for pair in zip(case.turns, case.reference, strict=True)],
        }
        for number, case in enumerate(multi_turn_cases("multi_turn_base")[100:102])
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


SETS = {
    "desk": None,
    "desk:2": None,
    "steps.jsonl": write_step_tasks,
    "cases.jsonl": pytest.param(write_cases, marks=needs_bfcl),
    "multi_turn_base": pytest.param(None, marks=needs_bfcl),
    "simple_python": pytest.param(None, marks=needs_bfcl),
}


@pytest.fixture(params=[pytest.param(name, marks=getattr(value, "marks", ())) for name, value in SETS.items()])
def loaded(request, tmp_path):
    """The first cases of a task set."""
    writer = getattr(SETS[request.param], "values", (SETS[request.param],))[0]
    if writer is None:
        return task_set(TaskSpec(request.param, count=3))
    writer(tmp_path / request.param)
    return task_set(TaskSpec(str(tmp_path / request.param), count=3))


def fail_once(dialogue):
    """In every user turn a call of an unknown tool, then an answer in words."""
    return "Done." if dialogue[-1]["role"] == "tool" else render_call(ToolCall("no_such_tool", {"x": 1}))


def run(tasks):
    records = []
    run_cases(ScriptedPolicy(fail_once), iter(tasks.cases.values()), in_flight=2, done=records.append)
    return {record.id: record for record in records}


def test_ids_are_unique_texts_and_the_digest_depends_on_the_cases(loaded):
    assert len(loaded.cases) >= 3
    assert all(isinstance(name, str) and name for name in loaded.cases)
    assert len(loaded.sha256) == 64


def test_every_case_runs_to_its_end_and_its_record_has_its_id(loaded):
    records = run(loaded)
    assert records.keys() == loaded.cases.keys()
    for record in records.values():
        assert isinstance(record, CaseRecord)
        assert (record.missing, type(record.success)) == (None, bool)
        assert record.calls
        assert {call.kind for call in record.calls if call.error is not None} <= {ErrorKind.UNKNOWN_TOOL}


def test_records_survive_their_line_of_json(loaded, tmp_path):
    records = run(loaded)
    path = tmp_path / "records.jsonl"
    path.write_text("".join(to_line(record) + "\n" for record in records.values()), encoding="utf-8")
    assert {record.id: record for record in read_records(path)} == records


def test_a_case_can_be_started_again_and_gives_the_same_record(loaded):
    first, second = run(loaded), run(loaded)
    assert [vars(first[name]) | {"seconds": 0} for name in loaded.cases] == [
        vars(second[name]) | {"seconds": 0} for name in loaded.cases
    ]


def test_skipped_cases_are_left_out(loaded, tmp_path):
    name = loaded.kind if loaded.kind not in ("steps", "cases") else str(tmp_path / f"{loaded.kind}.jsonl")
    rest = task_set(TaskSpec(name, count=2, skip=1))
    assert set(list(loaded.cases)[:1]).isdisjoint(rest.cases)
    assert rest.sha256 != loaded.sha256
