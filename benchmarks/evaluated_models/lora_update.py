"""One optimizer step of LoRA on a language model: 16 completions of 100 tokens after prompts with 2,000 common tokens.

    python benchmarks/evaluated_models/lora_update.py --model models/qwen2.5-coder --way tree --output FILE.json

Ways as in benchmarks/speed/run.py: "tree" computes what all prompts share once, "groups" each group's prompt once. For
the seconds before issue 22, set PYTHONPATH to the `src` of a checkout of commit e0b301f and take "groups".
"""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from peft import LoraConfig

from fission_grpo import FissionGRPOTrainer

sys.path.insert(0, str(Path(__file__).parents[1] / "speed"))

import one_way


class LoRATrainer(FissionGRPOTrainer):
    """Trains LoRA of rank 16 on all linear layers."""

    def __init__(self, *args, **kwargs):
        lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear")
        super().__init__(*args, peft_config=lora, **kwargs)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--way", choices=("groups", "tree"), required=True)
    parser.add_argument("--common", type=int, default=2000, help="tokens that all prompts share")
    parser.add_argument("--own", type=int, default=30, help="further tokens of a prompt")
    parser.add_argument("--completion", type=int, default=100)
    parser.add_argument("--group", type=int, default=4, help="completions of a prompt")
    parser.add_argument("--groups", type=int, default=4, help="prompts")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    sizes = (options.common, options.own, options.completion, options.group, options.groups)
    cell = one_way.Cell(options.model, 0, *sizes)
    one_way.FissionGRPOTrainer = LoRATrainer
    found = one_way.measure(cell, one_way.Run(options.way, rows=options.group))
    found = {"cell": asdict(cell), "way": options.way, "lora_r": 16, "dtype": "float32", **found}
    options.output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(found["seconds"]))


if __name__ == "__main__":
    main()
