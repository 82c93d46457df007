"""What an environment has to keep to, one check a function: each returns a remark, or raises why it failed."""

from __future__ import annotations

import asyncio
import copy
import inspect
import json
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fission_grpo.core.chat import read_result
from fission_grpo.core.json_io import quoted
from fission_grpo.core.timing import TimeUp
from fission_grpo.core.types import ToolCall
from fission_grpo.envs.probe import Outcome, Trial, finish, hostile_calls
from fission_grpo.envs.restore import progress
from fission_grpo.envs.wrapper import Limits, can_snapshot, tool_methods


class CheckFailed(Exception):
    """A check's reason to fail."""


class CheckSkipped(Exception):
    """A check's reason not to be made."""


def _tools(trial: Trial) -> str:
    environment = trial.make()
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
            trial.schemas.append(get_json_schema(tool)["function"])
        except Exception as error:
            what = " ".join(str(error).split())[:160]
            raise CheckFailed(f"{name}: {what}; give each argument a type hint and a docstring line") from error
    return f"{len(tools)}: {', '.join(list(tools)[:6])}{', ...' if len(tools) > 6 else ''}"


def _reset(trial: Trial) -> str:
    for row in range(len(trial.rows)):
        try:
            trial.begin(row)
        except TimeUp:
            trial.broken = "reset fails"
            raise CheckFailed(f"reset hangs for more than {trial.seconds:g} s") from None
        except (Exception, SystemExit) as error:  # noqa: BLE001 - the environment's; it is the verdict
            trial.broken = "reset fails"
            hint = "" if trial.rows != [{}] else "; if it needs columns, give rows (--row FILE)"
            raise CheckFailed(f"reset raised {type(error).__name__}: {quoted(str(error))}{hint}") from None
    return f"with {len(trial.rows)} row{'s' * (len(trial.rows) != 1)}"


def _errors(trial: Trial) -> str:
    counts = {"result": 0, "error": 0}
    for call in [*trial.calls, *hostile_calls(trial.schemas)]:
        environment = trial.begin()
        outcome = trial.call(environment, call)
        named = f"{call.name}({', '.join(f'{key}={quoted(value)}' for key, value in call.arguments.items())})"[:200]
        if outcome.kind == "hang":
            raise CheckFailed(f"{named} hangs for more than {trial.seconds:g} s; give it a time limit of its own")
        if outcome.kind == "exit":
            raise CheckFailed(f"{named} exits the process; raise an ordinary exception instead")
        if outcome.kind == "mutated":
            raise CheckFailed(f"{named} changes its arguments; copy them first")
        if outcome.kind == "error" and not isinstance(outcome.value, Exception):
            raise CheckFailed(f"{named} raises {type(outcome.value).__name__}, which is no Exception")
        if outcome.kind == "result":
            _check_text(named, outcome)
            failed = read_result(call, outcome.text).error is not None
            outcome = Outcome("error" if failed else "result", outcome.text)
        counts[outcome.kind] += 1
    return f"{counts['result']} calls answered, {counts['error']} refused"


def _check_text(named: str, outcome: Outcome) -> None:
    limit = Limits().characters
    if len(outcome.text) > limit:
        raise CheckFailed(f"{named} answers {len(outcome.text)} characters; a policy sees {limit} at most")
    if not isinstance(outcome.value, str):
        try:
            json.dumps(outcome.value)
        except (TypeError, ValueError, RecursionError):
            kind = type(outcome.value).__name__
            raise CheckFailed(
                f"{named} answers a {kind}, which is no JSON; return text, numbers, lists or dicts"
            ) from None


def _difference(what: str, calls: Sequence[ToolCall], one: Sequence[str], other: Sequence[str]) -> None:
    """Raise CheckFailed with the first call whose answers differ."""
    for number, (call, left, right) in enumerate(zip(calls, one, other, strict=True), start=1):
        if left != right:
            arguments = quoted(dict(call.arguments))
            raise CheckFailed(
                f"{what}: call {number}, {call.name} with {arguments}: {quoted(left)} against {quoted(right)}"
            )


def _determinism(trial: Trial) -> str:
    for row in trial.tried:
        one = trial.begin(row)
        first = trial.play(one, trial.calls)
        random.random()  # a tool that draws from the global generator now goes on elsewhere
        other = trial.begin(row)
        second = trial.play(other, trial.calls)
        _difference("two fresh instances answer differently", trial.calls, first, second)
        if repr(_reward_of(one)) != repr(_reward_of(other)):
            raise CheckFailed("the same calls earn different rewards; judge by state alone")
    return f"{len(trial.calls)} calls, twice the same{trial.in_rows}"


def _isolation(trial: Trial) -> str:
    advice = "another instance's calls change the answers; keep state in self, made in __init__ or reset"
    for row in trial.tried:
        alone = trial.play(trial.begin(row), trial.calls)
        one, other, together = trial.begin(row), trial.begin(row + 1), []
        for call in trial.calls:
            trial.call(other, call)
            together += trial.play(one, [call])
            trial.call(other, call)
        _difference(advice, trial.calls, alone, together)
    return "another instance's calls change nothing"


def _leaks(trial: Trial) -> str:
    for row in trial.tried:
        fresh = trial.play(trial.begin(row), trial.calls)
        used = trial.begin(row)
        trial.play(used, trial.calls)
        trial.reset(used, row)
        _difference("reset leaves something behind", trial.calls, fresh, trial.play(used, trial.calls))
    return "reset after use is like a fresh instance"


def _snapshot(trial: Trial) -> str:
    if not can_snapshot(trial.begin()):
        raise CheckSkipped("no _snapshot and _restore: failed turns are reached by replay")
    half = len(trial.calls) // 2
    before, after = trial.calls[:half], trial.calls[half:]
    for row in trial.tried:
        environment = trial.begin(row)
        trial.play(environment, before)
        state = environment._snapshot()
        kept = copy.deepcopy(state)
        comparable = _equal(kept, state)
        wanted = trial.play(environment, after)
        for attempt in ("restored", "restored a second time"):
            if comparable and not _equal(kept, state):
                raise CheckFailed("calls change a snapshot taken before them; copy in _snapshot and in _restore")
            environment._restore(state)
            _difference(f"{attempt}, it answers differently", after, wanted, trial.play(environment, after))
        fresh = trial.begin(row)
        fresh._restore(state)
        what = "restored into a fresh instance, it answers differently"
        _difference(what, after, wanted, trial.play(fresh, after))
    return f"restored three times, {len(after)} calls the same{trial.in_rows}"


def _equal(one: Any, other: Any) -> bool:
    """Whether `one == other` says so; a comparison that is no truth value (arrays) says nothing, which is False."""
    try:
        return bool(one == other)
    except (TypeError, ValueError):
        return False


def _replay(trial: Trial) -> str:
    half = len(trial.calls) // 2
    for row in trial.tried:
        environment = trial.begin(row)
        wanted = trial.play(environment, trial.calls)[half:]
        again = trial.begin(row)
        trial.play(again, trial.calls[:half])
        rest = trial.calls[half:]
        _difference("after replay it answers differently", rest, wanted, trial.play(again, rest))
    return f"{half} calls made again lead to the same world{trial.in_rows}"


def _reward_of(environment: Any) -> Any:
    judge: Any = getattr(environment, "get_reward", None) or getattr(environment, "_reward", None)
    if judge is None:
        return None
    reward = judge()
    return asyncio.run(finish(reward)) if inspect.isawaitable(reward) else reward


def _reward(trial: Trial) -> str:
    environment = trial.begin()
    if not (hasattr(environment, "get_reward") or hasattr(environment, "_reward")):
        raise CheckSkipped("no get_reward: rewards come from reward functions")
    half = len(trial.calls) // 2
    seen = []
    for call in trial.calls[:half]:
        trial.call(environment, call)
        reward = _reward_of(environment)
        if isinstance(reward, bool) or not isinstance(reward, int | float) or not math.isfinite(reward):
            raise CheckFailed(f"get_reward gives {quoted(reward)}; it must be a finite number")
        if reward != _reward_of(environment):
            raise CheckFailed("get_reward gives another number when asked again; it must not change anything")
        seen.append(reward)
        done: Any = progress(environment)
        if done is not None and not 0 <= done <= 1:
            raise CheckFailed(f"_progress gives {quoted(done)}; it must lie between 0 and 1")
    unasked = trial.begin()
    trial.play(unasked, trial.calls[:half])
    rest = trial.calls[half:]
    _difference("reading the reward changes the world", rest, trial.play(unasked, rest), trial.play(environment, rest))
    return (
        f"between {min(seen, default=0):g} and {max(seen, default=0):g} in this trial, and reading it changes nothing"
    )


def _calls(trial: Trial) -> str:
    if trial.calls:
        return f"{len(trial.calls)} given"
    trial.scout()
    outcomes = [trial.call(trial.begin(), call).kind for call in trial.calls]
    if "result" not in outcomes:
        raise CheckSkipped(
            "no call that was tried is answered, so the checks below say little; give fitting rows or calls"
        )
    return f"{len(trial.calls)} found to try it with"


CHECKS: Mapping[str, Callable[[Trial], str]] = {
    "tools": _tools,
    "reset": _reset,
    "calls": _calls,
    "errors are results": _errors,
    "determinism": _determinism,
    "isolation": _isolation,
    "nothing left behind": _leaks,
    "snapshot": _snapshot,
    "replay": _replay,
    "reward": _reward,
}


@dataclass(frozen=True)
class Finding:
    """The verdict of one check: `status` is "ok", "failed" or "skipped"; `detail` says why and how to mend it."""

    check: str
    status: str
    detail: str = ""


@dataclass(frozen=True)
class Report:
    """All findings on one environment; `str` of it is a table."""

    environment: str
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing failed."""
        return all(finding.status != "failed" for finding in self.findings)

    def __str__(self) -> str:
        width = max(len(finding.check) for finding in self.findings)
        lines = [f"{one.check:{width}}  {one.status:7}  {one.detail}".rstrip() for one in self.findings]
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
    """Check an environment in TRL's convention: tools, errors, determinism, isolation, snapshots, replay, reward.

    Args:
        make: makes an instance without arguments, such as the class itself.
        rows: data set rows whose columns `reset` takes; without any, `reset()` is called bare.
        calls: to try it with; by default drawn from the tools' schemas.
        seed: of the drawing.
        seconds: time limit of every single call (only where SIGALRM exists, and in the main thread).

    Returns:
        Report: never raises for what the environment does, except for killing the process.
    """
    trial = Trial(make, [dict(row) for row in rows] or [{}], list(calls), seed, seconds)
    findings = []
    for name, check in CHECKS.items():
        stop = bool(findings) and findings[0].status == "failed" and name != "tools"
        try:
            if stop or trial.broken:
                raise CheckSkipped(trial.broken or "there are no usable tools")
            findings.append(Finding(name, "ok", check(trial)))
        except CheckSkipped as reason:
            findings.append(Finding(name, "skipped", str(reason)))
        except CheckFailed as reason:
            findings.append(Finding(name, "failed", str(reason)))
        except (Exception, SystemExit, TimeUp) as error:  # noqa: BLE001 - the environment's; it is the verdict
            findings.append(
                Finding(name, "failed", f"raised {type(error).__name__}: {' '.join(str(error).split())[:200]}")
            )
            if name == "reset":
                trial.broken = "reset fails"
    return Report(getattr(make, "__name__", type(make).__name__), tuple(findings))
