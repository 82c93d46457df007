"""Is our BFCL evaluation the official one?

    python benchmarks/bfcl_faithful/run.py [--venv VENV of scripts/official_bfcl.py]

a. Ground truth as a scripted policy through our runner, all 800 multi-turn cases; the official command line on the
   result files we wrote must come to the same verdict, case by case.
b. Transcripts with one mistake each, of every kind in mistakes.py, from all four categories, in three formats and two
   modes: verdicts case by case with the official command line; and for the official formats in strict mode every
   prompt, every tool result and the result rows against the official handlers, which play the same replies.
c. Seconds to judge 800 recorded cases: ours from the result rows (decoding included) beside the official checker on
   decoded calls, in turns, in one process.

d. Single-turn cases of eleven categories, with right and wrong replies: prompts and verdicts as in b.

Raw results: results.json beside this file. Needs bfcl-eval; about two minutes on one core.
"""

import argparse
import contextlib
import hashlib
import io
import itertools
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from functools import partial
from importlib import metadata
from pathlib import Path

os.environ.setdefault("BFCL_PROJECT_ROOT", tempfile.mkdtemp())  # else bfcl-eval makes folders beside itself
sys.path.append(str(Path(__file__).resolve().parents[2] / "scripts"))

import single_turn
from mistakes import KINDS, replies
from official_bfcl import DEFAULT_VENV, differences, environment, evaluate

from fission_grpo.envs.bfcl.judge import write_call
from fission_grpo.envs.bfcl.official import (
    MULTI_TURN,
    SINGLE_TURN,
    multi_turn_cases,
    single_turn_cases,
)
from fission_grpo.evaluation.bfcl.results import (
    read_result_file,
    replay_case,
    result_path,
    write_result_files,
)
from fission_grpo.evaluation.bfcl.run_case import run_case
from fission_grpo.evaluation.bfcl.single_turn import run_single_turn
from fission_grpo.evaluation.runner import run_cases
from fission_grpo.inference.base import Reply

MODELS = {"qwen-fc": "Qwen/Qwen3-8B-FC", "qwen-prompting": "Qwen/Qwen3-8B", "chat": "Qwen/Qwen3-8B-FC"}
VARIANTS = [(form, mode) for form in MODELS for mode in ("strict", "feedback")]


class Script:
    """A policy that says what was written for the case being played, and keeps what it was asked."""

    def __init__(self):
        self.lines, self.prompts = iter(()), []

    def begin(self, play, lines):
        def start():
            self.lines = iter(lines)
            self.prompts.append([])
            return play()

        return start

    def reply(self, requests):
        self.prompts[-1] += [request.prompt for request in requests]
        return [Reply(next(self.lines, "")) for _ in requests]


def ground_truth(cases, venv):
    """Part a."""
    folder, records, policy = Path(tempfile.mkdtemp()), [], Script()
    lines = [replies(case, "qwen-fc", "none", random.Random(0)) for case in cases]
    plays = (policy.begin(partial(run_case, case), said) for case, said in zip(cases, lines, strict=True))
    run_cases(policy, plays, in_flight=1, done=records.append)
    write_result_files(records, cases, folder)
    scores = evaluate(folder, venv)
    apart = differences(scores, {record.id: record.verdict for record in records})
    result = {
        "ours": sum(record.success for record in records),
        "official": sum(score.correct for score in scores.values()),
        "cases": len(records),
        "different": apart,
    }
    print("ground truth", result, flush=True)
    return result, records


def mistaken(cases, form, per_kind, seed):
    """For every kind and category `per_kind` transcripts, each of another case: (case, kind, replies)."""
    rng, made = random.Random(seed), []
    for category in MULTI_TURN:
        pool = [case for case in cases if case.category == category]
        rng.shuffle(pool)
        for kind in KINDS[form]:
            wanted = per_kind
            for case in list(pool):
                lines = replies(case, form, kind, rng) if wanted else None
                if lines is not None:
                    made.append((case, kind, lines))
                    pool.remove(case)
                    wanted -= 1
    return made


def mistakes(cases, form, mode, venv, per_kind, seed):
    """Part b for one format and mode."""
    written = form if form != "chat" else "qwen-fc"
    made, records, policy, folder = mistaken(cases, written, per_kind, seed), [], Script(), Path(tempfile.mkdtemp())
    plays = (policy.begin(partial(run_case, case, form, mode), lines) for case, _, lines in made)
    run_cases(policy, plays, in_flight=1, done=records.append)
    paths = write_result_files(records, cases, folder, MODELS[form])
    apart = differences(evaluate(folder, venv, MODELS[form]), {record.id: record.verdict for record in records})
    again = {record.id: record.verdict for path in paths for record in read_result_file(path)}
    kinds = {case.id: kind for case, kind, _ in made}
    result = {
        "transcripts": len(records),
        "valid": sum(bool(record.success) for record in records),
        "by_verdict": dict(Counter(str(record.verdict) for record in records)),
        "by_kind": {kind: sum(one == kind for one in kinds.values()) for kind in KINDS[written]},
        "verdicts_different": [(kinds[case_id], case_id, ours, official) for case_id, ours, official in apart],
        "read_again_different": [record.id for record in records if again[record.id] != record.verdict],
    }
    if form != "chat" and mode == "strict":
        result |= handlers(made, form, records, policy.prompts, venv, folder)
    print(form, mode, json.dumps(result, indent=1), flush=True)
    return result


def handlers(made, form, records, prompts, venv, folder):
    """The official handlers with the same replies: what they would have asked, shown and written."""
    asked = [{"id": case.id, "format": form, "replies": lines} for case, _, lines in made]
    (folder / "asked.json").write_text(json.dumps({"cases": asked, "texts": [], "tails": 0}))
    script = Path(__file__).parents[2] / "scripts" / "official_bfcl_prompts.py"
    command = [str(environment(venv)), str(script), str(folder / "asked.json"), str(folder / "answered.json")]
    subprocess.run(command, check=True, env={**os.environ, "BFCL_PROJECT_ROOT": str(folder)})
    answered = json.loads((folder / "answered.json").read_text())["cases"]
    rows = {}
    for path in {result_path(folder, case.category, MODELS[form]) for case, _, _ in made}:
        rows |= {row["id"]: row["result"] for row in map(json.loads, path.read_text().splitlines())}
    apart = {"prompts_different": [], "results_different": [], "rows_different": []}
    for (case, kind, _), record, ours, official in zip(made, records, prompts, answered, strict=True):
        hashed = [[hashlib.sha256(prompt.encode()).hexdigest(), len(prompt), ""] for prompt in ours]
        failed = str(official["result"]).startswith("Error during inference")
        if failed != (record.verdict == "multi_turn:inference_error") or hashed != official["prompts"]:
            apart["prompts_different"].append((kind, case.id))
        if not failed and [call.result for call in record.calls] != official["results"]:
            apart["results_different"].append((kind, case.id))
        if not failed and rows[case.id] != official["result"]:
            apart["rows_different"].append((kind, case.id))
    counted = {"prompts": sum(map(len, prompts)), "results": sum(len(record.calls) for record in records)}
    return counted | apart


def single(form, venv, per_category):
    """Part d for one format."""
    made, records, policy, folder = [], [], Script(), Path(tempfile.mkdtemp())
    for category in SINGLE_TURN:
        for case, kind in zip(single_turn_cases(category)[:per_category], itertools.cycle(single_turn.KINDS)):
            made.append((case, kind, [single_turn.reply(case, form, kind)]))
    plays = (policy.begin(partial(run_single_turn, case, form), lines) for case, _, lines in made)
    run_cases(policy, plays, in_flight=1, done=records.append)
    write_result_files(records, [case for case, _, _ in made], folder, MODELS[form])
    apart = differences(evaluate(folder, venv, MODELS[form]), {record.id: record.verdict for record in records})
    checked = handlers(made, form, records, policy.prompts, venv, folder)
    result = {
        "transcripts": len(records),
        "valid": sum(bool(record.success) for record in records),
        "by_verdict": dict(Counter(str(record.verdict) for record in records)),
        "verdicts_different": apart,
        **{name: checked[name] for name in ("prompts", "prompts_different", "rows_different")},
    }
    print("single turn", form, json.dumps(result, indent=1), flush=True)
    return result


def timing(cases, records, rounds):
    """Part c: the least of some rounds, in turns."""
    from bfcl_eval.eval_checker.multi_turn_eval import multi_turn_utils
    from bfcl_eval.eval_checker.multi_turn_eval.multi_turn_checker import multi_turn_checker

    rows = [[[step.text for step in turn.steps] for turn in record.turns] for record in records]
    truth = [[[write_call(call) for call in turn] for turn in case.reference] for case in cases]
    decoded = [[[turn] if turn else [] for turn in case] for case in truth]
    entries = [{"id": c.id, "initial_config": c.config, "involved_classes": list(c.classes)} for c in cases]
    seconds, number = {"ours": [], "official": []}, itertools.count()
    for _ in range(rounds):
        began = time.perf_counter()
        ours = [replay_case(case, row).success for case, row in zip(cases, rows, strict=True)]
        seconds["ours"].append(time.perf_counter() - began)
        before, name = set(vars(multi_turn_utils)), f"round_{next(number)}"
        with contextlib.redirect_stdout(io.StringIO()):
            began = time.perf_counter()
            theirs = [
                multi_turn_checker(calls, answer, entry, case.category, name)["valid"]
                for case, entry, calls, answer in zip(cases, entries, decoded, truth, strict=True)
            ]
            seconds["official"].append(time.perf_counter() - began)
        for variable in set(vars(multi_turn_utils)) - before:
            delattr(multi_turn_utils, variable)
        assert ours == theirs == [True] * len(cases)
    least = {name: min(values) for name, values in seconds.items()}
    result = {"seconds": seconds, "least": least, "ratio": least["ours"] / least["official"]}
    print("judging", result, flush=True)
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--venv", type=Path, default=DEFAULT_VENV)
    parser.add_argument("--per_kind", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results.json")
    options = parser.parse_args()
    cases = [case for category in MULTI_TURN for case in multi_turn_cases(category)]
    truth, records = ground_truth(cases, options.venv)
    result = {
        "command": f"python benchmarks/bfcl_faithful/run.py --per_kind {options.per_kind} --seed {options.seed}",
        "bfcl_eval": metadata.version("bfcl-eval"),
        "ground_truth": truth,
        "mistakes": {
            f"{form} {mode}": mistakes(cases, form, mode, options.venv, options.per_kind, options.seed)
            for form, mode in VARIANTS
        },
        "single_turn": {form: single(form, options.venv, 99) for form in ("qwen-fc", "qwen-prompting")},
        "judging": timing(cases, records, options.rounds),
    }
    options.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"written: {options.output}")


if __name__ == "__main__":
    main()
