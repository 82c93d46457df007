"""Tiny models, batches of groups, and TRL's own numbers for them. For the tests of shared_prefix/update.py."""

from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from generation_support import MODELS, MORE_MODELS, tiny_config  # noqa: F401
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM
from trl import GRPOTrainer

from fission_grpo.shared_prefix.layout import GroupedBatch
from fission_grpo.shared_prefix.update import enable, shared_logps

try:
    from trl.trainer.utils import add_fused_lm_head
except ImportError:  # the update shares prompts with TRL 1.15 and newer
    pytest.skip("this TRL has no fused head", allow_module_level=True)

VOCABULARY = 61


def make_model(kind: str, adapter: bool = False, temperature: float = 0.7):
    torch.manual_seed(0)
    config = tiny_config(kind, vocab_size=VOCABULARY, max_position_embeddings=256)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    add_fused_lm_head(model, temperature, outputs=("log_probs", "entropy"))
    if adapter:
        lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False)
        model = get_peft_model(model, lora)
    return model.train()


def make_batch(prompts: list[int], completions: list[list[int]], seed: int = 0, shuffled: bool = False):
    """Groups with prompts and completions of the lengths given; every third token of a completion is a tool's."""
    generator = torch.Generator().manual_seed(seed)
    width, length = max(prompts), max(max(group) for group in completions)
    rows = []
    for size, group in zip(prompts, completions, strict=True):
        tokens = torch.randint(1, VOCABULARY, (size,), generator=generator)
        rows += [(tokens, size, own) for own in group]
    if shuffled:
        rows = [rows[i] for i in torch.randperm(len(rows), generator=generator).tolist()]
    prompt_ids, completion_ids = torch.zeros(len(rows), width).long(), torch.zeros(len(rows), length).long()
    prompt_mask, completion_mask = torch.zeros_like(prompt_ids), torch.zeros_like(completion_ids)
    for i, (tokens, size, own) in enumerate(rows):
        prompt_ids[i, width - size :], prompt_mask[i, width - size :] = tokens, 1
        completion_ids[i, :own] = torch.randint(1, VOCABULARY, (own,), generator=generator)
        completion_mask[i, :own] = 1
    tool_mask = (torch.arange(length) % 3 != 1).long() * completion_mask
    return GroupedBatch(prompt_ids, prompt_mask, completion_ids, completion_mask, tool_mask)


def of_trl(model, batch):
    """TRL's own function, without its profiler."""
    ids = torch.cat([batch.prompt_ids, batch.completion_ids], 1)
    mask = torch.cat([batch.prompt_mask, batch.completion_mask], 1)
    compute = GRPOTrainer._get_per_token_logps_and_entropies.__wrapped__  # pyright: ignore
    trainer = SimpleNamespace(accelerator=Accelerator(cpu=True))
    return compute(trainer, model, ids, mask, batch.completion_ids.shape[1], compute_entropy=True)[:2]


def gradients(model, loss) -> dict:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def loss_of(logps, entropies, batch, seed: int = 1):
    """A clipped policy loss with an entropy bonus, over the policy's tokens."""
    generator = torch.Generator().manual_seed(seed)
    advantages = torch.randn(len(logps), 1, generator=generator)
    old = logps.detach() + 0.3 * torch.randn(logps.shape, generator=generator)
    ratio = (logps - old).exp()
    per_token = -torch.min(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages) - 0.1 * entropies
    return (per_token * batch.tool_mask).sum() / batch.tool_mask.sum()


def assert_same(model, batch, noise: float = 0.0, **options):
    """Log-probabilities, entropies, loss and every gradient agree to 1e-5 relative.

    `noise` is for gradients that are 0 but for rounding (those of a query that sees one key): a share of the norm of
    the whole gradient by which one parameter's may differ besides.
    """
    logps, entropies = of_trl(model, batch)
    loss = loss_of(logps, entropies, batch)
    expected = gradients(model, loss)
    enable(model)
    scores = shared_logps(model, batch, **options)
    shared_loss = loss_of(scores.logps, scores.entropies, batch)
    found = gradients(model, shared_loss)
    torch.testing.assert_close(scores.logps, logps, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(scores.entropies, entropies, rtol=1e-5, atol=1e-5)
    assert abs(shared_loss - loss) <= 1e-5 * abs(loss)
    assert found.keys() == expected.keys()
    floor = noise * sum(gradient.norm() ** 2 for gradient in expected.values()) ** 0.5
    for name, gradient in expected.items():
        assert (found[name] - gradient).norm() <= 1e-5 * gradient.norm() + floor, name


TWO_GROUPS = ([19, 7], [[5, 9, 1, 4], [8, 3, 2]])
