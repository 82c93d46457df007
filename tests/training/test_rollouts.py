"""Reading TRL's completions: exact texts, calls with their results, tasks from rows and back."""

import pytest

from fission_grpo.core.serialization import STEP_KEY, task_to_json
from fission_grpo.core.types import (
    ErrorKind,
    Rollout,
    Task,
    ToolCall,
    ToolResult,
    Trajectory,
    Turn,
    Verdict,
)
from fission_grpo.data.rows import row_of_task, task_of_row
from fission_grpo.envs.restore import TASK_KEY
from fission_grpo.fission.failures import find_failures
from fission_grpo.training.rollouts import read_turns, sampled_segments

EOS = 0
CALL = ToolCall("ls")
WORDS = {1: '<tool_call>\n{"name": "ls",  "arguments": {}}\n</tool_call>', 2: "Done.", 3: "cut"}


def decode(ids):
    return "".join(WORDS[i] for i in ids)


def message(content="", *names):
    calls = [{"type": "function", "function": {"name": name, "arguments": {}}} for name in names]
    return {"role": "assistant", "content": content} | ({"tool_calls": calls} if calls else {})


def test_sampled_tokens_are_split_at_tool_results():
    assert sampled_segments([1, 0, 9, 9, 2, 0, 7], [1, 1, 0, 0, 1, 1, 0]) == [[1, 0], [2, 0]]
    assert sampled_segments([1, 0], None) == [[1, 0]]


def test_turn_keeps_the_exact_text_and_zips_results_to_calls():
    completion = [message("", "ls"), {"role": "tool", "name": "ls", "content": "{'error': 'no'}"}, message("Done.")]
    first, last = read_turns(completion, [[1, EOS], [2, EOS]], decode, [EOS], reads_calls=True)
    assert first.text == WORDS[1]  # two spaces after the comma and all
    assert first.calls == (ToolCall("ls"),)
    assert first.results[0].error == "no"
    assert (last.text, last.calls, last.truncated) == ("Done.", (), False)


def test_turn_without_end_token_is_truncated():
    (turn,) = read_turns("cut", [[3]], decode, [EOS], reads_calls=False)
    assert turn.truncated
    assert turn.text == "cut"


def test_empty_completion_is_one_truncated_turn():
    (turn,) = read_turns("", [], decode, [EOS], reads_calls=True)
    assert turn.truncated


def test_call_the_runtime_could_not_read_is_an_error_of_the_turn():
    WORDS[4] = "<tool_call>{oops</tool_call>"
    (turn,) = read_turns([message(WORDS[4])], [[4, EOS]], decode, [EOS], reads_calls=True)
    assert turn.error
    assert turn.calls == ()


def test_plain_text_is_not_read_for_calls():
    (turn,) = read_turns(WORDS[1], [[1, EOS]], decode, [EOS], reads_calls=False)
    assert turn.calls == ()


def test_message_that_cannot_be_told_from_the_tokens_keeps_its_content():
    turns = read_turns([message("a"), message("b")], [[2, EOS]], decode, [EOS], reads_calls=True)
    assert [turn.text for turn in turns] == ["a", "b"]


def test_rows_of_one_group_are_one_task_and_other_rows_another():
    row = {"prompt": "p", "answer": 4}
    assert task_of_row(row, "p").id == task_of_row(dict(row), "p").id != task_of_row({**row, "answer": 5}, "p").id
    assert task_of_row({"prompt": "p", "id": "mine"}, "p").id.startswith("mine:")
    assert task_of_row({"prompt": "p", "id": 7}, "p").id.startswith("7:")


@pytest.mark.parametrize("key", ["id", STEP_KEY])
def test_rows_that_share_an_id_are_different_tasks_if_anything_else_differs(key):
    shared = "document" if key == "id" else task_to_json(Task("document", ({"role": "user", "content": "hi"},)))
    rows = [{"prompt": "p", key: shared, "question": n} for n in range(3)]
    names = {task_of_row(row, prompt).root for row in rows for prompt in ("p", "p with another observation")}
    assert len(names) == 6
    assert all(name.startswith("document:") for name in names)


def test_recovery_row_carries_its_task_and_the_roots_columns():
    task = Task("x1", ({"role": "user", "content": "hi"},), columns={"prompt": "old", "answer": 4}, depth=1)
    row = row_of_task(task, tokenizer=None)
    assert row == {"prompt": [{"role": "user", "content": "hi"}], "answer": 4, TASK_KEY: task}
    assert task_of_row(row, row["prompt"]) is task


def test_an_episode_erred_if_a_call_failed_or_could_not_be_read_and_a_step_task_never():
    def erred(turn, **task):
        return Rollout(Trajectory(Task("t", "p", **task), (turn,)), Verdict(0.0, True)).erred

    failing = Turn("x", calls=(CALL,), results=(ToolResult(CALL, "{'error': 'no'}", error="no"),))
    assert erred(failing)
    assert erred(Turn("<tool_call>", error="unclosed"))
    assert not erred(Turn("x", calls=(CALL,), results=(ToolResult(CALL, "ok"),)))
    assert not erred(failing, reference=(CALL,))


def tool(name, content):
    return {"role": "tool", "name": name, "content": content}


ASYNC_FIRST = [ToolCall("look", {"at": 1}), ToolCall("cut", {"of": 1}), ToolCall("look", {"at": 2}), ToolCall("cut")]


def test_results_of_async_and_sync_tools_are_paired_by_name_in_the_order_of_execution():
    function_calls = [
        {"type": "function", "function": {"name": call.name, "arguments": call.arguments}} for call in ASYNC_FIRST
    ]
    answers = [tool("cut", "{'error': 'blunt'}"), tool("cut", "done"), tool("look", "one"), tool("look", "two")]
    completion = [{"role": "assistant", "content": "", "tool_calls": function_calls}, *answers]
    (turn,) = read_turns(completion, [[1, EOS]], decode, [EOS], reads_calls=True)
    cut, other_cut, one, two = turn.results
    assert (cut.call, cut.error) == (ToolCall("cut", {"of": 1}), "blunt")
    assert (other_cut.call, one.call, two.call) == (ASYNC_FIRST[3], ASYNC_FIRST[0], ASYNC_FIRST[2])
    assert turn.calls == tuple(result.call for result in turn.results)  # an index is one for both
    failures = find_failures(Trajectory(Task("t", "p"), (turn,)), Verdict(0.0, True))
    assert [(one.kind, one.call_index, one.detail) for one in failures] == [(ErrorKind.RAISED, 0, "blunt")]


def test_calls_of_the_last_turn_that_were_never_made_stay_in_their_order():
    (turn,) = read_turns([message("", "look", "cut")], [[1, EOS]], decode, [EOS], reads_calls=True)
    assert [call.name for call in turn.calls] == ["look", "cut"]
    assert turn.results == ()


@pytest.mark.parametrize("error", ["", "0", "boom"])
def test_an_error_counts_whatever_its_message(error):
    turn = Turn("", calls=(CALL,), results=(ToolResult(CALL, "x", error),))
    assert Rollout(Trajectory(Task("t", "p"), (turn,)), Verdict(0.0, True)).erred
