"""Step-task files and tasks as JSON."""

import datetime
import json

import pytest

from fission_grpo.core.errors import TaskFileError
from fission_grpo.core.serialization import task_from_json, task_to_json
from fission_grpo.core.types import Task, ToolCall, ToolResult
from fission_grpo.data.step_tasks import load_step_tasks, row_of_step_task, to_rows

TOOL = {
    "name": "weather",
    "description": "Tomorrow's weather",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
        "required": ["city"],
    },
}
ROW = {
    "messages": [{"role": "user", "content": "Rain in Oslo?"}],
    "tools": [TOOL],
    "reference": [{"name": "weather", "arguments": {"city": "Oslo"}}],
}


def write(path, *rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    "task",
    [
        Task("a", "plain prompt"),
        Task("b", ({"role": "user", "content": "hi \u2028 \ud800"},), (TOOL,), (ToolCall("weather", {"city": "Ås"}),)),
        Task("c", "p", reference=(), columns={"x": [1, 2.0, None, True], "y": {"z": "w"}}),
        Task(
            "d",
            "p",
            history=(ToolResult(ToolCall("f", {"n": 1}), "{}", "no"), ToolResult(ToolCall("g"), "")),
            root="a",
            parent="b",
            depth=2,
        ),
    ],
    ids=lambda task: task.id,
)
def test_a_task_comes_back_from_json_as_it_was(task):
    back = task_from_json(task_to_json(task))
    assert back == task
    assert task_to_json(back) == task_to_json(task)


@pytest.mark.parametrize(
    ("columns", "named"),
    [
        ({"ok": 1, "when": datetime.date(2026, 1, 2)}, "'when' holds a date"),
        ({"deep": {"pair": (1, 2)}}, "'deep.pair' holds a tuple"),
        ({"table": {1: "a"}}, "'table' holds a dict"),
        ({"bytes": b"x"}, "'bytes' holds a bytes"),
    ],
)
def test_a_column_json_cannot_hold_is_named(columns, named):
    with pytest.raises(ValueError, match="task 't': column") as caught:
        task_to_json(Task("t", "p", columns=columns))
    assert named in str(caught.value)


def test_not_a_number_survives_a_checkpoint():
    back = task_from_json(task_to_json(Task("t", "p", columns={"score": float("nan")})))
    assert back.columns["score"] != back.columns["score"]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"id": "x"}', "nonsense"])
def test_text_that_is_no_task_is_refused(text):
    with pytest.raises(ValueError, match="not a task"):
        task_from_json(text)


def test_a_good_file_gives_its_tasks_in_order(tmp_path):
    path = write(tmp_path / "good.jsonl", {**ROW, "id": "oslo", "source": "hand"}, "", ROW)
    first, second = load_step_tasks(path)
    assert (first.id, first.columns, second.id) == ("oslo", {"source": "hand"}, "good.jsonl:3")
    assert first.reference == (ToolCall("weather", {"city": "Oslo"}),)
    assert first.root == "oslo"
    assert first.depth == 0


def test_openai_tools_are_unwrapped_and_an_empty_reference_is_kept(tmp_path):
    row = {**ROW, "tools": [{"type": "function", "function": TOOL}], "reference": []}
    (task,) = load_step_tasks(write(tmp_path / "w.jsonl", row))
    assert task.tools == (TOOL,)
    assert task.reference == ()


def test_a_written_row_is_read_as_the_same_task(tmp_path):
    (task,) = load_step_tasks(write(tmp_path / "a.jsonl", {**ROW, "id": "x", "source": "hand"}))
    assert load_step_tasks(write(tmp_path / "b.jsonl", row_of_step_task(task))) == [task]


def changed(**fields):
    return {**ROW, **fields}


MISTAKES = {
    "not json": ('{"messages": [', "(whole row)", "not JSON"),
    "two values": (json.dumps(ROW) + " 1", "(whole row)", "not one JSON object"),
    "a list": ([ROW], "(whole row)", "not one JSON object"),
    "no reference": ({k: v for k, v in ROW.items() if k != "reference"}, "reference", "missing"),
    "old call": (
        changed(messages=[{"role": "assistant", "content": "", "function_call": {"name": "f"}}, *ROW["messages"]]),
        "messages[0].function_call",
        "is the old form of a call",
    ),
    "messages no list": (changed(messages="hi"), "messages", "must be a list, got 'hi'"),
    "no messages": (changed(messages=[]), "messages", "must end with a user or tool message"),
    "bad role": (changed(messages=[{"role": "human", "content": "x"}]), "messages[0].role", "got 'human'"),
    "late system": (
        changed(messages=[*ROW["messages"], {"role": "system", "content": "x"}]),
        "messages[1].role",
        "only be the first",
    ),
    "content no text": (changed(messages=[{"role": "user", "content": 3}]), "messages[0].content", "got 3"),
    "ends with assistant": (
        changed(messages=[*ROW["messages"], {"role": "assistant", "content": "x"}]),
        "messages",
        "must end with",
    ),
    "call without arguments": (
        changed(messages=[{"role": "assistant", "tool_calls": [{"name": "f"}]}, *ROW["messages"]]),
        "messages[0].tool_calls[0].arguments",
        "must be an object",
    ),
    "schema no schema": (
        changed(tools=[{**TOOL, "parameters": {"type": "object", "properties": {"city": {"type": "text"}}}}]),
        "tools[0]",
        "parameters.properties.city",
    ),
    "nameless tool": (changed(tools=[{"parameters": {}}]), "tools[0]", "name"),
    "same tool twice": (changed(tools=[TOOL, TOOL]), "tools[1].name", "the name of tools[0]"),
    "unknown tool": (
        changed(reference=[{"name": "rain", "arguments": {}}]),
        "reference[0].name",
        "unknown tool 'rain'",
    ),
    "undeclared argument": (
        changed(reference=[{"name": "weather", "arguments": {"city": "Oslo", "town": "Oslo"}}]),
        "reference[0].arguments",
        "unexpected argument `town`",
    ),
    "wrong type": (
        changed(reference=[{"name": "weather", "arguments": {"city": "Oslo", "days": "3"}}]),
        "reference[0].arguments",
        "`days` must be an integer, got '3'",
    ),
    "arguments no object": (
        changed(reference=[{"name": "weather", "arguments": "Oslo"}]),
        "reference[0].arguments",
        "",
    ),
    "bad id": (changed(id=7), "id", "non-empty string, got 7"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_named_by_file_row_and_field(name, tmp_path):
    row, field, what = MISTAKES[name]
    path = write(tmp_path / "bad.jsonl", ROW, row if isinstance(row, str) else json.dumps(row))
    with pytest.raises(TaskFileError) as caught:
        load_step_tasks(path)
    assert str(caught.value).startswith(f"{path}, row 2, field '{field}': ")
    assert what in str(caught.value)


def test_a_duplicate_id_names_both_rows(tmp_path):
    with pytest.raises(TaskFileError, match="row 3, field 'id': 'x' is row 1's already"):
        load_step_tasks(write(tmp_path / "d.jsonl", changed(id="x"), changed(id="y"), changed(id="x")))


@pytest.mark.parametrize("text", ["", "\n \n"])
def test_an_empty_file_is_refused(text, tmp_path):
    (tmp_path / "e.jsonl").write_text(text)
    with pytest.raises(TaskFileError, match="no tasks in it"):
        load_step_tasks(tmp_path / "e.jsonl")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(TaskFileError, match=r"nowhere\.jsonl: cannot be read"):
        load_step_tasks(tmp_path / "nowhere.jsonl")


def test_trl_rows_hold_the_rendered_prompt_and_the_task(tmp_path):
    class PlainTokenizer:
        bos_token = None

        def apply_chat_template(self, messages, tools=None, **_):
            return "".join(f"[{m['role']}]{m['content']}" for m in messages) + "[assistant]"

    tasks = load_step_tasks(write(tmp_path / "t.jsonl", ROW))
    (row,) = to_rows(tasks, PlainTokenizer())
    assert row.keys() == {"prompt", "fission_task"}
    assert row["prompt"].endswith("[user]Rain in Oslo?[assistant]")
    assert '"name": "weather"' in row["prompt"]
    assert task_from_json(row["fission_task"]) == tasks[0]


# -- environments -------------------------------------------------------------------------------------------------


def called(*ids, **more):
    entries = [{"id": one, "function": ROW["reference"][0] | {"arguments": {"city": f"c{one}"}}} for one in ids]
    return {"role": "assistant", "content": None, "tool_calls": entries, **more}


def answered(one, content="wet"):
    return {"role": "tool", "tool_call_id": one, "content": content}


def in_environment(*dialogue, **fields):
    return changed(messages=[*ROW["messages"], *dialogue], environment="a:B", **fields)


def test_the_dialogues_calls_are_the_history_with_results_matched_by_id(tmp_path):
    row = in_environment(called("1", "2"), answered("2", "two"), answered("1", "one"), called("1"), answered("1", "x"))
    (task,) = load_step_tasks(write(tmp_path / "a.jsonl", row))
    made = [(result.call.arguments["city"], result.content) for result in task.history]
    assert made == [("c1", "one"), ("c2", "two"), ("c1", "x")]
    assert load_step_tasks(write(tmp_path / "b.jsonl", row_of_step_task(task))) == [task]


@pytest.mark.parametrize("fields", [{"environment": None}, {"snapshot": {"wet": True}}])
def test_without_an_environment_or_with_a_snapshot_no_call_is_made_again(tmp_path, fields):
    row = in_environment(called("1"), answered("1")) | {"snapshot": None, "following": None} | fields
    (task,) = load_step_tasks(write(tmp_path / "a.jsonl", row))
    assert task.history == ()


def test_without_an_environment_a_column_called_following_is_the_users_own(tmp_path):
    (task,) = load_step_tasks(write(tmp_path / "a.jsonl", changed(following="@someone")))
    assert task.columns["following"] == "@someone"


CALL = ROW["reference"][0]
ENVIRONMENT_MISTAKES = {
    "no string": (
        in_environment() | {"environment": {"name": "desk"}},
        "environment",
        "must be desk, bfcl, agentdojo:SUITE or my_module",
    ),
    "call without result": (
        in_environment(called("1", "2"), answered("1")),
        "messages",
        r"messages\[1\] has 2 calls, but 1 results follow; .* so correct the dialogue or remove 'environment'",
    ),
    "result without call": (in_environment(answered("1")), "messages", r"messages\[1\] is the result of no call"),
    "user between": (
        in_environment(called("1"), {"role": "user", "content": "?"}),
        "messages",
        r"messages\[1\] has 1 calls, but 0 results follow",
    ),
    "other id": (
        in_environment(called("1"), answered("7")),
        "messages",
        r"calls \['1'\], but the results are of \['7'\]",
    ),
    "same id": (in_environment(called("1", "2"), answered("1"), answered("1")), "messages", r"results are of \['1'\]"),
    "following no list": (in_environment(following="x"), "following", "must be a list of lists of calls, got 'x'"),
    "following calls": (in_environment(following=[CALL]), "following", "must be a list of lists of calls"),
    "following wrong": (
        in_environment(following=[[CALL], [CALL | {"arguments": {"city": 3}}]]),
        r"following\[1\]\[0\].arguments",
        "`city` must be",
    ),
}


@pytest.mark.parametrize("name", ENVIRONMENT_MISTAKES)
def test_a_mistake_in_a_row_with_an_environment_names_row_field_and_fix(tmp_path, name):
    row, field, message = ENVIRONMENT_MISTAKES[name]
    with pytest.raises(TaskFileError, match=rf"bad.jsonl, row 2, field '{field}': .*{message}"):
        load_step_tasks(write(tmp_path / "bad.jsonl", ROW, row))
