"""Signs in a training log that a run learns nothing or goes wrong, each with what to do about it.

`check_health` reads one row per cycle, as `training.callbacks.HealthWarnings` keeps them (docs/fission-grpo.md has the
keys). The same rows give the same findings during training, in `fission-grpo doctor` and in the report. Thresholds are
[ours]: they find most runs of docs/evidence.md whose policies no longer stopped, and few where nothing changes.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

Row = Mapping[str, float]

CYCLE_ROWS = "FissionCycles"
"""Name under which a trainer's state holds one row per cycle, among the states of its callbacks."""

METRICS = ("fission/", "recovery/", "feedback/", "env/", "completions/", "reward")
"""Beginnings of the keys that `check_health` reads, besides step, learning_rate, loss and grad_norm."""

CYCLES = 5
"""Least cycles that make a finding, and cycles at the beginning and end that are compared. [ours]"""

RECENT = 4 * CYCLES
"""Last cycles that are looked at for variance, all of them in a shorter run; and explore cycles with failures after
which a recover cycle should have run. [ours]"""

MOSTLY = 0.95
"""Share of groups without variance in these cycles that makes a finding. [ours]"""

RISE = 0.2
"""Growth of a rate from the first to the last cycles that makes a finding. [ours]"""

FALL, FALL_CYCLES, FALL_SPREADS = 0.2, 10, 5.0
"""A fall of first-try success to its mean in this many last cycles makes a finding, after as many others, if it is at
least this large, and at least this many standard errors of such a difference: batches differ in their tasks. [ours]"""

COLLAPSED, COLLAPSED_CYCLES, COLLAPSED_SPREADS, BEFORE = 1 / 3, 3, 3.0, 6
"""So do at least 3 last cycles that are all below this share of the mean of at least 6 others, and below each of
them. In simulated runs without any change 4 of 720 have a finding, though each cycle is looked at. [ours]"""

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
    "loss and gradients": (CYCLES, "learning_rate", ("not_finite",)),
    "reward variance": (
        *(CYCLES, "fission/frac_zero_std"),
        ("all_failed", "none_failed", "none_judged", "no_variance"),
    ),
    "recoveries": (2 * CYCLES, "recovery/frac_zero_std", ("no_recovery", "no_recovery_variance")),
    "first-try success": (2 * FALL_CYCLES, "fission/first_try_success", ("falling_first_try_success",)),
    "lengths": (2 * CYCLES, "fission/frac_zero_std", ("endless",)),
    "feedback": (CYCLES, "fission/pushed", ("no_feedback",)),
    "environments and rewards": (
        *(CYCLES, "fission/phase"),
        ("replay_mismatches", *(name.split("/")[1] for name in FAULTS)),
    ),
}
"""What `check_health` looks at: the least number of rows and the key they must have, and the names of its findings."""


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
        rows: mappings from metric to number, one for each cycle. Means of several cycles, as in a
            `trainer.state.log_history` with logging_steps above 1, say less. Rows of anything else than training
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


def health_topics(rows: Iterable[Row]) -> tuple[list[str], dict[str, int]]:
    """Return the topics without a finding, and those with too few rows to say so, each with the rows it needs.

    A run without recovery, such as plain GRPO, is not asked for the topics about it.
    """
    rows = list(rows)
    found = {finding.name for finding in check_health(rows)}
    recovers = any("fission/pushed" in row for row in rows)
    well, unknown = [], {}
    for topic, (least, key, names) in TOPICS.items():
        if found & {*names} or (topic in ("recoveries", "feedback") and not recovers):
            continue
        if sum(key in row for row in rows) < least:
            unknown[topic] = least
        else:
            well.append(topic)
    return well, unknown


def _not_finite(rows: Sequence[Row]) -> HealthWarning | None:
    updates = [row for row in rows if "learning_rate" in row]
    broken = [not math.isfinite(row.get("loss", 0) + row.get("grad_norm", 0)) for row in updates]
    bad = updates[len(updates) - len([*itertools.takewhile(bool, reversed(broken))]) :]
    # by steps, as loss and gradient are known where the trainer logs; a few at the start are normal in float16
    if len(bad) < 2 or bad[-1].get("step", 0) - bad[0].get("step", 0) < CYCLES - 1:
        return None
    return HealthWarning(
        "not_finite",
        f"{_times(bad, 'updates')} loss or gradient was no finite number",
        "Lower learning_rate, set max_grad_norm to 1, and train in bfloat16 or float32 instead of float16.",
    )


def _unvaried(explores: Sequence[Row]) -> HealthWarning | None:
    """A finding where all rollouts fail, none fails, or the rewards in each group are equal."""
    recent = explores[-RECENT:]
    if len(recent) < CYCLES:
        return None
    threshold = "failure_threshold is compared with the sum of all rewards, each times its weight"
    share = _mean(recent, "fission/frac_zero_std")
    flat = share >= MOSTLY
    success = {row.get("fission/success") for row in recent}
    if success == {0}:
        name, message = "all_failed", "every explore rollout failed"
        advice = f"If some of these are right, lower failure_threshold: {threshold}."
        if flat:
            advice = "Take easier tasks, give partial reward, raise num_generations, or train on demonstrations first."
    elif success == {1}:
        name, message = "none_failed", "no explore rollout failed"
        advice = f"If some of these are wrong, raise failure_threshold: {threshold}."
        if flat:
            advice = "The tasks are solved: stop here, or take harder ones."
    elif success == {None}:
        name, message, flat = "none_judged", "no rollout had a reward", True
        advice = "Read the warnings about the environment or the reward functions: they returned None, or failed."
    elif flat:
        name = "no_variance"
        message = (
            f"all rewards in {'each explore group' if share == 1 else f'{share:.0%} of the explore groups'} were equal"
        )
        advice = "Raise num_generations or temperature, take tasks that are sometimes solved, or give partial reward."
    else:
        return None
    learned = ", so that the rewards taught nothing" if flat and (share == 1 or name != "no_variance") else ""
    where = _times(recent, "explore cycles")
    return HealthWarning(name, f"{where} {message}{learned}; mean reward {_mean(recent, 'reward'):.3g}", advice)


def _unvaried_recoveries(recovers: Sequence[Row]) -> HealthWarning | None:
    recent = recovers[-RECENT:]
    share = _mean(recent, "recovery/frac_zero_std")
    if len(recent) < 2 * CYCLES or share < MOSTLY:  # of fewer groups each
        return None
    rate = _mean(recent, "recovery/rate")
    advice = "Raise num_recovery_generations, so that right and wrong recoveries stand in one group."
    if rate < 0.05:
        advice = "Give feedback that says more (feedback: environment,rules), or take easier tasks."
    elif rate > 0.95:
        advice = "Lower recovery_ratio, or take harder tasks."
    which = "a failure" if share == 1 else f"{share:.0%} of the failures"
    message = (
        f"{_times(recent, 'recover cycles')} all recoveries of {which} had the same reward; {rate:.0%} were right"
    )
    return HealthWarning("no_recovery_variance", message, advice)


def _falling_success(explores: Sequence[Row]) -> HealthWarning | None:
    rows = [row for row in explores if "fission/first_try_success" in row]
    rates = [row["fission/first_try_success"] for row in rows]
    for count in range(COLLAPSED_CYCLES, min(FALL_CYCLES, len(rates) - BEFORE) + 1):
        before, last = rates[:-count], rates[-count:]
        high, low = fmean(before), fmean(last)
        variance = fmean((one - other) ** 2 for one, other in itertools.pairwise(before)) / 2
        spread = math.sqrt(variance * (1 / count + 1 / len(before)))
        collapsed = max(last) < min(COLLAPSED * high, *before) and high - low >= COLLAPSED_SPREADS * spread
        fell = count == FALL_CYCLES <= len(before) and high - low >= FALL_SPREADS * spread
        if high - low >= FALL and (collapsed or fell):
            return HealthWarning(
                "falling_first_try_success",
                f"success without any error fell from {high:.0%} to {low:.0%} in the last {count} explore cycles "
                f"(from step {rows[-count].get('step', 0):.0f})",
                "Set beta to 0.04 or higher, lower learning_rate or recovery_ratio, and go back to a checkpoint "
                "before the fall.",
            )
    return None


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
    if recovers or len(failed) < RECENT:
        return None
    due = 1 / (failed[-1].get("fission/recoveries_per_explore") or 1.0)  # explore cycles before the first one
    pushed, too_long = (sum(row.get(f"fission/{name}", 0) for row in failed) for name in ("pushed", "too_long"))
    if not pushed and too_long:
        message, advice = (
            "every corrective instance was too long",
            "Lower max_completion_length or shorten the prompts.",
        )
    elif not pushed:
        message, advice = "no failure became a corrective instance", "Set max_depth to 1; at 0 nothing is recovered."
    elif len(explores) < due:
        message = f"recovery_ratio asks for one after {math.ceil(due - 1e-6)}"
        advice = "Raise recovery_ratio, or train longer."
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


def _times(rows: Sequence[Row], what: str) -> str:
    return f"in the last {len(rows)} {what} (from step {rows[0].get('step', 0):.0f})"


def _mean(rows: Sequence[Row], name: str) -> float:
    values = [row[name] for row in rows if row.get(name) is not None]
    return sum(values) / len(values) if values else 0.0


def _share_of_failures(rows: Sequence[Row], kind: str) -> float:
    failures = sum(value for row in rows for key, value in row.items() if key.startswith("fission/kind/"))
    return sum(row.get(kind, 0) for row in rows) / failures if failures else 0.0
