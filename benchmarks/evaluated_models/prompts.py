"""The first prompt of both task sets in this folder, as the model sees it.

    python benchmarks/evaluated_models/prompts.py --model models/qwen2.5-coder --cases runs/evaluated/cases.jsonl

Writes prompts.json: by task set the id of its first case, the text and its length in tokens. The tasks must have the
digest in the manifests. The warm-up leaves the chat template as it is, so both models see the same.
"""

import argparse
import json
from pathlib import Path

from transformers import AutoTokenizer

from fission_grpo.cli.evaluate import read_ids
from fission_grpo.evaluation.run import read_manifest
from fission_grpo.evaluation.task_sets import TaskSpec, task_set
from fission_grpo.inference.local import prompt_text

HERE = Path(__file__).parent


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of scripts/prepare_qwen.py, or the hub id")
    parser.add_argument("--cases", required=True, help="the generated cases; README.md says how to make them")
    options = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    generated = task_set(TaskSpec(options.cases))
    official = task_set(TaskSpec("multi_turn_base", ids=read_ids(HERE / "multi_turn_base_40.txt")))
    digests = {read_manifest(path.parent).tasks["sha256"] for path in HERE.glob("eval-*/manifest.json")}
    if digests != {generated.sha256, official.sha256}:
        raise SystemExit(f"{options.cases}: these are other tasks than were evaluated")
    prompts = {}
    for name, tasks in (("generated", generated), ("multi_turn_base_40", official)):
        case, start = next(iter(tasks.cases.items()))
        text = prompt_text(tokenizer, next(start()))
        prompts[name] = {"case": case, "tokens": len(tokenizer(text)["input_ids"]), "text": text}
    (HERE / "prompts.json").write_text(json.dumps(prompts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
