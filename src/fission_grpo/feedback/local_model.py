"""Feedback of a transformers model in this process: a trained error simulator, or any chat model."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import astuple
from pathlib import Path
from typing import Any

from fission_grpo.core.serialization import recovery_id
from fission_grpo.core.special_tokens import SpecialTokenFilter
from fission_grpo.core.terminal import get_logger
from fission_grpo.core.types import Failure
from fission_grpo.feedback.postprocess import usable_text
from fission_grpo.feedback.prompt import LEFT_TO_RULES, PromptSettings, read_settings
from fission_grpo.feedback.runtime_messages import as_runtime
from fission_grpo.feedback.sources import Diagnosis, completed
from fission_grpo.inference.base import Request
from fission_grpo.inference.local import LocalPolicy, prompt_text
from fission_grpo.inference.pretrained import load_model

REMEMBERED = 50_000  # answers kept in memory; beyond it the oldest are dropped [ours]
_log = get_logger(__name__)


class LocalModelFeedback:
    """Feedback of a causal language model in this process, decoded greedily in batches; a `FeedbackSource`.

    The model is loaded by `check`, or for the first failure. Equal failures are processed once, those of the kinds in
    `LEFT_TO_RULES` are left to the next source. An answer in words of the environment that it was trained on counts as
    the environment's, see `runtime_messages`. Reasons for missing feedback: those of `usable_text`, "prompt too long"
    and "raised <error>".

    Args:
        model_or_path: a model with `generate`; or a folder (weights, or a LoRA adapter) or hub id.
        tokenizer: of the model, if it is not beside its weights.
        max_new_tokens: most tokens of one answer.
        settings: of the prompt. None: as in the folder's `simulator.json`, which training wrote; else the defaults.
    """

    name = "local"
    asynchronous = False

    def __init__(
        self,
        model_or_path: Any,
        tokenizer: Any = None,
        max_new_tokens: int = 96,
        batch_size: int = 16,
        settings: PromptSettings | None = None,
    ):
        self._model, self._tokenizer, self._settings = model_or_path, tokenizer, settings
        self._max_new_tokens, self._batch_size = max_new_tokens, batch_size
        self._policy: LocalPolicy | None = None
        self._known: dict[str, Diagnosis] = {}
        self._counts: Counter[str] = Counter()

    def start(self, failures: Sequence[Failure]) -> list[Future[Diagnosis]]:
        start = time.monotonic()
        ids = ["" if failure.kind in LEFT_TO_RULES else recovery_id(failure) for failure in failures]
        by_id = dict(zip(ids, failures, strict=True))
        new = [name for name in by_id if name and name not in self._known]
        answers = dict(zip(new, self._generate([by_id[name] for name in new]), strict=True))
        results = [completed(answers.get(name) or self._known.get(name) or Diagnosis(None)) for name in ids]
        for name, answer in answers.items():
            if not (answer.reason or "").startswith("raised"):  # another attempt may succeed (out of memory)
                self._known[name] = answer
        for oldest in list(self._known)[: max(0, len(self._known) - REMEMBERED)]:
            del self._known[oldest]
        requested = sum(name != "" for name in ids)
        self._count("requested", requested)
        self._count("requests", len(new))
        self._count("cache_hits", requested - len(new))
        self._count("seconds", time.monotonic() - start)
        return results

    def check(self) -> None:
        """Load the model and render a dialogue. Raises ValueError with the fix."""
        policy = self._load()
        prompt_text(policy.tokenizer, Request([{"role": "system", "content": "x"}, {"role": "user", "content": "x"}]))

    def counts(self) -> Mapping[str, float]:
        """Metrics since the last call: requested (failures), requests, cache_hits, completion_tokens, seconds."""
        counts, self._counts = self._counts, Counter()
        return dict(counts)

    def state(self) -> dict[str, Any]:
        """Return the remembered answers in their order, so that a resumed run repeats no request."""
        return {"known": [[name, *astuple(answer)] for name, answer in self._known.items()]}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self._known = {name: Diagnosis(*answer) for name, *answer in state["known"]}

    def _generate(self, failures: Sequence[Failure]) -> list[Diagnosis]:
        """One answer each. If a batch raises, its failures are processed one by one, so that only one is lost."""
        if not failures:
            return []
        try:
            policy = self._load()
            settings = self._settings or PromptSettings()
            special_tokens = SpecialTokenFilter.from_tokenizer(policy.tokenizer)
            dialogues = [settings.messages(failure) for failure in failures]
            for *_, last in dialogues:
                last["content"] = special_tokens.sanitize(last["content"])  # the failure's text must not start a turn
            replies = policy.reply([Request(dialogue) for dialogue in dialogues])
        except Exception as error:  # noqa: BLE001 - a fault of a model costs answers, never the training run
            if len(failures) > 1 and self._policy is not None:
                return [answer for failure in failures for answer in self._generate([failure])]
            _log.warning("feedback source local failed on task %s", failures[0].task.id, exc_info=True)
            return [Diagnosis(None, f"raised {type(error).__name__}")] * len(failures)
        self._count("completion_tokens", sum(reply.tokens for reply in replies))
        return [
            Diagnosis(None, "prompt too long")
            if reply.truncated and not reply.tokens
            else as_runtime(
                usable_text(reply.text, reply.truncated, dialogue[-1]["content"]), failure, settings.templates
            )
            for reply, dialogue, failure in zip(replies, dialogues, failures, strict=True)
        ]

    def _load(self) -> LocalPolicy:
        model, tokenizer = self._model, self._tokenizer
        if self._settings is None:
            folder = model if isinstance(model, str | Path) else getattr(model, "name_or_path", "")
            self._settings = read_settings(Path(folder).expanduser())
        if self._policy is None:
            if isinstance(model, str | Path):
                model, tokenizer = load_model(str(model), tokenizer)
            self._policy = LocalPolicy(model, tokenizer, 0.0, self._max_new_tokens, self._batch_size)
            if self._policy.sharing:
                self._policy.sharing.remember = False  # no dialogue goes on: training needs the memory
        return self._policy

    def _count(self, name: str, number: float) -> None:
        self._counts[f"feedback/model/{name}"] += number  # pyright: ignore[reportArgumentType] - seconds are fractions
