"""The desk's training tasks as step tasks: one turn judged against a reference call, as in the paper.

    python benchmarks/archive/step/step_tasks.py --output runs/evidence/step_tasks.jsonl

Every task gives its first turn, and one later turn of the dialogue in which its solution is called without an error:
the next call of the solution, or the end, where nothing is called any more. The first turn's reference is the call
that the request alone suggests (see `desk.tasks.solutions_by_request`); in half of the tasks it meets an error in the
live world, which step-level training never sees.
"""

import argparse
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fission_grpo.core.chat import render_call
from fission_grpo.core.types import Message, Task, ToolCall
from fission_grpo.data.step_tasks import row_of_step_task
from fission_grpo.envs.desk.env import Desk
from fission_grpo.envs.desk.tasks import make_rows, solution, solutions_by_request
from fission_grpo.envs.wrapper import tool_methods
from fission_grpo.evaluation.episodes import ToolSchemas


def step_tasks(count: int, seed: int) -> list[Task]:
    """The steps of so many tasks of the training split, two each, with the desk's tools."""
    tools = tuple(ToolSchemas(tool_methods(Desk())))
    tasks = []
    for row in make_rows(count, seed, "train"):
        later = _later_turn(row, random.Random(f"step {row['id']}"))
        tasks.append(Task(f"{row['id']}-first", tuple(row["prompt"]), tools, (solutions_by_request(row)[0][0],)))
        tasks.append(Task(f"{row['id']}-later", later[0], tools, later[1]))
    return tasks


def _later_turn(row: Mapping[str, Any], rng: random.Random) -> tuple[tuple[Message, ...], tuple[ToolCall, ...]]:
    """The dialogue after some calls of the solution, and the next one; no call at the end."""
    desk = Desk()
    desk.reset(**row)
    calls = solution(row)
    made = rng.randint(1, len(calls))
    dialogue = list(row["prompt"])
    for call in calls[:made]:
        result = getattr(desk, call.name)(**call.arguments)
        dialogue.append({"role": "assistant", "content": render_call(call)})
        dialogue.append({"role": "tool", "name": call.name, "content": result})
    return tuple(dialogue), tuple(calls[made : made + 1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--count", type=int, default=1024, help="desk tasks, of two steps each")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.output.parent.mkdir(parents=True, exist_ok=True)
    tasks = step_tasks(options.count, options.seed)
    options.output.write_text("".join(row_of_step_task(task) + "\n" for task in tasks), encoding="utf-8")


if __name__ == "__main__":
    main()
