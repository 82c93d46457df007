"""Options of requests to an OpenAI-compatible endpoint, shared by evaluation and feedback."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from fission_grpo.core.json_io import quoted

_VARIABLE_NAME = re.compile(r"[A-Z_][A-Z0-9_]*")
_RESERVED_FIELDS = ("messages", "model", "stream", "n", "tools")


@dataclass(frozen=True)
class EndpointOptions:
    """How requests are made. Times are in seconds; defaults are [ours].

    Args:
        raw: use `/v1/completions` with a prompt rendered here, instead of chat completions with tools.
        temperature: sampling temperature; None for the endpoint's default.
        max_tokens: most tokens of one turn; None for the endpoint's default.
        seed: sampling seed, for endpoints that support it.
        extra_body: further fields of the request's body. They replace fields of the same name, and
            `max_completion_tokens` replaces `max_tokens`, which OpenAI's reasoning models refuse.
        concurrency: most requests in flight.
        timeout: limit of one try, from sending it to the last byte.
        patience: limit of one request, including retries and backoff.
        max_retries: most retries of one request. The `openai` client waits between them (exponential backoff with
            jitter, or as long as a Retry-After header says).
        key_variable: name of the environment variable that holds the key.

    Raises:
        ValueError: a value out of range; the message names the field.
    """

    raw: bool = False
    temperature: float | None = 0.0
    max_tokens: int | None = 1024
    seed: int | None = None
    extra_body: Mapping[str, Any] = field(default_factory=dict)
    concurrency: int = 16
    timeout: float = 120.0
    patience: float = 600.0
    max_retries: int = 7
    key_variable: str = "OPENAI_API_KEY"

    LEAST: ClassVar[Mapping[str, float]] = {  # least value of each number
        "concurrency": 1,
        "max_retries": 0,
        "timeout": 0.001,
        "patience": 0.001,
        "max_tokens": 1,
        "temperature": 0,
        "seed": -math.inf,
    }

    def __post_init__(self):
        for name, least in self.LEAST.items():
            value: Any = getattr(self, name)
            annotation = str(self.__dataclass_fields__[name].type)
            if value is None and annotation.endswith("None"):
                continue
            is_whole = annotation.startswith("int")
            is_number = isinstance(value, int if is_whole else (int, float)) and not isinstance(value, bool)
            if not (is_number and least <= float(value) < math.inf):  # pyright: ignore[reportArgumentType]
                what = "a whole number" if is_whole else "a number"
                raise self._error(name, f"must be {what} of at least {least}, got {quoted(value)}")
        if not (isinstance(self.key_variable, str) and _VARIABLE_NAME.fullmatch(self.key_variable)):
            what = (
                "must be the name of an environment variable, in capitals, such as OPENAI_API_KEY; put the key itself"
            )
            raise self._error("key_variable", f"{what} into that variable (the value given is not shown here)")
        if not isinstance(self.extra_body, Mapping):
            raise self._error("extra_body", f"must be a mapping, got {quoted(self.extra_body)}")
        if reserved := [name for name in _RESERVED_FIELDS if name in self.extra_body]:
            raise self._error("extra_body", f"must not hold {', '.join(reserved)}: that is set here")
        try:
            json.dumps(dict(self.extra_body))
        except (TypeError, ValueError) as error:
            raise self._error("extra_body", f"must hold JSON values: {error}") from error

    def _error(self, name: str, problem: str) -> ValueError:
        return ValueError(f"{type(self).__name__}.{name} {problem}")
