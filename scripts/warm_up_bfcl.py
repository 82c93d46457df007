"""Teach a small language model to call tools in live episodes: demonstrations on generated BFCL cases.

As in `fission_grpo.recipes.starter_policy.train`, the first part shows skilled demonstrations, the last part
mixed ones, with slips, repeated errors and a minority of good recoveries, so that RL begins with something to improve.
Every tool result in them is real. Dialogues with the same tools share their system message, which is computed once.

SmolLM2-135M: all weights are trained, in float32, with products in bfloat16 (`torch.autocast`). The chat template
becomes the starter's, Qwen's format with tools as signatures: prompts have 100 to 240 tokens, and TRL reads the calls.

    OMP_NUM_THREADS=1 python scripts/warm_up_bfcl.py --model models/smollm2 --cases warm.jsonl --output DIR

Qwen2.5-Coder-0.5B-Instruct: LoRA on weights in bfloat16, which is merged into them at the end, and the model's own
template, in which the tools of a class take 950 to 2,900 tokens. So the dialogues of a step are of one class, and no
gradient goes through their system message, which would take three times the memory and twice the time.

    OMP_NUM_THREADS=1 python scripts/warm_up_bfcl.py --model models/qwen2.5-coder --cases warm.jsonl --output DIR \\
        --lora_r 16 --template own --steps 24 --mixed_share 0
"""

import argparse
import copy
import json
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl.chat_template_utils import get_training_chat_template, qwen3_template
from trl.trainer.utils import add_fused_lm_head

from fission_grpo.envs.bfcl.tasks import load_cases
from fission_grpo.recipes.starter_policy.bfcl_demos import case_demonstrations
from fission_grpo.recipes.starter_policy.desk_demos import MIXED, SKILLED
from fission_grpo.recipes.starter_policy.tokenizer import CHAT_TEMPLATE
from fission_grpo.shared_prefix.kv_cache import CACHE_ARGUMENTS, find_cache_argument
from fission_grpo.shared_prefix.layout import GroupedBatch
from fission_grpo.shared_prefix.update import enable, shared_logps

BATCH = 8
"""Dialogues an optimizer step. [ours] With LoRA all of one class."""
TAGS = ["<tool_call>", "</tool_call>"]
"""Trained with LoRA, too. In Qwen2.5-Coder-0.5B their rows of the output layer are nearly the same, and the same as
those of 2,450 other tokens (cosine above 0.999), so that LoRA on the layers before cannot choose between them."""
WARM_UP = 0.05
"""Share of the steps in which the learning rate rises. [ours]"""


def batches(tokenizer: Any, template: str, lessons: Any, seed: int, quality: Any) -> list[GroupedBatch]:
    """An optimizer step's dialogues, one batch per set of tools: the system message is the prompt, the rest of the
    dialogue the completion, and `tool_mask` is 1 where the assistant wrote."""
    groups = defaultdict(list)
    settings = {"chat_template": template, "return_dict": True, "return_assistant_tokens_mask": True}
    for dialogue, tools in lessons(BATCH, seed, quality):
        one = tokenizer.apply_chat_template(dialogue, tools=tools, **settings)
        system = len(tokenizer.apply_chat_template(dialogue[:1], tools=tools)["input_ids"])
        groups[tuple(one["input_ids"][:system])].append((one["input_ids"][system:], one["assistant_masks"][system:]))
    return [grouped(prompt, rows) for prompt, rows in groups.items()]


def grouped(prompt: tuple[int, ...], rows: list[tuple[list[int], list[int]]]) -> GroupedBatch:
    """The batch of dialogues (tokens, 1 where the assistant wrote) after one prompt."""
    longest = max(len(ids) for ids, _ in rows)
    ids, there, own = (torch.zeros(len(rows), longest, dtype=torch.int64) for _ in range(3))
    for row, (tokens, mask) in enumerate(rows):
        ids[row, : len(tokens)] = torch.tensor(tokens)
        own[row, : len(tokens)] = torch.tensor(mask)
        there[row, : len(tokens)] = 1
    prompts = torch.tensor([prompt] * len(rows))
    return GroupedBatch(prompts, torch.ones_like(prompts), ids, there, own)


def own_tokens(batch: GroupedBatch) -> int:
    """How many tokens the assistant wrote."""
    return 0 if batch.tool_mask is None else int(batch.tool_mask.sum())


def losses(model: Any, batch: GroupedBatch) -> Iterator[torch.Tensor]:
    """The summed cross-entropy of what the assistant wrote."""
    with torch.autocast("cpu", torch.bfloat16):
        yield -shared_logps(model, batch, policy_tokens_only=True).logps.sum()


def lora_losses(model: Any, batch: GroupedBatch) -> Iterator[torch.Tensor]:
    """As `losses`, for two dialogues at a time, and without a gradient through the prompt's keys and values."""
    causal_lm = model.get_base_model()
    cache_argument = find_cache_argument(causal_lm) or CACHE_ARGUMENTS[0]
    with torch.no_grad():
        prompt = causal_lm.model(batch.prompt_ids[:1], use_cache=True).past_key_values
    for chosen in batch.completion_mask.sum(1).argsort().split(2):
        part, cache = batch.rows(chosen), copy.deepcopy(prompt)
        cache.batch_repeat_interleave(len(chosen))
        ids = part.completion_ids[:, : part.completion_mask.sum(1).max()]
        own = part.tool_mask[:, 1 : ids.shape[1]].bool()  # pyright: ignore[reportOptionalSubscript]
        mask = torch.cat([part.prompt_mask, part.completion_mask], 1)[:, : part.prompt_ids.shape[1] + ids.shape[1]]
        hidden = causal_lm.model(ids, attention_mask=mask, use_cache=True, **{cache_argument: cache}).last_hidden_state
        logits = causal_lm.lm_head(hidden[:, :-1][own]).float()
        yield torch.nn.functional.cross_entropy(logits, ids[:, 1:][own], reduction="sum")


def schedule(progress: float) -> float:
    """The learning rate's share of its peak: up, then down as a cosine to a twentieth."""
    if progress < WARM_UP:
        return max(progress, 0.01) / WARM_UP
    return 0.05 + 0.95 * (1 + math.cos(math.pi * (progress - WARM_UP) / (1 - WARM_UP))) / 2


def optimize(
    model: Any,
    arguments: argparse.Namespace,
    sample: Callable[[int, bool], Sequence[GroupedBatch]],
    losses_of: Callable[[Any, GroupedBatch], Iterator[torch.Tensor]],
) -> dict[str, Any]:
    """Finetune the weights that have gradients; returns what was done.

    Args:
        arguments: steps, mixed_share, learning_rate and seed.
        sample: from the step and whether it is a mixed one to its batches.
        losses_of: the summed losses of a batch, in parts.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, betas=(0.9, 0.98), weight_decay=0.0)
    began, tokens, loss = time.monotonic(), 0, math.nan
    for step in range(arguments.steps):
        mixed = step >= arguments.steps * (1 - arguments.mixed_share)
        rows = sample(step, mixed)
        count, loss = sum(own_tokens(row) for row in rows), 0.0
        for row in rows:
            for part in losses_of(model, row):
                (part / count).backward()
                loss += part.item() / count
            tokens += int(row.completion_mask.sum()) + row.prompt_ids.shape[1]
        for group in optimizer.param_groups:
            group["lr"] = arguments.learning_rate * schedule(step / arguments.steps)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seconds = time.monotonic() - began
        print(f"step {step + 1:3d}  loss {loss:.4f}  {'mixed' if mixed else 'skilled'}  {seconds:5.0f} s", flush=True)
    return {
        "steps": arguments.steps,
        "dialogues": arguments.steps * BATCH,
        "mixed_share": arguments.mixed_share,
        "learning_rate": arguments.learning_rate,
        "seed": arguments.seed,
        "tokens": tokens,
        "last_loss": round(loss, 4),
        "minutes": round((time.monotonic() - began) / 60, 1),
        "torch": torch.__version__,
    }


def seed_of(arguments: argparse.Namespace, step: int) -> int:
    """The seed of a step's dialogues."""
    return arguments.seed * 1_000_003 + step


def train(model: Any, tokenizer: Any, arguments: argparse.Namespace) -> dict[str, Any]:
    """Finetune on demonstrations of the cases; returns what was done."""
    cases = load_cases(arguments.cases)
    classes = sorted({case.classes for case in cases}) if arguments.lora_r else [None]
    lessons = [case_demonstrations([case for case in cases if one in (None, case.classes)]) for one in classes]
    template = CHAT_TEMPLATE if arguments.template == "starter" else get_training_chat_template(tokenizer)

    def sample(step: int, mixed: bool) -> list[GroupedBatch]:
        quality, of_class = MIXED if mixed else SKILLED, lessons[step % len(lessons)]
        return batches(tokenizer, template, of_class, seed_of(arguments, step), quality)

    done = optimize(model, arguments, sample, lora_losses if arguments.lora_r else losses)
    return {**done, "cases": str(arguments.cases), "lora_r": arguments.lora_r}


def save(model: Any, tokenizer: Any, record: dict[str, Any], output: Path) -> None:
    """Write the model's folder, with `warm_up.json`, and print what was done."""
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)
    (output / "warm_up.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(record))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or hub id, such as prepare_smollm2.py's output")
    parser.add_argument("--cases", type=Path, required=True, help="case file of `fission-grpo tasks generate`")
    parser.add_argument("--output", type=Path, required=True, help="folder for the warmed-up model")
    parser.add_argument("--steps", type=int, default=22, help="optimizer steps of 8 dialogues")
    parser.add_argument("--mixed_share", type=float, default=0.35, help="share of the steps, the last ones, on mixed")
    parser.add_argument("--learning_rate", type=float, default=3e-4, help="peak")
    parser.add_argument("--seed", type=int, default=0, help="of the demonstrations")
    lora = "rank of LoRA on all linear layers; 0: train all weights"
    parser.add_argument("--lora_r", type=int, default=0, help=lora)
    template = "the starter's, which the saved model keeps, or the model's own, which TRL must know"
    parser.add_argument("--template", choices=("starter", "own"), default="starter", help=template)
    arguments = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(arguments.model, padding_side="left")
    if arguments.template == "starter":
        tokenizer.chat_template = CHAT_TEMPLATE
        tokenizer.response_template = qwen3_template
    dtype = torch.bfloat16 if arguments.lora_r else torch.float32
    model: Any = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=dtype)
    if arguments.lora_r:
        tags = {"embed_tokens": (ids := tokenizer.convert_tokens_to_ids(TAGS)), "lm_head": ids}
        rank = {"r": arguments.lora_r, "lora_alpha": 2 * arguments.lora_r}
        settings = LoraConfig(**rank, target_modules="all-linear", trainable_token_indices=tags)
        model = get_peft_model(model, settings)
    else:
        add_fused_lm_head(model)
        enable(model)
    record = train(model, tokenizer, arguments)
    if arguments.lora_r:
        model = model.float().merge_and_unload().to(dtype)  # rounded once
    save(model, tokenizer, record, arguments.output)


if __name__ == "__main__":
    main()
