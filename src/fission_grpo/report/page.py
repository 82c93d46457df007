"""`fission-grpo report RUN_DIR`: one self-contained HTML page of a run, or of several arms, with its charts as PNGs.

The page has no scripts and asks no other machine for anything; texts of rollouts are escaped (see `gallery`).
"""

from __future__ import annotations

import argparse
import base64
import html
import re
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fission_grpo.core.errors import RunFileError
from fission_grpo.core.types import Message
from fission_grpo.report.charts import (
    BUFFER,
    FAMILIES,
    LEARNING,
    RECOVERY,
    REWARDS,
    TOKENS,
    Chart,
    arm_colors,
    draw_curves,
    draw_error_kinds,
    family,
)
from fission_grpo.report.run import Evaluation, Instance, Run, read_runs

SHOWN = 30  # most instances in a report


LONGEST = 1600  # characters of one text


OPEN_RECOVERIES = 2  # distinct recoveries shown without unfolding


TAGS = re.compile(r"&lt;/?(?:tool_call|tool_response|think)&gt;")


CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")


@dataclass(frozen=True)
class _Recovery:
    """A distinct recovery of a group: its text, reward and how often the group wrote it."""

    text: str
    reward: float | None
    times: int


def gallery(runs: Sequence[Run]) -> str:
    """HTML of at most SHOWN instances, spread evenly over training and over runs, oldest first."""
    with_any = [run for run in runs if run.instances]
    if not with_any:
        return '<p class="soft">This run pushed no corrective instances.</p>'
    parts = []
    for run in with_any:
        retried = [item for item in run.instances if item.retried_at is not None]
        retried.sort(key=lambda item: item.retried_at or 0)
        pool = retried or list(run.instances)
        chosen = evenly(pool, max(1, SHOWN // len(with_any)))
        kind = "retried" if retried else "pushed (none was retried yet)"
        which = f"all {len(pool)}" if len(chosen) == len(pool) else f"{len(chosen)} of {len(pool)}"
        spaced = "" if len(chosen) == len(pool) else ", evenly spaced over training"
        if len(with_any) > 1:
            parts.append(f"<h3>{escape(run.name)}</h3>")
        parts.append(
            f'<p class="soft">Showing {which} {kind} instances{spaced}, newest last; {len(run.instances)} were pushed '
            "in all. Badges: ▲ rewarded above the failed rollout, = the same, ▼ below.</p>"
        )
        parts.extend(_card(item) for item in chosen)
    return "\n".join(parts)


def evenly(items: Sequence[Instance], most: int) -> list[Instance]:
    """At most `most` items at even distances, first and last included: of 7 items, 3 are numbers 0, 3 and 6."""
    if len(items) <= most:
        return list(items)
    if most == 1:
        return [items[-1]]
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]


def escape(text: str) -> str:
    """Text as HTML text, quotes included; control characters and lone surrogates become U+FFFD."""
    return html.escape(CONTROL.sub("\ufffd", text))


def _card(item: Instance) -> str:
    when = f"Failed at step {item.step}"
    if item.retried_at is not None:
        when += f", retried at step {item.retried_at}"
    chips = [f'<span class="chip">{escape(item.kind.replace("_", " "))}</span>']
    if item.depth > 1:
        chips.append(f'<span class="chip">depth {item.depth}</span>')
    if item.leaked:
        chips.append('<span class="chip warn">leak replaced</span>')
    if item.fallback is not None:
        chips.append(f'<span class="chip warn">fallback: {escape(item.fallback)}</span>')
    if item.dropped is not None:
        chips.append(f'<span class="chip warn">dropped: {escape(item.dropped)}</span>')
    return (
        '<article class="card instance">'
        f'<div class="head"><span class="when">{when}</span>{"".join(chips)}'
        f'<span class="task">{escape(item.root)}</span></div>'
        f'<div class="steps"><div><div class="label">What the policy wrote {_badge(item.reward, None)}</div>'
        f"{_pre(item.failed, 'failed')}"
        f'<div class="label">Feedback, from {escape(item.source)}</div>{_pre(item.feedback, "feedback")}</div>'
        f"<div>{_recoveries(item)}</div></div>"
        f"<details><summary>The recovery prompt</summary>{_prompt(item.prompt)}</details></article>"
    )


def _recoveries(item: Instance) -> str:
    if not item.completions:
        return '<div class="label">No recoveries</div>'
    badges = "".join(_badge(reward, item.reward) for reward in item.rewards)
    distinct = _distinct(item)
    blocks = [_recovery(recovery, item.reward) for recovery in distinct]
    shown, more = blocks[:OPEN_RECOVERIES], blocks[OPEN_RECOVERIES:]
    folded = f"<details><summary>{len(more)} more</summary>{''.join(more)}</details>" if more else ""
    return f'<div class="label">{len(item.rewards)} recoveries {badges}</div>{"".join(shown)}{folded}'


def _recovery(recovery: _Recovery, before: float | None) -> str:
    times = f"<span>written {recovery.times} times</span>" if recovery.times > 1 else ""
    tone = _tone(recovery.reward, before) or "flat"
    return f'<div class="label">{_badge(recovery.reward, before)}{times}</div>{_pre(recovery.text, tone)}'


def _distinct(item: Instance) -> list[_Recovery]:
    """Equal recoveries counted once, best reward first."""
    times: dict[tuple[str, float | None], int] = {}
    for text, reward in zip(item.completions, item.rewards, strict=True):
        times[text, reward] = times.get((text, reward), 0) + 1
    found = [_Recovery(text, reward, n) for (text, reward), n in times.items()]
    return sorted(found, key=lambda r: (r.reward is None, -(r.reward or 0.0)))


def _badge(reward: float | None, before: float | None) -> str:
    if reward is None:
        return '<span class="badge">not judged</span>'
    tone = _tone(reward, before)
    sign = {"good": "▲ ", "bad": "▼ ", "flat": "= "}.get(tone, "")
    return f'<span class="badge {tone}">{sign}{reward:.2f}</span>'.replace("-", "\u2212")


def _tone(reward: float | None, before: float | None) -> str:
    """`good`, `flat` or `bad` against the failed rollout's reward; empty where one of them is unknown."""
    if reward is None or before is None:
        return ""
    return "flat" if abs(reward - before) < 1e-6 else "good" if reward > before else "bad"


def _prompt(prompt: str | tuple[Message, ...]) -> str:
    if isinstance(prompt, str):
        return _pre(prompt, keep_end=True)
    blocks = []
    for message in prompt:
        content = message.get("content")
        text = content if isinstance(content, str) else "" if content is None else str(content)
        for call in message.get("tool_calls") or ():
            text += f"\n{call}"
        blocks.append(f'<div class="label">{escape(str(message.get("role", "")))}</div>{_pre(text, keep_end=True)}')
    return "".join(blocks)


def _pre(text: str, tone: str = "", keep_end: bool = False) -> str:
    """A block of escaped text, cut to LONGEST characters and saying so. Prompts keep their end, the rest the start."""
    cut = len(text) - LONGEST
    body = escape(text if cut <= 0 else text[-LONGEST:] if keep_end else text[:LONGEST])
    body = TAGS.sub(r'<span class="tag">\g<0></span>', body) or '<span class="cut">(empty)</span>'
    if cut > 0:
        note = f'<span class="cut">[{cut:,} characters left out]</span>'
        body = f"{note}\n{body}" if keep_end else f"{body}\n{note}"
    return f'<pre class="{tone}">{body}</pre>' if tone else f"<pre>{body}</pre>"


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


DEFINITIONS = (
    (
        "Success",
        "share of tasks (table) or of explore rollouts (charts) that end solved, as the task's judge decides.",
    ),
    ("Error case", "a rollout in which at least one tool call came back with an error."),
    ("Error recovery rate", "of the error cases, the share that still ends in success."),
    ("95% interval", "where the rate plausibly lies given the number of tasks; it says nothing about other seeds."),
    ("Generated tokens", "tokens the policy sampled in training so far, explore and recover cycles together."),
    ("Explore cycle", "rollouts of tasks from the data set; failures are diagnosed and pushed to the buffer."),
    ("Recover cycle", "rollouts of recovery tasks from the buffer: the failed turn, its feedback, try again."),
    ("Corrective instance", "one failure with its feedback, as a task of its own."),
    ("Improved", "retried, and at least one recovery was rewarded above the failed rollout."),
    ("Recovery rate", "share of a recover cycle's rollouts that succeed."),
    ("Zero variance", "a group whose rewards are all equal; its advantages are 0 and it teaches nothing."),
    (
        "Moving average",
        "centred, over a tenth of the run and at least 5 log rows; recovery rates weigh by error cases.",
    ),
    ("Rescued group", "an explore group without variance whose failure later gave a recovery group with variance."),
    ("Age", "optimizer steps from a failure to its retry."),
    ("Leak", "feedback that would have given the reference answer away; it was replaced before training."),
)


def write_report(run_dir: str | Path, output: str | Path | None = None) -> Path:
    """Write `report.html` and its PNGs to `output` (default: `RUN_DIR/report`) and return the page's path.

    `run_dir` is a run directory or a directory of several (arms). Raises RunFileError (a ValueError) naming file,
    line and field where there is nothing to read or it is broken, and ImportError without matplotlib.
    """
    run_dir = Path(run_dir)
    runs = read_runs(run_dir)
    folder = run_dir / "report" if output is None else Path(output)
    rows = headline_rows(runs)
    trained = sorted((run for run in runs if run.log_history), key=lambda run: FAMILIES.index(family(run.name)))
    colors = arm_colors([run.name for run in trained])
    # An arm and its evaluation may be named differently ("fission", "Fission-GRPO"): each gets its family's colour.
    row_colors = arm_colors([row.label for row in rows])
    sections = [
        ("Learning", draw_curves(trained, LEARNING, colors)),
        ("Recover cycles", draw_curves(trained, RECOVERY, colors)),
        ("Buffer", draw_curves(trained, BUFFER, colors)),
        ("Errors", draw_error_kinds(trained)),
        ("Reward", draw_curves(trained, REWARDS, colors)),
    ]
    sections = [(title, charts) for title, charts in sections if charts]
    page = _page(run_dir.resolve().name, runs, headline(rows, row_colors), sections)
    folder.mkdir(parents=True, exist_ok=True)
    for _, charts in sections:
        for chart in charts:
            (folder / f"{chart.stem}.png").write_bytes(chart.png)
    path = folder / "report.html"
    path.write_text(page, encoding="utf-8", errors="replace")
    return path


def report_command(argv: list[str] | None = None) -> int:
    """The `report` command; prints the page's path. Returns 0, or 1 after saying on stderr what is wrong."""
    parser = argparse.ArgumentParser("fission-grpo report", description="Write an HTML report of a training run.")
    parser.add_argument("run_dir", metavar="RUN_DIR", help="a run's output_dir, or a directory of several (arms)")
    parser.add_argument("--output", metavar="DIR", help="where to write report.html and the PNGs (RUN_DIR/report)")
    args = parser.parse_args(argv)
    try:
        path = write_report(args.run_dir, args.output)
    except RunFileError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except ImportError as error:
        print(f"error: the report needs matplotlib ({error}); pip install 'fission-grpo[report]'", file=sys.stderr)
        return 1
    print(path)
    return 0


def _page(name: str, runs: Sequence[Run], table: str, sections: Sequence[tuple[str, list[Chart]]]) -> str:
    style = Path(__file__).with_name("report.css").read_text(encoding="utf-8")
    with_instances = [run for run in runs if run.instances]
    outcomes = "".join(_outcomes(run, titled=len(with_instances) > 1) for run in with_instances)
    titles = [title for title, _ in sections] + (["Corrective instances"] if outcomes else []) + ["Gallery"]
    links = "".join(f'<a href="#{_anchor(title)}">{title}</a>' for title in [*titles, "What the numbers mean"])
    charts = "".join(_heading(t) + f'<div class="charts">{"".join(map(_figure, c))}</div>' for t, c in sections)
    notes = "".join(f"<p>{escape(note)}</p>" for run in runs for note in run.notes)
    notes = f'<div class="notes">{notes}</div>' if notes else ""
    if outcomes:
        outcomes = _heading("Corrective instances") + outcomes
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark"><meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">"
        f"<title>{escape(name)}: Fission-GRPO report</title>\n<style>\n{style}</style></head>\n"
        f'<body><main class="page"><header><p class="eyebrow">Fission-GRPO report</p><h1>{escape(name)}</h1>'
        f'<p class="soft facts">{escape(_facts(runs))}</p><nav>{links}</nav></header>\n'
        f"{table}{notes}\n{charts}\n{outcomes}\n"
        f"{_heading('Gallery')}\n{gallery(runs)}\n"
        f"<footer>{_heading('What the numbers mean')}<dl>"
        + "".join(f"<div><dt>{word}</dt><dd>{meaning}</dd></div>" for word, meaning in DEFINITIONS)
        + "</dl></footer></main></body></html>\n"
    )


def _anchor(title: str) -> str:
    return title.lower().replace(" ", "-")


def _heading(title: str) -> str:
    return f'<h2 id="{_anchor(title)}">{title}</h2>'


def _figure(chart: Chart) -> str:
    data = base64.b64encode(chart.png).decode("ascii")
    caption = escape(chart.caption)
    alt = escape(f"{chart.title}. {chart.caption}")
    return (
        f'<figure class="card"><img src="data:image/png;base64,{data}" alt="{alt}" width="928" height="592">'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _facts(runs: Sequence[Run]) -> str:
    trained = [run for run in runs if run.log_history]
    parts = [f"{len(trained)} arms: {', '.join(run.name for run in trained)}"] if len(trained) > 1 else []
    last = max((row.get("step", 0.0) for run in trained for row in run.log_history), default=0.0)
    tokens = max((row.get(TOKENS, 0.0) for run in trained for row in run.log_history), default=0.0)
    parts += [f"{last:,.0f} steps"] if last else []
    parts += [f"{tokens:,.0f} generated tokens"] if tokens else []
    return " · ".join([*parts, f"written {datetime.now(UTC):%Y-%m-%d %H:%M} UTC"])


def _outcomes(run: Run, titled: bool) -> str:
    """Tiles and a table by error kind: how many instances were pushed, and what became of them."""
    items = run.instances
    retried = [item for item in items if item.retried_at is not None]
    improved = [item for item in retried if item.improved]
    dropped = [item for item in items if item.retried_at is None and item.dropped is not None]
    tiles = [
        (len(items), "pushed to the buffer"),
        (len(retried), "retried in a recover cycle"),
        (_share(len(improved), len(retried)), "of the retried improved on the failure"),
        (len(items) - len(retried) - len(dropped), "still waiting at the end"),
        (len(dropped), "dropped, too old or no room"),
        (sum(item.leaked for item in items), "leaking diagnoses not used"),
    ]
    steps = [row["step"] for row in run.log_history if "fission/phase" in row and "step" in row]
    if any("fission/rescued_groups" in row for row in run.log_history) and len(set(steps)) == max(steps, default=0):
        rescued = sum(row.get("fission/rescued_groups", 0.0) for row in run.log_history)
        tiles.append((round(rescued), "groups rescued"))  # a sum only makes sense where every step was logged
    cells = "".join(f'<div class="card tile"><b>{value}</b><span>{what}</span></div>' for value, what in tiles)
    title = f"<h3>{escape(run.name)}</h3>" if titled else ""
    return f'{title}<div class="tiles">{cells}</div>{_by_kind(items)}{_in_vain(items)}'


def _by_kind(items: Sequence[Instance]) -> str:
    rows = []
    for kind, pushed in Counter(item.kind for item in items).most_common():
        retried = [item for item in items if item.kind == kind and item.retried_at is not None]
        improved = sum(item.improved for item in retried)
        rows.append((kind.replace("_", " "), pushed, len(retried), _share(improved, len(retried))))
    return _table(("Error kind", "Pushed", "Retried", "Improved"), rows)


def _in_vain(items: Sequence[Instance]) -> str:
    """How often which source of diagnoses was asked in vain, and why; nothing if none was."""
    reasons = Counter(one for item in items if item.fallback for one in item.fallback.split("; "))
    rows = [(reason, times, _share(times, len(items))) for reason, times in reasons.most_common()]
    return _table(("Diagnosis asked in vain", "Times", "Of all pushed"), rows) if rows else ""


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table whose first column is text and whose others are numbers."""
    body = []
    for first, *numbers in rows:
        cells = zip(head[1:], numbers, strict=True)
        told = "".join(f'<td class="n" data-label="{label}">{value}</td>' for label, value in cells)
        body.append(f'<tr><td class="arm">{escape(str(first))}</td>{told}</tr>')
    titles = "".join(f'<th class="n">{label}</th>' for label in head[1:])
    return (
        f'<div class="card table"><table><thead><tr><th>{head[0]}</th>{titles}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def _share(part: int, whole: int) -> str:
    """`_share(1, 8)` is 12.5%; of nothing, a dash."""
    return f"{100 * part / whole:.1f}%" if whole else "\u2013"
