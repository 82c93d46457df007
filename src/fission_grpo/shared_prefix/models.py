"""Which models can share prefixes, and what is set in them."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel

from fission_grpo.shared_prefix.attention import NAME, register

MODEL_TYPES = (
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "gemma3_text",
    "exaone4",
    "glm4",
    "granite",
    "olmo2",
    "olmo3",
    "phi3",
    "qwen3_moe",
    "smollm3",
)
"""`config.model_type` of the tested models: decoders in which tokens meet in attention only."""


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
    if any(kind in str(getattr(config, "rope_parameters", None)) for kind in ("dynamic", "longrope")):
        return "its rotary embeddings depend on the length of the whole sequence"
    if getattr(config, "use_bidirectional_attention", False):
        return "its attention is bidirectional"
    adapters = [one for module in model.modules() for one in getattr(module, "peft_config", {}).values()]
    if any(adapter.is_prompt_learning for adapter in adapters):
        return "its PEFT adapter puts virtual tokens before the prompt"
    if any(getattr(adapter, "alora_invocation_tokens", None) for adapter in adapters):
        return "its PEFT adapter (aLoRA) depends on each row's tokens"
    return None


def use_attention(decoder: PreTrainedModel) -> None:
    """Set a supported model's attention to `attention.NAME`, which computes ordinary batches as before."""
    if decoder.config._attn_implementation != NAME:
        register()
        decoder.set_attn_implementation(NAME)


def is_reentrant(model: nn.Module) -> bool:
    """Whether reentrant gradient checkpointing is on, which hides tensors inside layers from autograd."""
    functions = [
        module._gradient_checkpointing_func
        for module in model.modules()
        if getattr(module, "gradient_checkpointing", False) and hasattr(module, "_gradient_checkpointing_func")
    ]
    return any(getattr(function, "keywords", {}).get("use_reentrant") is not False for function in functions)
