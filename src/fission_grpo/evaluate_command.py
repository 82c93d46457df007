"""`fission-grpo eval`: how well a model works with tools and how well it recovers, or what others' transcripts say."""

from __future__ import annotations

import hashlib
import json
import sys
from argparse import Namespace
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fission_grpo.bfcl import INSTALL
from fission_grpo.evaluate_options import choice_of, endpoint_options_of, eval_parser, sampling_of
from fission_grpo.evaluation.records import CaseRecord
from fission_grpo.run_files import EVAL

RATES = "rates.json"
LONGEST_NAME = 150
"""Longest name of an evaluation in a folder's name, in bytes. [ours]"""
TRAIN = "pip install 'fission-grpo[train]'"


def evaluate_command(argv: list[str]) -> int:
    """Evaluate. Returns 0; 1 if a package is missing; 2 after a line on stderr about what is wrong; 130 if stopped."""
    arguments = eval_parser().parse_args(argv)
    try:
        print(evaluate_traces(arguments) if arguments.traces else evaluate_model(arguments))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        how = {"bfcl_eval": INSTALL, "openai": "pip install 'fission-grpo[endpoint]'"}
        package = str(error.name).split(".")[0]
        print(
            f"error: evaluation needs {package}; {how.get(package, TRAIN)}",
            file=sys.stderr,
        )
        return 1
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on where this one was", file=sys.stderr)
        return 130
    return 0


def evaluate_model(arguments: Namespace) -> str:
    """Play the cases, keep everything under OUTPUT/eval-NAME, and return what to print."""
    from fission_grpo.evaluation.manifest import Manifest
    from fission_grpo.evaluation.players import local_player, server_player, versions
    from fission_grpo.evaluation.run import evaluate_run
    from fission_grpo.evaluation.task_sets import task_set

    if not arguments.model or not arguments.output:
        raise ValueError("--model and --output are needed (or --traces FILE, which needs neither)")
    choice = choice_of(arguments)
    sampling = sampling_of(arguments, choice)
    tasks = task_set(choice)
    name = arguments.name or Path(arguments.model).name
    folder = arguments.output / f"eval-{_file_name(name)}"
    in_flight = arguments.in_flight or (64 if choice.desk_requests else 16)
    with ExitStack() as stack:
        if arguments.endpoint is not None:
            options = endpoint_options_of(arguments, sampling, in_flight)
            server = server_player(arguments.model, arguments.endpoint, options, arguments.tokenizer)
            player = stack.enter_context(server)
        else:
            player = local_player(arguments.model, sampling, in_flight)
        manifest = Manifest(
            name=name,
            tasks={"kind": tasks.kind, "sha256": tasks.sha256, "count": len(tasks.plays)},
            prompt={**choice.prompt, **(player.prompt if choice.format == "chat" else {})},
            decoding=asdict(sampling),
            policy=player.described,
            versions=versions(),
        )
        records = evaluate_run(folder, manifest, player.policy, tasks.plays, in_flight)
        if (counts := getattr(player.policy, "counts", None)) is not None:
            print(f"endpoint: {json.dumps(asdict(counts))}", file=sys.stderr)
    if tasks.official:
        from fission_grpo.bfcl.results import write_result_files

        write_result_files(records, tasks.official, folder / "bfcl")
    step, tokens = player.described.get("step", 0), player.described.get("tokens", 0)
    return summary(records, folder, name, arguments.output / EVAL, (step, tokens))


def evaluate_traces(arguments: Namespace) -> str:
    """The rates of transcripts from anywhere; with --output they are kept, so that they can be compared."""
    from fission_grpo.evaluation.manifest import Manifest, write_manifest
    from fission_grpo.evaluation.players import versions
    from fission_grpo.evaluation.records import CASES, to_line
    from fission_grpo.evaluation.task_sets import sha256_of
    from fission_grpo.evaluation.traces import read_traces

    notes: list[str] = []
    records = read_traces(arguments.traces, notes)
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    if arguments.output is None:
        return summary(records)
    name = arguments.name or arguments.traces.stem
    folder = arguments.output / f"eval-{_file_name(name)}"
    ids = sorted(record.id for record in records)
    tasks = {"kind": "traces", "sha256": sha256_of([ids]), "count": len(ids)}
    write_manifest(folder, Manifest(name, tasks, {}, {}, {"kind": "traces"}, versions()))
    (folder / CASES).write_text("".join(to_line(record) + "\n" for record in records), encoding="utf-8")
    return summary(records, folder, name)


def summary(
    records: Sequence[CaseRecord],
    folder: Path | None = None,
    name: str = "",
    lines: Path | None = None,
    trained: tuple[int, int] = (0, 0),
) -> str:
    """Write `rates.json` and a line of `eval.jsonl` where asked to, and return the table to print.

    Args:
        records: of the evaluation.
        folder: of `rates.json`; None: nothing is written.
        name: what was evaluated.
        lines: the `eval.jsonl` to add to; a line that is there already is not added again.
        trained: training steps and sampled tokens behind the model.
    """
    from fission_grpo.evaluate import eval_line
    from fission_grpo.evaluation.rates import rates_json, rates_of
    from fission_grpo.evaluation.rates_table import rates_table

    rates = rates_of(records)
    said = [*([name] if name else []), rates_table(rates)]
    if folder is not None:
        text = json.dumps(rates_json(rates), ensure_ascii=False, indent=1)
        (folder / RATES).write_text(text + "\n", encoding="utf-8")
        said.append(f"written: {folder}")
    if lines is not None:
        line = eval_line(rates, name, *trained) + "\n"
        there: Any = lines.read_text(encoding="utf-8").splitlines(keepends=True) if lines.is_file() else []
        if line not in there:
            with lines.open("a", encoding="utf-8") as file:
                file.write(line)
        said.append(f"added to {lines}")
    return "\n".join(said)


def _file_name(name: str) -> str:
    """A name as a part of a file's name; one too long for file systems is cut and told apart by a hash."""
    safe = "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in name) or "model"
    if len(safe.encode()) <= LONGEST_NAME:
        return safe
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:12]
    return f"{safe.encode()[:LONGEST_NAME].decode(errors='ignore')}-{digest}"
