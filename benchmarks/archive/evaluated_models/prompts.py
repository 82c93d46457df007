"""The first prompt of every evaluation in this folder, as the model saw it.

    python benchmarks/archive/evaluated_models/prompts.py --smollm2 models/smollm2

Writes prompts.json: by evaluation the id of its first case, the text and its length in tokens. Tasks must have the
manifest's digest.
"""

import argparse
import json
from pathlib import Path

from transformers import AutoTokenizer

from fission_grpo.evaluation.run import read_manifest
from fission_grpo.evaluation.task_sets import TaskSpec, task_set
from fission_grpo.inference.local import prompt_text
from fission_grpo.inference.pretrained import model_path

HERE = Path(__file__).parent


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smollm2", required=True, help="folder made by scripts/prepare_smollm2.py")
    options = parser.parse_args()
    prompts = {}
    for folder in sorted(path.parent for path in HERE.glob("eval-*/manifest.json")):
        manifest = read_manifest(folder)
        model = "starter" if "starter" in folder.name else options.smollm2
        tokenizer = AutoTokenizer.from_pretrained(model_path(model))
        count = manifest.tasks["count"]
        choice = TaskSpec(manifest.tasks["kind"], count, format=manifest.prompt["format"])
        tasks = task_set(choice)
        if tasks.sha256 != manifest.tasks["sha256"]:
            raise SystemExit(f"{folder}: these are other tasks than were evaluated")
        name, begin = next(iter(tasks.cases.items()))
        text = prompt_text(tokenizer, next(begin()))
        tokens = len(tokenizer(text, add_special_tokens=False)["input_ids"])
        prompts[folder.name] = {"case": name, "tokens": tokens, "text": text}
        print(f"{folder.name}: {name}, {tokens} tokens")
    (HERE / "prompts.json").write_text(json.dumps(prompts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
