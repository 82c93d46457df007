"""The one-file reference and the library are the same algorithm, on the same fixture."""

import importlib.util
import math
from pathlib import Path

import pytest
import torch
from advantages import group_advantages
from datasets import Dataset

from fission_grpo import FissionGRPOConfig, FissionGRPOTrainer
from fission_grpo.core.types import (
    ErrorKind,
    Failure,
    Task,
    ToolCall,
    ToolResult,
    Turn,
)
from fission_grpo.fission.buffer import FissionBuffer
from fission_grpo.fission.recovery import CorrectiveInstance, recovery_task
from fission_grpo.inference.pretrained import load_starter

PATH = Path(__file__).parent.parent.parent / "examples" / "fission_in_one_file.py"
spec = importlib.util.spec_from_file_location("fission_in_one_file", PATH)
one_file = importlib.util.module_from_spec(spec)
spec.loader.exec_module(one_file)

REWARDS = [1.0, 0.0, 0.0, 1.0, 0.2, 0.4, 0.9, 0.1, 0.5, 0.5, 0.5, 0.5]


def test_reference_fits_in_300_lines_and_knows_no_trl():
    text = PATH.read_text()
    assert len(text.splitlines()) <= 300
    assert "import trl" not in text
    assert "from trl" not in text


def test_advantages_are_the_librarys():
    theirs = one_file.group_advantages(REWARDS, group_size=4)
    assert theirs.tolist() == pytest.approx(group_advantages(REWARDS, 4), abs=1e-6)
    # first group: mean 1/2, deviations +-1/2, std = sqrt(4 * 0.25 / 3) = 0.57735, 0.5 / (0.57735 + 0.0001) = 0.86588
    assert theirs[:4].tolist() == pytest.approx([0.86588, -0.86588, -0.86588, 0.86588], abs=1e-5)
    assert theirs[8:].tolist() == [0.0] * 4  # equal rewards teach nothing


def test_advantages_are_normalised_within_each_group():
    # group 1: mean 0.5, unbiased deviation sqrt(4 * 0.25 / 3) = 0.57735; 0.5 / 0.57745 = 0.86588
    # group 2: no variance, all 0
    assert group_advantages([1, 0, 0, 1, 3, 3, 3, 3], 4) == pytest.approx(
        [0.86588, -0.86588, -0.86588, 0.86588, 0, 0, 0, 0], abs=1e-5
    )


def test_unjudged_rollouts_count_in_no_statistic_and_get_no_advantage():
    # known 1 and 0: mean 0.5, deviation sqrt(0.5 / 1) = 0.70711; 0.5 / 0.70721 = 0.70701
    assert group_advantages([1, None, 0, math.nan], 4) == pytest.approx([0.70701, 0, -0.70701, 0], abs=1e-5)
    assert group_advantages([1, None, None, None], 4) == [0, 0, 0, 0]
    assert group_advantages([None, None], 2) == [0, 0]


def test_groups_must_come_out_even():
    with pytest.raises(ValueError, match="3 rewards cannot be split into groups of 2"):
        group_advantages([1, 2, 3], 2)


def test_loss_and_gradients_are_the_librarys(tmp_path):
    model, tokenizer = load_starter()
    args = FissionGRPOConfig(
        output_dir=str(tmp_path),
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to="none",
        loss_type="grpo",
        beta=0.0,
        per_device_train_batch_size=4,
        num_generations=4,
    )
    prompts = Dataset.from_list([{"prompt": "a"}])
    trainer = FissionGRPOTrainer(model, lambda completions, **_: [0.0] * 4, args, prompts, processing_class=tokenizer)
    trainer.current_gradient_accumulation_steps = 1
    generator = torch.Generator().manual_seed(3)

    def ids(*lengths):
        return [torch.randint(10, 300, (n,), generator=generator).tolist() for n in lengths]

    prompt_ids, completion_ids = ids(9, 9, 9, 9), ids(5, 12, 7, 1)
    mask = [[1, 1, 0, 0, 1], [1] * 4 + [0] * 6 + [1] * 2, [1] * 7, [1]]
    advantages = one_file.group_advantages(REWARDS[4:8], 4)

    loss = one_file.grpo_loss(model, prompt_ids, completion_ids, mask, advantages, tokenizer.pad_token_id)
    loss.backward()
    gradients = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()

    def padded(rows, value):
        return torch.tensor([row + [value] * (12 - len(row)) for row in rows])

    inputs = {
        "prompt_ids": torch.tensor(prompt_ids),
        "prompt_mask": torch.ones(4, 9, dtype=torch.long),
        "completion_ids": padded(completion_ids, tokenizer.pad_token_id),
        "completion_mask": padded([[1] * len(row) for row in completion_ids], 0),
        "tool_mask": padded(mask, 0),
        "advantages": advantages,
        "num_items_in_batch": torch.tensor(4),
    }
    theirs = trainer.compute_loss(model, inputs)
    theirs.backward()
    assert loss.item() == pytest.approx(theirs.item(), rel=1e-5, abs=1e-6)
    for mine, parameter in zip(gradients, model.parameters(), strict=True):
        assert torch.allclose(mine, parameter.grad, rtol=1e-4, atol=1e-6)


def test_buffers_give_the_same_order():
    ours, theirs = FissionBuffer(capacity=4), one_file.Buffer(capacity=4)
    popped = ([], [])
    for step, name in enumerate("abcadebfghc"):
        if name not in ours:
            item = CorrectiveInstance(Task(name, name), step, ErrorKind.RAISED, "rules", "f", "x", 0.0)
            ours.push(item)
        theirs.push(name, name)
        if step % 3 == 2:
            popped[0].extend(item.task.id for item in ours.sample(2))
            popped[1].extend(theirs.pop(2))
    assert popped[0] == popped[1] == ["c", "b", "e", "d", "g", "f"]
    assert [item.task.id for item in ours] == list(theirs.items.values())


def test_recovery_prompts_are_the_same_text():
    _, tokenizer = load_starter()
    call = ToolCall("delete_file", {"name": "plan"})
    wrote = '<tool_call>\n{"name": "delete_file", "arguments": {"name": "plan"}}\n</tool_call>'
    messages = [{"role": "user", "content": "delete the plan"}]

    def rendered(prompt):
        return tokenizer.apply_chat_template([dict(m) for m in prompt], tokenize=False, add_generation_prompt=True)

    error = str({"error": "no file 'plan'"})
    turn = Turn(wrote, calls=(call,), results=(ToolResult(call, error, "no file 'plan'"),))
    ours = recovery_task(Failure(Task("t", tuple(messages)), (turn,), ErrorKind.RAISED, "", 0), "no file 'plan'")

    shown = one_file.user_block(f"<tool_response>\n{error}\n</tool_response>")
    task = one_file.Task("t", rendered(messages), {})
    failed = one_file.Rollout(task, failed_at=(wrote + "<|im_end|>" + shown, [("delete_file", {"name": "plan"})]))
    assert one_file.fission(failed).prompt == rendered(ours.prompt)
