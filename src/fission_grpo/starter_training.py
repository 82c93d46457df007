"""Train the starter policy from nothing: demonstrations, tokenizer, then a small Qwen3 in a plain torch loop.

    python -m fission_grpo.starter_training --output DIR --seed 0

The first part of the training shows skilled demonstrations, the last part mixed ones (`desk_demos`), which is what
the policy then behaves like. With --steps a run is repeatable to the bit on one machine; --minutes stops by the clock.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fission_grpo.environment import tool_methods
from fission_grpo.environments.desk import Desk
from fission_grpo.environments.desk_demos import MIXED, SKILLED, Quality, demonstrations
from fission_grpo.starter_tokenizer import train_tokenizer

BATCH = 32  # dialogues a step
MIXED_SHARE = 0.25  # of the training, at its end, on mixed demonstrations [ours]
WARM_UP = 0.03  # of the training
OTHER_WEIGHT = 0.1  # loss weight of what the assistant did not write; predicting it teaches to copy [ours]


def train_starter(output: Path, seed: int, steps: int, minutes: float | None, learning_rate: float) -> dict[str, Any]:
    """Train and save model and tokenizer into `output`; what was done is returned and saved as `training.json`.

    Args:
        output: folder, made if missing.
        seed: of weights and demonstrations.
        steps: optimizer steps of 32 dialogues each.
        minutes: stop after so many minutes if `steps` take longer (the schedule follows the clock then), or None.
        learning_rate: at its peak, after the warm-up; it falls to a twentieth as a cosine.
    """
    import torch

    torch.manual_seed(seed)
    tools = list(tool_methods(Desk()).values())
    tokenizer = _make_tokenizer(seed, tools)
    model = make_model(tokenizer)
    matrices = [weight for name, weight in model.named_parameters() if weight.ndim == 2 and "embed" not in name]
    rest = [weight for name, weight in model.named_parameters() if weight.ndim != 2 or "embed" in name]
    optimizer = torch.optim.AdamW(rest, lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    momenta = [torch.zeros_like(weight) for weight in matrices]
    began, step, progress, tokens = time.monotonic(), 0, 0.0, 0
    while progress < 1:
        quality = SKILLED if progress < 1 - MIXED_SHARE else MIXED
        rate = learning_rate * _schedule(progress)
        if quality is MIXED and not (output / "skilled").exists():
            model.save_pretrained(output / "skilled")
            tokenizer.save_pretrained(output / "skilled")
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = 0.0
        for ids, weights, share in _batches(tokenizer, tools, quality, seed * 1_000_003 + step):
            part = share * _loss(model, ids, weights)
            part.backward()
            loss, tokens = loss + part.item(), tokens + ids.numel()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        _muon_step(matrices, momenta, rate)
        model.zero_grad(set_to_none=True)
        step += 1
        elapsed = (time.monotonic() - began) / 60
        progress = max(step / steps, elapsed / minutes if minutes else 0)
        if step % 25 == 0 or progress >= 1:
            print(f"step {step:5d}  loss {loss:.4f}  rate {rate:.1e}  {elapsed:5.1f} min  {progress:4.0%}", flush=True)
    record = {
        "seed": seed,
        "steps": step,
        "minutes": round((time.monotonic() - began) / 60, 1),
        "tokens": tokens,
        "learning_rate": learning_rate,
        "last_loss": round(loss, 4),
        "parameters": sum(p.numel() for p in model.parameters()),
    }
    output.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)
    (output / "training.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return record


def make_model(tokenizer: Any) -> Any:
    """A Qwen3 of about a million parameters with random weights (float32), for the tokenizer's vocabulary."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=5,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        use_cache=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return Qwen3ForCausalLM(config)


def _muon_step(matrices: list[Any], momenta: list[Any], rate: float) -> None:
    """One step of Muon (Jordan 2024), with Nesterov momentum 0.95: half as many steps as AdamW needs here."""
    import torch

    with torch.no_grad():
        for shape in {tuple(weight.shape) for weight in matrices}:
            same = [i for i, weight in enumerate(matrices) if tuple(weight.shape) == shape]
            for i in same:
                momenta[i].lerp_(matrices[i].grad, 0.05)
            updates = _muon_update([matrices[i].grad.lerp(momenta[i], 0.95) for i in same])
            for i, update in zip(same, updates, strict=True):
                matrices[i].mul_(1 - 0.01 * rate).sub_(rate * update)


def _muon_update(momenta: list[Any]) -> list[Any]:
    """Newton-Schulz in float32 on equally shaped matrices at once (torch's Muon works in bfloat16, slow on CPUs).

    Five quintic steps with Keller Jordan's coefficients bring every singular value near 1; the factor makes the
    update's root mean square that of AdamW (Liu et al. 2025, arXiv 2502.16982).
    """
    import torch

    x = torch.stack(momenta)
    flat = x.shape[1] > x.shape[2]
    x = x.mT if flat else x
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        square = x @ x.mT
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    x = x.mT if flat else x
    return list(0.2 * max(x.shape[1:]) ** 0.5 * x)


def _make_tokenizer(seed: int, tools: list[Any]) -> Any:
    """Two passes: the first tokenizer only renders the dialogues on which the second is trained."""
    dialogues = demonstrations(1500, seed, MIXED)
    first = train_tokenizer([message["content"] for dialogue in dialogues for message in dialogue])
    return train_tokenizer(first.apply_chat_template(dialogues, tools=tools, tokenize=False))


def _batches(tokenizer: Any, tools: list[Any], quality: Quality, seed: int) -> Iterator[tuple[Any, Any, float]]:
    """The step's dialogues as (ids (B, L), weights (B, L), share of the step), short and long ones apart."""
    import torch

    encoded = tokenizer.apply_chat_template(
        demonstrations(BATCH, seed, quality), tools=tools, return_dict=True, return_assistant_tokens_mask=True
    )
    rows = sorted(zip(encoded["input_ids"], encoded["assistant_masks"], strict=True), key=lambda row: len(row[0]))
    for part in (rows[: BATCH // 2], rows[BATCH // 2 :]):
        length = max(len(ids) for ids, _ in part)
        ids = torch.full((len(part), length), tokenizer.pad_token_id)
        weights = torch.zeros(len(part), length)
        for i, (row_ids, mask) in enumerate(part):
            ids[i, : len(row_ids)] = torch.tensor(row_ids)
            weights[i, : len(row_ids)] = torch.tensor([1.0 if own else OTHER_WEIGHT for own in mask])
        yield ids, weights, 0.5


def _loss(model: Any, ids: Any, weights: Any) -> Any:
    """Weighted mean cross-entropy of the next tokens. Padding is on the right, so no attention mask is needed."""
    import torch

    logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
    losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    weights = weights[:, 1:].flatten()
    return (losses * weights).sum() / weights.sum()


def _schedule(progress: float) -> float:
    if progress < WARM_UP:
        return max(progress / WARM_UP, 0.02)
    return 0.05 + 0.95 * (1 + math.cos(math.pi * (progress - WARM_UP) / (1 - WARM_UP))) / 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder for weights, tokenizer and training.json")
    parser.add_argument("--seed", type=int, default=0, help="of weights and demonstrations (default 0)")
    parser.add_argument("--steps", type=int, default=1200, help="optimizer steps of 32 dialogues (default 1200)")
    parser.add_argument("--minutes", type=float, help="stop after so many minutes, if the steps take longer")
    parser.add_argument("--learning-rate", type=float, default=3e-3, help="peak learning rate (default 3e-3)")
    args = parser.parse_args()
    if args.steps < 1 or (args.minutes is not None and args.minutes <= 0):
        parser.error("--steps and --minutes must be positive")
    print(json.dumps(train_starter(args.output, args.seed, args.steps, args.minutes, args.learning_rate)))


if __name__ == "__main__":
    main()
