"""`fission-grpo simulator check`: how good a source's diagnoses are, and how much they help."""

from __future__ import annotations

import argparse
import json
import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fission_grpo.diagnose import Source
from fission_grpo.simulator.attempts_file import AttemptsFile
from fission_grpo.simulator.check_report import quality_table, report, usefulness_report, usefulness_table
from fission_grpo.simulator.chosen import FORMS, OPTIONS_HELP, closing, endpoint_options, sources_from
from fission_grpo.simulator.instances import TEST, TRAIN, Instance, load_instances
from fission_grpo.simulator.quality import Quality, Said, ask_all, drawn, qualities, quality_json
from fission_grpo.simulator.usefulness import Usefulness, arms_of, measure, usefulness, usefulness_json

if TYPE_CHECKING:
    from fission_grpo.evaluation.players import Player

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
    train, test = (load_instances(arguments.data / name) for name in (TRAIN, TEST))
    extra = load_instances(arguments.usefulness) if arguments.usefulness else []
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
    from fission_grpo.evaluation.endpoint_options import EndpointOptions
    from fission_grpo.evaluation.players import server_player
    from fission_grpo.simulator.judge import judge_kinds, judge_leaks

    told = [one for one in said if one.text]
    pairs = [(one.instance.failure, one.text or "") for one in told]
    with server_player(arguments.judge, arguments.judge_url, EndpointOptions()) as player:
        verdicts = zip(judge_leaks(player.policy, pairs), judge_kinds(player.policy, pairs), strict=True)
    judged = {
        one.instance.id: replace(one, judged_leak=leak, judged_kind=kind)
        for one, (leak, kind) in zip(told, verdicts, strict=True)
    }
    return [judged.get(one.instance.id, one) for one in said]


def _write_quality(output: Path, source: str, said: Sequence[Said], groups: Sequence[Quality]) -> None:
    _write_json(output / "check.json", {"source": source, "groups": [quality_json(one) for one in groups]})
    (output / "report.md").write_text(report(source, said, groups), encoding="utf-8")


def _measured(arguments: Namespace, chain: Sequence[Source], given: Sequence[Instance]) -> str:
    """Measure usefulness and write its files; returns the table."""
    triable = [one for one in given if one.failure.reference is not None]
    instances = {one.id: one for one in drawn(triable, arguments.limit, arguments.seed)}
    if not instances:
        raise ValueError(f"{arguments.usefulness}: no failure has reference calls, so no attempt can be judged")
    with _player(arguments) as player:
        settings = {
            "source": arguments.source,
            "policy": dict(player.described),
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
        from fission_grpo.simulator.usefulness_plot import usefulness_png

        (arguments.output / PICTURE).write_bytes(usefulness_png(rows, arguments.source, caption))
    except ImportError as error:
        print(f"no picture: it needs matplotlib ({error}); pip install 'fission-grpo[report]'", file=sys.stderr)
        return False
    return True


@contextmanager
def _player(arguments: Namespace) -> Iterator[Player]:
    from fission_grpo.evaluation.endpoint_options import EndpointOptions
    from fission_grpo.evaluation.players import Sampling, local_player, server_player

    if arguments.policy_url:
        options = EndpointOptions(temperature=arguments.temperature, max_tokens=arguments.max_new_tokens)
        with server_player(arguments.policy, arguments.policy_url, options) as player:
            yield player
        return
    sampling = Sampling(arguments.temperature, arguments.max_new_tokens, arguments.seed)
    with nullcontext(local_player(arguments.policy, sampling, arguments.batch_size)) as player:
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
        epilog=f"sources:\n{FORMS}\nteacher: the diagnoses that the data holds",
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
