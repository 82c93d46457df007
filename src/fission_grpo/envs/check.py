"""`check_environment`: whether an environment can be trained in and restored; one function per check.

A check returns a remark for the report, or raises CheckFailed or CheckSkipped with the reason.
"""

from __future__ import annotations

import copy
import inspect
import json
import math
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fission_grpo.core.json_io import quoted
from fission_grpo.core.timing import ToolTimeout
from fission_grpo.core.types import ToolCall
from fission_grpo.envs.probe import EnvironmentProbe, ProbeOutcome, hostile_calls
from fission_grpo.envs.restore import get_progress, run_awaitable
from fission_grpo.envs.wrapper import ToolLimits, can_snapshot, tool_methods


class CheckFailed(Exception):
    """Why a check failed, and the fix."""


class CheckSkipped(Exception):
    """Why a check was not made."""


def _check_tools(probe: EnvironmentProbe) -> str:
    environment = probe.make()
    if not callable(getattr(environment, "reset", None)):
        raise CheckFailed("there is no `reset` method; add `def reset(self, **row)`")
    tools = tool_methods(environment)
    if not tools:
        raise CheckFailed("there are no tools; public methods (without a leading underscore) are the tools")
    if not hasattr(environment, "__dict__"):
        raise CheckFailed("instances take no new attributes, so that it cannot be watched; remove __slots__")
    try:
        from transformers.utils import get_json_schema
    except ModuleNotFoundError:
        raise CheckSkipped("transformers is not installed: pip install 'fission-grpo[train]'") from None
    for name, tool in tools.items():
        try:
            probe.schemas.append(get_json_schema(tool)["function"])
        except Exception as error:
            reason = " ".join(str(error).split())[:160]
            raise CheckFailed(f"{name}: {reason}; give each argument a type hint and a docstring line") from error
    return f"{len(tools)}: {', '.join(list(tools)[:6])}{', ...' if len(tools) > 6 else ''}"


def _check_reset(probe: EnvironmentProbe) -> str:
    for row in range(len(probe.rows)):
        try:
            probe.start(row)
        except ToolTimeout:
            raise CheckFailed(f"reset hangs for more than {probe.timeout:g} s") from None
        except (Exception, SystemExit) as error:  # noqa: BLE001 - the environment's; it is the verdict
            hint = "" if probe.rows != [{}] else "; if it needs columns, give rows (--row FILE)"
            raise CheckFailed(f"reset raised {type(error).__name__}: {quoted(str(error))}{hint}") from None
    return f"with {len(probe.rows)} row{'s' * (len(probe.rows) != 1)}"


def _check_calls(probe: EnvironmentProbe) -> str:
    if probe.calls:
        return f"{len(probe.calls)} given"
    probe.find_calls()
    if any(probe.call(probe.start(), call).kind == "result" for call in probe.calls):
        return f"{len(probe.calls)} found to try it with"
    raise CheckSkipped(
        "no call that was tried is answered, so the checks below say little; give fitting rows or calls"
    )


def _check_errors(probe: EnvironmentProbe) -> str:
    counts: Counter[bool] = Counter()
    for call in [*probe.calls, *hostile_calls(probe.schemas)]:
        outcome = probe.call(probe.start(), call)
        if problem := _problem_of(outcome, probe.timeout):
            arguments = ", ".join(f"{key}={quoted(value)}" for key, value in call.arguments.items())
            raise CheckFailed(f"{f'{call.name}({arguments})'[:200]} {problem}")
        counts[outcome.is_answered] += 1
    return f"{counts[True]} calls answered, {counts[False]} refused"


def _problem_of(outcome: ProbeOutcome, timeout: float) -> str | None:
    """What is wrong with the outcome of a call, which should be a result or an ordinary exception."""
    value, limit = outcome.value, ToolLimits().max_result_chars
    if outcome.kind == "hang":
        return f"hangs for more than {timeout:g} s; give it a time limit of its own"
    if outcome.kind == "exit":
        return "exits the process; raise an ordinary exception instead"
    if outcome.kind == "mutated":
        return "changes its arguments; copy them first"
    if outcome.kind == "error":
        return None if isinstance(value, Exception) else f"raises {type(value).__name__}, which is no Exception"
    if len(outcome.text) > limit:
        return f"answers {len(outcome.text)} characters; a policy sees {limit} at most"
    try:
        json.dumps("" if isinstance(value, str) else value)
    except (TypeError, ValueError, RecursionError):
        return f"answers a {type(value).__name__}, which is no JSON; return text, numbers, lists or dicts"
    return None


def _compare(problem: str, calls: Sequence[ToolCall], expected: Sequence[str], actual: Sequence[str]) -> None:
    """Raise CheckFailed with the first call whose answers differ."""
    for number, (call, left, right) in enumerate(zip(calls, expected, actual, strict=True), start=1):
        if left != right:
            arguments = quoted(dict(call.arguments))
            raise CheckFailed(
                f"{problem}: call {number}, {call.name} with {arguments}: {quoted(left)} against {quoted(right)}"
            )


def _check_determinism(probe: EnvironmentProbe) -> str:
    """Replay restores an environment exactly if the same calls always lead to the same answers."""
    for row in probe.row_numbers:
        first = probe.start(row)
        expected = probe.answers(first, probe.calls)
        random.random()  # advances the global generator, so that a tool that draws from it is detected
        second = probe.start(row)
        _compare("two fresh instances answer differently", probe.calls, expected, probe.answers(second, probe.calls))
        if repr(_reward_of(first)) != repr(_reward_of(second)):
            raise CheckFailed("the same calls earn different rewards; judge by state alone")
    return f"{len(probe.calls)} calls, twice the same{probe.in_rows}"


def _check_isolation(probe: EnvironmentProbe) -> str:
    problem = "another instance's calls change the answers; keep state in self, made in __init__ or reset"
    for row in probe.row_numbers:
        environment, other = probe.start(row), probe.start(row + 1)
        actual = []
        for call in probe.calls:
            probe.call(other, call)
            actual += probe.answers(environment, [call])
            probe.call(other, call)
        _compare(problem, probe.calls, probe.expected_answers(row), actual)
    return "another instance's calls change nothing"


def _check_nothing_left_behind(probe: EnvironmentProbe) -> str:
    for row in probe.row_numbers:
        used = probe.start(row)
        probe.answers(used, probe.calls)
        probe.reset(used, row)
        actual = probe.answers(used, probe.calls)
        _compare("reset leaves something behind", probe.calls, probe.expected_answers(row), actual)
    return "reset after use is like a fresh instance"


def _check_snapshot(probe: EnvironmentProbe) -> str:
    if not can_snapshot(probe.start()):
        raise CheckSkipped("no _snapshot and _restore: failed turns are reached by replay")
    before, after = probe.halves
    for row in probe.row_numbers:
        environment = probe.start(row)
        probe.answers(environment, before)
        state = environment._snapshot()
        kept = copy.deepcopy(state)
        is_comparable = _is_equal(kept, state)
        expected = probe.answers(environment, after)
        fresh = probe.start(row)
        targets = {"": environment, " a second time": environment, " into a fresh instance": fresh}
        for how, target in targets.items():
            if is_comparable and not _is_equal(kept, state):
                raise CheckFailed("calls change a snapshot taken before them; copy in _snapshot and in _restore")
            target._restore(state)
            _compare(f"restored{how}, it answers differently", after, expected, probe.answers(target, after))
    return f"restored three times, {len(after)} calls the same{probe.in_rows}"


def _check_reward(probe: EnvironmentProbe) -> str:
    environment = probe.start()
    if not (hasattr(environment, "get_reward") or hasattr(environment, "_reward")):
        raise CheckSkipped("no get_reward: rewards come from reward functions")
    before, after = probe.halves
    rewards = []
    for call in before:
        probe.call(environment, call)
        reward = _reward_of(environment)
        if isinstance(reward, bool) or not isinstance(reward, int | float) or not math.isfinite(reward):
            raise CheckFailed(f"get_reward gives {quoted(reward)}; it must be a finite number")
        if reward != _reward_of(environment):
            raise CheckFailed("get_reward gives another number when asked again; it must not change anything")
        rewards.append(reward)
        progress = get_progress(environment)
        if progress is not None and not 0 <= progress <= 1:
            raise CheckFailed(f"_progress gives {quoted(progress)}; it must lie between 0 and 1")
    expected = probe.expected_answers(0)[len(before) :]
    _compare("reading the reward changes the state", after, expected, probe.answers(environment, after))
    low, high = min(rewards, default=0), max(rewards, default=0)
    return f"between {low:g} and {high:g} in this trial, and reading it changes nothing"


def _reward_of(environment: Any) -> Any:
    judge: Any = getattr(environment, "get_reward", None) or getattr(environment, "_reward", None)
    reward = None if judge is None else judge()
    return run_awaitable(reward) if inspect.isawaitable(reward) else reward


def _is_equal(left: Any, right: Any) -> bool:
    """Whether `left == right`; False if the comparison has no truth value (arrays)."""
    try:
        return bool(left == right)
    except (TypeError, ValueError):
        return False


CHECKS: Mapping[str, Callable[[EnvironmentProbe], str]] = {
    "tools": _check_tools,
    "reset": _check_reset,
    "calls": _check_calls,
    "errors are results": _check_errors,
    "determinism, replay": _check_determinism,
    "isolation": _check_isolation,
    "nothing left behind": _check_nothing_left_behind,
    "snapshot": _check_snapshot,
    "reward": _check_reward,
}
"""The checks by name, in the order in which they are made."""

REQUIRED = {"tools": "there are no usable tools", "reset": "reset fails"}
"""Checks without which the later ones cannot be made, and the reason given for skipping these."""


@dataclass(frozen=True)
class Finding:
    """The result of one check."""

    check: str
    status: str  # "ok", "failed" or "skipped"
    detail: str  # the reason and the fix


@dataclass(frozen=True)
class Report:
    """All findings on one environment; `str` of it is a table."""

    environment: str
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether no check failed."""
        return all(finding.status != "failed" for finding in self.findings)

    def __str__(self) -> str:
        width = max(map(len, CHECKS))
        lines = [f"{each.check:{width}}  {each.status:7}  {each.detail}".rstrip() for each in self.findings]
        failed = sum(finding.status == "failed" for finding in self.findings)
        verdict = f"{failed} of {len(lines)} checks failed" if failed else "it can be trained and recovered in"
        return "\n".join([*lines, f"{self.environment}: {verdict}"])


def check_environment(
    make: Callable[[], Any],
    rows: Sequence[Mapping[str, Any]] = (),
    calls: Sequence[ToolCall] = (),
    seed: int = 0,
    seconds: float = 5.0,
) -> Report:
    """Check an environment in TRL's convention: tools, errors, determinism, isolation, snapshots, reward.

    Nothing that the environment does is raised, unless it kills the process.

    Args:
        make: makes an instance without arguments, such as the class itself.
        rows: data set rows whose columns `reset` takes; by default, `reset()` is called without arguments.
        calls: to make; by default drawn from the tools' schemas.
        seed: of the drawing.
        seconds: time limit of every single call (only where SIGALRM exists, and in the main thread).

    Example:
        `print(check_environment(Desk, make_rows(2, seed=0, split="train")))`
    """
    probe = EnvironmentProbe(make, [dict(row) for row in rows] or [{}], list(calls), seed, seconds)
    findings: list[Finding] = []
    blocked = ""
    for name, check in CHECKS.items():
        try:
            if blocked:
                raise CheckSkipped(blocked)
            finding = Finding(name, "ok", check(probe))
        except CheckSkipped as reason:
            finding = Finding(name, "skipped", str(reason))
        except CheckFailed as reason:
            finding = Finding(name, "failed", str(reason))
        except (Exception, SystemExit, ToolTimeout) as error:  # noqa: BLE001 - the environment's; it is the verdict
            finding = Finding(name, "failed", f"raised {type(error).__name__}: {' '.join(str(error).split())[:200]}")
        if finding.status == "failed" and name in REQUIRED:
            blocked = REQUIRED[name]
        findings.append(finding)
    return Report(getattr(make, "__name__", type(make).__name__), tuple(findings))
