"""Does an environment keep the contract fission relies on? Every check ends in a verdict, whatever happens.

report = check_environment(MyEnvironment, rows=[{"scenario": "..."}])
print(report)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fission_grpo.environment_checks import CHECKS, CheckFailed, CheckSkipped
from fission_grpo.environment_trial import Trial
from fission_grpo.trajectory import ToolCall
from fission_grpo.watch import TimeUp


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
