"""What is wrong with a call, from its result and its tool's schema."""

import pytest

from fission_grpo.core.tool_schema import classify_call
from fission_grpo.core.types import ErrorKind, ToolCall, ToolResult

PARAMETERS = {"type": "object", "properties": {"folder": {"type": "string"}}, "required": ["folder"]}
TOOLS = ({"name": "cd", "description": "", "parameters": PARAMETERS},)
RIGHT, WRONG, UNKNOWN = ToolCall("cd", {"folder": "a"}), ToolCall("cd", {"folder": 1}), ToolCall("ls")


@pytest.mark.parametrize(
    ("call", "kind"),
    [(RIGHT, ErrorKind.RAISED), (WRONG, ErrorKind.BAD_ARGUMENTS), (UNKNOWN, ErrorKind.UNKNOWN_TOOL)],
)
def test_of_a_failed_call_the_schema_gives_the_kind_and_the_environment_the_message(call, kind):
    problem = classify_call(call, ToolResult(call, "text", "no such folder"), TOOLS)
    assert (problem.kind, problem.message) == (kind, "no such folder")


def test_a_call_that_was_accepted_is_right_whatever_its_schema():
    assert [classify_call(call, ToolResult(call, "ok"), TOOLS) for call in (RIGHT, WRONG, UNKNOWN)] == [None] * 3


def test_a_call_that_was_never_executed_is_checked_by_its_schema():
    assert classify_call(RIGHT, None, TOOLS) is None
    assert classify_call(WRONG, None, TOOLS).message == "`folder` must be a string, got 1"
    assert classify_call(UNKNOWN, None, TOOLS).kind is ErrorKind.UNKNOWN_TOOL


def test_without_schemas_only_results_count():
    assert classify_call(UNKNOWN, None, None) is None
    assert classify_call(UNKNOWN, ToolResult(UNKNOWN, "text", "no"), None).kind is ErrorKind.RAISED
