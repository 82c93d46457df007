"""`fission-grpo eval`: a policy on held-out tasks, one line added to `eval.jsonl`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fission_grpo.model_path import model_path
from fission_grpo.run_files import EVAL, STATE, read_history


def evaluate_command(argv: list[str]) -> int:
    """Evaluate a model. Returns 0, or 2 after one line on stderr about what is wrong."""
    arguments = _parser().parse_args(argv)
    try:
        from fission_grpo.evaluation.local import LocalPolicy

        policy = LocalPolicy(
            *_load(arguments.model),
            temperature=arguments.temperature,
            max_new_tokens=arguments.max_new_tokens,
            batch_size=arguments.batch_size,
            seed=arguments.seed,
        )
        print(run(policy, arguments))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        print(f"error: evaluation needs {error.name}; pip install 'fission-grpo[train]'", file=sys.stderr)
        return 1
    return 0


def run(policy: Any, arguments: argparse.Namespace) -> str:
    """Evaluate, append to `OUTPUT/eval.jsonl`, and return what to print."""
    from fission_grpo.evaluate import evaluate, summarise

    step, tokens = trained(Path(arguments.model))
    rows, environments = tasks(arguments)
    summary = summarise(evaluate(policy, environments, rows, max_turns=arguments.max_turns))
    name = arguments.name or Path(arguments.model).name
    arguments.output.mkdir(parents=True, exist_ok=True)
    path = arguments.output / EVAL
    with path.open("a", encoding="utf-8") as file:
        file.write(summary.to_json(name, step, tokens) + "\n")
    low, high = summary.success_ci
    lines = [f"{name}: success {summary.success:.3f} [{low:.3f}, {high:.3f}] on {summary.tasks} tasks"]
    if summary.recovery_rate is not None and summary.recovery_ci is not None:
        low, high = summary.recovery_ci
        lines.append(
            f"error recovery {summary.recovery_rate:.3f} [{low:.3f}, {high:.3f}]: {summary.recovered} of the "
            f"{summary.error_cases} tasks with an error"
        )
    else:
        lines.append("no task met an error, so there is no recovery rate")
    return "\n".join([*lines, f"added to {path}"])


def tasks(arguments: argparse.Namespace) -> tuple[Sequence[Mapping[str, Any]], Any]:
    """Rows and environments: the built-in ones, or a case file's. Raises ValueError if there are none."""
    if arguments.tasks == "desk":
        from fission_grpo.environments.desk import Desk
        from fission_grpo.environments.desk_tasks import make_rows

        return make_rows(arguments.num_tasks, arguments.seed, "held_out"), Desk
    from fission_grpo.training_tasks import case_rows, is_case_file

    if not is_case_file(arguments.tasks):
        raise ValueError(
            f"--tasks {arguments.tasks!r} is neither 'desk' nor a case file (`fission-grpo tasks generate`)"
        )
    rows, environments = case_rows(arguments.tasks, arguments.skip_tasks)
    return rows[: arguments.num_tasks], environments


def trained(folder: Path) -> tuple[int, int]:
    """Training steps and sampled tokens behind a run directory's model, zeros if it has no training log.

    Raises:
        RunFileError: there is one, and it is damaged.
    """
    state = folder / STATE
    history = read_history(state) if state.is_file() else ()
    steps = [row["step"] for row in history if "step" in row]
    tokens = [row["fission/generated_tokens"] for row in history if "fission/generated_tokens" in row]
    return int(max(steps, default=0)), int(max(tokens, default=0))


def _load(name: str) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = model_path(name)
    return AutoModelForCausalLM.from_pretrained(path, dtype="auto"), AutoTokenizer.from_pretrained(path)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "fission-grpo eval",
        description="Success and error recovery of a policy on held-out tasks in a live environment.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--model", required=True, help="folder, hub id, or 'starter'", default=argparse.SUPPRESS)
    parser.add_argument(
        "--tasks", default="desk", help="'desk' (the built-in environment's held-out tasks), or a case file"
    )
    parser.add_argument(
        "--skip_tasks", type=int, default=0, help="leave out so many cases of a file, as seen in training"
    )
    parser.add_argument(
        "--output",
        type=Path,
        required=True,
        metavar="RUN_DIR",
        default=argparse.SUPPRESS,
        help="where eval.jsonl is appended to",
    )
    parser.add_argument("--num_tasks", type=int, default=256, help="number of tasks")
    parser.add_argument("--seed", type=int, default=0, help="of the tasks and the sampling")
    parser.add_argument("--temperature", type=float, default=1.0, help="of the sampling; 0: most probable token")
    parser.add_argument("--max_turns", type=int, default=4, help="assistant turns per task")
    parser.add_argument("--max_new_tokens", type=int, default=64, help="limit of one turn, in tokens")
    parser.add_argument("--batch_size", type=int, default=64, help="dialogues sampled side by side")
    parser.add_argument("--name", help="name in eval.jsonl; default: the model folder's")
    return parser
