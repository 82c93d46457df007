r"""What trained policies do after a call that worked, and after one that erred: do they end their turn, or call again?

    python benchmarks/evidence/why.py runs/evidence/episode --arms grpo fission \
        --output benchmarks/evidence/results/episode/why.json

Recovery groups always begin with a failed call, and in them whoever ends the turn has failed. A policy may learn from
that to go on calling after calls that worked, too. Counted on held-out tasks that one right call does (all kinds but
`locked`), from the policies that `run.py` left in its folders; 5 seconds a policy on one core.
"""

import argparse
import json
import os
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
sys.path.insert(0, str(Path(__file__).resolve().parent))

from evaluations import evaluate
from suite import Set
from transformers import AutoModelForCausalLM, AutoTokenizer

from fission_grpo.evaluation.records import CaseRecord
from fission_grpo.inference.pretrained import model_path

TASKS = Set("desk:held_out", count=160, in_flight=160)


def habits(records: Sequence[CaseRecord]) -> dict[str, float]:
    """How often calls follow, by what came before, and what it costs.

    Returns:
        `after_success`, `after_error`: of the steps whose calls worked (erred) and after which there is another, the
        share after which the policy calls again; `first_right`: the share of episodes whose first step works;
        `spoiled`: of these, the share that fails; `tokens`: per episode.
    """
    counts: Counter[str] = Counter()
    for record in records:
        if record.category == "locked":
            continue
        counts["episodes"] += 1
        counts["tokens"] += sum(step.tokens for step in record.steps)
        for number, step in enumerate(record.steps):
            what = "error" if step.errors else "success" if step.calls else None
            if what is None or number + 1 == len(record.steps):
                continue
            following = record.steps[number + 1]
            counts[f"after_{what}"] += 1
            counts[f"again_{what}"] += bool(following.calls) or following.unread is not None
        if record.steps and record.steps[0].calls and not record.steps[0].errors:
            counts["first_right"] += 1
            counts["spoiled"] += not record.success
    return {
        "after_success": counts["again_success"] / max(1, counts["after_success"]),
        "after_error": counts["again_error"] / max(1, counts["after_error"]),
        "first_right": counts["first_right"] / max(1, counts["episodes"]),
        "spoiled": counts["spoiled"] / max(1, counts["first_right"]),
        "tokens": counts["tokens"] / max(1, counts["episodes"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, help="folder of a suite's runs")
    parser.add_argument("--arms", nargs="+", required=True)
    parser.add_argument("--output", type=Path, required=True, help="JSON file, an entry per policy; those there stay")
    options = parser.parse_args()
    policies = {"untrained": Path(model_path("starter"))}
    for arm in options.arms:
        found = [folder for folder in options.runs.glob(f"{arm}-*") if folder.name.removeprefix(f"{arm}-").isdigit()]
        policies |= {folder.name: folder for folder in sorted(found) if (folder / "config.json").is_file()}
    results = json.loads(options.output.read_text()) if options.output.is_file() else {}
    for name, folder in policies.items():
        if name in results:
            continue
        model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
        tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
        results[name] = habits(evaluate(model, tokenizer, TASKS, seed=0))
    options.output.write_text(json.dumps(results, indent=1) + "\n")
    by_arm = defaultdict(list)
    for name, found in results.items():
        by_arm[name.rsplit("-", 1)[0]].append(found)
    names = ("after_success", "after_error", "first_right", "spoiled", "tokens")
    print("means over policies    n " + " ".join(f"{name:>14}" for name in names))
    for arm, found in by_arm.items():
        means = [sum(one[name] for one in found) / len(found) for name in names]
        print(f"{arm:22} {len(found):2d} " + " ".join(f"{mean:14.3f}" for mean in means))


if __name__ == "__main__":
    main()
