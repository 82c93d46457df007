"""Log-probabilities of a batch of groups, each prompt computed once.

Values and gradients are those of TRL's `GRPOTrainer._get_per_token_logps_and_entropies`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from fission_grpo.shared_prefix.attention import NAME, register
from fission_grpo.shared_prefix.layout import GroupedBatch, Layout, Packed, groups_of, pack

MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3", "gemma3_text")
"""`config.model_type` of the tested models: decoders in which tokens meet in attention only."""


class Scores(NamedTuple):
    """(B, R) each, 0 where a token is not scored."""

    logps: Tensor
    entropies: Tensor | None  # None if the head has none


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
    """The reason why prefixes cannot be shared with this model; None if they can."""
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
    """Let a model compute packed rows; ordinary batches and generation stay exactly the same.

    Sets its attention to `attention.NAME` and adds a hook that passes only hidden states of scored tokens to the head,
    which must be TRL's. A second call does nothing.

    Raises:
        ValueError: the model is not supported, or has no fused head; the message is the reason.
    """
    decoder = causal_lm(model)
    if reason := unsupported(model):
        raise ValueError(reason)
    if "forward" not in vars(decoder):  # where TRL puts the head that scores chosen tokens
        raise ValueError("the model has no fused head, which TRL's trainer (1.15 and newer) or add_fused_lm_head adds")
    use_attention(decoder)
    if _keep_scored not in decoder.base_model._forward_hooks.values():
        decoder.base_model.register_forward_hook(_keep_scored, with_kwargs=True)


def use_attention(decoder: PreTrainedModel) -> None:
    """Set a supported model's attention to `attention.NAME`, which computes ordinary batches as before."""
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
    """Rows in which TRL's GRPO loss has a gradient; the backward pass can leave out the others.

    Every loss type of TRL 1.16 ("grpo", "bnpo", "dr_grpo", "dapo", "luspo", "cispo", "sapo", "vespo") multiplies a
    row's terms by its advantage, and no denominator depends on log-probabilities. So the gradient of a row whose
    advantage is 0 is exactly 0, also with clipping, sequence-level ratios, entropy quantiles and vLLM's corrections.
    A KL term, an entropy bonus and a mixture-of-experts' auxiliary loss have a gradient in every row.

    Args:
        advantages: (B,), or (B, R) per token.

    Returns:
        (B,) bool; None if all rows have a gradient. Advantages [0.5, 0, -0.5, 0] give [True, False, True, False].
    """
    if beta != 0 or entropy_bonus or aux_loss:
        return None
    return (advantages.reshape(len(advantages), -1) != 0).any(1)


def shared_logps(
    model: nn.Module,
    batch: GroupedBatch,
    *,
    with_gradient: Tensor | None = None,
    policy_tokens_only: bool = False,
    max_tokens: int | None = None,
) -> Scores:
    """Log-probabilities and entropies as TRL computes them, each prompt (and its dropout) once per group.

    Args:
        model: a model after `enable`, wrapped or not. Its head's temperature applies.
        batch: B rows, in any order; rows with equal prompts share.
        with_gradient: (B,) bool, see `rows_with_gradient`; other rows are computed without a graph. None: all.
        policy_tokens_only: do not score tool results (tokens outside `tool_mask`).
        max_tokens: limit of packed tokens in one forward pass; a larger group is computed alone. None: one pass.
    """
    wanted = batch.completion_mask.bool()
    if policy_tokens_only and batch.tool_mask is not None:
        wanted = wanted & batch.tool_mask.bool()
    groups = [[r for r in rows if wanted[r].any()] for rows in groups_of(batch.prompt_ids, batch.prompt_mask)]
    scored: list[_Scored] = []
    if with_gradient is not None and torch.is_grad_enabled():
        has_gradient = with_gradient.tolist()
        with torch.no_grad():
            constant = [[r for r in rows if not has_gradient[r]] for rows in groups]
            scored += _score(model, batch, constant, wanted, max_tokens)
        groups = [[r for r in rows if has_gradient[r]] for rows in groups]
    with_graph = _score(model, batch, groups, wanted, max_tokens)
    if not with_graph:  # a differentiable zero, so that each rank of a distributed run has a backward pass
        ids, mask = batch.prompt_ids[:1, -1:], batch.prompt_mask[:1, -1:]
        one_token = GroupedBatch(ids, mask, batch.completion_ids[:1, :0], batch.completion_mask[:1, :0])
        with_graph = [_forward(model, pack(one_token, [[0]], wanted[:1, :0]))]
    scored += with_graph
    shape = batch.completion_ids.shape
    logps = _in_cells(shape, [(packed, logps) for packed, logps, _ in scored])
    entropies = [(packed, entropy) for packed, _, entropy in scored if entropy is not None]
    return Scores(logps, _in_cells(shape, entropies) if entropies else None)


_Scored = tuple[Packed, Tensor, Tensor | None]
"""A packed row, and log-probabilities and entropies (M,) of its scored tokens."""


def _score(
    model: nn.Module, batch: GroupedBatch, groups: list[list[int]], wanted: Tensor, max_tokens: int | None
) -> list[_Scored]:
    """Compute the groups in forward passes of at most `max_tokens` packed tokens."""
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


def _forward(model: nn.Module, packed: Packed) -> _Scored:
    output = model(
        input_ids=packed.input_ids,
        position_ids=packed.layout.positions[None],
        # transformers takes a mask of four dimensions as final; the attention reads the layout instead.
        attention_mask=torch.zeros(1, 1, 1, 1, dtype=torch.bool, device=packed.input_ids.device),
        shift_labels=packed.labels,
        shared_prefix=packed.layout,
        fused_lm_head=True,
    )
    return packed, output.log_probs[0], None if output.entropy is None else output.entropy[0]


def _in_cells(shape: torch.Size, values: list[tuple[Packed, Tensor]]) -> Tensor:
    """(B, R) with the scored tokens' values in their cells and 0 elsewhere."""
    rows, columns = (torch.cat([packed.cells[i] for packed, _ in values]) for i in (0, 1))
    joined = torch.cat([x for _, x in values])
    return joined.new_zeros(shape).index_put((rows, columns), joined)
