"""How a simulator behind an endpoint is asked, and how much of it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fission_grpo.evaluation.endpoint_options import EndpointOptions
from fission_grpo.json_text import quoted
from fission_grpo.simulator.prompt import CHARACTERS, SYSTEM

_NAME = re.compile(r"[A-Z_][A-Z0-9_]*")
_OURS = ("messages", "model", "stream", "n", "tools")


@dataclass(frozen=True)
class SimulatorOptions:
    """Options of `EndpointSource`. Times are in seconds; all defaults are [ours].

    Args:
        temperature: of the sampling; None: the endpoint's default. 0 makes a resumed run say the same again.
        max_tokens: of one diagnosis; None: the endpoint's default. A model that thinks needs 1,000 or more.
        seed: of the sampling, for endpoints that know seeds.
        extra_body: further fields of the request's body, such as {"max_completion_tokens": 2000}.
        concurrency: requests under way at a time.
        timeout: of one try, from sending it to the last byte.
        tries: of one request, the first included.
        patience: of one request with all its tries and waits. How long a step waits for all of them is the trainer's
            setting.
        backoff: the n-th wait is drawn from 0 to backoff * 2^n, at most `max_wait`.
        max_wait: see `backoff`.
        key_variable: name of the environment variable that holds the key; it is the only place a key is read from.
        cache: folder of the cache on disk, which all processes and later runs may share; None: in memory only.
        max_requests: budget of this process, every try counted; None: no limit. Then the reason is "budget".
        max_tokens_total: budget in tokens, read and written. What is under way when it is reached is still paid for.
        prompt_price: of a million tokens read, in whatever currency the report is to be in.
        completion_price: of a million tokens written.
        circuit_after: requests lost in a row after which the endpoint is left alone ("circuit open").
        circuit_seconds: how long, until one request is let through to see whether it answers again.
        characters: longest text about one failure, see `prompt.simulator_messages`.
        system: the system prompt; a model trained by `simulator train` wants the one it was trained with.
        shots: file of instances (`simulator data`) whose first rows are shown as examples; None: no examples.
        shots_used: how many of them.

    Raises:
        ValueError: a value that cannot be; the message names it.
    """

    temperature: float | None = 0.0
    max_tokens: int | None = 200
    seed: int | None = None
    extra_body: Mapping[str, Any] = field(default_factory=dict)
    concurrency: int = 32
    timeout: float = 30.0
    tries: int = 3
    patience: float = 90.0
    backoff: float = 0.5
    max_wait: float = 8.0
    key_variable: str = "OPENAI_API_KEY"
    cache: str | None = None
    max_requests: int | None = None
    max_tokens_total: int | None = None
    prompt_price: float = 0.0
    completion_price: float = 0.0
    circuit_after: int = 8
    circuit_seconds: float = 30.0
    characters: int = CHARACTERS
    system: str = SYSTEM
    shots: str | None = None
    shots_used: int = 3

    def __post_init__(self):
        for name in ("concurrency", "tries", "circuit_after", "characters", "shots_used"):
            self._number(name, int, least=1)
        for name in ("timeout", "patience", "circuit_seconds"):
            self._number(name, float, least=0.001)
        for name in ("backoff", "max_wait", "prompt_price", "completion_price"):
            self._number(name, float, least=0)
        for name, kind, least in (
            ("max_tokens", int, 1),
            ("max_requests", int, 0),
            ("max_tokens_total", int, 0),
            ("temperature", float, 0),
            ("seed", int, -math.inf),
        ):
            if getattr(self, name) is not None:
                self._number(name, kind, least)
        if not (isinstance(self.key_variable, str) and _NAME.fullmatch(self.key_variable)):  # it may be the key itself
            raise ValueError(
                "SimulatorOptions.key_variable must be the name of an environment variable, in capitals, such as "
                "OPENAI_API_KEY; put the key itself into that variable (what was given is not shown here)"
            )
        self._check_body()

    def request_options(self) -> EndpointOptions:
        """Those of the requests themselves."""
        return EndpointOptions(
            temperature=self.temperature,
            max_tokens=self.max_tokens,
            seed=self.seed,
            extra_body=self.extra_body,
            concurrency=self.concurrency,
            timeout=self.timeout,
            patience=self.patience,
            tries=self.tries,
            backoff=self.backoff,
            max_wait=self.max_wait,
            key_variable=self.key_variable,
        )

    def _number(self, name: str, kind: type, least: float) -> None:
        value = getattr(self, name)
        good = isinstance(value, (int, float) if kind is float else int) and not isinstance(value, bool)
        if not good or not math.isfinite(value) or value < least:
            what = "a whole number" if kind is int else "a number"
            raise ValueError(f"SimulatorOptions.{name} must be {what} of at least {least}, got {quoted(value)}")

    def _check_body(self) -> None:
        if not isinstance(self.extra_body, Mapping):
            raise ValueError(f"SimulatorOptions.extra_body must be a mapping, got {quoted(self.extra_body)}")
        if ours := [name for name in _OURS if name in self.extra_body]:
            raise ValueError(f"SimulatorOptions.extra_body must not hold {', '.join(ours)}: that is set here")
        try:
            json.dumps(dict(self.extra_body))
        except (TypeError, ValueError) as error:
            raise ValueError(f"SimulatorOptions.extra_body must hold JSON values: {error}") from error
