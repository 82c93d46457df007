"""Signs in a training log that a run learns nothing or goes wrong, each with what to do about it.

`check_health` reads log rows as a trainer writes them (docs/fission-grpo.md has the keys). The same rows give the
same findings during training, in `fission-grpo doctor` and in the report. Thresholds are [ours]: they find the runs
of docs/evidence.md whose policies no longer stopped, and none of those that were well.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

Row = Mapping[str, float]

CYCLES = 5
"""Cycles in a row that make a finding, and cycles at the beginning and end that are compared. [ours]"""

UNFILLED = 4 * CYCLES
"""Explore cycles with failures after which a recover cycle should have run. [ours]"""

RISE = 0.2
"""Growth of a rate from the first to the last cycles that makes a finding. [ours]"""

FALL, SPREADS, FALL_CYCLES = 0.2, 3.0, 10
"""A fall of first-try success from its best to its last mean of this many cycles makes a finding if it is at least
this large, and at least this many standard errors of such a difference: batches differ in their tasks. [ours]"""

COLLAPSED, COLLAPSED_CYCLES = 1 / 3, 3
"""So do as many last cycles with less than this share of the mean before them. [ours]"""

COMMON = 0.2
"""Mean first-try success from which on a collapse is looked for. [ours]"""

LENGTHENED = 2.0
"""Growth of the mean completion length that makes a finding, if success does not rise with it. [ours]"""

PER_CYCLE = 1.0
"""Mean number of environment faults in a cycle that makes a finding. [ours]"""

FAULTY = 0.1
"""Share of failures on which a source of feedback raised an error that makes a finding. [ours]"""

MISMATCHED = 0.1
"""Share of replays with another result than the first time that makes a finding. [ours]"""

_TRY = "`fission-grpo check-environment` tries it."
FAULTS = {
    "env/timeouts": ("calls were stopped at tool_timeout", "Make the tool faster, or raise tool_timeout."),
    "env/crashes": ("calls ended their environment's process", "Make such a call alone to see the crash."),
    "env/broken": ("episodes had no reward, as their environment broke", f"Read the warning about it above; {_TRY}"),
    "env/restore_failed": ("calls of _restore failed", f"Correct _restore; {_TRY}"),
    "env/snapshot_failed": ("calls of _snapshot failed", f"Correct _snapshot; {_TRY}"),
    "env/other_tasks": ("replays began another task than the row's", f"Make reset depend on its row alone; {_TRY}"),
    "env/like_errors": (
        "tool results look like errors and count as successes",
        'Raise in the tool or return {"error": ...}, or describe such results by error_pattern.',
    ),
    "fission/unusable_rewards": ("rewards were no numbers", "Return a finite number, or None for no judgement."),
}
"""Counts of a cycle that should be rare: what is counted, and what to do."""


TOPICS = {
    "loss and gradients": ("not_finite",),
    "reward variance": ("all_failed", "none_failed", "none_judged", "no_variance"),
    "recoveries": ("no_recovery", "no_recovery_variance"),
    "first-try success": ("falling_first_try_success",),
    "lengths": ("endless",),
    "feedback": ("no_feedback",),
    "environments and rewards": ("replay_mismatches", *(name.split("/")[1] for name in FAULTS)),
}
"""What `check_health` looks at, with the names of the findings about it."""


@dataclass(frozen=True)
class HealthWarning:
    """A sign that something is wrong with a run."""

    name: str  # the same for each warning of its kind, such as "all_failed"
    message: str  # what was seen, and when
    advice: str  # what to do, in a sentence

    def __str__(self) -> str:
        return f"{self.message}. {self.advice}"


def check_health(rows: Iterable[Row]) -> list[HealthWarning]:
    """Return what is wrong in the log rows of one run, in order; nothing for a run that is well.

    Args:
        rows: mappings from metric to number, as in `trainer.state.log_history`. Rows of anything else than training
            cycles, and keys that nothing is known of, are ignored.
    """
    rows = list(rows)
    explores = [row for row in rows if "fission/frac_zero_std" in row]
    recovers = [row for row in rows if "recovery/frac_zero_std" in row]
    checks = (
        _not_finite(rows),
        _unvaried(explores),
        _unvaried_recoveries(recovers),
        _falling_success(explores),
        _endless(explores),
        _unfilled(explores, recovers),
        _without_feedback(rows),
        _other_replays(rows),
        *(_faults(name, rows) for name in FAULTS),
    )
    return [one for one in checks if one is not None]


def _not_finite(rows: Sequence[Row]) -> HealthWarning | None:
    updates = [row for row in rows if "learning_rate" in row]
    kept = [name for name in ("loss", "grad_norm") if any(name in row for row in updates)]
    # a reader of logs may have left out what is no finite number; a few at the start are normal in float16
    bad = _streak(updates, lambda row: not all(math.isfinite(row.get(name, math.nan)) for name in kept))
    if not bad:
        return None
    return HealthWarning(
        "not_finite",
        f"{_times(bad, 'updates')} loss or gradient was no finite number",
        "Lower learning_rate, set max_grad_norm to 1, and train in bfloat16 or float32 instead of float16.",
    )


def _unvaried(explores: Sequence[Row]) -> HealthWarning | None:
    """A finding where all rollouts fail, none fails, or the rewards in each group are equal."""
    threshold = "failure_threshold is compared with the sum of all rewards, each times its weight"
    flat = _streak(explores, lambda row: row["fission/frac_zero_std"] == 1)
    if same := _streak(explores, lambda row: row.get("fission/success") == 0):
        name, message = "all_failed", "every explore rollout failed"
        advice = f"If some of these are right, lower failure_threshold: {threshold}."
        if flat:
            advice = "Take easier tasks, give partial reward, raise num_generations, or train on demonstrations first."
    elif same := _streak(explores, lambda row: row.get("fission/success") == 1):
        name, message = "none_failed", "no explore rollout failed"
        advice = f"If some of these are wrong, raise failure_threshold: {threshold}."
        if flat:
            advice = "The tasks are solved: stop here, or take harder ones."
    elif same := _streak(explores, lambda row: "fission/success" not in row):
        name, message, flat = "none_judged", "no rollout had a reward", same
        advice = "Read the warnings about the environment or the reward functions: they returned None, or failed."
    elif same := flat:
        name, message = "no_variance", "all rewards in each explore group were equal"
        advice = "Raise num_generations or temperature, take tasks that are sometimes solved, or give partial reward."
    else:
        return None
    learned = ", so that the rewards taught nothing" if flat else ""
    where = _times(same, "explore cycles")
    return HealthWarning(name, f"{where} {message}{learned}; mean reward {_mean(same, 'reward'):.3g}", advice)


def _unvaried_recoveries(recovers: Sequence[Row]) -> HealthWarning | None:
    flat = _streak(recovers, lambda row: row["recovery/frac_zero_std"] == 1, 2 * CYCLES)  # of fewer groups each
    if not flat:
        return None
    rate = _mean(flat, "recovery/rate")
    advice = "Raise num_recovery_generations, so that right and wrong recoveries stand in one group."
    if rate < 0.05:
        advice = "Give feedback that says more (feedback: environment,rules), or take easier tasks."
    elif rate > 0.95:
        advice = "Lower recovery_ratio, or take harder tasks."
    where = _times(flat, "recover cycles")
    message = f"{where} all recoveries of a failure had the same reward; {rate:.0%} were right"
    return HealthWarning("no_recovery_variance", message, advice)


def _falling_success(explores: Sequence[Row]) -> HealthWarning | None:
    rows = [row for row in explores if "fission/first_try_success" in row]
    rates = [row["fission/first_try_success"] for row in rows]
    before, last = rates[:-COLLAPSED_CYCLES], rates[-COLLAPSED_CYCLES:]
    if len(before) >= CYCLES and fmean(before) >= COMMON and max(last) < COLLAPSED * fmean(before):
        first, high, low = 0, fmean(before), fmean(last)
    elif len(rows) >= 2 * FALL_CYCLES:
        means = [fmean(rates[k : k + FALL_CYCLES]) for k in range(len(rates) - FALL_CYCLES + 1)]
        first = max(range(len(means)), key=means.__getitem__)
        high, low = means[first], means[-1]
        variance = fmean((one - other) ** 2 for one, other in itertools.pairwise(rates)) / 2
        if high - low < max(FALL, SPREADS * math.sqrt(2 * variance / FALL_CYCLES)):
            return None
    else:
        return None
    return HealthWarning(
        "falling_first_try_success",
        f"success without any error fell from {high:.0%} (step {rows[first].get('step', 0):.0f}) to {low:.0%}",
        "Set beta to 0.04 or higher, lower learning_rate or recovery_ratio, and go back to a checkpoint before the "
        "fall.",
    )


def _endless(explores: Sequence[Row]) -> HealthWarning | None:
    """A finding where completions are cut off more and more, or only get longer."""
    if len(explores) < 2 * CYCLES:
        return None
    parts = explores[:CYCLES], explores[-CYCLES:]
    cut, length, success = (
        [_mean(part, name) for part in parts]
        for name in ("completions/clipped_ratio", "completions/mean_length", "fission/success")
    )
    turns = [_share_of_failures(part, "fission/kind/out_of_turns") for part in parts]
    if cut[1] - cut[0] >= RISE:
        sign = f"completions cut off at max_completion_length rose from {cut[0]:.0%} to {cut[1]:.0%}"
    elif turns[1] - turns[0] >= RISE and success[1] <= success[0]:
        sign = f"failures that ran out of turns rose from {turns[0]:.0%} to {turns[1]:.0%} of all failures"
    elif length[1] >= LENGTHENED * length[0] > 0 and success[1] <= success[0]:
        sign = f"completions grew from {length[0]:.0f} to {length[1]:.0f} tokens, without more success"
    else:
        return None
    advice = "Set beta to 0.04 or higher, lower learning_rate, and read some completions (log_completions)."
    return HealthWarning("endless", f"the policy stops less and less: {sign}", advice)


def _unfilled(explores: Sequence[Row], recovers: Sequence[Row]) -> HealthWarning | None:
    """A finding where failures are there, and no recover cycle has run."""
    failed = [row for row in explores if "fission/pushed" in row and row.get("fission/success", 1) < 1]
    if recovers or len(failed) < UNFILLED:
        return None
    pushed, too_long = (sum(row.get(f"fission/{name}", 0) for row in failed) for name in ("pushed", "too_long"))
    if not pushed and too_long:
        message, advice = (
            "every corrective instance was too long",
            "Lower max_completion_length or shorten the prompts.",
        )
    elif not pushed:
        message, advice = "no failure became a corrective instance", "Set max_depth to 1; at 0 nothing is recovered."
    else:
        message = f"the buffer holds {failed[-1].get('fission/buffer', 0):.0f} instances, too few for a recover cycle"
        advice = "Raise max_age_steps and buffer_capacity, or set recovery_batches to mixed, which needs fewer."
    return HealthWarning(
        "no_recovery", f"no recover cycle has run in {len(explores)} explore cycles: {message}", advice
    )


def _without_feedback(rows: Sequence[Row]) -> HealthWarning | None:
    """A finding where the first source of feedback never has a text, or a source often raises an error."""
    asked = [row for row in rows if row.get("fission/pushed", 0) > 0]
    if len(asked) < CYCLES:
        return None
    reasons: Counter[str] = Counter()
    for row in asked:
        reasons.update({key: value for key, value in row.items() if key.startswith("feedback/fallback/")})
    faults = sum(n for name, n in reasons.items() if name.rpartition("/")[2].startswith(("raised_", "returned_")))
    failures = sum(row["fission/pushed"] for row in asked)
    why = ", ".join(name.removeprefix("feedback/fallback/") for name, _ in reasons.most_common(2))
    if all(row.get("feedback/fallbacks", 0) >= row["fission/pushed"] for row in asked):
        message = f"in {len(asked)} cycles the first source of feedback had no usable text for any failure ({why})"
    elif faults >= FAULTY * failures:
        message = (
            f"sources of feedback raised errors or returned no text on {faults / failures:.0%} of failures ({why})"
        )
    else:
        return None
    return HealthWarning("no_feedback", message, "Correct that source, or leave it out of `feedback`.")


def _other_replays(rows: Sequence[Row]) -> HealthWarning | None:
    mismatches, replayed = (
        sum(row.get(f"env/{name}", 0) for row in rows) for name in ("replay_mismatches", "replayed")
    )
    if mismatches < CYCLES or mismatches < MISMATCHED * replayed:
        return None
    return HealthWarning(
        "replay_mismatches",
        f"{mismatches:.0f} calls had another result when they were repeated ({replayed:.0f} environments replayed)",
        "Make the environment deterministic, or define _snapshot and _restore: `fission-grpo check-environment`.",
    )


def _faults(name: str, rows: Sequence[Row]) -> HealthWarning | None:
    cycles = [row for row in rows if "fission/phase" in row]
    count = sum(row.get(name, 0) for row in cycles)
    if len(cycles) < CYCLES or count < PER_CYCLE * len(cycles):
        return None
    what, advice = FAULTS[name]
    return HealthWarning(name.split("/")[1], f"per cycle {count / len(cycles):.3g} {what}", advice)


def _streak(rows: Sequence[Row], holds: Callable[[Row], bool], least: int = CYCLES) -> list[Row]:
    """The last rows for which something holds one after another, if they are enough; else an empty list."""
    found: list[Row] = []
    for row in reversed(rows):
        if not holds(row):
            break
        found.insert(0, row)
    return found if len(found) >= least else []


def _times(rows: Sequence[Row], what: str) -> str:
    return f"in the last {len(rows)} {what} (from step {rows[0].get('step', 0):.0f})"


def _mean(rows: Sequence[Row], name: str) -> float:
    values = [row[name] for row in rows if name in row]
    return sum(values) / len(values) if values else 0.0


def _share_of_failures(rows: Sequence[Row], kind: str) -> float:
    failures = sum(value for row in rows for key, value in row.items() if key.startswith("fission/kind/"))
    return sum(row.get(kind, 0) for row in rows) / failures if failures else 0.0
