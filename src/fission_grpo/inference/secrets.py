"""Keep API keys out of messages, files and logs.

A key comes from an environment variable. A URL may hold more: `https://user:password@host/v1?api_key=...`.
"""

from __future__ import annotations

import base64
import json
import logging
import os
import re
import shlex
from collections.abc import Iterable, Sequence
from urllib.parse import parse_qsl, quote, quote_plus, unquote, urlsplit

HIDDEN = "***"
NO_KEY = "none"  # the client requires a key even where the server does not
NO_ADDRESS = (
    "the base URL is no address of an HTTP server; write it like http://localhost:8000/v1, with a number as the port "
    "(it comes from --endpoint, or from the environment variable OPENAI_BASE_URL)"
)
_ADDRESS = re.compile(r"https?://([^/?#]*@)?([\w.-]+|\[[\da-f:.]+\])(:\d{1,5})?([/?#]|$)", re.IGNORECASE)
_KEY_PATTERN = re.compile(r"\b(sk|hf|gsk)[-_][\w*-]{4,}")
# a URL as it is, with slashes as JSON may escape them, or as the value of another URL's query
_URL = re.compile(r"(https?(?::|%3a)(?:\\*+/|%2f){2})([^\s\"'<>]*+)", re.IGNORECASE)
_AUTHORITY = re.compile(r"(?:(?!%2f|%3f|%23)[^/?#\\])*+", re.IGNORECASE)
_USER = re.compile(
    r"((?<!\\)(?:\\*+/|%2f){2})(?:(?!%2f|%3f|%23)[^/?#\\\s\"'<>])*(?:@|%40)", re.IGNORECASE
)  # also of a URL within the path of another, and beside it
_QUERY = re.compile(r"[?#]|%3f|%23", re.IGNORECASE)
_SEGMENT = re.compile(r"[^/\\?#]++")
SHORT = 5
"""Length from which a secret is hidden wherever it stands, in characters. [ours] A shorter one, as in `?v=2`, is
hidden only where it stands as a value in a URL, because most texts have it by chance."""
_ENCODED = re.compile(r"%[0-9A-F]{2}")
_LOGGERS = ("httpx", "httpx2", "openai._base_client")  # they log URLs; a filter is not inherited by child loggers


class EndpointError(ValueError):
    """The endpoint cannot be used as configured. The message names URL, model and the fix."""


def split_url(url: str | None) -> tuple[str | None, dict[str, str], tuple[str, ...]]:
    """Split a base URL into the URL without its query, the fields of the query, and the secrets in either."""
    if url is None:  # OpenAI's own
        return None, {}, ()
    parts = urlsplit(url)
    query = dict(parse_qsl(parts.query))
    user, password = unquote(parts.username or ""), unquote(parts.password or "")
    secrets = [password or user, *query.values()]
    if user or password:  # the form of the Authorization header, which a server may quote
        secrets.append(base64.b64encode(f"{user}:{password}".encode()).decode())
    secrets += [unquote(segment) for segment in _SEGMENT.findall(parts.path) if _is_like_a_key(segment)]
    return parts._replace(query="", fragment="").geturl(), query, tuple(filter(None, secrets))


def public_url(url: str) -> str:
    """Return the URL without user, password and query, and with parts of the path hidden that look like keys."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{_public_path(parts.path)}".rstrip("/")


def _public_path(path: str) -> str:
    return _SEGMENT.sub(lambda found: HIDDEN if _is_like_a_key(found[0]) else found[0], path)


def _is_like_a_key(segment: str) -> bool:
    """Whether a part of a path looks like a key: a prefix that keys have, or letters and digits mixed. [ours]

    Names of models have dashes, so that their length says nothing.
    """
    runs = [run for run in re.split(r"[\W_]+", segment) if len(run) >= 8]
    mixed = any(len(run) >= 24 or not (run.isalpha() or run.isdigit()) for run in runs)
    return mixed or _KEY_PATTERN.search(segment) is not None


class Secrets:
    """Removes secrets from texts and logs, also as URLs, JSON and Python write them."""

    def __init__(self, values: Iterable[str]):
        given = set(filter(None, values))
        self._forms = _written(value for value in given if len(value) >= SHORT)
        short = "|".join(map(re.escape, _written(value for value in given if len(value) < SHORT)))
        self._short = re.compile(rf"(?<=[=:])(?:{short})(?=[&@#;\s\"'<>)\\]|$)") if short else None

    def clean(self, text: object) -> str:
        """Return the text without the secrets and without anything that looks like a key."""
        cleaned = str(text)
        for form in self._forms:
            cleaned = cleaned.replace(form, HIDDEN)
        if self._short is not None:
            cleaned = self._short.sub(HIDDEN, cleaned)
        return _KEY_PATTERN.sub(HIDDEN, cleaned)

    def hide_in_logs(self) -> None:
        """Clean the records of the HTTP libraries from now on."""
        for name in _LOGGERS:
            logging.getLogger(name).addFilter(self._clean_record)

    def show_in_logs(self) -> None:
        """Undo `hide_in_logs`."""
        for name in _LOGGERS:
            logging.getLogger(name).removeFilter(self._clean_record)

    def _clean_record(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = self.clean(record.getMessage()), ()
        return True


def _written(values: Iterable[str]) -> list[str]:
    """All forms in which URLs, JSON and Python write the values, long ones first."""
    forms: set[str] = set()
    for value in values:
        in_json = json.dumps(value)[1:-1]
        forms |= {value, quote(value), quote_plus(value), quote(value, safe=""), in_json, in_json.replace("/", "\\/")}
    forms |= {quote(form, safe="") for form in forms}  # a URL in a URL
    forms |= {_ENCODED.sub(lambda found: found[0].lower(), form) for form in forms}
    return sorted(forms, key=len, reverse=True)


def shown_command(words: Sequence[str]) -> str:
    """Quote a command line for display, with tokens, and users, passwords and queries of URLs, hidden.

    Example:
        `shown_command(["x", "--url", "http://me:pw@host/v1?k=1"])` is "x --url 'http://***@host/v1?***'".
    """
    return shlex.join(hide_in_urls(word) for word in _without_option_secrets(words))


def hide_in_urls(text: str) -> str:
    """The text with users, passwords, queries and what looks like a key in a path hidden in all of its URLs."""
    return _URL.sub(_hidden, _USER.sub(rf"\1{HIDDEN}@", text))


def _hidden(found: re.Match[str]) -> str:
    rest = found[2]
    authority = _AUTHORITY.match(rest)
    end = authority.end() if authority else 0
    query = _QUERY.search(rest, end)
    path = _public_path(rest[end : query.start() if query else None])
    return found[1] + rest[:end] + path + (f"?{HIDDEN}" if query else "")


def read_key(variable: str, model: str, url: str | None) -> str:
    """The key from the environment. Raises EndpointError for an impossible key or URL, and if a key is missing."""
    key = os.environ.get(variable, "").strip() or NO_KEY
    if not (key.isascii() and key.isprintable()):
        raise EndpointError(f"the environment variable {variable} holds characters no key has")
    if url is None and key == NO_KEY:
        raise EndpointError(
            f"model {model!r}: no base URL is given and the environment variable {variable} is not set; give the "
            "server's URL, or set the key for OpenAI's own"
        )
    if url is not None and not _ADDRESS.match(url):
        raise EndpointError(NO_ADDRESS)
    return key


_SECRET_NAME = r"[\w-]*(?:token|api[_-]?key|password|secret)"
_SECRET_OPTION = re.compile(rf"--{_SECRET_NAME}", re.IGNORECASE)
_SECRET_IN_JSON = re.compile(rf"""(["']{_SECRET_NAME}["']\s*:\s*["'])(?:\\.|[^"'\\])*""", re.IGNORECASE)


def _without_option_secrets(words: Sequence[str]) -> list[str]:
    """A command line without the values of options, and of keys in JSON, that are named like a token or key.

    Example:
        `_without_option_secrets(["x", "--hub_token", "hf_1"])` is `["x", "--hub_token", "***"]`.
    """
    shown: list[str] = []
    for word in words:
        name, equals, _ = word.partition("=")
        if shown and _SECRET_OPTION.fullmatch(shown[-1]) and not word.startswith("--"):
            shown.append(HIDDEN)
        elif equals and _SECRET_OPTION.fullmatch(name):
            shown.append(f"{name}={HIDDEN}")
        else:
            shown.append(_SECRET_IN_JSON.sub(rf"\1{HIDDEN}", word))
    return shown
