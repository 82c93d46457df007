"""What gives the answer away and what does not."""

import pytest

from fission_grpo.core.types import ToolCall
from fission_grpo.feedback.leak_guard import leaks

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


@pytest.mark.parametrize(
    ("feedback", "what"),
    [
        ("`city` should be New York", "the value of `city`"),
        ("`city` should be “new   YORK”", "the value of `city`"),
        ("it is new_york", "the value of `city`"),
        ("use 3", "the value of `days`"),
        ("use 3.0.", "the value of `days`"),
        ("days=3", "the value of `days`"),
        ("for '3' days", "the value of `days`"),
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
    ],
)
def test_a_value_in_any_dress_is_a_leak(feedback, what):
    assert leaks(feedback, REFERENCE, FAILED, TOOLS) == what


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
    ],
)
def test_names_types_and_complete_lists_are_no_leak(feedback):
    assert leaks(feedback, REFERENCE, FAILED, TOOLS) is None


def test_what_the_failed_call_wrote_for_the_parameter_may_be_quoted():
    failed = [ToolCall("get_weather", {"days": "3", "city": "New York City"})]
    assert leaks("`days` must be an integer, got '3'", REFERENCE, failed, TOOLS) is None
    assert leaks("`city` is unknown: 'New York City'", REFERENCE, failed, TOOLS) is None
    assert leaks("`city` is New York, not 'New York City'", REFERENCE, failed, TOOLS) == "the value of `city`"


def test_what_the_failed_call_wrote_hides_no_longer_value_that_holds_it():
    reference, failed = [ToolCall("f", {"title": "Disk is full", "n": 15})], [ToolCall("f", {"title": "disk", "n": 1})]
    assert leaks("the title is 'Disk is full'", reference, failed) == "the value of `title`"
    assert leaks("try 1 5", reference, failed) == "the value of `n`"
    assert leaks("`title` is not right, got 'disk'; `n` is not right, got 1", reference, failed) is None


def test_what_the_failed_call_wrote_for_another_parameter_may_not():
    reference = [ToolCall("move", {"source": "a.txt", "target": "b.txt"})]
    swapped = [ToolCall("move", {"source": "b.txt", "target": "c.txt"})]
    assert leaks("`source` is not right, got 'b.txt'", reference, swapped) == "the value of `target`"


def test_the_tools_name_is_a_leak_unless_called_or_listed_with_all_others():
    other = [ToolCall("get_time")]
    assert leaks("use get_weather", REFERENCE, other, TOOLS) == "the name of tool 'get_weather'"
    assert leaks("use `Get Weather`", REFERENCE, other, TOOLS) == "the name of tool 'get_weather'"
    assert leaks("use get_weather", REFERENCE, FAILED, TOOLS) is None
    assert leaks("there are get_time and get_weather", REFERENCE, other, TOOLS) is None
    assert leaks("there are:\n- get_time\n- get_weather", REFERENCE, other, TOOLS) is None


def test_nested_values_are_walked_and_their_keys_are_names():
    reference = [ToolCall("f", {"filter": {"any": [{"owner": "zoe"}, 7]}})]
    assert leaks("ask zoe", reference) == "the value of `filter`"
    assert leaks("seven is 7", reference) == "the value of `filter`"
    assert leaks("`filter` needs any owner", reference) is None


def test_a_good_part_of_a_long_value_is_a_leak():
    reference = [ToolCall("send", {"text": "Meeting moved to Thursday at noon in the big room"})]
    assert leaks("say: moved to THURSDAY, at noon in the", reference) == "the value of `text`"
    assert leaks("say something of a meeting at noon", reference) is None


def test_a_long_value_that_is_nearly_right_may_be_quoted_back():
    reference = [ToolCall("open", {"path": "/home/user/projects/alpha/report_final.txt"})]
    failed = [ToolCall("open", {"path": "/home/user/projects/alpha/report_draft.txt"})]
    text = "`path` is not right, got '/home/user/projects/alpha/report_draft.txt'"
    assert leaks(text, reference, failed) is None
    assert leaks(text + "; it is /home/user/projects/alpha/report_final.txt", reference, failed) is not None


def test_common_words_are_values_only_in_quotes():
    reference = [ToolCall("f", {"to": "you", "flag": "", "mark": "?"})]
    assert leaks("error: you made a mistake?", reference) is None
    assert leaks("`to` must be 'you'", reference) == "the value of `to`"
    assert leaks("`flag` must be ''", reference) == "the value of `flag`"


def test_values_in_scripts_without_spaces_are_found():
    assert leaks("请用东京作为城市", [ToolCall("f", {"city": "东京"})]) == "the value of `city`"


def test_with_no_reference_there_is_nothing_to_leak():
    assert leaks("use 3", None) is None
    assert leaks("use 3", ()) is None


def test_an_enum_with_an_empty_option_hides_nothing():
    tools = [{"name": "f", "parameters": {"type": "object", "properties": {"a": {"enum": ["", "x"]}}}}]
    assert leaks("use x", [ToolCall("f", {"a": "x"})], (), tools) == "the value of `a`"


def test_quoting_the_failed_calls_own_wrong_tool_name_is_no_leak_however_near_it_is():
    wanted, wrote = (ToolCall("get_ticket"),), (ToolCall("get-ticket"),)
    assert leaks("error: unknown tool 'get-ticket'", wanted, wrote) is None
    assert (
        leaks("error: unknown tool 'get-ticket'; it is get_ticket", wanted, wrote) == "the name of tool 'get_ticket'"
    )
    assert leaks("error: no tool 'get'; get ticket?", wanted, (ToolCall("get"),)) == "the name of tool 'get_ticket'"
