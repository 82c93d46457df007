"""Readers of text from outside take linear time, whatever is in it."""

import json
import time
from contextlib import suppress

import pytest

from fission_grpo.core.call_queue import CallQueue
from fission_grpo.core.chat import beside_calls, parse, read_result, tagged_blocks, text_between
from fission_grpo.core.errors import RunFileError, TaskFileError
from fission_grpo.core.messages import call_in_other_form, lacks_arguments, plain_messages, read_messages
from fission_grpo.core.result_errors import is_like_an_error
from fission_grpo.core.special_tokens import SpecialTokenFilter
from fission_grpo.core.types import ErrorKind, Failure, Task, ToolCall, ToolResult, Turn
from fission_grpo.data.convert.dialogues import RowDropped
from fission_grpo.data.convert.formats import convert_file, read_literals, read_toolace_calls
from fission_grpo.evaluation.metrics import compute_metrics
from fission_grpo.evaluation.transcripts import read_traces
from fission_grpo.feedback.leak_guard import find_leak
from fission_grpo.feedback.postprocess import usable_text
from fission_grpo.feedback.prompt import failure_text

MIB = 2**20
LIMIT = 2.0  # seconds of the processor, of a slow machine; what is quadratic takes longer
TOOL = {"name": "f", "description": "", "parameters": {"type": "object", "properties": {"a": {}}}}

PUMPS = [
    "<think>",
    "<scratch_pad>",
    "<scratch_pad>x</",
    "<tool_call>",
    "</tool_call>",
    "<tool_call> ",
    '<tool_call>{"name": "f", "arguments": {}}',
    "<tool_call>\n</tool_call>",
    "<tool_response>",
    "<tool_response> \t",
    "<tools>",
    "<user>",
    "<obs>",
    "<response>\n",
    "<function=",
    "<function=x",
    " ",
    "\n",
    "\t \n",
    "[{",
    '[{"a":',
    '[{"a":1,',
    "[ ",
    "[x ",
    "[f(",
    "[f(a",
    "[f(a =",
    "[f(a='",
    '\\"',
    "f (",
    "{}",
    "{}, ",
    "{'a': 1}\n",
    '"',
    "'",
    "\n1. Name: ",
    "\n1. Name: x\nDescription: ",
    "\n1. Name: x\nDescription: y\nParameters: ",
    "1",
    "-",
    "(",
    "<|",
    "<|x",
    "[INST",
    "Error ",
    "error: ",
    "an error ",
    "```",
    "\n```\n",
    "**a",
    "_a",
    "\\",
    "<b x",
    "Action: ",
    "1,",
    "twenty ",
    "`",
    "`a.",
]


@pytest.fixture(autouse=True)
def within_seconds():
    began = time.process_time()
    yield
    assert time.process_time() - began < LIMIT


def pumped(unit, size=MIB // 16, start="", end=""):
    return start + unit * (size // len(unit)) + end


@pytest.mark.parametrize("unit", PUMPS)
def test_texts_of_a_model(unit):
    for text in (pumped(unit), pumped(unit, end="x"), pumped(unit, start="<tool_call>", end="</tool_call>")):
        parse(text)
        beside_calls(text)
        call_in_other_form(text)
        lacks_arguments(text)
        is_like_an_error(text)
        read_result(ToolCall("f"), text)
        list(tagged_blocks(text, "think", "tool_call", "tools", innermost=True))
        SpecialTokenFilter(["<|im_end|>", "[INST]", "</s>"]).sanitize(text)
        read_messages([{"role": "user", "content": text}, {"role": "assistant", "content": "x"}])
        read_messages([{"role": "tool", "content": text}])


@pytest.mark.parametrize("unit", PUMPS)
def test_texts_of_an_endpoint(unit):
    for text in (pumped(unit), pumped(unit, size=19_000, end=".")):
        usable_text(text, False, text)


@pytest.mark.parametrize("unit", PUMPS)
def test_feedback_and_arguments_of_a_megabyte(unit):
    text = pumped(unit, MIB // 2)
    call, made = ToolCall("f", {"a": text}), ToolCall("f", {"a": text[1:], "b": "x"})
    result = ToolResult(made, text[:200_000], text[:2000])
    failure = Failure(Task("t", "go", (TOOL,), (call,)), (Turn(text, "", (made,), None, (result,)),), ErrorKind.RAISED)
    failure_text(failure, 4000)
    for said in (text[:2000], "error: `a` is not right, got " + text[:500]):
        find_leak(said, failure)


LAYOUTS = ["openai", "xlam", "toolace", "hermes", "apigen-mt", "toolrl"]


def rows_of(layout, text):
    """Rows with the text in every place of the layout."""
    roles = {"hermes": ("system", "human", "gpt", "tool"), "toolace": ("user", "assistant", "tool")}
    roles["apigen-mt"] = ("human", "gpt", "function_call", "observation")
    tools = json.dumps([{"type": "function", "function": TOOL}])
    if layout == "openai":
        messages = [{"role": role, "content": text} for role in ("system", "user", "assistant", "tool")]
        yield {"messages": messages, "tools": [TOOL]}
        yield {"messages": [{"role": "user", "content": "x"}, messages[2]], "tools": text}
    elif layout == "xlam":
        yield {"query": text, "answers": text, "tools": tools}
        yield {"query": text, "answers": [{"name": "f", "arguments": text}], "tools": text}
    elif layout == "toolrl":
        listed = f"**Available Tools**\n1. Name: f\nDescription: x\nParameters: {{}}{text}"
        good = '<tool_call>\n{"name": "f", "parameters": {}}\n</tool_call>'
        yield {"instruction": listed, "input": "<user>x</user>", "output": good}
        yield {"instruction": f"**Available Tools**{text}", "input": text, "output": good}
        yield {"instruction": listed.removesuffix(text), "input": text, "output": good}
        yield {"instruction": listed.removesuffix(text), "input": f"<user>{text}</user>", "output": text}
    else:
        for role in roles[layout]:
            first = {"from": "human" if layout != "toolace" else "user", "value": "x"}
            row = {"conversations": [first, {"from": role, "value": text}], "tools": tools, "system": tools}
            yield row
            yield {**row, "tools": text, "system": text}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("unit", PUMPS)
def test_rows_of_data_sets(tmp_path, layout, unit):
    path = tmp_path / "rows.jsonl"
    text = pumped(unit, 30_000, end=")]" if len(unit) % 2 else "")
    path.write_text("".join(json.dumps(row) + "\n" for row in rows_of(layout, text)))
    with suppress(TaskFileError):
        convert_file(path, layout)


@pytest.mark.parametrize("unit", PUMPS)
def test_texts_of_transcripts(tmp_path, unit):
    path = tmp_path / "transcripts.jsonl"
    text = pumped(unit, 50_000)
    call = {"id": "1", "function": {"name": "f", "arguments": text}}
    for row in (
        [{"role": "user", "content": text}, {"role": "assistant", "content": text}],
        [{"role": "user", "content": "x"}, {"role": "assistant", "tool_calls": [call]}],
        [{"role": "assistant", "tool_calls": [call]}, {"role": "tool", "tool_call_id": "1", "content": text}],
    ):
        path.write_text(json.dumps({"messages": row, "tools": [TOOL]}) + "\n")
        with suppress(RunFileError):
            read_traces(path)


def test_literals_and_calls_one_after_another():
    for text in ("{}" * 60_000, "{}, " * 30_000, "[f(a=1)]" * 20_000, "[f(a" + " " * MIB + ")]"):
        for read in (read_literals, lambda text: read_toolace_calls(text, ["f", "f g"])):
            with suppress(ValueError, RowDropped):
                read(text)


@pytest.mark.parametrize("named", [False, True])
def test_very_many_calls_and_results_of_a_transcript(tmp_path, named):
    number = 4000
    calls = [{"id": f"c{i}", "function": {"name": "f", "arguments": "{}"}} for i in range(number)]
    ids = [f"c{i}" if named else "other" for i in reversed(range(number))]
    results = [{"role": "tool", "tool_call_id": name, "content": "{'error': 'x'}"} for name in ids]
    in_one = [{"role": "user", "content": "x"}, {"role": "assistant", "tool_calls": calls}, *results]
    apart = [{"role": "user", "content": "x"}]
    for call, result in zip(calls, reversed(results), strict=True):
        apart += [{"role": "assistant", "tool_calls": [call]}, result]
    path = tmp_path / "transcripts.jsonl"
    for messages in (in_one, apart):
        path.write_text(json.dumps({"messages": messages}) + "\n")
        records = read_traces(path)
        assert sum(call.error is not None for call in records[0].calls) == number
        assert compute_metrics(records).own_errors == number
        assert len(plain_messages(one for read in read_messages(messages) for one in read)) == len(messages)


def test_a_row_of_very_many_turns_is_left_out_and_counted(tmp_path):
    call = {"id": "1", "function": {"name": "f", "arguments": "{}"}}
    turn = [{"role": "assistant", "tool_calls": [call]}, {"role": "tool", "tool_call_id": "1", "content": "x"}]
    rows = [
        {"messages": [{"role": "user", "content": "x"}, *turn * number], "tools": [TOOL]}
        for number in (250, 251, 5000)
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    _, converted = convert_file(path, "openai")
    assert len(converted.tasks) == 250
    assert converted.dropped == {"it has more than 250 assistant turns": 2}


@pytest.mark.parametrize(
    ("text", "innermost", "bodies", "rest"),
    [
        ("a<t>b</t>c", False, ["b"], "ac"),
        ("<t>b<t>c</t>d</t>", False, ["b<t>c"], "d</t>"),
        ("<tool_call>b<tool_call>c</tool_call>", True, ["c"], "<tool_call>b"),
        ("<t>b", False, [], "<t>b"),
        ("<t>1</t><u>2</t></u>", False, ["1", "2</t>"], ""),
        ("<u><t>x</t>", False, ["x"], "<u>"),
        ("</t><t></t>", False, [""], "</t>"),
    ],
)
def test_blocks_end_at_the_next_closing_tag(text, innermost, bodies, rest):
    blocks = list(tagged_blocks(text, "t", "u", "tool_call", innermost=innermost))
    assert [block.body for block in blocks] == bodies
    assert "".join(text_between(text, blocks)) == rest


def test_a_queue_of_calls_gives_by_id_then_by_name_then_in_order():
    calls = [Turn(name) for name in "abcd"]
    waiting = [type("Call", (), {"id": number, "name": call.text})() for number, call in enumerate(calls)]
    queue = CallQueue(waiting)
    taken = [queue.take(*asked).name for asked in (("2", "a"), ("9", "b"), ("9", "b"), ("2", None))]
    assert taken == ["c", "b", "a", "d"]
    assert queue.take("0", "a") is None


@pytest.mark.parametrize(
    ("text", "lacks"),
    [
        *((text, True) for text in ("", " ", "null", '""', '"null"', ' "  null " ', '" "', "\u2003")),
        *((text, False) for text in ('"', "{}", '"x"', "nullnull", '""""', '"null', "null null", "None")),
    ],
)
def test_blank_arguments_are_told_from_others(text, lacks):
    assert lacks_arguments(text) is lacks


def test_a_deep_list_of_many_items_takes_bounded_memory():
    import tracemalloc

    text = "[" * 900 + "1," * 50_000 + "1" + "]" * 900
    call = ToolCall("f", {"a": "x"})
    result = ToolResult(call, text, None)
    failure = Failure(Task("t", "go", (TOOL,), (call,)), (Turn("", "", (call,), None, (result,)),), ErrorKind.RAISED)
    tracemalloc.start()
    find_leak("error: `a` is not right, as the list says it is", failure)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 60 * MIB
