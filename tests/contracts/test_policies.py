"""What every policy promises, tested on each: one reply per request, faults in the reply, nothing changed outside."""

from concurrent.futures import Future

import pytest
from endpoint_support import ASK, TOOL, policy_of
from openai_server import OpenAIServer
from scripted_policy import ScriptedPolicy

from fission_grpo.core.chat import parse
from fission_grpo.inference.base import AsynchronousPolicy, Reply, Request
from fission_grpo.inference.local import LocalPolicy
from fission_grpo.inference.messages import assistant_message
from fission_grpo.inference.pretrained import load_starter

REQUESTS = [
    Request(ASK, [TOOL]),
    Request([{"role": "user", "content": "What is 2 + 2?"}]),
    Request([*ASK, {"role": "assistant", "content": "1"}, {"role": "user", "content": "And 2."}], [TOOL]),
    Request([{"role": "user", "content": "odd \ud83d"}]),
]
NAMES = ("local", "endpoint", "lost endpoint", "scripted")


@pytest.fixture(scope="module")
def starter():
    return load_starter()


@pytest.fixture
def policy(request, starter):
    if request.param == "local":
        yield LocalPolicy(*starter, temperature=0.0, max_new_tokens=4)
    elif request.param == "scripted":
        yield ScriptedPolicy(lambda messages: f"{len(messages)} messages")
    else:
        pytest.importorskip("openai", reason="needs the openai package (pip install 'fission-grpo[endpoint]')")
        with OpenAIServer(lambda body: f"{len(body['messages'])} messages") as server:
            server.faults = (lambda number: "500") if request.param == "lost endpoint" else ()
            with policy_of(server, max_retries=0) as endpoint:
                yield endpoint


def replies_of(policy, requests):
    if isinstance(policy, AsynchronousPolicy):
        return [future.result(timeout=30) for future in [policy.submit(request) for request in requests]]
    return policy.reply(requests)


@pytest.mark.parametrize("policy", NAMES, indirect=True)
def test_one_reply_per_request_in_order(policy):
    replies = replies_of(policy, REQUESTS)
    assert len(replies) == len(REQUESTS)
    for reply in replies:
        assert isinstance(reply, Reply)
        assert reply.text == "" or reply.lost is None
        assert reply.tokens >= 0
        reply.text.encode("utf-8")
    assert [replies_of(policy, [request])[0].text for request in REQUESTS] == [reply.text for reply in replies]
    assert replies_of(policy, []) == []


@pytest.mark.parametrize("policy", NAMES, indirect=True)
def test_a_reply_is_text_that_the_dialogue_continues_with(policy):
    (reply,) = replies_of(policy, REQUESTS[:1])
    parse(reply.text, reply.truncated)
    message = assistant_message(reply)
    assert message["content"] == reply.text
    follow_up = Request([*ASK, message, {"role": "user", "content": "Go on."}], [TOOL])
    assert len(replies_of(policy, [follow_up])) == 1


@pytest.mark.parametrize("policy", NAMES, indirect=True)
def test_requests_are_not_changed(policy):
    before = repr(REQUESTS)
    replies_of(policy, REQUESTS)
    assert repr(REQUESTS) == before


@pytest.mark.parametrize("policy", ["endpoint", "lost endpoint"], indirect=True)
def test_futures_of_an_endpoint_do_not_raise_and_say_what_is_lost(policy, request):
    futures = [policy.submit(one) for one in REQUESTS]
    assert all(isinstance(future, Future) and future.exception(timeout=30) is None for future in futures)
    is_lost = "lost" in request.node.callspec.id
    assert all((future.result().lost is not None) is is_lost for future in futures)
    assert all((future.result().reason == "HTTP 500") is is_lost for future in futures)
