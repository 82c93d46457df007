"""Keep API keys out of messages, files and logs.

A key comes from an environment variable. A URL may hold more: `https://user:password@host/v1?api_key=...`.
"""

from __future__ import annotations

import base64
import logging
import os
import re
import shlex
from collections.abc import Iterable, Sequence
from urllib.parse import parse_qsl, quote, quote_plus, unquote, urlsplit

HIDDEN = "***"
NO_KEY = "none"  # the client requires a key even where the server does not
_ADDRESS = re.compile(r"https?://([^/?#]*@)?([\w.-]+|\[[\da-f:.]+\])(:\d{1,5})?([/?#]|$)", re.IGNORECASE)
_KEY_PATTERN = re.compile(r"\b(sk|hf|gsk)[-_][\w*-]{4,}")
_USER_IN_URL = re.compile(r"(https?://)[^/\s\"'<>@]*@", re.IGNORECASE)
_QUERY_IN_URL = re.compile(r"(https?://[^\s\"'<>?#]*)[?#][^\s\"'<>]*", re.IGNORECASE)
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
    return parts._replace(query="", fragment="").geturl(), query, tuple(filter(None, secrets))


def public_url(url: str) -> str:
    """Return the URL without user, password and query."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}".rstrip("/")


class Secrets:
    """Removes secrets, and their URL-encoded forms, from texts and logs."""

    def __init__(self, values: Iterable[str]):
        encodings = (str, quote, quote_plus, lambda value: quote(value, safe=""))
        forms = {encode(value) for value in values if value for encode in encodings}
        self._forms = sorted(forms, key=len, reverse=True)

    def clean(self, text: object) -> str:
        """Return the text without the secrets and without anything that looks like a key."""
        cleaned = str(text)
        for form in self._forms:
            cleaned = cleaned.replace(form, HIDDEN)
        return _KEY_PATTERN.sub(HIDDEN, cleaned)

    def hide_in_logs(self) -> Secrets:
        """Clean the records of the HTTP libraries from now on. Returns itself."""
        for name in _LOGGERS:
            logging.getLogger(name).addFilter(self._clean_record)
        return self

    def show_in_logs(self) -> None:
        """Undo `hide_in_logs`."""
        for name in _LOGGERS:
            logging.getLogger(name).removeFilter(self._clean_record)

    def _clean_record(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = self.clean(record.getMessage()), ()
        return True


def shown_command(words: Sequence[str]) -> str:
    """Quote a command line for display, with users, passwords and queries of URLs hidden.

    Example:
        `shown_command(["x", "--url", "http://me:pw@host/v1?k=1"])` is "x --url 'http://***@host/v1?***'".
    """
    return shlex.join(_QUERY_IN_URL.sub(rf"\1?{HIDDEN}", _USER_IN_URL.sub(rf"\1{HIDDEN}@", word)) for word in words)


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
        raise EndpointError(
            "the base URL is no address of an HTTP server; write it like http://localhost:8000/v1, with a number as "
            "the port (it comes from --endpoint, or from the environment variable OPENAI_BASE_URL)"
        )
    return key


_SECRET_NAME = r"\w*(?:token|api_?key|password|secret)"
_SECRET_OPTION = re.compile(rf"(--{_SECRET_NAME})(=.*)?", re.IGNORECASE | re.DOTALL)
_SECRET_IN_JSON = re.compile(rf"""(["']{_SECRET_NAME}["']\s*:\s*["'])(?:\\.|[^"'\\])*""", re.IGNORECASE)


def without_option_secrets(words: Sequence[str]) -> list[str]:
    """A command line without the values of options, and of keys in JSON, that are named like a token or key.

    Example:
        `without_option_secrets(["x", "--hub_token", "hf_1"])` is `["x", "--hub_token", "***"]`.
    """
    shown: list[str] = []
    for word in words:
        option = _SECRET_OPTION.fullmatch(shown[-1].replace("-", "_").replace("__", "--", 1)) if shown else None
        if option is not None and option[2] is None and not word.startswith("--"):
            shown.append(HIDDEN)
            continue
        name = word.partition("=")[0]
        has_value = "=" in word and _SECRET_OPTION.fullmatch(name.replace("-", "_").replace("__", "--", 1))
        shown.append(f"{name}={HIDDEN}" if has_value else _SECRET_IN_JSON.sub(rf"\1{HIDDEN}", word))
    return shown
