"""`fission-grpo eval`: success and error recovery of a model on tasks with tools, or of recorded transcripts."""

from __future__ import annotations

import argparse
import json
import math
from argparse import Namespace
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fission_grpo.cli.tasks import error_pattern
from fission_grpo.core.errors import RunFileError
from fission_grpo.core.files import read_file, write_file
from fission_grpo.core.install import install_line
from fission_grpo.core.result_errors import ERROR_PATTERN_HELP, error_rule
from fission_grpo.core.terminal import ArgumentParser, show
from fission_grpo.data.rows import names_own_task
from fission_grpo.envs.agentdojo.suites import MAX_TURNS as AGENTDOJO_TURNS
from fission_grpo.envs.agentdojo.suites import suites_of
from fission_grpo.envs.desk.tasks import requests_of, turns_for
from fission_grpo.envs.faults import NAMES, Fault
from fission_grpo.envs.wrapper import ToolLimits
from fission_grpo.evaluation.evaluate import (
    EVAL,
    MAX_TURNS,
    EvaluationResult,
    add_to_run,
    file_name,
    name_of_model,
    run_evaluation,
    sampled,
    write_rates,
)
from fission_grpo.evaluation.metrics import compute_metrics
from fission_grpo.evaluation.policies import Sampling, connect_endpoint, load_local_policy, versions
from fission_grpo.evaluation.records import CASES, to_line
from fission_grpo.evaluation.run import Manifest, check_same_run, write_manifest
from fission_grpo.evaluation.task_sets import TaskSpec, sha256_of, task_set
from fission_grpo.evaluation.transcripts import read_traces
from fission_grpo.inference.endpoint import EndpointOptions

EXAMPLES = """\
examples:
  fission-grpo eval --model runs/mine --tasks desk --output runs/mine
  fission-grpo eval --model Qwen/Qwen3-8B --endpoint http://localhost:8000/v1 --tasks multi_turn --output runs/qwen3
  fission-grpo eval --model Qwen/Qwen3-8B --endpoint http://localhost:8000/v1 --tasks multi_turn --raw \\
      --format qwen-fc --output runs/qwen3-official
  fission-grpo eval --model runs/mine --environment orders.py:OrderDesk --rows held_out.jsonl --reward orders.py:solved
  fission-grpo eval --traces transcripts.jsonl

A killed evaluation continues when the same command is given again. docs/evaluation.md has the definitions.
"""


def eval_parser() -> argparse.ArgumentParser:
    """The command's parser."""
    parser = ArgumentParser(
        "fission-grpo eval",
        description="Success and error recovery of a model on tasks with tools, or of recorded transcripts.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_policy_options(parser.add_argument_group("policy"))
    _add_task_options(parser.add_argument_group("tasks"))
    _add_sampling_options(parser.add_argument_group("sampling"))
    return parser


def _add_policy_options(group: Any) -> None:
    add = group.add_argument
    add("--model", help="folder, hub id, or 'starter'; with --endpoint the model's name there")
    add("--endpoint", metavar="URL", help="base URL of an OpenAI-compatible endpoint, usually ending in /v1")
    add("--raw", action="store_true", help="endpoint: raw completions of prompts rendered here")
    add("--tokenizer", metavar="MODEL", help="endpoint: renders dialogues for --raw (chat format)")
    add("--key_variable", default="OPENAI_API_KEY", help="endpoint: environment variable with the key")
    add("--timeout", type=float, default=120.0, help="endpoint: seconds for one try (default 120)")
    add("--extra_body", type=_json_object, default={}, metavar="JSON", help="endpoint: more request fields")
    template = "local model: arguments of the chat template, as in training (an endpoint takes them in --extra_body)"
    add("--chat_template_kwargs", type=_json_object, default={}, metavar="JSON", help=template)
    dtype = "local model: of its weights (default: float32 on a CPU, as saved on a GPU)"
    add("--dtype", choices=("float32", "bfloat16", "float16"), help=dtype)
    add("--traces", type=Path, metavar="FILE", help="no policy: read transcripts or BFCL result files instead")


def _add_task_options(group: Any) -> None:
    add = group.add_argument
    tasks = (
        "desk (built in), desk:2 for tasks of two requests (up to 4); a case or step-task file; agentdojo, or a suite "
        "of it such as agentdojo:banking; or BFCL's categories, "
        "joined by commas: multi_turn, ast, single_turn, or single ones such as multi_turn_base (default desk)"
    )
    add("--tasks", help=tasks)
    number = "number of cases, of each category or suite; 0: all (256 of the desk)"
    add("--num_tasks", type=_count, default=0, help=number)
    add("--skip_tasks", type=_count, default=0, help="number of cases to leave out first, such as training tasks")
    ids = "BFCL: only the cases with these ids, one a line; what follows a # is left out"
    add("--task_ids", type=Path, metavar="FILE", help=ids)
    add("--environment", metavar="MODULE:CLASS", help="an environment of yours, or path/to/file.py:Class; with --rows")
    add("--rows", metavar="FILE", help="its tasks: a .jsonl, .json or .parquet file; a row has a prompt and columns")
    rewards = "its reward functions, called as TRL does; none if it has get_reward"
    add("--reward", nargs="+", default=[], metavar="MODULE:FUNCTION", help=rewards)
    add("--reward_weights", nargs="+", type=float, metavar="WEIGHT", help="of several reward functions (default 1)")
    add("--success_at", type=float, default=1.0, help="lowest reward of a success in it (default %(default)g)")
    turns = "assistant turns per episode, not for BFCL (default: own environment 10, desk 4, desk:2 7, agentdojo 16)"
    add("--max_turns", type=int, help=turns)
    formats = "BFCL: how cases are rendered; the last two are the official prompts, byte for byte (default chat)"
    add("--format", choices=("chat", "qwen-fc", "qwen-prompting"), default="chat", help=formats)
    modes = "BFCL: strict is official; feedback answers calls that cannot be read with an error (default strict)"
    add("--mode", choices=("strict", "feedback"), default="strict", help=modes)
    bare = "also read calls that a reply writes as JSON without <tool_call> tags and without any other text"
    add("--bare_json_calls", action="store_true", help=bare)
    limit = "seconds of one tool call; a case that exceeds them has failed; 0: no limit (default %(default)g)"
    add("--tool_timeout", type=_seconds, default=ToolLimits.timeout, help=limit)
    isolate = "run each environment in a process of its own, which is killed at --tool_timeout (not for BFCL)"
    add("--isolate_environments", action="store_true", help=isolate)
    add("--error_pattern", type=error_pattern, metavar="REGEX", help=f"{ERROR_PATTERN_HELP} (not for BFCL)")
    attack = "AgentDojo: its injection cases with this official attack, such as important_instructions"
    add("--attack", default="", metavar="NAME", help=attack)
    faults = "inject faults into environments, such as explicit-permanent:0.1; may be given several times"
    add("--fault", action="append", type=_fault, default=[], metavar="KIND:RATE", help=faults)


def _add_sampling_options(group: Any) -> None:
    add = group.add_argument
    add("--temperature", type=float, help="0: most probable token (default: 0 on BFCL and AgentDojo, else 1)")
    add("--max_new_tokens", type=int, help="of one turn (default: 64 at the desk, else 512)")
    add("--seed", type=int, default=0, help="of the desk's tasks, faults and sampling (default 0)")
    add("--samples", type=int, default=1, metavar="K", help="runs of each case, for pass@k and pass^k (default 1)")
    add("--in_flight", type=_count, default=0, help="cases run at the same time (default: 64 at the desk, else 16)")
    add("--output", type=Path, metavar="RUN_DIR", help="writes RUN_DIR/eval-NAME, and adds to RUN_DIR/eval.jsonl")
    add("--name", help="of the evaluation in tables; default: the last part of --model")


def _count(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{number} is negative")
    return number


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 <= seconds < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is no number of seconds")
    return seconds


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise argparse.ArgumentTypeError(f"not JSON ({error})") from None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError("must be a JSON object")
    return value


def _fault(text: str) -> Fault:
    kind, _, rate = text.partition(":")
    try:
        return Fault(kind, float(rate))
    except ValueError:
        what = f"write KIND:RATE, such as timeout:0.1, a rate from 0 to 1 of one of {', '.join(NAMES)}"
        raise argparse.ArgumentTypeError(f"{text!r}: {what}") from None


def evaluate_command(argv: list[str]) -> int:
    """Returns 0; 1 if a package is missing; 2 for a mistake, named in one line on stderr; 130 if interrupted."""
    arguments = eval_parser().parse_args(argv)
    if arguments.output is not None:
        arguments.output = arguments.output.absolute()  # a tool may change the working directory
    try:
        _refuse_unused(arguments)
        show(evaluate_traces(arguments) if arguments.traces else evaluate_model(arguments))
    except (ValueError, OSError) as error:
        show(f"error: {error}", error=True)
        return 2
    except ModuleNotFoundError as error:
        show(f"error: evaluation needs {error.name}; {install_line(error.name)}", error=True)
        return 1
    except KeyboardInterrupt:
        kept = "the same command goes on where this one was"
        show(f"\nstopped; {kept if arguments.output else 'nothing was kept, as there is no --output'}", error=True)
        return 130
    return 0


def _refuse_unused(arguments: Namespace) -> None:
    """Raise ValueError for options that would be ignored."""
    default = vars(eval_parser().parse_args([]))
    given = {name for name, value in vars(arguments).items() if value != default[name]}
    if arguments.traces and (unused := sorted(given - {"traces", "output", "name", "error_pattern"})):
        raise ValueError(f"--traces reads transcripts and runs no model, so leave out --{unused[0]}")
    if not arguments.environment and (unused := sorted(given & {"reward_weights", "success_at"})):
        raise ValueError(f"--{unused[0]} is for --environment with --rows; leave it out")


def evaluate_model(arguments: Namespace) -> str:
    """Run the cases, keep everything under OUTPUT/eval-NAME if there is an output, and return the text to print."""
    if not arguments.model:
        raise ValueError(
            "--model is missing: give a folder, a hub id or 'starter' (or --traces FILE, without a model)"
        )
    spec = make_task_spec(arguments)
    sampling = _sampling(arguments, spec)
    tasks = sampled(task_set(spec), arguments.samples, sampling.temperature)
    name = arguments.name or name_of_model(arguments.model)
    in_flight = arguments.in_flight or (64 if requests_of(spec.tasks) else 16)
    if arguments.endpoint is not None:
        if arguments.dtype:
            raise ValueError("--dtype is for local models; leave it out with --endpoint")
        if arguments.chat_template_kwargs:
            raise ValueError("--chat_template_kwargs is for local models; an endpoint takes them in --extra_body")
        options = EndpointOptions(
            raw=arguments.raw,
            temperature=sampling.temperature,
            max_tokens=sampling.max_new_tokens,
            seed=sampling.seed,
            extra_body=arguments.extra_body,
            concurrency=in_flight,
            timeout=arguments.timeout,
            key_variable=arguments.key_variable,
        )
        loading = connect_endpoint(arguments.model, arguments.endpoint, options, arguments.tokenizer)
    else:
        options = arguments.chat_template_kwargs
        local = load_local_policy(arguments.model, sampling, in_flight, options, dtype=arguments.dtype)
        loading = nullcontext(local)
    with loading as loaded:
        result = run_evaluation(loaded, tasks, spec.prompt, asdict(sampling), in_flight, name, arguments.output)
        if (counts := getattr(loaded.policy, "counts", None)) is not None:
            show(f"endpoint: {json.dumps(counts)}", error=True)
    added = f"\nadded to {arguments.output / EVAL}" if arguments.output else "\nkeep it, for compare: --output RUN_DIR"
    return f"{result}{added}"


def evaluate_traces(arguments: Namespace) -> str:
    """Compute the metrics of transcripts; with --output they are kept, so that they can be compared."""
    notes: list[str] = []
    pattern = arguments.error_pattern
    records = read_traces(arguments.traces, notes, error_rule(pattern))
    for note in notes:
        show(f"note: {note}", error=True)
    name = arguments.name or arguments.traces.stem
    folder = None if arguments.output is None else arguments.output / f"eval-{file_name(name)}"
    result = EvaluationResult(name, records, compute_metrics(records), folder)
    if folder is not None:
        ids = sorted(record.id for record in records)
        tasks = {"kind": "traces", "sha256": sha256_of([ids]), "count": len(ids)}
        if pattern is not None:
            tasks["error_pattern"] = pattern  # evaluations that count other errors are not compared
        manifest = Manifest(name, tasks, {}, {}, {"kind": "traces"}, versions())
        check_same_run(folder, manifest)
        write_manifest(folder, manifest)
        write_file(folder / CASES, "".join(to_line(record) + "\n" for record in records))
        write_rates(result)
        if result.metrics.judged:
            add_to_run(result)
    return str(result)


def make_task_spec(arguments: Namespace) -> TaskSpec:
    """Which tasks. Raises ValueError for options that exclude each other."""
    names_own_task(arguments.environment, arguments.rows, arguments.reward, arguments.tasks)
    tasks, max_turns = arguments.tasks or "desk", arguments.max_turns
    if max_turns is None and suites_of(tasks):
        max_turns = AGENTDOJO_TURNS
    elif max_turns is None:
        max_turns = MAX_TURNS if arguments.environment else turns_for(requests_of(tasks) or 1)
    spec = TaskSpec(
        tasks="" if arguments.environment else tasks,
        environment=arguments.environment or "",
        rows=arguments.rows or "",
        rewards=tuple(arguments.reward),
        reward_weights=None if arguments.reward_weights is None else tuple(arguments.reward_weights),
        success_at=arguments.success_at,
        count=arguments.num_tasks,
        skip=arguments.skip_tasks,
        seed=arguments.seed,
        max_turns=max_turns,
        format=arguments.format,
        mode=arguments.mode,
        ids=() if arguments.task_ids is None else read_ids(arguments.task_ids),
        bare_json_calls=arguments.bare_json_calls,
        tool_timeout=arguments.tool_timeout,
        isolate_environments=arguments.isolate_environments,
        faults=tuple(arguments.fault),
        error_if=arguments.error_pattern,
        attack=arguments.attack,
    )
    if arguments.attack and not suites_of(spec.tasks):
        raise ValueError("--attack is for AgentDojo's cases; leave it out for other tasks")
    if not spec.official and arguments.task_ids:
        raise ValueError("--task_ids is for BFCL's own cases; leave it out for other tasks")
    if not spec.official and (arguments.format, arguments.mode) != ("chat", "strict"):
        raise ValueError("--format and --mode are for BFCL's own cases; leave them out for other tasks")
    if arguments.endpoint is not None and spec.format != "chat" and not arguments.raw:
        raise ValueError(f"--format {spec.format} brings its own prompt, which only raw completions take: add --raw")
    if arguments.raw and spec.format == "chat" and arguments.tokenizer is None:
        raise ValueError("--raw needs --tokenizer MODEL, to render the dialogues with")
    return spec


def read_ids(path: Path) -> tuple[str, ...]:
    """The ids in a file, one a line, without comments. Raises RunFileError if there are none."""
    lines = read_file(path, "give a file of case ids, one a line").decode("utf-8-sig", "replace").splitlines()
    ids = tuple(filter(None, (line.partition("#")[0].strip() for line in lines)))
    if not ids:
        raise RunFileError(f"{path}: holds no id; write one a line, such as multi_turn_base_0")
    return ids


def _sampling(arguments: Namespace, spec: TaskSpec) -> Sampling:
    default = 0.0 if spec.official or suites_of(spec.tasks) else 1.0  # 0 as in the official commands
    temperature = default if arguments.temperature is None else arguments.temperature
    tokens = arguments.max_new_tokens or (64 if requests_of(spec.tasks) else 512)
    return Sampling(temperature, tokens, arguments.seed)
