"""Fresh cases: intents tried out in a live world, one user turn after another.

Everything comes from `random.Random(f"{seed} {split} {index}")`: the same seed gives the same bytes anywhere.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import ModuleType

from fission_grpo.bfcl.environment import TaskError
from fission_grpo.bfcl.intents import files, maths, message, ticket, trading, travel, twitter, vehicle
from fission_grpo.bfcl.intents.trial import Rejected, Request, Trial
from fission_grpo.bfcl.overlap import official_tests
from fission_grpo.bfcl.tasks import Case, UserTurn, check_case
from fission_grpo.bfcl.worlds import World, new_world

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
