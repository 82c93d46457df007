"""What `simulator check` writes: tables for the terminal, and `report.md` with examples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from fission_grpo.evaluation.rates import Share
from fission_grpo.evaluation.rates_table import aligned, share_row
from fission_grpo.simulator.attempts_file import Attempts
from fission_grpo.simulator.instances import Instance
from fission_grpo.simulator.leak_forms import how_leaked
from fission_grpo.simulator.prompt import failure_text
from fission_grpo.simulator.quality import Quality, Said
from fission_grpo.simulator.said_kinds import said_kinds, true_kinds
from fission_grpo.simulator.specificity import is_specific
from fission_grpo.simulator.usefulness import FIXED, SHUFFLED, Gain, Usefulness

EXAMPLES = 3
"""Examples of each sort in the report. [ours]"""
LONGEST = 2_400
"""Longest failure shown in an example, in characters. [ours]"""


def quality_table(groups: Sequence[Quality]) -> str:
    """The quality of one source, a block for each group of instances, as plain text."""
    rows: list[tuple[str, ...]] = []
    for one in groups:
        rows.append((f"{one.name}: {one.instances:,} instances, {one.distinct:,} different texts",))
        rows.append(share_row("answered", one.answered, "instances"))
        rows.append(share_row("  by the first source", one.own, "instances"))
        rows += [("  not answered", "", "", f"{count:,} {reason}") for reason, count in one.vain.items()]
        rows.append(share_row("leaks", one.leak, "texts"))
        rows += [("  " + form, "", "", f"{count:,}") for form, count in one.forms.items()]
        rows.append(share_row("names a nested field", one.paths, "texts"))
        rows.append(share_row("specific", one.specific, "texts"))
        rows.append(share_row("names the true kind", one.agrees, "texts"))
        rows.append(share_row("names another kind", one.disagrees, "texts"))
        rows.append(share_row("names no kind", one.no_kind, "texts"))
        if one.judged_leak is not None:
            rows.append(share_row("leaks, by the judge", one.judged_leak, "texts judged"))
        if one.judged_kind is not None:
            rows.append(share_row("true kind, by the judge", one.judged_kind, "texts judged"))
        rows.append(("characters", f"{one.characters[0]:g}", f"95%: {one.characters[1]:g}", "median"))
        rows.append(("words", f"{one.words[0]:g}", f"95%: {one.words[1]:g}", "median"))
    return "\n".join(aligned(rows)).strip("\n")


def usefulness_table(rows: Sequence[Usefulness]) -> str:
    """The usefulness of every source as plain text; success and gains in points."""
    head = ("", "success, %", "95% interval", "over fixed", "95% interval", "over shuffled", "95% interval", "told")
    lines: list[tuple[str, ...]] = [head]
    for row in rows:
        cells = (*_success(row.success), *_gain(row.gains.get(FIXED)), *_gain(row.gains.get(SHUFFLED)))
        lines.append((row.source, *cells, f"{row.told:,} of {row.failures:,}"))
    return "\n".join(aligned(lines))


def report(source: str, said: Sequence[Said], groups: Sequence[Quality]) -> str:
    """`report.md` without usefulness: the table, and examples of leaks, of vague and wrong texts, and of good ones."""
    parts = [
        f"# Diagnoses of `{source}`",
        "What the source says, before the guard of training replaces what leaks. Intervals are Wilson's 95%, over "
        "texts. Seen APIs are those of the training file, whose rows are asked about here too. Kinds are read from "
        "words by patterns (`simulator/said_kinds.py`).",
        _block(quality_table(groups)),
    ]
    told = [one for one in said if one.text]
    leaking = [one for one in told if how_leaked(one.text or "", one.instance.failure)]
    vague = [one for one in told if not is_specific(one.text or "", one.instance.failure)]
    other = [one for one in told if (kinds := said_kinds(one.text or "")) and not kinds & true_kinds(one.instance)]
    bad = {id(one) for one in (*leaking, *vague, *other)}
    good = [one for one in told if id(one) not in bad]
    for title, some in (
        ("Leaks", leaking),
        ("Not specific", vague),
        ("Another kind of error", other),
        ("Nothing to object to", good),
    ):
        parts += [f"## {title}: {len(some):,}", *(_example(one) for one in some[:EXAMPLES])]
    return "\n\n".join(parts) + "\n"


def usefulness_report(
    rows: Sequence[Usefulness],
    held: Attempts,
    instances: Mapping[str, Instance],
    simulator: str,
    picture: str | None,
) -> str:
    """The report's part on usefulness, with failures that the simulator's text helped more than the fixed one."""
    first = max((row.failures for row in rows), default=0)
    attempts = max((row.success.of for row in rows), default=0)
    parts = [
        "# Usefulness",
        f"{first:,} failures, {attempts:,} attempts with each source, by a policy that learns nothing. Intervals: "
        "bootstrap over failures; gains are paired, in points. `told` counts failures whose text is the source's own; "
        f"the others were told the fixed text. `{SHUFFLED}`: another failure's diagnosis of `{simulator}`, of the "
        "same kind of error.",
        _block(usefulness_table(rows)),
    ]
    if picture:
        parts.append(f"![success of the next attempt by source]({picture})")
    for row in rows:
        lost = "; ".join(f"{reason} ({count:,})" for reason, count in row.vain.items())
        same = f"; same text as `{simulator}`: {row.same:,}" if row.same else ""
        if lost or same:
            parts.append(f"- `{row.source}`: {row.leaks:,} leaks{'; said nothing: ' + lost if lost else ''}{same}")
    helped = sorted(instances, key=lambda one: -_more(held, simulator, one))[:EXAMPLES]
    shown = [one for one in helped if _more(held, simulator, one) > 0 and (simulator, one) in held.feedback]
    parts.append("## Where it helped most")
    for one in shown:
        text = held.feedback[simulator, one].text
        counts = ", ".join(_counts(held, name, one) for name in (FIXED, SHUFFLED, simulator))
        parts.append(_shown_failure(instances[one], text, f"Mended: {counts}."))
    return "\n\n".join(parts) + "\n"


def _more(held: Attempts, simulator: str, failure: str) -> float:
    """How much more often one failure was mended with the simulator's text than with the fixed one."""
    rates = []
    for name in (simulator, FIXED):
        outcomes = held.outcomes.get((name, failure), {})
        rates.append(sum(outcomes.values()) / len(outcomes) if outcomes else 0.0)
    return rates[0] - rates[1]


def _counts(held: Attempts, name: str, failure: str) -> str:
    outcomes = held.outcomes.get((name, failure), {})
    return f"{sum(outcomes.values())} of {len(outcomes)} with `{name}`"


def _example(one: Said) -> str:
    reading = ", ".join(sorted(said_kinds(one.text or ""))) or "none"
    form = how_leaked(one.text or "", one.instance.failure)
    leak = f" Leak: {form}." if form else ""
    true = ", ".join(sorted(true_kinds(one.instance)))
    return _shown_failure(one.instance, one.text or "", f"Kind read: {reading}; true: {true}.{leak}")


def _shown_failure(instance: Instance, text: str, note: str) -> str:
    context = failure_text(instance.failure, LONGEST).partition("# Dialogue\n")[2]
    return f"`{instance.origin}`, {instance.api}. {note}\n\n{_block(context)}\n\n> {' '.join(text.split())}"


def _block(text: str) -> str:
    """Text as a block of Markdown that no backticks in it can end."""
    return "\n".join(f"    {line}" for line in text.split("\n"))


def _success(success: Share) -> Iterator[str]:
    yield "-" if success.rate is None else f"{100 * success.rate:.1f}"
    yield "-" if success.interval is None else f"{100 * success.interval[0]:.1f} to {100 * success.interval[1]:.1f}"


def _gain(gain: Gain | None) -> Iterator[str]:
    yield "-" if gain is None else f"{100 * gain.change:+.1f}"
    interval = gain.interval if gain is not None else None
    yield "-" if interval is None else f"{100 * interval[0]:+.1f} to {100 * interval[1]:+.1f}"
