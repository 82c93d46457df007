"""Train the starter policy from random weights: demonstrations, a tokenizer, and a small Qwen3 in a plain torch loop.

    python -m fission_grpo.recipes.starter_policy.train --output DIR --seed 0
    python -m fission_grpo.recipes.starter_policy.train --output DIR --requests 2
    python -m fission_grpo.recipes.starter_policy.train --output DIR --cases train.jsonl --vocabulary 2000 \\
        --positions 2048

The first part of the training shows skilled demonstrations, the last part mixed ones (see `desk_demos`), whose
behavior the policy then has. With --steps, a run gives the same weights on the same machine; --minutes limits time.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from fission_grpo.core.files import write_file
from fission_grpo.core.terminal import show
from fission_grpo.envs.desk.env import Desk
from fission_grpo.envs.desk.tasks import MOST_REQUESTS
from fission_grpo.envs.wrapper import tool_methods
from fission_grpo.inference.pretrained import load_starter
from fission_grpo.recipes.starter_policy import desk_demos
from fission_grpo.recipes.starter_policy.desk_demos import MIXED, SKILLED, DemoBehavior, Demonstration
from fission_grpo.recipes.starter_policy.tokenizer import SHIPPED, train_tokenizer

BATCH = 32  # dialogues per step
MIXED_SHARE = 0.25  # of the training, at its end, on mixed demonstrations [ours]
WARM_UP = 0.03  # of the training
OTHER_WEIGHT = 0.1  # loss weight of tokens that the assistant did not write; predicting them teaches copying [ours]

Demonstrations = Callable[[int, int, DemoBehavior], list[Demonstration]]  # samples (count, seed, behavior)


def _option(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class TrainConfig:
    """How to train."""

    seed: int = _option(0, "seed of weights and demonstrations")
    steps: int = _option(640, f"optimizer steps of {BATCH} dialogues each")
    minutes: float | None = _option(None, "end after this time, if the steps take longer; the schedules follow it")
    learning_rate: float = _option(3e-3, "peak, after the warm-up; decays to a twentieth as a cosine")
    start: Path | None = _option(None, "a `skilled` folder: train it on mixed demonstrations only")  # noqa: RUF009
    vocabulary: int = _option(960, "number of tokens of a new tokenizer")
    positions: int = _option(1024, "longest dialogue of a new model, in tokens; longer ones are truncated")
    requests: int = _option(1, "requests per task in Desk, in three of four demonstrations; the others have one")


def desk_demonstrations(count: int, seed: int, behavior: DemoBehavior, requests: int = 1) -> list[Demonstration]:
    """Return demonstrations in Desk, each with Desk's tools."""
    tools = list(tool_methods(Desk()).values())
    return [(dialogue, tools) for dialogue in desk_demos.demonstrations(count, seed, behavior, requests)]


def train_starter(output: Path, config: TrainConfig, sample: Demonstrations | None = None) -> dict[str, Any]:
    """Train a policy on demonstrations, in Desk by default, and save it with its tokenizer.

    The policy before the mixed demonstrations is saved in the subfolder `skilled` of `output`. Returns a record of
    the training, which is also saved as `training.json`.
    """
    import torch

    torch.manual_seed(config.seed)
    sample = sample or partial(desk_demonstrations, requests=config.requests)
    model, tokenizer = load_starter(config.start) if config.start else make_starter(config, sample)
    update = _make_optimizers(model)
    mixed = MIXED if config.requests == 1 else desk_demos.MIXED_MULTI_REQUEST
    started = time.monotonic()
    first_progress = progress = 1 - MIXED_SHARE if config.start else 0.0
    step, tokens, loss, behavior = 0, 0, math.nan, SKILLED
    while progress < 1:
        if behavior is SKILLED and progress >= 1 - MIXED_SHARE:
            behavior = mixed
            _save(model, tokenizer, output / "skilled")
        loss = 0.0
        for ids, weights, share in _batches(tokenizer, sample(BATCH, config.seed * 1_000_003 + step, behavior)):
            part = share * _loss(model, ids, weights)
            part.backward()
            loss, tokens = loss + part.item(), tokens + ids.numel()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        rate = config.learning_rate * _schedule(progress)
        update(rate)
        model.zero_grad(set_to_none=True)
        step += 1
        elapsed = (time.monotonic() - started) / 60
        share_done = max(step / config.steps, elapsed / config.minutes if config.minutes else 0)
        progress = first_progress + (1 - first_progress) * share_done
        if step % 25 == 0 or progress >= 1:
            show(f"step {step:5d}  loss {loss:.4f}  rate {rate:.1e}  {elapsed:5.1f} min  {progress:4.0%}")
    record = {
        **asdict(config),
        "steps_done": step,
        "minutes_taken": round((time.monotonic() - started) / 60, 1),
        "tokens": tokens,
        "last_loss": round(loss, 4),
        "parameters": sum(weight.numel() for weight in model.parameters()),
    }
    _save(model, tokenizer, output)
    write_file(output / "training.json", json.dumps(record, indent=1, default=str) + "\n")
    return record


def make_starter(config: TrainConfig, sample: Demonstrations) -> tuple[Any, Any]:
    """Return an untrained model and a tokenizer trained on demonstrations."""
    dialogues = sample(1500, config.seed, MIXED)
    # the first tokenizer only renders the dialogues on which the second is trained
    first = train_tokenizer([message["content"] for dialogue, _ in dialogues for message in dialogue])
    texts = [first.apply_chat_template(dialogue, tools=tools, tokenize=False) for dialogue, tools in dialogues]
    tokenizer = train_tokenizer(texts, config.vocabulary, config.positions)
    return make_model(tokenizer, config.positions), tokenizer


def make_model(tokenizer: Any, positions: int = 1024) -> Any:
    """Return a Qwen3 of about a million random weights (float32): the shipped policy's sizes, but for these two."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config.from_pretrained(SHIPPED)
    config.vocab_size, config.max_position_embeddings = len(tokenizer), positions
    return Qwen3ForCausalLM(config)


def _make_optimizers(model: Any) -> Callable[[float], None]:
    """Return a function that updates at a learning rate: matrices by Muon (Jordan 2024), the rest by AdamW."""
    import torch

    matrices, rest = defaultdict(list), []
    for name, weight in model.named_parameters():
        is_matrix = weight.ndim == 2 and "embed" not in name
        (matrices[weight.shape] if is_matrix else rest).append(weight)
    adamw = torch.optim.AdamW(rest, betas=(0.9, 0.98), weight_decay=0.01)
    groups = [(weights, torch.zeros(len(weights), *shape)) for shape, weights in matrices.items()]

    @torch.no_grad()
    def update(rate: float) -> None:
        adamw.param_groups[0]["lr"] = rate
        adamw.step()
        for weights, momentum in groups:
            gradients = torch.stack([weight.grad for weight in weights])
            momentum.lerp_(gradients, 0.05)
            directions = _orthogonalized(gradients.lerp(momentum, 0.95))
            for weight, direction in zip(weights, directions, strict=True):
                weight.mul_(1 - 0.01 * rate).sub_(rate * direction)

    return update


def _orthogonalized(x: Any) -> Any:
    """Orthogonalize matrices (N, R, C) in float32 (torch's Muon uses bfloat16, which is slow on CPUs).

    Five quintic Newton-Schulz steps with Keller Jordan's coefficients bring all singular values near 1. The factor
    gives the update the root mean square of AdamW's (Liu et al. 2025, arXiv 2502.16982).
    """
    is_tall = x.shape[1] > x.shape[2]
    x = x.mT if is_tall else x
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        square = x @ x.mT
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    x = x.mT if is_tall else x
    return 0.2 * max(x.shape[1:]) ** 0.5 * x


def _save(model: Any, tokenizer: Any, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _batches(tokenizer: Any, dialogues: Sequence[Demonstration]) -> Iterator[tuple[Any, Any, float]]:
    """Yield the shorter and the longer half of the dialogues: ids (B, L), loss weights (B, L), share of the step."""
    import torch

    rows = []
    for dialogue, tools in dialogues:
        row = tokenizer.apply_chat_template(dialogue, tools=tools, return_dict=True, return_assistant_tokens_mask=True)
        rows.append((row["input_ids"][: tokenizer.model_max_length], row["assistant_masks"]))
    rows.sort(key=lambda row: len(row[0]))
    for half in (rows[: BATCH // 2], rows[BATCH // 2 :]):
        length = max(len(ids) for ids, _ in half)
        ids = torch.full((len(half), length), tokenizer.pad_token_id)
        weights = torch.zeros(len(half), length)
        for i, (row_ids, mask) in enumerate(half):
            ids[i, : len(row_ids)] = torch.tensor(row_ids)
            row_weights = [1.0 if is_assistant else OTHER_WEIGHT for is_assistant in mask[: len(row_ids)]]
            weights[i, : len(row_ids)] = torch.tensor(row_weights)
        yield ids, weights, 0.5


def _loss(model: Any, ids: Any, weights: Any) -> Any:
    """Return the weighted mean cross-entropy of next tokens. Padding is on the right and needs no attention mask."""
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
    from transformers import HfArgumentParser

    formatter = argparse.RawDescriptionHelpFormatter
    parser = HfArgumentParser(TrainConfig, description=__doc__, formatter_class=formatter)  # pyright: ignore
    parser.add_argument("--output", type=Path, required=True, help="folder for weights, tokenizer and training.json")
    parser.add_argument("--cases", type=Path, help="train on this case file (`tasks generate`) instead of Desk")
    config, args = parser.parse_args_into_dataclasses()
    if config.steps < 1 or (config.minutes is not None and config.minutes <= 0):
        parser.error("--steps and --minutes must be positive")
    if not 1 <= config.requests <= MOST_REQUESTS or (args.cases and config.requests > 1):
        parser.error(f"--requests must be from 1 to {MOST_REQUESTS}, and is for Desk, not for --cases")
    sample = None
    if args.cases:
        from fission_grpo.envs.bfcl.tasks import load_cases
        from fission_grpo.recipes.starter_policy.bfcl_demos import case_demonstrations

        sample = case_demonstrations(load_cases(args.cases))
    show(json.dumps(train_starter(args.output, config, sample), default=str))


if __name__ == "__main__":
    main()
