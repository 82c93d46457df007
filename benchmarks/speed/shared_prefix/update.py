"""Forward and backward of one group's log-probabilities, prompts shared and not: time, memory, gradients.

    python benchmarks/speed/shared_prefix/update.py --model MODEL --output benchmarks/speed/shared_prefix/update.json

Times are taken in one process, the variants in turn: seconds on the clock and, for machines that do other work too,
seconds of processor (ratios are of the latter with one thread, of the former otherwise). Peak memory is that of a
process of its own per variant. Every ratio stands beside its arithmetic bound: the multiply-adds of the unshared
computation over those of the shared.
"""

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
import transformers
import trl
from transformers import AutoModelForCausalLM
from trl.trainer.utils import add_fused_lm_head
from variants import VARIANTS

from fission_grpo.shared_prefix.layout import GroupedBatch
from fission_grpo.shared_prefix.update import enable


def load(options):
    """The model in float32, cut to its first `layers` layers where that is asked for."""
    more = {"num_hidden_layers": options.layers} if options.layers else {}
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32, **more)
    add_fused_lm_head(model, outputs=("log_probs", "entropy"))
    enable(model)
    if options.checkpointing:
        model.activation_checkpointing_enable()
    return model.train()


def make_batch(options, vocabulary: int) -> GroupedBatch:
    """One group of random tokens; completions all of R tokens, or of 1 to R with `--unequal`."""
    generator = torch.Generator().manual_seed(0)
    size, length = options.group, options.completion
    prompt = torch.randint(3, vocabulary, (1, options.prompt), generator=generator).expand(size, -1).contiguous()
    completions = torch.randint(3, vocabulary, (size, length), generator=generator)
    lengths = torch.randint(1, length + 1, (size,), generator=generator) if options.unequal else torch.tensor(length)
    mask = (torch.arange(length) < lengths.view(-1, 1)).long().expand(size, length)
    return GroupedBatch(prompt, torch.ones_like(prompt), completions * mask, mask)


def step(model, batch: GroupedBatch, variant: str) -> dict[str, float]:
    """Seconds of a forward and backward, on the clock and of processor."""
    weights = torch.linspace(-1, 1, len(batch.completion_ids))[:, None]
    clock, processor = time.perf_counter(), time.process_time()
    logps = VARIANTS[variant](model, batch)
    forward = time.process_time() - processor
    (logps * weights).mean().backward()
    spent = {"clock": time.perf_counter() - clock, "processor": time.process_time() - processor}
    return spent | {"processor_forward": forward}


def bound(config, batch: GroupedBatch) -> dict[str, float]:
    """Tokens of the layers, unshared over shared, and multiply-adds: without and with what TRL's head spends on CPU.

    Per token, the parameters of the layers; per query and key seen, 2 x heads x head size (scores and sums); the head
    for completions only. On CPU TRL's head scores prompts too.
    """
    prefix = float(batch.prompt_mask[0].sum())
    lengths = batch.completion_mask.sum(1).double()
    width, key_width = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    token = 2 * config.hidden_size * (width + key_width) + 3 * config.hidden_size * config.intermediate_size
    pair = 2 * width
    head = config.hidden_size * config.vocab_size / config.num_hidden_layers
    padded = batch.completion_ids.shape[1]
    own = (pair * (lengths * prefix + lengths**2 / 2) + lengths * (token + head)).sum().item()
    prompt = prefix * token + pair * prefix**2 / 2
    rows = len(lengths)
    unshared = rows * prompt + own
    all_scored = unshared + head * (rows * (prefix + padded) - lengths.sum().item())
    tokens = rows * (prefix + padded) / (prefix + lengths.sum().item())
    return {"tokens": tokens, "work": unshared / (prompt + own), "work_head_of_cpu": all_scored / (prompt + own)}


def times(options) -> dict:
    model = load(options)
    batch = make_batch(options, model.config.vocab_size)
    found: dict[str, list[dict[str, float]]] = {name: [] for name in options.variants}
    gradients: dict[str, list[torch.Tensor]] = {}
    small = make_batch(argparse.Namespace(**{**vars(options), "prompt": 64}), model.config.vocab_size)
    for name in options.variants:  # warm
        step(model, small, name)
    for _ in range(options.repeats):
        for name in options.variants:
            model.zero_grad()
            found[name].append(step(model, batch, name))
            print(name, found[name][-1], file=sys.stderr, flush=True)
            if options.compare:
                gradients[name] = [p.grad.clone() for p in model.parameters()]
    result = {"bound": bound(model.config, batch), "seconds": {name: _summary(runs) for name, runs in found.items()}}
    by, first = "processor" if torch.get_num_threads() == 1 else "clock", options.variants[0]
    medians = {name: entry[by]["median"] for name, entry in result["seconds"].items()}
    result["times_faster"] = {"of": by, **{name: medians[first] / value for name, value in medians.items()}}
    if options.compare:
        result["gradient_error"] = {
            name: max(((a - b).norm() / b.norm()).item() for a, b in zip(grads, gradients[first], strict=True))
            for name, grads in gradients.items()
        }
    return result


def _summary(runs: list[dict[str, float]]) -> dict[str, dict]:
    values = {name: [run[name] for run in runs] for name in runs[0]}
    return {name: {"median": statistics.median(v), "spread": [min(v), max(v)]} for name, v in values.items()}


def memory(options) -> dict[str, float]:
    """Peak resident MiB of one step; of the model with room for its gradients; and the difference."""
    model = load(options)
    batch = make_batch(options, model.config.vocab_size)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter).add_(0)
    before = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20
    step(model, batch, options.variants[0])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"peak_mib": peak, "model_mib": before, "step_mib": peak - before}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--prompt", type=int, default=2048)
    parser.add_argument("--completion", type=int, default=100)
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--layers", type=int, default=0, help="first layers of the model only (0: all)")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--unequal", action="store_true", help="completions of 1 to R tokens")
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--compare", action="store_true", help="also the largest relative error of a gradient")
    parser.add_argument("--what", choices=("both", "times", "memory"), default="both")
    parser.add_argument("--variants", nargs="+", default=["unshared", "two_part"], choices=list(VARIANTS))
    parser.add_argument("--output", type=Path)
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.alone:
        print(json.dumps(memory(options)))
        return
    result = {"options": {k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items()}}
    result["machine"] = {
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "trl": trl.__version__,
        "processor": platform.processor() or platform.machine(),
    }
    if options.what != "memory":
        result |= times(options)
    if options.what != "times":
        result["memory"] = {name: _alone(name) for name in options.variants}
        first = result["memory"][options.variants[0]]
        for entry in result["memory"].values():
            entry["peak_ratio"] = entry["peak_mib"] / first["peak_mib"]
            entry["step_ratio"] = entry["step_mib"] / first["step_mib"]
    text = json.dumps(result, indent=1)
    print(text)
    if options.output:
        options.output.write_text(text + "\n")


def _alone(variant: str) -> dict[str, float]:
    """Memory of one variant in a process of its own: this command again, `--alone`, with only that variant."""
    given = [argument for argument in sys.argv[1:] if argument not in VARIANTS and argument != "--variants"]
    command = [sys.executable, __file__, *given, "--variants", variant, "--alone"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
