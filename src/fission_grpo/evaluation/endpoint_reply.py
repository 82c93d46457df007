"""What an OpenAI-compatible endpoint answered, read as a reply. Never trusts the answer's form."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

from fission_grpo.evaluation.local import encodable
from fission_grpo.evaluation.messages import hermes_text, without_last_end
from fission_grpo.evaluation.play import Reply

MAX_CHARACTERS = 200_000
"""Longest reply that is kept, in characters. [ours] A hundred times any turn that was wanted; harmless in memory."""


class Unreadable(Exception):
    """The answer is no reply. `reason` is one of "not JSON", "no choices", "malformed"; the message says more."""

    def __init__(self, reason: str, detail: str):
        super().__init__(detail)
        self.reason = reason


@dataclass(frozen=True)
class Answer:
    """A reply and what it cost.

    Args:
        reply: what was written.
        prompt_tokens: as the endpoint counted them, 0 without a count.
        counted: the endpoint gave token counts.
        empty: it wrote nothing at all (null or empty content, no calls).
        cut: it was longer than `MAX_CHARACTERS`; what is kept is marked truncated, its structured calls are dropped.
    """

    reply: Reply
    prompt_tokens: int = 0
    counted: bool = False
    empty: bool = False
    cut: bool = False


@dataclass(frozen=True)
class Fault:
    """Why a try brought no reply ("timeout", "HTTP 429", ...); `wait` is what the endpoint asks for, in seconds."""

    reason: str
    detail: str = ""
    again: bool = True
    wait: float = 0.0


def read_answer(body: bytes, content_type: str = "") -> Answer:
    """Read the body of a chat completion or of a raw completion.

    Null content without calls is a turn in which the policy wrote nothing. A refusal is read as content. Thoughts that
    a server has split off (`reasoning_content`) are left out. A call that the length limit cut is written as a local
    model would have left it, unclosed; such a reply has no structured calls.

    Raises:
        Unreadable: it is neither.
    """
    try:
        given = json.loads(body)
    except (ValueError, RecursionError) as error:
        kind = content_type.partition(";")[0].strip() or "no content type"
        raise Unreadable("not JSON", f"{kind}: {error}") from None
    choices = given.get("choices") if isinstance(given, dict) else None
    if not isinstance(choices, list) or not choices:
        raise Unreadable("no choices", json.dumps(given))
    choice = choices[0]
    if not isinstance(choice, dict):
        raise Unreadable("malformed", "the first choice is no object")
    content, calls = _message(choice["message"]) if "message" in choice else (_text(choice.get("text")), ())
    usage = given.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    text, stopped = encodable(hermes_text(content, calls)), choice.get("finish_reason") == "length"
    if stopped and (unclosed := without_last_end(text, calls)):
        text, calls = unclosed, ()
    cut = len(text) > MAX_CHARACTERS
    reply = Reply(
        text=text[:MAX_CHARACTERS],
        tokens=_count(usage.get("completion_tokens")),
        truncated=stopped or cut,
        tool_calls=() if cut else calls,
    )
    return Answer(reply, _count(usage.get("prompt_tokens")), "completion_tokens" in usage, not text, cut)


def retry_after(headers: Mapping[str, str]) -> float:
    """Seconds that a Retry-After header asks to wait (a number or a date), 0 without a readable one."""
    given = headers.get("retry-after") or ""
    try:
        seconds = float(given)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(given).timestamp() - time.time()
        except (TypeError, ValueError):
            return 0.0
    return max(0.0, seconds) if math.isfinite(seconds) else 0.0


def _message(message: Any) -> tuple[str, tuple[Mapping[str, Any], ...]]:
    if not isinstance(message, dict):
        raise Unreadable("malformed", "the message is no object")
    calls = message.get("tool_calls") or []
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise Unreadable("malformed", "tool_calls is no list of objects")
    content = message.get("content")
    if content is None and isinstance(message.get("refusal"), str):
        content = message["refusal"]
    return _text(content), tuple(calls)


def _text(content: Any) -> str:
    if content is None:
        return ""
    if isinstance(content, list):  # parts, of which only texts are ours
        content = "".join(str(part.get("text") or "") for part in content if isinstance(part, dict))
    if not isinstance(content, str):
        raise Unreadable("malformed", f"the content is {type(content).__name__}, not text")
    return content


def _count(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else 0
