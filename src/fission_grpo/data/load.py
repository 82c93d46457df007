"""What `fission-grpo train --tasks` accepts: any task file, or the built-in Desk, as rows, environments and reward."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fission_grpo.core.errors import TaskFileError, UsageError
from fission_grpo.core.files import parse_json_lines
from fission_grpo.core.install import install_line
from fission_grpo.core.rewards import RewardConfig, StepReward
from fission_grpo.core.terminal import show
from fission_grpo.core.types import Task
from fission_grpo.data.convert.toolrl import read_toolrl
from fission_grpo.data.rows import OwnTask
from fission_grpo.data.step_tasks import load_step_tasks, to_rows
from fission_grpo.envs.desk.env import Desk
from fission_grpo.envs.desk.steps import make_steps
from fission_grpo.envs.desk.tasks import make_rows, requests_of
from fission_grpo.envs.step_calls import Guard, try_environments
from fission_grpo.envs.wrapper import tool_methods

DESK_STEPS = "desk:steps"  # name of the desk's tasks as single turns against references
DESK_TASKS = 512  # rows drawn for the built-in environment if `num_tasks` is 0 [ours]
MAX_DESK_TASKS = 100_000  # most rows drawn for it, which are held in memory; more are refused [ours]


@dataclass(frozen=True)
class TrainingData:
    """The data set, and the trainer's arguments that belong to it."""

    rows: Sequence[dict[str, Any]]
    environments: Callable[[], Any] | dict[str, Callable[[], Any]] | None = None  # None for step tasks
    reward: Callable[..., Any] | list[Callable[..., Any]] | None = None  # None if the environment has `get_reward`


def load_training_data(
    tasks: str,
    tokenizer: Any,
    *,
    own: OwnTask | None = None,
    skip_tasks: int = 0,
    num_tasks: int = 0,
    max_prompt_tokens: int = 0,
    seed: int = 42,
    reward: RewardConfig | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    guard: Guard | None = None,
) -> TrainingData:
    """Load tasks for training. Prints on stderr how many there are. Raises UsageError or TaskFileError.

    Args:
        tasks: "desk", "desk:2", "desk:steps", or the path of a step-task or case file (.jsonl) or of a ToolRL file.
        tokenizer: renders prompts and measures them.
        own: rows of an environment of the user's, in place of `tasks`.
        skip_tasks: tasks (rows of a case file: cases) to leave out at the beginning.
        num_tasks: tasks to take after them; 0 for all, or for `DESK_TASKS` of Desk.
        max_prompt_tokens: longest prompt, in tokens; longer ones are left out; 0 for no limit.
        seed: of Desk's tasks.
        reward: constants of the step reward.
        chat_template_kwargs: arguments of the chat template, the same as of the trainer's config.
        guard: limits of the environments in which step tasks are tried.
    """
    if skip_tasks < 0 or num_tasks < 0 or max_prompt_tokens < 0:
        raise UsageError("num_tasks, skip_tasks and max_prompt_tokens must not be negative")
    if own is None and not tasks:
        kinds = "'desk', 'desk:2', 'desk:steps', a step-task or case file (.jsonl), or a ToolRL file"
        raise UsageError(f"tasks is missing; give {kinds}; or environment and rows of your own")
    if own is None and (requests := desk_requests(tasks)):
        if num_tasks > MAX_DESK_TASKS:
            raise UsageError(f"num_tasks is {num_tasks}, but of 'desk' at most {MAX_DESK_TASKS} can be drawn")
        return TrainingData(make_rows(num_tasks or DESK_TASKS, seed, "train", requests), Desk)
    if own is not None or is_case_file(tasks):
        tasks, total, data = _episodes(own or tasks, skip_tasks, num_tasks)
    else:
        every = desk_steps(skip_tasks, num_tasks, seed) if tasks == DESK_STEPS else load_tasks(tasks)
        total, taken = len(every), every[skip_tasks:][: num_tasks or None]
        if tried := try_environments(places_of(tasks, skip_tasks), taken, guard):
            show(f"{tasks}: {tried}", error=True)
        data = TrainingData(to_rows(taken, tokenizer, chat_template_kwargs), None, StepReward(reward))
    rows = short = data.rows
    if max_prompt_tokens:
        tools, options = _tools_of(data.environments), chat_template_kwargs or {}
        short = [row for row in rows if _prompt_length(row, tokenizer, tools, options) <= max_prompt_tokens]
    counts = f"{total} tasks, {len(rows)} rows after skip_tasks and num_tasks, {len(short)} within max_prompt_tokens"
    show(f"{tasks}: {counts}", error=True)
    if not short:
        raise UsageError(f"no task of {tasks} is left; lower skip_tasks or raise num_tasks, max_prompt_tokens")
    return replace(data, rows=short)


def _episodes(source: OwnTask | str, skip: int, count: int) -> tuple[str, int, TrainingData]:
    """The rows of an own task or of a case file, with the file's name and the number of all its tasks."""
    if isinstance(source, OwnTask):
        rows = list(source.rows[skip:][: count or None])
        return source.path, len(source.rows), TrainingData(rows, source.environment, list(source.rewards) or None)
    rows, environments = case_rows(source, skip, count)
    total = len({row["id"].rsplit("#", 1)[0] for row in rows})
    return source, total, TrainingData(rows, environments, episode_reward)


def _tools_of(environments: Any) -> dict[str, list[Any]]:
    """The tools of environments by the name that rows select them with; of a single one by an empty name."""
    by_name = environments if isinstance(environments, Mapping) else {"": environments} if environments else {}
    return {name: list(tool_methods(make()).values()) for name, make in by_name.items()}


def desk_requests(tasks: str) -> int | None:
    """The requests of each desk task that `tasks` names, None without any. Raises UsageError for a wrong number."""
    try:
        return None if tasks == DESK_STEPS else requests_of(tasks)
    except ValueError as error:
        raise UsageError(f"tasks: {error}") from error


def desk_steps(skip: int, count: int, seed: int) -> list[Task]:
    """The tasks of `DESK_STEPS` to leave out, and those to take (0: `DESK_TASKS`). Raises UsageError if too many."""
    if skip + count > MAX_DESK_TASKS:
        raise UsageError(f"of {DESK_STEPS} at most {MAX_DESK_TASKS:,} tasks can be drawn; take fewer")
    return make_steps(skip + (count or DESK_TASKS), seed, "train")


def places_of(path: str, skip: int = 0) -> Callable[[int], str]:
    """The places of a file's tasks after the first `skip`, for messages, from their index."""

    def place(index: int) -> str:
        if not Path(path).is_file():  # built-in tasks
            return f"{path}, task {skip + index + 1}"
        rows = [number for number, _ in parse_json_lines(Path(path).read_bytes(), str)]
        return f"{path}, row {rows[skip + index]}"

    return place


def _prompt_length(
    row: Mapping[str, Any], tokenizer: Any, tools: Mapping[str, Sequence[Any]], options: Mapping[str, Any]
) -> int:
    """Tokens of a row's prompt, which is rendered with its environment's tools unless it is text already."""
    if isinstance(row["prompt"], str):
        return len(tokenizer(row["prompt"])["input_ids"])
    own_tools = tools[""] if "" in tools else tools[row["environment"]]
    settings = {"add_generation_prompt": True, "tokenize": False, **options}
    text = tokenizer.apply_chat_template(row["prompt"], tools=own_tools, **settings)
    return len(tokenizer(text, add_special_tokens=False)["input_ids"])


def episode_reward(environments: Sequence[Any], **_: Any) -> list[float | None]:
    """TRL reward function for episodes of several environments: each environment's own `_reward()`."""
    return [environment._reward() for environment in environments]


def is_case_file(path: str) -> bool:
    """Whether the first row of a .jsonl file is a case (`fission-grpo tasks generate`), not a step task."""
    if Path(path).suffix != ".jsonl" or not Path(path).is_file():
        return False
    row = next((row for _, row in parse_json_lines(Path(path).read_bytes())), None)
    return isinstance(row, dict) and "turns" in row


def check_tasks(path: Path, environments: bool = True) -> str:
    """A summary of a valid step-task or case file. Raises TaskFileError for the first mistake.

    With `environments`, all tasks that name an environment are tried in it.
    """
    if is_case_file(str(path)):
        from fission_grpo.envs.bfcl.tasks import check_cases

        return check_cases(path)
    tasks = load_step_tasks(path)
    calls = Counter(len(task.reference or ()) for task in tasks)
    counts = ", ".join(f"{n} call{'s' * (n != 1)}: {count}" for n, count in sorted(calls.items()))
    tools = sum(len(task.tools) for task in tasks) / len(tasks)
    summary = f"{path}: ok, {len(tasks)} tasks ({counts}; {tools:.1f} tools each on average)"
    tried = try_environments(places_of(str(path)), tasks, most=0, seconds=0) if environments else ""
    return f"{summary}\n{tried}" if tried else summary


def load_tasks(path: str) -> Sequence[Task]:
    """The tasks of a step-task file (.jsonl) or a ToolRL file (.json, .parquet). Raises UsageError, TaskFileError."""
    ending = Path(path).suffix
    if ending == ".jsonl":
        return load_step_tasks(path)
    if ending in (".json", ".parquet"):
        converted = read_toolrl(path)
        show(f"{path}: {converted.summary()}", error=True)
        return converted.tasks
    raise UsageError(f"tasks: {path!r} is neither 'desk' nor a .jsonl, .json or .parquet file")


def case_rows(path: str, skip: int = 0, count: int = 0) -> tuple[list[dict[str, Any]], dict[str, Callable[[], Any]]]:
    """The rows of a case file, one per user turn, and its environments by name.

    Takes `count` cases (0 for all) after the first `skip`. Raises TaskFileError, also if bfcl-eval is missing.
    """
    try:
        from fission_grpo.envs.bfcl.env import TaskError, environment_of
        from fission_grpo.envs.bfcl.tasks import all_rows, load_cases

        rows = all_rows(load_cases(path)[skip:][: count or None])
    except ModuleNotFoundError as error:
        raise TaskFileError(f"{path}: its environments need {error.name}; {install_line('bfcl_eval')}") from error
    except TaskError as error:
        raise TaskFileError(f"{path}: {error}") from error
    return rows, {name: environment_of(name) for name in sorted({row["environment"] for row in rows})}
