"""The reader of chat messages: the same message in the forms in which different projects write it."""

import json

import pytest

from fission_grpo.core.json_io import NotJson
from fission_grpo.core.messages import (
    MessageError,
    plain_messages,
    read_arguments,
    read_messages,
)

OSLO = {"city": "Oslo"}
TEXT = '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
FUNCTION = {"name": "weather", "arguments": json.dumps(OSLO)}


def read(*messages, **options):
    return [message for several in read_messages(list(messages), **options) for message in several]


def assistant(**fields):
    (message,) = read({"role": "assistant", **fields})
    return message


@pytest.mark.parametrize(
    "fields",
    [
        {"tool_calls": [{"id": "1", "type": "function", "function": FUNCTION}]},
        {"tool_calls": [{"function": {"name": "weather", "arguments": OSLO}}]},
        {"tool_calls": [{"function": {"name": "weather", "arguments": json.dumps(json.dumps(OSLO))}}]},
        {"tool_calls": [FUNCTION]},
        {"tool_calls": [{"function": None, **FUNCTION}]},
        {"tool_calls": [{"name": "weather", "args": OSLO, "id": "1", "type": "tool_call"}]},
        {"tool_calls": json.dumps([{"function": FUNCTION}])},
        {"function_call": FUNCTION},
        {"function_call": json.dumps(FUNCTION), "tool_calls": None},
        {"function_call": {"name": None, "arguments": None}, "tool_calls": [{"function": FUNCTION}]},
        {"tool_calls": [], "function_call": FUNCTION},
        {"tool_calls": "", "function_call": FUNCTION},
        {"content": [{"type": "tool_use", "id": "t1", "name": "weather", "input": OSLO}]},
        {"content": [{"type": "thinking", "thinking": "Hm."}, {"type": "tool_use", "name": "weather", "input": OSLO}]},
        {"content": TEXT},
        {"content": [{"type": "text", "text": TEXT}]},
    ],
)
def test_a_call_is_the_same_in_every_form(fields):
    message = assistant(**fields)
    assert [(call.name, call.arguments) for call in message.calls] == [("weather", OSLO)]
    assert (message.unread, message.text) == (None, "")


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (TEXT, ""),
        (f"I look. {TEXT}", "I look."),
        ("I look.</tool_call>", "I look."),
        ("<tool_call>", ""),
        ('<tool_call>\n{"name": "wea', '{"name": "wea'),
        ("<think>I should look", "<think>I should look\n</think>"),
        (f"<think>I should write {TEXT}", "<think>I should write\n</think>"),
        ("a</think>b</think>c", "abc"),
        ("<think>done</think>I look.", "<think>done</think>I look."),
    ],
)
def test_a_structured_call_wins_over_what_stands_in_the_text(content, text):
    message = assistant(content=content, tool_calls=[{"id": "1", "function": FUNCTION}])
    assert [call.name for call in message.calls] == ["weather"]
    assert (message.unread, message.text) == (None, text)
    (again,) = read({"role": "assistant", "content": message.written})
    assert ([call.arguments for call in again.calls], again.unread) == ([OSLO], None)


@pytest.mark.parametrize("arguments", [None, "", " ", "\n", "null", "{}", {}])
def test_missing_arguments_are_an_empty_object(arguments):
    message = assistant(tool_calls=[{"function": {"name": "now", "arguments": arguments}}])
    assert ([call.arguments for call in message.calls], message.unread) == ([{}], None)
    assert '"arguments": {}' in message.written


@pytest.mark.parametrize("text", ["{", "[]", "3", '{"a": 1} x', '{"a": NaN}', '{"a": 1, "a": 2}', '"x"', '"[]"'])
def test_arguments_that_are_no_object_are_refused(text):
    with pytest.raises(NotJson):
        read_arguments(text)


@pytest.mark.parametrize(
    ("message", "text", "is_error"),
    [
        ({"role": "tool", "content": "wet"}, "wet", False),
        ({"role": "function", "name": "weather", "content": "wet"}, "wet", False),
        ({"role": "tool", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}, "a\nb", False),
        ({"role": "tool", "content": {"rain": True}}, '{"rain": true}', False),
        ({"role": "tool", "content": [{"type": "cafe"}]}, '[{"type": "cafe"}]', False),
        ({"role": "tool", "content": [{"type": "file", "name": "a"}]}, '[{"type": "file", "name": "a"}]', False),
        (
            {"role": "tool", "content": {"type": "text", "text": "a", "line": 3}},
            '{"type": "text", "text": "a", "line": 3}',
            False,
        ),
        ({"role": "tool", "content": [{"type": "text", "text": "a", "id": None}]}, "a", False),
        ({"role": "tool", "content": [{"type": "text", "text": None}]}, "", False),
        ({"role": "tool", "content": [1, 2]}, "[1, 2]", False),
        ({"role": "tool", "content": [], "is_error": False}, "[]", False),
        ({"role": "user", "content": "<tool_response>\nwet\n</tool_response>"}, "wet", False),
        ({"role": "tool", "content": "no city", "is_error": True}, "no city", True),
        ({"role": "tool", "content": "no city", "isError": True}, "no city", True),
        ({"role": "tool", "content": "no city", "status": "error"}, "no city", True),
        ({"role": "tool", "content": "no city", "status": "success"}, "no city", False),
        ({"role": "tool", "content": "no city", "is_error": "true"}, "no city", True),
        ({"role": "tool", "content": "no city", "isError": "True"}, "no city", True),
        ({"role": "tool", "content": "no city", "is_error": "false"}, "no city", False),
        ({"role": "tool", "content": [{"type": "output_text", "text": "a"}]}, "a", False),
        ({"role": "tool", "content": [{"type": "input_text", "text": "a", "id": "1"}]}, "a", False),
        ({"role": "tool", "content": [{"type": "text", "text": "a", "is_error": None, "line": 3}]}, "a", False),
        ({"role": "tool", "content": [{"type": "refusal", "refusal": "a"}]}, "a", False),
        ({"role": "tool", "content": [{"type": "text", "words": "a"}]}, '[{"type": "text", "words": "a"}]', False),
    ],
)
def test_results_of_tools_are_read_with_their_mark_of_an_error(message, text, is_error):
    (result,) = read(message)
    assert (result.role, result.text, result.is_error) == ("tool", text, is_error)
    assert result.error == (text if is_error else None)


WET, BAD = "<tool_response>\nwet\n</tool_response>", '<tool_response>\n{"error": "no city"}\n</tool_response>'


@pytest.mark.parametrize(
    ("content", "results", "request_text"),
    [
        (WET, ["wet"], None),
        (f"{WET}\nGo on.", ["wet"], "Go on."),
        (f"{WET} Go on.", ["wet"], "Go on."),
        (f"Here it is:\n{WET}", ["wet"], "Here it is:"),
        (f"{WET}\n{BAD}\nGo on.", ["wet", '{"error": "no city"}'], "Go on."),
        (f"One: {WET}\nTwo: {WET}\nGo on.", ["wet", "wet"], "One:\nTwo:\nGo on."),
        ([{"type": "text", "text": WET}], ["wet"], None),
        ([{"type": "text", "text": WET}, {"type": "text", "text": "Go on."}], ["wet"], "Go on."),
        ("What is <tool_response>?", [], "What is <tool_response>?"),
    ],
)
def test_results_in_tags_are_split_from_the_rest_of_a_user_message(content, results, request_text):
    messages = read({"role": "user", "content": content})
    assert [one.text for one in messages if one.role == "tool"] == results
    assert [one.text for one in messages if one.role == "user"] == ([request_text] if request_text else [])


@pytest.mark.parametrize(
    ("message", "results"),
    [
        ({"role": "tool", "content": WET}, ["wet"]),
        ({"role": "function", "name": "weather", "content": [{"type": "text", "text": WET}]}, ["wet"]),
        ({"role": "tool", "content": f"{BAD}\n{WET}"}, ['{"error": "no city"}', "wet"]),
        ({"role": "user", "content": [{"type": "tool_result", "tool_use_id": "a", "content": WET}]}, ["wet"]),
        ({"role": "tool", "content": f"a page: {WET}"}, [f"a page: {WET}"]),
        ({"role": "tool", "content": "<tool_response>"}, ["<tool_response>"]),
    ],
)
def test_tags_around_a_tools_result_are_no_part_of_it(message, results):
    messages = read(message)
    assert [(one.role, one.text) for one in messages] == [("tool", text) for text in results]
    assert [one.error for one in messages] == ["no city" if "error" in text else None for text in results]


def test_blocks_of_a_user_message_become_results_and_a_request():
    results = [
        {"type": "tool_result", "tool_use_id": "b", "content": "no city", "is_error": True},
        {"type": "tool_result", "tool_use_id": "a", "content": [{"type": "text", "text": "wet"}]},
    ]
    bad, good, request = read({"role": "user", "content": [*results, {"type": "text", "text": "And Rome?"}]})
    assert (bad.role, bad.call_id, bad.error) == ("tool", "b", "no city")
    assert (good.role, good.call_id, good.text, good.error) == ("tool", "a", "wet", None)
    assert (request.role, request.text) == ("user", "And Rome?")


def test_an_error_without_text_is_one_still():
    (result,) = read({"role": "user", "content": [{"type": "tool_result", "tool_use_id": "a", "is_error": True}]})
    assert result.error == "error"


@pytest.mark.parametrize("role", ["user", "assistant", "system"])
@pytest.mark.parametrize("kind", ["server_tool_use", "web_search_tool_result", "input_json", "tool-call", ["x"]])
def test_an_unknown_block_is_refused_by_its_name(role, kind):
    with pytest.raises(MessageError) as caught:
        read({"role": role, "content": [{"type": "text", "text": "hi"}, {"type": kind, "id": "1"}]})
    assert caught.value.field == "messages[0].content[1]"
    assert (kind if isinstance(kind, str) else "x") in caught.value.what
    assert (kind if isinstance(kind, str) else "x") in caught.value.reason


@pytest.mark.parametrize(
    ("role", "kind"), [("user", "tool_use"), ("assistant", "tool_result"), ("system", "tool_use")]
)
def test_calls_and_results_in_messages_of_another_role_are_refused_by_name(role, kind):
    with pytest.raises(MessageError, match=kind):
        read({"role": role, "content": [{"type": kind, "id": "1", "name": "f", "input": {}, "content": "x"}]})


def test_an_image_of_a_result_is_named():
    block = {"type": "image", "source": {"type": "base64", "data": "x"}}
    (result,) = read({"role": "user", "content": [{"type": "tool_result", "content": [block]}]}, media=True)
    assert result.text == "[image]"


def test_images_are_refused_or_named_in_the_text():
    message = {"role": "user", "content": [{"type": "text", "text": "Look:"}, {"type": "image_url", "image_url": {}}]}
    assert read(message, media=True)[0].text == "Look:\n[image_url]"
    with pytest.raises(MessageError, match="image_url"):
        read(message)


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (3, "messages[0]"),
        ({"role": "bot", "content": ""}, "messages[0]"),
        ({"role": "user", "content": 7}, "messages[0].content"),
        ({"role": "assistant", "tool_calls": {"name": "f"}}, "messages[0].tool_calls"),
        ({"role": "assistant", "tool_calls": "[{"}, "messages[0].tool_calls"),
        ({"role": "assistant", "tool_calls": ["f"]}, "messages[0].tool_calls[0]"),
        ({"role": "assistant", "tool_calls": [{"function": {"name": 3}}]}, "messages[0].tool_calls[0].function.name"),
        ({"role": "assistant", "function_call": "f()"}, "messages[0].function_call"),
        ({"role": "assistant", "function_call": [1]}, "messages[0].function_call"),
        ({"role": "assistant", "content": "x", "weight": "no"}, "messages[0].weight"),
    ],
)
def test_what_cannot_be_read_is_named_by_message_and_field(message, field):
    with pytest.raises(MessageError) as caught:
        read(message)
    assert caught.value.field == field


def test_messages_become_those_of_chat_templates_with_names_for_results():
    calls = [{"id": "a", "function": {"name": "f", "arguments": "{}"}}, {"id": "b", "function": {"name": "g"}}]
    given = [
        {"role": "developer", "content": "Be brief."},
        {"role": "assistant", "content": None, "tool_calls": calls},
        {"role": "tool", "tool_call_id": "b", "content": "2"},
        {"role": "tool", "content": "1"},
        {"role": "assistant", "content": TEXT},
        {"role": "tool", "content": "wet"},
        {"role": "tool", "name": "own", "content": "x"},
    ]
    plain = plain_messages(read(*given))
    assert [message["role"] for message in plain] == [
        "system",
        "assistant",
        "tool",
        "tool",
        "assistant",
        "tool",
        "tool",
    ]
    assert [message.get("name") for message in plain] == [None, None, "g", "f", None, "weather", "own"]
    assert [entry["function"]["name"] for entry in plain[1]["tool_calls"]] == ["f", "g"]
    assert plain[4]["tool_calls"][0]["function"] == {"name": "weather", "arguments": OSLO}


def test_a_result_without_an_id_is_named_by_its_own_name_and_leaves_the_others():
    calls = [{"id": one, "function": {"name": one, "arguments": "{}"}} for one in "fgh"]
    results = [{"role": "tool", "name": "g", "content": "2"}, {"role": "tool", "content": "1"}]
    given = [{"role": "assistant", "tool_calls": calls}, *results, {"role": "tool", "content": "3"}]
    assert [message["name"] for message in plain_messages(read(*given))[1:]] == ["g", "f", "h"]
