"""Our BFCL environments and verifier against the official ones.

    python benchmarks/bfcl_replay/replay.py

1. The official ground truth of all 800 multi-turn cases, replayed through ours: all must pass.
2. 1,000 mutated transcripts, judged by ours and by the official `multi_turn_checker`: how often they agree, by kind of
   mutation, and every difference.
3. Milliseconds per call of our environments beside the bare simulator's.
Raw results: results.json beside this file. Needs bfcl-eval; about two minutes on one core.
"""

import argparse
import contextlib
import copy
import io
import json
import os
import random
import statistics
import tempfile
import time
from collections import Counter
from importlib import metadata, resources
from pathlib import Path

os.environ.setdefault("BFCL_PROJECT_ROOT", tempfile.mkdtemp())  # else bfcl-eval makes folders beside itself

from fission_grpo.core.types import ToolCall
from fission_grpo.envs.bfcl.env import environment_of
from fission_grpo.envs.bfcl.functions import class_docs
from fission_grpo.envs.bfcl.judge import judge_case, read_call, write_call

CATEGORIES = ("base", "miss_func", "miss_param", "long_context")
MUTATIONS = (
    "drop",
    "repeat",
    "swap",
    "change_value",
    "wrong_type",
    "other_function",
    "add_read",
    "add_failing",
    "cut_short",
    "parentheses_in_text",
)


def cases(category):
    """Official entries with their ground truth as calls by turn."""
    data = resources.files("bfcl_eval") / "data"
    name = f"BFCL_v4_multi_turn_{category}.json"
    entries = [json.loads(line) for line in (data / name).read_text(encoding="utf-8").splitlines()]
    answers = [json.loads(line) for line in (data / "possible_answer" / name).read_text(encoding="utf-8").splitlines()]
    truth = {answer["id"]: answer["ground_truth"] for answer in answers}
    return [(entry, [[read_call(text) for text in turn] for turn in truth[entry["id"]]]) for entry in entries]


def official(entry, transcript, reference, name):
    """The verdict of bfcl-eval's own checker, whose instances live in its module's globals: removed afterwards."""
    from bfcl_eval.eval_checker.multi_turn_eval import multi_turn_utils
    from bfcl_eval.eval_checker.multi_turn_eval.multi_turn_checker import multi_turn_checker

    before = set(vars(multi_turn_utils))
    decoded = [[[write_call(call) for call in step] for step in turn] for turn in transcript]
    truth = [[write_call(call) for call in turn] for turn in reference]
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            verdict = multi_turn_checker(decoded, truth, entry, entry["id"].rsplit("_", 1)[0], name)
    finally:
        for key in set(vars(multi_turn_utils)) - before:
            delattr(multi_turn_utils, key)
    return verdict["valid"], verdict.get("error_type")


def mutated(kind, reference, classes, rng):
    """A transcript, one call a step, with one mutation; None where the kind does not apply."""
    turns = [list(turn) for turn in reference]
    places = [(t, i) for t, turn in enumerate(turns) for i in range(len(turn))]
    t, i = rng.choice(places)
    call = turns[t][i]
    texts = [name for name, value in call.arguments.items() if isinstance(value, str)]
    functions = sorted(name for each in classes for name in class_docs(each))
    if kind == "drop":
        del turns[t][i]
    elif kind == "repeat":
        turns[t].insert(i, call)
    elif kind == "swap":
        rng.shuffle(turns[t])
    elif kind == "cut_short":
        turns[t:] = [[] for _ in turns[t:]]
    elif kind == "other_function":
        turns[t][i] = ToolCall(rng.choice(functions), call.arguments)
    elif kind == "add_read":
        reads = [
            n for n in functions if not class_docs_of(n)["parameters"]["required"] and n.split("_")[0] != "logout"
        ]
        turns[t].insert(i, ToolCall(rng.choice(reads or functions)))
    elif kind == "add_failing":
        turns[t].insert(i, ToolCall(rng.choice(functions), {"no_such_argument": rng.random()}))
    elif not call.arguments or (kind == "parentheses_in_text" and not texts):
        return None
    else:
        name = (
            rng.choice(texts or list(call.arguments))
            if kind == "parentheses_in_text"
            else rng.choice(list(call.arguments))
        )
        value = call.arguments[name]
        new = {
            "change_value": lambda: value + 1 if isinstance(value, int | float) else f"{value}x",
            "wrong_type": lambda: str(value) if isinstance(value, int | float) else [value],
            "parentheses_in_text": lambda: f"{value} {rng.choice(functions)} (all)",
        }[kind]()
        turns[t][i] = ToolCall(call.name, {**call.arguments, name: new})
    return [[[call] for call in turn] for turn in turns]


def class_docs_of(function):
    from fission_grpo.envs.bfcl.functions import class_of

    return class_docs(class_of(function))[function]


def ground_truth(everything):
    """Part 1."""
    result = {}
    for category, entries in everything.items():
        passed = [judge_case(entry, [[[c] for c in turn] for turn in ref], ref).valid for entry, ref in entries]
        result[category] = {"cases": len(passed), "passed": sum(passed)}
        print(f"ground truth {category:13} {sum(passed)} of {len(passed)}", flush=True)
    return result


def mutations(everything, count, seed):
    """Part 2."""
    rng = random.Random(seed)
    agree, total, valid, differences = Counter(), Counter(), Counter(), []
    pool = [item for entries in everything.values() for item in entries]
    number = 0
    while number < count:
        kind = MUTATIONS[number % len(MUTATIONS)]
        entry, reference = rng.choice(pool)
        transcript = mutated(kind, reference, entry["involved_classes"], rng)
        if transcript is None:
            continue
        number += 1
        ours = judge_case(entry, transcript, reference)
        theirs, error = official(entry, transcript, reference, f"mutation_{number}")  # part of a variable's name there
        total[kind] += 1
        valid[kind] += theirs
        agree[kind] += (ours.valid, ours.error) == (theirs, error)
        if (ours.valid, ours.error) != (theirs, error):
            calls = [write_call(call) for turn in transcript for step in turn for call in step]
            differences.append(
                {"id": entry["id"], "kind": kind, "ours": [ours.valid, ours.error], "official": [theirs, error]}
                | {"calls": calls}
            )
    for kind in MUTATIONS:
        print(f"mutation {kind:20} {agree[kind]:4} of {total[kind]} agree, {valid[kind]} valid officially")
    return {
        "agree": sum(agree.values()),
        "total": number,
        "by_kind": {k: {"agree": agree[k], "total": total[k], "valid": valid[k]} for k in MUTATIONS},
        "differences": differences,
    }


def overhead(everything):
    """Part 3: medians and 95th percentiles in milliseconds, over the ground truth's calls in all base cases."""
    from fission_grpo.envs.bfcl.state import new_state

    times = {name: [] for name in ("bare", "tool", "snapshot", "restore", "judge", "reset", "reset_again")}

    def timed(what, function, /, *args, **kwargs):
        began = time.perf_counter()
        result = function(*args, **kwargs)
        times[what].append(1000 * (time.perf_counter() - began))
        return result

    for entry, reference in everything["base"]:
        history = []
        for turn in reference:
            asked = [{"name": call.name, "arguments": dict(call.arguments)} for call in turn]
            scenario = json.dumps({"config": entry["initial_config"], "history": history, "reference": asked})
            history = [*history, asked]
            world = environment_of("+".join(entry["involved_classes"]))()
            bare = new_state(entry["involved_classes"], entry["initial_config"])
            for earlier in history[:-1]:
                for call in earlier:
                    bare.call(ToolCall(**call))
            timed("reset", world.reset, scenario=scenario)
            timed("reset_again", world.reset, scenario=scenario)
            for call in turn:
                owner = next(one for one in bare.instances.values() if hasattr(one, call.name))
                arguments = copy.deepcopy(dict(call.arguments))
                timed("bare", getattr(owner, call.name), **arguments)
                timed("tool", getattr(world, call.name), **call.arguments)
                state = timed("snapshot", world._snapshot)
                timed("restore", world._restore, state)
            assert timed("judge", world._reward) == 1.0
    result = {}
    for name, values in times.items():
        result[name] = {"median_ms": statistics.median(values), "p95_ms": statistics.quantiles(values, n=20)[-1]}
        median, p95 = result[name].values()
        print(f"{name:12} median {median:.4f} ms   95% {p95:.4f} ms   n {len(values)}")
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutations", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results.json")
    options = parser.parse_args()
    everything = {category: cases(category) for category in CATEGORIES}
    result = {
        "command": f"python benchmarks/bfcl_replay/replay.py --mutations {options.mutations} --seed {options.seed}",
        "bfcl_eval": metadata.version("bfcl-eval"),
        "ground_truth": ground_truth(everything),
        "mutations": mutations(everything, options.mutations, options.seed),
        "overhead": overhead(everything),
    }
    options.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"written: {options.output}")


if __name__ == "__main__":
    main()
