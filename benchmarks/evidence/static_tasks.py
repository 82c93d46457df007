"""Task files of the suite `static`: the desk's turns against the calls that work, with and without offline errors.

    python benchmarks/evidence/static_tasks.py --output runs/evidence/static_tasks.jsonl [--without_environment]
        [--errors guess | --errors runs/evidence/other_failures/fission.jsonl] [--tasks FILE]

An offline error turn is a task whose dialogue goes on after a failed call: request, failed call, the desk's error; its
reference is the call that works. The failed calls are those that the generator of the requests knows to be the typical
guess (`guess`), or those that a policy sampled in another run (its log). A third of the file's tasks are such turns.
"""

import argparse
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from fission_grpo.core.chat import dialogue_results, render_call
from fission_grpo.core.types import Message, Task, ToolCall, ToolResult
from fission_grpo.data.step_tasks import load_step_tasks, row_of_step_task
from fission_grpo.envs.desk.steps import make_steps
from fission_grpo.envs.desk.tasks import make_rows, solutions_by_request
from fission_grpo.envs.step_calls import StepEnvironments
from fission_grpo.fission.event_log import read_events


def guessed_errors(tasks: Sequence[Task], seed: int) -> Iterator[Task]:
    """The first turns after the call that the request suggests, where it fails."""
    guesses = {row["id"]: solutions_by_request(row)[0][0] for row in make_rows(len(tasks) // 2, seed, "train")}
    environments = StepEnvironments()
    for task in tasks[::2]:
        guess: ToolCall = guesses[task.id.removesuffix("-first")]
        for result in environments.results(task, [guess]) or ():
            if result.error is not None:
                yield _after(task, [{"role": "assistant", "content": render_call(guess)}, _answer(result)])


def sampled_errors(tasks: Sequence[Task], log: Path) -> Iterator[Task]:
    """The turns after the failures of a run on the same tasks that the desk answered with an error."""
    by_id = {task.id: task for task in tasks}
    for event in read_events(log):
        record = event.record
        if record["event"] == "pushed" and record["kind"] in ("raised", "bad_arguments", "unknown_tool"):
            task = by_id[record["root"].rpartition(":")[0]]
            yield _after(task, record["prompt"][len(task.prompt) :])


def _answer(result: ToolResult) -> Message:
    return {"role": "tool", "name": result.call.name, "content": result.content}


def _after(task: Task, messages: Sequence[Message]) -> Task:
    prompt = (*task.prompt, *messages)
    return replace(task, id=f"{task.id}-error", prompt=prompt, history=dialogue_results(prompt))


def with_errors(tasks: Sequence[Task], errors: Sequence[Task]) -> list[Task]:
    """The tasks with an error turn after every second one, which come again if there are too few."""
    again = itertools.cycle(errors)
    mixed = [one for task in zip(tasks[::2], tasks[1::2], strict=True) for one in (*task, next(again))]
    return [replace(task, id=f"{task.id}#{number}") for number, task in enumerate(mixed)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--tasks", type=Path, help="a step-task file, instead of the desk's")
    parser.add_argument("--count", type=int, default=4096, help="tasks, two of each request")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--errors", default="", help="'guess', or the fission.jsonl of a run on the same tasks")
    parser.add_argument("--without_environment", action="store_true", help="so that no call can be made")
    options = parser.parse_args()
    tasks = load_step_tasks(options.tasks) if options.tasks else make_steps(options.count, options.seed, "train")
    if options.errors:
        found = (
            guessed_errors(tasks, options.seed)
            if options.errors == "guess"
            else sampled_errors(tasks, Path(options.errors))
        )
        tasks = with_errors(tasks, list(found))
    if options.without_environment:
        tasks = [replace(task, columns={}, history=()) for task in tasks]
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text("".join(row_of_step_task(task) + "\n" for task in tasks), encoding="utf-8")
    print(f"{options.output}: {len(tasks)} tasks, {sum('-error' in task.id for task in tasks)} of them after an error")


if __name__ == "__main__":
    main()
