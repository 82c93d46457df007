"""Evaluations in a report: which two are compared, what the comparison says, and which cases are shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from fission_grpo.evaluation.compare import Comparison, NotComparable, comparison_text, difference_text
from fission_grpo.evaluation.compare import compare as compare_cases
from fission_grpo.evaluation.metrics import CaseSummary, Metrics, compute_metrics, retry_loops, summarize
from fission_grpo.evaluation.records import CaseRecord
from fission_grpo.report.charts import FAMILIES, family
from fission_grpo.report.run import Evaluation, Run

SAME_COST = 0.05  # largest relative difference of generated tokens at equal cost [ours]
MAX_CASES = 90  # of all evaluations on a page, but at least MIN_CASES of each outcome and kind [ours]
MIN_CASES = 2
MAX_KINDS = 8  # of an outcome; rarer ones are shown together [ours]
LOOPED = "Failed after repeating the same failing call"
OUTCOMES = (
    "Failed after an error",
    LOOPED,
    "Recovered from an error",
    "Failed without an error",
    "With an error, not judged",
    "Could not be run",
)


@dataclass(frozen=True)
class EvaluationDetail:
    """An evaluation with its cases by outcome and kind."""

    label: str
    metrics: Metrics
    cases: Mapping[str, Mapping[str, Sequence[CaseRecord]]]


def latest_evaluations(runs: Sequence[Run]) -> dict[str, Evaluation]:
    """Return the last evaluation of each name, in the order of FAMILIES and of training steps.

    Different evaluations of the same name in several runs get the run's name in parentheses.
    """
    newest = {(run.name, evaluation.name): evaluation for run in runs for evaluation in run.evaluations}
    by_name: dict[str, dict[Evaluation, str]] = {}
    for (run_name, name), evaluation in newest.items():
        by_name.setdefault(name, {}).setdefault(evaluation, run_name)
    labelled = {
        name if len(same) == 1 else f"{name} ({run_name})": evaluation
        for name, same in by_name.items()
        for evaluation, run_name in same.items()
    }
    return dict(sorted(labelled.items(), key=lambda item: (FAMILIES.index(family(item[0])), item[1].step > 0)))


def compared_pair(headline: Mapping[str, Evaluation]) -> tuple[str, str] | None:
    """The labels of the two evaluations that a report compares: GRPO and Fission-GRPO, or the only two there are."""
    families = {name: [label for label in headline if family(label) == name] for name in ("grpo", "fission")}
    if all(len(labels) == 1 for labels in families.values()):
        return families["grpo"][0], families["fission"][0]
    return tuple(headline) if len(headline) == 2 else None  # pyright: ignore[reportReturnType]


def summarize_evaluations(headline: Mapping[str, Evaluation]) -> tuple[str, Comparison | None]:
    """Say in words what the evaluations show, with the paired comparison of two if their cases can be compared."""
    if not headline:
        return "No held-out evaluation yet. To evaluate: fission-grpo eval --model RUN_DIR --output RUN_DIR.", None
    if unfinished := _tell_unfinished(headline):
        return unfinished, None
    if len(headline) == 1:
        return _summarize_one(*next(iter(headline.items()))), None
    if (pair := compared_pair(headline)) is None:
        return "Last evaluation of each policy. To compare two of them task by task: fission-grpo compare A B.", None
    a, b = (headline[label] for label in pair)
    if a.cases is None or b.cases is None:
        absent = " and ".join(label for label in pair if headline[label].cases is None)
        advice = "With the eval-NAME folders of both they are compared task by task; overlap of intervals is no test."
        return f"No verdict: the cases of {absent} are not here. {advice}", None
    tasks_a, tasks_b = a.cases.manifest.tasks, b.cases.manifest.tasks
    if any(tasks_a.get(name) != tasks_b.get(name) for name in ("kind", "sha256")):
        kinds = " and ".join(str(tasks.get("environment") or tasks.get("kind")) for tasks in (tasks_a, tasks_b))
        return f"No verdict: {' and '.join(pair)} were evaluated on different tasks ({kinds}).", None
    try:
        comparison = replace(compare_cases(a.cases, b.cases), name_a=pair[0], name_b=pair[1])
    except NotComparable as error:
        return f"No verdict: {' '.join(str(error).split())}.", None
    tokens = a.generated_tokens, b.generated_tokens
    apart = (max(tokens) - min(tokens)) / max(*tokens, 1)
    cost = f" Their generated tokens differ by {100 * apart:.0f}%, so this is not a comparison at equal cost."
    text = comparison_text(comparison) + (cost if min(tokens) and apart > SAME_COST else "")
    return text + _against_untrained(headline, pair), comparison


def _against_untrained(headline: Mapping[str, Evaluation], pair: tuple[str, str]) -> str:
    """Success of two trained policies less that of the one before training, if there is one on the same cases."""
    before = [label for label, one in headline.items() if label not in pair and one.cases and not one.step]
    if len(before) != 1 or not all(headline[label].step for label in pair):
        return ""
    parts = []
    for label in pair:
        try:
            change = compare_cases(headline[before[0]].cases, headline[label].cases).differences[0]  # pyright: ignore
        except NotComparable:
            return ""
        parts.append(f"{label} {difference_text(change)}")
    return f" Success less that before training ({before[0]}): {'; '.join(parts)}."


def _summarize_one(label: str, one: Evaluation) -> str:
    if one.success is None:
        return f"{label}: nothing judges these cases, so there are errors but no rate of success."
    interval = (
        "" if one.success_ci is None else ", 95% CI {:.1f} to {:.1f}".format(*(100 * at for at in one.success_ci))
    )
    what, share = "tasks" if one.samples == 1 else "samples", f"{100 * one.success:.1f}%{interval}"
    text = f"{label} solved {round(one.success * one.tasks):,} of {one.tasks:,} {what} ({share})"
    return text + f", and {one.recovered:,} of the {one.error_cases:,} in which a tool call failed."


def _tell_unfinished(headline: Mapping[str, Evaluation]) -> str:
    """Say which evaluations have cases left, "" if none: the cases that end first need not be like the others."""
    runs = {label: one.cases for label, one in headline.items() if one.cases is not None and one.cases.unfinished}
    parts = ", ".join(f"of {label} {run.unfinished}" for label, run in runs.items())
    return f"No verdict yet: {parts}. A stopped evaluation goes on with the same command." if parts else ""


def describe_evaluations(headline: Mapping[str, Evaluation]) -> list[EvaluationDetail]:
    """The rates and the cases of each evaluation whose cases are there."""
    details = []
    for label, evaluation in headline.items():
        if evaluation.cases is not None:
            metrics = compute_metrics(evaluation.cases.records)
            details.append(EvaluationDetail(label, metrics, _group_cases(evaluation.cases.records)))
    return details


def case_limit(details: Sequence[EvaluationDetail]) -> int:
    """How many cases of each outcome and kind are shown."""
    groups = sum(len(kinds) for detail in details for kinds in detail.cases.values())
    return max(MIN_CASES, MAX_CASES // max(groups, 1))


def _group_cases(records: Sequence[CaseRecord]) -> dict[str, dict[str, list[CaseRecord]]]:
    """Cases by outcome, in the order of OUTCOMES, and by the kind of their first error. Flawless ones are left out."""
    groups: dict[str, dict[str, list[CaseRecord]]] = {outcome: {} for outcome in OUTCOMES}
    for record in records:
        if (outcome := _outcome(summarize(record))) is not None:
            groups[outcome[0]].setdefault(outcome[1], []).append(record)
    for outcome, kinds in groups.items():
        frequent = sorted(kinds, key=lambda kind: -len(kinds[kind]))
        groups[outcome] = {kind: kinds[kind] for kind in frequent[:MAX_KINDS]}
        if rare := [record for kind in frequent[MAX_KINDS:] for record in kinds[kind]]:
            groups[outcome]["other"] = rare
    return {outcome: kinds for outcome, kinds in groups.items() if kinds}


def _outcome(case: CaseSummary) -> tuple[str, str] | None:
    """One of OUTCOMES and a kind within it; None for a success without an error."""
    record = case.record
    if record.missing is not None:
        return "Could not be run", record.missing
    if case.own:
        kind = str(case.own[0].kind).replace("_", " ")
        if record.success is None:
            return "With an error, not judged", kind
        if record.success:
            return "Recovered from an error", kind
        return LOOPED if retry_loops(case)[0] else "Failed after an error", kind
    if record.success is not False:
        return None
    return "Failed without an error", (record.verdict or "wrong result") if record.calls else "made no call"
