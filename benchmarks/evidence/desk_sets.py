"""Sets of desk tasks that ask whether recovery transfers, and what better or worse errors do without any training.

All sets are the same held-out tasks of the same seed, so that they are paired by task with each other as well.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from desk_worlds import POOR_TEXT, UnfamiliarDesk, other_words, retold
from told_errors import Say, by_reference, by_rules, diagnosed

from fission_grpo.envs.desk.env import Desk
from fission_grpo.envs.desk.tasks import make_rows, solution
from fission_grpo.envs.faults import Fault, inject_faults
from fission_grpo.evaluation.episodes import EpisodeConfig, Factory, run_episode
from fission_grpo.evaluation.runner import RunningCase
from fission_grpo.feedback.sources import FIXED_TEXT

MAX_TURNS = 4
"""As `fission-grpo eval --tasks desk` has it; calls of the last turn are not made."""
FAULTS = tuple(Fault(kind, rate=0.05) for kind in ("timeout", "rate_limit", "server_error"))
IMPLICIT_FAULTS = tuple(Fault(kind, rate=0.05) for kind in ("not_done", "empty"))
"""At most one fault meets a call: 14% and 10% of all calls. [ours]"""

TRANSFER = {
    "held_out": "The desk's held-out tasks as they are.",
    "unseen_tools": "Two of the eight tools (delete_file is remove_file, cancel_event is drop_event) and one "
    "parameter (share_file's person is contact) have names that the policy was never trained on.",
    "other_texts": "Every error of a tool is worded otherwise, by hand, with the same information.",
    "poor_texts": f"Every error of a tool says '{POOR_TEXT}' and nothing else.",
    "faults": "A call fails with a timeout, rate limit or server error with probability 0.14 and changes nothing; the "
    "same call made again may work.",
    "implicit_faults": "A call that says 'ok' is undone, or its answer is left empty, with probability 0.05 each; "
    "nothing tells the policy.",
}
"""The sets for trained policies, each in a sentence."""
ERRORS = {
    "better_errors": "Every failing call is answered as a recover cycle of Fission answers it: the environment's "
    "message, and behind it the diagnosis of `rules` where it says more (schema violations, unknown tools).",
    "reference_errors": "Behind the message of every failing call stands what `rules` say of a wrong call when they "
    "know the solution: which argument is off or that another call is needed, no value (leak guard).",
    "fixed_behind": "Behind the message of every failing call stands the paper's fixed text (a control).",
    "fixed_errors": "Every error of a tool is the paper's fixed text instead of its message.",
    "no_errors": "Every error of a tool is its exception's name alone (in the recorded results: an empty text).",
}
"""The sets for the untrained policy, each in a sentence."""
SETS = (*TRANSFER, *ERRORS)


def desk_plays(name: str, count: int, seed: int, skip: int = 0) -> Mapping[str, Callable[[], RunningCase]]:
    """The plays of a set, by task id, in the order of the tasks.

    Args:
        name: one of `SETS`.
        count: number of tasks.
        seed: of the tasks and of the faults.
        skip: tasks left out before them.

    Raises:
        ValueError: there is no such set, or the count is negative.
    """
    make = world(name, seed)
    return {
        row["id"]: partial(_play, make, row, number, _feedback(name, row))
        for number, row in enumerate(make_rows(skip + count, seed, "held_out"))
        if number >= skip
    }


def categories(count: int, seed: int) -> list[str]:
    """The kind of every task, such as "names", in the order of `desk_plays`; the same in every set."""
    return [row["kind"] for row in make_rows(count, seed, "held_out")]


def world(name: str, seed: int) -> Factory:
    """What makes the environments of a set. Raises ValueError if there is no such set."""
    match name:
        case "held_out" | "better_errors" | "reference_errors" | "fixed_behind":
            return Desk
        case "unseen_tools":
            return UnfamiliarDesk
        case "other_texts":
            return retold(other_words)
        case "poor_texts":
            return retold(lambda message: POOR_TEXT)
        case "fixed_errors":
            return retold(lambda message: FIXED_TEXT)
        case "no_errors":
            return retold(lambda message: "")
        case "faults":
            return inject_faults(Desk, FAULTS, seed)
        case "implicit_faults":
            return inject_faults(Desk, IMPLICIT_FAULTS, seed)
    raise ValueError(f"no set {name!r} of desk tasks; there are {', '.join(SETS)}")


def _feedback(name: str, row: Mapping[str, Any]) -> Say | None:
    match name:
        case "better_errors":
            return by_rules
        case "reference_errors":
            return by_reference(solution(row))
        case "fixed_behind":
            return lambda failure: FIXED_TEXT
    return None


def _play(make: Factory, row: Mapping[str, Any], number: int, say: Say | None) -> RunningCase:
    play = run_episode(make, row, number, EpisodeConfig(MAX_TURNS), category=row["kind"])
    return play if say is None else diagnosed(play, row["id"], say)
