"""Step tasks out of cases: one for every reference call, in the world as it is just before that call."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from fission_grpo.core.chat import read_result
from fission_grpo.core.types import Task, ToolCall, ToolResult
from fission_grpo.envs.bfcl.functions import class_docs, official_schema
from fission_grpo.envs.bfcl.official import MultiTurnCase
from fission_grpo.envs.bfcl.state import World, new_world
from fission_grpo.envs.bfcl.tasks import (
    SYSTEM,
    Case,
    UserTurn,
    last_message,
    reference_messages,
)


@dataclass(frozen=True)
class Step:
    """A step task and where it stands.

    Args:
        task: its reference is one call, or none where the user turn needs none; its root is the case.
        world: before the call, this step's own.
        ahead: the calls that the user turn needs after this one: early there, they are no clear failure.
    """

    task: Task
    world: World
    ahead: tuple[ToolCall, ...] = ()

    def answers(self, calls: Sequence[ToolCall]) -> tuple[ToolResult, ...]:
        """What the environment answers to calls made here, one after another. The step's world is not changed.

        What the simulator raises is told as TRL tells it, `{'error': '...'}`; an error that it answers stays as it is.

        Example:
            `close_ticket(ticket_id=99)` without such a ticket has the error "Ticket with ID 99 not found."
        """
        world = self.world.copy()
        return tuple(_answer(world, call) for call in calls)


def _answer(world: World, call: ToolCall) -> ToolResult:
    content = world.call(call)
    if world.error is not None:
        return ToolResult(call, str({"error": str(world.error)}), str(world.error))
    return read_result(call, content)


def steps_of_case(case: Case, long_context: bool = False) -> Iterator[Step]:
    """One step per reference call of every user turn, and one per turn that needs no call.

    The dialogue is that of `bfcl.tasks.rows_of_case`, with the calls made before this one and their real results; the
    tools are all documented functions of the case's classes that are not held back. Ids are "<case>#<turn>.<call>".

    Args:
        case: a generated one, or `official_case` of BFCL's own.
        long_context: as in BFCL's category of that name.

    Raises:
        TaskError: a call of the reference fails in its own environment.
    """
    world = new_world(case.classes, case.config, long_context)
    messages: list[dict[str, Any]] = [{"role": "system", "content": SYSTEM}]
    for number, turn in enumerate(case.turns):
        tools = case_tools(case.classes, turn.without)
        messages.append({"role": "user", "content": turn.request})
        wanted: list[ToolCall | None] = [*turn.reference] or [None]
        for index, call in enumerate(wanted):
            prompt, reference = tuple(dict(message) for message in messages), () if call is None else (call,)
            task = Task(f"{case.id}#{number}.{index}", prompt, tools, reference, root=case.id)
            yield Step(task, world.copy(), turn.reference[index + 1 :])
            if call is not None:
                messages += reference_messages(world, call, f"case {case.id!r}, turns[{number}]")
        messages.append(last_message(turn))


def official_case(case: MultiTurnCase) -> Case:
    """A multi-turn case of BFCL's own in the form of a generated one. Functions held out at first are held back."""
    turns, held_out = [], {str(doc["name"]) for docs in case.added.values() for doc in docs}
    for number, (said, reference) in enumerate(zip(case.turns, case.reference, strict=True)):
        held_out -= {str(doc["name"]) for doc in case.added.get(number, ())}
        request = "\n".join(str(message["content"]) for message in said) or "The missing tools are there now."
        turns.append(UserTurn(request, tuple(reference), tuple(sorted(held_out))))
    return Case(case.id, case.classes, case.config, tuple(turns))


@cache
def case_tools(classes: tuple[str, ...], without: tuple[str, ...]) -> tuple[Mapping[str, Any], ...]:
    """The schemas of classes' documented functions but for some, shared by all steps that have the same."""
    return tuple(official_schema(name) for one in classes for name in class_docs(one) if name not in without)
