"""What gives the answer away and what does not."""

import json
import time
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fission_grpo.core.chat import read_result
from fission_grpo.core.types import ErrorKind, Failure, Task, ToolCall, ToolResult, Turn
from fission_grpo.feedback.leak_guard import find_leak, find_reference_leak, letters_and_digits, normalize
from fission_grpo.feedback.request import feedback_for
from fission_grpo.feedback.sources import FunctionSource

TOOLS = (
    {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string"},
                "date": {"type": "string"},
                "days": {"type": "integer"},
                "units": {"type": "string", "enum": ["celsius", "fahrenheit"]},
                "hourly": {"type": "boolean"},
            },
        },
    },
    {"type": "function", "function": {"name": "get_time", "parameters": {"type": "object", "properties": {}}}},
)
REFERENCE = [
    ToolCall("get_weather", {"city": "New York", "date": "2024-01-05", "days": 3, "units": "celsius", "hourly": True})
]
FAILED = [ToolCall("get_weather", {"city": "Boston", "date": 1706745600, "days": 4, "units": "kelvin"})]
SHORT = [ToolCall("go", {"to": "Rome", "day": "2024-01-05", "at": "14:30", "n": 42, "text": "a long way from home"})]


@pytest.mark.parametrize(
    ("feedback", "what"),
    [
        ("`city` should be New York", "the value of `city`"),
        ("`city` should be “new   YORK”", "the value of `city`"),
        ("it is new_york", "the value of `city`"),
        ("it is newyork", "the value of `city`"),
        ("it is N-e-w Y o r k", "the value of `city`"),
        ("it is Ｎｅｗ Ｙｏｒｋ", "the value of `city`"),
        ("`city = 'New York'`", "the value of `city`"),
        ('{"city": "New York"}', "the value of `city`"),
        ("get_weather(city='New York')", "the value of `city`"),
        ("use 3", "the value of `days`"),
        ("use 3.0.", "the value of `days`"),
        ("days=3", "the value of `days`"),
        ("for '3' days", "the value of `days`"),
        ("for three days", "the value of `days`"),
        ("on 2024-01-05", "the value of `date`"),
        ("on 2024/1/5", "the value of `date`"),
        ("on 05.01.2024", "the value of `date`"),
        ("on 01/05/24", "the value of `date`"),
        ("on 20240105", "the value of `date`"),
        ("on the 5th of January", "the value of `date`"),
        ("on Jan. 5, 2024", "the value of `date`"),
        ("`units` must be celsius", "the value of `units`"),
        ("one of celsius, fahrenheit; you want celsius", "the value of `units`"),
        ("celsius, not fahrenheit", "the value of `units`"),
        ("`hourly` must be true", "the value of `hourly`"),
        ("turn it on", "the value of `hourly`"),
    ],
)
def test_a_value_in_any_usual_form_is_a_leak(feedback, what):
    assert find_reference_leak(feedback, REFERENCE, FAILED, TOOLS) == what


@pytest.mark.parametrize(
    "feedback",
    [
        "error: you made a mistake. please try again.",
        "`date` must match YYYY-MM-DD, got 1706745600",
        "`units` must be one of celsius, fahrenheit, got 'kelvin'",
        "`units` must be one of 'fahrenheit' or 'celsius'",
        "`hourly` must be true or false",
        "`days` must be an integer",
        "missing required argument `hourly`",
        "unknown tool 'x'; available: get_weather, get_time",
        "13 or 30 or 3,000 or 2023-03-30 or 12:03",
        "the newest yorker",
        "on 2024-01-06",
        "three arguments are wrong",
        "it is on you to find out",
    ],
)
def test_names_types_and_complete_lists_are_no_leak(feedback):
    assert find_reference_leak(feedback, REFERENCE, FAILED, TOOLS) is None


def test_what_the_failed_call_wrote_for_the_parameter_may_be_quoted():
    failed = [ToolCall("get_weather", {"days": "3", "city": "New York City"})]
    assert find_reference_leak("`days` must be an integer, got '3'", REFERENCE, failed, TOOLS) is None
    assert find_reference_leak("`city` is unknown: 'New York City'", REFERENCE, failed, TOOLS) is None
    text = "`city` is New York, not 'New York City'"
    assert find_reference_leak(text, REFERENCE, failed, TOOLS) == "the value of `city`"


def test_what_the_failed_call_wrote_hides_no_longer_value_that_contains_it():
    reference, failed = [ToolCall("f", {"title": "Disk is full", "n": 15})], [ToolCall("f", {"title": "disk", "n": 1})]
    assert find_reference_leak("the title is 'Disk is full'", reference, failed) == "the value of `title`"
    assert find_reference_leak("try 15", reference, failed) == "the value of `n`"
    text = "`title` is not right, got 'disk'; `n` is not right, got 1"
    assert find_reference_leak(text, reference, failed) is None


def test_what_the_failed_call_wrote_for_another_parameter_may_not_be_quoted():
    reference = [ToolCall("move", {"source": "a.txt", "target": "b.txt"})]
    swapped = [ToolCall("move", {"source": "b.txt", "target": "c.txt"})]
    text = "`source` is not right, got 'b.txt'"
    assert find_reference_leak(text, reference, swapped) == "the value of `target`"


def test_a_tool_name_is_a_leak_unless_called_or_listed_with_all_others():
    other = [ToolCall("get_time")]
    name = "the name of tool 'get_weather'"
    assert find_reference_leak("use get_weather", REFERENCE, other, TOOLS) == name
    assert find_reference_leak("use `Get Weather`", REFERENCE, other, TOOLS) == name
    assert find_reference_leak("call getWeather()", REFERENCE, other, TOOLS) == name
    assert find_reference_leak("use get_weather", REFERENCE, FAILED, TOOLS) is None
    assert find_reference_leak("there are get_time and get_weather", REFERENCE, other, TOOLS) is None
    assert find_reference_leak("there are:\n- get_time\n- get_weather", REFERENCE, other, TOOLS) is None


def test_nested_values_are_found_and_their_keys_are_names():
    reference = [ToolCall("f", {"filter": {"any": [{"owner": "zoe"}, 7]}})]
    assert find_reference_leak("ask zoe", reference) == "the value of `filter`"
    assert find_reference_leak("seven is 7", reference) == "the value of `filter`"
    assert find_reference_leak("`filter` needs any owner", reference) is None


def test_of_a_path_in_backticks_only_known_keys_are_public():
    reference = [ToolCall("f", {"to": "rome", "filter": {"any": [{"owner": "zoe"}]}})]
    assert find_reference_leak("`filter.any[0].owner` is not right", reference) is None
    assert find_reference_leak("`filter.zoe` is not right", reference) == "the value of `filter`"
    assert find_reference_leak("`to.rome`", reference) == "the value of `to`"


def test_a_good_part_of_a_long_value_is_a_leak():
    reference = [ToolCall("send", {"text": "Meeting moved to Thursday at noon in the big room"})]
    assert find_reference_leak("say: moved to THURSDAY, at noon in the", reference) == "the value of `text`"
    assert find_reference_leak("say something of a meeting at noon", reference) is None


def test_a_long_value_that_is_nearly_right_may_be_quoted_back():
    reference = [ToolCall("open", {"path": "/home/user/projects/alpha/report_final.txt"})]
    failed = [ToolCall("open", {"path": "/home/user/projects/alpha/report_draft.txt"})]
    text = "`path` is not right, got '/home/user/projects/alpha/report_draft.txt'"
    assert find_reference_leak(text, reference, failed) is None
    more = f"{text}; it is /home/user/projects/alpha/report_final.txt"
    assert find_reference_leak(more, reference, failed) is not None


def test_common_words_are_values_only_in_quotes():
    reference = [ToolCall("f", {"to": "you", "flag": "", "mark": "?"})]
    assert find_reference_leak("error: you made a mistake?", reference) is None
    assert find_reference_leak("`to` must be 'you'", reference) == "the value of `to`"
    assert find_reference_leak("`flag` must be ''", reference) == "the value of `flag`"


def test_a_value_may_be_split_by_spaces_and_dashes_but_not_made_of_neighbours():
    reference = [ToolCall("f", {"user": "USR126", "mode": "tobe"})]
    assert find_reference_leak("it is usr-126", reference) == "the value of `user`"
    assert find_reference_leak("it is USR 126", reference) == "the value of `user`"
    assert find_reference_leak("it has to be something else; a usr 1267 or busr 126", reference) is None


def test_values_in_scripts_without_spaces_are_found():
    assert find_reference_leak("请用东京作为城市", [ToolCall("f", {"city": "东京"})]) == "the value of `city`"


def test_with_no_reference_there_is_nothing_to_leak():
    assert find_reference_leak("use 3", None) is None
    assert find_reference_leak("use 3", ()) is None


def test_an_enum_with_an_empty_option_hides_nothing():
    tools = [{"name": "f", "parameters": {"type": "object", "properties": {"a": {"enum": ["", "x"]}}}}]
    assert find_reference_leak("use x", [ToolCall("f", {"a": "x"})], (), tools) == "the value of `a`"


def test_the_failed_calls_wrong_tool_name_may_be_quoted_however_near_it_is():
    wanted, wrote = (ToolCall("get_ticket"),), (ToolCall("get-ticket"),)
    name = "the name of tool 'get_ticket'"
    assert find_reference_leak("error: unknown tool 'get-ticket'", wanted, wrote) is None
    assert find_reference_leak("error: unknown tool 'get-ticket'; it is get_ticket", wanted, wrote) == name
    assert find_reference_leak("error: no tool 'get'; get ticket?", wanted, (ToolCall("get"),)) == name


def test_what_the_environment_said_is_no_leak():
    call = ToolCall("get_weather", {"city": "Boston"})
    turn = Turn("", "", (call,), None, (ToolResult(call, "did you mean New York?", None),))
    task = Task("t", "weather", tools=TOOLS, reference=tuple(REFERENCE))
    failure = Failure(task, (turn,), ErrorKind.WRONG_CALL)
    assert find_leak("did you mean New York?", failure) is None
    assert find_leak("error: did you mean New York?", failure) == "the value of `city`"


CALL = ToolCall("get_weather", {"city": "Boston"})
SAID = "no such city;\n\ttry \"New York\" or 'Albany' (C:\\new)"


def failure_with(*contents, history=(), **error):
    """A failure whose turns had these results."""
    turns = tuple(Turn("", calls=(CALL,), results=(replace(read_result(CALL, content), **error),))
                  for content in contents)  # fmt: skip
    task = Task("t", "weather", tools=TOOLS, reference=tuple(REFERENCE), history=history)
    return Failure(task, turns, ErrorKind.WRONG_CALL)


@pytest.mark.parametrize("content", [SAID, str({"error": SAID}), json.dumps({"error": SAID}), f"error: {SAID}"])
@pytest.mark.parametrize(
    "text", [SAID, SAID.replace("\n\t", " "), repr(SAID), json.dumps(SAID), f"  {SAID}\n", SAID[:32]]
)
def test_a_message_of_the_environment_is_no_leak_however_it_is_quoted(content, text):
    assert find_reference_leak(text, REFERENCE, [CALL], TOOLS) == "the value of `city`"
    assert find_leak(text, failure_with(content)) is None
    assert find_leak(text, failure_with(content, "ok")) is None  # of an earlier turn
    earlier = read_result(CALL, content)
    assert find_leak(text, failure_with("ok", history=(earlier,))) is None  # of the rollout before
    assert find_leak(text, failure_with("ok", error=SAID)) is None or text == SAID[:32]  # the error alone is known
    assert find_leak(text, failure_with("ok")) == "the value of `city`"
    assert find_leak(text, failure_with(content), from_environment=False) == "the value of `city`"


def test_a_value_picked_out_of_a_result_is_a_leak():
    listed = failure_with("there is weather for Albany, New York and Boston")
    assert find_leak("New York", listed) == "the value of `city`"
    assert find_leak("use New York", listed) == "the value of `city`"
    assert find_leak("New York and Boston", listed) == "the value of `city`"
    assert find_leak("New York", failure_with("New York")) is None


def test_a_long_message_that_was_cut_is_still_the_environments():
    long = "did you mean 'New York'?\n" * 200
    for content in (long, str({"error": long}), json.dumps({"error": long})):
        assert find_leak(long[:2000], failure_with(content)) is None
    assert find_leak(long[:2000] + " yes", failure_with(long)) == "the value of `city`"


def test_texts_are_compared_without_case_width_quotes_and_spacing():
    assert normalize("“New\u200b  ＹＯＲＫ”") == "'new york'"
    assert (normalize(None), normalize(True), normalize(3)) == ("null", "true", "3")
    assert letters_and_digits("New-York_2!") == "NewYork2"


@given(st.text(alphabet=st.characters(exclude_characters="`'\x00", codec="utf-8"), max_size=80), st.data())
@settings(max_examples=150, deadline=None)
def test_a_stated_value_is_found_after_any_text_and_through_case_and_invisible_characters(text, data):
    value = data.draw(st.sampled_from(["Rome", "2024-01-05", "14:30", "42"]))
    shown = data.draw(st.sampled_from([value, value.upper(), "\u200b".join(value), "\u00ad".join(value)]))
    assert find_reference_leak(f"{text}. It is '{shown}'.", SHORT)


@given(st.text(max_size=200) | st.text("0123456789abcdef one-hundred.,:/`'[]", max_size=200))
@settings(max_examples=200, deadline=None)
def test_no_text_breaks_the_guard_and_the_answer_is_the_same_twice(text):
    assert find_reference_leak(text, SHORT) == find_reference_leak(text, SHORT)


@pytest.mark.parametrize("value", ["nan", "inf", "1e999", 1e300, -0.0, None, "`", "\x00", "-x-", []])
def test_no_value_breaks_the_guard(value):
    find_reference_leak("use something else", [ToolCall("f", {"a": value})], [ToolCall("f", {"a": [value, 1]})])


MARKUP = (
    "**",
    "*a",
    "_a ",
    "__a ",
    "<a>",
    "<a b",
    "<",
    "</a>",
    '\\\\"',
    "\\\\n",
    "~~a",
    "> ",
    "\\n> ",
    "3 != ",
    "a vs ",
    "&lt;",
    "是 ",
    "<b>a",
)


def test_hostile_texts_of_full_length_take_no_long_time():
    parts = ("two ", "ab", "1 ", "1 000 ", "1,,", "0", "`", "month ", "'", " ", "aa ", "one hundred and ", "a at ")
    tools = [{"name": "f", "parameters": {"properties": {"a": {"enum": [".", "-", ",", "a", "aa"]}}}}, {"name": "g"}]
    for part in (*parts, "thousand ", "-", ".", ",", "a,", "jan ", "5 jan ", "14:", "`a.", "[0]", *MARKUP):
        text = f"{(part * 2000)[:1999]}x"
        began = time.perf_counter()
        find_reference_leak(text, SHORT, [ToolCall("go", {"to": text, "n": text})], tools)
        assert time.perf_counter() - began < 0.15, part  # 25 ms at most when measured on a free machine


LOCKED = "plan_2.txt is locked; call unlock_file first"
UNLOCK = (ToolCall("unlock_file", {"name": "plan_2.txt"}),)
MOVE = ToolCall("move_file", {"name": "plan"})


def failure_at(content, where, reference=UNLOCK):
    """A failure whose dialogue has a tool result in its last turn, in its history, or in the prompt of a step task."""
    result = read_result(MOVE, content) if isinstance(content, str) else None
    turn = Turn("", calls=(MOVE,), results=(result,) if where == "turn" and result else ())
    prompt = ({"role": "user", "content": "move it"},)
    prompt += ({"role": "tool", "name": "move_file", "content": content},) if where == "prompt" else ()
    task = Task("t", prompt, reference=reference, history=(result,) if where == "history" and result else ())
    return Failure(task, (turn,), ErrorKind.WRONG_CALL)


RESULTS = (
    str({"error": LOCKED}),
    json.dumps({"error": LOCKED + "."}),
    json.dumps({"error": {"code": 404, "message": LOCKED}}),
    str({"error": {"code": 404, "message": LOCKED}}),
    json.dumps({"error": True, "message": LOCKED}),
    json.dumps({"status": "refused", "hint": LOCKED}),
    json.dumps({"isError": True, "content": [{"type": "text", "text": LOCKED}]}),
    json.dumps([{"type": "text", "text": json.dumps({"error": LOCKED})}]),
    f"Error: {LOCKED}",
    LOCKED,
)


@pytest.mark.parametrize("where", ["turn", "history", "prompt"])
@pytest.mark.parametrize("content", RESULTS)
@pytest.mark.parametrize(
    "form",
    [
        "error: {}",
        "{}.",
        "ValueError: {}",
        'The tool said: "{}"',
        "The tool said '{}', so read it.",
        "{} Please try again.",
        '{{"error": "{}"}}',
        "{{'error': '{}'}}",
        '{{"error": {{"message": "{}"}}}}',
        "`name` is not right; {}!",
    ],
)
def test_of_a_text_that_quotes_the_environment_only_the_rest_is_judged(content, form, where):
    failure = failure_at(content, where)
    text = form.format(LOCKED)
    assert find_leak(text, failure, from_environment=False) is not None
    assert find_leak(text, failure) is None
    assert find_leak(f"{text} So use unlock_file", failure) == "the name of tool 'unlock_file'"
    assert find_leak(text, failure_at("ok", where)) is not None


@pytest.mark.parametrize("content", [RESULTS[0], RESULTS[2], RESULTS[5]])
def test_a_source_may_quote_the_environment_and_this_is_counted(content):
    failure = failure_at(content, "turn")
    feedback = feedback_for(failure, [FunctionSource("mine", lambda _: f"error: {LOCKED}")])
    assert (feedback.text, feedback.exempt, feedback.leaked) == (f"error: {LOCKED}", True, False)
    feedback = feedback_for(failure, [FunctionSource("mine", lambda _: f"error: {LOCKED}, so use unlock_file")])
    assert (feedback.exempt, feedback.leaked) == (False, True)


def test_a_short_message_of_an_error_or_a_field_may_be_quoted_but_no_datum():
    for content in (json.dumps({"error": "call unlock_file first"}), json.dumps({"hint": "call unlock_file first"}),
                    json.dumps({"hint": "请先调用 unlock_file。"})):  # fmt: skip
        text = "error: " + next(iter(json.loads(content).values()))
        assert find_leak(text, failure_at(content, "prompt")) is None
    title = "Quarterly review with the whole board"
    reference = (ToolCall("book", {"title": title, "city": "New York"}),)
    rows = json.dumps({"events": [{"title": title}, {"title": "Lunch"}], "cities": ["New York", "Albany", "New York"]})
    for text in (f"`title` should be '{title}'", "use New York", "New York", "`city`: 'New York'", "New York, Albany"):
        assert find_leak(text, failure_at(rows, "prompt", reference)) is not None
    lone = json.dumps({"city": "New York", "title": title})
    for text in (f"`title` should be '{title}'", "use New York", "New York"):
        assert find_leak(text, failure_at(lone, "turn", reference)) is not None


def test_a_quoted_message_may_be_cut_and_a_prompt_may_hold_it_in_blocks():
    long = f"{LOCKED}\n" + "at line 1 of the tool\n" * 200
    assert find_leak(f"error: {long}"[:2000], failure_at(json.dumps({"error": long}), "prompt")) is None
    assert find_leak(f"unlock_file: {long}"[:2000], failure_at(json.dumps({"error": long}), "prompt")) is not None
    blocks = [{"type": "text", "text": LOCKED}]
    assert find_leak(f"error: {LOCKED}", failure_at(blocks, "prompt")) is None
    plain = replace(failure_at(blocks, "prompt"), task=Task("t", "move it", reference=UNLOCK))
    assert find_leak(f"error: {LOCKED}", plain) is not None


def test_a_result_with_very_many_texts_takes_no_long_time():
    rows = json.dumps([{"name": f"the {n}th of many names", "note": f"note {n} of it"} for n in range(5_000)])
    began = time.perf_counter()
    find_leak("error: `name` is not right, note 7 of it", failure_at(rows, "turn"))
    assert time.perf_counter() - began < 2
