"""Breaks up special tokens of the chat template that text from outside spells, so that it cannot end its own turn.

Hugging Face tokenizers read "<|im_end|>" as the special token anywhere, message contents included. A tool result
(a web page, a file, an echo of the policy's text) could thus end its message and forge one of the assistant or
the system. Here it becomes "< |im_end|>", which every tokenizer reads as ordinary text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

from fission_grpo.core.json_io import encodable
from fission_grpo.core.types import Message

RESULT_TAGS = ("<tool_response>", "</tool_response>")
"""Frame tool results in the templates of Hermes and Qwen, as ordinary tokens. Results must not contain them either."""

_MARKS = re.compile(
    r"<[|｜][^<>\n'\"{}]{1,40}>|<[^<>\n'\"{} ]{1,40}[|｜]>|\[/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|"
    r"TOOL_RESULTS)\]|<</?SYS>>"
    r"|</?(?:start_of_turn|end_of_turn|im_start|im_end|start_of_role|end_of_role)>"
)
"""Marks of turns in templates, whether they are special tokens of the tokenizer or not. [ours]"""

_OWN = re.compile(
    r"tool.?calls?\b|tool.?call.?(?:begin|start|end|sep)|tool.?calls.?(?:begin|end)|tool.?sep|python_tag|think"
)
"""Special tokens with which a policy writes its calls and thoughts. [ours]"""


class SpecialTokenFilter:
    """Removes a tokenizer's special tokens from texts.

    Args:
        every: tokens that no text from outside may contain: tool results, observations, feedback.
        frames: those of them that the policy's own text must not contain when a recovery prompt repeats it. It may
            contain the tokens of its calls and thoughts (`[TOOL_CALLS]`, `<|python_tag|>`), which forge no turn.
    """

    def __init__(self, every: Iterable[str] = (), frames: Iterable[str] = ()):
        self.broken = 0  # texts changed since the last `pop_count`
        self._every = _pattern(every)
        self._frames = _pattern(frames)

    @classmethod
    def from_tokenizer(cls, tokenizer: Any) -> SpecialTokenFilter:
        """A filter of a tokenizer's special tokens, the marks of turns in its chat template, and `RESULT_TAGS`."""
        added = getattr(tokenizer, "added_tokens_decoder", {}).values()
        special = {token.content for token in added if token.special}
        special |= set(getattr(tokenizer, "all_special_tokens", ()))
        special |= set(_MARKS.findall(str(getattr(tokenizer, "chat_template", None) or "")))
        frames = {token for token in special - set(RESULT_TAGS) if not _OWN.search(token.lower())}
        return cls(special | set(RESULT_TAGS), frames)

    def sanitize(self, text: str) -> str:
        """A text from outside without special tokens ("ok< |im_end|>"), and with "?" for unpaired surrogates."""
        return self._without(self._every, text)

    def sanitize_assistant(self, text: str) -> str:
        """The policy's own text without special tokens, except those of its calls and thoughts."""
        return self._without(self._frames, text)

    def sanitize_tool_results(self, messages: Sequence[Message]) -> list[dict[str, Any]]:
        """Copies of tool messages with sanitized names and contents (strings, or the text blocks of a list)."""
        return [self._message(message) for message in messages]

    def sanitize_messages(self, messages: Sequence[Message]) -> list[dict[str, Any]]:
        """Copies of assistant, tool and feedback messages, each sanitized by its role."""
        return [
            {**message, "content": self.sanitize_assistant(message["content"])}
            if message["role"] == "assistant" and isinstance(message.get("content"), str)
            else self._message(message)
            for message in messages
        ]

    def pop_count(self) -> int:
        """The number of texts changed since the last call."""
        count, self.broken = self.broken, 0
        return count

    def _message(self, message: Message) -> dict[str, Any]:
        content = message.get("content")
        if isinstance(content, str):
            content = self.sanitize(content)
        elif isinstance(content, list):
            content = [self._block(block) for block in content]
        name = {"name": self.sanitize(message["name"])} if isinstance(message.get("name"), str) else {}
        return {**message, "content": content, **name}

    def _block(self, block: Any) -> Any:
        is_text = isinstance(block, Mapping) and isinstance(block.get("text"), str)
        return {**block, "text": self.sanitize(block["text"])} if is_text else block

    def _without(self, pattern: re.Pattern[str] | None, text: str) -> str:
        safe = encodable(text)
        while pattern is not None and (changed := pattern.sub(_split_token, safe)) != safe:
            safe = changed  # repeat, as two tokens may overlap
        self.broken += safe != text
        return safe


def _split_token(match: re.Match[str]) -> str:
    """The token with a space after its first character."""
    return f"{match[0][0]} {match[0][1:]}"


def _pattern(tokens: Iterable[str]) -> re.Pattern[str] | None:
    """Matches any token that a space breaks. Tokens with a common beginning share a branch, for speed."""
    known = sorted({token for token in tokens if len(token.strip()) > 1 and not token[0].isspace()})
    branches = []
    for head, group in groupby(known, key=lambda token: token[:2]):
        longest_first = sorted((token[2:] for token in group), key=len, reverse=True)
        branches.append(re.escape(head) + "(?:" + "|".join(map(re.escape, longest_first)) + ")")
    return re.compile("|".join(branches)) if branches else None
