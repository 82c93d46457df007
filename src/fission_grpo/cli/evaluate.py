"""`fission-grpo eval`: how well a model works with tools and how well it recovers, or what others' transcripts say."""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from argparse import Namespace
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fission_grpo.envs.bfcl import INSTALL
from fission_grpo.evaluation.records import CaseRecord
from fission_grpo.report.run import EVAL

if TYPE_CHECKING:
    from fission_grpo.evaluation.policies import Sampling
    from fission_grpo.evaluation.task_sets import TaskSpec
    from fission_grpo.inference.endpoint import EndpointOptions


EXAMPLES = """\
examples:
  fission-grpo eval --model runs/mine --tasks desk --output runs/mine
  fission-grpo eval --model Qwen/Qwen3-8B --endpoint http://localhost:8000/v1 --tasks multi_turn --output runs/qwen3
  fission-grpo eval --model Qwen/Qwen3-8B --endpoint http://localhost:8000/v1 --tasks multi_turn --raw \\
      --format qwen-fc --output runs/qwen3-official
  fission-grpo eval --traces transcripts.jsonl

A killed evaluation goes on where it was when the same command is given again. docs/evaluation.md has the definitions.
"""


def eval_parser() -> argparse.ArgumentParser:
    """The command's parser."""
    parser = argparse.ArgumentParser(
        "fission-grpo eval",
        description="Success and error recovery of a model on tasks with tools, or of others' transcripts.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _who(parser.add_argument_group("who plays"))
    _what(parser.add_argument_group("on what"))
    _how(parser.add_argument_group("how"))
    return parser


def _who(who: Any) -> None:
    who.add_argument("--model", help="folder, hub id, or 'starter'; with --endpoint the model's name there")
    who.add_argument(
        "--endpoint", metavar="URL", help="base URL of an OpenAI-compatible endpoint, mostly ending in /v1"
    )
    who.add_argument("--raw", action="store_true", help="endpoint: raw completions of prompts we render")
    who.add_argument("--tokenizer", metavar="MODEL", help="endpoint: renders dialogues for --raw (chat format)")
    who.add_argument("--key_variable", default="OPENAI_API_KEY", help="endpoint: environment variable with the key")
    who.add_argument("--timeout", type=float, default=120.0, help="endpoint: seconds for one try (default 120)")
    who.add_argument(
        "--extra_body", type=_json_object, default={}, metavar="JSON", help="endpoint: more request fields"
    )
    who.add_argument("--traces", type=Path, metavar="FILE", help="play nothing: transcripts, or BFCL result files")


def _what(what: Any) -> None:
    what.add_argument(
        "--tasks",
        default="desk",
        help="desk (built in), desk:2 for tasks of two requests (up to 4); a case or step-task file; or BFCL's "
        "categories, joined by commas: multi_turn, ast, single_turn, or single ones such as multi_turn_base (default "
        "desk)",
    )
    what.add_argument("--num_tasks", type=_count, default=0, help="cases, of each category; 0: all (256 of the desk)")
    what.add_argument("--skip_tasks", type=_count, default=0, help="leave out so many first, such as those trained on")
    what.add_argument(
        "--max_turns",
        type=int,
        help="assistant turns per episode, not for BFCL (default 4, at desk:2 7, at desk:3 10)",
    )
    what.add_argument(
        "--format",
        choices=("chat", "qwen-fc", "qwen-prompting"),
        default="chat",
        help="BFCL: how cases are shown; the last two are the official prompts, byte for byte (default chat)",
    )
    what.add_argument(
        "--mode",
        choices=("strict", "told"),
        default="strict",
        help="BFCL: strict is official; told answers calls that cannot be read with an error (default strict)",
    )
    what.add_argument(
        "--fault",
        action="append",
        type=_fault,
        default=[],
        metavar="KIND:RATE",
        help="inject faults into environments, such as timeout:0.1; may be given several times",
    )


def _how(how: Any) -> None:
    how.add_argument("--temperature", type=float, help="0: most probable token (default: 0 on BFCL, else 1)")
    how.add_argument("--max_new_tokens", type=int, help="of one turn (default: 64 at the desk, else 512)")
    how.add_argument("--seed", type=int, default=0, help="of the desk's tasks, faults and sampling (default 0)")
    how.add_argument(
        "--in_flight", type=_count, default=0, help="cases side by side (default: 64 at the desk, else 16)"
    )
    how.add_argument(
        "--output", type=Path, metavar="RUN_DIR", help="RUN_DIR/eval-NAME is written, and eval.jsonl added to"
    )
    how.add_argument("--name", help="what tables call it; default: the last part of --model")


def choice_of(arguments: Namespace) -> TaskSpec:
    """Which tasks. Raises ValueError for options that do not go together."""
    from fission_grpo.envs.desk.tasks import requests_of, turns_for
    from fission_grpo.envs.faults import Fault
    from fission_grpo.evaluation.task_sets import TaskSpec

    turns = turns_for(requests_of(arguments.tasks) or 1)
    faults = tuple(Fault(kind, rate) for kind, rate in arguments.fault)
    choice = TaskSpec(
        tasks=arguments.tasks,
        count=arguments.num_tasks,
        skip=arguments.skip_tasks,
        seed=arguments.seed,
        max_turns=arguments.max_turns if arguments.max_turns is not None else turns,
        format=arguments.format,
        mode=arguments.mode,
        faults=faults,
    )
    if not choice.official and (arguments.format, arguments.mode) != ("chat", "strict"):
        raise ValueError("--format and --mode are for BFCL's own cases; leave them out for other --tasks")
    if arguments.endpoint is not None and choice.format != "chat" and not arguments.raw:
        raise ValueError(
            f"--format {choice.format} brings its own prompt text, which only raw completions take: add --raw"
        )
    if arguments.raw and choice.format == "chat" and arguments.tokenizer is None:
        raise ValueError("--raw needs --tokenizer MODEL, to render the dialogues with")
    return choice


def sampling_of(arguments: Namespace, choice: TaskSpec) -> Sampling:
    """How replies are sampled, by default as suits the tasks."""
    from fission_grpo.evaluation.policies import Sampling

    usual = 0.0 if choice.official else 1.0
    temperature = usual if arguments.temperature is None else arguments.temperature
    tokens = arguments.max_new_tokens or (64 if choice.desk_requests else 512)
    return Sampling(temperature, tokens, arguments.seed)


def endpoint_options_of(arguments: Namespace, sampling: Sampling, in_flight: int) -> EndpointOptions:
    """How an endpoint is asked."""
    from fission_grpo.inference.endpoint import EndpointOptions

    return EndpointOptions(
        raw=arguments.raw,
        temperature=sampling.temperature,
        max_tokens=sampling.max_new_tokens,
        seed=sampling.seed,
        extra_body=arguments.extra_body,
        concurrency=in_flight,
        timeout=arguments.timeout,
        key_variable=arguments.key_variable,
    )


def _count(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{number} is negative")
    return number


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise argparse.ArgumentTypeError(f"not JSON ({error})") from None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError("must be a JSON object")
    return value


def _fault(text: str) -> tuple[str, float]:
    kind, _, rate = text.partition(":")
    try:
        return kind, float(rate)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: write KIND:RATE, such as timeout:0.1") from None


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
    from fission_grpo.evaluation.policies import connect_endpoint, load_local_policy, versions
    from fission_grpo.evaluation.run import Manifest, evaluate_run
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
            server = connect_endpoint(arguments.model, arguments.endpoint, options, arguments.tokenizer)
            player = stack.enter_context(server)
        else:
            player = load_local_policy(arguments.model, sampling, in_flight)
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
            print(f"endpoint: {json.dumps(counts)}", file=sys.stderr)
    if tasks.official:
        from fission_grpo.evaluation.bfcl.results import write_result_files

        write_result_files(records, tasks.official, folder / "bfcl")
    step, tokens = player.described.get("step", 0), player.described.get("tokens", 0)
    return summary(records, folder, name, arguments.output / EVAL, (step, tokens))


def evaluate_traces(arguments: Namespace) -> str:
    """The rates of transcripts from anywhere; with --output they are kept, so that they can be compared."""
    from fission_grpo.evaluation.policies import versions
    from fission_grpo.evaluation.records import CASES, to_line
    from fission_grpo.evaluation.run import Manifest, write_manifest
    from fission_grpo.evaluation.task_sets import sha256_of
    from fission_grpo.evaluation.transcripts import read_traces

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
    from fission_grpo.evaluation.evaluate import eval_line
    from fission_grpo.evaluation.metrics import compute_metrics, metrics_json, metrics_table

    rates = compute_metrics(records)
    said = [*([name] if name else []), metrics_table(rates)]
    if folder is not None:
        text = json.dumps(metrics_json(rates), ensure_ascii=False, indent=1)
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
