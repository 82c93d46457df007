"""Training data: prompts are rendered as TRL will render them."""

import json

import pytest

from fission_grpo.core.types import Task, ToolCall
from fission_grpo.data.load import load_training_data
from fission_grpo.data.step_tasks import row_of_step_task, to_rows
from fission_grpo.inference.pretrained import load_starter
from fission_grpo.training.rollouts import row_of_task

THINKING_OFF = "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}"
TOOL = {"name": "look", "description": "", "parameters": {"type": "object", "properties": {}}}
TASK = Task("t", ({"role": "user", "content": "Look."},), (TOOL,), (ToolCall("look"),))


@pytest.fixture
def tokenizer():
    tokenizer = load_starter()[1]
    tokenizer.chat_template += THINKING_OFF  # as in Qwen3's template
    return tokenizer


@pytest.mark.parametrize(
    ("options", "ends"),
    [(None, False), ({}, False), ({"enable_thinking": True}, False), ({"enable_thinking": False}, True)],
)
def test_template_options_reach_step_tasks_and_their_recoveries(tmp_path, tokenizer, options, ends):
    path = tmp_path / "tasks.jsonl"
    path.write_text(row_of_step_task(TASK) + "\n")
    (row,) = load_training_data(str(path), tokenizer, chat_template_kwargs=options).rows
    assert row["prompt"].endswith("</think>\n\n") == ends
    assert row["prompt"] == to_rows([TASK], tokenizer, options)[0]["prompt"]
    assert row_of_task(TASK, tokenizer, options)["prompt"] == row["prompt"]
    message = json.loads(row["fission_task"])["prompt"]
    assert message == [{"role": "user", "content": "Look."}]


def test_the_longest_prompt_is_measured_with_the_template_options(tmp_path, tokenizer):
    path = tmp_path / "tasks.jsonl"
    path.write_text(row_of_step_task(TASK) + "\n")
    length = len(tokenizer(to_rows([TASK], tokenizer)[0]["prompt"])["input_ids"])
    assert load_training_data(str(path), tokenizer, max_prompt_tokens=length).rows
    with pytest.raises(ValueError, match="no task of"):
        load_training_data(
            str(path), tokenizer, max_prompt_tokens=length, chat_template_kwargs={"enable_thinking": False}
        )
