"""Policies behind an endpoint, over real sockets: what is sent, what is read, what errors say."""

import json
import logging
import threading
import time

import pytest
from endpoint_support import ASK, KEY, TOOL, counts_of, one_reply, policy_of
from openai_server import OpenAIServer, calls

pytest.importorskip("openai", reason="needs the openai package (pip install 'fission-grpo[endpoint]')")

from fission_grpo.core.chat import parse
from fission_grpo.core.types import ToolCall, ToolResult
from fission_grpo.inference.base import AsynchronousPolicy, Reply, Request
from fission_grpo.inference.endpoint import (
    CHECK_TRIES,
    EndpointError,
    EndpointOptions,
    EndpointPolicy,
)
from fission_grpo.inference.messages import assistant_message, result_messages
from fission_grpo.inference.pretrained import load_starter


@pytest.fixture
def server():
    with OpenAIServer() as running:
        yield running


def test_a_chat_reply_is_text_and_tokens_and_the_request_is_as_set(server):
    reply, counts = one_reply(server, temperature=0.5, max_tokens=7, seed=3, extra_body={"top_k": 4})
    assert reply == Reply("Done.", tokens=3)
    (body,) = server.asked
    tool = {"type": "function", "function": {key: TOOL[key] for key in ("name", "description", "parameters")}}
    settings = {"model": "small", "temperature": 0.5, "max_tokens": 7, "seed": 3, "top_k": 4}
    assert body == {"messages": ASK, "tools": [tool], **settings}
    assert server.paths == ["/v1/chat/completions"]
    assert (counts.requests, counts.prompt_tokens, counts.completion_tokens, counts.uncounted) == (1, 11, 3, 0)


def test_max_completion_tokens_stands_in_for_the_field_that_reasoning_models_refuse(server):
    with policy_of(server, extra_body={"max_completion_tokens": 9}) as policy:
        policy.check()
        policy.submit(Request(ASK)).result()
    assert all("max_tokens" not in body and body["max_completion_tokens"] == 9 for body in server.asked)


def test_structured_calls_are_read_as_hermes_text_and_sent_back_with_their_ids(server):
    server.answer = lambda body: calls(("add", '{"step": 1}'), ("add", '{"step":2}'))
    reply, _ = one_reply(server)
    read = parse(reply.text)
    assert (read.calls, read.error) == ((ToolCall("add", {"step": 1}), ToolCall("add", {"step": 2})), None)
    results = [ToolResult(call, str(number)) for number, call in enumerate(read.calls)]
    one_reply(server, Request([*ASK, assistant_message(reply), *result_messages(reply, results)], [TOOL]))
    sent = calls(("add", '{"step": 1}'), ("add", '{"step":2}'))
    answers = [{"role": "tool", "tool_call_id": f"call_{n}", "content": str(n)} for n in range(2)]
    assert server.asked[1]["messages"] == [*ASK, sent, *answers]


def test_words_beside_structured_calls_are_kept(server):
    server.answer = lambda body: calls(("add", "{}")) | {"content": "I add."}
    reply, _ = one_reply(server)
    assert reply.text == 'I add.\n<tool_call>\n{"name": "add", "arguments": {}}\n</tool_call>'


def test_arguments_that_are_no_json_stay_so_and_go_back_as_text(server):
    server.faults = ["bad arguments"]
    reply, counts = one_reply(server)
    assert "not valid JSON" in (parse(reply.text).error or "")
    assert '"arguments": {"step": }' in reply.text
    assert (counts.requests, counts.retries, counts.lost) == (1, {}, {})
    told = {"role": "tool", "name": "add", "content": "no", "tool_call_id": "call_0"}
    one_reply(server, Request([*ASK, assistant_message(reply), told], [TOOL]))
    written, answered = server.asked[1]["messages"][1:]
    assert written == {"role": "assistant", "content": reply.text}
    assert answered == {"role": "user", "content": "<tool_response>\nno\n</tool_response>"}


def test_a_call_that_the_length_limit_cut_is_truncated_and_no_error_of_form(server):
    message = calls(("add", '{"step": 1}'), ("add", '{"step'))
    server.answer = lambda body: message | {"finish_reason": "length"}
    reply, _ = one_reply(server)
    assert (reply.truncated, reply.tool_calls) == (True, ())
    assert reply.text.endswith('{"name": "add", "arguments": {"step')
    read = parse(reply.text, truncated=True)
    assert (read.calls, read.error) == ((ToolCall("add", {"step": 1}),), None)


def test_an_unknown_name_is_passed_on(server):
    server.faults = ["unknown tool"]
    reply, _ = one_reply(server)
    assert parse(reply.text).calls == (ToolCall("nothing_like_it"),)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("401", "set the right key in the environment variable OPENAI_API_KEY"),
        ("404", "no such model"),
        ("html", "/v1"),
    ],
)
def test_check_says_in_one_line_what_is_wrong_and_how_to_mend_it(server, fault, said):
    server.faults = lambda number: fault
    with policy_of(server, max_retries=7) as policy, pytest.raises(EndpointError) as error:
        policy.check()
    line = str(error.value)
    assert "\n" not in line
    assert all(part in line for part in (server.url, "'small'", said, "(it serves: small)"))
    assert len(server.asked) == (CHECK_TRIES if fault == "html" else 1)


def test_check_says_that_nobody_answers_and_counts_nothing():
    with OpenAIServer() as gone:
        with policy_of(gone) as policy:
            policy.check()
            assert counts_of(policy).requests == 0
        assert gone.asked[0]["max_tokens"] == 16
    with policy_of(gone) as policy, pytest.raises(EndpointError, match="nobody answers there"):
        policy.check()


@pytest.mark.parametrize("url", ["localhost:8000/v1", "http://localhost:port/v1", "http://[::1/v1", "ftp://x/v1", "x"])
def test_a_url_that_cannot_be_one_is_told_at_once(url):
    with pytest.raises(EndpointError, match="write it like http://localhost:8000/v1"):
        EndpointPolicy("small", url)


def test_without_a_url_a_key_is_needed(monkeypatch):
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(EndpointError, match="OPENAI_API_KEY is not set"):
        EndpointPolicy("small")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-ключ")
    with pytest.raises(EndpointError, match="characters no key has") as error:
        EndpointPolicy("small", "http://127.0.0.1:1/v1")
    assert "ключ" not in str(error.value)


@pytest.mark.parametrize("key", [KEY, "plain7word"])
def test_the_key_is_sent_and_stands_nowhere_else(server, monkeypatch, caplog, key):
    monkeypatch.setenv("MY_KEY", key)
    caplog.set_level(logging.DEBUG)
    server.faults = ["tell key", None, "tell key"]
    seen = []
    url = server.url.replace("127.0.0.1", "user:password@127.0.0.1") + "?token=hidden"
    with EndpointPolicy("small", url, EndpointOptions(key_variable="MY_KEY", max_retries=0)) as policy:
        with pytest.raises(EndpointError) as error:
            policy.check()
        seen += [repr(error.value), repr(policy), policy.url]
    with EndpointPolicy("small", server.url, EndpointOptions(key_variable="MY_KEY", max_retries=0)) as policy:
        replies = [policy.submit(Request(ASK)).result() for _ in range(2)]
        server.answer = lambda body: json.dumps({"choices": [], "padding": "x" * 150, "key": key * 9}).encode()
        replies.append(policy.submit(Request(ASK)).result())
        seen += [repr(replies), repr(policy.options), str(policy.counts)]
    assert server.headers[1]["authorization"] == f"Bearer {key}"
    assert [reply.lost is None for reply in replies] == [True, False, False]
    assert "Incorrect API key provided: Bearer ***" in str(replies[1].lost)
    assert key[:8] not in "\n".join([*seen, caplog.text])
    assert not any(secret in "\n".join(seen) for secret in ("password", "hidden"))


def test_no_more_requests_are_under_way_than_allowed(server):
    server.faults = lambda number: "slow" if number < 8 else None
    with policy_of(server, concurrency=4) as policy:
        replies = [future.result() for future in [policy.submit(Request(ASK)) for _ in range(40)]]
    assert all(reply.text == "Done." for reply in replies)
    assert server.most == 4


def test_raw_completions_continue_the_prompt_or_what_the_tokenizer_renders(server):
    reply, _ = one_reply(server, Request(ASK, prompt="Once \ud83d"), raw=True)
    assert (reply.text, server.paths, server.asked[0]["prompt"]) == ("Done.", ["/v1/completions"], "Once ?")
    assert not {"messages", "tools"} & set(server.asked[0])
    tokenizer = load_starter()[1]
    dialogue = [*ASK, {"role": "assistant", "content": " odd "}, {"role": "user", "content": "More."}]
    with policy_of(server, tokenizer, raw=True) as policy:
        policy.check()
        assert policy.submit(Request(dialogue)).result().text == "Done."
    assert "<|im_start|>assistant\n odd <|im_end|>" in server.asked[2]["prompt"]
    assert server.asked[2]["prompt"].endswith("<|im_start|>assistant\n")


def test_requests_that_cannot_be_sent_are_told_apart_from_faults(server):
    with policy_of(server, raw=True) as policy, pytest.raises(ValueError, match="need the model's tokenizer"):
        policy.submit(Request(ASK))
    with policy_of(server) as policy, pytest.raises(ValueError, match="only raw completions take"):
        policy.submit(Request(ASK, prompt="Once"))
    assert server.asked == []


def test_close_gives_up_what_is_under_way_and_may_be_called_again(server):
    server.faults = lambda number: "hang"
    before = threading.active_count()
    policy = policy_of(server)
    assert isinstance(policy, AsynchronousPolicy)
    future = policy.submit(Request(ASK))
    while not server.asked:
        time.sleep(0.01)
    began = time.monotonic()
    policy.close()
    policy.close()
    assert time.monotonic() - began < 1.0
    assert future.cancelled()
    assert "endpoint" not in [thread.name for thread in threading.enumerate()][before:]


def test_a_seed_of_the_request_goes_before_that_of_the_options(server):
    one_reply(server, Request(ASK, seed=9), seed=3)
    one_reply(server, Request(ASK, seed=9))
    one_reply(server, Request(ASK), seed=3)
    assert [body.get("seed") for body in server.asked] == [9, 9, 3]


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (calls(("get_weather", '{"city": "Oslo"}')), "tools: yes"),
        ('```json\n{"name": "get_weather", "arguments": {"city": "Oslo"}}\n```', "tools: as text ("),
        ('<tool_call>{"name": "get_weather", "arguments": {}}</tool_call>', "tools: as text in Hermes format"),
        ("It is raining.", "tools: no call of one that was to be called"),
    ],
)
def test_a_probe_says_how_a_server_answers_a_request_with_a_tool(server, answer, said):
    server.answer = lambda body: answer
    with policy_of(server) as policy:
        found = policy.probe_tools()
        assert counts_of(policy).requests == 0
    assert said in found
    assert ("--enable-auto-tool-choice" in found) == (said != "tools: yes")
    assert [tool["function"]["name"] for tool in server.asked[0]["tools"]] == ["get_weather"]


REFUSALS = {
    400: b'{"error": {"message": "\\"auto\\" tool choice requires --enable-auto-tool-choice and --tool-call-parser"}}',
    500: b'{"error": {"code": 500, "message": "tools param requires --jinja flag", "type": "server_error"}}',
}


@pytest.mark.parametrize("status", [400, 500])
def test_a_server_without_tools_is_told_apart_with_its_flags_and_not_asked_again(server, status):
    server.refusals = dict.fromkeys(range(9), (status, REFUSALS[status]))
    reply, counts = one_reply(server, max_retries=5)
    assert counts.requests == 1
    assert f"HTTP {status} after 1 try" in (reply.lost or "")
    assert "llama.cpp with --jinja" in (reply.lost or "")
    with policy_of(server) as policy:
        assert f"tools: no (HTTP {status}" in policy.probe_tools()


def test_a_request_that_is_too_slow_is_tried_twice_and_the_option_named(server):
    server.faults = lambda number: "hang"
    reply, counts = one_reply(server, timeout=0.2, max_retries=5)
    assert (counts.requests, counts.retries, counts.lost) == (2, {"timeout": 1}, {"timeout": 1})
    assert (reply.lost or "").endswith("raise --timeout (now 0.2)")
