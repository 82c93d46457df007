"""Extract feedback from a model's reply, or say why it cannot be used. All patterns are [ours]."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter

from fission_grpo.feedback.rules import MAX_LENGTH
from fission_grpo.feedback.sources import Diagnosis

MAX_REPLY_LENGTH = 10 * MAX_LENGTH  # longest reply that is read, in characters without thoughts [ours]
_THOUGHT_START = re.compile(r"<think(?:ing)?>")
_THOUGHT_END = re.compile(r"</think(?:ing)?>")
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_SPECIAL_TOKEN = re.compile(  # tokens that start or end a turn, a call or a result in some chat template
    r"<[|｜][^<>\n]{0,40}[|｜]>|</?(?:tool_call|tool_response|tools|think(?:ing)?|s|bos|eos|pad|unk|start_of_turn|"
    r"end_of_turn|tool_use|function_calls?|im_start|im_end)>|</?function\b|</?invoke\b|\[/?(?:INST|TOOL_CALLS|"
    r"AVAILABLE_TOOLS|TOOL_RESULTS|SYSTEM_PROMPT)\]|<</?SYS>>",
    re.IGNORECASE,
)
_DETERMINERS = (
    r"(?:all|any|every|everything|each|the|these|those|this|that|your|my|our|of|in|from|what|system|user's|"
    r"user|given|original|current|other|last|first|and|or|previous|prior|above|earlier|preceding|following)"
)
_INSTRUCTIONS = (
    r"(?:previous|prior|above|earlier|preceding|instructions?|prompts?|tasks?|rules|messages?|guidelines|"
    r"directions|conversation|dialogue|tools?|schemas?)"
)
_INJECTION = re.compile(
    rf"\b(?:ignore|disregard|forget|override|bypass)\s+(?:{_DETERMINERS}\s+)*{_INSTRUCTIONS}\b"
    r"|\byou are now\b|\bfrom now on\b|\bpretend (?:to be|that|you)\b|\bnew (?:system )?instructions?\b"
    r"|\bsystem prompt\b|\bdeveloper mode\b",
    re.IGNORECASE,
)
_REFUSAL = re.compile(r"i['’]m sorry|i am sorry|sorry,|i can['’]?t\b|i cannot|i['’]m unable|as an ai\b", re.IGNORECASE)
_SENTENCES = re.compile(r".*[.!?](?=[\s'\"`)]|$)", re.DOTALL)
_FENCE = re.compile(r"^[^\S\n]*+```\w*+[^\S\n]*+$", re.MULTILINE)


def usable_text(text: str, truncated: bool = False, context: str = "") -> Diagnosis:
    """Extract the paragraph that begins with "error:", else the first one.

    Thoughts, code fences and quotes around it are removed, and it is cut after a sentence to `MAX_LENGTH`. Reasons for
    no text: "empty"; "cut" (it ends before its first sentence, or is longer than `MAX_REPLY_LENGTH`); "control tokens"
    (it would break the recovery prompt); "injection" (it gives orders about the task); "refusal"; "language".

    Args:
        text: the model's reply.
        truncated: whether it reached its length limit; an incomplete last sentence is then dropped.
        context: the text that the model was shown. Most letters must be Latin or of a script in it.
    """
    text = _THOUGHT_END.split(_UNPRINTABLE.sub("", text))[-1].strip()
    if len(text) > MAX_REPLY_LENGTH or (truncated and _THOUGHT_START.search(text)):
        return Diagnosis(None, "cut")
    if _SPECIAL_TOKEN.search(text):
        return Diagnosis(None, "control tokens")
    paragraph, is_last = _choose_paragraph(_FENCE.sub("", text).strip())
    if not paragraph:
        return Diagnosis(None, "empty")
    # look-alike characters are unified and invisible ones removed
    visible = "".join(c for c in unicodedata.normalize("NFKC", text) if unicodedata.category(c) != "Cf")
    if _INJECTION.search(visible):
        return Diagnosis(None, "injection")
    if _REFUSAL.match(paragraph):
        return Diagnosis(None, "refusal")
    if len(paragraph) > MAX_LENGTH or (truncated and is_last):
        sentences = _SENTENCES.match(paragraph[:MAX_LENGTH])
        if sentences is None:
            return Diagnosis(None, "cut")
        paragraph = sentences[0]
    if _is_foreign(paragraph, context):
        return Diagnosis(None, "language")
    return Diagnosis(paragraph)


def _choose_paragraph(text: str) -> tuple[str, bool]:
    """The paragraph with the feedback, without quotes around it, and whether it is the last one."""
    paragraphs = [paragraph.strip() for paragraph in re.split(r"\n\s*\n", text) if paragraph.strip()]
    if not paragraphs:
        return "", True
    unquoted = [p[1:-1].strip() if len(p) > 1 and p[0] == p[-1] and p[0] in "\"'`" else p for p in paragraphs]
    at = next((i for i, paragraph in enumerate(unquoted) if paragraph[:6].lower() == "error:"), 0)
    return unquoted[at], at == len(unquoted) - 1


def _is_foreign(text: str, context: str) -> bool:
    """Whether most letters are of a script that is neither Latin nor in the context."""
    letters = Counter(_script(char) for char in text if char.isalpha())
    script, count = letters.most_common(1)[0] if letters else ("LATIN", 0)
    if script == "LATIN" or 2 * count <= letters.total():
        return False
    return not any(_script(char) == script for char in context if not char.isascii() and char.isalpha())


def _script(char: str) -> str:
    return unicodedata.name(char, "UNKNOWN").partition(" ")[0]
