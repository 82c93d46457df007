"""Prompts and decode rules of BFCL's official Qwen handlers, against what these handlers gave for the same replies.

`fixtures/bfcl_answered.json` was made from `fixtures/bfcl_asked.json` by `scripts/official_bfcl_prompts.py`.
"""

import hashlib
import json
import os
import random
import re
import tempfile
import time
from pathlib import Path

import pytest

pytest.importorskip("bfcl_eval", reason="pip install --no-deps bfcl-eval==2026.3.23 mpmath==1.3.0 filelock")
os.environ.setdefault("BFCL_PROJECT_ROOT", tempfile.mkdtemp())  # else bfcl-eval makes folders beside itself

from fission_grpo.core.tool_schema import check_tool_schema
from fission_grpo.envs.bfcl.functions import class_docs
from fission_grpo.envs.bfcl.official import (
    HINT,
    MULTI_TURN,
    category_of,
    multi_turn_cases,
    single_turn_cases,
)
from fission_grpo.evaluation.bfcl.decoding import (
    Undecodable,
    _blocks,
    decode_hermes,
    decode_python,
    hermes_ast,
    hermes_calls,
    python_ast,
    python_calls,
)
from fission_grpo.evaluation.bfcl.formats import new_conversation, schema_of
from fission_grpo.evaluation.bfcl.results import write_result_files
from fission_grpo.evaluation.bfcl.run_case import run_case
from fission_grpo.evaluation.bfcl.single_turn import run_single_turn
from fission_grpo.inference.base import Reply

FIXTURES = Path(__file__).parent.parent / "fixtures"
ASKED, ANSWERED = (json.loads((FIXTURES / f"bfcl_{name}.json").read_text()) for name in ("asked", "answered"))
TICKET = {
    "name": "close",
    "description": "Close it.",
    "parameters": {"type": "dict", "properties": {}, "required": []},
}
CALL = '<tool_call>\n{"name": "close", "arguments": {}}\n</tool_call>'


def case_of(case_id):
    category = category_of(case_id)
    cases = multi_turn_cases(category) if category in MULTI_TURN else single_turn_cases(category)
    return next(case for case in cases if case.id == case_id)


def played(play, replies):
    """The record, and every prompt that was asked."""
    replies, prompts = iter(replies), []
    try:
        prompts.append(next(play).prompt)
        while True:
            prompts.append(play.send(Reply(next(replies, ""))).prompt)
    except StopIteration as end:
        return end.value, prompts


@pytest.mark.parametrize("number", range(len(ASKED["cases"])), ids=lambda n: f"{n}-{ASKED['cases'][n]['id']}")
def test_prompts_results_and_rows_are_the_official_handlers(number, tmp_path):
    asked, official = ASKED["cases"][number], ANSWERED["cases"][number]
    case = case_of(asked["id"])
    single = case.category not in MULTI_TURN
    play = run_single_turn(case, asked["format"]) if single else run_case(case, asked["format"])
    record, prompts = played(play, asked["replies"])
    assert [prompt[-ASKED["tails"] :] for prompt in prompts] == [tail for _, _, tail in official["prompts"]]
    hashes = [[hashlib.sha256(prompt.encode()).hexdigest(), len(prompt)] for prompt in prompts]
    assert hashes == [one[:2] for one in official["prompts"]]
    model = "Qwen/Qwen3-8B-FC" if asked["format"] == "qwen-fc" else "Qwen/Qwen3-8B"
    [path] = write_result_files([record], [case], tmp_path, model)
    row = json.loads(path.read_text())["result"]
    if str(official["result"]).startswith("Error during inference"):
        assert (row[:22], record.verdict) == ("Error during inference", "multi_turn:inference_error")
    else:
        assert row == official["result"]
        assert [call.result for call in record.calls if not single] == official["results"]


@pytest.mark.parametrize("number", range(len(ASKED["texts"])), ids=lambda n: repr(ASKED["texts"][n])[:40])
def test_replies_are_decoded_as_the_official_handlers_decode_them(number):
    def tried(decode):
        try:
            return decode(ASKED["texts"][number])
        except Undecodable:
            return None

    def sources(decode):
        calls = tried(decode)
        return calls if calls is None else [call.source for call in calls]

    official = ANSWERED["texts"][number]
    assert sources(hermes_calls) == official["qwen-fc execute"]
    assert sources(python_calls) == official["qwen-prompting execute"]
    for decode, name in ((hermes_ast, "qwen-fc ast"), (python_ast, "qwen-prompting ast")):
        assert json.loads(json.dumps(tried(decode), default=repr)) == official[name]


def test_the_fixture_has_decodable_and_undecodable_texts_of_both_kinds():
    for name in ("qwen-fc execute", "qwen-prompting execute"):
        found = [text[name] for text in ANSWERED["texts"]]
        assert min(sum(one is None for one in found), sum(bool(one) for one in found)) >= 7


def test_an_fc_prompt_is_this_text():
    dialogue = new_conversation("qwen-fc", [TICKET])
    dialogue.add_user_turn([{"role": "user", "content": "Close."}])
    decoded = dialogue.add_reply(Reply(f"<think>\nIt is open.\n</think>\n\n{CALL}"))
    dialogue.add_results(decoded, ["closed"])
    prompt = dialogue.request().prompt
    listed, rest = prompt.split("\n</tools>", 1)
    assert listed.endswith(
        '<tools>\n{"name": "close", "description": "Close it.", '
        '"parameters": {"type": "dict", "properties": {}, "required": []}}'
    )
    assert rest.split("<|im_end|>\n", 1)[1] == (
        "<|im_start|>user\nClose.<|im_end|>\n"
        f"<|im_start|>assistant\n<think>\nIt is open.\n</think>\n\n{CALL}<|im_end|>\n"
        "<|im_start|>user\n<tool_response>\nclosed\n</tool_response><|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    dialogue.add_user_turn([{"role": "user", "content": "Thanks."}])  # thoughts before the last question are not shown
    assert "It is open." not in dialogue.request().prompt


def test_functions_held_out_are_shown_at_their_turn_and_without_the_hint():
    case = case_of("multi_turn_miss_func_0")
    assert list(case.added) == [3]
    assert case.turns[3] == ()
    held_out = [doc["name"] for doc in case.added[3]]
    assert held_out == ["sort"]
    assert "sort" not in [doc["name"] for doc in case.functions]
    assert case.added[3][0]["description"] == class_docs("GorillaFileSystem")["sort"]["description"]
    assert all(doc["description"].endswith(HINT) for doc in case.functions)


def test_the_cases_are_as_many_as_officially():
    assert [len(multi_turn_cases(category)) for category in MULTI_TURN] == [200] * 4
    assert len(single_turn_cases("simple_python")) == 400
    with pytest.raises(ValueError, match="no BFCL category 'simple_java' here; there are simple_python, multiple"):
        single_turn_cases("simple_java")


@pytest.mark.parametrize(
    ("text", "unread"),
    [
        ("All done.", None),
        (CALL, None),
        (CALL.replace("\n", ""), "a tool call must be <tool_call>, one JSON object and </tool_call>, each on a line"),
        (CALL.replace("}\n", "\n"), "tool call is not valid JSON: "),
        (CALL.replace('"arguments"', '"parameters"'), 'a tool call has no "arguments"'),
        (f"<think>\n<tool_call>\n</think>\n{CALL}", None),
    ],
)
def test_a_call_begun_but_not_read_is_named_under_the_fc_rule(text, unread):
    found = decode_hermes(text).unread
    assert found == unread or (unread and found and found.startswith(unread))


def test_a_block_cut_off_at_the_length_limit_is_no_error_of_form():
    assert decode_hermes(CALL[:30], truncated=True).unread is None
    assert decode_hermes(CALL[:30]).unread is not None


def test_a_python_reply_is_unread_only_if_it_calls_a_documented_function():
    assert (
        decode_python("close(1", ["close"]).unread
        == "the reply is no list of function calls: closing parenthesis ']' does not match "
        "opening parenthesis '('"
    )
    assert decode_python("I will not (yet).", ["close"]).unread is None
    assert decode_python("[close()]", ["close"]).calls[0].name == "close"


def test_arithmetic_that_would_grow_too_large_is_not_computed():
    for source in ("[f(x=9**9**9)]", "[f(x='a'*99999999)]", "[f(x=__import__('os').getcwd())]"):
        try:
            calls = python_calls(source)
        except Undecodable:
            continue
        assert calls[0].arguments == {"x": "__import__('os').getcwd()"}  # its text, as officially


def test_chat_schemas_are_valid_json_schema_and_names_have_no_dots():
    tools = [schema_of(doc) for case in single_turn_cases("simple_python") for doc in case.functions]
    for tool in tools:
        check_tool_schema(tool)
    assert not any("." in tool["name"] for tool in tools)


def test_chat_answers_structured_calls_by_their_ids_and_adds_held_out_functions_to_the_tools():
    dialogue = new_conversation("chat", [TICKET])
    dialogue.add_user_turn([{"role": "user", "content": "Close."}])
    sent = {"id": "c1", "type": "function", "function": {"name": "close", "arguments": "{}"}}
    decoded = dialogue.add_reply(Reply(CALL, tool_calls=(sent,)))
    dialogue.add_results(decoded, ["closed"])
    dialogue.add_user_turn([], [{**TICKET, "name": "open"}])
    request = dialogue.request()
    assert [tool["name"] for tool in request.tools] == ["close", "open"]
    assert request.messages[1:3] == (
        {"role": "assistant", "content": CALL, "tool_calls": [sent]},
        {"role": "tool", "name": "close", "content": "closed", "tool_call_id": "c1"},
    )
    assert request.messages[3]["content"].startswith("I have updated some more functions")
    assert request.prompt is None


def test_chat_sends_no_structured_calls_back_that_have_no_answer():
    dialogue = new_conversation("chat", [TICKET])
    dialogue.add_user_turn([{"role": "user", "content": "Close."}])
    sent = {"id": "c1", "type": "function", "function": {"name": "close", "arguments": "{"}}
    broken = '<tool_call>\n{"name": "close", "arguments": {}\n</tool_call>'
    assert dialogue.add_reply(Reply(broken, tool_calls=(sent,))).unread is not None
    dialogue.add_error("bad")
    assert dialogue.request().messages[1:] == (
        {"role": "assistant", "content": broken},
        {"role": "user", "content": '{"error": "bad"}'},
    )


def test_blocks_are_found_as_by_the_official_pattern():
    rng = random.Random(0)
    parts = ["<tool_call>\n", "\n</tool_call>", "<tool_call>", "</tool_call>", "\n", "{}", "1", " "]
    pattern, found = re.compile(r"<tool_call>\n(.*?)\n</tool_call>", re.DOTALL), 0
    for _ in range(3000):
        text = "".join(rng.choices(parts, k=12))
        assert _blocks(text) == (pattern.findall(text), pattern.sub("", text))
        found += len(_blocks(text)[0])
    assert found == 1969  # counted with the pattern: the texts do hold blocks


@pytest.mark.parametrize("text", ["x" * 10**6, "<tool_call>\n" * 10**5, "</think>" * 10**5, "a.(" * 10**5])
def test_a_long_reply_is_read_in_a_moment(text):
    began = time.perf_counter()
    decode_hermes(text)
    decode_python(text, ["close"])
    assert time.perf_counter() - began < 5  # a quadratic scan takes minutes
