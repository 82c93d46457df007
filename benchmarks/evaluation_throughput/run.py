"""How fast a local model replies, batched and one at a time, and how memory goes over many cases.

    python scripts/prepare_smollm2.py --output models/smollm2
    python benchmarks/evaluation_throughput/run.py speed --model models/smollm2 --tasks desk
    python benchmarks/evaluation_throughput/run.py memory

`speed`: the first turns of 16 tasks (Desk, whose prompts share system prompt and tools; or BFCL's simple_python, whose
prompts each have a tool of their own), greedy, 32 new tokens at most: one at a time; in one batch that reads every
prompt whole; in one batch that reads the shared beginning once, as `LocalPolicy` does. `prompt_s` and `decode_s` are
the times in the model's forward passes; with one thread, `seconds` well above `cpu_s` says that other processes held
the core. With `--single 4` the arm "one at a time" takes the first four requests only, which does not change its rate.

On Linux without a GPU, glibc gives the growing KV cache's memory back to the system after every token and faults it in
again; MALLOC_MMAP_THRESHOLD_=1073741824 MALLOC_TRIM_THRESHOLD_=17179869184 in the environment keeps it.

`memory`: resident memory every 50 cases while the starter policy runs 800 built-in tasks through `evaluate_run`.
Results are added to results.json beside this file.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

RESULTS = Path(__file__).with_name("results.json")
REQUESTS, NEW_TOKENS, CASES, EVERY = 16, 32, 800, 50


def desk_requests(count):
    from fission_grpo.envs.desk.env import Desk
    from fission_grpo.envs.desk.tasks import make_rows
    from fission_grpo.envs.wrapper import tool_methods
    from fission_grpo.evaluation.episodes import ToolSchemas
    from fission_grpo.inference.base import Request

    schemas = ToolSchemas(tool_methods(Desk()))
    return [Request(row["prompt"], schemas) for row in make_rows(count, 0, "held_out")]


def bfcl_requests(count):
    os.environ.setdefault("BFCL_PROJECT_ROOT", tempfile.mkdtemp())  # else bfcl-eval makes folders beside itself
    from fission_grpo.envs.bfcl.official import single_turn_cases
    from fission_grpo.evaluation.bfcl.single_turn import run_single_turn

    return [next(run_single_turn(case, "chat")) for case in single_turn_cases("simple_python")[:count]]


class Clock:
    """Time spent in forward passes over prompts (more than one new token) and over single tokens."""

    def __init__(self, model):
        self.prompt = self.decode = self.began = 0.0
        model.register_forward_pre_hook(self.start, with_kwargs=True)
        model.register_forward_hook(self.stop, with_kwargs=True)

    def start(self, *_):
        self.began = time.perf_counter()

    def stop(self, module, given, named, out):
        spent = time.perf_counter() - self.began
        if named["input_ids"].shape[1] > 1:
            self.prompt += spent
        else:
            self.decode += spent


def speed(arguments):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from fission_grpo.inference.local import LocalPolicy, prompt_text
    from fission_grpo.shared_prefix.prefixes import common_beginnings

    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=getattr(torch, arguments.dtype))
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    requests = {"desk": desk_requests, "bfcl": bfcl_requests}[arguments.tasks](arguments.requests)
    prompts = [tokenizer(prompt_text(tokenizer, request))["input_ids"] for request in requests]
    clock = Clock(model.base_model)
    LocalPolicy(model, tokenizer, 0.0, 2).reply(requests[:1])  # warm up
    arms, texts = {}, {}
    for arm in arguments.arms:
        shared = arm == "batch, shared beginning"
        batch_size = 1 if arm == "one at a time" else len(requests)
        taken = requests[: arguments.single] if arm == "one at a time" else requests
        policy = LocalPolicy(model, tokenizer, 0.0, NEW_TOKENS, batch_size=batch_size, shared_prefix=shared)
        clock.prompt = clock.decode = 0.0
        began, computed = time.perf_counter(), time.process_time()
        replies = policy.reply(taken)
        seconds, computed = time.perf_counter() - began, time.process_time() - computed
        tokens = sum(reply.tokens for reply in replies)
        arms[arm] = {
            "requests": len(taken),
            "seconds": round(seconds, 2),
            "cpu_s": round(computed, 2),
            "prompt_s": round(clock.prompt, 2),
            "decode_s": round(clock.decode, 2),
            "tokens": tokens,
            "tokens_per_s": round(tokens / seconds, 2),
            "tokens_per_cpu_s": round(tokens / computed, 2),
        }
        texts[arm] = [reply.text for reply in replies]
        print(arm, arms[arm], file=sys.stderr)
    first = texts[arguments.arms[0]]
    return {
        "part": "speed",
        "tasks": arguments.tasks,
        "dtype": arguments.dtype,
        "threads": torch.get_num_threads(),
        "malloc": {name: value for name, value in os.environ.items() if name.startswith("MALLOC_")},
        "load_average": round(os.getloadavg()[0], 1),
        "requests": len(requests),
        "prompt_tokens": [min(map(len, prompts)), max(map(len, prompts))],
        "shared_tokens": sorted(length for length, _ in common_beginnings(prompts)),
        "arms": arms,
        "times_as_fast": {
            arm: round(arms[arm]["tokens_per_s"] / arms[arguments.arms[0]]["tokens_per_s"], 2) for arm in arms
        },
        "same_text": {arm: sum(a == b for a, b in zip(first, texts[arm], strict=False)) for arm in arms},
    }


def resident_mib():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 2**20


def memory(arguments):
    from dataclasses import asdict

    from fission_grpo.evaluation.policies import Sampling, load_local_policy
    from fission_grpo.evaluation.run import Manifest, evaluate_run
    from fission_grpo.evaluation.task_sets import TaskSpec, task_set
    from fission_grpo.inference.pretrained import starter_path

    sampling, tasks = Sampling(temperature=1.0, max_new_tokens=64), task_set(TaskSpec("desk", count=CASES))
    player = load_local_policy(str(starter_path()), sampling, 64)
    begun, resident = 0, []

    def counted(begin):
        def play():
            nonlocal begun
            begun += 1
            if begun % EVERY == 0:
                resident.append(resident_mib())
            return begin()

        return play

    plays = {name: counted(begin) for name, begin in tasks.cases.items()}
    before, began = resident_mib(), time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        manifest = Manifest("memory", {"kind": tasks.kind}, {}, asdict(sampling), player.description)
        evaluate_run(Path(folder), manifest, player.policy, plays, 64)
    seconds = round(time.perf_counter() - began, 1)
    return {"part": "memory", "cases": CASES, "seconds": seconds, "before_mib": before, "every_50_cases_mib": resident}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("speed", "memory"))
    parser.add_argument("--model", default="models/smollm2")
    parser.add_argument("--tasks", choices=("desk", "bfcl"), default="desk")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--requests", type=int, default=REQUESTS)
    parser.add_argument("--single", type=int, help="requests of the arm 'one at a time'; all without it")
    arms = ["one at a time", "batch, prompts whole", "batch, shared beginning"]
    parser.add_argument(
        "--arms", nargs="+", choices=arms, default=arms, help="the first is what others are held against"
    )
    arguments = parser.parse_args()
    result = {"speed": speed, "memory": memory}[arguments.part](arguments)
    results = json.loads(RESULTS.read_text()) if RESULTS.is_file() else []
    RESULTS.write_text(json.dumps([*results, result], indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
