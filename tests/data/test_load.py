"""Training data: prompts are rendered as TRL will render them."""

import json

import pytest
from scripted_policy import ScriptedPolicy

from fission_grpo.cli.main import main
from fission_grpo.core.errors import UsageError
from fission_grpo.core.types import Task, ToolCall
from fission_grpo.data.load import load_tasks, load_training_data
from fission_grpo.data.rows import row_of_task
from fission_grpo.data.step_tasks import row_of_step_task, to_rows
from fission_grpo.envs.step_calls import guard_with
from fission_grpo.envs.wrapper import ToolLimits
from fission_grpo.evaluation.episodes import run_step
from fission_grpo.inference.pretrained import load_starter

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


# -- environments of step tasks -----------------------------------------------------------------------------------

ASK = {"name": "ask", "description": "", "parameters": {"type": "object", "properties": {"name": {"type": "string"}}}}
IN_LOCKER = {
    "messages": [{"role": "user", "content": "What is red's code?"}],
    "tools": [ASK],
    "reference": [{"name": "ask", "arguments": {"name": "red"}}],
}
LOCKER = {"environment": "step_environments:Locker", "codes": {"red": "rrr"}}


def lines(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_tasks_are_tried_in_their_environments_before_training(tmp_path, tokenizer, capsys):
    plain = IN_LOCKER | {"environment": None, "codes": None}
    path = lines(tmp_path / "t.jsonl", plain, IN_LOCKER | LOCKER, plain, IN_LOCKER | LOCKER | {"codes": {"blue": "b"}})
    assert len(load_training_data(path, tokenizer).rows) == 4
    said = (
        f"{path}: 2 tasks tried in their environments; references that fail there: 1, the first: {path}, row 4: ask: "
    )
    assert said in capsys.readouterr().err
    load_training_data(path, tokenizer, skip_tasks=1, num_tasks=1)
    assert f"{path}: 1 tasks tried in their environments\n" in capsys.readouterr().err


def test_a_mistake_names_the_line_of_the_file_whatever_is_skipped(tmp_path, tokenizer):
    path = lines(tmp_path / "t.jsonl", IN_LOCKER, IN_LOCKER, IN_LOCKER | LOCKER | {"environment": "no.module:Locker"})
    (tmp_path / "t.jsonl").write_text("\n" + (tmp_path / "t.jsonl").read_text())
    with pytest.raises(ValueError, match=r"t.jsonl, row 4, field 'environment': no.module: cannot be imported"):
        load_training_data(path, tokenizer, skip_tasks=1)


@pytest.mark.parametrize("isolate", [False, True])
def test_the_runs_time_limit_holds_where_tasks_are_tried(tmp_path, tokenizer, isolate):
    path = lines(tmp_path / "t.jsonl", IN_LOCKER | LOCKER | {"environment": "step_environments:ResetHangs"})
    with pytest.raises(ValueError, match=r"row 1, field 'environment': .*reset was stopped after 0.2 s"):
        load_training_data(path, tokenizer, guard=guard_with(ToolLimits(timeout=0.2), isolate))


def test_the_check_tries_all_tasks_unless_it_is_not_to(tmp_path, capsys):
    rows = [IN_LOCKER | LOCKER] * 70 + [IN_LOCKER | LOCKER | {"codes": None}]
    path = lines(tmp_path / "t.jsonl", *rows)
    assert main(["tasks", "check", path, "--no_environments"]) == 0
    assert capsys.readouterr().out == f"{path}: ok, 71 tasks (1 call: 71; 1.0 tools each on average)\n"
    assert main(["tasks", "check", lines(tmp_path / "u.jsonl", *rows, IN_LOCKER | {"environment": "desks"})]) == 1
    error = capsys.readouterr().err
    assert (
        f"{tmp_path / 'u.jsonl'}, row 72, field 'environment': unknown environment 'desks'; write desk, bfcl," in error
    )


def test_an_environment_is_checked_with_the_columns_of_its_step_tasks(tmp_path, capsys):
    strict = "class Strict:\n    def reset(self, code):\n        self.code = code\n    def say(self) -> str:\n"
    (tmp_path / "strict.py").write_text(strict + '        """Say it."""\n        return self.code\n')
    name = f"{tmp_path / 'strict.py'}:Strict"
    own = IN_LOCKER | {"environment": name, "code": "rrr", "following": [[]], "id": "a"}
    path = lines(tmp_path / "t.jsonl", IN_LOCKER | LOCKER, own, IN_LOCKER)
    assert main(["check-environment", name, "--rows", path]) == 0
    assert "reset                ok       with 1 row\n" in capsys.readouterr().out


def test_tasks_with_an_environment_are_evaluated_as_step_tasks(tmp_path):
    path = lines(tmp_path / "t.jsonl", IN_LOCKER | LOCKER | {"id": "red"})
    (task,) = load_tasks(path)
    policy = ScriptedPolicy(lambda _: '<tool_call>{"name": "ask", "arguments": {"name": "red"}}</tool_call>')
    case = run_step(task)
    with pytest.raises(StopIteration) as ended:
        case.send(policy.reply([next(case)])[0])
    assert (ended.value.value.id, ended.value.value.success) == ("red", True)


def test_tasks_left_out_of_the_built_in_steps_are_drawn_beside_those_taken(tokenizer):
    first = load_training_data("desk:steps", tokenizer, num_tasks=6, seed=3)
    later = load_training_data("desk:steps", tokenizer, skip_tasks=4, num_tasks=2, seed=3)
    assert list(later.rows) == list(first.rows)[4:]
    with pytest.raises(UsageError, match="of desk:steps at most 100,000 tasks can be drawn"):
        load_training_data("desk:steps", tokenizer, skip_tasks=99_999, num_tasks=2)
