"""Evaluation: scripted policies in live environments, and the arithmetic of the summary."""

import json
import math

import pytest

from fission_grpo.chat import parse, read_result, render_call
from fission_grpo.environment import InfrastructureError
from fission_grpo.environments.desk import Desk
from fission_grpo.environments.desk_tasks import first_call, make_rows, solution
from fission_grpo.evaluate import Case, evaluate, summarise, wilson
from fission_grpo.evaluation.play import Reply
from fission_grpo.policies import ScriptedPolicy
from fission_grpo.trajectory import ToolCall


class Counter:
    """Counts up; refuses odd steps. `_secret` and `reset` are no tools."""

    def reset(self, **row):
        self.total = 0
        return row.get("note")

    def get_reward(self):
        return float(self.total == 2)

    def add(self, step: int) -> str:
        """Count up.

        Args:
            step: by how much
        """
        if step % 2:
            raise ValueError("step must be even")
        self.total += step
        return f"total {self.total}"

    def peek(self) -> dict:
        """Look."""
        return {"error": "not now"}

    def _secret(self) -> str:
        self.total = 2
        return "ok"


ROW = {"id": "a", "prompt": [{"role": "user", "content": "Count to two."}]}


def run(*texts, rows=(ROW,), make=None, **options):
    """Evaluate a policy that writes `texts` in turn."""

    def write(dialogue):
        return texts[sum(message["role"] == "assistant" for message in dialogue)]

    return evaluate(ScriptedPolicy(write), make or Counter, rows, **options)


def add(step):
    return render_call(ToolCall("add", {"step": step}))


def test_an_error_followed_by_the_right_call_is_a_recovery():
    (case,) = run(add(1), add(2), "Done.")
    assert (case.success, case.calls, case.errors, case.turns, case.retries) == (True, 2, 1, 3, 0)
    assert [message["role"] for message in case.transcript] == [
        "user",
        "assistant",
        "tool",
        "assistant",
        "tool",
        "assistant",
    ]
    assert case.transcript[2] == {"role": "tool", "name": "add", "content": "{'error': 'step must be even'}"}


def test_the_same_call_again_is_a_retry():
    (case,) = run(add(1), add(1), add(1), "Sorry.")
    assert (case.success, case.errors, case.retries) == (False, 3, 2)
    assert summarise([case]).retry_loop_rate == pytest.approx(2 / 3)


def test_calls_of_the_last_turn_are_not_made_as_in_trl():
    (case,) = run(add(0), add(0), add(2), max_turns=3)
    assert (case.success, case.calls, case.turns) == (False, 2, 3)


def test_a_result_with_an_error_key_counts_as_an_error():
    (case,) = run(render_call(ToolCall("peek")), "Done.")
    assert (case.calls, case.errors) == (1, 1)


@pytest.mark.parametrize("text", ['<tool_call>{"name": "add", "arguments": {"step": 2}</tool_call>', "<tool_call>"])
def test_a_turn_that_cannot_be_read_is_an_error_that_the_policy_is_told_and_can_mend(text):
    (case,) = run(text, add(2), "Done.")
    assert (case.success, case.calls, case.errors, case.turns) == (True, 1, 1, 3)
    assert case.transcript[2]["role"] == "tool"
    assert read_result(ToolCall("add"), case.transcript[2]["content"]).error == parse(text).error


@pytest.mark.parametrize("name", ["_secret", "reset", "get_reward", "__class__", "total", "none such", ""])
def test_only_tools_can_be_called(name):
    (case,) = run(f"<tool_call>{json.dumps({'name': name, 'arguments': {}})}</tool_call>", "Done.")
    assert (case.success, case.errors) == (False, 1)


def test_what_the_environment_says_at_the_start_is_read_after_the_request_and_the_row_stays_as_it_was():
    row = {**ROW, "note": " Go."}
    (case,) = run("Done.", rows=[row])
    assert case.transcript[0]["content"] == "Count to two. Go."
    assert row["prompt"] == [{"role": "user", "content": "Count to two."}]


def test_parallel_calls_are_made_in_order():
    (case,) = run(add(0) + "\n" + add(2), "Done.")
    assert (case.success, case.calls, case.turns) == (True, 2, 2)


def test_the_reference_policy_solves_every_desk_task_and_the_first_guess_half_of_them():
    rows = make_rows(32, 9, "held_out")
    by_request = {row["prompt"][0]["content"]: row for row in rows}

    def reference(dialogue):
        calls = solution(by_request[dialogue[0]["content"]])
        turn = sum(message["role"] == "assistant" for message in dialogue)
        return render_call(calls[turn]) if turn < len(calls) else "Done."

    def guess(dialogue):
        row = by_request[dialogue[0]["content"]]
        return "Done." if len(dialogue) > 1 else render_call(first_call(row))

    assert summarise(evaluate(ScriptedPolicy(reference), Desk, rows)).success == 1.0
    summary = summarise(evaluate(ScriptedPolicy(guess), Desk, rows))
    assert (summary.success, summary.error_cases, summary.recovered) == (0.5, 16, 0)


def test_a_broken_world_is_no_failure_and_counts_nowhere():
    class Flaky(Counter):
        def add(self, step: int) -> str:
            raise InfrastructureError("connection lost")

    cases = run(add(2), "Done.", make=Flaky) + run(add(2), "Done.")
    assert [case.broken for case in cases] == ["connection lost", None]
    summary = summarise(cases)
    assert (summary.tasks, summary.success, summary.broken) == (1, 1.0, 1)
    with pytest.raises(ValueError, match=r"none of 1 cases could be judged.*connection lost"):
        summarise(cases[:1])


def test_each_row_may_have_an_environment_of_its_own():
    class Other(Counter):
        def only_here(self) -> str:
            """Say ok."""
            return "ok"

    seen = []

    class Policy:
        def reply(self, requests):
            seen.extend(sorted(tool["name"] for tool in request.tools) for request in requests)
            return [Reply("Done.") for _ in requests]

    rows = [{**ROW, "environment": "b"}, {**ROW, "environment": "a"}]
    evaluate(Policy(), {"a": Counter, "b": Other}, rows)
    assert seen == [["add", "only_here", "peek"], ["add", "peek"]]


def test_tokens_are_added_up_and_a_truncated_turn_makes_no_calls():
    class Short:
        def reply(self, requests):
            return [Reply(add(2), tokens=7, truncated=True) for _ in requests]

    (case,) = evaluate(Short(), Counter, [ROW])
    assert (case.generated_tokens, case.calls, case.turns) == (7, 0, 1)


def test_wilson_interval_of_five_in_ten():
    # z = 1.96, z^2 = 3.8415, n = 10, p = 0.5:
    # middle = 0.5 + 3.8415/20 = 0.69207, half = 1.96 * sqrt(0.25/10 + 3.8415/400) = 1.96 * 0.18602 = 0.36459,
    # over 1 + 3.8415/10 = 1.38415: (0.69207 -+ 0.36459) / 1.38415 = 0.2366, 0.7634
    assert wilson(5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)


def test_wilson_interval_at_the_ends():
    # 0 of 4: high = z^2 / (n + z^2) = 3.8415 / 7.8415 = 0.4899; 4 of 4 is its mirror image
    assert wilson(0, 4) == pytest.approx((0.0, 0.4899), abs=1e-4)
    assert wilson(4, 4) == pytest.approx((0.5101, 1.0), abs=1e-4)
    for bad in ((1, 0), (-1, 3), (4, 3)):
        with pytest.raises(ValueError, match="an interval needs"):
            wilson(*bad)


def test_the_summary_counts_and_writes_a_line_of_eval_jsonl():
    cases = [Case("a", True, 1, 0, 2, 20), Case("b", True, 2, 1, 3, 30), Case("c", False, 2, 2, 3, 30, retries=1)]
    summary = summarise(cases)
    # 2 of 3 succeed; 2 have errors, 1 of them succeeds; 3 errors, 1 of them repeated
    assert (summary.tasks, summary.error_cases, summary.recovered, summary.errors) == (3, 2, 1, 3)
    assert summary.success == pytest.approx(2 / 3)
    assert summary.recovery_rate == 0.5
    assert summary.retry_loop_rate == pytest.approx(1 / 3)
    line = json.loads(summary.to_json("base", 0))
    assert {"name", "step", "generated_tokens", "tasks", "success", "success_ci", "error_cases", "recovered",
            "recovery_rate", "recovery_ci", "errors"} <= set(line)  # fmt: skip
    assert (line["name"], line["step"], line["generated_tokens"]) == ("base", 0, 0)


def test_without_any_error_the_recovery_rate_is_none_not_zero():
    summary = summarise([Case("a", True, 1, 0, 2, 20)])
    assert (summary.recovery_rate, summary.recovery_ci, summary.retry_loop_rate) == (None, None, None)
    assert not math.isnan(summary.success)
    with pytest.raises(ValueError, match="no cases"):
        summarise([])


@pytest.mark.parametrize("prompt", [None, "text", [], 3])
def test_a_row_without_messages_is_refused_by_id(prompt):
    with pytest.raises(ValueError, match="row 'a': 'prompt' must be a list"):
        run("Done.", rows=[{"id": "a", "prompt": prompt}])
