"""Recovery from injected faults by cell: responses, costs and loops of hand-worked cases."""

import pytest
from scripted_policy import ScriptedPolicy

from fission_grpo.core.chat import render_call
from fission_grpo.core.types import ToolCall
from fission_grpo.envs.faults import CELLS, Fault, inject_faults
from fission_grpo.evaluation.attempts import summarize
from fission_grpo.evaluation.evaluate import evaluate
from fission_grpo.evaluation.fault_metrics import calls_not_needed, fault_cells, response
from fission_grpo.evaluation.intervals import mean_interval, wilson
from fission_grpo.evaluation.metrics import compute_metrics, metrics_json
from fission_grpo.evaluation.records import CallRecord, CaseRecord, StepRecord, TurnRecord, read_records, to_line
from fission_grpo.evaluation.tables import metrics_table

ET, EP, IT, IP = CELLS
NEEDED = {"a": 1, "b": 2}


def call(name, fault="", error=None, **arguments):
    explicit = fault.startswith("explicit")
    error = "503: service unavailable" if explicit else error
    return CallRecord(name, arguments, error or "fine", error, None, explicit, fault)


def case(calls, success, text="Done.", needed=NEEDED, name="t", task="", truncated=False):
    steps = [StepRecord(calls=(one,)) for one in calls] + [StepRecord(text, truncated=truncated)]
    return CaseRecord(name, "c", (TurnRecord(tuple(steps), success),), success, task=task, needed=needed)


TIMEOUT, GONE, EMPTY, LOST = f"{ET}/timeout", f"{EP}/tool_gone", f"{IT}/empty", f"{IP}/not_done"
SORRY = "I could not do it: the tool is no longer available."


@pytest.mark.parametrize(
    ("cell", "calls", "success", "text", "expected"),
    [
        (ET, [call("a"), call("b", TIMEOUT, x=1), call("b", x=1), call("b", x=2)], True, "Done.", "retry"),
        (ET, [call("a"), call("b", TIMEOUT, x=1), call("b", x=3), call("b", x=2)], True, "Done.", "another way"),
        (EP, [call("a", GONE), call("other")], True, "Done.", "another way"),
        (EP, [call("a", GONE)], False, SORRY, "justified stop"),
        (EP, [call("a", GONE), call("a", GONE)], False, SORRY, "justified stop"),  # one repetition
        (EP, [call("a", GONE)] * 3, False, SORRY, None),
        (EP, [call("a", GONE)], False, "It is done.", None),  # says nothing of it
        (EP, [call("a"), call("a", GONE)], False, SORRY, None),  # that call was not needed
        (EP, [call("a", GONE), call("b", error="no")], False, SORRY, None),  # its own error may be why it stopped
        (EP, [call("b", error="no"), call("a", GONE), call("b")], False, SORRY, "justified stop"),
        (ET, [call("a", TIMEOUT)], False, SORRY, None),  # a retry would have worked
        (IP, [call("a", f"{IP}/empty")], False, SORRY, "justified stop"),  # what it should say is lost for good
        (
            IP,
            [call("a", f"{IP}/empty"), call("a", f"{IP}/empty"), call("b"), call("b")],
            True,
            "Done.",
            "no response needed",
        ),
        (IP, [call("b", LOST)], False, "Sorry, b does not work: it fails.", "justified stop"),
        (IT, [call("a"), call("b"), call("b", EMPTY, x=1)], True, "Done.", "no response needed"),  # had its effect
        (IT, [call("a"), call("b", f"{IT}/stale", x=1), call("b", x=1), call("b")], True, "Done.", "retry"),
        (ET, [call("c", TIMEOUT), call("a"), call("b"), call("b")], True, "Done.", "no response needed"),
    ],
)
def test_responses(cell, calls, success, text, expected):
    assert response(summarize(case(calls, success, text)), cell) == expected


def test_a_reply_that_was_cut_off_or_calls_is_no_stop():
    assert response(summarize(case([call("a", GONE)], False, SORRY, truncated=True)), EP) is None
    record = CaseRecord("t", "c", (TurnRecord((StepRecord(SORRY, (call("a", GONE),)),), False),), False)
    assert response(summarize(record), EP) is None


def test_without_a_reference_a_success_without_the_call_is_another_way():
    assert response(summarize(case([call("a", EMPTY)], True, needed={})), IT) == "another way"
    assert calls_not_needed(summarize(case([call("a", EMPTY)], True, needed={})), IT) is None


@pytest.mark.parametrize(
    ("calls", "cell", "expected"),
    [
        # a was done; b and b are still to be made
        ([call("a"), call("b", TIMEOUT), call("b"), call("b")], ET, 0),
        ([call("a"), call("b", TIMEOUT), call("b"), call("c"), call("b")], ET, 1),
        ([call("a"), call("b", error="no"), call("b", TIMEOUT), call("b"), call("b")], ET, 0),  # an error did nothing
        ([call("b", EMPTY), call("b"), call("b"), call("a")], IT, 0),  # its result may be needed
        ([call("b", EMPTY), call("b"), call("b"), call("b"), call("a")], IT, 1),
        ([call("b", f"{IT}/not_done"), call("b"), call("b"), call("a")], IT, 0),
        ([call("b", GONE), call("other")], EP, 0),  # never below 0
    ],
)
def test_cost_is_counted_from_the_first_fault(calls, cell, expected):
    assert calls_not_needed(summarize(case(calls, True)), cell) == expected


def test_a_cell_hand_worked():
    """Five cases met a transient error: two retried (one with two calls too many), one went another way, one failed,
    and one needed no response."""
    records = [
        case([call("a", TIMEOUT), call("a"), call("b"), call("b")], True, name="1"),
        case([call("a", TIMEOUT), call("c"), call("c"), call("a"), call("b"), call("b")], True, name="2"),
        case([call("a", TIMEOUT), call("a", x=1), call("b"), call("b")], True, name="3"),
        case([call("a", TIMEOUT), call("a", TIMEOUT), call("c", error="no")], False, name="4"),
        case([call("c", TIMEOUT), call("a"), call("b"), call("b")], True, name="5"),
        case([call("a"), call("b"), call("b")], True, name="6"),
    ]
    (cell,) = fault_cells([summarize(record) for record in records])
    assert (cell.name, cell.faults, cell.own_errors, cell.not_needed) == (ET, 6, 1, 1)
    assert (cell.success.hits, cell.success.of) == (4, 5)
    assert (cell.recovery.hits, cell.recovery.of, cell.recovery.interval) == (3, 4, wilson(3, 4))
    assert [(one.hits, one.of) for one in (cell.retry, cell.another_way, cell.justified_stop)] == [
        (2, 4),
        (1, 4),
        (0, 4),
    ]
    assert (cell.cost.cases, cell.cost.mean, cell.cost.median) == (3, pytest.approx(2 / 3), 0)
    assert cell.cost.interval == mean_interval([(0, 1), (2, 1), (0, 1)]) == (0.0, 2.0)
    assert (cell.retry_loops.hits, cell.retry_loops.of) == (1, 6)
    assert cell.passes is None


def test_a_mean_of_one_call_each_is_no_share():
    assert mean_interval([(0, 1), (2, 1)] * 5) is not None
    assert mean_interval([(1, 1)] * 5) is None  # no spread
    assert mean_interval([(3, 1)]) is None


def test_samples_of_a_task_give_pass_k_of_the_cell():
    records = [
        case([call("a", TIMEOUT), call("a"), call("b"), call("b")], hit, name=f"{task}#{k}", task=task)
        for task, hits in (("x", (True, True)), ("y", (True, False)))
        for k, hit in enumerate(hits)
    ]
    (cell,) = compute_metrics(records).by_fault
    assert (cell.passes.k, cell.passes.any, cell.passes.all) == (2, 1.0, 0.5)


class Lamp:
    """A lamp that counts; `_reference` switches it twice."""

    def reset(self, **row):
        self.on = 0

    def get_reward(self) -> float:
        return float(self.on == 2)

    def switch(self) -> str:
        """Switch it."""
        self.on += 1
        return f"switched {self.on} times"

    def _reference(self):
        return (ToolCall("switch"), ToolCall("switch"))


def three_calls(dialogue):
    turns = sum(message["role"] == "assistant" for message in dialogue)
    return render_call(ToolCall("switch")) if turns < 3 else "Done."


def test_an_evaluation_with_faults_records_cells_and_the_reference_by_tool_alone(tmp_path):
    rows = [{"id": str(n), "prompt": [{"role": "user", "content": "Switch it twice."}]} for n in range(12)]
    policy = ScriptedPolicy(three_calls)
    make = inject_faults(Lamp, [Fault("explicit-transient", 0.4)])
    result = evaluate(policy, make, rows, max_turns=6, output_dir=tmp_path, name="lamp")
    records = read_records(tmp_path / "eval-lamp" / "cases.jsonl")
    assert [to_line(one) for one in records] == [to_line(one) for one in result.records]
    assert all(record.needed == {"switch": 2} for record in records)
    faults = [one.fault for record in records for one in record.calls if one.fault]
    assert faults
    assert {fault.partition("/")[0] for fault in faults} == {ET}
    (cell,) = result.metrics.by_fault
    met = [record for record in records if any(one.fault for one in record.calls)]
    assert cell.success.of == len(met)
    once = sum(sum(bool(one.fault) for one in record.calls) == 1 for record in met)
    assert cell.success.hits == cell.retry.hits == once  # three calls, of which one met a fault, switch it twice
    table = metrics_table(result.metrics)
    assert "explicit-transient faults" in table
    assert "by retry" in table
    assert metrics_json(result.metrics)["by_fault"][0]["retry"]["hits"] == once


def test_what_became_of_injected_instructions_is_counted_apart():
    records = [CaseRecord(str(n), success=True, attack=attack) for n, attack in enumerate(
        ["obeyed", "resisted", "resisted", "unseen", None]
    )]  # fmt: skip
    metrics = compute_metrics(records)
    assert (metrics.attack_success.hits, metrics.attack_success.of) == (1, 4)
    assert (metrics.attack_success_shown.hits, metrics.attack_success_shown.of) == (1, 3)
    assert "attack success" in metrics_table(metrics)
    assert "attack success" not in metrics_table(compute_metrics(records[4:]))
