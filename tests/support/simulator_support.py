"""A step task about closing tickets, environments that refuse or accept, and failures made by hand."""

from fission_grpo.core.types import (
    ErrorKind,
    Failure,
    Task,
    ToolCall,
    ToolResult,
    Turn,
)
from fission_grpo.feedback.dataset import Instance
from fission_grpo.recipes.error_simulator.failures import Found

CLOSE = {
    "name": "close",
    "description": "Close a ticket.",
    "parameters": {"type": "object", "properties": {"ticket_id": {"type": "integer"}}, "required": ["ticket_id"]},
}
ASK = {"role": "user", "content": "Close ticket 7."}
TASK = Task("t1", (ASK,), (CLOSE,), (ToolCall("close", {"ticket_id": 7}),))
RIGHT = '<tool_call>\n{"name": "close", "arguments": {"ticket_id": 7}}\n</tool_call>'
WRONG = RIGHT.replace("7", "8")


def refuses(calls):
    return tuple(ToolResult(call, "{'error': 'no such ticket'}", "no such ticket") for call in calls)


def accepts(calls):
    return tuple(ToolResult(call, "closed") for call in calls)


def found(name="a", api="A", origin="corruption:wrong_value", root="r", diagnosis="error: `ticket_id` is not right"):
    text = f'<tool_call>\n{{"name": "close", "arguments": {{"ticket_id": "{name}"}}}}\n</tool_call>'
    turn = Turn(text, calls=(ToolCall("close", {"ticket_id": name}),))
    task = Task(name, (ASK,), (CLOSE,), TASK.reference)
    return Found(Instance(Failure(task, (turn,), ErrorKind.WRONG_CALL), api, origin, diagnosis, "rules"), root)
