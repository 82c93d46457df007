"""Rows: those of an own environment, which `--rows FILE` accepts, and any data set's row as a Task and back."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fission_grpo.core.chat import render
from fission_grpo.core.errors import TaskFileError, UsageError
from fission_grpo.core.json_io import quoted
from fission_grpo.core.serialization import STEP_KEY, step_task, task_to_json
from fission_grpo.core.types import Message, Task
from fission_grpo.data.convert.files import read_rows
from fission_grpo.data.step_tasks import FIELDS, ROLES
from fission_grpo.envs.catalog import ENVIRONMENT, load_factory, load_function
from fission_grpo.envs.episode_reward import EpisodeReward
from fission_grpo.envs.restore import TASK_KEY
from fission_grpo.envs.step_calls import NOT_FOR_RESET

Environments = Callable[[], Any] | Mapping[Any, Callable[[], Any]]  # one, or several by the rows' names of them


@dataclass(frozen=True)
class OwnTask:
    """An environment of the user's with its rows and reward functions, as TRL's trainer takes them."""

    environment: Callable[[], Any]
    rows: Sequence[dict[str, Any]]
    rewards: Sequence[Callable[..., Any]]  # empty if the environment has `get_reward`
    path: str  # of the rows


def load_own_task(environment: str, rows: str | Path, rewards: Sequence[str]) -> OwnTask:
    """Load `module:Class`, a file of rows, and `module:function` for each reward.

    Raises UsageError or TaskFileError: names what cannot be loaded, or file, row and field of a mistake.
    """
    make = load_factory(environment)
    functions = [load_function(name) for name in rewards]
    loaded = load_rows(rows, make)
    EpisodeReward(functions).check(make if isinstance(make, type) else make())
    return OwnTask(make, loaded, functions, str(rows))


def own_task(environment: str | None, rows: str | None, rewards: Sequence[str], tasks: str | None) -> OwnTask | None:
    """The own task that options of a command name; None without any. Raises UsageError if one is missing."""
    if not names_own_task(environment, rows, rewards, tasks):
        return None
    return load_own_task(str(environment), str(rows), rewards)


def names_own_task(environment: str | None, rows: str | None, rewards: Sequence[str], tasks: str | None) -> bool:
    """Whether options of a command name an own task. Raises UsageError if one is missing, or `tasks` is given."""
    if not (environment or rows or rewards):
        return False
    if tasks:
        raise UsageError("--tasks, and --environment with --rows, are two kinds of tasks; give one of them")
    if not environment or not rows:
        missing = "--rows" if environment else "--environment"
        raise UsageError(f"{missing} is missing; an own task is --environment module:Class --rows FILE")
    return True


def load_rows(path: str | Path, environments: Environments | None = None) -> list[dict[str, Any]]:
    """Read rows from a .jsonl, .json (one object or a list) or .parquet file, see `checked_rows`."""
    return checked_rows(read_rows(Path(path)), str(path), environments)


def checked_rows(
    rows: Iterable[Mapping[str, Any]], where: str, environments: Environments | None = None
) -> list[dict[str, Any]]:
    """Rows of an own task, with chat messages as prompts.

    A row has `prompt`, chat messages, and the columns of `reset` and of the reward functions. A text as prompt is
    read as one user message. Raises TaskFileError, which names the file (`where`), row (from 1) and field; for
    columns that `reset` of the row's environment lacks or does not take, too.
    """
    checked = []
    for number, row in enumerate(rows, start=1):
        place = f"{where}, row {number}"
        if {"messages", "tools", "reference"} <= row.keys():
            raise TaskFileError(f"{place}: this is a step task; give such a file as --tasks, without --rows")
        checked.append({**row, "prompt": _prompt(row, place)})
        make: Any = environments
        if isinstance(environments, Mapping):
            make = environments.get(row.get(ENVIRONMENT))
            if make is None:
                name = quoted(row.get(ENVIRONMENT))
                raise TaskFileError(f"{place}, field '{ENVIRONMENT}': {name} is none of {', '.join(environments)}")
        if make is not None and (problem := reset_problem(make, row)):
            raise TaskFileError(f"{place}: {problem}")
    if not checked:
        raise TaskFileError(f"{where}: no rows in it; write one object for each row, with a prompt")
    return checked


def reset_problem(make: Callable[[], Any], columns: Iterable[str]) -> str | None:
    """What is wrong with the columns of a row for an environment's `reset`, with the fix; None if nothing is known."""
    reset = inspect.getattr_static(make, "reset", None)
    if not isinstance(make, type) or not inspect.isfunction(reset):
        return None
    given = {*columns}
    parameters = list(inspect.signature(reset).parameters.values())[1:]  # without `self`
    names = {one.name for one in parameters if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)}
    needed = {one.name for one in parameters if one.name in names and one.default is one.empty}
    if missing := sorted(needed - given):
        return f"{make.__name__}.reset needs {', '.join(missing)}; add the column, or give it a default"
    unknown = sorted(given - names - {ENVIRONMENT})  # which may have selected the environment
    if any(one.kind is one.VAR_KEYWORD for one in parameters) or not unknown:
        return None
    why = "every column of a row is passed, as in TRL"
    return f"{make.__name__}.reset does not take {', '.join(unknown)}; add **_ to its parameters ({why})"


def reset_columns(rows: Sequence[Mapping[str, Any]], environment: str) -> list[dict[str, Any]]:
    """The columns that `reset` gets: of step tasks those of the rows with this environment, if any has it."""
    if not all({"messages", "tools", "reference"} <= row.keys() for row in rows):
        return [dict(row) for row in rows]
    own = [row for row in rows if row.get(ENVIRONMENT) == environment] or rows
    hidden = (*FIELDS, *NOT_FOR_RESET)
    return [{key: value for key, value in row.items() if key not in hidden} for row in own]


def _prompt(row: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
    prompt = row.get("prompt")
    if isinstance(prompt, str) and prompt.strip():
        return [{"role": "user", "content": prompt}]
    form = 'write chat messages, such as [{"role": "user", "content": "..."}], or a text'
    if not isinstance(prompt, list) or not prompt:
        raise TaskFileError(f"{where}, field 'prompt': {'is missing' if prompt is None else quoted(prompt)}; {form}")
    for index, message in enumerate(prompt):
        if not isinstance(message, dict) or message.get("role") not in ROLES:
            raise TaskFileError(f"{where}, field 'prompt[{index}]': {quoted(message)} is no chat message; {form}")
    if prompt[-1]["role"] not in ("user", "tool"):
        raise TaskFileError(
            f"{where}, field 'prompt': ends with a message of the {prompt[-1]['role']}; end with the user's"
        )
    return prompt


def task_of_row(row: Mapping[str, Any], prompt: str | Sequence[Message], start: Any = None) -> Task:
    """Return the Task of a TRL row.

    Its id is the row's, if it has one, and a hash of the row and the prompt: an `id` alone need not be unique (that of
    a document with several questions), and an environment may draw another task for the same row.

    Args:
        row: as the data set has it, before environments, `rollout_func` and rewards change it.
        prompt: the one sampled from, with the environment's first observation.
        start: the environment's first snapshot, if `reset` draws the task, which the prompt need not show.
    """
    if TASK_KEY in row:
        return row[TASK_KEY]
    text = json.dumps([prompt, row] if start is None else [prompt, row, start], sort_keys=True, default=str)
    digest = hashlib.sha1(text.encode("utf-8", "surrogatepass")).hexdigest()[:12]
    if STEP_KEY in row:
        task = step_task(row[STEP_KEY])
        columns = {key: value for key, value in row.items() if key not in ("prompt", STEP_KEY)}
        name = f"{task.id}:{digest}"
        return replace(task, id=name, root=name, columns={**task.columns, **columns})
    name = f"{row['id']}:{digest}" if isinstance(row.get("id"), str | int) else digest
    return Task(id=name, prompt=prompt if isinstance(prompt, str) else tuple(prompt), columns=dict(row))


def row_of_task(
    task: Task, tokenizer: Any = None, template_options: Any = None, columns: Collection[str] | None = None
) -> dict[str, Any]:
    """Return the TRL row of a recovery task: the root's columns, the recovery prompt, and the Task itself.

    `columns` are those of the data set, by default the task's, which for a step task has the fields of its file, too.
    """
    prompt = task.prompt if isinstance(task.prompt, str) else [dict(message) for message in task.prompt]
    row = {key: value for key, value in task.columns.items() if columns is None or key in columns}
    row[TASK_KEY] = task
    if task.reference is not None:
        row[STEP_KEY] = task_to_json(task)
        if not isinstance(prompt, str):
            prompt = render(prompt, task.tools, tokenizer, template_options)
    return {**row, "prompt": prompt}
