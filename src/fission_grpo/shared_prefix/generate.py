"""Generation that computes each prompt once: `model.generate`, with the same arguments, result and random draws.

`generate` itself prepares settings, logits processors and stopping criteria, and calls the loop below (its public
`custom_generate`). The loop computes one prompt per group, removes ended rows from the batch, and reads only the new
tokens of a dialogue's later turn. Each token is drawn from all B rows, ended ones included, as `generate` does: the
same seed gives the same tokens unless the probabilities of two differ by less than rounding.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from transformers.integrations.fsdp import is_fsdp_managed_module

from fission_grpo.core.terminal import get_logger
from fission_grpo.shared_prefix.check import generation_agrees
from fission_grpo.shared_prefix.models import causal_lm, unsupported, use_attention
from fission_grpo.shared_prefix.rows import (
    CachedRows,
    FinishedRows,
    compute_prompts,
    select_rows,
    token_bytes,
)

_log = get_logger(__name__)

MIN_ENDED_SHARE = 8  # [ours] ended rows leave the batch when they are 1 / 8 of it: copying the others takes time

_KNOWN_ARGUMENTS = {
    "input_ids",
    "attention_mask",
    "generation_config",
    "logits_processor",
    "stopping_criteria",
    "synced_gpus",
    *vars(GenerationConfig()),
}

_SUPPORTED_SETTINGS: dict[str, Any] = {
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
"""Generation settings that change `generate`'s own loop, and the values with which ours is equal to it."""


class SharedGeneration:
    """Makes a model's `generate` compute shared prompts once, inside `with sharing.on(model)`.

    Args:
        remember: keep caches until `on` ends or `forget` is called, so that later turns of a dialogue (tool loops)
            read only new tokens. The weights must not change meanwhile.

    `counts` has "shared" and "unshared" calls of `generate`, the "prompt_tokens" of shared ones and the "read_tokens"
    of these that were computed, "row_steps" of `generate`'s loop and the "computed_row_steps" of these.
    """

    def __init__(self, remember: bool = True):
        self.remember = remember
        self.counts: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()  # unshared calls
        self._agrees: bool | None = None
        self.forget()

    def forget(self) -> None:
        """Free the caches."""
        self._prompts = None
        self._finished: list[FinishedRows] = []

    @contextmanager
    def on(self, model: nn.Module) -> Iterator[None]:
        """Replace `generate` of this model (wrapped by PEFT or DDP or not) for the duration of the context."""
        decoder: Any = causal_lm(model)
        original, own = decoder.generate, vars(decoder).get("generate")

        def generate(*args: Any, **kwargs: Any) -> Any:
            reason = self._why_not(model, decoder, args, kwargs)
            if reason is None:
                try:
                    return original(custom_generate=self._loop, **kwargs)
                except _NotSharedError as error:
                    reason = str(error)
            if reason not in self.reasons:
                _log.warning("generation does not share prompts: %s.", reason)
            self.reasons[reason] += 1
            self.counts["unshared"] += 1
            return original(*args, **kwargs)

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
        """The reason why a call of `generate` cannot share prompts; None if it can."""
        if reason := unsupported(model):
            return reason
        unknown = sorted(name for name in kwargs.keys() - _KNOWN_ARGUMENTS if kwargs[name] is not None)
        if args or unknown or kwargs.get("input_ids") is None:
            return f"generate was called with {', '.join(unknown) or 'positional arguments or without input_ids'}"
        if kwargs.get("synced_gpus") or (kwargs.get("synced_gpus") is None and _is_synced(decoder)):
            return "the model is sharded (FSDP or ZeRO-3), so that all ranks must generate in step"
        use_attention(decoder)
        if self._agrees is None:
            ids = kwargs["input_ids"]
            self._agrees = generation_agrees(decoder, ids, _mask_of(kwargs, ids))
        return None if self._agrees else "the self-check failed"

    def _loop(
        self,
        model: PreTrainedModel,
        input_ids: Tensor,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: GenerationConfig,
        **model_kwargs: Any,
    ) -> Tensor:
        """The `custom_generate` of `generate`. Returns (B, P + R) token ids, prompts included."""
        for name, supported in _SUPPORTED_SETTINGS.items():
            if getattr(generation_config, name, None) not in supported:
                raise _NotSharedError(f"{name} is {getattr(generation_config, name)!r}")
        mask = _mask_of(model_kwargs, input_ids)
        rows, logits = self._start(model, input_ids, mask)
        pad: Any = getattr(generation_config, "_pad_token_tensor", None)
        has_eos = any(hasattr(criterion, "eos_token_id") for criterion in stopping_criteria)
        self.counts["shared"] += 1
        unfinished = torch.ones(len(input_ids), dtype=torch.int64, device=input_ids.device)
        lengths = torch.zeros_like(unfinished)
        while True:
            scores = logits_processor(input_ids, logits.to(copy=True, dtype=torch.float32))
            if generation_config.do_sample:
                tokens = torch.multinomial(scores.softmax(-1), num_samples=1).squeeze(1)
            else:
                tokens = scores.argmax(-1)
            if has_eos:
                tokens = tokens * unfinished + pad.to(tokens.device) * (1 - unfinished)
            input_ids = torch.cat([input_ids, tokens[:, None]], 1)
            lengths += unfinished
            unfinished = unfinished & ~stopping_criteria(input_ids, None)
            staying = unfinished[rows.index].bool() if has_eos else unfinished.new_ones(len(rows.index)).bool()
            if not int(unfinished.max()):
                break
            if (len(staying) - int(staying.sum())) * MIN_ENDED_SHARE >= len(staying):
                self._remember(rows, ~staying, input_ids, mask, lengths)
                rows.keep_only(staying.nonzero()[:, 0])
            logits[rows.index] = rows.feed(tokens[rows.index, None])
            self.counts["row_steps"] += len(input_ids)
            self.counts["computed_row_steps"] += len(rows.index)
        self._remember(rows, torch.ones_like(staying), input_ids, mask, lengths)
        return input_ids

    def _start(self, model: PreTrainedModel, ids: Tensor, mask: Tensor) -> tuple[CachedRows, Tensor]:
        """The rows after their prompts, and (B, V) logits of their first new tokens."""
        row_tokens = [token_bytes(row[is_token]) for row, is_token in zip(ids, mask.bool(), strict=True)]
        self.counts["prompt_tokens"] += int(mask.sum())
        finished, self._finished = self._finished, []
        if self._prompts is not None and (chosen := _longest_prefixes(row_tokens, finished)):
            earlier = select_rows(finished, chosen)
            cached = torch.tensor([len(tokens) // 8 for tokens in earlier.tokens], device=ids.device)
            sizes = mask.sum(1) - cached
            new = int(sizes.max())
            self.counts["read_tokens"] += int(sizes.sum())
            rows = CachedRows(model, self._prompts, earlier.prompt, earlier)
            valid = torch.arange(new, device=ids.device) >= new - sizes[:, None]
            return rows, rows.feed(ids[:, -new:], None if bool(valid.all()) else valid)
        numbers: dict[bytes, int] = {}
        prompt = torch.tensor([numbers.setdefault(one, len(numbers)) for one in row_tokens], device=ids.device)
        firsts = torch.tensor([row_tokens.index(one) for one in numbers], device=ids.device)
        longest = max(map(len, numbers)) // 8
        self._prompts, logits = compute_prompts(model, ids[firsts, -longest:], mask[firsts, -longest:])
        self.counts["read_tokens"] += int(self._prompts.lengths.sum())
        return CachedRows(model, self._prompts, prompt), logits[prompt]

    def _remember(self, rows: CachedRows, leaving: Tensor, ids: Tensor, mask: Tensor, lengths: Tensor) -> None:
        """Keep the caches of rows that leave.

        Args:
            rows: the rows still in the batch; `leaving` is a bool for each of them.
            ids: (B, P + new) int, prompts and all tokens drawn; `mask` (B, P) is the prompts'.
            lengths: (B,) int, tokens drawn before a row ended.
        """
        if not self.remember:
            return
        width = mask.shape[1]
        at = leaving.nonzero()[:, 0]
        index = rows.index[at]
        read = ids.shape[1] - width - 1  # the last token drawn has not been read
        own = lengths[index].clamp(max=read)
        valid = rows.valid[at]
        valid[:, valid.shape[1] - read :] &= torch.arange(read, device=ids.device) < own[:, None]
        tokens = [
            token_bytes(torch.cat([ids[row, :width][mask[row].bool()], ids[row, width : width + length]]))
            for row, length in zip(index.tolist(), own.tolist(), strict=True)
        ]
        states = rows.states()
        if len(at) < len(leaving):
            states = [(k.index_select(0, at), v.index_select(0, at)) for k, v in states]
        self._finished.append(FinishedRows(states, valid, rows.prompt[at], tokens))


class _NotSharedError(Exception):
    """These generation settings are left to `generate`."""


def _mask_of(kwargs: dict[str, Any], ids: Tensor) -> Tensor:
    mask = kwargs.get("attention_mask")
    return torch.ones_like(ids) if mask is None else mask


def _longest_prefixes(prompts: list[bytes], finished: list[FinishedRows]) -> list[tuple[int, int]]:
    """For each prompt the (part, row) that holds its longest prefix; empty if some prompt has none."""
    candidates = [(tokens, n, row) for n, part in enumerate(finished) for row, tokens in enumerate(part.tokens)]
    candidates.sort(key=lambda candidate: -len(candidate[0]))
    chosen = []
    for prompt in prompts:
        fitting = ((n, row) for known, n, row in candidates if len(known) < len(prompt) and prompt.startswith(known))
        chosen.append(next(fitting, None))
    return [] if None in chosen else chosen


def _is_synced(model: nn.Module) -> bool:
    """Whether `generate` makes ranks go on until all have ended."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return False
    return torch.distributed.get_world_size() > 1 and (is_deepspeed_zero3_enabled() or is_fsdp_managed_module(model))
