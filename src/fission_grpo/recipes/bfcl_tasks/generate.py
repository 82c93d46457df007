"""Fresh cases: intents tried out in a live world, one user turn after another.

Everything comes from `random.Random(f"{seed} {split} {index}")`: the same seed gives the same bytes anywhere.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from fission_grpo.core.errors import TaskFileError
from fission_grpo.envs.bfcl import INSTALL
from fission_grpo.envs.bfcl.env import TaskError
from fission_grpo.envs.bfcl.state import World, new_world
from fission_grpo.envs.bfcl.tasks import Case, UserTurn, check_case
from fission_grpo.recipes.bfcl_tasks.contamination import official_tests
from fission_grpo.recipes.bfcl_tasks.templates import (
    files,
    maths,
    message,
    ticket,
    trading,
    travel,
    twitter,
    vehicle,
)
from fission_grpo.recipes.bfcl_tasks.templates.base import Rejected, Request, Trial


def generate_command(argv: list[str]) -> int:
    """Write train.jsonl and heldout.jsonl. Returns 0; 1 if a check fails; 2 for a mistake in the options."""
    arguments = _parser().parse_args(argv)
    try:
        return run(arguments)
    except ModuleNotFoundError as error:
        how = "pip install 'fission-grpo[endpoint]'" if error.name == "openai" else INSTALL
        print(f"error: generating tasks needs {error.name}; {how}", file=sys.stderr)
        return 1
    except TaskFileError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def run(arguments: argparse.Namespace) -> int:
    """Generate, write, check what was written, and report on stdout."""
    pass  # REMOVED
    from fission_grpo.envs.bfcl.tasks import check_cases, load_cases
    from fission_grpo.recipes.bfcl_tasks.contamination import overlaps

    mix = Mix(
        max_turns=arguments.max_turns,
        max_calls=arguments.max_calls,
        pairs=arguments.pairs,
        miss_func=arguments.miss_func,
        miss_param=arguments.miss_param,
        classes=tuple(arguments.classes or ()),
    )
    arguments.output.mkdir(parents=True, exist_ok=True)
    failed = 0
    for split, count in (("train", arguments.train), ("heldout", arguments.heldout)):
        if not count:
            continue
        began = time.monotonic()
        cases = generate(split, count, arguments.seed, mix)
        path = arguments.output / f"{split}.jsonl"
        path.write_text("".join(case.to_json() + "\n" for case in cases), encoding="utf-8")
        print(check_cases(path))
        written = load_cases(path)
        found = overlaps(written)
        failed += len(found)
        print(
            f"  overlap with BFCL's test cases: {len(found) or 'none'}"
            + (f", {dict(list(found.items())[:3])}" if found else "")
        )
        for name, counts in (
            ("classes", Counter("+".join(sorted(case.classes)) for case in written)),
            ("variants", Counter(case.variant for case in written)),
        ):
            print(f"  {name}: " + ", ".join(f"{key} {n}" for key, n in counts.most_common()))
        used = {call.name for case in written for turn in case.turns for call in turn.reference}
        print(f"  {len(used)} functions used; {time.monotonic() - began:.0f} s")
    return 1 if failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "fission-grpo tasks generate",
        description="Make cases over BFCL's environments: train.jsonl on Travel, Trading, Ticket and Message, "
        "heldout.jsonl on Files, Vehicle, Twitter and Math. All references pass the official checker; none overlaps "
        "with BFCL's test cases.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--output", type=Path, required=True, metavar="DIR", help="folder to write", default=argparse.SUPPRESS
    )
    parser.add_argument("--train", type=int, default=2000, help="training cases; 0: none")
    parser.add_argument("--heldout", type=int, default=400, help="held-out cases; 0: none")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same files")
    parser.add_argument("--max_turns", type=int, default=3, help="most user turns; a variant adds one")
    parser.add_argument("--max_calls", type=int, default=4, help="most reference calls in a user turn")
    parser.add_argument("--pairs", type=float, default=0.3, help="share of cases with two classes")
    parser.add_argument("--miss_func", type=float, default=0.1, help="share of cases with a function held back")
    parser.add_argument("--miss_param", type=float, default=0.1, help="share of cases that lack a value at first")
    parser.add_argument("--classes", nargs="+", help="only these classes (with --train 0 or --heldout 0)")
    return parser


GRAMMARS: Mapping[str, ModuleType] = {
    "TravelAPI": travel,
    "TradingBot": trading,
    "TicketAPI": ticket,
    "MessageAPI": message,
    "GorillaFileSystem": files,
    "VehicleControlAPI": vehicle,
    "TwitterAPI": twitter,
    "MathAPI": maths,
}


SPLITS = {
    "train": ("TravelAPI", "TradingBot", "TicketAPI", "MessageAPI"),
    "heldout": ("GorillaFileSystem", "VehicleControlAPI", "TwitterAPI", "MathAPI"),
}
"""Classes trained on, and classes only ever tested on. [ours]"""


NOW_AVAILABLE = ("You have the tool now. Please go on.", "The missing tool is there now, try again.")


TRIES = 60
"""Attempts at one turn before the case is begun anew."""


@dataclass(frozen=True)
class Mix:
    """What cases are like. Shares are probabilities. [ours]

    Args:
        max_turns: most user turns, before a variant adds one; at least 1.
        max_calls: most reference calls in one turn; at least 1.
        pairs: share of cases with two classes instead of one.
        miss_func: share of cases in which a function is held back in one turn.
        miss_param: share of cases in which a request lacks a value at first.
        classes: only these, empty: those of the split.
    """

    max_turns: int = 3
    max_calls: int = 4
    pairs: float = 0.3
    miss_func: float = 0.1
    miss_param: float = 0.1
    classes: tuple[str, ...] = ()


def generate(split: str, count: int, seed: int, mix: Mix) -> list[Case]:
    """`count` cases of a split, none of which overlaps with BFCL's test cases, all checked officially.

    Raises:
        ValueError: a class that is not in the split, or settings that allow no case.
    """
    wrong = [name for name in mix.classes if name not in SPLITS[split]]
    if wrong or mix.max_turns < 1 or mix.max_calls < 1:
        raise ValueError(f"{split} cases: classes must be of {', '.join(SPLITS[split])}; turns and calls at least 1")
    cases: list[Case] = []
    seen: set[tuple[str, ...]] = set()
    for index, case in enumerate(_candidates(split, seed, mix)):
        if index > 20 * count + 1000:
            raise ValueError(f"only {len(cases)} of {count} {split} cases could be made; allow more classes or calls")
        if case is None or official_tests().kinds(case):
            continue
        asked = tuple(turn.request for turn in case.turns)
        if asked in seen:
            continue
        seen.add(asked)
        cases.append(Case(f"{split}-{len(cases):05d}", case.classes, case.config, case.turns, case.variant))
        if len(cases) == count:
            break
    return cases


def _candidates(split: str, seed: int, mix: Mix) -> Iterator[Case | None]:
    index = 0
    while True:
        rng = random.Random(f"{seed} {split} {index}")
        index += 1
        try:
            case = _case(rng, mix.classes or SPLITS[split], mix)
            check_case(case)
        except (Rejected, TaskError):
            case = None
        yield case


def _case(rng: random.Random, classes: tuple[str, ...], mix: Mix) -> Case:
    chosen = tuple(rng.sample(classes, 2 if len(classes) > 1 and rng.random() < mix.pairs else 1))
    config = {name: GRAMMARS[name].config(rng) for name in chosen if GRAMMARS[name] is not maths}
    world = new_world(chosen, config)
    draw = rng.random()
    variant = (
        "miss_func" if draw < mix.miss_func else "miss_param" if draw < mix.miss_func + mix.miss_param else "base"
    )
    count = rng.randint(1, mix.max_turns)
    special = rng.randrange(count)
    turns: list[UserTurn] = []
    for number in range(count):
        trial, requests = _turn(rng, chosen, world, mix.max_calls, variant == "miss_param" and number == special)
        world = trial.world
        calls, text = tuple(trial.calls), _joined(requests)
        if number != special or variant == "base":
            turns.append(UserTurn(text, calls))
        elif variant == "miss_param":
            turns += [UserTurn(requests[0].vague, ()), UserTurn(requests[0].detail, calls)]
        else:
            held_back = (rng.choice(calls).name,)
            turns += [UserTurn(text, (), held_back), UserTurn(rng.choice(NOW_AVAILABLE), calls)]
    return Case("", chosen, config, tuple(turns), variant)


def _turn(
    rng: random.Random, classes: tuple[str, ...], world: World, max_calls: int, vague: bool
) -> tuple[Trial, list[Request]]:
    """One user turn: one to three intents that work one after another; with `vague` one that can be asked vaguely."""
    wanted = 1 if vague else rng.choice((1, 1, 2, 3))
    trial, requests = Trial(world.copy(), rng), []
    for _ in range(TRIES):
        attempt = Trial(trial.world.copy(), rng, list(trial.calls))
        try:
            request = rng.choice(GRAMMARS[rng.choice(classes)].INTENTS)(attempt)
        except Rejected:
            continue
        repeated = any(attempt.calls.count(call) > 1 for call in attempt.calls)
        if len(attempt.calls) > max_calls or repeated or (vague and not request.vague):
            continue
        trial, requests = attempt, [*requests, request]
        if len(requests) == wanted or len(trial.calls) == max_calls:
            return trial, requests
    if requests:
        return trial, requests
    raise Rejected("no intent fits this world")


def _joined(requests: list[Request]) -> str:
    """Several wishes in one message."""
    first, *more = [request.text for request in requests]
    return " ".join([first, *(f"Then: {text}" for text in more)])
