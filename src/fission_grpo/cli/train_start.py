"""`fission-grpo train` before the libraries are loaded, which takes seconds: what can be checked without them."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import yaml

from fission_grpo.cli.train_options import help_text
from fission_grpo.core.errors import TaskFileError, UsageError
from fission_grpo.core.terminal import show
from fission_grpo.data.load import DESK_STEPS, desk_requests, is_case_file, load_tasks
from fission_grpo.data.rows import own_task
from fission_grpo.fission.options import check_choices
from fission_grpo.inference.pretrained import model_path

REPORTERS = ("wandb", "trackio", "tensorboard", "mlflow", "swanlab")  # packages by their values of `report_to`
CHECKED_BYTES = 2_000_000  # largest task file that is read twice, here and for training [ours]


def train_command(argv: list[str]) -> int:
    """Check the tasks, the environment and the model's folder, and run `cli.train`. Returns the exit status."""
    if {"-h", "--help"} & {*argv}:
        show(help_text())
        return 0
    if "--help-all" not in argv:
        try:
            check_early(argv)
        except (UsageError, TaskFileError, ValueError) as error:
            show(f"error: {error}", error=True)
            return 2
    from fission_grpo.cli.train import train_command as train

    return train(argv)


def check_early(argv: list[str]) -> None:
    """Raise UsageError, TaskFileError or ValueError for tasks, an environment or a model that cannot be used."""
    given = _read_loosely(argv)
    tasks, model = given.get("tasks"), given.get("model_name_or_path")
    rewards = given.get("reward") or []
    rewards = [rewards] if isinstance(rewards, str) else rewards
    texts = [given.get("environment"), given.get("rows"), tasks, model, *rewards]
    if not all(value is None or isinstance(value, str) for value in texts):
        return  # the parser of all options says what is wrong
    check_choices({name: value for name, value in given.items() if isinstance(value, str)})
    own_task(given.get("environment"), given.get("rows"), rewards, tasks)
    if tasks and tasks != DESK_STEPS and not desk_requests(tasks):
        path = Path(tasks)
        if not path.is_file():
            raise UsageError(f"tasks: {tasks!r} is no file; give 'desk', 'desk:2', 'desk:steps' or the path of a file")
        if path.stat().st_size <= CHECKED_BYTES and path.suffix == ".jsonl" and not is_case_file(tasks):
            load_tasks(tasks)
    if model:
        model_path(model)
    reporters = given.get("report_to") or []
    for name in [reporters] if isinstance(reporters, str) else reporters:
        if name in REPORTERS and importlib.util.find_spec(name) is None:
            raise UsageError(f"report_to: {name} is not installed; pip install {name}, or set report_to to none")


def _read_loosely(argv: list[str]) -> dict[str, Any]:
    """The options of the file of `--config` and of the command line, unchecked, without what cannot be read."""
    words = [part for word in argv for part in (word.split("=", 1) if word.startswith("--") else [word])]
    found: dict[str, Any] = {}
    for word, *values in _options(words):
        found[word.removeprefix("--").replace("-", "_")] = values[0] if len(values) == 1 else values
    config = found.get("config")
    try:
        in_file = yaml.safe_load(Path(config).read_text(encoding="utf-8-sig")) if isinstance(config, str) else {}
    except (OSError, yaml.YAMLError, ValueError, RecursionError):  # the parser of all options says what is wrong
        in_file = {}
    return {**(in_file if isinstance(in_file, dict) else {}), **found}


def _options(words: list[str]) -> list[list[str]]:
    """Options, each with its values. Example: ["--a", "1", "2", "--b"] gives [["--a", "1", "2"], ["--b"]]."""
    options: list[list[str]] = []
    for word in words:
        if word.startswith("--"):
            options.append([word])
        elif options:
            options[-1].append(word)
    return options
