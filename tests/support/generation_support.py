"""Tiny models of each supported kind, and what plain and shared `generate` give. For tests of shared_prefix."""

import torch
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

VOCABULARY, EOS = 23, 2
SLIDING = {"sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"]}
MODELS = {
    "llama": {},
    "mistral": {"sliding_window": 5},
    "qwen2": {},
    "qwen3": {"head_dim": 8},
    "qwen2 with windows": {"use_sliding_window": True, **SLIDING},
    "gemma3_text": {"head_dim": 8, "query_pre_attn_scalar": 16, **SLIDING},
}

MORE_MODELS = {
    "exaone4": SLIDING,
    "glm4": {"head_dim": 8},
    "granite": {"logits_scaling": 2.0},
    "olmo2": {},
    "olmo3": SLIDING,
    "phi3": {},
    "qwen3_moe": {"head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
    "smollm3": {},
}
"""Types that differ from those above in details; each is tested with a few batches."""


def tiny_config(kind: str, **fields):
    """Two layers of a supported type."""
    return AutoConfig.for_model(
        kind.split()[0],
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        pad_token_id=0,
        **fields,
        **(MODELS | MORE_MODELS)[kind],
    )


def make_model(kind: str):
    torch.manual_seed(0)
    spread = 0.3  # so that tokens depend on what was read
    config = tiny_config(
        kind, vocab_size=VOCABULARY, max_position_embeddings=512, initializer_range=spread, eos_token_id=EOS
    )
    return AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()


def config_of(**more):
    return GenerationConfig(
        **{
            "max_new_tokens": 12,
            "do_sample": True,
            "top_k": 0,
            "pad_token_id": 0,
            "eos_token_id": [EOS],
            "disable_compile": True,
            **more,
        }
    )


def padded(dialogues):
    """Token ids and mask of dialogues, padded on the left."""
    width = max(map(len, dialogues))
    ids = torch.tensor([[0] * (width - len(one)) + one for one in dialogues])
    return ids, torch.tensor([[0] * (width - len(one)) + [1] * len(one) for one in dialogues])


def dialogues_of(ids, mask):
    return [row[seen.bool()].tolist() for row, seen in zip(ids, mask, strict=True)]


def own_tokens(ids):
    """What was drawn up to the end of the turn."""
    return ids[: ids.index(EOS) + 1] if EOS in ids else ids
