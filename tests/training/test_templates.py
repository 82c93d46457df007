"""Chat templates of the models people train: what of a policy's own text a recovery prompt shows again.

The template texts are those shipped with TRL (Qwen2.5, Qwen3, Qwen3-Instruct-2507, Llama 3.1) and SmolLM2's own; no
weights are needed. docs/templates.md holds the table.
"""

from importlib import resources
from pathlib import Path

import pytest

from fission_grpo.core.chat import parse, render_call
from fission_grpo.core.types import (
    ErrorKind,
    Failure,
    Task,
    ToolCall,
    ToolResult,
    Turn,
)
from fission_grpo.data.rows import row_of_task
from fission_grpo.fission.recovery import recovery_task
from fission_grpo.inference.pretrained import load_starter
from fission_grpo.training.tool_call_parser import _writes_our_format

SMOLLM2 = Path(__file__).parent.parent / "fixtures" / "smollm2.jinja"
TEMPLATES = {
    "qwen2.5": "qwen2_5.jinja",
    "qwen3": "qwen3.jinja",
    "qwen3-instruct-2507": "qwen3_instruct_2507.jinja",
    "llama3.1": "llama3_1.jinja",
    "smollm2": SMOLLM2,
    "starter": None,
}
STRIPPED = {("llama3.1", "odd spaces")}  # Llama's template trims what an assistant said
TOOL = {
    "name": "move",
    "description": "Move a file",
    "parameters": {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]},
}
ASK = ({"role": "user", "content": "Move the plan."},)
GOOD, BAD = ToolCall("look", {}), ToolCall("move", {"name": "plan"})
ERROR = "{'error': 'no file'}"
TEXTS = {
    "call": render_call(BAD),
    "thought and call": f"<think>\nThe plan, then.\n</think>\n\n{render_call(BAD)}",
    "words": "I have moved it.",
    "words and call": f"Moving it.\n{render_call(BAD)}",
    "two calls": f"{render_call(GOOD)}\n{render_call(BAD)}",
    "odd spaces": f"  {render_call(BAD)} ",
    "unreadable": '<tool_call>\n{"name": "move", "arguments": {"name": }\n</tool_call>',
}


@pytest.fixture(scope="module")
def base():
    return load_starter()[1]


@pytest.fixture(params=TEMPLATES)
def tokenizer(base, request):
    """The starter's tokenizer with another model's template: what is rendered is text, whoever tokenizes it."""
    import copy

    named = TEMPLATES[request.param]
    made = copy.deepcopy(base)
    if named is not None:
        path = named if isinstance(named, Path) else resources.files("trl") / "chat_templates" / named
        made.chat_template = path.read_text()
    made.family = request.param
    return made


def rendered(tokenizer, messages):
    return tokenizer.apply_chat_template(messages, tools=[TOOL], add_generation_prompt=True, tokenize=False)


def failure(text, results, kind=ErrorKind.RAISED, index=0, before=()):
    turn = parse(text)
    turn = Turn(text, turn.content, turn.calls, turn.error, results)
    return Failure(Task("t", ASK), (*before, turn), kind, "no file", index)


def prompt_after(tokenizer, fail, feedback="no file"):
    row = row_of_task(recovery_task(fail, feedback), tokenizer)
    return rendered(tokenizer, row["prompt"])


@pytest.mark.parametrize("name", TEXTS)
def test_a_recovery_prompt_shows_the_very_text_the_policy_wrote(tokenizer, name):
    text = TEXTS[name]
    calls = parse(text).calls
    results = tuple(ToolResult(call, ERROR, "no file") for call in calls)
    prompt = prompt_after(tokenizer, failure(text, results, index=len(calls) - 1 if calls else None))
    opening = rendered(tokenizer, [dict(message) for message in ASK])
    exact = prompt.startswith(opening + text)
    assert exact == ((tokenizer.family, name) not in STRIPPED)
    assert text.strip() in prompt  # what differs stands around it, in the prompt, which is never trained


@pytest.mark.parametrize("told", ["tool", "user"])
def test_qwen3_forgets_thoughts_only_before_a_later_user_message(base, told):
    import copy

    made = copy.deepcopy(base)
    made.chat_template = (resources.files("trl") / "chat_templates" / "qwen3.jinja").read_text()
    text = TEXTS["thought and call"]
    results = tuple(ToolResult(call, ERROR, "no file") for call in parse(text).calls) if told == "tool" else ()
    kind = ErrorKind.RAISED if told == "tool" else ErrorKind.LOW_REWARD
    prompt = prompt_after(made, failure(text, results, kind, 0 if told == "tool" else None), "look again")
    assert ("The plan, then." in prompt) == (told == "tool")


def test_earlier_turns_of_the_episode_are_shown_as_they_were(tokenizer):
    first = Turn(render_call(GOOD), calls=(GOOD,), results=(ToolResult(GOOD, "plan.txt"),))
    fail = failure(TEXTS["call"], (ToolResult(BAD, ERROR, "no file"),), before=(first,))
    prompt = prompt_after(tokenizer, fail)
    places = [prompt.index(part) for part in (render_call(GOOD), "plan.txt", render_call(BAD), "no file")]
    assert places == sorted(places)


def test_parse_errors_are_reported_where_the_template_writes_our_format(tokenizer):
    assert _writes_our_format(tokenizer) == (tokenizer.family not in ("llama3.1", "smollm2"))
