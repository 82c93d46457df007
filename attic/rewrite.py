"""Requests in a model's words: an OpenAI-compatible endpoint rewords templates, and every value has to survive."""

from __future__ import annotations

import logging
import os
import re
from collections import Counter
from dataclasses import replace
from typing import Any

from fission_grpo.bfcl.tasks import Case, UserTurn
from fission_grpo.evaluation.secrets import Secrets, parts_of

PROMPT = (
    "Reword the request of a user to an assistant, as another person might say it. Keep every name, number, id and "
    "quoted text exactly as it is. Answer with the new request alone."
)
"""What the model is told. [ours]"""

_log = logging.getLogger(__name__)


class Rewriter:
    """Rewords the requests of cases, and counts what became of them.

    Args:
        model: name of the model at the endpoint.
        base_url: of the endpoint; None: OpenAI's own, or OPENAI_BASE_URL. The key is read from OPENAI_API_KEY.
        temperature: of the sampling.

    Raises:
        ModuleNotFoundError: the `openai` package is not installed.
    """

    def __init__(self, model: str, base_url: str | None = None, temperature: float = 0.7):
        import openai

        base_url = base_url or os.environ.get("OPENAI_BASE_URL") or None
        url, query, secrets = parts_of(base_url)
        self.client = openai.OpenAI(base_url=url, default_query=query, max_retries=1)
        self.secrets = Secrets((*secrets, self.client.api_key)).hide_in_logs()
        self.errors = (openai.OpenAIError,)
        self.model, self.temperature = model, temperature
        self.counts: Counter[str] = Counter()

    def case(self, case: Case) -> Case:
        """The case with its requests reworded where that worked."""
        return replace(case, turns=tuple(self.turn(turn) for turn in case.turns))

    def turn(self, turn: UserTurn) -> UserTurn:
        """The turn reworded; as it was if the endpoint fails or a value got lost (counted either way)."""
        try:
            answer = self.client.chat.completions.create(
                model=self.model,
                messages=[{"role": "system", "content": PROMPT}, {"role": "user", "content": turn.request}],
                temperature=self.temperature,
            )
            text = (answer.choices[0].message.content or "").strip() if answer.choices else ""
        except self.errors as error:
            _log.warning("the endpoint could not reword %r: %s", turn.request, self.secrets.clean(error))
            self.counts["endpoint failed"] += 1
            return turn
        lost = lost_values(turn, text)
        if lost or not text:
            _log.info("kept %r: %r lost %s", turn.request, text, lost)
            self.counts["a value was lost"] += 1
            return turn
        self.counts["reworded"] += 1
        return replace(turn, request=text)

    def summary(self) -> str:
        """How many requests were reworded, and why the others were not.

        Example:
            "reworded 90, a value was lost 8 (template kept), endpoint failed 2 (template kept)"
        """
        kept = [f"{name} {n} (template kept)" for name, n in self.counts.items() if name != "reworded"]
        return ", ".join([f"reworded {self.counts['reworded']}", *sorted(kept)])


def lost_values(turn: UserTurn, text: str) -> list[str]:
    """The values of the reference that stand in the request but not in `text`, as words of their own.

    Example:
        Of the request "Close ticket 7." the text "Close ticket 17, please." has lost "7".
    """
    values = [value for call in turn.reference for value in _leaves(call.arguments)]
    names = re.findall(r"[A-Za-z0-9_.@#$-]*\d[A-Za-z0-9_.@#$-]*|'[^']+'", turn.request)  # also where nothing is called
    wanted = dict.fromkeys([*values, *(name.strip("'.").rstrip(".") for name in names)])
    return [value for value in wanted if value and _stands(value, turn.request) and not _stands(value, text)]


def _leaves(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [leaf for inner in value.values() for leaf in _leaves(inner)]
    if isinstance(value, list):
        return [leaf for inner in value for leaf in _leaves(inner)]
    return [] if value is None or isinstance(value, bool) else [str(value)]


def _stands(value: str, text: str) -> bool:
    return re.search(rf"(?<![\w]){re.escape(value)}(?![\w])", text) is not None
