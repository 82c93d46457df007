"""Generate cases over BFCL's environments: a user turn is a sequence of templates that succeed one after another.

All randomness comes from `random.Random(f"{seed} {split} {index}")`, so that a seed gives the same files everywhere.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from types import ModuleType

from fission_grpo.core.errors import TaskFileError
from fission_grpo.envs.bfcl import INSTALL
from fission_grpo.envs.bfcl.env import TaskError
from fission_grpo.envs.bfcl.state import BfclState, new_state
from fission_grpo.envs.bfcl.tasks import GeneratedCase, UserTurn, check_case, check_cases, load_cases
from fission_grpo.recipes.bfcl_tasks.contamination import find_overlaps, official_tests
from fission_grpo.recipes.bfcl_tasks.templates import files, maths, message, ticket, trading, travel, twitter, vehicle
from fission_grpo.recipes.bfcl_tasks.templates.base import Rejected, Sandbox, UserRequest

TEMPLATES: Mapping[str, ModuleType] = {
    "TravelAPI": travel,
    "TradingBot": trading,
    "TicketAPI": ticket,
    "MessageAPI": message,
    "GorillaFileSystem": files,
    "VehicleControlAPI": vehicle,
    "TwitterAPI": twitter,
    "MathAPI": maths,
}
SPLITS = {  # classes for training, and classes for tests only [ours]
    "train": ("TravelAPI", "TradingBot", "TicketAPI", "MessageAPI"),
    "heldout": ("GorillaFileSystem", "VehicleControlAPI", "TwitterAPI", "MathAPI"),
}
NOW_AVAILABLE = ("You have the tool now. Please go on.", "The missing tool is there now, try again.")
MAX_ATTEMPTS = 60  # templates tried for one turn before the case is given up [ours]


@dataclass(frozen=True)
class Mix:
    """What the cases are like. [ours]

    Args:
        max_turns: largest number of user turns; a variant adds one.
        max_calls: largest number of reference calls in a turn.
        pairs: probability that a case has two classes.
        miss_func: probability that a function is not available in one turn.
        miss_param: probability that a request lacks a value, which the user gives in the next turn.
        classes: use these only; empty for those of the split.
    """

    max_turns: int = 3
    max_calls: int = 4
    pairs: float = 0.3
    miss_func: float = 0.1
    miss_param: float = 0.1
    classes: tuple[str, ...] = ()


def generate_command(argv: list[str]) -> int:
    """Run `fission-grpo tasks generate`. Returns 0, 1 if a check fails, or 2 for invalid options."""
    arguments = _parser().parse_args(argv)
    try:
        return run(arguments)
    except ModuleNotFoundError as error:
        print(f"error: generating tasks needs {error.name}; {INSTALL}", file=sys.stderr)
        return 1
    except TaskFileError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def run(arguments: argparse.Namespace) -> int:
    """Write both splits, check the files and print a summary. Returns 1 if a case overlaps with BFCL's, else 0."""
    mix = Mix(**{field.name: getattr(arguments, field.name) for field in fields(Mix)})
    arguments.output.mkdir(parents=True, exist_ok=True)
    failed = 0
    for split, count in (("train", arguments.train), ("heldout", arguments.heldout)):
        if not count:
            continue
        started = time.monotonic()
        path = arguments.output / f"{split}.jsonl"
        cases = generate(split, count, arguments.seed, mix)
        path.write_text("".join(case.to_json() + "\n" for case in cases), encoding="utf-8")
        print(check_cases(path))
        cases = load_cases(path)
        overlaps = find_overlaps(cases)
        failed += len(overlaps)
        examples = f", {dict(list(overlaps.items())[:3])}" if overlaps else ""
        print(f"  overlap with BFCL's test cases: {len(overlaps) or 'none'}{examples}")
        _print_counts("classes", Counter("+".join(sorted(case.classes)) for case in cases))
        _print_counts("variants", Counter(case.variant for case in cases))
        functions = {call.name for case in cases for turn in case.turns for call in turn.reference}
        print(f"  {len(functions)} functions used; {time.monotonic() - started:.0f} s")
    return 1 if failed else 0


def _print_counts(name: str, counts: Counter[str]) -> None:
    print(f"  {name}: " + ", ".join(f"{key} {count}" for key, count in counts.most_common()))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "fission-grpo tasks generate",
        description="Generate cases over BFCL's environments: train.jsonl on Travel, Trading, Ticket and Message, "
        "heldout.jsonl on Files, Vehicle, Twitter and Math. All references pass the official checker; no case "
        "overlaps with BFCL's test cases.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--output", type=Path, required=True, metavar="DIR", help="folder to write", default=argparse.SUPPRESS)
    add("--train", type=int, default=2000, help="training cases; 0: none")
    add("--heldout", type=int, default=400, help="held-out cases; 0: none")
    add("--seed", type=int, default=0, help="the same seed gives the same files")
    add("--max_turns", type=int, default=Mix.max_turns, help="largest number of user turns; a variant adds one")
    add("--max_calls", type=int, default=Mix.max_calls, help="largest number of reference calls in a user turn")
    add("--pairs", type=float, default=Mix.pairs, help="share of cases with two classes")
    add("--miss_func", type=float, default=Mix.miss_func, help="share of cases that lack a function at first")
    add("--miss_param", type=float, default=Mix.miss_param, help="share of cases that lack a value at first")
    add("--classes", nargs="+", default=(), help="only these classes (with --train 0 or --heldout 0)")
    return parser


def generate(split: str, count: int, seed: int, mix: Mix) -> list[GeneratedCase]:
    """Return cases that pass the official checker, differ, and do not overlap with BFCL's test cases.

    Args:
        split: "train" or "heldout".
        count: number of cases.
        seed: of all random choices.
        mix: what the cases are like.

    Raises:
        ValueError: a class is not in the split, or the settings allow too few cases.
    """
    wrong = [name for name in mix.classes if name not in SPLITS[split]]
    if wrong or mix.max_turns < 1 or mix.max_calls < 1:
        raise ValueError(f"{split} cases: classes must be of {', '.join(SPLITS[split])}; turns and calls at least 1")
    cases: dict[tuple[str, ...], GeneratedCase] = {}  # by requests
    for index, case in enumerate(_candidates(split, seed, mix)):
        if index > 20 * count + 1000:
            raise ValueError(f"only {len(cases)} of {count} {split} cases could be made; allow more classes or calls")
        if case is None or official_tests().overlap_of(case):
            continue
        requests = tuple(turn.request for turn in case.turns)
        if requests not in cases:
            id_ = f"{split}-{len(cases):05d}"
            cases[requests] = GeneratedCase(id_, case.classes, case.config, case.turns, case.variant)
        if len(cases) == count:
            break
    return list(cases.values())


def _candidates(split: str, seed: int, mix: Mix) -> Iterator[GeneratedCase | None]:
    """Yield cases without end; None where an attempt failed."""
    index = 0
    while True:
        rng = random.Random(f"{seed} {split} {index}")
        index += 1
        try:
            case = _case(rng, tuple(mix.classes) or SPLITS[split], mix)
            check_case(case)
        except (Rejected, TaskError):
            case = None
        yield case


def _case(rng: random.Random, classes: tuple[str, ...], mix: Mix) -> GeneratedCase:
    chosen = tuple(rng.sample(classes, 2 if len(classes) > 1 and rng.random() < mix.pairs else 1))
    config = {name: TEMPLATES[name].config(rng) for name in chosen if name != "MathAPI"}
    state = new_state(chosen, config)
    draw = rng.random()
    variant = "base"
    if draw < mix.miss_func + mix.miss_param:
        variant = "miss_func" if draw < mix.miss_func else "miss_param"
    count = rng.randint(1, mix.max_turns)
    special = rng.randrange(count)
    turns: list[UserTurn] = []
    for number in range(count):
        sandbox, requests = _turn(rng, chosen, state, mix.max_calls, variant == "miss_param" and number == special)
        state, calls = sandbox.state, tuple(sandbox.calls)
        text = " Then: ".join(request.text for request in requests)
        if number != special or variant == "base":
            turns.append(UserTurn(text, calls))
        elif variant == "miss_param":
            turns += [UserTurn(requests[0].vague, ()), UserTurn(requests[0].detail, calls)]
        else:
            missing = (rng.choice(calls).name,)
            turns += [UserTurn(text, (), missing), UserTurn(rng.choice(NOW_AVAILABLE), calls)]
    return GeneratedCase("", chosen, config, tuple(turns), variant)


def _turn(
    rng: random.Random, classes: tuple[str, ...], state: BfclState, max_calls: int, is_vague: bool
) -> tuple[Sandbox, list[UserRequest]]:
    """Apply one to three templates in a row; if `is_vague`, one whose request can lack a value."""
    wanted = 1 if is_vague else rng.choice((1, 1, 2, 3))
    turn, requests = Sandbox(state.copy(), rng), []
    for _ in range(MAX_ATTEMPTS):
        attempt = Sandbox(turn.state.copy(), rng, list(turn.calls))
        try:
            request = rng.choice(TEMPLATES[rng.choice(classes)].TEMPLATES)(attempt)
        except Rejected:
            continue
        has_repeats = any(attempt.calls.count(call) > 1 for call in attempt.calls)
        if len(attempt.calls) > max_calls or has_repeats or (is_vague and not request.vague):
            continue
        turn, requests = attempt, [*requests, request]
        if len(requests) == wanted or len(turn.calls) == max_calls:
            break
    if not requests:
        raise Rejected("no template applies in this state")
    return turn, requests
