"""Disguises taken off a text, so that `leaks` sees what it says: encodings, letters set apart, words turned round."""

from __future__ import annotations

import base64
import binascii
import codecs
import html
import re
from collections.abc import Iterator
from functools import lru_cache
from itertools import pairwise
from urllib.parse import unquote

HIDDEN = "\x00"
"""Stands where `leaks` took public text out; neither a letter nor space, so nothing is joined across it."""

SHORTEST_SPLIT = 3
"""Fewest letters and digits of a value that is looked for with its letters set apart. [ours]"""

SHORTEST_BACKWARDS = 6
"""Fewest characters of a value that is looked for backwards where the text does not speak of such a thing. [ours]
Shorter ones are too often other words: step and pets, loop and pool."""

SHORTEST_ROT13 = 5
"""The same of rot13; one less for a value of letters only. [ours]"""

_ESCAPE = re.compile(r"\\(?:u\{?([0-9a-fA-F]{4,6})\}?|U([0-9a-fA-F]{8})|x([0-9a-fA-F]{2}))")
_HEX = re.compile(r"(?<![0-9A-Za-z])(?:0x)?[0-9A-Fa-f]{2}(?:[ :,-]?(?:0x)?[0-9A-Fa-f]{2})+(?![0-9A-Za-z])")
_BASE64 = re.compile(r"(?<![A-Za-z0-9+/_-])[A-Za-z0-9+/_-]{4,}(?:={1,2}|(?![A-Za-z0-9+/_=-]))")
_SPOKEN = {"dot": ".", "at": "@", "slash": "/", "dash": "-", "hyphen": "-", "underscore": "_", "colon": ":"}
_SIGN = re.compile(r"\s(dot|slash|dash|hyphen|underscore|colon)\s", re.IGNORECASE)
_ANY_SIGN = re.compile(rf"\s{{1,3}}({'|'.join(_SPOKEN)})\s{{1,3}}", re.IGNORECASE)
_TURNED = re.compile(r"backward|revers|mirror|right to left|rot-?13|caesar|cipher")
_NEITHER = re.compile(r"[^\w\x00]|_")
_RUN = re.compile(r"[^\W_]+|\x00")


def readings(text: str) -> Iterator[str]:
    """The text itself, then what else it says: escapes resolved, base64 and hex decoded, spelled-out signs as signs.

    Example:
        `list(readings("use Um9tZQ=="))` is `["use Um9tZQ==", "use Rome"]`
    """
    yield text
    seen = {text}
    for _ in range(2):  # an encoding of an encoding, no deeper
        for change in (
            _unescaped,
            _signed,
            _from_hex,
            _from_base64,
        ):  # the one that may take a word for code comes last
            changed = change(text)
            if changed not in seen:
                seen.add(changed)
                yield changed
                text = changed


def _unescaped(text: str) -> str:
    if "%" in text:
        text = unquote(text)
    if "&" in text:
        text = html.unescape(text)
    if "\\" in text:
        text = _ESCAPE.sub(_character, text)
    return text


def _character(match: re.Match[str]) -> str:
    code = int(match[1] or match[2] or match[3], 16)
    return chr(code) if code < 0x110000 and not 0xD800 <= code < 0xE000 else match[0]


def _from_hex(text: str) -> str:
    return _HEX.sub(_hex, text)


def _from_base64(text: str) -> str:
    return _BASE64.sub(_base64, text)


def _hex(match: re.Match[str]) -> str:
    return _readable(bytes.fromhex(re.sub(r"0x|[ :,-]", "", match[0]))) or match[0]


def _base64(match: re.Match[str]) -> str:
    token = match[0].rstrip("=").replace("-", "+").replace("_", "/")
    if len(token) % 4 == 1:
        return match[0]
    try:
        return _readable(base64.b64decode(token + "=" * (-len(token) % 4))) or match[0]
    except binascii.Error:
        return match[0]


def _readable(data: bytes) -> str | None:
    """Bytes as printable text of two characters or more, None if they are not."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return None
    return text if len(text) > 1 and text.isprintable() else None


def _signed(text: str) -> str:
    """Example: "zoe at acme dot org" is "zoe@acme.org". "at" is a sign only beside another one."""
    return _ANY_SIGN.sub(lambda m: _SPOKEN[m[1].lower()], text) if _SIGN.search(text) else text


def squashed(text: str) -> str:
    """Letters and digits only. Example: "New-York" is "NewYork"."""
    return _NEITHER.sub("", text)


@lru_cache(maxsize=256)
def _runs(text: str) -> tuple[str, dict[int, int]]:
    """The squashed text, and its word starts: place -> number of the word."""
    starts, parts, at = {}, [], 0
    for number, run in enumerate(_RUN.findall(text)):
        starts[at] = number
        parts.append(run)
        at += len(run)
    starts[at] = len(parts)
    return "".join(parts), starts


def says_split(text: str, core: str, words: frozenset[str]) -> bool:
    """Whether whole words of the text, set together, are `core`; but not if all of them are in `words`.

    Args:
        text: normalised by `leaks`.
        core: the value, squashed.
        words: too common to be parts of a split value.

    Example:
        "r-o-m-e" and "'ro' + 'me'" say "rome"; "the newest yorker" does not say "newyork".
    """
    if len(core) < SHORTEST_SPLIT:
        return False
    flat, starts = _runs(text)
    at = flat.find(core)
    while at >= 0:
        if at in starts and at + len(core) in starts:
            inner = sorted(place for place in starts if at <= place <= at + len(core))
            if not all(flat[begin:end] in words for begin, end in pairwise(inner)):
                return True
        at = flat.find(core, at + 1)
    return False


def says_turned(text: str, plain: str) -> bool:
    """Whether the text has a value backwards or in rot13, as a whole word.

    Example:
        "try emor, read backwards" and "try ebzr" say "rome".
    """
    told = _TURNED.search(text) is not None
    forms = [plain[::-1]] if told or len(plain) >= SHORTEST_BACKWARDS else []
    if plain.isascii() and (told or len(plain) >= SHORTEST_ROT13 - plain.isalpha()):
        forms.append(codecs.encode(plain, "rot13"))
    return any(form in text and _whole(text, form) for form in forms if form != plain)


def _whole(text: str, form: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(form)}(?!\w)", text) is not None
