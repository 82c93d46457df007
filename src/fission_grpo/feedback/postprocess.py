"""What a model wrote, as a diagnosis that may be told to the policy, or why it may not. All patterns are [ours].

Deterministic and cheap; whether it gives the reference away is decided later, for every source alike (`leaks`).
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter

from fission_grpo.feedback.rules import MAX_LENGTH
from fission_grpo.feedback.sources import Answer

LONGEST = 10 * MAX_LENGTH
"""Longest text, in characters and without thoughts, in which a diagnosis is looked for. [ours]"""


_END_OF_THOUGHTS = re.compile(r"</think(?:ing)?>")


_OPEN_THOUGHT = re.compile(r"<think(?:ing)?>")


_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")


_CONTROL = re.compile(
    r"<[|｜][^<>\n]{0,40}[|｜]>|</?(?:tool_call|tool_response|tools|think(?:ing)?|s|bos|eos|pad|unk|start_of_turn|"
    r"end_of_turn|tool_use|function_calls?|im_start|im_end)>|</?function\b|</?invoke\b|\[/?(?:INST|TOOL_CALLS|"
    r"AVAILABLE_TOOLS|TOOL_RESULTS|SYSTEM_PROMPT)\]|<</?SYS>>",
    re.IGNORECASE,
)
"""What begins or ends a turn, a call or a result in some chat template."""


_DETERMINERS = r"(?:all|any|every|everything|each|the|these|those|this|that|your|my|our|of|in|from|what|system|user's|"


_DETERMINERS += (
    r"user|given|original|current|other|last|first|and|or|previous|prior|above|earlier|preceding|following)"
)


_ORDERS = r"(?:previous|prior|above|earlier|preceding|instructions?|prompts?|tasks?|rules|messages?|guidelines|"


_ORDERS += r"directions|conversation|dialogue|tools?|schemas?)"


_INJECTION = re.compile(
    rf"\b(?:ignore|disregard|forget|override|bypass)\s+(?:{_DETERMINERS}\s+)*{_ORDERS}\b"
    r"|\byou are now\b|\bfrom now on\b|\bpretend (?:to be|that|you)\b|\bnew (?:system )?instructions?\b"
    r"|\bsystem prompt\b|\bdeveloper mode\b",
    re.IGNORECASE,
)


_REFUSAL = re.compile(
    r"(?:i['’]m sorry|i am sorry|sorry,|i can['’]?t\b|i cannot|i['’]m unable|as an ai\b)", re.IGNORECASE
)


_SENTENCES = re.compile(r".*[.!?](?=[\s'\"`)]|$)", re.DOTALL)


_FENCE = re.compile(r"^\s*```\w*\s*$", re.MULTILINE)


def usable_text(text: str, truncated: bool = False, context: str = "") -> Answer:
    """The diagnosis in a model's reply: the paragraph that begins with "error:", else the first one.

    Thoughts, code fences and quotes around it are taken off, and it is cut after a sentence to `MAX_LENGTH`.

    Args:
        text: all that the model wrote.
        truncated: it hit its length limit; an unfinished last sentence is then left out.
        context: what the model was shown. A script that stands there (Greek, Han, ...) may be written; else most
            letters must be Latin.

    Returns:
        Answer: the text, or why there is none: "empty"; "cut" (it ends before it has said anything, or is longer than
            `LONGEST`); "control tokens" (it would break the recovery prompt); "injection" (it gives orders about
            the task or its instructions, which no runtime does); "refusal"; "language".

    Example:
        `usable_text("<think>Hm.</think>Sure:\\n\\nerror: `to` is off.\\n\\nI kept it secret.").text` is
        "error: `to` is off."
    """
    text = _END_OF_THOUGHTS.split(_UNPRINTABLE.sub("", text))[-1].strip()
    open_thought = _OPEN_THOUGHT.search(text)
    if len(text) > LONGEST or (truncated and open_thought):
        return Answer(None, "cut")
    if _CONTROL.search(text):
        return Answer(None, "control tokens")
    chosen, last = _paragraph(_FENCE.sub("", text).strip())
    if not chosen:
        return Answer(None, "empty")
    if _INJECTION.search(_visible(text)):
        return Answer(None, "injection")
    if _REFUSAL.match(chosen):
        return Answer(None, "refusal")
    if len(chosen) > MAX_LENGTH or (truncated and last):
        whole = _SENTENCES.match(chosen[:MAX_LENGTH])
        if whole is None:
            return Answer(None, "cut")
        chosen = whole[0]
    if _foreign(chosen, context):
        return Answer(None, "language")
    return Answer(chosen)


def _paragraph(text: str) -> tuple[str, bool]:
    """The paragraph that is the diagnosis, without quotes around it, and whether it is the last one."""
    paragraphs = [one.strip() for one in re.split(r"\n\s*\n", text) if one.strip()]
    if not paragraphs:
        return "", True
    bare = [
        one[1:-1].strip() if len(one) > 1 and one[0] == one[-1] and one[0] in "\"'`" else one for one in paragraphs
    ]
    at = next((i for i, one in enumerate(bare) if one[:6].lower() == "error:"), 0)
    return bare[at], at == len(bare) - 1


def _visible(text: str) -> str:
    """Text without differences between look-alikes and without characters that nobody sees."""
    return "".join(c for c in unicodedata.normalize("NFKC", text) if unicodedata.category(c) != "Cf")


def _foreign(text: str, context: str) -> bool:
    """Whether most letters are of a script that is neither Latin nor in the context."""
    if text.isascii():
        return False
    letters = Counter(_script(char) for char in text if char.isalpha())
    if not letters:
        return False
    script, count = letters.most_common(1)[0]
    if script == "LATIN" or 2 * count <= letters.total():
        return False
    return not any(_script(char) == script for char in context if not char.isascii() and char.isalpha())


def _script(char: str) -> str:
    return unicodedata.name(char, "UNKNOWN").partition(" ")[0]
