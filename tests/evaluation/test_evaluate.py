"""Evaluation: scripted policies in live environments, and the arithmetic of the summary."""

import json

import pytest
from error_words import Orders
from scripted_policy import ScriptedPolicy

from fission_grpo import evaluate
from fission_grpo.core.chat import parse, read_result, render_call
from fission_grpo.core.errors import InfrastructureError
from fission_grpo.core.types import ToolCall
from fission_grpo.envs.desk.env import Desk
from fission_grpo.envs.desk.tasks import make_rows, solution, solutions_by_request
from fission_grpo.evaluation.intervals import wilson
from fission_grpo.evaluation.metrics import compute_metrics
from fission_grpo.evaluation.records import (
    CallRecord,
    CaseRecord,
    StepRecord,
    TurnRecord,
)
from fission_grpo.evaluation.run import eval_line, read_manifest
from fission_grpo.inference.base import Reply


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


def run(*texts, rows=(ROW,), make=None, shown=None, **options):
    """Evaluate a policy that writes `texts` in turn; the dialogues it is shown are added to `shown`."""

    def write(dialogue):
        if shown is not None:
            shown.append([dict(message) for message in dialogue])
        return texts[sum(message["role"] == "assistant" for message in dialogue)]

    return evaluate(ScriptedPolicy(write), make or Counter, rows, **{"max_turns": 4, **options}).records


def add(step):
    return render_call(ToolCall("add", {"step": step}))


def counts(record):
    """Success, calls, errors, steps."""
    return record.success, len(record.calls), sum(step.errors for step in record.steps), len(record.steps)


def test_an_error_followed_by_the_right_call_is_a_recovery():
    shown = []
    (case,) = run(add(1), add(2), "Done.", shown=shown)
    assert counts(case) == (True, 2, 1, 3)
    assert [message["role"] for message in shown[-1]] == ["user", "assistant", "tool", "assistant", "tool"]
    assert shown[-1][2] == {"role": "tool", "name": "add", "content": "{'error': 'step must be even'}"}


def test_the_same_call_again_is_a_retry():
    (case,) = run(add(1), add(1), add(1), "Sorry.")
    assert counts(case) == (False, 3, 3, 4)
    assert compute_metrics([case]).retry_loops.rate == pytest.approx(2 / 3)


def test_calls_of_the_last_turn_are_not_made_as_in_trl():
    (case,) = run(add(0), add(0), add(2), max_turns=3)
    assert counts(case) == (False, 2, 0, 3)


def test_a_result_with_an_error_key_counts_as_an_error():
    (case,) = run(render_call(ToolCall("peek")), "Done.")
    assert counts(case) == (False, 1, 1, 2)


@pytest.mark.parametrize("text", ['<tool_call>{"name": "add", "arguments": {"step": 2}</tool_call>', "<tool_call>"])
def test_a_turn_that_cannot_be_read_is_an_error_that_the_policy_is_told_and_can_mend(text):
    shown = []
    (case,) = run(text, add(2), "Done.", shown=shown)
    assert counts(case) == (True, 1, 1, 3)
    assert shown[-1][2]["role"] == "tool"
    assert read_result(ToolCall("add"), shown[-1][2]["content"]).error == parse(text).error


@pytest.mark.parametrize("name", ["_secret", "reset", "get_reward", "__class__", "total", "none such", ""])
def test_only_tools_can_be_called(name):
    (case,) = run(f"<tool_call>{json.dumps({'name': name, 'arguments': {}})}</tool_call>", "Done.")
    assert counts(case) == (False, int(name != ""), 1, 2)  # a call without a name cannot be read


def test_what_the_environment_says_at_the_start_is_read_after_the_request_and_the_row_stays_as_it_was():
    row = {**ROW, "note": " Go."}
    shown = []
    run("Done.", rows=[row], shown=shown)
    assert shown[0][0]["content"] == "Count to two. Go."
    assert row["prompt"] == [{"role": "user", "content": "Count to two."}]


@pytest.mark.parametrize("reward", [10**400, float("inf"), float("nan"), "1", [1]], ids=str)
def test_an_environment_whose_reward_is_no_number_leaves_the_case_unjudged(reward):
    class Odd(Counter):
        def get_reward(self):
            return reward

    (case,) = run("Done.", make=Odd)
    assert (case.success, "as its reward, which is no number" in case.missing) == (None, True)


def test_parallel_calls_are_made_in_order():
    (case,) = run(add(0) + "\n" + add(2), "Done.")
    assert counts(case) == (True, 2, 0, 2)


def test_the_reference_policy_solves_every_desk_task_and_the_first_guess_half_of_them():
    rows = make_rows(32, 9, "held_out")
    by_request = {row["prompt"][0]["content"]: row for row in rows}

    def reference(dialogue):
        calls = solution(by_request[dialogue[0]["content"]])
        turn = sum(message["role"] == "assistant" for message in dialogue)
        return render_call(calls[turn]) if turn < len(calls) else "Done."

    def guess(dialogue):
        row = by_request[dialogue[0]["content"]]
        return "Done." if len(dialogue) > 1 else render_call(solutions_by_request(row)[0][0])

    assert evaluate(ScriptedPolicy(reference), Desk, rows).metrics.success.rate == 1.0
    rates = evaluate(ScriptedPolicy(guess), Desk, rows).metrics
    assert (rates.success.rate, rates.recovery.of, rates.recovery.hits) == (0.5, 16, 0)


def test_a_broken_world_is_no_failure_and_counts_nowhere():
    class Flaky(Counter):
        def add(self, step: int) -> str:
            raise InfrastructureError("connection lost")

    other = {**ROW, "id": "b"}
    cases = run(add(2), "Done.", make=Flaky) + run(add(2), "Done.", rows=[other])
    assert [case.missing for case in cases] == ["connection lost", None]
    rates = compute_metrics(cases)
    assert (rates.judged, rates.success.rate, rates.missing) == (1, 1.0, 1)
    with pytest.raises(ValueError, match=r"none of 1 cases could be judged.*connection lost"):
        eval_line(compute_metrics(cases[:1]), "flaky", 0)


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

    rows = [{**ROW, "environment": "b"}, {**ROW, "id": "other", "environment": "a"}]
    evaluate(Policy(), {"a": Counter, "b": Other}, rows)
    assert seen == [["add", "only_here", "peek"], ["add", "peek"]]


def test_tokens_are_added_up_and_a_truncated_turn_makes_no_calls():
    class Short:
        def reply(self, requests):
            return [Reply(add(2), tokens=7, truncated=True) for _ in requests]

    (case,) = evaluate(Short(), Counter, [ROW]).records
    assert counts(case) == (False, 0, 0, 1)
    assert case.steps[0].tokens == 7


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


def test_a_line_of_eval_jsonl_has_what_reports_read():
    def case(name, success, *errors):
        calls = tuple(CallRecord("add", {"step": 1}, error=error) for error in errors)
        return CaseRecord(name, "", (TurnRecord((StepRecord("", calls),), success),), success)

    # 2 of 3 succeed; 2 have errors, 1 of them succeeds; 3 errors, 1 of them repeated
    rates = compute_metrics([case("a", True, None), case("b", True, "odd"), case("c", False, "odd", "odd")])
    line = json.loads(eval_line(rates, "base", 4, 99))
    assert (line["name"], line["step"], line["generated_tokens"], line["tasks"]) == ("base", 4, 99, 3)
    assert (line["error_cases"], line["recovered"], line["errors"], line["recovery_rate"]) == (2, 1, 3, 0.5)
    assert line["success"] == pytest.approx(2 / 3)
    assert line["retry_loop_rate"] == pytest.approx(1 / 3)
    assert line["success_ci"] == pytest.approx(wilson(2, 3))


def test_without_any_error_the_recovery_rate_is_none_not_zero():
    line = json.loads(eval_line(compute_metrics(run(add(2), "Done.")), "base", 0))
    assert (line["recovery_rate"], line["recovery_ci"], line["retry_loop_rate"]) == (None, None, None)
    with pytest.raises(ValueError, match="none of 0 cases"):
        eval_line(compute_metrics([]), "nothing", 0)


@pytest.mark.parametrize("prompt", [None, "", [], 3])
def test_a_row_without_messages_is_refused_by_number_and_field(prompt):
    with pytest.raises(ValueError, match="rows, row 1, field 'prompt'"):
        run("Done.", rows=[{"id": "a", "prompt": prompt}])


def test_a_text_as_prompt_is_one_user_message():
    shown = []
    run("Done.", rows=[{"id": "a", "prompt": "Count to two."}], shown=shown)
    assert shown == [[{"role": "user", "content": "Count to two."}]]


def test_errors_in_words_are_noted_or_told_apart_by_a_pattern_or_a_function(tmp_path):
    calls = [ToolCall("find", {"order": "77"}), ToolCall("cancel", {"order": "7"})]
    texts = [*map(render_call, calls), "Done."]

    def evaluated(**options):
        policy = ScriptedPolicy(lambda dialogue: texts[sum(one["role"] == "assistant" for one in dialogue)])
        return evaluate(policy, Orders, [ROW, ROW | {"id": "b"}], **options)

    plain = evaluated()
    assert (plain.metrics.own_errors, plain.metrics.uncounted_errors) == (0, 2)
    (note,) = plain.metrics.notes
    assert note.startswith("2 of 4 results begin like errors and count as successes (such as 'Error: order 77 not")
    assert note in str(plain)
    told = evaluated(error_if="^Error", output_dir=tmp_path, name="told")
    assert [call.error for call in told.records[0].calls] == ["Error: order 77 not found", None]
    assert (told.metrics.recovery.hits, told.metrics.recovery.of, told.metrics.notes) == (2, 2, ())
    assert read_manifest(tmp_path / "eval-told").prompt["error_if"] == "^Error"
    assert (tmp_path / "eval-told" / "rates.md").read_text().startswith("| model | cases | success |")
    by_function = evaluated(error_if=lambda text: "not found" in text)
    assert by_function.metrics.recovery == told.metrics.recovery
