"""What `fission-grpo train --tasks` can be given: rows, the environments they need, and the reward."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fission_grpo.core.errors import TaskFileError, UsageError
from fission_grpo.core.json_io import NotJson, read_json
from fission_grpo.core.rewards import RewardConfig, StepReward
from fission_grpo.core.types import Task
from fission_grpo.data.convert.toolrl import read_toolrl
from fission_grpo.data.step_tasks import load_step_tasks, to_rows
from fission_grpo.envs.desk.env import Desk
from fission_grpo.envs.desk.tasks import make_rows, requests_of
from fission_grpo.envs.wrapper import tool_methods

DESK_TASKS = 512
"""Rows drawn for the built-in environment where `num_tasks` is 0. [ours]"""


@dataclass(frozen=True)
class TrainingData:
    """What a trainer is given.

    Args:
        rows: of the data set.
        environments: TRL's `environment_factory`, None for step tasks.
        reward: the reward function, None where the environment has `get_reward`.
    """

    rows: Sequence[dict[str, Any]]
    environments: Callable[[], Any] | dict[str, Callable[[], Any]] | None = None
    reward: Callable[..., Any] | None = None


def load_training_data(script: Any, seed: int, tokenizer: Any, reward: RewardConfig) -> TrainingData:
    """The material of `script.tasks`; says on stderr what was left out.

    Args:
        script: a `train_command.ScriptArguments`.
        seed: of the built-in environment's tasks.
        tokenizer: renders prompts, to tell their length.
        reward: constants of the step reward.

    Raises:
        UsageError: there are no such tasks, or none are left.
        TaskFileError: the file has a mistake.
    """
    if script.num_tasks < 0 or script.skip_tasks < 0 or script.max_prompt_tokens < 0:
        raise UsageError("num_tasks, skip_tasks and max_prompt_tokens must not be negative")
    if not script.tasks:
        raise UsageError(
            "tasks is missing; give 'desk', 'desk:2', a step-task or case file (.jsonl), or a ToolRL file"
        )
    if requests := _desk_requests(script.tasks):
        return TrainingData(make_rows(script.num_tasks or DESK_TASKS, seed, "train", requests), Desk)
    if is_case_file(script.tasks):
        return _cases(script, tokenizer)
    tasks = load_tasks(script.tasks)
    chosen = tasks[script.skip_tasks :][: script.num_tasks or None]
    rows = _short_enough(
        to_rows(chosen, tokenizer),
        script,
        lambda row: len(tokenizer(row["prompt"])["input_ids"]),
        len(tasks),
        len(chosen),
    )
    return TrainingData(rows, None, StepReward(reward))


def _desk_requests(tasks: str) -> int | None:
    try:
        return requests_of(tasks)
    except ValueError as error:
        raise UsageError(f"tasks: {error}") from error


def is_case_file(path: str) -> bool:
    """Whether a .jsonl file holds cases (`fission-grpo tasks generate`) rather than step tasks, by its first row."""
    if Path(path).suffix != ".jsonl" or not Path(path).is_file():
        return False
    with Path(path).open("rb") as file:
        first = next((line for line in file if line.strip()), b"")
    try:
        row, _ = read_json(first.decode("utf-8", "replace").strip())
    except NotJson:
        return False
    return isinstance(row, dict) and "turns" in row


def load_tasks(path: str) -> Sequence[Task]:
    """Tasks of a step-task file (.jsonl) or a ToolRL file (.json, .parquet), told apart by the name's ending."""
    ending = Path(path).suffix
    if ending == ".jsonl":
        return load_step_tasks(path)
    if ending in (".json", ".parquet"):
        converted = read_toolrl(path)
        print(f"{path}: {converted.summary()}", file=sys.stderr)
        return converted.tasks
    raise UsageError(f"tasks: {path!r} is neither 'desk' nor a .jsonl, .json or .parquet file")


def case_rows(path: str, skip: int = 0, count: int = 0) -> tuple[list[dict[str, Any]], dict[str, Callable[[], Any]]]:
    """Rows of a case file, one per user turn, and their environments by name.

    Args:
        path: the file.
        skip: cases left out at its beginning.
        count: cases taken then; 0: all.

    Raises:
        TaskFileError: it has a mistake, or bfcl-eval is missing.
    """
    try:
        from fission_grpo.envs.bfcl.env import TaskError, environment_of
        from fission_grpo.envs.bfcl.tasks import all_rows, load_cases

        cases = load_cases(path)
        rows = all_rows(cases[skip:][: count or None])
    except ModuleNotFoundError as error:
        from fission_grpo.envs.bfcl import INSTALL

        raise TaskFileError(f"{path}: its environments need {error.name}; {INSTALL}") from error
    except TaskError as error:
        raise TaskFileError(f"{path}: {error}") from error
    return rows, {name: environment_of(name) for name in sorted({row["environment"] for row in rows})}


def episode_reward(environments: Sequence[Any], **_: Any) -> list[float | None]:
    """The environments' own `_reward()`, as one reward function for all of them."""
    return [environment._reward() for environment in environments]


def _cases(script: Any, tokenizer: Any) -> TrainingData:
    rows, environments = case_rows(script.tasks, script.skip_tasks, script.num_tasks)
    tools = {name: list(tool_methods(make()).values()) for name, make in environments.items()}

    def length(row: Mapping[str, Any]) -> int:
        text = tokenizer.apply_chat_template(
            row["prompt"], tools=tools[row["environment"]], add_generation_prompt=True, tokenize=False
        )
        return len(tokenizer(text, add_special_tokens=False)["input_ids"])

    turns = Counter(row["id"].rsplit("#", 1)[0] for row in rows)
    return TrainingData(_short_enough(rows, script, length, len(turns), len(rows)), environments, episode_reward)


def _short_enough(
    rows: list[dict[str, Any]], script: Any, length: Callable[[dict[str, Any]], int], tasks: int, chosen: int
) -> list[dict[str, Any]]:
    """The rows within `max_prompt_tokens`; says how many of what there are."""
    kept = [row for row in rows if not script.max_prompt_tokens or length(row) <= script.max_prompt_tokens]
    print(
        f"{script.tasks}: {tasks} tasks, {chosen} rows after skip_tasks and num_tasks, {len(kept)} within "
        "max_prompt_tokens",
        file=sys.stderr,
    )
    if not kept:
        raise UsageError(f"no task of {script.tasks} is left; lower skip_tasks or raise num_tasks, max_prompt_tokens")
    return kept
