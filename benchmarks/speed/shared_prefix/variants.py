"""Ways to compute a group's log-probabilities: TRL's, and three that compute the prompt once.

"unshared" is TRL's function as it is; on CPU its head scores the prompts too, which on CUDA it does not.
"unshared_completions" leaves that out, so that what remains between it and the others is sharing alone.

Each is a function from a model and a batch to (B, R) log-probabilities with a graph. All use TRL's fused head.
"""

import torch
from accelerate import Accelerator
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from trl import GRPOTrainer
from trl.kernels import ChunkedLogProbFunction

from fission_grpo.shared_prefix.attention import NAME
from fission_grpo.shared_prefix.layout import GroupedBatch, groups_of, pack
from fission_grpo.shared_prefix.update import shared_logps


class TRL:
    """What TRL's function needs of its trainer."""

    accelerator = Accelerator(cpu=True)


def unshared(model, batch: GroupedBatch):
    """TRL's own function, one row per completion."""
    ids = torch.cat([batch.prompt_ids, batch.completion_ids], 1)
    mask = torch.cat([batch.prompt_mask, batch.completion_mask], 1)
    compute = GRPOTrainer._get_per_token_logps_and_entropies.__wrapped__  # without its profiler
    return compute(TRL, model, ids, mask, batch.completion_ids.shape[1], compute_entropy=True)[0]


def unshared_completions(model, batch: GroupedBatch):
    """One row per completion; the head sees completion tokens only, as TRL's does on CUDA (equal lengths)."""
    ids = torch.cat([batch.prompt_ids, batch.completion_ids], 1)
    mask = torch.cat([batch.prompt_mask, batch.completion_mask], 1)
    width = batch.completion_ids.shape[1]
    states = model.base_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
    return _scored(model, states[:, -width - 1 : -1], batch)


def two_part(model, batch: GroupedBatch):
    """Ours: one packed row, attention in two parts."""
    return shared_logps(model, batch).logps


def dense_mask(model, batch: GroupedBatch):
    """One packed row, transformers' SDPA with one (N, N) additive mask."""
    packed = pack(batch, groups_of(batch.prompt_ids, batch.prompt_mask), batch.completion_mask.bool())
    at, of = packed.layout.positions, packed.layout.owner
    seen = (at <= at[:, None]) & ((of == -1) | (of == of[:, None]))
    mask = torch.zeros(seen.shape).masked_fill_(~seen, float("-inf"))[None, None]
    AttentionInterface.register("dense_mask", _dense)
    AttentionMaskInterface.register("dense_mask", sdpa_mask)
    model.set_attn_implementation("dense_mask")
    output = model(
        input_ids=packed.input_ids,
        position_ids=at[None],
        attention_mask=mask,
        shift_labels=packed.labels,
        shared_prefix=packed.layout,
        fused_lm_head=True,
    )
    model.set_attn_implementation(NAME)
    return output.log_probs[0].new_zeros(batch.completion_ids.shape).index_put(packed.cells, output.log_probs[0])


def _dense(module, query, key, value, attention_mask, shared_prefix=None, **kwargs):
    return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)


def cache(model, batch: GroupedBatch):
    """The prompt into a cache that keeps its graph, expanded for the completions (one group, equal lengths)."""
    rows = len(batch.completion_ids)
    backbone = model.base_model
    prefix = backbone(input_ids=batch.prompt_ids[:1], use_cache=True)
    expanded = DynamicCache(config=model.config)
    for number, layer in enumerate(prefix.past_key_values.layers):
        expanded.update(layer.keys.expand(rows, -1, -1, -1), layer.values.expand(rows, -1, -1, -1), number)
    hidden = backbone(input_ids=batch.completion_ids[:, :-1], past_key_values=expanded, use_cache=True)
    last = prefix.last_hidden_state[:, -1:].expand(rows, -1, -1)
    states = torch.cat([last, hidden.last_hidden_state], 1)
    return _scored(model, states, batch)


def _scored(model, states, batch: GroupedBatch):
    """(B, R) log-probabilities from the hidden states (B, R, hidden size) that predict the completions."""
    head, targets = model.get_output_embeddings().weight, batch.completion_ids.flatten()
    options = (None, targets, 1.0, 32768, None, 1.0, ("entropy",))
    return ChunkedLogProbFunction.apply(states.flatten(0, 1), head, *options)[0].view(batch.completion_ids.shape)


VARIANTS = {run.__name__: run for run in (unshared, unshared_completions, two_part, dense_mask, cache)}
