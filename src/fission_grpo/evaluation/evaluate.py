"""`evaluate`: success and error recovery of a model in any environment, written for `compare` and `report`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from fission_grpo.core.errors import UsageError
from fission_grpo.core.files import append_line, write_file
from fission_grpo.core.model_readme import update_readme
from fission_grpo.data.rows import checked_rows, load_rows
from fission_grpo.envs.episode_reward import EpisodeReward
from fission_grpo.envs.faults import Fault
from fission_grpo.envs.wrapper import ToolLimits
from fission_grpo.evaluation.episodes import Factory
from fission_grpo.evaluation.metrics import Metrics, compute_metrics, metrics_json
from fission_grpo.evaluation.policies import LoadedPolicy, Sampling, load_local_policy, local_policy, versions
from fission_grpo.evaluation.records import CaseRecord
from fission_grpo.evaluation.run import Manifest, Progress, cut_half_line, eval_line, evaluate_run, read_manifest
from fission_grpo.evaluation.runner import repeated, run_cases, with_seeds
from fission_grpo.evaluation.tables import metrics_markdown, metrics_table
from fission_grpo.evaluation.task_sets import TaskSet, TaskSpec, rows_task_set

RATES, EVAL = "rates.json", "eval.jsonl"
MAX_NAME_BYTES = 150  # longest name of an evaluation in a folder's name [ours]
MAX_TURNS = 10  # assistant turns of an episode in an own environment, where no number is given [ours]


@dataclass(frozen=True)
class EvaluationResult:
    """A record for each case, in order, and the metrics over them; `str` of it is a table."""

    name: str
    records: Sequence[CaseRecord]
    metrics: Metrics
    directory: Path | None = None  # where it was written, for `compare` and `report`
    notes: Sequence[str] = ()

    def __str__(self) -> str:
        parts = [*([self.name] if self.name else []), metrics_table(self.metrics)]
        parts += [f"note: {note}" for note in self.notes]
        return "\n".join([*parts, *([f"written: {self.directory}"] if self.directory else [])])


def evaluate(
    model: Any,
    environment_factory: Factory | Mapping[str, Factory],
    rows: str | Path | Iterable[Mapping[str, Any]],
    reward_funcs: Callable[..., Any] | Sequence[Callable[..., Any]] | None = None,
    *,
    reward_weights: Sequence[float] | None = None,
    processing_class: Any = None,
    output_dir: str | Path | None = None,
    name: str | None = None,
    max_turns: int = MAX_TURNS,
    success_at: float = 1.0,
    samples: int = 1,
    temperature: float = 1.0,
    max_new_tokens: int = 512,
    seed: int = 0,
    in_flight: int = 16,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    tool_timeout: float = ToolLimits.timeout,
    isolate_environments: bool = False,
    faults: Sequence[Fault] = (),
    error_if: str | Callable[[str], bool] | None = None,
    bare_json_calls: bool = False,
) -> EvaluationResult:
    """Evaluate a model in an environment: one episode for each row. Arguments are named as TRL's trainer names them.

    Args:
        model: a folder, a hub id or "starter"; a transformers model; a trainer; or a policy with `reply(requests)` or
            `submit(request)`, such as `inference.endpoint.EndpointPolicy`.
        environment_factory: the environment's class, or several by name, for rows with a column `environment`.
        rows: a data set, a list or a file of rows with `prompt`, the columns of `reset` and of the reward functions,
            and optionally a unique `id`.
        reward_funcs: called as TRL calls them, an episode at a time; None if the environment has `get_reward`.
        processing_class: the tokenizer of a transformers model; by default that of the model's folder.
        output_dir: where to keep it, in a folder `eval-NAME`, in which a killed evaluation goes on; None for nowhere.
        name: of the evaluation; by default the last part of the model's name.
        temperature, max_new_tokens: of models; a policy samples as it was made to.
        error_if: which results of tools are errors, too: a regular expression, or a function of a result's text.
        max_turns and others: as the options of `fission-grpo eval`.

    Raises:
        UsageError: nothing judges an episode, or a reward function raised an error.
        RunFileError: `output_dir` holds another evaluation of this name.
        ValueError: the model cannot be loaded, or a row has no prompt.

    Example:
        >>> result = evaluate("runs/mine", OrderDesk, rows, solved, output_dir="runs/mine")
        >>> print(result)  # a table; result.metrics.recovery.rate is one of its numbers
    """
    functions = [] if reward_funcs is None else [reward_funcs] if callable(reward_funcs) else reward_funcs
    limits: dict[str, Any] = {"tool_timeout": tool_timeout, "isolate_environments": isolate_environments}
    limits |= {"error_if": error_if, "max_turns": max_turns, "faults": tuple(faults)}
    limits["bare_json_calls"] = bare_json_calls
    spec, reward = TaskSpec("", success_at=success_at, seed=seed, **limits), EpisodeReward(functions, reward_weights)
    tasks = rows_task_set(environment_factory, _checked_rows(rows, environment_factory), reward, spec)
    tasks = sampled(tasks, samples, temperature_of(model, temperature))
    sampling = Sampling(temperature, max_new_tokens, seed)
    loaded, decoding = _load_policy(model, processing_class, sampling, in_flight, chat_template_kwargs)
    name = name or name_of_model(getattr(getattr(model, "args", None), "output_dir", None) or loaded.description)
    return run_evaluation(loaded, tasks, spec.prompt, decoding, in_flight, name, output_dir)


def _checked_rows(rows: Any, environments: Any) -> list[dict[str, Any]]:
    if isinstance(rows, str | Path):
        return load_rows(rows, environments)
    return checked_rows(rows, "rows", environments)


def name_of_model(model: Any) -> str:
    """The last part of a folder, a hub id or a policy's description; of "." the folder's name."""
    text = str(model.get("model", "policy") if isinstance(model, Mapping) else model)
    return Path(text).name or Path(text).resolve().name or "policy"


def temperature_of(model: Any, temperature: float) -> float:
    """The temperature that counts: a policy's own, where it says so."""
    is_policy = hasattr(model, "reply") or hasattr(model, "submit")
    return float(_decoding_of(model).get("temperature", 1.0)) if is_policy else temperature


def sampled(tasks: TaskSet, samples: int, temperature: float) -> TaskSet:
    """The task set with several samples of each case. Raises UsageError where they would all be the same."""
    if samples < 1 or (samples > 1 and not temperature):
        raise UsageError(f"samples is {samples}: give at least 1, and a temperature above 0 for more than one")
    if samples == 1:
        return tasks
    return replace(tasks, cases=repeated(tasks.cases, samples), settings={**tasks.settings, "samples": samples})


def run_evaluation(
    loaded: LoadedPolicy,
    tasks: TaskSet,
    prompt: Mapping[str, Any],
    decoding: Mapping[str, Any],
    in_flight: int,
    name: str,
    output: str | Path | None,
) -> EvaluationResult:
    """Run the cases of a task set, and write `OUTPUT/eval-NAME` and a line of `OUTPUT/eval.jsonl` unless it is None.

    Raises RunFileError if the folder holds another evaluation, ValueError if no case could be judged.
    """
    records: list[CaseRecord] = []
    if output is None:
        cases = (with_seeds(start, decoding["seed"], case_id) for case_id, start in tasks.cases.items())
        progress = Progress(len(tasks.cases), 0)

        def done(record: CaseRecord) -> None:
            records.append(record)
            progress.show(record)

        try:
            run_cases(loaded.policy, cases, in_flight, done)
        finally:
            progress.end()
        order = {case_id: number for number, case_id in enumerate(tasks.cases)}
        return _summarize(sorted(records, key=lambda record: order[record.id]), name, prompt)
    folder = Path(output).absolute() / f"eval-{file_name(name)}"  # a tool may change the working directory
    is_chat = prompt.get("format") == "chat"
    manifest = Manifest(
        name=name,
        tasks={"kind": tasks.kind, "sha256": tasks.sha256, "count": len(tasks.cases), **tasks.settings},
        prompt={**prompt, **(loaded.prompt if is_chat else {})},
        decoding=decoding,
        policy=loaded.description,
        versions=versions(),
    )
    records = evaluate_run(folder, manifest, loaded.policy, tasks.cases, in_flight)
    if tasks.official:
        from fission_grpo.evaluation.bfcl.results import write_result_files

        write_result_files([one for one in records if one.id == one.of_task], tasks.official, folder / "bfcl")
    result = _summarize(records, name, prompt, folder)
    write_rates(result)
    add_to_run(result, loaded.description.get("step", 0), loaded.description.get("tokens", 0))
    return result


def write_rates(result: EvaluationResult) -> None:
    """Write the result's metrics and notes into its folder: `rates.json`, and `rates.md` to paste."""
    assert result.directory is not None
    values = metrics_json(result.metrics) | {"notes": [*result.metrics.notes, *result.notes]}
    write_file(result.directory / "rates.md", metrics_markdown(result.name, result.metrics))
    write_file(result.directory / RATES, json.dumps(values, ensure_ascii=False, indent=1) + "\n")


def add_to_run(result: EvaluationResult, step: int = 0, tokens: int = 0) -> None:
    """Add a line to `eval.jsonl` beside the result's folder, which reports and model cards read.

    `step` and `tokens`: training steps and sampled tokens behind the model. Raises ValueError if no case was judged.
    """
    assert result.directory is not None
    path, tasks = result.directory.parent / EVAL, read_manifest(result.directory).tasks
    line = eval_line(result.metrics, result.name, step, tokens, tasks)
    cut_half_line(path)
    existing = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    if line not in existing:
        append_line(path, line)
    update_readme(path.parent)


def file_name(name: str) -> str:
    """A name as part of a file name; a name too long for file systems is cut and made unique by a hash."""
    safe = "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in name) or "model"
    if len(safe.encode()) <= MAX_NAME_BYTES:
        return safe
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:12]
    return f"{safe.encode()[:MAX_NAME_BYTES].decode(errors='ignore')}-{digest}"


def _summarize(
    records: Sequence[CaseRecord], name: str, prompt: Mapping[str, Any], folder: Path | None = None
) -> EvaluationResult:
    notes, limit = [], prompt.get("max_turns", 0)
    cut = sum(record.success is False and len(record.steps) == limit > 1 for record in records)
    if cut:
        notes.append(f"{cut} of {len(records)} cases failed at their last turn (max_turns {limit})")
    return EvaluationResult(name, tuple(records), compute_metrics(records), folder, tuple(notes))


def _own_policy(policy: Any) -> LoadedPolicy:
    """A policy of the user's, with what it says of itself."""
    known = {key: getattr(policy, key, None) for key in ("model", "url")}
    description = {key: value for key, value in known.items() if isinstance(value, str)}
    return LoadedPolicy(policy, {"kind": type(policy).__name__, **description}, {})


def _decoding_of(policy: Any) -> dict[str, Any]:
    """How a policy samples, as far as it says."""
    options = getattr(policy, "options", policy)
    names = ("temperature", "max_new_tokens", "max_tokens")
    return {name: getattr(options, name) for name in names if isinstance(getattr(options, name, None), int | float)}


def _load_policy(
    model: Any, tokenizer: Any, sampling: Sampling, batch_size: int, template_options: Mapping[str, Any] | None
) -> tuple[LoadedPolicy, dict[str, Any]]:
    """What a user may give as `model` as a policy, and how it samples."""
    if hasattr(model, "reply") or hasattr(model, "submit"):
        return _own_policy(model), {**_decoding_of(model), "seed": sampling.seed}
    if isinstance(model, str | Path):
        return load_local_policy(str(model), sampling, batch_size, template_options, tokenizer), asdict(sampling)
    progress = {}
    if hasattr(model, "accelerator") and hasattr(model, "processing_class"):  # a trainer
        trainer = model
        if trainer.accelerator.num_processes > 1:
            raise UsageError("evaluation runs in one process; save the model, and evaluate its folder")
        tokenizer = tokenizer or trainer.processing_class
        model = trainer.accelerator.unwrap_model(trainer.model)
        template_options = template_options or getattr(trainer, "chat_template_kwargs", None)
        progress = {"step": trainer.state.global_step, "tokens": getattr(trainer, "generated_tokens", 0)}
    if not hasattr(model, "generate"):
        raise UsageError(f"model: a {type(model).__name__} is no folder, hub id, model, trainer or policy")
    return local_policy(model, tokenizer, sampling, batch_size, template_options, progress), asdict(sampling)
