"""Log-probabilities of a batch of groups: each prompt computed once, and what prompts have in common once for all.

Values and gradients are those of TRL's `GRPOTrainer._get_per_token_logps_and_entropies`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fission_grpo.shared_prefix.attention import final_mask
from fission_grpo.shared_prefix.beginnings import Beginnings, Prompt
from fission_grpo.shared_prefix.layout import GroupedBatch, Layout, Packed, pack, rows_by_prompt
from fission_grpo.shared_prefix.models import causal_lm, unsupported, use_attention


class Scores(NamedTuple):
    """(B, R) each, 0 where a token is not scored."""

    logps: Tensor
    entropies: Tensor | None  # None if the head has none


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
    beginnings: Beginnings | None = None,
) -> Scores:
    """Log-probabilities and entropies as TRL computes them, each prompt (and its dropout) once per group.

    Args:
        model: a model after `enable`, wrapped or not. Its head's temperature applies.
        batch: B rows, in any order; rows with equal prompts share.
        with_gradient: (B,) bool, see `rows_with_gradient`; other rows are computed without a graph. None: all.
        policy_tokens_only: do not score tool results (tokens outside `tool_mask`).
        max_tokens: limit of packed tokens in one forward pass; a larger group is computed alone. None: one pass.
        beginnings: common beginnings of prompts, this batch's among them. None: of this batch's prompts alone, in the
            same graph.
    """
    wanted = batch.completion_mask.bool()
    if policy_tokens_only and batch.tool_mask is not None:
        wanted = wanted & batch.tool_mask.bool()
    is_wanted = wanted.any(1).tolist()
    by_prompt = rows_by_prompt(batch.prompt_ids, batch.prompt_mask)
    groups = {prompt: [r for r in rows if is_wanted[r]] for prompt, rows in by_prompt.items()}
    constant: _Groups = {}
    if with_gradient is not None and torch.is_grad_enabled():
        has_gradient = with_gradient.tolist()
        constant = {prompt: [r for r in rows if not has_gradient[r]] for prompt, rows in groups.items()}
        groups = {prompt: [r for r in rows if has_gradient[r]] for prompt, rows in groups.items()}
    if beginnings is None:
        uses = {prompt: bool(rows) + bool(constant.get(prompt)) for prompt, rows in groups.items()}
        beginnings = Beginnings(model, {prompt: n for prompt, n in uses.items() if n})
    with torch.no_grad():
        scored = _score(model, batch, constant, wanted, max_tokens, beginnings)
    with_graph = _score(model, batch, groups, wanted, max_tokens, beginnings)
    if not with_graph:  # a differentiable zero, so that each rank of a distributed run has a backward pass
        ids, mask = batch.prompt_ids[:1, -1:], batch.prompt_mask[:1, -1:]
        one_token = GroupedBatch(ids, mask, batch.completion_ids[:1, :0], batch.completion_mask[:1, :0])
        with_graph = [_forward(model, pack(one_token, [[0]], wanted[:1, :0]))]
    scored += with_graph
    shape = batch.completion_ids.shape
    logps = _in_cells(shape, [(packed, logps) for packed, logps, _ in scored])
    entropies = [(packed, entropy) for packed, _, entropy in scored if entropy is not None]
    return Scores(logps, _in_cells(shape, entropies) if entropies else None)


_Groups = dict[Prompt, list[int]]
"""Numbers of the rows of each prompt."""

_Scored = tuple[Packed, Tensor, Tensor | None]
"""A packed row, and log-probabilities and entropies (M,) of its scored tokens."""


def _score(
    model: nn.Module,
    batch: GroupedBatch,
    groups: _Groups,
    wanted: Tensor,
    max_tokens: int | None,
    beginnings: Beginnings,
) -> list[_Scored]:
    """Compute the groups in forward passes of at most `max_tokens` packed tokens."""
    completions = batch.completion_mask.sum(1).tolist()
    parts, room = [], 0
    for prompt, rows in groups.items():
        if not rows:
            continue
        beginning = beginnings.find(prompt)
        size = len(prompt) - (beginning.length if beginning else 0) + sum(completions[row] for row in rows)
        if not parts or (max_tokens is not None and size > room):
            parts.append(([], []))
            room = max_tokens or 0
        parts[-1][0].append(rows)
        parts[-1][1].append(beginning)
        room -= size
    return [_forward(model, pack(batch, rows, wanted, found)) for rows, found in parts]


def _forward(model: nn.Module, packed: Packed) -> _Scored:
    output = model(
        input_ids=packed.input_ids,
        position_ids=packed.layout.positions[None],
        attention_mask=final_mask(packed.input_ids.device),
        shift_labels=packed.labels,
        shared_prefix=packed.layout,
        fused_lm_head=True,
        use_cache=False,
    )
    return packed, output.log_probs[0], None if output.entropy is None else output.entropy[0]


def _in_cells(shape: torch.Size, values: list[tuple[Packed, Tensor]]) -> Tensor:
    """(B, R) with the scored tokens' values in their cells and 0 elsewhere."""
    rows, columns = (torch.cat([packed.cells[i] for packed, _ in values]) for i in (0, 1))
    joined = torch.cat([x for _, x in values])
    return joined.new_zeros(shape).index_put((rows, columns), joined)
