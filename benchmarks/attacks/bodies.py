"""Edge: what an endpoint sends: bodies, encodings, sizes, headers, statuses, streams, counts; over real sockets.

The server is a process of its own, so that the memory measured is the client's.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import math
import multiprocessing
import os
import time
import zlib
from collections.abc import AsyncIterator, Callable
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random
from typing import Any

from values import changed, damaged, dumps, strange, text

from fission_grpo.core.types import ErrorKind, Failure, Task, Turn
from fission_grpo.feedback.endpoint import EndpointFeedback, FeedbackModelOptions
from fission_grpo.inference.base import Request
from fission_grpo.inference.endpoint import EndpointOptions, EndpointPolicy
from fission_grpo.inference.messages import to_openai

TIMEOUT, PATIENCE = 1.0, 2.5  # seconds: of one try, of a request
GRACE = 3.0  # seconds that a busy machine may add to the patience of a request
HELLO = [{"role": "user", "content": "hello"}]
TOGETHER = 4  # requests of one case in flight at a time
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
ANSWER = {
    "id": "x",
    "object": "chat.completion",
    "created": 1,
    "model": "m",
    "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "Use an int."}}],
    "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15},
}
CALLING = changed(ANSWER, Random(0), 0)
CALLING["choices"][0]["message"] = {"role": "assistant", "content": None, "tool_calls": [CALL]}
DELTA = {"choices": [{"index": 0, "delta": {"role": "assistant", "content": "Use "}, "finish_reason": None}]}


def body(rng: Random) -> bytes:
    """A chat completion, changed or damaged; or another text."""
    match rng.randrange(10):
        case 0:
            return text(rng).encode("utf-8", "surrogatepass")
        case 1:
            return damaged(dumps(ANSWER).encode(), rng)
        case 2:
            deltas = [changed(DELTA, rng, rng.choice((0, 0, 1))) for _ in range(rng.choice((1, 3, 500)))]
            end = rng.choice(("data: [DONE]\n\n", "", "data: {}\n\n"))
            return ("".join(f"data: {dumps(delta)}\n\n" for delta in deltas) + end).encode("utf-8", "surrogatepass")
        case 3:
            usage = {key: strange(rng) for key in ANSWER["usage"]}
            return dumps({**ANSWER, "usage": usage}).encode("utf-8", "surrogatepass")
        case _:
            given = changed(rng.choice((ANSWER, CALLING)), rng, rng.choice((0, 1, 1, 3)))
            return dumps(given).encode("utf-8", "surrogatepass")


def encoded(data: bytes, rng: Random) -> tuple[bytes, str]:
    """The body in a content encoding, which may be a bomb or a lie."""
    match rng.randrange(12):
        case 0:
            return gzip.compress(data), "gzip"
        case 1:
            return zlib.compress(data), "deflate"
        case 2:
            return bomb(rng.choice((1, 30, 300))), "gzip"
        case 3:
            return gzip.compress(bomb(100)), "gzip, gzip"
        case 4:
            return data, rng.choice(("gzip", "br", "zstd", "deflate", "x\u00e9", "identity"))
        case _:
            return data, ""


def bomb(mebibytes: int) -> bytes:
    """A small gzip file of many spaces."""
    packer = zlib.compressobj(9, wbits=31)
    block = b" " * 2**20
    return b"".join(packer.compress(block) for _ in range(mebibytes)) + packer.flush()


async def answer(rng: Random) -> AsyncIterator[bytes]:
    """The bytes of a whole response, in pieces; an empty piece is a pause."""
    status = rng.choice(
        (200, 200, 200, 200, 200, 200, 400, 401, 404, 422, 429, 500, 503, 204, 301, 302, 307, 308, 999)
    )
    data, encoding = encoded(body(rng), rng)
    if status >= 400 and rng.random() < 0.7:
        data = dumps({"error": {"message": text(rng, 50_000), "code": strange(rng)}}).encode("utf-8", "surrogatepass")
    head = [f"HTTP/1.1 {status} X", rng.choice(("Content-Type: application/json", "Content-Type: text/event-stream"))]
    head += [f"Content-Encoding: {encoding}"] * bool(encoding)
    if 300 <= status < 400:
        head.append(f"Location: {rng.choice(('/v1/loop', 'http://127.0.0.1:1/x', 'http://me:pw@e/', '//e', ''))}")
    if rng.random() < 0.1:
        waits = ("0", "99999999999999999999", "nan", "-5", "Wed, 21 Oct 2099 07:28:00 GMT", "9" * 5000, "1e400")
        head.append(f"Retry-After: {rng.choice(waits)}")
    if rng.random() < 0.05:
        head += [f"X-{number}: {'x' * 500}" for number in range(rng.choice((10, 5000)))]
    framing = rng.randrange(6)
    if framing < 3:
        head.append(f"Content-Length: {len(data) if framing else rng.choice((len(data) + 5, 0, -1, 10**12, 'x'))}")
    elif framing == 3:
        head.append("Transfer-Encoding: chunked")
        data = b"".join(
            b"%x\r\n%s\r\n" % (len(data[at : at + 999]), data[at : at + 999]) for at in range(0, len(data), 999)
        )
        data += rng.choice((b"0\r\n\r\n", b"0\r\n\r\n", b"", b"zz\r\n", b"fffffffffff\r\n"))
    yield ("\r\n".join(head) + "\r\n\r\n").encode("latin-1", "replace")
    match rng.randrange(14):
        case 0:
            for at in range(0, min(len(data), 400), 20):  # slow
                yield data[at : at + 20]
                yield b""
        case 1:
            while True:  # endless
                yield b" " * 2**16
        case 2:
            yield data[: len(data) // 2]
            for _ in range(100):  # stuck
                yield b""
        case _:
            yield data


def serve(pipe: Connection, seed: int) -> None:
    """Answer every request by the number in its messages, until this process is ended with its parent."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
            length = int(head.partition("content-length:")[2].partition("\r")[0] or 0)
            asked = json.loads(await reader.readexactly(length) or b"{}")
            number = asked.get("seed", 0)
            async for piece in answer(Random(f"answer {number}")):
                writer.write(piece)
                await (writer.drain() if piece else asyncio.sleep(0.05))
        except (OSError, ValueError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # the client has gone
        finally:
            writer.close()

    async def run() -> None:
        server = await asyncio.start_server(handle, "127.0.0.1", 0)
        pipe.send(server.sockets[0].getsockname()[1])
        parent = os.getppid()
        while os.getppid() == parent:
            await asyncio.sleep(0.5)

    asyncio.run(run())


def prepare(_: Path) -> Callable[[Random], str]:
    ours, theirs = multiprocessing.Pipe()
    multiprocessing.get_context("spawn").Process(target=serve, args=(theirs, 0), daemon=True).start()
    url = f"http://127.0.0.1:{ours.recv()}/v1"
    return lambda rng: attack(rng, url)


def attack(rng: Random, url: str) -> str:
    """Several requests at a time: each is answered or lost with a reason, within its patience."""
    if rng.random() < 0.3:
        return _feedback(rng, url)
    common: dict[str, Any] = {"timeout": TIMEOUT, "patience": PATIENCE, "max_retries": 1}
    policies = [
        EndpointPolicy("m", url, EndpointOptions(**common, seed=rng.randrange(2**60))) for _ in range(TOGETHER)
    ]
    started = time.monotonic()
    try:
        futures = [one.submit(Request(HELLO)) for one in policies]
        replies = [future.result(PATIENCE + GRACE) for future in futures]
        counts = [dict(one.counts) for one in policies]
    finally:
        for one in policies:
            one.close()
    assert time.monotonic() - started < PATIENCE + GRACE, f"closed after {time.monotonic() - started:.1f} s"
    for reply, counted in zip(replies, counts, strict=True):
        assert isinstance(reply.text, str)
        assert 0 <= reply.tokens < 10**13, reply.tokens
        json.dumps([reply.text, reply.lost, counted], allow_nan=False)
        said = {"role": "assistant", "content": reply.text, "tool_calls": list(reply.tool_calls)}
        json.dumps(to_openai([*HELLO, said, {"role": "tool", "name": "f", "content": "ok"}]), allow_nan=False)
        assert reply.lost is None or len(reply.lost) < 1000, "a reason of more than 1,000 characters"
    reasons = sorted({reply.reason or "answered" for reply in replies})
    return rng.choice(reasons)


def _feedback(rng: Random, url: str) -> str:
    task = Task("t", ({"role": "user", "content": "hi"},), ({"name": "f", "parameters": {}},))
    turn = Turn("x", "x", (), "no call")
    failure = Failure(task, (turn,), ErrorKind.RAISED, "bad")
    options = FeedbackModelOptions(
        timeout=TIMEOUT,
        patience=PATIENCE,
        max_retries=1,
        seed=rng.randrange(2**60),
        prompt_price=rng.choice((0.0, 1e9)),
        max_tokens_total=rng.choice((None, 100)),
    )
    with EndpointFeedback("m", url, options) as source:
        (future,) = source.start([failure])
        given = future.result(PATIENCE + GRACE)
        totals = {**source.totals(), **source.counts()}
        source.report()
        json.dumps([source.state(), totals], allow_nan=False)
    assert all(math.isfinite(number) for number in totals.values()), totals
    return f"feedback: {'answered' if given.text else given.reason}"
