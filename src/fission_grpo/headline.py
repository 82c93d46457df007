"""The report's first table: each policy's newest held-out evaluation, and what may be concluded from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fission_grpo.gallery import escape
from fission_grpo.plots import FAMILIES, family
from fission_grpo.run_files import Evaluation, Run

SAME_COST = 0.05  # generated tokens that differ by more than this share are called unequal


@dataclass(frozen=True)
class Row:
    """A line of the headline table: `label` is the evaluation's name, with its run's where names repeat."""

    label: str
    evaluation: Evaluation


def headline_rows(runs: Sequence[Run]) -> list[Row]:
    """The last evaluation of each name, base first, then GRPO, then Fission, then the others as they come."""
    newest: dict[tuple[str, str], Evaluation] = {}
    for run in runs:
        for evaluation in run.evaluations:
            newest[run.name, evaluation.name] = evaluation
    by_name: dict[str, list[tuple[str, Evaluation]]] = {}
    for (run_name, name), evaluation in newest.items():
        same = by_name.setdefault(name, [])
        if evaluation not in [known for _, known in same]:
            same.append((run_name, evaluation))
    rows = [
        Row(name if len(same) == 1 else f"{name} ({run_name})", evaluation)
        for name, same in by_name.items()
        for run_name, evaluation in same
    ]
    return sorted(rows, key=lambda row: FAMILIES.index(family(row.label)))


def headline(rows: Sequence[Row], colors: Mapping[str, str]) -> str:
    """HTML of the comparison in words and of the table."""
    if not rows:
        return '<p class="verdict">No held-out evaluation yet: <code>eval.jsonl</code> is missing or empty.</p>'
    body = "".join(_row(row, colors[row.label]) for row in rows)
    return (
        f'{_verdict(rows)}<div class="card table"><table class="stack"><thead><tr><th>Policy</th><th>Success</th>'
        f'<th>Error recovery rate</th><th class="n">Generated tokens</th><th class="n">Step</th></tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _row(row: Row, color: str) -> str:
    e = row.evaluation
    success = _rate(e.success, e.success_ci, round(e.success * e.tasks), e.tasks, "tasks", color)
    if e.recovery_rate is None or e.recovery_ci is None:
        recovery = '<span class="soft">no error cases</span>'
    else:
        recovery = _rate(e.recovery_rate, e.recovery_ci, e.recovered, e.error_cases, "error cases", color)
    return (
        f'<tr><td class="arm"><span class="dot" style="background:{color}"></span>{escape(row.label)}</td>'
        f'<td data-label="Success"><div>{success}</div></td>'
        f'<td data-label="Error recovery"><div>{recovery}</div></td>'
        f'<td class="n" data-label="Tokens">{e.generated_tokens:,}</td>'
        f'<td class="n" data-label="Step">{e.step:,}</td></tr>'
    )


def _rate(rate: float, interval: tuple[float, float], k: int, n: int, what: str, color: str) -> str:
    low, high = interval
    return (
        f'<div class="rate">{100 * rate:.1f}%<small>{100 * low:.1f} to {100 * high:.1f}</small></div>'
        f'<div class="soft">{k} of {n} {what}</div>'
        f'<span class="scale" role="img" aria-label="{100 * rate:.1f} percent, 95% interval {100 * low:.1f} to '
        f'{100 * high:.1f}"><i style="left:{100 * low:.2f}%;width:{100 * (high - low):.2f}%;background:{color}"></i>'
        f'<b style="left:{100 * rate:.2f}%;background:{color}"></b></span>'
    )


def _verdict(rows: Sequence[Row]) -> str:
    """Fission against GRPO in words, given exactly one of each; else how to read the table."""
    fission = [row.evaluation for row in rows if family(row.label) == "fission"]
    grpo = [row.evaluation for row in rows if family(row.label) == "grpo"]
    if len(fission) != 1 or len(grpo) != 1:
        return '<p class="verdict">Held-out tasks, newest evaluation of each policy, with 95% intervals.</p>'
    ours, theirs = fission[0], grpo[0]
    parts = [_difference("success", ours.success, theirs.success, ours.success_ci, theirs.success_ci)]
    if ours.recovery_rate is not None and theirs.recovery_rate is not None and ours.recovery_ci and theirs.recovery_ci:
        rates = ours.recovery_rate, theirs.recovery_rate
        parts.append(_difference("error recovery", *rates, ours.recovery_ci, theirs.recovery_ci))
    text = f"On held-out tasks, Fission-GRPO against GRPO: {'; '.join(parts)}."
    apart = abs(ours.generated_tokens - theirs.generated_tokens) / max(
        ours.generated_tokens, theirs.generated_tokens, 1
    )
    if apart > SAME_COST:
        text += f" Their generated tokens differ by {100 * apart:.0f}%, so this is not a comparison at equal cost."
    return f'<p class="verdict">{text}</p>'


def _difference(
    what: str, ours: float, theirs: float, our_ci: tuple[float, float], their_ci: tuple[float, float]
) -> str:
    """`_difference("success", 0.6, 0.5, (0.56, 0.64), (0.46, 0.54))`: success +10.0 points, intervals apart."""
    points = 100 * (ours - theirs)
    sign = "+" if points > 0 else "\u2212" if points < 0 else "\u00b1"
    overlap = our_ci[0] <= their_ci[1] and their_ci[0] <= our_ci[1]
    return f"{what} {sign}{abs(points):.1f} points ({'intervals overlap' if overlap else 'intervals apart'})"
