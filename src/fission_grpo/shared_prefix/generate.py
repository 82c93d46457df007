"""Generation that computes each prompt once: `model.generate`, with the same arguments, result and random draws.

`generate` itself prepares settings, logits processors and stopping criteria, and calls the loop below (its public
`custom_generate`). The loop computes what prompts have in common once, removes ended rows from the batch, and reads
only the new tokens of a dialogue's later turn. Each token is drawn from all B rows, ended ones included, as `generate`
does: the same seed gives the same tokens unless the probabilities of two differ by less than rounding.
"""

from __future__ import annotations

import inspect
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
from fission_grpo.shared_prefix.kv_cache import CACHE_ARGUMENTS, find_cache_argument
from fission_grpo.shared_prefix.models import causal_lm, unsupported, use_attention
from fission_grpo.shared_prefix.prefix_cache import PrefixCache, weights_version
from fission_grpo.shared_prefix.reading import Reader, generation_agrees
from fission_grpo.shared_prefix.rows import CachedRows

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
        remember: keep keys and values of all prompts and completions, so that later turns of a dialogue (tool loops)
            read only new tokens; False: only of what several prompts begin with.
        limit: most bytes kept, see `PrefixCache`.

    What is kept is forgotten when the weights change. `counts` has "shared" and "unshared" calls of `generate`, the
    "prompt_tokens" of shared ones and the "read_tokens" of these that were computed, "evicted_tokens" that were no
    longer kept because of the limit, "row_steps" of `generate`'s loop and the "computed_row_steps" of these.
    """

    def __init__(self, remember: bool = True, limit: int | None = None):
        self.remember = remember
        self.cache = PrefixCache(limit)
        self.counts: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()  # unshared calls
        self._agrees: bool | None = None

    def forget(self) -> None:
        """Free what is kept."""
        self.cache.clear()

    @contextmanager
    def on(self, model: nn.Module) -> Iterator[None]:
        """Replace `generate` of this model (wrapped by PEFT or DDP or not) for the duration of the context.

        One thread at a time: contexts of one model must not end in the order in which they began.
        """
        decoder: Any = causal_lm(model)
        original, own = decoder.generate, vars(decoder).get("generate")
        parameters = inspect.signature(original).parameters
        takes_loop = "custom_generate" in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())

        def generate(*args: Any, **kwargs: Any) -> Any:
            if getattr(kwargs.get("custom_generate"), "__func__", None) is SharedGeneration._loop:
                return original(*args, **kwargs)  # of a context within this one
            reason = "generate was replaced" if not takes_loop else self._why_not(model, decoder, args, kwargs)
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
        if find_cache_argument(decoder) is None:
            return f"its forward takes no KV cache by the name {' or '.join(CACHE_ARGUMENTS)}"
        ids, mask = kwargs["input_ids"], _mask_of(kwargs, kwargs["input_ids"])
        if not bool(mask.any(1).all()):
            return "a prompt is empty"
        use_attention(decoder)
        self.cache.use(weights_version(decoder))
        if self._agrees is None:
            self._agrees = generation_agrees(decoder, _rows_without_padding(ids, mask))
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
        reader = Reader(model, self.cache, self.remember)
        prompts = _rows_without_padding(input_ids, mask)
        rows, logits = reader.rows_of(prompts)
        self.counts["prompt_tokens"] += int(mask.sum())
        self.counts["read_tokens"] += reader.read
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
                self._remember(reader, rows, ~staying, prompts, input_ids, lengths)
                rows.keep_only(staying.nonzero()[:, 0])
            logits[rows.index] = rows.feed(tokens[rows.index, None])
            self.counts["row_steps"] += len(input_ids)
            self.counts["computed_row_steps"] += len(rows.index)
        self._remember(reader, rows, torch.ones_like(staying), prompts, input_ids, lengths)
        self.cache.evict()
        self.counts["evicted_tokens"] = self.cache.evicted
        return input_ids

    def _remember(
        self, reader: Reader, rows: CachedRows, leaving: Tensor, prompts: list[list[int]], ids: Tensor, lengths: Tensor
    ) -> None:
        """Keep what rows that leave have read.

        Args:
            rows: the rows still in the batch; `leaving` is a bool for each of them.
            prompts: token ids of all prompts of the batch.
            ids: (B, P + new) int, padded prompts and all tokens drawn.
            lengths: (B,) int, tokens drawn before a row ended.
        """
        if not self.remember or not rows.valid.shape[1]:
            return
        at = leaving.nonzero()[:, 0]
        index = rows.index[at]
        read = int(lengths.max()) - 1  # the last token drawn has not been read
        own = lengths[index].clamp(max=read)
        valid = rows.valid[at]
        valid[:, valid.shape[1] - read :] &= torch.arange(read, device=ids.device) < own[:, None]
        drawn = ids[:, ids.shape[1] - read - 1 :].tolist()
        chosen = zip(index.tolist(), own.tolist(), strict=True)
        reader.store(rows, [prompts[row] + drawn[row][:length] for row, length in chosen], at, valid)


class _NotSharedError(Exception):
    """These generation settings are left to `generate`."""


def _mask_of(kwargs: dict[str, Any], ids: Tensor) -> Tensor:
    mask = kwargs.get("attention_mask")
    return torch.ones_like(ids) if mask is None else mask


def _rows_without_padding(ids: Tensor, mask: Tensor) -> list[list[int]]:
    return [row[is_token].tolist() for row, is_token in zip(ids, mask.bool(), strict=True)]


def _is_synced(model: nn.Module) -> bool:
    """Whether `generate` makes ranks go on until all have ended."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return False
    return torch.distributed.get_world_size() > 1 and (is_deepspeed_zero3_enabled() or is_fsdp_managed_module(model))
