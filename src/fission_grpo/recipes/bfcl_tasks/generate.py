"""Generate cases over BFCL's environments: a user turn is a sequence of templates that succeed one after another.

With `--steps` each of their reference calls is a step task, whose environment is named so that wrong calls are made.

Case number `index` depends on `random.Random(f"{seed} {split} {index}")` only: a seed gives the same files everywhere.
"""

from __future__ import annotations

import argparse
import random
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import ModuleType

from fission_grpo.core.errors import TaskFileError
from fission_grpo.core.files import write_file
from fission_grpo.core.install import install_line
from fission_grpo.core.terminal import ArgumentParser, show
from fission_grpo.core.types import Task
from fission_grpo.data.load import check_tasks
from fission_grpo.data.step_tasks import row_of_step_task
from fission_grpo.envs.bfcl.env import TaskError
from fission_grpo.envs.bfcl.state import BfclState, new_state
from fission_grpo.envs.bfcl.tasks import GeneratedCase, UserTurn, check_case, check_cases, step_tasks
from fission_grpo.envs.desk.steps import make_steps
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
    """What the cases are like. [ours]"""

    max_turns: int = 3  # largest number of user turns; a variant adds one
    max_calls: int = 4  # largest number of reference calls in a turn
    pairs: float = 0.3  # probability that a case has two classes
    miss_func: float = 0.1  # probability that a function is not available in one turn
    miss_param: float = 0.1  # probability that a request lacks a value, which the user gives in the next turn
    classes: tuple[str, ...] = ()  # use these only; empty for those of the split


def generate_command(argv: list[str]) -> int:
    """Run `fission-grpo tasks generate`. Returns 0, 1 if a check fails, or 2 for invalid options."""
    arguments = _parser().parse_args(argv)
    mix = Mix(**{field.name: getattr(arguments, field.name) for field in fields(Mix)})
    counts = {split: n for split, n in (("train", arguments.train), ("heldout", arguments.heldout)) if n}
    try:
        arguments.output.mkdir(parents=True, exist_ok=True)
        if arguments.environment == "desk":
            _write_desk(arguments.output, counts, arguments.seed)
            return 0
        overlaps = [
            _write(arguments.output / f"{split}.jsonl", generate(split, count, arguments.seed, mix), arguments.steps)
            for split, count in counts.items()
        ]
    except ModuleNotFoundError as error:
        show(f"error: generating tasks needs {error.name}; {install_line('bfcl_eval')}", error=True)
        return 1
    except (ValueError, OSError) as error:
        show(f"error: {error}", error=True)
        return 1 if isinstance(error, TaskFileError) else 2
    return 1 if any(overlaps) else 0


def _write(path: Path, cases: list[GeneratedCase], steps: bool) -> bool:
    """Write a split, check the file and print a summary. Returns whether a case overlaps with BFCL's."""
    started = time.monotonic()
    if steps:
        _write_steps(path, (task for case in cases for task in step_tasks(case)))
    else:
        write_file(path, "".join(case.to_json() + "\n" for case in cases))
        show(check_cases(path))
    overlaps = find_overlaps(cases)
    examples = f", {dict(list(overlaps.items())[:3])}" if overlaps else ""
    show(f"  overlap with BFCL's test cases: {len(overlaps) or 'none'}{examples}")
    _print_counts("classes", Counter("+".join(sorted(case.classes)) for case in cases))
    _print_counts("variants", Counter(case.variant for case in cases))
    functions = {call.name for case in cases for turn in case.turns for call in turn.reference}
    show(f"  {len(functions)} functions used; {time.monotonic() - started:.0f} s")
    return bool(overlaps)


def _write_steps(path: Path, tasks: Iterable[Task]) -> None:
    write_file(path, "".join(row_of_step_task(task) + "\n" for task in tasks))
    show(check_tasks(path))


def _write_desk(folder: Path, counts: Mapping[str, int], seed: int) -> None:
    """Write the step tasks of the built-in environment, which are those of `--tasks desk:steps` with the same seed."""
    for split, count in counts.items():
        _write_steps(folder / f"{split}.jsonl", make_steps(count, seed, "held_out" if split == "heldout" else split))


def _print_counts(name: str, counts: Counter[str]) -> None:
    show(f"  {name}: " + ", ".join(f"{key} {count}" for key, count in counts.most_common()))


def _parser() -> argparse.ArgumentParser:
    parser = ArgumentParser(
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
    add("--steps", action="store_true", help="write step tasks with an environment instead of cases, one per call")
    what = "desk: step tasks of the built-in environment, --train and --heldout in number; no other option applies"
    add("--environment", choices=("bfcl", "desk"), default="bfcl", help=what)
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

    Raises:
        ValueError: a class is not in the split ("train" or "heldout"), or the settings allow too few cases.
    """
    wrong = [name for name in mix.classes if name not in SPLITS[split]]
    if wrong or mix.max_turns < 1 or mix.max_calls < 1:
        raise ValueError(f"{split} cases: classes must be of {', '.join(SPLITS[split])}; turns and calls at least 1")
    cases: dict[tuple[str, ...], GeneratedCase] = {}  # by requests
    for index in range(20 * count + 1001):
        rng = random.Random(f"{seed} {split} {index}")
        try:
            case = _case(rng, mix.classes or SPLITS[split], mix)
            check_case(case)
        except (Rejected, TaskError):
            continue
        requests = tuple(turn.request for turn in case.turns)
        if requests in cases or official_tests().overlap_of(case):
            continue
        cases[requests] = replace(case, id=f"{split}-{len(cases):05d}")
        if len(cases) == count:
            return list(cases.values())
    raise ValueError(f"only {len(cases)} of {count} {split} cases could be made; allow more classes or calls")


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
