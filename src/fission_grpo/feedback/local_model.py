"""Feedback of a transformers model in this process: a trained error simulator, or any chat model."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

from fission_grpo.core.serialization import recovery_id
from fission_grpo.core.special_tokens import SpecialTokenFilter
from fission_grpo.core.types import Failure, Message
from fission_grpo.feedback.postprocess import usable_text
from fission_grpo.feedback.prompt import LEFT_TO_RULES, PromptSettings, read_settings
from fission_grpo.feedback.sources import Diagnosis, completed
from fission_grpo.inference.base import Reply, Request
from fission_grpo.inference.local import LocalPolicy, prompt_text
from fission_grpo.inference.pretrained import model_path

REMEMBERED = 50_000
"""Answers kept in memory; beyond it the oldest are dropped. [ours]"""

_log = logging.getLogger(__name__)


class LocalModelFeedback:
    """Feedback of a causal language model in this process, decoded greedily in batches; a `FeedbackSource`.

    The model is loaded when it is first needed (by `check`, or the first failure). Equal failures are processed once.
    Reasons for missing feedback: those of `usable_text`, "prompt too long" and "raised <error>". Failures of the kinds
    in `LEFT_TO_RULES` are left to the next source.

    Args:
        model_or_path: a model with `generate`; or a folder (weights, or a LoRA adapter) or hub id.
        tokenizer: of the model, if it is not beside its weights.
        max_new_tokens: most tokens of one answer.
        batch_size: failures per batch.
        characters: longest prompt, `system`: the system prompt, `brief`: tools as signatures (see
            `simulator_messages`). None: as in the folder's `simulator.json`, which training wrote; else the defaults.
    """

    name = "local"
    asynchronous = False

    def __init__(
        self,
        model_or_path: Any,
        tokenizer: Any = None,
        max_new_tokens: int = 96,
        batch_size: int = 16,
        characters: int | None = None,
        system: str | None = None,
        brief: bool | None = None,
    ):
        self._model, self._tokenizer = model_or_path, tokenizer
        self._max_new_tokens, self._batch_size = max_new_tokens, batch_size
        self._overrides = {"characters": characters, "system": system, "brief": brief}
        self._policy: LocalPolicy | None = None
        self._settings = PromptSettings()
        self._known: dict[str, Diagnosis] = {}
        self._counts: Counter[str] = Counter()

    def start(self, failures: Sequence[Failure]) -> list[Future[Diagnosis]]:
        """Generate feedback; the futures are done."""
        start = time.monotonic()
        ids = [None if failure.kind in LEFT_TO_RULES else recovery_id(failure) for failure in failures]
        new: dict[str, Failure] = {}
        for name, failure in zip(ids, failures, strict=True):
            if name is not None and name not in self._known:
                new.setdefault(name, failure)
        answers = dict(zip(new, self._generate(list(new.values())), strict=True)) if new else {}
        results = [Diagnosis(None) if name is None else answers.get(name) or self._known[name] for name in ids]
        for name, answer in answers.items():
            if not (answer.reason or "").startswith("raised"):  # another attempt may succeed (out of memory)
                self._known[name] = answer
        for oldest in list(self._known)[: max(0, len(self._known) - REMEMBERED)]:
            del self._known[oldest]
        requested = sum(name is not None for name in ids)
        self._count(requested=requested, requests=len(new), cache_hits=requested - len(new))
        self._count(seconds=time.monotonic() - start)
        return [completed(answer) for answer in results]

    def check(self) -> None:
        """Load the model and render a dialogue. Raises ValueError with the fix."""
        policy = self._load()
        prompt_text(policy.tokenizer, Request([{"role": "system", "content": "x"}, {"role": "user", "content": "x"}]))

    def counts(self) -> Mapping[str, float]:
        """Return metrics since the last call: "feedback/model/" and requested (failures), requests (to the model),
        cache_hits, completion_tokens and seconds."""
        counts, self._counts = self._counts, Counter()
        return dict(counts)

    def state(self) -> dict[str, Any]:
        """Return the remembered answers in their order, so that a resumed run repeats no request."""
        return {"known": [[name, answer.text, answer.reason] for name, answer in self._known.items()]}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self._known = {name: Diagnosis(text, reason) for name, text, reason in state["known"]}

    def _generate(self, failures: Sequence[Failure]) -> list[Diagnosis]:
        """One answer each. If a batch raises, its failures are processed one by one, so that only one is lost."""
        try:
            policy = self._load()
            requests = [Request(_sanitize(self._settings.messages(failure), policy)) for failure in failures]
            replies = policy.reply(requests)
        except Exception as error:  # noqa: BLE001 - a fault of a model costs answers, never the training run
            if len(failures) > 1 and self._policy is not None:
                return [answer for failure in failures for answer in self._generate([failure])]
            _log.warning("feedback source local failed on task %s", failures[0].task.id, exc_info=True)
            return [Diagnosis(None, f"raised {type(error).__name__}")] * len(failures)
        self._count(completion_tokens=sum(reply.tokens for reply in replies))
        return [_read_reply(reply, request) for reply, request in zip(replies, requests, strict=True)]

    def _load(self) -> LocalPolicy:
        """The model as a policy. Raises ValueError if it cannot be loaded."""
        if self._policy is None:
            overrides = {key: value for key, value in self._overrides.items() if value is not None}
            folder = self._model if isinstance(self._model, str | Path) else getattr(self._model, "name_or_path", "")
            self._settings = replace(read_settings(Path(str(folder)).expanduser()), **overrides)
            model, tokenizer = self._model, self._tokenizer
            if isinstance(model, str | Path):
                model, tokenizer = _load_model(model_path(str(model)), tokenizer)
            self._policy = LocalPolicy(model, tokenizer, 0.0, self._max_new_tokens, self._batch_size)
        return self._policy

    def _count(self, **numbers: float) -> None:
        self._counts.update({f"feedback/model/{name}": number for name, number in numbers.items()})  # pyright: ignore


def _sanitize(messages: Sequence[Message], policy: LocalPolicy) -> list[Message]:
    """The messages with special tokens in the failure's text broken up, so that it cannot start a turn."""
    *earlier, last = messages
    special_tokens = SpecialTokenFilter.from_tokenizer(policy.tokenizer)
    return [*earlier, {**last, "content": special_tokens.sanitize(last["content"])}]


def _read_reply(reply: Reply, request: Request) -> Diagnosis:
    if reply.truncated and not reply.tokens:
        return Diagnosis(None, "prompt too long")
    return usable_text(reply.text, reply.truncated, str(request.messages[-1]["content"]))


def _load_model(path: str, tokenizer: Any) -> tuple[Any, Any]:
    """Model and tokenizer: on a GPU in the model's dtype, on a CPU in float32. The random state is kept."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if torch.cuda.is_available():
        placement: Any = {"dtype": "auto", "device_map": f"cuda:{torch.cuda.current_device()}"}
    else:
        placement = {"dtype": torch.float32}
    with torch.random.fork_rng():
        try:
            model = AutoModelForCausalLM.from_pretrained(
                path, use_safetensors=True, trust_remote_code=False, **placement
            )
            tokenizer = tokenizer or AutoTokenizer.from_pretrained(path, trust_remote_code=False)
        except (OSError, ValueError, KeyError) as error:
            problem = " ".join(str(error).split())[:300]
            raise ValueError(f"model: {path} cannot be loaded as a causal language model ({problem})") from error
    return model, tokenizer
