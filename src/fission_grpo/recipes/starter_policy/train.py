"""Train the starter policy from nothing: demonstrations, tokenizer, then a small Qwen3 in a plain torch loop.

    python -m fission_grpo.starter_training --output DIR --seed 0
    python -m fission_grpo.starter_training --output DIR --requests 2
    python -m fission_grpo.starter_training --output DIR --cases train.jsonl --vocabulary 2000 --positions 2048

The first part of the training shows skilled demonstrations, the last part mixed ones (`desk_demos`), which is what
the policy then behaves like. With --steps a run is repeatable to the bit on one machine; --minutes stops by the clock.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

from fission_grpo.envs.desk.env import Desk
from fission_grpo.envs.desk.tasks import MOST_REQUESTS
from fission_grpo.envs.wrapper import tool_methods
from fission_grpo.inference.pretrained import load_starter
from fission_grpo.recipes.starter_policy.desk_demos import (
    MIXED,
    MIXED_CHAINS,
    SKILLED,
    Quality,
    demonstrations,
)
from fission_grpo.recipes.starter_policy.tokenizer import train_tokenizer

BATCH = 32  # dialogues a step


MIXED_SHARE = 0.25  # of the training, at its end, on mixed demonstrations [ours]


WARM_UP = 0.03  # of the training


OTHER_WEIGHT = 0.1  # loss weight of what the assistant did not write; predicting it teaches to copy [ours]


Lessons = Callable[[int, int, Quality], list[tuple[list[Any], list[Any]]]]
"""Draws demonstrations, `lessons(count, seed, quality)`: dialogues, each with its tools."""


@dataclass(frozen=True)
class Plan:
    """How to train.

    Args:
        seed: of weights and demonstrations.
        steps: optimizer steps of 32 dialogues each.
        minutes: end after so many minutes if `steps` take longer (the schedule then follows the clock), or None.
        learning_rate: at its peak, after the warm-up; it falls to a twentieth as a cosine.
        start: folder of a policy that has had skilled demonstrations already, to show mixed ones only; None begins
            from random weights.
        vocabulary: tokens of a new tokenizer.
        positions: longest dialogue of a new model, in tokens; longer demonstrations are cut off.
        requests: of each task of the desk's demonstrations, three in four of them; the rest has one request.
    """

    seed: int = 0
    steps: int = 640
    minutes: float | None = None
    learning_rate: float = 3e-3
    start: Path | None = None
    vocabulary: int = 960
    positions: int = 1024
    requests: int = 1


def desk_lessons(count: int, seed: int, quality: Quality, requests: int = 1) -> list[tuple[list[Any], list[Any]]]:
    """Demonstrations at the built-in desk, of tasks with so many requests."""
    tools = list(tool_methods(Desk()).values())
    return [(dialogue, tools) for dialogue in demonstrations(count, seed, quality, requests)]


def train_starter(output: Path, plan: Plan, lessons: Lessons | None = None) -> dict[str, Any]:
    """Train and save model and tokenizer into `output`; what was done is returned and saved as `training.json`.

    Without `lessons` it learns at the desk. The policy as it was before the mixed demonstrations is saved in
    `output/skilled`.
    """
    import torch

    torch.manual_seed(plan.seed)
    lessons = lessons or partial(desk_lessons, requests=plan.requests)
    model, tokenizer = load_starter(plan.start) if plan.start else make_starter(plan, lessons)
    step_optimizers = _optimizers(model)
    began, step, tokens, beginning = time.monotonic(), 0, 0, 1 - MIXED_SHARE if plan.start else 0.0
    progress, loss, skilled = beginning, math.nan, True
    while progress < 1:
        if skilled and progress >= 1 - MIXED_SHARE:
            skilled = False
            _save(model, tokenizer, output / "skilled")
        rate, loss = plan.learning_rate * _schedule(progress), 0.0
        quality = SKILLED if skilled else MIXED if plan.requests == 1 else MIXED_CHAINS
        for ids, weights, share in _batches(tokenizer, lessons(BATCH, plan.seed * 1_000_003 + step, quality)):
            part = share * _loss(model, ids, weights)
            part.backward()
            loss, tokens = loss + part.item(), tokens + ids.numel()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        step_optimizers(rate)
        model.zero_grad(set_to_none=True)
        step += 1
        elapsed = (time.monotonic() - began) / 60
        progress = beginning + (1 - beginning) * max(step / plan.steps, elapsed / plan.minutes if plan.minutes else 0)
        if step % 25 == 0 or progress >= 1:
            print(f"step {step:5d}  loss {loss:.4f}  rate {rate:.1e}  {elapsed:5.1f} min  {progress:4.0%}", flush=True)
    record = {
        **{key: str(value) if isinstance(value, Path) else value for key, value in asdict(plan).items()},
        "steps_done": step,
        "minutes_taken": round((time.monotonic() - began) / 60, 1),
        "tokens": tokens,
        "last_loss": round(loss, 4),
        "parameters": sum(weight.numel() for weight in model.parameters()),
    }
    _save(model, tokenizer, output)
    (output / "training.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return record


def make_starter(plan: Plan, lessons: Lessons | None = None) -> tuple[Any, Any]:
    """An untrained model and its tokenizer; without `lessons` for the desk."""
    lessons = lessons or partial(desk_lessons, requests=plan.requests)
    # the first tokenizer only renders the dialogues on which the second is trained
    drawn = lessons(1500, plan.seed, MIXED)
    first = train_tokenizer([message["content"] for dialogue, _ in drawn for message in dialogue])
    texts = [first.apply_chat_template(dialogue, tools=tools, tokenize=False) for dialogue, tools in drawn]
    tokenizer = train_tokenizer(texts, plan.vocabulary, plan.positions)
    return make_model(tokenizer, plan.positions), tokenizer


def make_model(tokenizer: Any, positions: int = 1024) -> Any:
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
        max_position_embeddings=positions,
        tie_word_embeddings=True,
        use_cache=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return Qwen3ForCausalLM(config)


def _optimizers(model: Any) -> Callable[[float], None]:
    """A step at a given rate: Muon (Jordan 2024) for the layers' matrices, AdamW for embeddings and norms."""
    import torch

    matrices = [weight for name, weight in model.named_parameters() if weight.ndim == 2 and "embed" not in name]
    rest = [weight for name, weight in model.named_parameters() if weight.ndim != 2 or "embed" in name]
    adamw = torch.optim.AdamW(rest, betas=(0.9, 0.98), weight_decay=0.01)
    momenta = [torch.zeros_like(weight) for weight in matrices]
    by_shape: dict[tuple[int, ...], list[int]] = {}
    for i, weight in enumerate(matrices):
        by_shape.setdefault(tuple(weight.shape), []).append(i)

    @torch.no_grad()
    def step(rate: float) -> None:
        adamw.param_groups[0]["lr"] = rate
        adamw.step()
        for same in by_shape.values():
            for i in same:
                momenta[i].lerp_(matrices[i].grad, 0.05)
            updates = muon_update([matrices[i].grad.lerp(momenta[i], 0.95) for i in same])
            for i, update in zip(same, updates, strict=True):
                matrices[i].mul_(1 - 0.01 * rate).sub_(rate * update)

    return step


def muon_update(momenta: list[Any]) -> list[Any]:
    """Newton-Schulz in float32 on equally shaped matrices at once (torch's Muon works in bfloat16, slow on CPUs).

    Five quintic steps with Keller Jordan's coefficients bring every singular value near 1; the factor makes the
    update's root mean square that of AdamW (Liu et al. 2025, arXiv 2502.16982).
    """
    import torch

    x = torch.stack(momenta)
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        square = x @ x.mT
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    x = x.mT if tall else x
    return list(0.2 * max(x.shape[1:]) ** 0.5 * x)


def _save(model: Any, tokenizer: Any, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _batches(tokenizer: Any, drawn: Sequence[tuple[list[Any], list[Any]]]) -> Iterator[tuple[Any, Any, float]]:
    """The step's dialogues as (ids (B, L), weights (B, L), share of the step), short and long ones apart."""
    import torch

    rows = []
    for dialogue, tools in drawn:
        one = tokenizer.apply_chat_template(dialogue, tools=tools, return_dict=True, return_assistant_tokens_mask=True)
        rows.append((one["input_ids"][: tokenizer.model_max_length], one["assistant_masks"]))
    rows.sort(key=lambda row: len(row[0]))
    for part in (rows[: BATCH // 2], rows[BATCH // 2 :]):
        length = max(len(ids) for ids, _ in part)
        ids = torch.full((len(part), length), tokenizer.pad_token_id)
        weights = torch.zeros(len(part), length)
        for i, (row_ids, mask) in enumerate(part):
            ids[i, : len(row_ids)] = torch.tensor(row_ids)
            own_weights = [1.0 if own else OTHER_WEIGHT for own in mask[: len(row_ids)]]
            weights[i, : len(row_ids)] = torch.tensor(own_weights)
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
    plan = Plan()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder for weights, tokenizer and training.json")
    parser.add_argument("--seed", type=int, default=plan.seed, help="of weights and demonstrations (default 0)")
    parser.add_argument("--steps", type=int, default=plan.steps, help="steps of 32 dialogues (default %(default)s)")
    parser.add_argument("--minutes", type=float, help="end after so many minutes, if the steps take longer")
    parser.add_argument("--learning-rate", type=float, default=plan.learning_rate, help="peak (default %(default)s)")
    parser.add_argument("--start", type=Path, help="a folder's `skilled`: show it the mixed demonstrations only")
    parser.add_argument("--cases", type=Path, help="learn on this case file (`tasks generate`) instead of the desk")
    parser.add_argument("--requests", type=int, default=plan.requests, help="of a task at the desk (default 1)")
    parser.add_argument("--vocabulary", type=int, default=plan.vocabulary, help="tokens (default %(default)s)")
    parser.add_argument("--positions", type=int, default=plan.positions, help="longest dialogue (default %(default)s)")
    args = parser.parse_args()
    if args.steps < 1 or (args.minutes is not None and args.minutes <= 0):
        parser.error("--steps and --minutes must be positive")
    if not 1 <= args.requests <= MOST_REQUESTS or (args.cases and args.requests > 1):
        parser.error(f"--requests must be from 1 to {MOST_REQUESTS}, and is for the desk, not for --cases")
    plan = Plan(**{field.name: getattr(args, field.name) for field in fields(Plan)})
    lessons = None
    if args.cases:
        from fission_grpo.envs.bfcl.tasks import load_cases
        from fission_grpo.recipes.starter_policy.bfcl_demos import case_lessons

        lessons = case_lessons(load_cases(args.cases))
    print(json.dumps(train_starter(args.output, plan, lessons)))


if __name__ == "__main__":
    main()
