"""How good diagnoses are by themselves: leaks and their forms, specificity, true kind, length, failures of the source.

What is judged is what a source says, before the guard of training (`feedback.FeedbackRequest`) replaces what leaks: a leak
here is a diagnosis lost there. Shares have Wilson's 95% intervals over texts.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from argparse import Namespace
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fission_grpo.evaluation.intervals import wilson
from fission_grpo.evaluation.metrics import Proportion
from fission_grpo.evaluation.tables import aligned, proportion_row
from fission_grpo.feedback.dataset import (
    TEST,
    TRAIN,
    FeedbackExample,
    load_examples,
)
from fission_grpo.feedback.prompt import failure_text
from fission_grpo.feedback.request import LEAK, FeedbackRequest
from fission_grpo.feedback.rules import MAX_LENGTH
from fission_grpo.feedback.sources import FeedbackSource
from fission_grpo.feedback.spec import (
    OPTIONS_HELP,
    SOURCE_FORMS,
    closing,
    endpoint_options,
    sources_from,
)
from fission_grpo.recipes.error_simulator.filters import is_specific
from fission_grpo.recipes.error_simulator.leak_forms import FORMS as LEAK_FORMS
from fission_grpo.recipes.error_simulator.leak_forms import how_leaked, paths_told
from fission_grpo.recipes.error_simulator.said_kinds import said_kinds, true_kinds
from fission_grpo.recipes.error_simulator.usefulness import (
    FIXED,
    SHUFFLED,
    Attempts,
    AttemptsFile,
    Gain,
    Usefulness,
    arms_of,
    measure,
    usefulness,
    usefulness_json,
)


@dataclass(frozen=True)
class Said:
    """What a chain of sources said of one instance.

    Args:
        instance: what it is about.
        text: without spaces around it, at most `MAX_LENGTH` characters; "" is silence on purpose, None no answer.
        source: that said it, "" without an answer.
        rejected: "source: reason" for each source asked in vain before.
        judged_leak, judged_kind: a model judge's verdicts, None without one.
    """

    instance: FeedbackExample
    text: str | None
    source: str = ""
    rejected: tuple[str, ...] = ()
    judged_leak: bool | None = None
    judged_kind: str | None = None


@dataclass(frozen=True)
class SourceMetrics:
    """Numbers of one group of instances.

    Args:
        name: of the group.
        instances: in it.
        answered: instances of which something was said; all further numbers but `leak` are of these texts.
        leak: texts that the guard objects to, of those with a reference that can be given away.
        forms: of these leaks, by `leak_forms.FORMS`; those that occur.
        paths: texts that name a nested field of the reference which the failed call does not have; the guard lets
            them pass.
        specific: texts that name the fault; see `specificity`.
        agrees: texts that name the true kind of error, among others maybe; see `said_kinds`.
        disagrees: texts that name other kinds only.
        no_kind: texts that name no kind.
        own: texts said by the first source.
        rejected: sources asked in vain, by "source: reason".
        distinct: different texts, of those answered.
        characters, words: median and 95th percentile of the texts' lengths.
        judged_leak, judged_kind: of those that a model judge had a verdict of: texts that leak by it, texts of the
            true kind by it. None without a judge.
    """

    name: str
    instances: int
    answered: Proportion
    leak: Proportion
    forms: dict[str, int]
    paths: Proportion
    specific: Proportion
    agrees: Proportion
    disagrees: Proportion
    no_kind: Proportion
    own: Proportion
    rejected: dict[str, int] = field(default_factory=dict)
    distinct: int = 0
    characters: tuple[float, float] = (0.0, 0.0)
    words: tuple[float, float] = (0.0, 0.0)
    judged_leak: Proportion | None = None
    judged_kind: Proportion | None = None


def ask_all(chain: Sequence[FeedbackSource], instances: Sequence[FeedbackExample]) -> list[Said]:
    """What a chain says of instances, with no guard and no limit of time but its own; in their order.

    Example:
        Of ("environment", "rules") and a wrong call without a message: the text of rules, and "environment: no
        diagnosis" among what was asked in vain.
    """
    said: dict[int, Said] = {}
    rejected: dict[int, list[str]] = {at: [] for at in range(len(instances))}
    for source in chain:
        still = [at for at in rejected if at not in said]
        started = source.start([instances[at].failure for at in still])
        for at, future in zip(still, started, strict=True):
            answer = future.result()
            text = None if answer.text is None else _as_told(answer.text)
            if text or answer.text == "":
                said[at] = Said(instances[at], text, source.name, tuple(rejected[at]))
            elif reason := answer.reason or (answer.text and "no diagnosis"):
                rejected[at].append(f"{source.name}: {reason}")
    return [said.get(at) or Said(instances[at], None, rejected=tuple(rejected[at])) for at in rejected]


def quality(name: str, said: Sequence[Said], first: str) -> SourceMetrics:
    """The numbers of a group.

    Args:
        name: of the group.
        said: of its instances.
        first: name of the chain's first source.
    """
    told = [one for one in said if one.text]
    texts = [one.text or "" for one in told]
    forms = Counter(form for one in told if (form := how_leaked(one.text or "", one.instance.failure)))
    secret = [one for one in told if one.instance.failure.reference]
    readings = [(said_kinds(one.text or ""), true_kinds(one.instance)) for one in told]
    agrees, silent = sum(bool(read & true) for read, true in readings), sum(not read for read, _ in readings)
    return SourceMetrics(
        name,
        len(said),
        answered=share(len(told), len(said)),
        leak=share(forms.total(), len(secret)),
        forms={form: forms[form] for form in LEAK_FORMS if forms[form]},
        paths=share(sum(bool(paths_told(one.text or "", one.instance.failure)) for one in secret), len(secret)),
        specific=share(sum(is_specific(one.text or "", one.instance.failure) for one in told), len(told)),
        agrees=share(agrees, len(told)),
        disagrees=share(len(told) - agrees - silent, len(told)),
        no_kind=share(silent, len(told)),
        own=share(sum(one.source == first for one in told), len(said)),
        rejected=dict(Counter(reason for one in said for reason in one.rejected).most_common()),
        distinct=len(set(texts)),
        characters=_spread([len(text) for text in texts]),
        words=_spread([len(text.split()) for text in texts]),
        judged_leak=_judged_share(one.judged_leak for one in secret),
        judged_kind=_judged_share(
            None if one.judged_kind is None else one.judged_kind in true_kinds(one.instance) for one in told
        ),
    )


def qualities(said: Sequence[Said], seen_apis: Iterable[str], first: str) -> list[SourceMetrics]:
    """The numbers of all instances, of those of seen APIs and of those of unseen ones; groups without any left out."""
    known = set(seen_apis)
    seen, unseen = [[one for one in said if (one.instance.api in known) is is_seen] for is_seen in (True, False)]
    groups = [("all", said), ("seen APIs", seen), ("unseen APIs", unseen)]
    return [quality(name, group, first) for name, group in groups if group]


def drawn(instances: Sequence[FeedbackExample], count: int, seed: int = 0) -> list[FeedbackExample]:
    """At most `count` instances at random, in their order."""
    if len(instances) <= count:
        return list(instances)
    return [instances[at] for at in sorted(random.Random(seed).sample(range(len(instances)), count))]


def quality_json(one: SourceMetrics) -> dict[str, Any]:
    """The numbers as JSON values; shares with their rates."""
    values = asdict(one)
    for name, value in vars(one).items():
        if isinstance(value, Proportion):
            values[name] = asdict(value) | {"rate": value.rate}
    return values


def share(hits: int, of: int) -> Proportion:
    """A share with Wilson's interval, none over nothing."""
    return Proportion(hits, of, wilson(hits, of) if of else None)


def _as_told(text: str) -> str:
    """As `feedback` would tell it."""
    return text.encode("utf-8", "replace").decode().strip()[:MAX_LENGTH]


def _spread(lengths: Sequence[int]) -> tuple[float, float]:
    """Median and 95th percentile (the smallest length that 95% do not exceed)."""
    if not lengths:
        return 0.0, 0.0
    return float(statistics.median(lengths)), float(sorted(lengths)[-(-95 * len(lengths) // 100) - 1])


def _judged_share(verdicts: Iterable[bool | None]) -> Proportion | None:
    known = [verdict for verdict in verdicts if verdict is not None]
    return share(sum(known), len(known)) if known else None


EXAMPLES = 3
"""Examples of each sort in the report. [ours]"""


LONGEST = 2_400
"""Longest failure shown in an example, in characters. [ours]"""


def quality_table(groups: Sequence[SourceMetrics]) -> str:
    """The quality of one source, a block for each group of instances, as plain text."""
    rows: list[tuple[str, ...]] = []
    for one in groups:
        rows.append((f"{one.name}: {one.instances:,} instances, {one.distinct:,} different texts",))
        rows.append(proportion_row("answered", one.answered, "instances"))
        rows.append(proportion_row("  by the first source", one.own, "instances"))
        rows += [("  not answered", "", "", f"{count:,} {reason}") for reason, count in one.rejected.items()]
        rows.append(proportion_row("leaks", one.leak, "texts"))
        rows += [("  " + form, "", "", f"{count:,}") for form, count in one.forms.items()]
        rows.append(proportion_row("names a nested field", one.paths, "texts"))
        rows.append(proportion_row("specific", one.specific, "texts"))
        rows.append(proportion_row("names the true kind", one.agrees, "texts"))
        rows.append(proportion_row("names another kind", one.disagrees, "texts"))
        rows.append(proportion_row("names no kind", one.no_kind, "texts"))
        if one.judged_leak is not None:
            rows.append(proportion_row("leaks, by the judge", one.judged_leak, "texts judged"))
        if one.judged_kind is not None:
            rows.append(proportion_row("true kind, by the judge", one.judged_kind, "texts judged"))
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


def report(source: str, said: Sequence[Said], groups: Sequence[SourceMetrics]) -> str:
    """`report.md` without usefulness: the table, and examples of leaks, of vague and wrong texts, and of good ones."""
    parts = [
        f"# Diagnoses of `{source}`",
        "What the source says, before the guard of training replaces what leaks. Intervals are Wilson's 95%, over "
        "texts. Seen APIs are those of the training file, whose rows are asked about here too. Kinds are read from "
        "words by patterns (`feedback/model/said_kinds.py`).",
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
    instances: Mapping[str, FeedbackExample],
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
        lost = "; ".join(f"{reason} ({count:,})" for reason, count in row.rejected.items())
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


def _shown_failure(instance: FeedbackExample, text: str, note: str) -> str:
    context = failure_text(instance.failure, LONGEST).partition("# Dialogue\n")[2]
    return f"`{instance.origin}`, {instance.api}. {note}\n\n{_block(context)}\n\n> {' '.join(text.split())}"


def _block(text: str) -> str:
    """Text as a block of Markdown that no backticks in it can end."""
    return "\n".join(f"    {line}" for line in text.split("\n"))


def _success(success: Proportion) -> Iterator[str]:
    yield "-" if success.rate is None else f"{100 * success.rate:.1f}"
    yield "-" if success.interval is None else f"{100 * success.interval[0]:.1f} to {100 * success.interval[1]:.1f}"


def _gain(gain: Gain | None) -> Iterator[str]:
    yield "-" if gain is None else f"{100 * gain.change:+.1f}"
    interval = gain.interval if gain is not None else None
    yield "-" if interval is None else f"{100 * interval[0]:+.1f} to {100 * interval[1]:+.1f}"


if TYPE_CHECKING:
    from fission_grpo.evaluation.policies import LoadedPolicy


PICTURE = "usefulness.png"


def check_command(argv: list[str]) -> int:
    """Check a source. Returns 0, or 1 after saying on stderr what to mend."""
    arguments = _parser().parse_args(argv)
    try:
        print(check(arguments))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except ModuleNotFoundError as error:
        print(f"error: this needs {error.name}; pip install 'fission-grpo[train,endpoint]'", file=sys.stderr)
        return 1
    return 0


def check(arguments: Namespace) -> str:
    """Make the check that parsed arguments ask for, write its files, and return what is shown on the terminal.

    Raises:
        ValueError: what is wrong with the data, the source or the options, and how to mend it.
        OSError: the output cannot be written.
    """
    train, test = (load_examples(arguments.data / name) for name in (TRAIN, TEST))
    extra = load_examples(arguments.usefulness) if arguments.usefulness else []
    if extra and not arguments.policy:
        raise ValueError("--usefulness needs a policy that tries again; give --policy MODEL (or 'starter')")
    diagnoses = {one.id: one.diagnosis for one in (*train, *test, *extra)}
    url, options = endpoint_options(arguments.options)
    with closing(sources_from(arguments.source, arguments.url or url, options, diagnoses)) as chain:
        for source in chain:
            source.check()
        arguments.output.mkdir(parents=True, exist_ok=True)
        asked = [*drawn(train, arguments.count, arguments.seed), *drawn(test, arguments.count, arguments.seed)]
        said = _judged(ask_all(chain, asked), arguments)
        groups = qualities(said, {one.api for one in train}, chain[0].name)
        _write_quality(arguments.output, arguments.source, said, groups)
        shown = [f"source: {arguments.source}", quality_table(groups)]
        if extra:
            shown += ["", _measured(arguments, chain, extra)]
    names = "check.json, report.md" + (f", usefulness.json, usefulness.jsonl, {PICTURE}" if extra else "")
    return "\n".join([*shown, f"written in {arguments.output}: {names}"])


def _judged(said: list[Said], arguments: Namespace) -> list[Said]:
    """With a model judge's verdicts, where one is given."""
    if not arguments.judge:
        return said
    from fission_grpo.evaluation.policies import connect_endpoint
    from fission_grpo.inference.endpoint import EndpointOptions
    from fission_grpo.recipes.error_simulator.judge import judge_kinds, judge_leaks

    told = [one for one in said if one.text]
    pairs = [(one.instance.failure, one.text or "") for one in told]
    with connect_endpoint(arguments.judge, arguments.judge_url, EndpointOptions()) as player:
        verdicts = zip(judge_leaks(player.policy, pairs), judge_kinds(player.policy, pairs), strict=True)
    judged = {
        one.instance.id: replace(one, judged_leak=leak, judged_kind=kind)
        for one, (leak, kind) in zip(told, verdicts, strict=True)
    }
    return [judged.get(one.instance.id, one) for one in said]


def _write_quality(output: Path, source: str, said: Sequence[Said], groups: Sequence[SourceMetrics]) -> None:
    _write_json(output / "check.json", {"source": source, "groups": [quality_json(one) for one in groups]})
    (output / "report.md").write_text(report(source, said, groups), encoding="utf-8")


def _measured(arguments: Namespace, chain: Sequence[FeedbackSource], given: Sequence[FeedbackExample]) -> str:
    """Measure usefulness and write its files; returns the table."""
    triable = [one for one in given if one.failure.reference is not None]
    instances = {one.id: one for one in drawn(triable, arguments.limit, arguments.seed)}
    if not instances:
        raise ValueError(f"{arguments.usefulness}: no failure has reference calls, so no attempt can be judged")
    with _policy(arguments) as player:
        settings = {
            "source": arguments.source,
            "policy": dict(player.description),
            "temperature": arguments.temperature,
            "max_new_tokens": arguments.max_new_tokens,
            "seed": arguments.seed,
        }
        with AttemptsFile(arguments.output / "usefulness.jsonl", settings) as file:
            arms, failures = arms_of(chain, arguments.source), [one.failure for one in instances.values()]
            held = measure(file, failures, arms, player.policy, arguments.samples, arguments.batch_size)
    rows = usefulness(held, arguments.source, list(instances))
    numbers = {"settings": settings, "sources": [usefulness_json(row) for row in rows]}
    _write_json(arguments.output / "usefulness.json", numbers)
    drew = _picture(arguments, rows)
    with (arguments.output / "report.md").open("a", encoding="utf-8") as file:
        file.write("\n" + usefulness_report(rows, held, instances, arguments.source, PICTURE if drew else None))
    return usefulness_table(rows)


def _picture(arguments: Namespace, rows: Sequence[Usefulness]) -> bool:
    caption = (
        f"{max(row.failures for row in rows):,} failures, {arguments.samples} attempts each, by {arguments.policy}."
    )
    try:
        from fission_grpo.recipes.error_simulator.usefulness_plot import usefulness_png

        (arguments.output / PICTURE).write_bytes(usefulness_png(rows, arguments.source, caption))
    except ImportError as error:
        print(f"no picture: it needs matplotlib ({error}); pip install 'fission-grpo[report]'", file=sys.stderr)
        return False
    return True


@contextmanager
def _policy(arguments: Namespace) -> Iterator[LoadedPolicy]:
    from fission_grpo.evaluation.policies import Sampling, connect_endpoint, load_local_policy
    from fission_grpo.inference.endpoint import EndpointOptions

    if arguments.policy_url:
        options = EndpointOptions(temperature=arguments.temperature, max_tokens=arguments.max_new_tokens)
        with connect_endpoint(arguments.policy, arguments.policy_url, options) as player:
            yield player
        return
    sampling = Sampling(arguments.temperature, arguments.max_new_tokens, arguments.seed)
    with nullcontext(load_local_policy(arguments.policy, sampling, arguments.batch_size)) as player:
        yield player


def _write_json(path: Path, values: Any) -> None:
    path.write_text(json.dumps(values, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of 1 or more, got {text!r}")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "fission-grpo simulator check",
        description="How good a source's diagnoses are: leaks and their forms, specificity, agreement with the true "
        "kind of error, length, for seen and unseen APIs; and, with --usefulness, how much they help an untrained "
        "policy, against controls. Writes check.json, report.md, usefulness.json and a picture.",
        epilog=f"sources:\n{SOURCE_FORMS}\nteacher: the diagnoses that the data holds",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--data", type=Path, required=True, metavar="DIR", help=f"of `simulator data`: {TRAIN}, {TEST}"
    )
    parser.add_argument("--source", required=True, metavar="SPEC", help="what is checked; see below")
    parser.add_argument("--url", help="endpoint source: its base URL, mostly ending in /v1")
    parser.add_argument("--options", metavar="JSON", help=OPTIONS_HELP)
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="where to write")
    parser.add_argument(
        "--count", type=_count, default=500, help=f"instances of {TRAIN} and of {TEST}, at most (default 500)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the drawing and of the policy's sampling (default 0)")
    parser.add_argument("--judge", metavar="MODEL", help="a model that judges leaks and kinds, too, at an endpoint")
    parser.add_argument("--judge_url", metavar="URL", help="of the judge's endpoint")
    useful = parser.add_argument_group("usefulness")
    useful.add_argument("--usefulness", type=Path, metavar="FILE", help="failures to be tried again, as `data` writes")
    useful.add_argument(
        "--policy", metavar="MODEL", help="folder, hub id or 'starter'; with --policy_url its name there"
    )
    useful.add_argument("--policy_url", metavar="URL", help="the policy is behind an OpenAI-compatible endpoint")
    useful.add_argument("--samples", type=_count, default=4, help="attempts per failure and source (default 4)")
    useful.add_argument("--limit", type=_count, default=300, help="failures, at most (default 300)")
    useful.add_argument("--temperature", type=float, default=1.0, help="of the policy (default 1)")
    useful.add_argument("--max_new_tokens", type=_count, default=128, help="of one attempt (default 128)")
    useful.add_argument("--batch_size", type=_count, default=64, help="attempts side by side (default 64)")
    return parser


@dataclass(frozen=True)
class SourceCheck:
    """Shares of the rows asked, 0 to 1.

    Args:
        rows: asked.
        exact: the teacher's diagnosis, word for word.
        specific: names the tool, the parameter or the value at fault.
        leaked: gave the reference away, so that it was not used.
        fallback: no usable text, leaks included.
        reasons: of the fallbacks, counted.
        seconds: per row, wall clock.
    """

    rows: int
    exact: float
    specific: float
    leaked: float
    fallback: float
    reasons: Mapping[str, int]
    seconds: float


def try_source(source: FeedbackSource, instances: Sequence[FeedbackExample]) -> SourceCheck | None:
    """Ask a source about labelled failures, leak guard included; None without instances."""
    if not instances:
        return None
    began = time.monotonic()
    feedback = FeedbackRequest([one.failure for one in instances], [source]).feedback()
    seconds = time.monotonic() - began
    said = [(one, told.text) for one, told in zip(instances, feedback, strict=True) if told.source == source.name]
    reasons = Counter(reason for told in feedback for _, reason in told.rejected)
    count = len(instances)
    return SourceCheck(
        rows=count,
        exact=round(sum(text == one.diagnosis for one, text in said) / count, 4),
        specific=round(sum(is_specific(text, one.failure) for one, text in said) / count, 4),
        leaked=round(reasons[LEAK] / count, 4),
        fallback=round(1 - len(said) / count, 4),
        reasons=dict(reasons.most_common()),
        seconds=round(seconds / count, 4),
    )
