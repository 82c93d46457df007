"""Support for tests of simulators behind endpoints: failures that differ, a source with short waits."""

import endpoint_support  # noqa: F401 - retries without long waits

from fission_grpo.core.chat import parse, render_call
from fission_grpo.core.types import (
    ErrorKind,
    Failure,
    Task,
    ToolCall,
)
from fission_grpo.feedback.endpoint import EndpointFeedback, FeedbackModelOptions

TOOLS = tuple(
    {"name": name, "description": name, "parameters": {"type": "object", "properties": {"to": {"type": "string"}}}}
    for name in ("fly", "drive")
)
SAID = "error: `to` is not right."


def failure_of(number=0, kind=ErrorKind.WRONG_CALL):
    """The policy went to Rome instead of Oslo."""
    turn = parse(render_call(ToolCall("fly", {"to": "Rome"})))
    prompt = ({"role": "user", "content": f"Book journey {number}."},)
    return Failure(Task(f"t{number}", prompt, TOOLS, (ToolCall("fly", {"to": "Oslo"}),)), (turn,), kind)


def source_of(server, **options):
    given = {"timeout": 5.0, "max_retries": 2, "patience": 10.0}
    return EndpointFeedback("small", server.url, FeedbackModelOptions(**given | options))


def answers_of(source, *failures):
    return [future.result(timeout=20) for future in source.start(failures or [failure_of()])]
