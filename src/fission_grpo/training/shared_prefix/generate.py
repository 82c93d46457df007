"""Generation with every prompt read once: `model.generate`, with the same arguments, result and random draws.

`generate` itself prepares settings, logits processors and stopping criteria; what it hands over to (its public
`custom_generate`) is the loop below: one prompt per group is read, the rows of the group see its keys, rows that have
ended leave the batch, and a later turn of a dialogue reads only what has been added to it.

Random draws are those of `generate`: each token is drawn from all B rows, ended ones included, so the same seed gives
the same tokens unless two differ by less than rounding.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel

from fission_grpo.training.shared_prefix.check import generation_agrees
from fission_grpo.training.shared_prefix.rows import (
    Part,
    Prompts,
    Rows,
    joined,
    read_prompts,
    token_bytes,
)
from fission_grpo.training.shared_prefix.update import causal_lm, unsupported, use_attention

_log = logging.getLogger(__name__)


LEAVING_SHARE = 8
"""[ours] Ended rows leave the batch when they are at least one in so many of it: copying the others' caches costs."""


_KNOWN = {
    "input_ids",
    "attention_mask",
    "generation_config",
    "logits_processor",
    "stopping_criteria",
    "synced_gpus",
    *vars(GenerationConfig()),
}


_PLAIN: dict[str, Any] = {
    "num_beams": (None, 1),
    "num_return_sequences": (None, 1),
    "return_dict_in_generate": (None, False),
    "use_cache": (None, True),
    "cache_implementation": (None,),
    "prefill_chunk_size": (None,),
    "penalty_alpha": (None, 0),
    "dola_layers": (None,),
    "prompt_lookup_num_tokens": (None,),
    "guidance_scale": (None, 1),
    "token_healing": (None, False),
}
"""Generation settings with which the loop below is `generate`'s own."""


class SharedGeneration:
    """Lets a model generate with shared prompts, while `on(model)` lasts.

    Args:
        remember: keep what was read until `on` ends or `forget` is called, so that dialogues are continued without
            reading them again (tool loops). The weights must not change meanwhile.

    Attributes:
        counts: what happened: "shared" and "unshared" calls of `generate`, "prompt_tokens" that were asked for and
            "read_tokens" of them that were computed, "row_steps" of `generate`'s loop and "computed_row_steps".
        reasons: calls that were not shared, by why.
    """

    def __init__(self, remember: bool = True):
        self.remember = remember
        self.counts: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()
        self._agrees: bool | None = None
        self.forget()

    def forget(self) -> None:
        """Free what was read."""
        self._prompts: Prompts | None = None
        self._parts: list[Part] = []

    @contextmanager
    def on(self, model: nn.Module) -> Iterator[None]:
        """While it lasts, `generate` of this model (wrapped by PEFT or DDP or not) shares prompts where it can."""
        decoder: Any = causal_lm(model)
        plain, own = decoder.generate, vars(decoder).get("generate")

        def generate(*args: Any, **kwargs: Any) -> Any:
            reason = self._why_not(model, decoder, args, kwargs)
            if reason is None:
                try:
                    return plain(custom_generate=self._loop, **kwargs)
                except _NotSharedError as error:
                    reason = str(error)
            self._count_unshared(reason)
            return plain(*args, **kwargs)

        decoder.generate = generate
        try:
            yield
        finally:
            self.forget()
            if own is None:
                del decoder.generate
            else:
                decoder.generate = own

    def _why_not(
        self, model: nn.Module, decoder: PreTrainedModel, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> str | None:
        if reason := unsupported(model):
            return reason
        more = sorted(name for name in kwargs.keys() - _KNOWN if kwargs[name] is not None)
        if args or more or kwargs.get("input_ids") is None:
            return f"generate was called with {', '.join(more) or 'positional arguments or without input_ids'}"
        if kwargs.get("synced_gpus") or (kwargs.get("synced_gpus") is None and _is_synced(decoder)):
            return "the model is sharded (FSDP or ZeRO-3), so that all ranks must generate in step"
        use_attention(decoder)
        if self._agrees is None:
            ids = kwargs["input_ids"]
            self._agrees = generation_agrees(decoder, ids, _mask(kwargs.get("attention_mask"), ids))
        return None if self._agrees else "the self-check failed"

    def _count_unshared(self, reason: str) -> None:
        if reason not in self.reasons:
            _log.warning("generation does not share prompts: %s.", reason)
        self.reasons[reason] += 1
        self.counts["unshared"] += 1

    def _loop(
        self,
        model: PreTrainedModel,
        input_ids: Tensor,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: GenerationConfig,
        **model_kwargs: Any,
    ) -> Tensor:
        """What `generate` hands over to. Returns (B, P + R) token ids, prompts included, as `generate` does."""
        for name, plain in _PLAIN.items():
            if getattr(generation_config, name, None) not in plain:
                raise _NotSharedError(f"{name} is {getattr(generation_config, name)!r}")
        mask = _mask(model_kwargs.get("attention_mask"), input_ids)
        rows, logits = self._begin(model, input_ids, mask)
        pad: Any = getattr(generation_config, "_pad_token_tensor", None)
        ends = any(hasattr(criterion, "eos_token_id") for criterion in stopping_criteria)
        self.counts["shared"] += 1
        width, count = input_ids.shape[1], len(input_ids)
        unfinished = torch.ones(count, dtype=torch.int64, device=input_ids.device)
        lengths = torch.zeros_like(unfinished)
        while True:
            scores = logits_processor(input_ids, logits.to(copy=True, dtype=torch.float32))
            if generation_config.do_sample:
                tokens = torch.multinomial(scores.softmax(-1), num_samples=1).squeeze(1)
            else:
                tokens = scores.argmax(-1)
            if ends:
                tokens = tokens * unfinished + pad.to(tokens.device) * (1 - unfinished)
            input_ids = torch.cat([input_ids, tokens[:, None]], 1)
            lengths += unfinished
            unfinished = unfinished & ~stopping_criteria(input_ids, None)
            here = unfinished[rows.index].bool() if ends else unfinished.new_ones(len(rows.index)).bool()
            staying = int(here.sum())
            if not int(unfinished.max()):
                break
            if (len(here) - staying) * LEAVING_SHARE >= len(here):
                self._keep(rows, ~here, input_ids, mask, width, lengths)
                rows.only(here.nonzero()[:, 0])
            logits[rows.index] = rows.feed(tokens[rows.index, None])
            self.counts["row_steps"] += count
            self.counts["computed_row_steps"] += len(rows.index)
        self._keep(rows, None, input_ids, mask, width, lengths)
        return input_ids

    def _begin(self, model: PreTrainedModel, ids: Tensor, mask: Tensor) -> tuple[Rows, Tensor]:
        """The rows after their prompts, and (B, V) logits of their first new tokens."""
        found = [token_bytes(row[seen]) for row, seen in zip(ids, mask.bool(), strict=True)]
        self.counts["prompt_tokens"] += int(mask.sum())
        parts, self._parts = self._parts, []
        if self._prompts is not None and (chosen := _matches(found, parts)):
            kept = joined(parts, chosen)
            sizes = mask.sum(1) - torch.tensor([len(known) // 8 for known in kept.known], device=ids.device)
            new = int(sizes.max())
            self.counts["read_tokens"] += int(sizes.sum())
            rows = Rows(model, self._prompts, kept.prompt, kept)
            valid = torch.arange(new, device=ids.device) >= new - sizes[:, None]
            return rows, rows.feed(ids[:, -new:], None if bool(valid.all()) else valid)
        numbers: dict[bytes, int] = {}
        prompt = torch.tensor([numbers.setdefault(one, len(numbers)) for one in found], device=ids.device)
        firsts = torch.tensor([found.index(one) for one in numbers], device=ids.device)
        longest = max(map(len, numbers)) // 8
        self._prompts, logits = read_prompts(model, ids[firsts, -longest:], mask[firsts, -longest:])
        self.counts["read_tokens"] += int(self._prompts.lengths.sum())
        return Rows(model, self._prompts, prompt), logits[prompt]

    def _keep(
        self, rows: Rows, leaving: Tensor | None, ids: Tensor, mask: Tensor, width: int, lengths: Tensor
    ) -> None:
        """Remember rows that leave (N,) bool (None: all), of which a later turn may be a continuation."""
        if not self.remember:
            return
        at = torch.arange(len(rows.index), device=ids.device) if leaving is None else leaving.nonzero()[:, 0]
        index = rows.index[at]
        fed = ids.shape[1] - width - 1  # the last token drawn has not been read
        own = lengths[index].clamp(max=fed)
        valid = rows.valid[at]
        before = valid.shape[1] - fed
        valid[:, before:] &= torch.arange(fed, device=ids.device) < own[:, None]
        known = [
            token_bytes(torch.cat([ids[row, :width][mask[row].bool()], ids[row, width : width + length]]))
            for row, length in zip(index.tolist(), own.tolist(), strict=True)
        ]
        states = rows.states()
        if leaving is not None:
            states = [(k.index_select(0, at), v.index_select(0, at)) for k, v in states]
        self._parts.append(Part(states, valid, rows.prompt[at], known))


class _NotSharedError(Exception):
    """Generation with these settings is left to `generate`."""


def _mask(mask: Tensor | None, ids: Tensor) -> Tensor:
    return torch.ones_like(ids) if mask is None else mask


def _matches(prompts: list[bytes], parts: list[Part]) -> list[tuple[int, int]]:
    """For each prompt the (part, row) that holds the longest beginning of it; empty if some prompt has none."""
    kept = [(known, number, row) for number, part in enumerate(parts) for row, known in enumerate(part.known)]
    kept.sort(key=lambda one: -len(one[0]))
    chosen = []
    for prompt in prompts:
        fits = ((n, row) for known, n, row in kept if len(known) < len(prompt) and prompt.startswith(known))
        if (best := next(fits, None)) is None:
            return []
        chosen.append(best)
    return chosen


def _is_synced(model: nn.Module) -> bool:
    """As `generate` decides whether ranks go on until all have ended."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return False
    from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
    from transformers.integrations.fsdp import is_fsdp_managed_module

    sharded = is_deepspeed_zero3_enabled() or is_fsdp_managed_module(model)
    return sharded and torch.distributed.get_world_size() > 1
