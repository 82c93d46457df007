"""Generation as TRL calls it, with prompts shared and not: time of prompts and of new tokens, and memory.

    python benchmarks/speed/shared_prefix/generation.py --model MODEL --prompts 256 1024 2048 --output generation.json
    python benchmarks/speed/shared_prefix/generation.py --model starter --groups 8 --output generation_starter.json

A model folder gets random prompts of P tokens and draws R tokens for every row (no end token); "starter" gets prompts
of the built-in tasks and ends where it ends. Both ways run in one process, in turn, from the same seed; ratios are of
processor seconds with one thread, since the machine may do other work. Memory is that of a process per way.
"""

import argparse
import gc
import json
import statistics
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import torch
import transformers
from transformers import AutoModelForCausalLM, GenerationConfig, StoppingCriteria, StoppingCriteriaList
from trl.trainer.utils import add_fused_lm_head

from fission_grpo.envs.desk.env import Desk
from fission_grpo.envs.desk.tasks import make_rows
from fission_grpo.envs.wrapper import tool_methods
from fission_grpo.inference.pretrained import load_starter
from fission_grpo.shared_prefix.generate import SharedGeneration

WAYS = ("plain", "shared")


class Clock(StoppingCriteria):
    """Never stops; notes the processor's time when the first token has been drawn."""

    def __init__(self):
        self.first: float | None = None

    def __call__(self, input_ids, scores, **kwargs):
        self.first = self.first or time.process_time()
        return torch.zeros(len(input_ids), dtype=torch.bool)


def load(options):
    if options.model == "starter":
        return load_starter()
    more = {"num_hidden_layers": options.layers} if options.layers else {}
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32, **more)
    add_fused_lm_head(model)
    return model.eval(), None


def make_prompts(options, length: int, vocabulary: int, tokenizer) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, P) token ids, padded on the left, and their mask: each prompt once per row of its group."""
    if tokenizer is None:
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(3, vocabulary, (options.groups, length), generator=generator)
        mask = torch.ones_like(ids)
    else:
        tools = list(tool_methods(Desk()).values())
        dialogues = []
        for row in make_rows(options.groups, seed=5, split="train"):
            *before, last = row["prompt"]
            observation = Desk().reset(**row) or ""
            dialogues.append([*before, {**last, "content": last["content"] + observation}])
        texts = [
            tokenizer.apply_chat_template(one, tools=tools, tokenize=False, add_generation_prompt=True)
            for one in dialogues
        ]
        tokens = tokenizer(texts, padding=True, padding_side="left", return_tensors="pt", add_special_tokens=False)
        ids, mask = tokens["input_ids"], tokens["attention_mask"]
    return ids.repeat_interleave(options.group, 0), mask.repeat_interleave(options.group, 0)


def run(model, ids, mask, way: str, options, sharing: SharedGeneration) -> tuple[dict[str, float], torch.Tensor]:
    """Processor seconds until the first token and after it; and the tokens."""
    end = [2] if options.model != "starter" else model.generation_config.eos_token_id
    config = GenerationConfig(
        max_new_tokens=options.completion,
        do_sample=True,
        temperature=1.0,
        top_k=0,
        pad_token_id=0,
        eos_token_id=end if options.model == "starter" else None,
        disable_compile=True,
    )
    torch.manual_seed(0)
    clock = Clock()
    with sharing.on(model) if way == "shared" else nullcontext(), torch.no_grad():
        started = time.process_time()
        tokens = model.generate(
            input_ids=ids,
            attention_mask=mask,
            generation_config=config,
            stopping_criteria=StoppingCriteriaList([clock]),
        )
        ended = time.process_time()
    assert clock.first is not None
    return {"prompts": clock.first - started, "tokens": ended - clock.first, "all": ended - started}, tokens


def bound(config, rows: int, groups: int, length: float, new: float) -> dict[str, float]:
    """What sharing can save at most: multiply-adds of reading prompts, and bytes a new token reads.

    Reading: every prompt once instead of once per row. A step of new tokens reads the weights and all keys and values
    (float32): those of the prompts once per group instead of once per row. "all" takes prompts by multiply-adds and
    new tokens by multiply-adds too, which sharing leaves as they are.
    """
    width, key_width = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    token = 2 * config.hidden_size * (width + key_width) + 3 * config.hidden_size * config.intermediate_size
    layers, head = config.num_hidden_layers, config.hidden_size * config.vocab_size
    prompt = layers * (length * token + width * length**2)
    drawn = new * (layers * (token + 2 * width * (length + new / 2)) + head)
    weights, keys = layers * token + head, 2 * layers * key_width
    own = rows * new / 2 * keys
    return {
        "prompts": rows / groups,
        "all": rows * (prompt + drawn) / (groups * prompt + rows * drawn),
        "bytes_of_a_step": (weights + rows * length * keys + own) / (weights + groups * length * keys + own),
        "bytes_of_caches": (rows * (length + new)) / (groups * length + rows * new),
    }


def times(options, length: int) -> dict:
    model, tokenizer = load(options)
    ids, mask = make_prompts(options, length, model.config.vocab_size, tokenizer)
    sharing, found, tokens = SharedGeneration(remember=False), {way: [] for way in WAYS}, {}
    for way in WAYS:  # warm; the self-check is done here
        run(model, ids[:2, -8:], mask[:2, -8:], way, argparse.Namespace(**{**vars(options), "completion": 2}), sharing)
    sharing.counts.clear()
    for _ in range(options.repeats):
        for way in WAYS:
            seconds, tokens[way] = run(model, ids, mask, way, options, sharing)
            found[way].append(seconds)
            print(length, way, seconds, file=sys.stderr, flush=True)
    medians = {w: {k: statistics.median(one[k] for one in runs) for k in runs[0]} for w, runs in found.items()}
    new = tokens["plain"].shape[1] - ids.shape[1]
    return {
        "prompt": float(mask.sum(1).float().mean()),
        "longest_completion": new,
        "same_tokens": tokens["plain"].equal(tokens["shared"]),
        "seconds": {w: {k: [min(v), medians[w][k], max(v)] for k, v in _turned(r).items()} for w, r in found.items()},
        "times_faster": {k: medians["plain"][k] / medians["shared"][k] for k in medians["plain"]},
        "bound": bound(model.config, len(ids), options.groups, float(mask.sum(1).float().mean()), new),
        "counts": dict(sharing.counts),
    }


def _turned(runs: list[dict[str, float]]) -> dict[str, list[float]]:
    return {name: [one[name] for one in runs] for name in runs[0]}


def memory(options) -> dict[str, float]:
    """Peak resident MiB, and the part of it that generation needed."""
    model, tokenizer = load(options)
    ids, mask = make_prompts(options, options.prompts[0], model.config.vocab_size, tokenizer)
    for weight in model.parameters():
        weight.sum()
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of loading
    before = _resident("VmRSS")
    run(model, ids, mask, options.alone, options, SharedGeneration(remember=False))
    peak = _resident("VmHWM")
    return {"peak_mib": peak, "generation_mib": peak - before}


def _resident(name: str) -> float:
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{name}:")[1].split()[0]) / 1024


def _alone(options, way: str, length: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--alone", way, "--prompts", str(length), "--completion", "8"]
    for name in ("model", "groups", "group", "layers"):
        command += [f"--{name}", str(getattr(options, name))]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a folder, or 'starter'")
    parser.add_argument("--prompts", type=int, nargs="+", default=[256])
    parser.add_argument("--completion", type=int, default=64)
    parser.add_argument("--groups", type=int, default=1)
    parser.add_argument("--group", type=int, default=8, help="rows of a group")
    parser.add_argument("--layers", type=int, default=0, help="first layers of the model only (0: all)")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--alone", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.alone:
        print(json.dumps(memory(options)))
        return
    result = {
        "options": {k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items()},
        "machine": {"threads": torch.get_num_threads(), "torch": torch.__version__, "tf": transformers.__version__},
        "runs": [times(options, length) for length in options.prompts],
    }
    if options.memory:
        for entry, length in zip(result["runs"], options.prompts, strict=True):
            found = entry["memory"] = {way: _alone(options, way, length) for way in WAYS}
            entry["times_less_memory"] = found["plain"]["generation_mib"] / found["shared"]["generation_mib"]
    text = json.dumps(result, indent=1)
    print(text)
    if options.output:
        options.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
