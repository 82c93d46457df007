"""The report's gallery: what the policy wrote, the feedback it got, and the recoveries it then tried.

Every text of a rollout goes through `escape`; nothing a model wrote reaches the page as markup.
"""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass

from fission_grpo.run_files import Instance, Run
from fission_grpo.trajectory import Message

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
