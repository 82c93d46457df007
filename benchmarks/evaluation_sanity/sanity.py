"""Do the rates say what they should? BFCL's multi-turn ground truth with errors put into it, judged and counted.

    python benchmarks/evaluation_sanity/sanity.py

Four arms over the official multi-turn cases, each transcript one call a step:

- ground_truth: as it is. No case may have an error.
- corrected: one failing call put in at a random place, then the right call: recovery must be about 1.
- never_corrected: one right call replaced by a failing one: recovery must be about 0.
- mixed: half of the cases corrected, half never: recovery must be about 0.5.

A failing call is an unknown function, the right call with an argument that is none, or the right call with a wrong
value, in turn; each is executed and its answer must be an error, as the records count them. Every verdict is compared
with `judge_case`. Raw results: results.json beside this file. Needs bfcl-eval; six seconds on one core.
"""

import argparse
import json
import os
import random
import tempfile
import time
from importlib import metadata
from pathlib import Path

os.environ.setdefault("BFCL_PROJECT_ROOT", tempfile.mkdtemp())  # else bfcl-eval makes folders beside itself

from fission_grpo.core.types import ToolCall
from fission_grpo.envs.bfcl.functions import class_docs, official_schema
from fission_grpo.envs.bfcl.judge import judge_case, judge_turn
from fission_grpo.envs.bfcl.official import multi_turn_cases
from fission_grpo.envs.bfcl.state import new_state
from fission_grpo.evaluation.metrics import compute_metrics, metrics_json
from fission_grpo.evaluation.records import CaseRecord, StepRecord, TurnRecord
from fission_grpo.evaluation.tables import metrics_table
from fission_grpo.evaluation.transcripts import record_call

CATEGORIES = ("base", "miss_func", "miss_param", "long_context")
KINDS = ("unknown_tool", "bad_arguments", "raised")


def cases(category):
    """Official entries with their ground truth as calls by turn."""
    return [
        (
            {"id": case.id, "initial_config": case.config, "involved_classes": list(case.classes)},
            [list(turn) for turn in case.reference],
        )
        for case in multi_turn_cases(f"multi_turn_{category}")
    ]


def world_of(entry):
    return new_state(entry["involved_classes"], entry["initial_config"], "long_context" in entry["id"])


def wrong_values(call, rng):
    """The call with one argument changed to what no world has."""
    names = list(call.arguments)
    rng.shuffle(names)
    for name in names:
        value = call.arguments[name]
        for wrong in ("no_such_thing_4711", "") if isinstance(value, str) else (-987654321, "no_such_thing_4711"):
            yield ToolCall(call.name, {**call.arguments, name: wrong})


def failing_call(entry, reference, kind, rng):
    """(turn, index, call): a place before a reference call and a call that really errs there; None if none does."""
    places = [(t, i) for t, turn in enumerate(reference) for i in range(len(turn))]
    rng.shuffle(places)
    for t, i in places:
        right = reference[t][i]
        candidates = {
            "unknown_tool": [ToolCall(f"{right.name}_now", right.arguments)],
            "bad_arguments": [ToolCall(right.name, {**right.arguments, "no_such_argument": 1})],
            "raised": wrong_values(right, rng),
        }[kind]
        world = world_of(entry)
        for turn, calls in enumerate(reference[: t + 1]):
            for call in calls[: i if turn == t else None]:
                world.call(call)
        for call in candidates:
            if record_call(call, world.copy().call(call), None).error is not None:
                return t, i, call
    return None


def played(entry, reference, transcript, tools):
    """The record of a transcript of one call a step: every turn judged as officially, up to the first that is not."""
    ours, truth = world_of(entry), world_of(entry)
    results, turns, verdict = [], [], None
    for calls, expected in zip(transcript, reference, strict=True):
        steps = []
        for call in calls:
            results.append(ours.call(call))
            steps.append(StepRecord(calls=(record_call(call, results[-1], tools),)))
        now = judge_turn(ours, truth, results, [truth.call(call) for call in expected], bool(calls))
        verdict = verdict or now
        turns.append(TurnRecord(tuple(steps), verdict is None))
    official = judge_case(entry, [[[call] for call in turn] for turn in transcript], reference)
    assert (official.valid, official.error) == (verdict is None, verdict), (entry["id"], official, verdict)
    return CaseRecord(entry["id"], entry["id"].rsplit("_", 1)[0], tuple(turns), verdict is None, verdict)


def transcripts(reference, found):
    """The two transcripts with the failing call: before the right one, and in its place."""
    t, i, call = found
    corrected, never = [list(turn) for turn in reference], [list(turn) for turn in reference]
    corrected[t].insert(i, call)
    never[t][i] = call
    return corrected, never


def records(everything, seed):
    """Records by arm. Cases in which no call can be made to fail are in the first arm only, and counted."""
    rng = random.Random(seed)
    arms = {"ground_truth": [], "corrected": [], "never_corrected": [], "mixed": []}
    left_out = []
    for number, (entry, reference) in enumerate(everything):
        tools = [official_schema(name) for each in entry["involved_classes"] for name in class_docs(each)]
        arms["ground_truth"].append(played(entry, reference, reference, tools))
        found = failing_call(entry, reference, KINDS[number % len(KINDS)], rng)
        if found is None:
            left_out.append(entry["id"])
            continue
        corrected, never = (played(entry, reference, one, tools) for one in transcripts(reference, found))
        arms["corrected"].append(corrected)
        arms["never_corrected"].append(never)
        arms["mixed"].append((corrected, never))
    half = set(rng.sample(range(len(arms["mixed"])), len(arms["mixed"]) // 2))
    arms["mixed"] = [pair[number in half] for number, pair in enumerate(arms["mixed"])]
    return arms, left_out


def exceptions(arm, expected):
    """Ids whose verdict is not the arm's."""
    return [record.id for record in arm if record.success is not expected]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--per_category", type=int, default=200, help="cases of each of the four categories")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results.json")
    options = parser.parse_args()
    began = time.perf_counter()
    everything = [case for category in CATEGORIES for case in cases(category)[: options.per_category]]
    arms, left_out = records(everything, options.seed)
    judged = time.perf_counter() - began
    result = {
        "command": f"python {Path(__file__).parent.parent.name}/{Path(__file__).parent.name}/sanity.py "
        f"--per_category {options.per_category} --seed {options.seed}",
        "bfcl_eval": metadata.version("bfcl-eval"),
        "without_failing_call": left_out,
        "corrected_yet_wrong": exceptions(arms["corrected"], True),
        "never_corrected_yet_right": exceptions(arms["never_corrected"], False),
        "arms": {},
    }
    for name, arm in arms.items():
        began = time.perf_counter()
        rates = compute_metrics(arm)
        print(f"\n== {name} (rates in {time.perf_counter() - began:.2f} s)\n{metrics_table(rates)}", flush=True)
        result["arms"][name] = metrics_json(rates)
    options.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"\nno failing call found in {len(left_out)} cases; built and judged in {judged:.1f} s: {options.output}")


if __name__ == "__main__":
    main()
