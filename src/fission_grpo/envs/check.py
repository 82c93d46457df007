"""`check_environment`: whether an environment can be trained in and restored."""

from __future__ import annotations

import copy
import json
import math
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fission_grpo.core.errors import TimeLimitExceeded, UsageError, error_message, original
from fission_grpo.core.install import install_line
from fission_grpo.core.json_io import quoted
from fission_grpo.core.result_errors import error_rule, like_errors
from fission_grpo.core.terminal import printable
from fission_grpo.core.types import ToolCall
from fission_grpo.envs.episode_reward import EpisodeReward, UnusableReward
from fission_grpo.envs.probe import EnvironmentProbe, ProbeOutcome, hostile_calls
from fission_grpo.envs.restore import get_progress
from fission_grpo.envs.wrapper import ToolLimits, can_snapshot, tool_methods

# checks without which the later ones cannot be made, and the reason given for skipping these
REQUIRED = {
    "tools": "there are no usable tools",
    "reset": "reset fails",
    "determinism, replay": "it would fail of the same, see determinism",
}


class CheckFailed(Exception):
    """Why a check failed, and the fix."""


class CheckWarned(Exception):
    """What is not as it should be but may be meant, and the fix."""


class CheckSkipped(Exception):
    """Why a check was not made."""


@dataclass(frozen=True)
class Finding:
    """The result of one check."""

    check: str
    status: str  # "ok", "warning", "failed" or "skipped"
    detail: str  # the reason and the fix


class Report(EnvironmentProbe):
    """All findings on an environment; `str` of it is a table. Each check is a method that returns a remark."""

    findings: tuple[Finding, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether no check failed."""
        return all(finding.status != "failed" for finding in self.findings)

    def __str__(self) -> str:
        width = max(map(len, self.CHECKS))
        lines = [f"{each.check:{width}}  {each.status:7}  {printable(each.detail)}".rstrip() for each in self.findings]
        failed = sum(finding.status == "failed" for finding in self.findings)
        verdict = f"{failed} of {len(lines)} checks failed" if failed else "it can be trained and recovered in"
        if any(finding.status == "warning" for finding in self.findings):
            verdict += "; see the warning"
        if not failed and (silent := [name for name in self.tool_names if not self.answered[name]]):
            verdict += f"; not checked: {', '.join(silent)}, as no call of them succeeded; give rows in which one does"
        return "\n".join([*lines, f"{self.environment}: {verdict}"])

    def run_checks(self) -> None:
        """Make all checks; nothing that the environment does is raised, unless it kills the process."""
        blocked = ""
        for name, check in self.CHECKS.items():
            try:
                if blocked:
                    raise CheckSkipped(blocked)
                status, detail = "ok", check(self)
            except CheckSkipped as reason:
                status, detail = "skipped", str(reason)
            except CheckWarned as reason:
                status, detail = "warning", str(reason)
            except CheckFailed as reason:
                status, detail = "failed", str(reason)
            except TimeLimitExceeded:
                status, detail = "failed", f"hangs for more than {self.timeout:g} s"
            except Exception as error:  # noqa: BLE001 - the user's code
                status, detail = "failed", _what_it_raised(error)
            if status == "failed" and name in REQUIRED:
                blocked = REQUIRED[name]
            self.findings = (*self.findings, Finding(name, status, detail))

    def _check_tools(self) -> str:
        environment = self.make()
        tools = tool_methods(environment)
        if not callable(getattr(environment, "reset", None)):
            raise CheckFailed("there is no `reset` method; add `def reset(self, **row)`")
        if not tools:
            raise CheckFailed("there are no tools; public methods (without a leading underscore) are the tools")
        if not hasattr(environment, "__dict__"):
            raise CheckFailed("instances take no new attributes, so that it cannot be watched; remove __slots__")
        try:
            from transformers.utils import get_json_schema
        except ModuleNotFoundError:
            raise CheckSkipped(f"transformers is not installed: {install_line('transformers')}") from None
        for name, tool in tools.items():
            try:
                self.schemas.append(get_json_schema(tool)["function"])
            except Exception as error:
                reason = " ".join(str(error).split())[:160]
                raise CheckFailed(f"{name}: {reason}; give each argument a type hint and a docstring line") from error
        self.tool_names = list(tools)
        return f"{len(tools)}: {', '.join(list(tools)[:6])}{', ...' if len(tools) > 6 else ''}"

    def _check_reset(self) -> str:
        for row in range(len(self.rows)):
            try:
                self.start(row)
            except TimeLimitExceeded:
                raise CheckFailed(f"reset hangs for more than {self.timeout:g} s") from None
            except Exception as error:  # noqa: BLE001 - the user's code
                hint = "" if self.rows != [{}] else "; if it needs columns, give rows (--rows FILE)"
                raise CheckFailed(f"reset {_what_it_raised(error)}{hint}") from None
        return f"with {len(self.rows)} row{'s' * (len(self.rows) != 1)}"

    def _check_calls(self) -> str:
        if self.calls:
            return f"{len(self.calls)} given"
        self.find_references()
        self.find_calls()
        if any(self.call(self.start(), call).kind == "result" for call in self.calls):
            return f"{len(self.calls)} found to try it with"
        reason = "no call that was tried is answered, so the checks below say little"
        raise CheckSkipped(f"{reason}; give fitting rows or calls")

    def _check_errors(self) -> str:
        answered: Counter[str] = Counter()
        refused = 0
        for call in [*self.calls, *hostile_calls(self.schemas)]:
            outcome = self.call(self.start(), call)
            if problem := _problem_of(outcome, self.timeout):
                arguments = ", ".join(f"{key}={quoted(value)}" for key, value in call.arguments.items())
                raise CheckFailed(f"{f'{call.name}({arguments})'[:200]} {problem}")
            answered[call.name] += outcome.is_answered
            refused += not outcome.is_answered
            self.results += [(outcome.text, outcome.error)] if outcome.kind == "result" else []
        by_tool = ", ".join(f"{name} {answered[name]}" for name in self.tool_names)
        return f"{answered.total()} calls answered ({by_tool}), {refused} refused"

    def _check_errors_in_words(self) -> str:
        number, note = like_errors(self.results)
        if number and self.error_if is None:
            raise CheckWarned(note)
        return note or "no result begins like an error and counts as a success"

    def _check_determinism(self) -> str:
        """Replay restores an environment exactly if the same calls always lead to the same answers."""
        for row in self.row_numbers:
            first = self.start(row)
            expected = self.answers(first, self.calls)
            random.random()  # advances the global generator, so that a tool that draws from it is detected
            second = self.start(row)
            _compare("two fresh instances answer differently", self.calls, expected, self.answers(second, self.calls))
            if not self.reward.functions and repr(self._reward_of(first)) != repr(self._reward_of(second)):
                raise CheckFailed("the same calls earn different rewards; judge by state alone")
        return f"{len(self.calls)} calls, twice the same{self.in_rows}"

    def _check_isolation(self) -> str:
        problem = "another instance's calls change the answers; keep state in self, made in __init__ or reset"
        for row in self.row_numbers:
            environment, other = self.start(row), self.start(row + 1)
            actual = []
            for call in self.calls:
                self.call(other, call)
                actual += self.answers(environment, [call])
                self.call(other, call)
            _compare(problem, self.calls, self.expected_answers(row), actual)
        return "another instance's calls change nothing"

    def _check_nothing_left_behind(self) -> str:
        for row in self.row_numbers:
            used = self.start(row)
            self.answers(used, self.calls)
            self.reset(used, row)
            actual = self.answers(used, self.calls)
            _compare("reset leaves something behind", self.calls, self.expected_answers(row), actual)
        return "reset after use is like a fresh instance"

    def _check_snapshot(self) -> str:
        if not can_snapshot(self.start()):
            raise CheckSkipped("no _snapshot and _restore: failed turns are reached by replay")
        before, after = self.halves
        for row in self.row_numbers:
            environment = self.start(row)
            self.answers(environment, before)
            state = self.limited(environment._snapshot)
            kept = copy.deepcopy(state)
            is_comparable = _is_equal(kept, state)
            expected = self.answers(environment, after)
            fresh = self.start(row)
            targets = {"": environment, " a second time": environment, " into a fresh instance": fresh}
            for how, target in targets.items():
                if is_comparable and not _is_equal(kept, state):
                    raise CheckFailed("calls change a snapshot taken before them; copy in _snapshot and in _restore")
                self.limited(target._restore, state)
                _compare(f"restored{how}, it answers differently", after, expected, self.answers(target, after))
        return f"restored three times, {len(after)} calls the same{self.in_rows}"

    def _check_reward(self) -> str:
        environment = self.start()
        if not (self.reward.functions or hasattr(environment, "get_reward") or hasattr(environment, "_reward")):
            raise CheckSkipped("no get_reward: rewards come from reward functions; check them with --reward")
        before, after = self.halves
        rewards = []
        for call in before:
            self.call(environment, call)
            reward, progress = self._reward_of(environment), self.limited(get_progress, environment)
            if isinstance(reward, bool) or not isinstance(reward, int | float) or not math.isfinite(reward):
                raise CheckFailed(f"the reward is {quoted(reward)}; it must be a finite number")
            if reward != self._reward_of(environment):
                raise CheckFailed("the reward is another number when asked again; it must not change anything")
            if progress is not None and not 0 <= progress <= 1:
                raise CheckFailed(f"_progress gives {quoted(progress)}; it must lie between 0 and 1")
            rewards.append(reward)
        expected = self.expected_answers(0)[len(before) :]
        _compare("reading the reward changes the state", after, expected, self.answers(environment, after))
        low, high = min(rewards, default=0), max(rewards, default=0)
        found = f"between {low:g} and {high:g} in this trial, and reading it changes nothing"
        done = [reward for row in self.row_numbers if (reward := self._reward_of_reference(row)) is not None]
        if done and max(done) <= low:
            raise CheckWarned(f"{found}; but the calls of _reference earn no more: {max(done):g}")
        return found + (f"; after the calls of _reference {min(done):g} to {max(done):g}" if done else "")

    def _reward_of_reference(self, row: int) -> float | None:
        """The reward after the calls that do the task of a row; None if nobody knows them."""
        environment = self.start(row)
        reference = getattr(environment, "_reference", None)
        if reference is None:
            return None
        for call in self.limited(reference) or ():
            self.call(environment, call)
        return self._reward_of(environment, row)

    def _reward_of(self, environment: Any, row_number: int = 0) -> Any:
        row = copy.deepcopy(self.rows[row_number])
        try:
            return self.limited(self.reward, environment, row, self.completion)
        except (UsageError, UnusableReward) as error:
            raise CheckFailed(str(error)) from error

    CHECKS: Mapping[str, Callable[[Any], str]] = {  # by name, in the order in which they are made
        "tools": _check_tools,
        "reset": _check_reset,
        "calls": _check_calls,
        "errors are results": _check_errors,
        "errors in words": _check_errors_in_words,
        "determinism, replay": _check_determinism,
        "isolation": _check_isolation,
        "nothing left behind": _check_nothing_left_behind,
        "snapshot": _check_snapshot,
        "reward": _check_reward,
    }


def check_environment(
    environment_factory: Callable[[], Any],
    rows: Sequence[Mapping[str, Any]] = (),
    calls: Sequence[ToolCall] = (),
    reward_funcs: Callable[..., Any] | Sequence[Callable[..., Any]] = (),
    seed: int = 0,
    seconds: float = 5.0,
    error_if: str | Callable[[str], bool] | None = None,
) -> Report:
    """Check an environment in TRL's convention: tools, errors, determinism, isolation, snapshots, reward.

    Args:
        environment_factory: makes an instance without arguments, such as the class itself.
        rows: data set rows whose columns `reset` takes; by default, `reset()` is called without arguments.
        calls: to make; by default those of `_reference()`, if there is one, and calls drawn from the tools' schemas.
        reward_funcs: TRL reward functions to check on it, one or several.
        seed: of the drawing.
        seconds: time limit of every single call (only where SIGALRM exists, and in the main thread).
        error_if: which results are errors, too: a regular expression, or a function of a result's text.

    Example:
        `print(check_environment(Desk, make_rows(2, seed=0, split="train")))`
    """
    functions = [reward_funcs] if callable(reward_funcs) else list(reward_funcs)
    reward, given = EpisodeReward(functions), [dict(row) for row in rows] or [{}]
    report = Report(environment_factory, given, list(calls), reward, seed, seconds, error_rule(error_if))
    report.run_checks()
    return report


def _problem_of(outcome: ProbeOutcome, timeout: float) -> str | None:
    """What is wrong with the outcome of a call, which should be a result or an ordinary exception."""
    value, limit = outcome.value, ToolLimits().max_result_chars
    if outcome.kind == "hang":
        return f"hangs for more than {timeout:g} s; give it a time limit of its own"
    if outcome.kind == "exit":
        if isinstance(value, SystemExit):
            return "exits the process; raise an ordinary exception instead"
        return f"raises {type(value).__name__}, which is no Exception"
    if outcome.kind == "mutated":
        return "changes its arguments; copy them first"
    if outcome.kind == "error":
        return None
    if len(outcome.text) > limit:
        return f"answers {len(outcome.text)} characters; a policy sees {limit} at most"
    try:
        json.dumps("" if isinstance(value, str) else value)
    except (TypeError, ValueError, RecursionError):
        return f"answers a {type(value).__name__}, which is no JSON; return text, numbers, lists or dicts"
    return None


def _what_it_raised(error: Exception) -> str:
    raised = original(error)
    return f"raised {type(raised).__name__}: {' '.join(error_message(raised).split())[:200]}"


def _compare(problem: str, calls: Sequence[ToolCall], expected: Sequence[str], actual: Sequence[str]) -> None:
    """Raise CheckFailed with the first call whose answers differ."""
    for number, (call, left, right) in enumerate(zip(calls, expected, actual, strict=True), start=1):
        if left != right:
            place = f"call {number}, {call.name} with {quoted(dict(call.arguments))}"
            raise CheckFailed(f"{problem}: {place}: {quoted(left)} against {quoted(right)}")


def _is_equal(left: Any, right: Any) -> bool:
    """Whether `left == right`; False if the comparison has no truth value (arrays)."""
    try:
        return bool(left == right)
    except (TypeError, ValueError):
        return False
