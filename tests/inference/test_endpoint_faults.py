"""Endpoint policies over real sockets: what every fault comes to."""

import time

import pytest
from endpoint_support import ASK, counts_of, one_reply, policy_of
from openai_server import OpenAIServer

pytest.importorskip("openai", reason="needs the openai package (pip install 'fission-grpo[endpoint]')")

from fission_grpo.core.chat import parse
from fission_grpo.inference.base import Reply, Request
from fission_grpo.inference.messages import MAX_CHARACTERS


@pytest.fixture
def server():
    with OpenAIServer() as running:
        yield running


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("429", "HTTP 429"),
        ("500", "HTTP 500"),
        ("503", "HTTP 503"),
        ("close", "connection"),
        ("cut", "connection"),
        ("hang", "timeout"),
        ("drip", "timeout"),
        ("truncated", "not JSON"),
        ("html", "not JSON"),
        ("not utf-8", "not JSON"),
        ("no choices", "no choices"),
    ],
)
def test_what_may_pass_is_tried_again_and_lost_in_the_end_each_counted_by_its_reason(server, fault, reason):
    server.faults = [fault]
    reply, counts = one_reply(server, timeout=0.2)
    assert (reply.text, reply.lost) == ("Done.", None)
    assert (counts.requests, counts.retries, counts.lost) == (2, {reason: 1}, {})
    server.faults = lambda number: fault
    reply, counts = one_reply(server, timeout=0.2, max_retries=1)
    assert (reply.text, counts.requests, counts.retries, counts.lost) == ("", 2, {reason: 1}, {reason: 1})
    assert (reply.lost or "").startswith(f"{reason} after 2 tries")


def test_a_refusal_is_not_tried_again(server):
    server.faults = ["403"]
    reply, counts = one_reply(server)
    assert (reply.lost or "").startswith("HTTP 403 after 1 try")
    assert (counts.requests, counts.retries, counts.lost) == (1, {}, {"HTTP 403": 1})


def test_retry_after_is_waited_for_unless_patience_ends_before(server):
    server.faults = ["429 later"]
    reply, _ = one_reply(server)
    assert reply.lost is None
    assert 1.0 <= server.times[1] - server.times[0] < 2.0
    server.faults = lambda number: "429 later"
    began = time.monotonic()
    reply, counts = one_reply(server, patience=0.5)
    assert time.monotonic() - began < 0.5
    assert (counts.requests, counts.lost) == (1, {"HTTP 429": 1})


def test_null_content_is_an_empty_turn_and_a_megabyte_is_cut(server):
    server.faults = ["null", "1 MB", "surrogate"]
    reply, counts = one_reply(server)
    assert (reply.text, reply.lost, counts.empty) == ("", None, 1)
    reply, counts = one_reply(server)
    assert (reply.text, reply.truncated, counts.cut) == ("x" * MAX_CHARACTERS, True, 1)
    assert one_reply(server)[0].text == "a?b"


def test_a_prompt_too_long_for_the_context_is_an_empty_truncated_reply_as_of_a_local_model(server):
    server.faults = ["too long"]
    reply, counts = one_reply(server)
    assert reply == Reply("", truncated=True)
    assert (counts.requests, counts.too_long, counts.lost) == (1, 1, {})


@pytest.mark.parametrize(
    "answer",
    [
        "[1]",
        '{"choices": {"a": 1}}',
        '{"choices": [7]}',
        '{"choices": [{"message": []}]}',
        '{"choices": [{"message": {"content": 7}}]}',
        '{"choices": [{"message": {"tool_calls": "x"}}]}',
        '{"choices": [{"message": {"tool_calls": [7]}}]}',
        "[" * 100_000,
        '{"choices": [{"text": "x"}], "usage": ' + "9" * 5000 + "}",
    ],
)
def test_an_answer_of_any_other_form_is_lost_never_raised(server, answer):
    server.answer = lambda body: answer.encode()
    reply, counts = one_reply(server, max_retries=0)
    assert reply.lost is not None
    assert sum(counts.lost.values()) == counts.requests == 1


def test_calls_of_odd_form_are_the_policys_errors(server):
    for function in ({"name": None, "arguments": "{}"}, {"name": ["add"], "arguments": "[]"}, "add"):
        server.answer = lambda body, function=function: {"tool_calls": [{"id": "a", "function": function}]}
        reply, _ = one_reply(server)
        assert reply.lost is None
        assert parse(reply.text).error is not None


def test_two_hundred_requests_with_faults_are_all_answered_or_lost_and_the_counts_add_up(server):
    kinds = ["close", "hang", "429", "500", "html"]  # a tenth each
    server.faults = lambda number: kinds[number // 2 % 5] if number % 2 else None
    with policy_of(server, timeout=0.4, concurrency=32) as policy:
        replies = [future.result() for future in [policy.submit(Request(ASK)) for _ in range(200)]]
        counts = counts_of(policy)
    lost = [reply.lost for reply in replies if reply.lost is not None]
    retries = sum(counts.retries.values())
    assert all((reply.text == "Done.") == (reply.lost is None) for reply in replies)
    assert len(lost) == sum(counts.lost.values()) < 100
    assert counts.requests == 200 + retries >= len(server.asked)
    assert set(counts.retries) == {"connection", "timeout", "HTTP 429", "HTTP 500", "not JSON"}
    assert counts.completion_tokens == 3 * (200 - len(lost))
    faults = sum(server.faults(number) is not None for number in range(len(server.asked)))
    assert retries + len(lost) >= faults  # every fault was tried again, or ended its reply; a slow machine adds some


ODD_COUNTS = ["9" * 400, "-1", '"12"', "3.5", "NaN", "Infinity", "null", "true", "[1]", "1e400", "2000000000"]


@pytest.mark.parametrize("count", ODD_COUNTS)
@pytest.mark.parametrize("name", ["prompt_tokens", "completion_tokens"])
def test_counts_that_no_counter_can_show_are_refused_and_the_reply_is_uncounted(server, name, count):
    other = "completion_tokens" if name == "prompt_tokens" else "prompt_tokens"
    usage = f'{{"{name}": {count}, "{other}": 5}}'
    server.answer = lambda body: f'{{"choices": [{{"message": {{"content": "x"}}}}], "usage": {usage}}}'.encode()
    reply, counts = one_reply(server)
    assert (reply.text, reply.tokens, reply.prompt_tokens) == ("x", 0, None)
    assert (counts.prompt_tokens, counts.completion_tokens, counts.uncounted) == (0, 0, 1)


@pytest.mark.parametrize("usage", ["7", "[]", '"x"', "null", "{}"])
def test_usage_of_another_form_is_uncounted(server, usage):
    server.answer = lambda body: f'{{"choices": [{{"message": {{"content": "x"}}}}], "usage": {usage}}}'.encode()
    reply, counts = one_reply(server)
    assert (reply.text, reply.tokens, reply.prompt_tokens, counts.uncounted) == ("x", 0, None, 1)
