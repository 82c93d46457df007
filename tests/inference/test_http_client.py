"""Answers of any size, encoding and status cost bounded memory and time, and are counted."""

import gzip
import json
import resource
import socket
import threading
import time
import zlib
from contextlib import contextmanager

import pytest
from endpoint_support import ASK, KEY, TOOL, counts_of, policy_of
from openai_server import OpenAIServer

pytest.importorskip("openai", reason="needs the openai package (pip install 'fission-grpo[endpoint]')")

from fission_grpo.core.chat import parse
from fission_grpo.inference.base import Request
from fission_grpo.inference.endpoint import EndpointError, EndpointOptions, EndpointPolicy
from fission_grpo.inference.messages import MAX_CHARACTERS, UnreadableResponse, read_completion

MIB = 2**20
DONE = json.dumps({"choices": [{"message": {"content": "Done."}}]}).encode()


def head(status="200 OK", **headers):
    lines = [f"HTTP/1.1 {status}", *(f"{name.replace('_', '-')}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode()


def deep_gzip(levels, size):
    """Spaces compressed several times."""
    packer = zlib.compressobj(9, wbits=31)
    data = b"".join(packer.compress(b" " * MIB) for _ in range(size // MIB)) + packer.flush()
    for _ in range(levels - 1):
        data = gzip.compress(data)
    return data


@contextmanager
def raw_server(first, part=b"", seconds=30.0):
    """A server that answers every request with `first` and then with `part` again and again. Gives URL and counts."""
    sent = {"requests": 0, "bytes": 0}
    listener = socket.create_server(("127.0.0.1", 0))

    def serve(connection):
        with connection:
            try:
                data = b""
                while b"\r\n\r\n" not in data:
                    data += connection.recv(65536)
                wanted = int(data.lower().partition(b"content-length:")[2].partition(b"\r\n")[0] or 0)
                while len(data.partition(b"\r\n\r\n")[2]) < wanted:
                    data += connection.recv(65536)
                sent["requests"] += 1
                connection.sendall(first)
                end = time.monotonic() + seconds
                while part and time.monotonic() < end:
                    connection.sendall(part)
                    sent["bytes"] += len(part)
            except OSError:
                pass

    def accept():
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1", sent
    finally:
        listener.close()


def lost_of(url, requests=1, **options):
    """The reasons of the replies, the growth of the process in MiB, and the seconds."""
    given = {"timeout": 20.0, "patience": 30.0, "max_retries": 2} | options
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    with EndpointPolicy("small", url, EndpointOptions(**given)) as policy:
        futures = [policy.submit(Request(ASK)) for _ in range(requests)]
        replies = [future.result(timeout=60) for future in futures]
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return [reply.reason for reply in replies], grown, time.monotonic() - began


CHUNKED = {"Content_Type": "application/json", "Transfer_Encoding": "chunked"}
EVENTS = head(**CHUNKED | {"Content_Type": "text/event-stream"})
FLOOD = b"100000\r\n" + b" " * MIB + b"\r\n"


@pytest.mark.parametrize(
    ("first", "part"),
    [
        (head(**CHUNKED), FLOOD),
        (head(Content_Type="application/json"), b" " * MIB),  # until the connection is closed
        (head(Content_Type="application/json", Content_Length=10**12), b"x" * MIB),
        (
            head(**CHUNKED | {"Content_Type": "text/event-stream"}),
            b"100000\r\n" + b": ping\n\n" * (MIB // 8) + b"\r\n",
        ),
        (head(**CHUNKED, Content_Encoding="gzip"), b"100000\r\n" + b"\0" * MIB + b"\r\n"),  # no gzip at all
    ],
)
def test_an_endless_answer_is_given_up_at_a_size_and_counted(first, part):
    with raw_server(first, part) as (url, sent):
        reasons, grown, seconds = lost_of(url, requests=2)
    assert reasons[0] in ("too large", "encoded")
    assert seconds < 10
    assert grown < 150
    if reasons[0] == "too large":
        assert sent["requests"] == 2  # not tried again
        assert sent["bytes"] < 80 * MIB


@pytest.mark.parametrize("levels", [1, 2])
@pytest.mark.parametrize("status", ["200 OK", "500 No", "400 No"])
@pytest.mark.parametrize("encoding", ["gzip", "x-gzip", "gzip, gzip", "br", "deflate"])
def test_a_compressed_bomb_stays_small(levels, status, encoding):
    bomb = BOMBS[levels]
    first = head(status, Content_Type="application/json", Content_Length=len(bomb), Content_Encoding=encoding)
    with raw_server(first + bomb) as (url, _):
        reasons, grown, seconds = lost_of(url, max_retries=0)
    expected = {"200 OK": ("too large", "encoded", "not JSON"), "500 No": ("HTTP 500",), "400 No": ("HTTP 400",)}
    assert reasons[0] in expected[status]
    assert grown < 100
    assert seconds < 5


BOMBS = {1: deep_gzip(1, 256 * MIB), 2: deep_gzip(2, 256 * MIB)}


@pytest.mark.parametrize("charset", ["zlib_codec", "bz2_codec", "base64", "rot13", "idna", "no such"])
def test_a_body_is_never_decoded_by_a_codec_that_the_server_names(charset):
    bomb = zlib.compress(b" " * (64 * MIB), 9)
    first = head("500 No", Content_Type=f"text/plain; charset={charset}", Content_Length=len(bomb))
    with raw_server(first + bomb) as (url, _):
        reasons, grown, _ = lost_of(url, max_retries=0)
    assert reasons == ["HTTP 500"]
    assert grown < 50


def test_headers_without_end_are_a_lost_reply():
    with raw_server(b"HTTP/1.1 200 OK\r\n", b"X-Fill: " + b"y" * 1000 + b"\r\n") as (url, sent):
        reasons, grown, _ = lost_of(url, max_retries=0)
    assert reasons == ["connection"]
    assert grown < 50
    assert sent["bytes"] < 16 * MIB


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "identity"])
def test_an_answer_that_is_compressed_unasked_is_read(encoding):
    body = {"gzip": gzip.compress, "deflate": zlib.compress, "identity": bytes}[encoding](DONE)
    first = head(Content_Type="application/json", Content_Length=len(body), Content_Encoding=encoding)
    with raw_server(first + body) as (url, _), EndpointPolicy("small", url) as policy:
        assert policy.submit(Request(ASK)).result(timeout=20).text == "Done."


def test_no_compression_is_accepted():
    with OpenAIServer() as server, policy_of(server) as policy:
        policy.submit(Request(ASK)).result(timeout=20)
        assert server.headers[0]["accept-encoding"] == "identity"


def test_the_check_at_the_start_gives_up_a_flood_too_and_names_the_fix():
    with raw_server(head(**CHUNKED), FLOOD) as (url, _), EndpointPolicy("small", url) as policy:
        with pytest.raises(EndpointError, match=r"too large.*8,388,608 bytes.*max_tokens"):
            policy.check()
        assert "too large" not in str(policy.counts)


def test_a_list_of_models_without_end_is_left_out():
    def answer(body):
        return 404

    models = ["m" * 1000] * 20_000
    with OpenAIServer(answer, models) as server, policy_of(server) as policy, pytest.raises(EndpointError) as error:
        policy.check()
    assert len(str(error.value)) < 1000


def test_large_answers_of_some_requests_do_not_delay_the_limits_of_others():
    """Parsing takes seconds in all, but a request that hangs still ends at its limit."""
    chunk = {"choices": [{"delta": {"tool_calls": [{"index": 0, "function": {"arguments": "a"}}]}}]}
    stream = b"data: " + json.dumps(chunk).encode() + b"\n\n"
    whole = stream * (4 * MIB // len(stream))

    def faults(number):
        return "hang" if number % 8 == 0 else None

    with OpenAIServer(lambda body: whole) as server:
        server.faults = faults
        with policy_of(server, timeout=1.0, max_retries=0, concurrency=64) as policy:
            began, ends = time.monotonic(), []
            futures = [policy.submit(Request(ASK)) for _ in range(8)]
            for future in futures:
                future.add_done_callback(lambda done: ends.append((done.result().reason, time.monotonic() - began)))
            for future in futures:
                future.result(timeout=30)
    assert max(seconds for reason, seconds in ends if reason == "timeout") < 3.0


@pytest.mark.parametrize("status", ["301 M", "302 M", "303 M", "307 M", "308 M"])
@pytest.mark.parametrize("raw", [False, True])
def test_redirects_are_not_followed_and_named_with_their_host(status, raw):
    with OpenAIServer() as other:
        first = head(status, Location=other.url + "/chat/completions", Content_Length=0)
        options = EndpointOptions(raw=raw)
        with raw_server(first) as (url, _), EndpointPolicy("small", url, options) as policy:
            request = Request(ASK, prompt="x" if raw else None)
            reply = policy.submit(request).result(timeout=20)
            counts = counts_of(policy)
            with pytest.raises(EndpointError, match=rf"redirects to {other.url}.*give its URL"):
                policy.check()
        assert reply.reason == f"HTTP {status[:3]}"
        assert counts.lost == {f"HTTP {status[:3]}": 1}
        assert counts.requests == 1
        assert other.url in (reply.lost or "")
        assert other.asked == []  # the prompt went nowhere else


@pytest.mark.parametrize(
    ("location", "shown"),
    [
        ("https://me:pw9@elsewhere:8443/v2?key=k9", "https://elsewhere:8443/v2"),
        ("/v2/chat", "/v2/chat"),
        ("https://elsewhere/v1/chat/completions", "redirects to https://elsewhere/v1, which"),
        ("/v1/chat/completions", "/v1/chat/completions, which"),
        ("//elsewhere/v1", "http://elsewhere/v1"),
        ("http://[", "http://["),
        ("http://elsewhere/\x1b[2J\u202e", "elsewhere"),
        ("http://elsewhere/" + "x" * 5000, "elsewhere"),
        (f"http://elsewhere/{KEY}", "elsewhere/***"),
        ("", "no address"),
    ],
)
def test_a_redirects_address_is_shown_without_secrets_and_controls(location, shown, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    first = head("307 M", Location=location, Content_Length=0)
    with raw_server(first) as (url, _), EndpointPolicy("small", url) as policy:
        lost = policy.submit(Request(ASK)).result(timeout=20).lost or ""
    assert shown in lost or "connection" in lost  # the HTTP library refuses some headers
    assert not [secret for secret in ("pw9", "k9", KEY) if secret in lost]
    assert lost.isprintable()
    assert len(lost) < 500


def test_streams_are_read_in_linear_time():
    def seconds_of(number, delta):
        line = b"data: " + json.dumps({"choices": [{"delta": delta}]}).encode() + b"\n"
        body = line * number + b"data: [DONE]\n"
        best = float("inf")
        for _ in range(2):
            began = time.perf_counter()
            reply = read_completion(body, "text/event-stream")
            best = min(best, time.perf_counter() - began)
        assert len(reply.text) <= MAX_CHARACTERS
        return best

    for delta in (
        {"content": "a" * 50},
        {"refusal": "a" * 50},
        {"tool_calls": [{"index": 0, "function": {"arguments": "a" * 50}}]},
    ):
        assert seconds_of(40_000, delta) < 6 * seconds_of(10_000, delta) + 0.1


@pytest.mark.parametrize("streamed", [False, True])
def test_a_reply_of_very_many_calls_is_malformed(streamed):
    calls = [{"id": str(i), "function": {"name": "add", "arguments": "{}"}} for i in range(251)]
    if streamed:
        lines = [{"choices": [{"delta": {"tool_calls": [call]}}]} for call in calls]
        body = b"".join(b"data: " + json.dumps(line).encode() + b"\n" for line in lines) + b"data: [DONE]\n"
    else:
        body = json.dumps({"choices": [{"message": {"tool_calls": calls}}]}).encode()
    with pytest.raises(UnreadableResponse, match="more than 250 calls"):
        read_completion(body, "", [TOOL])


def test_a_stream_of_250_calls_is_read():
    calls = [{"index": i, "id": str(i), "function": {"name": "add", "arguments": "{}"}} for i in range(250)]
    lines = [{"choices": [{"delta": {"tool_calls": [call]}}]} for call in calls]
    body = b"".join(b"data: " + json.dumps(line).encode() + b"\n" for line in lines) + b"data: [DONE]\n"
    reply = read_completion(body)
    assert len(reply.tool_calls) == len(parse(reply.text).calls) == 250


@pytest.mark.parametrize("name", ["timeout", "patience", "max_tokens", "concurrency", "max_retries", "temperature"])
@pytest.mark.parametrize("value", [10**400, 1e300, float("inf"), float("nan"), -(10**400), True])
def test_numbers_beyond_use_are_refused(name, value):
    with pytest.raises(ValueError, match=rf"{name} must be"):
        EndpointOptions(**{name: value})


@pytest.mark.parametrize(
    "url",
    [
        "http://h/\x1b",
        "http://_ä..b/v1",
        "http://999.999.1.1/",
        "http://h/\ud800",
        "http://me:pw9\ud800@h/",
        "http://h/" + "x" * 70_000,
    ],
)
def test_a_url_that_the_http_library_refuses_is_one_error_with_the_fix(url):
    with pytest.raises(EndpointError, match="no address of an HTTP server; write it like") as error:
        EndpointPolicy("small", url)
    assert "pw9" not in str(error.value)
