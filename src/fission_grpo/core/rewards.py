"""The paper's reward of one turn, as pure functions, and the reward function that TRL calls.

    R(t) = 1/3 [ w_fmt(t) R_fmt + w_corr(t) R_corr + R_len ]                                   [paper, Stage 1]

    R_fmt    0 or 1    `format_reward`        w_fmt   2 -> 1     `reward_weights`              [paper]
    R_corr   0 to 2    `correctness_reward`   w_corr  1 -> 1.5   `reward_weights`              [paper; w_corr inferred]
    R_len    0 to 1    `length_reward`                                                         [paper]

A rollout has failed if R_fmt = 0 or R_corr < delta_corr (`step_verdict`) [paper, Stage 2].

Where the formula pays for what should not be learned, `step_verdict` departs from it [ours]: no answer and a repeated
failure earn nothing, and length does not count where no call is expected. `RewardConfig.paper_formula` undoes this.
"""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fission_grpo.core.chat import parse
from fission_grpo.core.json_io import JsonPath, walk_json
from fission_grpo.core.serialization import step_task
from fission_grpo.core.types import Task, ToolCall, Turn, Verdict

MAX_REWARD = 1e18  # largest absolute reward [ours]: its square, for the standard deviation of a group, fits a float32
_BLANK = "\u115f\u1160\u2800\u3164\uffa0"  # letters and symbols that show nothing
_FENCE = re.compile(r"\A\s*```\w*\s(.*)```\s*\Z", re.DOTALL)  # a Markdown code block


@dataclass(frozen=True)
class RewardConfig:
    """The constants of the reward; lengths in tokens. Raises ValueError naming the field that is out of range."""

    alpha: float = 0.5  # weight of the tool's name in a call's score, 0 to 1, the rest is its arguments' F1 [ours]
    correctness_threshold: float = 2.0  # delta_corr, above 0 to 2; with 2 all but the reference's calls fail [ours]
    format_weight_start: float = 2.0  # w_fmt at progress 0 [paper]
    format_weight_end: float = 1.0  # w_fmt at progress 1 [paper]
    correctness_weight_start: float = 1.0  # w_corr at progress 0 [inferred from ToolRL: maximum 2]
    correctness_weight_end: float = 1.5  # w_corr at progress 1 [inferred from ToolRL: maximum 3; keeps max R at 5/3]
    length_target: float = 128.0  # centre of the range of lengths with R_len = 1 [ours]
    length_band: float = 96.0  # half the width of that range [ours]
    length_width_short: float = 16.0  # standard deviation of the Gaussian below the range, > 0 [ours]
    length_width_long: float = 128.0  # standard deviation of the Gaussian above the range, > 0 [ours]
    paper_formula: bool = False  # the sum of all three parts for every completion [paper]; by default not [ours]

    def __post_init__(self):
        if not isinstance(self.paper_formula, bool):
            raise ValueError(f"RewardConfig.paper_formula must be true or false, got {self.paper_formula!r}")
        for name, value in vars(self).items():
            if name == "paper_formula":
                continue
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
                raise ValueError(f"RewardConfig.{name} must be a finite number >= 0, got {value!r}")
        if self.alpha > 1:
            raise ValueError(f"RewardConfig.alpha must lie in 0 to 1, got {self.alpha!r}")
        threshold = self.correctness_threshold
        if not 0 < threshold <= 2:
            raise ValueError(f"RewardConfig.correctness_threshold must lie above 0 and up to 2, got {threshold!r}")
        for name in ("length_width_short", "length_width_long"):
            if getattr(self, name) == 0:
                raise ValueError(f"RewardConfig.{name} must be more than 0")


def step_verdict(
    task: Task, turn: Turn, length: float, progress: float = 0.0, config: RewardConfig | None = None
) -> Verdict:
    """Judge one turn of a step task. Raises ValueError if the task has no reference.

    Unless `config.paper_formula` is set [all ours]:

    - a turn with R_fmt = 0 (unreadable, cut off, empty, or of the other sort) earns nothing, for its length neither;
    - so does a wrong answer that only repeats calls of a turn that failed before (`task.failed`), a wrong one among
      them or all of them: in a recovery group without a right answer, partial credit would give "the same again" the
      top advantage. With other calls around it, a repeated wrong call earns no partial credit; without it, the right
      calls keep theirs;
    - R_len is 1 where no call is expected, as the length of a right text is unknown.

    Args:
        task: with a `reference`; an empty one means that no call is expected.
        turn, length: the parsed completion, and its length in tokens.
        progress: share of training done, 0 to 1.
        config: the constants, by default `RewardConfig()`.

    Example:
        All right at progress 0: (2*1 + 1*2 + 1) / 3 = 5/3. Well-formed, wrong tool: (2*1 + 1*0 + 1) / 3 = 1, failed.
        Unreadable: 0, failed.
    """
    if task.reference is None:
        raise ValueError(f"task {task.id!r} has no reference calls; only step tasks can be judged on one turn")
    config = config or RewardConfig()
    r_fmt = format_reward(turn, expects_call=bool(task.reference))
    wrong_turns = () if config.paper_formula else _wrong_turns(task.failed, task.reference, config)
    stale = [call for turn in wrong_turns for call in turn if not _is_among(call, task.reference)]
    is_whole = turn.error is None and not turn.truncated
    r_corr = correctness_reward(turn.calls, task.reference, config, stale) if is_whole else 0.0
    r_len = length_reward(length, config)
    if not config.paper_formula:
        r_len = r_len if task.reference else 1.0
        if not r_fmt or any(
            _repeats(turn.calls, wrong, stale) and r_corr <= correctness_reward(wrong, task.reference, config, stale)
            for wrong in wrong_turns
        ):
            r_fmt = r_corr = r_len = 0.0
    w_fmt, w_corr = reward_weights(progress, config)
    reward = (w_fmt * r_fmt + w_corr * r_corr + r_len) / 3
    failed = r_fmt == 0 or r_corr < config.correctness_threshold
    return Verdict(reward, failed, {"format": r_fmt, "correctness": r_corr, "length": r_len})


def _wrong_turns(
    failed: Iterable[Sequence[ToolCall]], reference: Sequence[ToolCall], config: RewardConfig
) -> list[Sequence[ToolCall]]:
    """The failed turns whose calls were wrong; others were cut off, or else at fault."""
    return [calls for calls in failed if correctness_reward(calls, reference, config) < config.correctness_threshold]


def _repeats(calls: Sequence[ToolCall], wrong: Sequence[ToolCall], stale: Sequence[ToolCall]) -> bool:
    """Whether all calls are of a failed turn, a stale one or every call of it among them."""
    if not all(_is_among(call, wrong) for call in calls):
        return False
    is_whole = len(calls) >= len(wrong) and all(_is_among(call, calls) for call in wrong)
    return is_whole or any(_is_among(call, stale) for call in calls)


def _is_among(call: ToolCall, calls: Sequence[ToolCall]) -> bool:
    return any(same_call(call, other) for other in calls)


def same_call(call: ToolCall, other: ToolCall) -> bool:
    """Whether two calls are of the same tool with equal arguments, see `same_value`."""
    return call.name == other.name and same_value(call.arguments, other.arguments)


def format_reward(turn: Turn, expects_call: bool) -> float:
    """R_fmt: 1 if the turn is valid, complete and of the expected sort, else 0. [paper for the range]

    The expected sort is a turn with calls if the reference has calls, otherwise a turn with visible text and without
    calls, also without one that only lacks its tags; whether its calls are right is not considered. [ours, after
    ToolRL's format reward]
    """
    is_expected = bool(turn.calls) if expects_call else not turn.calls and _is_visible(turn.content)
    if not expects_call and is_bare_call(turn.content):
        return 0.0
    return float(is_expected and turn.error is None and not turn.truncated)


def _is_visible(text: str) -> bool:
    return any(unicodedata.category(char)[0] in "LNPS" and char not in _BLANK for char in text)


def is_bare_call(text: str) -> bool:
    """Whether a text is a tool call, or a list of calls, as JSON without the tags of a call."""
    try:
        value = json.loads(_FENCE.sub(r"\1", text))
    except (ValueError, RecursionError):  # no JSON
        return False
    entries = value if isinstance(value, list) else [value]
    calls = [entry.get("function", entry) for entry in entries if isinstance(entry, Mapping)]  # or in OpenAI's form
    return 0 < len(calls) == len(entries) and all(
        isinstance(call, Mapping) and "name" in call and not call.keys().isdisjoint(("arguments", "parameters"))
        for call in calls
    )


def correctness_reward(
    calls: Sequence[ToolCall],
    reference: Sequence[ToolCall],
    config: RewardConfig | None = None,
    stale: Sequence[ToolCall] = (),
) -> float:
    """R_corr: twice the total score of matched calls over the larger number of calls, 0 to 2. [paper for the range]

    The denominator makes a missing call cost as much as a superfluous one. No calls where none are expected earn
    2. Calls equal to a `stale` one match nothing. [ours]

    Example:
        With alpha 0.5, the two calls ls() and cd(dir="a") against ls() and cd(dir="b"):
        scores 1 and 0.5 + 0.5 * 0 = 0.5; R_corr = 2 * 1.5 / 2 = 1.5. With ls() alone: 2 * 1 / 2 = 1.
    """
    if not calls and not reference:
        return 2.0
    fresh = [call for call in calls if not _is_among(call, stale)]
    matched = match_calls(fresh, reference, (config or RewardConfig()).alpha)
    return 2 * math.fsum(score for _, _, score in matched) / max(len(calls), len(reference))


def match_calls(
    calls: Sequence[ToolCall], reference: Sequence[ToolCall], alpha: float = RewardConfig.alpha
) -> tuple[tuple[int, int, float], ...]:
    """Match calls one-to-one to reference calls, with the largest total score. The order of calls does not matter.

    Calls match if they call the same tool; a match scores alpha + (1 - alpha) * F1 of the arguments, 0 to 1. Returns
    (index into calls, index into reference, score) of each match, in order of the first.
    """
    by_name: dict[str, tuple[list[int], list[int]]] = defaultdict(lambda: ([], []))
    for index, call in enumerate(calls):
        by_name[call.name][0].append(index)
    for index, call in enumerate(reference):
        by_name[call.name][1].append(index)
    matched = []
    for rows, columns in by_name.values():
        scores = [[_score(calls[i], reference[j], alpha) for j in columns] for i in rows]
        matched += [(rows[i], columns[j], scores[i][j]) for i, j in _assign(scores)]
    return tuple(sorted(matched))


def _score(call: ToolCall, expected: ToolCall, alpha: float) -> float:
    f1 = argument_f1(call.arguments, expected.arguments)
    return f1 + alpha * (1 - f1)  # equals alpha + (1 - alpha) * f1, and is exactly 1 at f1 = 1


def _assign(scores: list[list[float]]) -> list[tuple[int, int]]:
    """(row, column) of the one-to-one assignment with the largest total score."""
    if not scores or not scores[0]:
        return []
    if len(scores) == len(scores[0]) == 1:
        return [(0, 0)]
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(scores, maximize=True)
    return [(int(row), int(column)) for row, column in zip(rows, columns, strict=True)]


def argument_f1(given: Mapping[str, Any], expected: Mapping[str, Any]) -> float:
    """F1 of two calls' arguments over their leaves, 0 to 1; 1 if both are empty. [F1 is the paper's]

    A leaf is a value with its path of keys. Objects are entered, so that one wrong field of a nested argument
    costs that field only; an array is one leaf. Null is a value: `{"a": null}` is not `{}`. [ours]

    Example:
        Given {"a": 1, "b": {"c": 2, "d": 3}}, expected {"a": 1, "b": {"c": 2}}: leaves given 3, expected 2, equal 2;
        F1 = 2*2 / (3 + 2) = 0.8.
    """
    leaves_given, leaves_expected = _leaves(given), _leaves(expected)
    if not leaves_given and not leaves_expected:
        return 1.0
    shared = leaves_given.keys() & leaves_expected.keys()
    equal = sum(same_value(leaves_given[path], leaves_expected[path]) for path in shared)
    return 2 * equal / (len(leaves_given) + len(leaves_expected))


def _leaves(arguments: Mapping[str, Any]) -> dict[JsonPath, Any]:
    """Every value that is not a non-empty object, by its path."""
    inside = walk_json(arguments, arrays=False)
    return {path: value for path, value in inside if path and not (isinstance(value, Mapping) and value)}


def same_value(given: Any, expected: Any) -> bool:
    """Whether two JSON values are equal: numbers by value (1 equals 1.0), but no other types ("3", True, 1). [ours]"""
    if isinstance(given, bool) or isinstance(expected, bool):
        return isinstance(given, bool) and isinstance(expected, bool) and given == expected
    if isinstance(given, int | float) and isinstance(expected, int | float):
        return given == expected
    if isinstance(given, Mapping) and isinstance(expected, Mapping):
        return given.keys() == expected.keys() and all(same_value(given[key], expected[key]) for key in expected)
    if isinstance(given, list | tuple) and isinstance(expected, list | tuple):
        return len(given) == len(expected) and all(map(same_value, given, expected))
    return type(given) is type(expected) and given == expected


def length_reward(length: float, config: RewardConfig | None = None) -> float:
    """R_len of a completion, in tokens: 1 inside the range, a Gaussian of the distance to it outside. [paper]

    Example:
        Target 128, band 96, short width 16: at 16 tokens the distance to the range (32 to 224) is 16, one standard
        deviation: exp(-1/2) = 0.6065.
    """
    config = config or RewardConfig()
    below = config.length_target - config.length_band - length
    above = length - config.length_target - config.length_band
    distance = max(below / config.length_width_short, above / config.length_width_long, 0.0)
    return math.exp(-0.5 * distance * distance)


def reward_weights(progress: float, config: RewardConfig | None = None) -> tuple[float, float]:
    """(w_fmt, w_corr), linear in the progress of training, 0 to 1. [paper for w_fmt 2 to 1, inferred for w_corr]

    Example: (1.5, 1.25) at progress 0.5.
    """
    c = config or RewardConfig()
    done = min(max(progress, 0.0), 1.0)
    w_fmt = c.format_weight_start + done * (c.format_weight_end - c.format_weight_start)
    w_corr = c.correctness_weight_start + done * (c.correctness_weight_end - c.correctness_weight_start)
    return w_fmt, w_corr


class StepReward:
    """TRL reward function for step tasks: R of each completion against the reference in column `fission_task`.

    Logs the mean of each part as `reward_parts/*`, and keeps the verdicts of its last call, in order, as `verdicts`.

    Args:
        config: the constants of the reward.
        eos_ids: token ids that end a completion; one without is truncated. FissionGRPOTrainer sets them. With none,
            as in TRL's own trainer, every completion counts as complete.
    """

    __name__ = "step_reward"

    def __init__(self, config: RewardConfig | None = None, eos_ids: Iterable[int] = ()):
        self.config, self.eos_ids = config or RewardConfig(), frozenset(eos_ids)
        self.decode: Callable[[list[int]], str] | None = None  # to text with special tokens; set by our trainer
        self.verdicts: list[Verdict] = []

    def __call__(
        self,
        completions: list[str],
        completion_ids: list[list[int]],
        fission_task: list[str],
        trainer_state: Any = None,
        log_metric: Any = None,
        **_: Any,
    ) -> list[float | None]:
        progress = 0.0  # before training starts
        if trainer_state is not None and trainer_state.max_steps:
            progress = min(1.0, trainer_state.global_step / trainer_state.max_steps)
        self.verdicts = verdicts = []
        for text, ids, row in zip(completions, completion_ids, fission_task, strict=True):
            task = step_task(row)
            truncated = bool(self.eos_ids) and (not ids or ids[-1] not in self.eos_ids)
            if self.decode is not None:
                text = self.decode([*ids] if truncated else [*ids[:-1]])
            turn = parse(text, truncated=truncated)
            verdicts.append(step_verdict(task, turn, len(ids), progress, self.config))
        if log_metric is not None:
            for part in ("format", "correctness", "length"):
                log_metric(f"reward_parts/{part}", sum(v.parts[part] for v in verdicts) / len(verdicts))
        return [verdict.reward for verdict in verdicts]


def usable_reward(value: Any) -> float | None:
    """A reward as a number that training can compute with; None for all else, such as text, infinity or NaN.

    Example: 1, True, Decimal("0.5") and NumPy's or PyTorch's scalars are numbers; 10**400, "1" and [1] are not.
    """
    if isinstance(value, str | bytes):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, ArithmeticError, RuntimeError):  # the last: a tensor of several numbers
        return None
    return number if abs(number) <= MAX_REWARD else None


def is_nan(value: Any) -> bool:
    """Whether a value of any type is the number NaN."""
    try:
        return math.isnan(value)
    except (TypeError, ValueError, ArithmeticError, RuntimeError):
        return False
