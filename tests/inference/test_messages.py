"""Replies of chat endpoints as servers really write them: blank arguments, leftovers in the content, streams."""

import json

import pytest
from endpoint_support import ASK, TOOL, counts_of, one_reply, policy_of
from openai_server import OpenAIServer, calls

pytest.importorskip("openai", reason="needs the openai package (pip install 'fission-grpo[endpoint]')")

from fission_grpo.core.chat import parse
from fission_grpo.core.types import ToolCall, ToolResult
from fission_grpo.inference.base import Request
from fission_grpo.inference.endpoint import EndpointError
from fission_grpo.inference.messages import UnreadableResponse, assistant_message, read_completion, result_messages

CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = {"name": "weather", "description": "", "parameters": CITY}
TEXT = '<tool_call>\n{"name": "add", "arguments": {}}\n</tool_call>'


def reply_of(message, tools=(), finish_reason="stop"):
    body = {"choices": [{"message": message, "finish_reason": finish_reason}]}
    return read_completion(json.dumps(body).encode(), "", *([tools] if tools else []))


def called(**function):
    return {"role": "assistant", "content": None, "tool_calls": [{"id": "a", "function": function}]}


@pytest.fixture
def server():
    with OpenAIServer() as running:
        yield running


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"arguments": None},
        {"arguments": ""},
        {"arguments": " "},
        {"arguments": "\n"},
        {"arguments": "null"},
        {"arguments": '""'},
        {"arguments": '"null"'},
    ],
)
@pytest.mark.parametrize(
    "tools",
    [
        (TOOL,),
        ({"type": "function", "function": TOOL},),
        ({"name": "add"},),
        ({"name": "add", "parameters": {"type": "object", "properties": {"x": {}}}},),
    ],
)
def test_missing_arguments_of_a_tool_that_needs_none_are_an_empty_object(arguments, tools):
    reply = reply_of(called(name="add", **arguments), tools)
    read = parse(reply.text)
    assert (read.calls, read.error) == ((ToolCall("add", {}),), None)
    assert reply.tool_calls[0]["function"]["arguments"] in ("{}", {})


@pytest.mark.parametrize("arguments", [{}, *({"arguments": one} for one in (None, "", " ", '""'))])
def test_missing_arguments_of_a_tool_that_needs_some_are_the_policys_error(arguments):
    assert parse(reply_of(called(name="weather", **arguments), (TOOL, WEATHER)).text).error is not None


def test_a_call_with_blank_arguments_goes_back_structured(server):
    server.answer = lambda body: called(name="add", arguments="")
    reply, _ = one_reply(server)
    results = [ToolResult(ToolCall("add"), "1")]
    one_reply(server, Request([*ASK, assistant_message(reply), *result_messages(reply, results)], [TOOL]))
    sent = server.asked[1]["messages"][1]
    assert sent["tool_calls"][0]["function"] == {"name": "add", "arguments": "{}"}
    assert server.asked[1]["messages"][2] == {"role": "tool", "tool_call_id": "a", "content": "1"}


@pytest.mark.parametrize(
    "content",
    [
        TEXT,
        f"I add. {TEXT}",
        TEXT.replace("add", "other"),
        "I add.</tool_call>",
        "<tool_call>",
        '<tool_call>\n{"name": "add", "argu',
        "<think>I should add",
        f"<think>I should write {TEXT}",
        "one</think>two</think>",
        [{"type": "text", "text": "</tool_call>"}],
        [{"type": "thinking", "thinking": [{"type": "text", "text": "Hm."}]}],
    ],
)
def test_the_structured_call_is_the_only_one_and_readable(content):
    reply = reply_of({"content": content, "tool_calls": [{"id": "a", "function": {"name": "add", "arguments": "{}"}}]})
    read = parse(reply.text)
    assert (read.calls, read.error, len(reply.tool_calls)) == ((ToolCall("add", {}),), None, 1)


@pytest.mark.parametrize("content", ["I add. </tool_call>", "<think>I should", None])
def test_a_call_cut_by_the_length_limit_is_truncated_whatever_stands_beside_it(content):
    message = calls(("add", '{"step": 1}'), ("add", '{"step')) | {"content": content}
    reply = reply_of(message, finish_reason="length")
    read = parse(reply.text, truncated=True)
    assert (reply.truncated, reply.tool_calls, read.calls, read.error) == (
        True,
        (),
        (ToolCall("add", {"step": 1}),),
        None,
    )


@pytest.mark.parametrize(
    "message",
    [
        {"content": None, "function_call": {"name": "add", "arguments": "{}"}},
        {"content": None, "tool_calls": None, "function_call": {"name": "add", "arguments": "{}"}},
        {"content": None, "tool_calls": json.dumps([{"id": "a", "function": {"name": "add", "arguments": "{}"}}])},
        {"content": [{"type": "tool_use", "id": "a", "name": "add", "input": {}}]},
    ],
)
def test_calls_in_other_forms_are_read(message):
    reply = reply_of(message)
    assert (parse(reply.text).calls, len(reply.tool_calls)) == ((ToolCall("add", {}),), 1)


def test_a_block_of_an_unknown_type_is_a_fault_that_names_it():
    with pytest.raises(UnreadableResponse, match="'made_up'"):
        reply_of({"content": [{"type": "made_up"}]})


def streamed(*chunks, done=True):
    parts = [f"data: {json.dumps(chunk)}\n\n" for chunk in chunks]
    return "".join([": hello\n\n", *parts, "data: [DONE]\n\n" if done else ""]).encode()


def delta(finish_reason=None, **fields):
    return {"choices": [{"index": 0, "delta": fields, "finish_reason": finish_reason}]}


USAGE = {"choices": [], "usage": {"prompt_tokens": 11, "completion_tokens": 3}}


def part(index=0, **function):
    return {"index": index, "function": function}


def test_the_chunks_of_a_stream_are_one_reply():
    chunks = [
        delta(role="assistant", content=""),
        delta(content="It \u2028"),
        delta(content="rains."),
        delta("stop"),
        USAGE,
    ]
    reply = read_completion(streamed(*chunks), "text/event-stream")
    assert (reply.text, reply.tokens, reply.prompt_tokens, reply.truncated) == ("It \u2028rains.", 3, 11, False)
    assert read_completion(streamed(*chunks)[9:]).text == reply.text
    assert read_completion(streamed(delta("length", content="It ra")), "text/event-stream").truncated


def test_the_parts_of_streamed_calls_are_put_together():
    first = [{"id": "a", "type": "function"} | part(0, name="weather", arguments="")]
    second = [{"id": "b", "type": "function"} | part(1, name="weather", arguments='{"city": "Rome"}')]
    chunks = [delta(tool_calls=first), delta(tool_calls=[part(0, arguments='{"city"')])]
    chunks += [delta(tool_calls=[part(0, arguments=': "Oslo"}')]), delta(tool_calls=second), delta("tool_calls")]
    reply = read_completion(streamed(*chunks, done=False), "text/event-stream", [WEATHER])
    assert parse(reply.text).calls == (ToolCall("weather", {"city": "Oslo"}), ToolCall("weather", {"city": "Rome"}))
    assert [call["id"] for call in reply.tool_calls] == ["a", "b"]


def named(call_id, arguments, index=0, name="weather"):
    entry = {"id": call_id, "index": index, "function": {"name": name, "arguments": arguments}}
    return {key: value for key, value in entry.items() if value != "missing"}


OSLO, ROME = '{"city": "Oslo"}', '{"city": "Rome"}'


@pytest.mark.parametrize(
    ("chunks", "cities"),
    [
        ([[named("a", OSLO)], [named("b", ROME)]], ["Oslo", "Rome"]),
        ([[named("a", "")], [part(0, arguments=OSLO)], [named("b", "")], [part(0, arguments=ROME)]], ["Oslo", "Rome"]),
        ([[named("a", OSLO, None), named("b", ROME, None)]], ["Oslo", "Rome"]),
        ([[named("a", OSLO, "missing")], [named("b", ROME, "missing")]], ["Oslo", "Rome"]),
        ([[named(None, OSLO, None)], [named(None, ROME, None)]], ["Oslo", "Rome"]),
        ([[named(None, OSLO)], [named(None, ROME)]], ["Oslo", "Rome"]),
        ([[named(None, json.loads(OSLO))], [named(None, json.loads(ROME))]], ["Oslo", "Rome"]),
        ([[named(None, OSLO)], [named(None, "")]], ["Oslo"]),
        ([[named(None, OSLO[:5])], [named(None, OSLO[5:])]], ["Oslo"]),
        ([[named("a", OSLO[:5], None)], [part(None, arguments=OSLO[5:])]], ["Oslo"]),
        ([[named("a", OSLO[:5], None)], [named("a", OSLO[5:], None)]], ["Oslo"]),
        ([[named("a", "")], [named("a", OSLO[:5])], [named("a", OSLO[5:])]], ["Oslo"]),
        ([[named("a", OSLO[:5])], [named("made up", OSLO[5:], name=None)]], ["Oslo"]),
        ([[named("a", OSLO[:5])], [named("", OSLO[5:])]], ["Oslo"]),
        ([[named("a", OSLO[:5], name="wea")], [named(None, OSLO[5:], name="ther")]], ["Oslo"]),
    ],
)
def test_streamed_calls_are_told_apart_with_or_without_good_indices(chunks, cities):
    body = streamed(*(delta(tool_calls=parts) for parts in chunks), delta("tool_calls"))
    reply = read_completion(body, "text/event-stream", [WEATHER])
    assert parse(reply.text).calls == tuple(ToolCall("weather", {"city": city}) for city in cities)


@pytest.mark.parametrize(
    ("chunks", "content"),
    [
        ([delta(content=[{"type": "text", "text": "He"}]), delta(content=[{"type": "text", "text": "llo"}])], "Hello"),
        ([delta(content=[{"type": "thinking", "thinking": "Hm."}]), delta(content="Hello")], "Hello"),
        ([delta(content="Hel"), delta(content="lo"), {"choices": [{"message": {"content": "Hello"}}]}], "Hello"),
        (
            [delta(content="Hello"), {"choices": [{"delta": {"content": ""}, "message": {"content": "Hello"}}]}],
            "Hello",
        ),
        ([delta(content="Hello"), {"choices": [{"message": {"content": ""}}]}], "Hello"),
        ([{"choices": [{"message": {"content": one}}]} for one in ("Hel", "lo")], "Hello"),
        ([delta(content="Hello") | {"error": None}], "Hello"),
        ([delta(content="Hello", function_call={"name": "", "arguments": ""})], "Hello"),
    ],
)
def test_streamed_text_is_read_in_every_form(chunks, content):
    assert read_completion(streamed(*chunks, delta("stop")), "text/event-stream").text == content


def test_the_old_form_of_a_call_is_read_from_a_stream():
    parts = [{"name": "weather", "arguments": ""}, {"arguments": OSLO[:5]}, {"name": "weather", "arguments": OSLO[5:]}]
    body = streamed(*(delta(function_call=one) for one in parts), delta("function_call"))
    assert parse(read_completion(body).text).calls == (ToolCall("weather", {"city": "Oslo"}),)


def test_a_whole_message_at_the_end_replaces_streamed_calls():
    whole = {
        "choices": [{"message": {"content": "", "tool_calls": [named("a", OSLO)]}, "finish_reason": "tool_calls"}]
    }
    body = streamed(delta(tool_calls=[named("a", OSLO)]), whole)
    assert parse(read_completion(body).text).calls == (ToolCall("weather", {"city": "Oslo"}),)


def test_a_streamed_block_that_is_no_text_is_a_fault_that_names_it():
    with pytest.raises(UnreadableResponse, match="'made_up'"):
        read_completion(streamed(delta("stop", content=[{"type": "made_up"}])))


@pytest.mark.parametrize(
    "fields",
    [
        {"function_call": {"name": "", "arguments": ""}},
        {"function_call": {"name": "", "arguments": "{}"}},
        {"function_call": {"name": None, "arguments": ""}},
        {"function_call": {"name": ""}},
        {"tool_calls": [{"id": "", "type": "function", "function": {"name": "", "arguments": ""}}]},
        {"tool_calls": [], "function_call": {"name": "", "arguments": None}},
    ],
)
def test_a_blank_call_beside_content_is_none(fields):
    reply = reply_of({"content": "Hello", **fields})
    assert (reply.text, reply.tool_calls) == ("Hello", ())


@pytest.mark.parametrize("reason", ["length", "max_tokens", "model_length", "MAX_TOKENS"])
def test_every_name_of_the_length_limit_is_truncation(reason):
    reply = reply_of(called(name="weather", arguments='{"city": "Os'), (WEATHER,), finish_reason=reason)
    assert (reply.truncated, parse(reply.text, truncated=True).error) == (True, None)


def test_a_streamed_raw_completion_is_read():
    chunks = [{"choices": [{"text": "Once"}]}, {"choices": [{"text": " more", "finish_reason": "stop"}]}]
    assert read_completion(streamed(*chunks), "text/event-stream").text == "Once more"


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (streamed(delta(content="It ra"), done=False), "malformed"),
        (streamed({"error": {"message": "overloaded"}}), "no choices"),
        (b"data: {\n\n", "not JSON"),
        (b"data: 3\n\n", "malformed"),
        (b'data: {"choices": 3}\n\n', "malformed"),
        (b'data: {"choices": [3]}\n\n', "malformed"),
        (b'data: {"choices": [{"delta": {"tool_calls": [3]}}]}\n\n', "malformed"),
        (b"data: \xff\n\n", "not JSON"),
        (b"", "malformed"),
    ],
)
def test_a_stream_that_is_broken_or_cut_off_is_a_fault(body, reason):
    with pytest.raises(UnreadableResponse) as caught:
        read_completion(body, "text/event-stream")
    assert caught.value.reason == reason


def test_a_server_that_streams_unasked_is_read(server):
    server.answer = lambda body: streamed(delta(content="Done."), delta("stop"), USAGE)
    reply, counts = one_reply(server)
    assert (reply.text, reply.lost, counts.completion_tokens, counts.retries) == ("Done.", None, 3, {})


class StreamingOnly(OpenAIServer):
    """Refuses requests that do not ask for a stream."""

    refusal = "This model only support stream mode, please enable the stream parameter."


@pytest.fixture
def streaming_only(server, monkeypatch):
    import openai_server

    def answer(body):
        return streamed(delta(content="Done."), delta("stop"), USAGE) if body.get("stream") else 400

    server.answer = answer
    send = openai_server._Handler._send

    def refuse(handler, status, body, **options):
        body = json.dumps({"error": {"message": StreamingOnly.refusal}}).encode() if status == 400 else body
        send(handler, status, body, **options)

    monkeypatch.setattr(openai_server._Handler, "_send", refuse)
    return server


@pytest.mark.parametrize("raw", [False, True])
def test_a_server_that_only_streams_is_asked_for_a_stream_from_then_on(streaming_only, raw):
    request = Request(ASK, prompt="Once" if raw else None)
    with policy_of(streaming_only, raw=raw) as policy:
        policy.check()
        replies = [policy.submit(request).result(timeout=20) for _ in range(2)]
        assert counts_of(policy).requests == 2
    assert [reply.text for reply in replies] == ["Done."] * 2
    assert [body.get("stream", False) for body in streaming_only.asked] == [False, True, True, True]
    assert streaming_only.asked[1]["stream_options"] == {"include_usage": True}


@pytest.mark.parametrize(
    "text",
    [
        "This model only support stream mode, please enable the stream parameter to access the model.",
        '{"detail":"Stream must be set to true"}',
        "'stream' must be true",
        "Only streaming is supported",
        "streaming is required for this model",
        "this endpoint only supports streaming",
    ],
)
def test_refusals_that_want_a_stream_are_recognised(text):
    from fission_grpo.inference.messages import wants_stream

    assert wants_stream(text)


@pytest.mark.parametrize(
    "text", ["stream must be false", "streaming is not supported", "upstream must be set up", "bad request"]
)
def test_other_refusals_are_not(text):
    from fission_grpo.inference.messages import wants_stream

    assert not wants_stream(text)


def test_a_refusal_of_the_stream_too_is_an_error_in_one_line(server):
    server.answer = lambda body: 400
    with policy_of(server) as policy, pytest.raises(EndpointError, match="HTTP 400"):
        policy.check()
    assert len(server.asked) == 1
