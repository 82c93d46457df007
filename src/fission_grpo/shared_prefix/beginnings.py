"""Keys and values of what prompts have in common, computed once for all forward passes that need them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts
from transformers.modeling_layers import GradientCheckpointingLayer

from fission_grpo.core.terminal import get_logger, warn_once
from fission_grpo.shared_prefix.attention import final_mask
from fission_grpo.shared_prefix.layout import Beginning, States, beginning_layout
from fission_grpo.shared_prefix.models import causal_lm, is_reentrant
from fission_grpo.shared_prefix.prefixes import common_beginnings

_log = get_logger(__name__)

Prompt = tuple[int, ...]


class Beginnings:
    """The common beginnings of prompts, each computed when it is first needed.

    Made with gradients enabled, it can serve in two ways:

    - within one graph: a beginning is part of the graph of every forward pass that uses it.
    - `across_backward`: for the micro-batches of an optimizer step, each with its own backward pass. They accumulate
      their gradients with respect to the keys and values. The forward passes after `attach` hand these on, so that
      their backward pass goes through each beginning, once for all. Its layers are checkpointed: the backward pass
      computes each again, but for attention, with the same random numbers, so that little is kept meanwhile.

    Args:
        model: a model after `enable`, wrapped or not.
        uses: token ids of each different prompt, and in how many forward passes it occurs.
        across_backward: see above. The weights must not change in between.
    """

    def __init__(self, model: nn.Module, uses: Mapping[Prompt, int], *, across_backward: bool = False):
        self._model, self._with_graph = model, torch.is_grad_enabled()
        self._across = across_backward and self._with_graph  # and not attached
        self._of: dict[Prompt, Prompt] = {}
        if uses and self._with_graph and is_reentrant(model):
            what = "set gradient_checkpointing_kwargs={'use_reentrant': False}"
            warn_once(_log, f"with reentrant gradient checkpointing each group computes its whole prompt; {what}")
            uses = {}
        prompts = list(uses)
        for length, members in common_beginnings(prompts, list(uses.values())):
            self._of |= {prompts[i]: prompts[i][:length] for i in members if length}
        self._computed: dict[Prompt, _Computed] = {}

    def find(self, prompt: Prompt) -> Beginning | None:
        """The beginning of one of the prompts, with the gradients that the current mode wants; None if it has none."""
        tokens = self._of.get(prompt)
        if tokens is None:
            return None
        if tokens not in self._computed:
            with torch.set_grad_enabled(self._with_graph):
                self._computed[tokens] = _Computed(self._model, tokens, self._across)
        return Beginning(len(tokens), self._computed[tokens].states)

    def attach(self) -> Tensor | None:
        """Let the next forward passes' backward pass go through all beginnings; the optimizer step's last ones do.

        Returns:
            A zero to be added to their loss, so that beginnings which they do not use are reached; None if no
            gradient flows into any.
        """
        zeros = [computed.attach() for computed in self._computed.values()] if self._across else []
        self._across = False
        found = [zero for zero in zeros if zero is not None]
        return torch.stack(found).sum() if found else None


class _Computed:
    """One beginning's keys and values, for `Beginnings`."""

    def __init__(self, model: nn.Module, tokens: Prompt, across: bool):
        ids = torch.tensor([tokens], device=next(model.parameters()).device)
        decoder = causal_lm(model).base_model
        if not across:
            self.states = _states(decoder, ids)
            return
        with _checkpointed(decoder):
            self._graph = _states(decoder, ids)
        self.states = {number: (_leaf(keys), _leaf(values)) for number, (keys, values) in self._graph.items()}

    def attach(self) -> Tensor | None:
        """Put the graph in place of the leaves, with the gradients that these hold; see `Beginnings.attach`."""
        zeros = []

        def joined(output: Tensor, leaf: Tensor) -> Tensor:
            if leaf.grad is None:
                return output
            output = _AddGradient.apply(output, leaf.grad)  # pyright: ignore
            zeros.append(output.flatten()[0] * 0)
            return output

        leaves = self.states
        self.states = {
            number: (joined(keys, leaves[number][0]), joined(values, leaves[number][1]))
            for number, (keys, values) in self._graph.items()
        }
        return torch.stack(zeros).sum() if zeros else None


_KEPT = (
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
)
"""Operations whose results are kept in a checkpointed layer: much to compute, and no larger than its inputs."""

_keep_attention = partial(create_selective_checkpoint_contexts, list(_KEPT))


@contextmanager
def _checkpointed(decoder: nn.Module) -> Iterator[None]:
    """Checkpoint the layers of a model in forward passes within the context."""
    layers: list[Any] = [m for m in decoder.modules() if isinstance(m, GradientCheckpointingLayer)]
    layers = [layer for layer in layers if not layer.gradient_checkpointing]
    for layer in layers:
        layer.gradient_checkpointing = True
        layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False, context_fn=_keep_attention)
    try:
        yield
    finally:
        for layer in layers:
            layer.gradient_checkpointing = False
            del layer._gradient_checkpointing_func


def _leaf(states: Tensor) -> Tensor:
    return states.detach().requires_grad_(states.requires_grad)


class _AddGradient(torch.autograd.Function):
    """The identity; its backward pass adds a gradient that is known already."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, gradient: Tensor) -> Tensor:
        ctx.gradient = gradient
        return states.view_as(states)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # pyright: ignore
        return gradient + ctx.gradient, None


def _states(decoder: Any, ids: Tensor) -> States:
    """Keys and values of (1, C) token ids."""
    layout = beginning_layout(ids.shape[1], ids.device)
    decoder(
        input_ids=ids,
        position_ids=layout.positions[None],
        attention_mask=final_mask(ids.device),
        shared_prefix=layout,
        use_cache=False,
    )
    assert layout.captured
    return layout.captured
