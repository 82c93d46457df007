"""Whatever a policy writes: no exception anywhere, and no source ever gives the reference away."""

import json
import random
import re
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fission_grpo.core.chat import parse, read_result
from fission_grpo.core.rewards import step_verdict
from fission_grpo.core.types import (
    Task,
    ToolCall,
    Trajectory,
    Turn,
    Verdict,
)
from fission_grpo.feedback.request import feedback_for
from fission_grpo.feedback.rules import rules
from fission_grpo.feedback.sources import FIXED_TEXT, SOURCES, FunctionSource
from fission_grpo.feedback.spec import make_chain
from fission_grpo.fission.failures import find_failure

TOOLS = (
    {
        "name": "book_flight",
        "description": "",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string"},
                "date": {"type": "string", "pattern": r"^\d{4}-\d{2}-\d{2}$"},
                "seats": {"type": "integer", "minimum": 1},
                "cabin": {"type": "string", "enum": ["economy", "zqcabinzq", "first"]},
                "extras": {"type": "object", "properties": {"meals": {"type": "array"}}},
            },
            "required": ["city", "date"],
        },
    },
    {"type": "function", "function": {"name": "cancel", "parameters": {"type": "object", "properties": {}}}},
    {"name": "zqothertoolzq", "parameters": {"type": "object", "properties": {"what": {"type": "string"}}}},
)
# Every value is one that nobody would write by chance, so that its mere appearance is a leak.
REFERENCE = (
    ToolCall(
        "book_flight",
        {
            "city": "zqcityzq",
            "date": "2931-08-27",
            "seats": 734_219,
            "cabin": "zqcabinzq",
            "extras": {"meals": ["zqmealzq", {"zqkeyzq": "zqdeepzq"}]},
        },
    ),
    ToolCall("zqothertoolzq", {"what": "zqwhatzq"}),
)
SENTINELS = re.compile(r"zq\w+zq|2931|0?8.0?27|27.0?8|734.?219", re.IGNORECASE)
# Both are public as complete lists: the cabins in their enum, the tools among all tools.
PUBLIC = ("economy, zqcabinzq, first", "book_flight, cancel, zqothertoolzq")

NAMES = ["book_flight", "cancel", "zz", "city", "date", "seats", "cabin", "extras", "meals", "what", "name", "", "é"]
WORDS = st.sampled_from([*NAMES, "\ud800"])
ODD = st.sampled_from([10**30, -0.0, 1e308])
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), WORDS, st.text(max_size=20), ODD)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(WORDS, inner, max_size=3)),
    max_leaves=8,
)
ARGUMENTS = st.one_of(st.dictionaries(WORDS, VALUES, max_size=5), VALUES)
CALLS = st.fixed_dictionaries({"name": WORDS}, optional={"arguments": ARGUMENTS, "parameters": VALUES})
BLOCKS = st.lists(CALLS, max_size=3).map(
    lambda calls: "<tool_call>\n" + "\n".join(json.dumps(call) for call in calls) + "\n</tool_call>"
)
JUNK = (
    *("<think>", "</think>", "<tool_call>", "</tool_call>", "{", "}", "[", "]", '"', "'", "\\", ",", ":", "`"),
    *("NaN", "-Infinity", "9" * 5000, "1e999", "null", "\x00", "\ud83d", "\u202e", "<|im_end|>", "```json", "error"),
    *('{"name": "cancel", "arguments": ', '{"a": 1, "a": 2}', "[" * 2000, '{"a":' * 500),
)
TEXTS = st.lists(st.one_of(BLOCKS, BLOCKS, st.sampled_from(JUNK), st.text(max_size=30)), max_size=6).map("".join)


def check(text: str, truncated: bool, reference: tuple[ToolCall, ...]) -> str:
    """Take a text the whole way from parsing to feedback; return the kind of failure found."""
    turn = parse(text, truncated)
    assert turn == parse(text, truncated)
    assert turn.text == text
    task = Task("t", "book it", TOOLS, reference)
    verdict = step_verdict(task, turn, length=len(text))
    assert 0 <= verdict.reward <= 5 / 3 + 1e-9
    failure = find_failure(Trajectory(task, (turn,)), verdict, TOOLS)
    if failure is None:
        return "none"
    said = rules(failure)
    assert said is not None
    assert_no_sentinel(said)  # by itself, not only thanks to the guard
    for name, source in {**SOURCES, "rules": lambda _: said}.items():
        feedback = feedback_for(failure, [FunctionSource(name, source)])
        assert feedback.text or name == "none"
        assert_no_sentinel(feedback.text)
        feedback.text.encode()
    assert_no_sentinel(failure.detail.replace(PUBLIC[0], "").replace(PUBLIC[1], ""))
    return failure.kind


def assert_no_sentinel(text: str) -> None:
    for public in PUBLIC:
        text = text.replace(public, "")
    assert not SENTINELS.search(text), text


@settings(max_examples=600, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(text=TEXTS, truncated=st.booleans(), expected=st.sampled_from([0, 1, 2]))
def test_no_text_breaks_the_way_to_feedback_or_makes_it_leak(text, truncated, expected):
    check(text, truncated, REFERENCE[:expected])


def test_five_thousand_texts_close_to_the_right_answer_never_leak_what_they_lost():
    # The likeliest way to leak: the policy is nearly right, and the diagnosis puts back what is wrong.
    source = random.Random(0)
    kinds = {"none"}
    for index in range(5000):
        text = mutated(source)
        if index % 2:  # junk before, within or after it
            at, junk = source.randrange(len(text) + 1), source.choice(JUNK)
            text = source.choice([text + junk, junk + text, text[:at] + junk + text[at:]])
        kinds.add(check(text, source.random() < 0.1, REFERENCE))
    assert kinds == {"none", "unparsed", "unknown_tool", "bad_arguments", "wrong_call", "no_call", "truncated"}


def mutated(source: random.Random) -> str:
    """The reference with every sentinel replaced by something else, some arguments dropped, some text cut."""
    wrong = [
        "Rome",
        "2024-01-02",
        3,
        0,
        "first",
        "kelvin",
        True,
        None,
        1.5,
        [],
        ["soup"],
        {},
        {"meals": []},
        {"meals": 1},
    ]
    calls = []
    for call in REFERENCE[: source.choice([0, 1, 1, 2, 2])]:
        arguments = {key: source.choice(wrong) for key in call.arguments if source.random() < 0.8}
        if source.random() < 0.5:  # let most of it pass the schema, so that the call is wrong and not invalid
            arguments = {"city": "Rome", "date": "2024-01-02", "cabin": "first"} if call.name == "book_flight" else {}
        name = source.choice(["book_flight", "book_flight", "cancel", "bok_flight"])
        calls.append({"name": name, "arguments": arguments})
    text = "".join(f"<tool_call>{json.dumps(call)}</tool_call>" for call in calls) or "Done."
    return text[: source.randrange(len(text))] if source.random() < 0.2 else text


def test_a_source_that_tells_the_answer_is_replaced_and_counted():
    task = Task("t", "book it", TOOLS, REFERENCE)
    turn = parse('<tool_call>{"name": "book_flight", "arguments": {"city": "Rome", "date": "2024-01-02"}}</tool_call>')
    failure = find_failure(Trajectory(task, (turn,)), step_verdict(task, turn, 20), TOOLS)
    assert failure is not None
    for value in ["zqcityzq", "27/08/2931", "August 27", "734,219", "ZQ cabin ZQ", "zqdeepzq", "zqothertoolzq"]:
        feedback = feedback_for(
            failure, [FunctionSource("mine", lambda _, value=value: f"error: it should be {value}")]
        )
        assert (feedback.text, feedback.leaked) == (FIXED_TEXT, True), value
    assert not feedback_for(failure, make_chain("fixed")).leaked


@pytest.mark.parametrize(
    "text",
    [
        "<tool_call>" + '{"name": "cancel", "arguments": {}}' * 20_000 + "</tool_call>",
        '<tool_call>{"name": "cancel", "arguments": {}}</tool_call>' * 20_000,
        "<tool_call>" * 90_000,
        "<think>" * 140_000,
        "</think>" * 120_000,
        "<tool_call>" + "[" * 1_000_000,
        '<tool_call>{"name": "book_flight", "arguments": ' + '{"a":' * 2000 + "1" + "}" * 2000 + "}</tool_call>",
        '<tool_call>{"name": "book_flight", "arguments": {"city": "' + "x" * 1_000_000 + '"}}</tool_call>',
        '<tool_call>{"name": "' + "x" * 1_000_000 + '", "arguments": {}}</tool_call>',
        '<tool_call>{"name": "cancel", "arguments": ' + json.dumps("[" * 500_000) + "}</tool_call>",
    ],
    ids=lambda text: text[:60],
)
def test_a_megabyte_is_read_in_linear_time(text):
    started = time.perf_counter()
    parse(text)
    assert time.perf_counter() - started < 3  # 0.2 s on an idle core; a quadratic parser would take minutes
    check(text, False, REFERENCE)


@settings(max_examples=300, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(content=st.one_of(TEXTS, VALUES.map(repr), VALUES.map(lambda value: repr({"error": value}))))
def test_no_tool_result_breaks_its_reader(content):
    result = read_result(ToolCall("cancel"), content)
    turn = Turn("", calls=(result.call,), results=(result,))
    failure = find_failure(Trajectory(Task("t", "x"), (turn,)), Verdict(0.0, True), TOOLS)
    assert failure is not None
    assert (failure.kind == "raised") == (result.error is not None)
