"""A transformers model in this process as a source of diagnoses: the trained simulator, or any chat model."""

from __future__ import annotations

import logging
import time
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
"""Answers kept in memory; beyond it the oldest go. [ours]"""


_log = logging.getLogger(__name__)


class LocalModelFeedback:
    """Diagnoses with a causal language model in this process, greedily, in batches, at once.

    The model is loaded when it is first needed (by `check`, or the first failure). The same failure is asked once.
    What the model does wrong costs one diagnosis, with a reason: those of `usable_text`, "prompt too long", or
    "raised <error>". Failures of the kinds in `LEFT_TO_RULES` are left to the next source.

    Args:
        model_or_path: a model with `generate`; or a folder (weights, or a LoRA adapter) or hub id.
        tokenizer: of the model, if it is not beside its weights.
        max_new_tokens: longest diagnosis, in tokens.
        batch_size: failures read at a time.
        characters: longest prompt, `system`: the system prompt, `brief`: tools as signatures (see
            `simulator_messages`). None: as in the folder's `simulator.json`, which training wrote; else the defaults.
    """

    name = "local"
    later = False

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
        self._limits = (max_new_tokens, batch_size)
        self._given = {"characters": characters, "system": system, "brief": brief}
        self._policy: LocalPolicy | None = None
        self._settings = PromptSettings()
        self._known: dict[str, Diagnosis] = {}
        self._counts: dict[str, float] = {}

    def start(self, failures: Sequence[Failure]) -> list[Future[Diagnosis]]:
        """Diagnose; the futures are done."""
        asked: dict[str, Failure] = {}
        for failure in failures:
            if failure.kind not in LEFT_TO_RULES and recovery_id(failure) not in self._known:
                asked.setdefault(recovery_id(failure), failure)
        began = time.monotonic()
        new = dict(zip(asked, self._ask(list(asked.values())), strict=True)) if asked else {}
        wanted = [None if failure.kind in LEFT_TO_RULES else recovery_id(failure) for failure in failures]
        answers = [Diagnosis(None) if one is None else new.get(one) or self._known[one] for one in wanted]
        lasting = {one: answer for one, answer in new.items() if not (answer.reason or "").startswith("raised")}
        self._known |= lasting  # what raised (out of memory) may go well another time
        for oldest in list(self._known)[: max(0, len(self._known) - REMEMBERED)]:
            del self._known[oldest]
        put = sum(one is not None for one in wanted)
        self._count(asked=put, requests=len(asked), cache_hits=put - len(asked))
        self._count(seconds=time.monotonic() - began)
        return [completed(answer) for answer in answers]

    def check(self) -> None:
        """Load the model and render a dialogue. Raises ValueError that says what to mend."""
        policy = self._loaded()
        prompt_text(policy.tokenizer, Request([{"role": "system", "content": "x"}, {"role": "user", "content": "x"}]))

    def counts(self) -> Mapping[str, float]:
        """Since last taken, as metrics `feedback/model/<name>`: failures `asked` about, `requests` to the model,
        `cache_hits` (answers remembered), `completion_tokens`, `seconds` of work."""
        taken, self._counts = self._counts, {}
        return taken

    def state(self) -> dict[str, Any]:
        """The answers remembered, in their order, so that a resumed run asks nothing twice."""
        return {"known": [[one, answer.text, answer.reason] for one, answer in self._known.items()]}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self._known = {one: Diagnosis(text, reason) for one, text, reason in state["known"]}

    def _ask(self, failures: Sequence[Failure]) -> list[Diagnosis]:
        """One answer each. Where a batch breaks, its failures are asked one by one, so that only one is lost."""
        try:
            policy = self._loaded()
            requests = [Request(_without_control(self._settings.messages(failure), policy)) for failure in failures]
            replies = policy.reply(requests)
        except Exception as error:  # noqa: BLE001 - any fault of a model costs diagnoses, never the training run
            if len(failures) > 1 and self._policy is not None:
                return [answer for failure in failures for answer in self._ask([failure])]
            _log.warning("diagnosis source local failed on task %s", failures[0].task.id, exc_info=True)
            return [Diagnosis(None, f"raised {type(error).__name__}")] * len(failures)
        self._count(completion_tokens=sum(reply.tokens for reply in replies))
        return [_answer(reply, request) for reply, request in zip(replies, requests, strict=True)]

    def _loaded(self) -> LocalPolicy:
        """The model as a policy, and the settings it is asked with. Raises ValueError where there is no such model."""
        if self._policy is None:
            given = {key: value for key, value in self._given.items() if value is not None}
            folder = self._model if isinstance(self._model, str | Path) else getattr(self._model, "name_or_path", "")
            self._settings = replace(read_settings(Path(str(folder)).expanduser()), **given)
            model, tokenizer = self._model, self._tokenizer
            if isinstance(model, str | Path):
                model, tokenizer = _load(model_path(str(model)), tokenizer)
            self._policy = LocalPolicy(model, tokenizer, 0.0, *self._limits)
        return self._policy

    def _count(self, **more: float) -> None:
        for key, value in more.items():
            self._counts[f"feedback/model/{key}"] = self._counts.get(f"feedback/model/{key}", 0) + value


def _without_control(messages: Sequence[Message], policy: LocalPolicy) -> list[Message]:
    """A failure is data: what the policy or a tool wrote must not begin a turn of the simulator's dialogue."""
    return [
        *messages[:-1],
        {
            **messages[-1],
            "content": SpecialTokenFilter.from_tokenizer(policy.tokenizer).sanitize(messages[-1]["content"]),
        },
    ]


def _answer(reply: Reply, request: Request) -> Diagnosis:
    if reply.truncated and not reply.tokens:
        return Diagnosis(None, "prompt too long")
    return usable_text(reply.text, reply.truncated, str(request.messages[-1]["content"]))


def _load(path: str, tokenizer: Any) -> tuple[Any, Any]:
    """Model and tokenizer; on a GPU in its own dtype, on a CPU in float32. The random state is left as it was."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    gpu = torch.cuda.is_available()
    where: Any = (
        {"dtype": "auto", "device_map": f"cuda:{torch.cuda.current_device()}"} if gpu else {"dtype": torch.float32}
    )
    with torch.random.fork_rng():
        try:
            where |= {"use_safetensors": True, "trust_remote_code": False}
            model = AutoModelForCausalLM.from_pretrained(path, **where)
            tokenizer = tokenizer or AutoTokenizer.from_pretrained(path, trust_remote_code=False)
        except (OSError, ValueError, KeyError) as error:
            what = " ".join(str(error).split())[:300]
            raise ValueError(f"model: {path} cannot be loaded as a causal language model ({what})") from error
    return model, tokenizer
