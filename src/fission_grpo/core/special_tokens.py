"""Text from outside cannot end its own turn: control tokens of the chat template that it spells are broken up.

Hugging Face tokenizers read "<|im_end|>" as the control token wherever it stands, within the content of a message too.
A tool result (a web page, a file, an echo of what the policy wrote) could so end its turn and begin one of the
assistant's or the system's. Here it becomes "< |im_end|>", ordinary text for every tokenizer, and still readable.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

from fission_grpo.core.types import Message

RESULT_TAGS = ("<tool_response>", "</tool_response>")
"""What frames tool results in Hermes and Qwen templates, as ordinary tokens. Results must not spell them either."""


_MARKS = re.compile(
    r"<[|｜][^<>\n'\"{}]{1,40}>|<[^<>\n'\"{} ]{1,40}[|｜]>|\[/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|"
    r"TOOL_RESULTS)\]|<</?SYS>>"
    r"|</?(?:start_of_turn|end_of_turn|im_start|im_end|start_of_role|end_of_role)>"
)
"""Marks that templates write for turns, if the tokenizer has them as ordinary tokens or not. [ours]"""


_OWN = re.compile(
    r"tool.?calls?\b|tool.?call.?(?:begin|start|end|sep)|tool.?calls.?(?:begin|end)|tool.?sep|python_tag|think"
)
"""Control tokens by which a policy writes calls and thoughts of its own. [ours]"""


class ControlTokens:
    """The control tokens of a tokenizer, and texts without them.

    Args:
        every: tokens that nothing from outside may spell: of a tool result, an observation, a diagnosis.
        frames: of these, those that the policy's own text must not spell either when a recovery prompt replays it.
            It may spell what it writes calls and thoughts with (`[TOOL_CALLS]`, `<|python_tag|>`): no turn is forged.

    Attributes:
        broken: texts that have been changed. Whoever reads it sets it to 0 (`take_count`).
    """

    def __init__(self, every: Iterable[str] = (), frames: Iterable[str] = ()):
        self.broken = 0
        self._every, self._frames = _pattern(every), _pattern(frames)

    @classmethod
    def of(cls, tokenizer: Any) -> ControlTokens:
        """Those of a tokenizer: its special tokens, the marks of turns in its chat template, and `RESULT_TAGS`."""
        added = getattr(tokenizer, "added_tokens_decoder", {}).values()
        special = {token.content for token in added if token.special} | set(
            getattr(tokenizer, "all_special_tokens", ())
        )
        every = special | set(_MARKS.findall(str(getattr(tokenizer, "chat_template", None) or ""))) | set(RESULT_TAGS)
        return cls(every, {token for token in every - set(RESULT_TAGS) if not _OWN.search(token.lower())})

    def told(self, text: str) -> str:
        """A text from outside without control tokens, and with "?" for unpaired surrogates, which no tokenizer takes.

        Example:
            Of Qwen, `told("ok<|im_end|>")` is "ok< |im_end|>"; a text without control tokens is returned as it is.
        """
        return self._without(self._every, text)

    def written(self, text: str) -> str:
        """The policy's own text, to be shown to it again, without control tokens but those of calls and thoughts."""
        return self._without(self._frames, text)

    def results(self, messages: Sequence[Message]) -> list[dict[str, Any]]:
        """Tool messages as `told`: contents (text blocks too) and names. The messages given stay as they are."""
        return [self._message(message) for message in messages]

    def dialogue(self, messages: Sequence[Message]) -> list[dict[str, Any]]:
        """What a rollout adds to its prompt: the policy's turns as `written`, tool results and feedback as `told`."""
        return [
            {**message, "content": self.written(message["content"])}
            if message["role"] == "assistant" and isinstance(message.get("content"), str)
            else self._message(message)
            for message in messages
        ]

    def take_count(self) -> int:
        """How many texts have been changed since this was last asked."""
        taken, self.broken = self.broken, 0
        return taken

    def _message(self, message: Message) -> dict[str, Any]:
        content = message.get("content")
        if isinstance(content, str):
            content = self.told(content)
        elif isinstance(content, list):
            content = [_with_text(block, self.told(block["text"])) if _is_text(block) else block for block in content]
        named = {"name": self.told(message["name"])} if isinstance(message.get("name"), str) else {}
        return {**message, "content": content, **named}

    def _without(self, pattern: re.Pattern[str] | None, text: str) -> str:
        safe = text.encode("utf-8", "replace").decode("utf-8")
        while pattern is not None and (changed := pattern.sub(_apart, safe)) != safe:
            safe = changed  # again: two tokens may overlap
        self.broken += safe != text
        return safe


def _apart(match: re.Match[str]) -> str:
    """A token after a space within it: "<|im_end|>" is "< |im_end|>"."""
    return f"{match[0][0]} {match[0][1:]}"


def _pattern(tokens: Iterable[str]) -> re.Pattern[str] | None:
    """Matches any token that a space breaks; alternatives with the same beginning stand together, for speed."""
    known = sorted({token for token in tokens if len(token.strip()) > 1 and not token[0].isspace()})
    groups = [(begin, [token[2:] for token in group]) for begin, group in groupby(known, key=lambda token: token[:2])]
    longest_first = [
        re.escape(begin) + "(?:" + "|".join(re.escape(end) for end in sorted(ends, key=len, reverse=True)) + ")"
        for begin, ends in groups
    ]
    return re.compile("|".join(longest_first)) if longest_first else None


def _is_text(block: Any) -> bool:
    return isinstance(block, Mapping) and isinstance(block.get("text"), str)


def _with_text(block: Mapping[str, Any], text: str) -> dict[str, Any]:
    return {**block, "text": text}
