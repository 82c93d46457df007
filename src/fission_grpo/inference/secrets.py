"""Keys are sent, and written nowhere: what must not stand in a message, a file or a log, and how it is taken out.

A key comes from the environment; a URL may hold others: `https://user:password@host/v1`, `https://host/v1?api_key=...`.
"""

from __future__ import annotations

import base64
import logging
import re
import shlex
from collections.abc import Iterable, Sequence
from typing import NamedTuple
from urllib.parse import parse_qsl, quote, quote_plus, unquote, urlsplit

HIDDEN = "***"


_LOOKS_LIKE_A_KEY = re.compile(r"\b(sk|hf|gsk)[-_][\w*-]{4,}")


_USER = re.compile(r"(https?://)[^/\s\"'<>@]*@", re.IGNORECASE)


_QUERY = re.compile(r"(https?://[^\s\"'<>?#]*)[?#][^\s\"'<>]*", re.IGNORECASE)


_LOGGERS = ("httpx", "httpx2", "openai._base_client")
"""What tells the URL of every request at level INFO or DEBUG. (A filter does not hold for a logger's children.)"""


class Parts(NamedTuple):
    """A base URL without its query, the query's fields, and the secrets of both."""

    url: str | None
    query: dict[str, str]
    secrets: tuple[str, ...]


def parts_of(url: str | None) -> Parts:
    """Take a base URL apart. None (OpenAI's own) has no parts.

    Example:
        `parts_of("http://host/v1?api_key=k5")` is ("http://host/v1", {"api_key": "k5"}, ("k5",)).
    """
    if url is None:
        return Parts(None, {}, ())
    found = urlsplit(url)
    query = dict(parse_qsl(found.query))
    user, password = unquote(found.username or ""), unquote(found.password or "")
    secrets = [password or user, *query.values()]
    if user or password:  # as it is sent, and may be told back
        secrets.append(base64.b64encode(f"{user}:{password}".encode()).decode())
    return Parts(found._replace(query="", fragment="").geturl(), query, tuple(filter(None, secrets)))


class Secrets:
    """Takes secrets out of texts.

    Args:
        values: the secrets, each also hidden as it stands in a URL.
    """

    def __init__(self, values: Iterable[str]):
        ways = (str, quote, quote_plus, lambda value: quote(value, safe=""))
        forms = {way(value) for value in values if value for way in ways}
        self._forms = sorted(forms, key=len, reverse=True)

    def clean(self, said: object) -> str:
        """What somebody said, without the secrets and whatever looks like a key.

        Example:
            `Secrets(["pw7"]).clean("wrong: pw7 and sk-abcd")` is "wrong: *** and ***".
        """
        text = str(said)
        for form in self._forms:
            text = text.replace(form, HIDDEN)
        return _LOOKS_LIKE_A_KEY.sub(HIDDEN, text)

    def hide_in_logs(self) -> Secrets:
        """From now on the libraries that send requests log none of them, whoever listens. Returns itself."""
        for name in _LOGGERS:
            logging.getLogger(name).addFilter(self._hide)
        return self

    def show_in_logs(self) -> None:
        """Take `hide_in_logs` back."""
        for name in _LOGGERS:
            logging.getLogger(name).removeFilter(self._hide)

    def _hide(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = self.clean(record.getMessage()), ()
        return True


def shown_command(words: Sequence[str]) -> str:
    """A command line as it may be shown or written: what its URLs hold beside host and path is hidden.

    Example:
        `shown_command(["x", "--url", "http://me:pw@host/v1?k=1"])` is "x --url 'http://***@host/v1?***'".
    """
    return shlex.join(_QUERY.sub(rf"\1?{HIDDEN}", _USER.sub(rf"\1{HIDDEN}@", word)) for word in words)
