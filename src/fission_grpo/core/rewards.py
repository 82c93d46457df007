"""The reward of a step task as pure functions: R = 1/3 [w_fmt(t) R_fmt + w_corr(t) R_corr + R_len]  [paper, Stage 1].

Also the group normalisation of GRPO in plain Python, the form the one-file reference and the tests use.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fission_grpo.core.chat import parse
from fission_grpo.core.serialization import step_task
from fission_grpo.core.types import (
    Task,
    ToolCall,
    Turn,
    Verdict,
)


@dataclass(frozen=True)
class RewardConfig:
    """The constants of the reward. The shape is the paper's; what the paper does not tell is marked so.

    Args:
        alpha: share of the tool's name in a matched call's score, the rest being its argument F1. No unit, 0 to 1;
            0 means that a call of the right tool with wholly wrong arguments earns nothing. [ours; the paper has an
            unknown alpha]
        correctness_threshold: delta_corr; a rollout whose R_corr is below it has failed. Units of R_corr, above 0 to
            2; 2 means that anything but the reference's calls is a failure. [ours; the paper has an unknown delta]
        format_weight_start: w_fmt at progress 0. No unit, >= 0; 0 means that form earns nothing then. [paper]
        format_weight_end: w_fmt at progress 1. No unit, >= 0. [paper]
        correctness_weight_start: w_corr at progress 0. No unit, >= 0. [inferred, as in ToolRL: maximum 2]
        correctness_weight_end: w_corr at progress 1. No unit, >= 0. [inferred, as in ToolRL: maximum 3; it keeps the
            largest possible reward at 5/3 throughout]
        length_target: centre of the band of lengths that earn R_len = 1. Tokens, >= 0. [ours]
        length_band: half the band's width. Tokens, >= 0; 0 means that only the target itself earns 1. [ours]
        length_width_short: standard deviation of the fall-off below the band. Tokens, > 0. [ours]
        length_width_long: standard deviation of the fall-off above the band. Tokens, > 0. [ours]

    Raises:
        ValueError: naming the field that is out of range.
    """

    alpha: float = 0.5
    correctness_threshold: float = 2.0
    format_weight_start: float = 2.0
    format_weight_end: float = 1.0
    correctness_weight_start: float = 1.0
    correctness_weight_end: float = 1.5
    length_target: float = 128.0
    length_band: float = 96.0
    length_width_short: float = 16.0
    length_width_long: float = 128.0

    def __post_init__(self):
        for name, value in vars(self).items():
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
                raise ValueError(f"RewardConfig.{name} must be a finite number >= 0, got {value!r}")
        if self.alpha > 1:
            raise ValueError(f"RewardConfig.alpha must lie in 0 to 1, got {self.alpha!r}")
        if not 0 < self.correctness_threshold <= 2:
            raise ValueError(
                f"RewardConfig.correctness_threshold must lie above 0 and up to 2, got {self.correctness_threshold!r}"
            )
        for name in ("length_width_short", "length_width_long"):
            if getattr(self, name) == 0:
                raise ValueError(f"RewardConfig.{name} must be more than 0")


def format_reward(turn: Turn, called_for: bool) -> float:
    """R_fmt, 0 or 1: is the turn well-formed, finished, and of the sort that is called for? [paper for the range]

    A turn is of the right sort if it calls tools exactly where the reference does, and otherwise says something; what
    it calls is for `correctness_reward`. [ours, after ToolRL's format reward]

    Example:
        "Done." earns 1 where no call is called for and 0 where one is.
    """
    if turn.error is not None or turn.truncated:
        return 0.0
    right_sort = bool(turn.calls) if called_for else (not turn.calls and bool(turn.content))
    return 1.0 if right_sort else 0.0


def same_value(given: Any, expected: Any) -> bool:
    """Whether two JSON values are equal. [ours]

    Numbers by value (1 equals 1.0), booleans only with booleans (True is not 1), strings exactly ("3" is not 3, "Rome"
    is not "rome"), null only with null, arrays in order, objects whatever the order of their keys.
    """
    if isinstance(given, bool) or isinstance(expected, bool):
        return isinstance(given, bool) and isinstance(expected, bool) and given == expected
    if isinstance(given, int | float) and isinstance(expected, int | float):
        return given == expected
    if isinstance(given, Mapping) and isinstance(expected, Mapping):
        return given.keys() == expected.keys() and all(same_value(given[key], expected[key]) for key in expected)
    if isinstance(given, list | tuple) and isinstance(expected, list | tuple):
        return len(given) == len(expected) and all(map(same_value, given, expected))
    return type(given) is type(expected) and given == expected


def argument_f1(given: Mapping[str, Any], expected: Mapping[str, Any]) -> float:
    """F1 of two calls' arguments over their leaves, 0 to 1; two empty mappings agree fully. [F1 is the paper's]

    A leaf is a path of keys and what it leads to: objects are walked, so that one wrong field of a nested argument
    costs that field; arrays are one value. Null is a value: `{"a": null}` is not `{}`. [ours]

    Example:
        Given {"a": 1, "b": {"c": 2, "d": 3}}, expected {"a": 1, "b": {"c": 2}}: leaves given 3, expected 2, equal 2;
        F1 = 2*2 / (3 + 2) = 0.8.
    """
    leaves_given, leaves_expected = _leaves(given), _leaves(expected)
    if not leaves_given and not leaves_expected:
        return 1.0
    equal = sum(
        path in leaves_given and same_value(leaves_given[path], value) for path, value in leaves_expected.items()
    )
    return 2 * equal / (len(leaves_given) + len(leaves_expected))


def match_calls(
    calls: Sequence[ToolCall], reference: Sequence[ToolCall], alpha: float = RewardConfig.alpha
) -> tuple[tuple[int, int, float], ...]:
    """The one-to-one matching of calls to reference calls with the largest total score. Order does not matter.

    Only calls of one and the same tool match (a call of another tool scores 0, matched or not). A match scores
    alpha + (1 - alpha) * F1. The optimum is found per tool name, by the Hungarian method where a name is repeated.

    Returns:
        (index into calls, index into reference, score 0 to 1), by the first.
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


def correctness_reward(
    calls: Sequence[ToolCall], reference: Sequence[ToolCall], config: RewardConfig | None = None
) -> float:
    """R_corr, 0 to 2: twice the matched calls' total score over the larger number of calls. [paper for the range]

    Dividing by the larger number charges a missing call as much as one too many. No calls where none are expected
    earn 2. [ours]

    Example:
        With alpha 0.5, the two calls ls() and cd(dir="a") against ls() and cd(dir="b"):
        scores 1 and 0.5 + 0.5 * 0 = 0.5; R_corr = 2 * 1.5 / 2 = 1.5. With ls() alone: 2 * 1 / 2 = 1.
    """
    if not calls and not reference:
        return 2.0
    matched = match_calls(calls, reference, (config or RewardConfig()).alpha)
    return 2 * math.fsum(score for _, _, score in matched) / max(len(calls), len(reference))


def length_reward(length: float, config: RewardConfig | None = None) -> float:
    """R_len, 0 to 1: 1 within the band around the target length, a Gaussian's fall-off outside. [paper for the shape]

    Args:
        length: of the completion, in tokens.

    Example:
        Target 128, band 96, short width 16: at 16 tokens the distance to the band (32 to 224) is 16, one standard
        deviation: exp(-1/2) = 0.6065.
    """
    config = config or RewardConfig()
    below = config.length_target - config.length_band - length
    above = length - config.length_target - config.length_band
    away = max(below / config.length_width_short, above / config.length_width_long, 0.0)
    return math.exp(-0.5 * away * away)


def reward_weights(progress: float, config: RewardConfig | None = None) -> tuple[float, float]:
    """(w_fmt, w_corr) at a point of training, linear in between. [paper for w_fmt 2 to 1, inferred for w_corr]

    Args:
        progress: steps done over steps planned; held to 0 to 1.

    Example:
        At progress 0.5 the weights are (1.5, 1.25).
    """
    config = config or RewardConfig()
    done = min(max(progress, 0.0), 1.0)
    return (
        config.format_weight_start + done * (config.format_weight_end - config.format_weight_start),
        config.correctness_weight_start + done * (config.correctness_weight_end - config.correctness_weight_start),
    )


def step_verdict(
    task: Task, turn: Turn, length: float, progress: float = 0.0, config: RewardConfig | None = None
) -> Verdict:
    """Judge one turn of a step task. Failed if and only if R_fmt is 0 or R_corr is below delta_corr [paper, Stage 2].

    Args:
        task: with a `reference`; an empty one means that no call is called for.
        length: of the completion, in tokens.
        progress: of training, 0 to 1.

    Returns:
        Verdict: `parts` holds the bare R_fmt, R_corr, R_len under "format", "correctness", "length".

    Raises:
        ValueError: the task has no reference.

    Example:
        All right at progress 0: (2*1 + 1*2 + 1) / 3 = 5/3. Right form, wrong tool: (2*1 + 1*0 + 1) / 3 = 1, failed.
    """
    if task.reference is None:
        raise ValueError(f"task {task.id!r} has no reference calls; only step tasks can be judged on one turn")
    config = config or RewardConfig()
    form = format_reward(turn, called_for=bool(task.reference))
    correctness = 0.0 if turn.error is not None else correctness_reward(turn.calls, task.reference, config)
    fit = length_reward(length, config)
    for_form, for_correctness = reward_weights(progress, config)
    reward = (for_form * form + for_correctness * correctness + fit) / 3
    failed = form == 0 or correctness < config.correctness_threshold
    return Verdict(reward, failed, {"format": form, "correctness": correctness, "length": fit})


def group_advantages(rewards: Sequence[float | None], group_size: int, epsilon: float = 1e-4) -> list[float]:
    """GRPO's advantages: each reward less its group's mean, over the group's standard deviation plus epsilon.

    As TRL's `scale_rewards="group"`, `multi_objective_aggregation="sum_then_normalize"` (trl 1.16,
    `GRPOTrainer._generate_and_score_completions`): the deviation is the unbiased one (over n - 1), epsilon 1e-4.
    A reward that is None or NaN (infrastructure) is left out of its group's statistics and gets advantage 0.

    Args:
        rewards: group after group, `group_size` each.

    Returns:
        list[float]: one advantage per reward.

    Raises:
        ValueError: `group_size` does not divide the number of rewards.

    Example:
        [1, 0, 0, 1] in one group: mean 0.5, deviation sqrt(4 * 0.25 / 3) = 0.57735; advantages
        +-0.5 / 0.57745 = +-0.86588.
    """
    if group_size < 1 or len(rewards) % group_size:
        raise ValueError(f"{len(rewards)} rewards cannot be split into groups of {group_size}")
    advantages = []
    for start in range(0, len(rewards), group_size):
        group = [math.nan if reward is None else float(reward) for reward in rewards[start : start + group_size]]
        known = [reward for reward in group if not math.isnan(reward)]
        mean = math.fsum(known) / len(known) if known else 0.0
        deviation = math.sqrt(math.fsum((r - mean) ** 2 for r in known) / (len(known) - 1)) if len(known) > 1 else 0.0
        advantages += [0.0 if math.isnan(r) else (r - mean) / (deviation + epsilon) for r in group]
    return advantages


def _leaves(arguments: Mapping[str, Any]) -> dict[tuple[str, ...], Any]:
    """Every value that is no non-empty object, by its path of keys."""
    found: dict[tuple[str, ...], Any] = {}
    waiting: list[tuple[tuple[str, ...], Any]] = [((key,), value) for key, value in arguments.items()]
    while waiting:
        path, value = waiting.pop()
        if isinstance(value, Mapping) and value:
            waiting += [((*path, key), inner) for key, inner in value.items()]
        else:
            found[path] = value
    return found


def _score(call: ToolCall, expected: ToolCall, alpha: float) -> float:
    f1 = argument_f1(call.arguments, expected.arguments)
    return f1 + alpha * (1 - f1)  # alpha + (1 - alpha) * f1, and exactly 1 at f1 = 1


def _assign(scores: list[list[float]]) -> list[tuple[int, int]]:
    """The rows and columns of the one-to-one assignment with the largest total; every row or every column is used."""
    if not scores or not scores[0]:
        return []
    if len(scores) == len(scores[0]) == 1:
        return [(0, 0)]
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(scores, maximize=True)
    return [(int(row), int(column)) for row, column in zip(rows, columns, strict=True)]


class StepReward:
    """R = 1/3 [w_fmt(t) R_fmt + w_corr(t) R_corr + R_len] against the reference calls in column `fission_task`.

    Lengths are in tokens; t is the share of training steps done. Logs the mean of each part as `reward_parts/*`.
    """

    __name__ = "step_reward"

    def __init__(self, config: RewardConfig | None = None):
        self.config = config or RewardConfig()

    def verdict(self, task: Task, turn: Turn, length: int, progress: float) -> Verdict:
        """Judge one turn; `length` in tokens, `progress` in [0, 1]."""
        return step_verdict(task, turn, length, progress, self.config)

    def __call__(
        self,
        completions: list[str],
        completion_ids: list[list[int]],
        fission_task: list[str],
        trainer_state: Any = None,
        log_metric: Any = None,
        **_: Any,
    ) -> list[float | None]:
        progress = progress_of(trainer_state)
        verdicts = [
            self.verdict(step_task(task), parse(text), len(ids), progress)
            for task, text, ids in zip(fission_task, completions, completion_ids, strict=True)
        ]
        if log_metric is not None:
            for part in ("format", "correctness", "length"):
                log_metric(f"reward_parts/{part}", sum(v.parts[part] for v in verdicts) / len(verdicts))
        return [verdict.reward for verdict in verdicts]


def progress_of(trainer_state: Any) -> float:
    """Share of training done, in [0, 1]; 0 before training starts."""
    if trainer_state is None or not trainer_state.max_steps:
        return 0.0
    return min(1.0, trainer_state.global_step / trainer_state.max_steps)
