"""Log-probabilities of a group-structured batch, every prompt computed once: what TRL's
`GRPOTrainer._get_per_token_logps_and_entropies` gives, values and gradients, for less work.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from fission_grpo.training.shared_prefix.attention import NAME, register
from fission_grpo.training.shared_prefix.layout import (
    GroupedBatch,
    Layout,
    Packed,
    groups_of,
    pack,
)

MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3", "gemma3_text")
"""`config.model_type` of the models this is tested with: decoders whose only mixing of tokens is attention."""


class Scores(NamedTuple):
    """Log-probabilities (B, R) and entropies (B, R; None where the head has none), 0 where a token is not scored."""

    logps: Tensor
    entropies: Tensor | None


def causal_lm(model: nn.Module) -> PreTrainedModel:
    """The transformers model inside wrappers (DDP, accelerate, PEFT)."""
    while not isinstance(model, PreTrainedModel):
        if hasattr(model, "get_base_model"):
            model = model.get_base_model()  # pyright: ignore
        elif isinstance(inner := getattr(model, "module", None), nn.Module):
            model = inner
        else:
            raise TypeError(f"{type(model).__name__} holds no transformers model.")
    return model


def unsupported(model: nn.Module) -> str | None:
    """Why prefixes cannot be shared with this model; None if they can."""
    decoder = causal_lm(model)
    config = decoder.config
    if config.model_type not in MODEL_TYPES:
        return f"model type {config.model_type!r} is not among those tested: {', '.join(MODEL_TYPES)}"
    if config._attn_implementation not in ("sdpa", NAME):
        return f"attention is {config._attn_implementation!r}; load the model with attn_implementation='sdpa'"
    if getattr(config, "use_bidirectional_attention", False):
        return "its attention is bidirectional"
    adapters = [one for module in model.modules() for one in getattr(module, "peft_config", {}).values()]
    if any(adapter.is_prompt_learning for adapter in adapters):
        return "its PEFT adapter puts virtual tokens before the prompt"
    return None


def enable(model: nn.Module) -> None:
    """Let a model take packed rows. It computes ordinary batches, and generates, exactly as before.

    Sets its attention to `attention.NAME` and adds a hook by which only hidden states of scored tokens reach the
    head. The head must be TRL's (`trl.trainer.utils.add_fused_lm_head`; GRPOTrainer adds it). Calling it again does
    nothing.

    Raises:
        ValueError: the model is not supported, or has no fused head.
    """
    if reason := unsupported(model):
        raise ValueError(f"prefixes cannot be shared: {reason}. Set shared_prefix=False.")
    decoder = causal_lm(model)
    if "forward" not in vars(decoder):
        raise ValueError("the model has no fused head; call trl.trainer.utils.add_fused_lm_head(model, ...) first.")
    use_attention(decoder)
    if _keep_scored not in decoder.base_model._forward_hooks.values():
        decoder.base_model.register_forward_hook(_keep_scored, with_kwargs=True)


def use_attention(decoder: PreTrainedModel) -> None:
    """Set a supported model's attention to the one that knows shared prefixes; ordinary batches see no difference."""
    if decoder.config._attn_implementation != NAME:
        register()
        decoder.set_attn_implementation(NAME)


def _keep_scored(module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> Any:
    if isinstance(layout := kwargs.get("shared_prefix"), Layout):
        output.last_hidden_state = output.last_hidden_state.index_select(1, layout.scored)
    return output


def rows_with_gradient(
    advantages: Tensor, *, beta: float = 0.0, entropy_bonus: bool = False, aux_loss: bool = False
) -> Tensor | None:
    """Rows through which TRL's GRPO loss has a gradient; the backward pass can leave out the others.

    A row whose advantage is 0 adds 0 to the numerator of every loss type of TRL 1.16 ("grpo", "bnpo", "dr_grpo",
    "dapo", "luspo", "cispo", "sapo", "vespo"; each multiplies the row's terms by its advantage), whatever its
    log-probabilities, and no denominator depends on log-probabilities. So its gradient is exactly 0, also with
    clipping, sequence-level ratios, entropy quantiles and vLLM's corrections. What has a gradient in every row is a
    KL term, an entropy bonus and a mixture-of-experts' auxiliary loss.

    Args:
        advantages: (B,), or (B, R) per token.
        beta: weight of the KL term.
        entropy_bonus: the loss has an entropy bonus, fixed or adaptive.
        aux_loss: the loss has an auxiliary term of the model.

    Returns:
        (B,) bool; None where all rows have a gradient. Advantages [0.5, 0, -0.5, 0] give [True, False, True, False].
    """
    if beta != 0 or entropy_bonus or aux_loss:
        return None
    return (advantages.reshape(len(advantages), -1) != 0).any(1)


def shared_logps(
    model: nn.Module,
    batch: GroupedBatch,
    *,
    with_gradient: Tensor | None = None,
    fill: Tensor | None = None,
    policy_tokens_only: bool = False,
    max_tokens: int | None = None,
) -> Scores:
    """Log-probabilities and entropies of completions, with every prompt computed once per group.

    Args:
        model: a model after `enable`, wrapped or not. Its head's temperature applies.
        batch: B rows, in any order; rows with equal prompts share.
        with_gradient: (B,) bool, rows through which a gradient can flow (see `rows_with_gradient`); the others are
            computed without a graph, so that metrics stay what they were. None: all.
        fill: (B, R), values in place of log-probabilities that are not scored; 0 if None. Old log-probabilities
            here keep ratios of tokens not scored at 1.
        policy_tokens_only: score no tool results (tokens outside `tool_mask`). They are masked from the loss
            anyhow; pass old and reference log-probabilities made alike, or `fill`, lest exp(new - old) overflow.
        max_tokens: groups are spread over forwards of at most so many packed tokens; a larger group goes alone.
            None: one forward.

    Dropout, if the model has any and trains, is drawn once for a prompt instead of once per completion.

    Returns:
        Log-probabilities (B, R), as of TRL with the same model: 0 where `completion_mask` is 0. Entropies alike.
    """
    wanted = batch.completion_mask.bool()
    if policy_tokens_only and batch.tool_mask is not None:
        wanted = wanted & batch.tool_mask.bool()
    shape = batch.completion_ids.shape
    groups = [[r for r in rows if wanted[r].any()] for rows in groups_of(batch.prompt_ids, batch.prompt_mask)]
    found: list[tuple[Packed, Tensor, Tensor | None]] = []
    if with_gradient is not None and torch.is_grad_enabled():
        flows = with_gradient.tolist()
        with torch.no_grad():
            still = [[r for r in rows if not flows[r]] for rows in groups]
            found += _score(model, batch, still, wanted, max_tokens)
        groups = [[r for r in rows if flows[r]] for rows in groups]
    moving = _score(model, batch, groups, wanted, max_tokens)
    found += moving
    if not moving:  # a differentiable zero, which also lets every rank of a distributed run take its backward
        found.append(_forward(model, pack(_one_token(batch), [[0]], wanted[:1, :0])))
    logps = _placed(shape, [(packed, values) for packed, values, _ in found])
    if fill is not None:
        logps = torch.where(wanted, logps, fill)
    entropies = [(packed, values) for packed, _, values in found if values is not None]
    return Scores(logps, _placed(shape, entropies) if entropies else None)


def _score(
    model: nn.Module, batch: GroupedBatch, groups: list[list[int]], wanted: Tensor, max_tokens: int | None
) -> list[tuple[Packed, Tensor, Tensor | None]]:
    prompts, completions = batch.prompt_mask.sum(1).tolist(), batch.completion_mask.sum(1).tolist()
    parts, room = [], 0
    for rows in groups:
        if not rows:
            continue
        size = int(prompts[rows[0]] + sum(completions[row] for row in rows))
        if not parts or (max_tokens is not None and size > room):
            parts.append([])
            room = max_tokens or 0
        parts[-1].append(rows)
        room -= size
    return [_forward(model, pack(batch, part, wanted)) for part in parts]


def _forward(model: nn.Module, packed: Packed) -> tuple[Packed, Tensor, Tensor | None]:
    """(M,) log-probabilities and entropies of a packed row's scored tokens."""
    output = model(
        input_ids=packed.input_ids,
        position_ids=packed.layout.positions[None],
        # Four dimensions tell transformers that a mask is ready; the layout is what attention reads.
        attention_mask=torch.zeros(1, 1, 1, 1, dtype=torch.bool, device=packed.input_ids.device),
        shift_labels=packed.labels,
        shared_prefix=packed.layout,
        fused_lm_head=True,
    )
    return packed, output.log_probs[0], None if output.entropy is None else output.entropy[0]


def _placed(shape: torch.Size, values: list[tuple[Packed, Tensor]]) -> Tensor:
    """(B, R) with the scored tokens' values in their cells and 0 elsewhere."""
    rows, columns = (torch.cat([packed.cells[i] for packed, _ in values]) for i in (0, 1))
    found = torch.cat([x for _, x in values])
    return found.new_zeros(shape).index_put((rows, columns), found)


def _one_token(batch: GroupedBatch) -> GroupedBatch:
    """The last token of the first prompt, without a completion."""
    ids, mask = batch.prompt_ids[:1, -1:], batch.prompt_mask[:1, -1:]
    return GroupedBatch(ids, mask, batch.completion_ids[:1, :0], batch.completion_mask[:1, :0])
