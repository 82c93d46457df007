"""Shared prefixes on a GPU: the numbers and tokens of the unshared computation there. Needs the `train` extra."""

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("trl")
if not torch.cuda.is_available():
    pytest.skip("there is no GPU", allow_module_level=True)

import generation_support  # noqa: E402
from shared_prefix_support import MODELS, MORE_MODELS, VOCABULARY, gradients, make_batch, make_model, of_trl  # noqa: E402

from fission_grpo.shared_prefix.beginnings import Beginnings  # noqa: E402
from fission_grpo.shared_prefix.generate import SharedGeneration  # noqa: E402
from fission_grpo.shared_prefix.layout import GroupedBatch, rows_by_prompt  # noqa: E402
from fission_grpo.shared_prefix.models import use_attention  # noqa: E402
from fission_grpo.shared_prefix.reading import generation_agrees  # noqa: E402
from fission_grpo.shared_prefix.update import enable, shared_logps  # noqa: E402


def batch_with_common_beginning():
    """Three groups of three rows, whose prompts have 70 tokens in common."""
    batch = make_batch([9, 9, 9], [[5, 9, 1], [8, 3, 2], [4, 4, 7]])
    common = torch.randint(1, VOCABULARY, (70,), generator=torch.Generator().manual_seed(5)).expand(9, -1)
    parts = (
        torch.cat([common, batch.prompt_ids], 1),
        torch.cat([torch.ones_like(common), batch.prompt_mask], 1),
        batch.completion_ids,
        batch.completion_mask,
        batch.tool_mask,
    )
    return GroupedBatch(*(part.cuda() for part in parts))


def update_over_micro_batches(model, batch):
    """Log-probabilities and gradients, one group in each micro-batch."""
    uses = rows_by_prompt(batch.prompt_ids, batch.prompt_mask)
    beginnings, logps = Beginnings(model, dict.fromkeys(uses, 1), across_backward=True), []
    model.zero_grad()
    for number, rows in enumerate(uses.values()):
        zero = beginnings.attach() if number == len(uses) - 1 else None
        part = batch.rows(torch.tensor(rows, device="cuda"))
        scores = shared_logps(model, part, beginnings=beginnings)
        loss = loss_of(scores.logps, scores.entropies, part)
        (loss if zero is None else loss + zero).backward()
        logps.append(scores.logps.detach())
    return torch.cat(logps), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def loss_of(logps, entropies, batch):
    weights = (batch.completion_ids % 7 - 3) * batch.completion_mask
    return (logps * weights - 0.1 * entropies * batch.completion_mask).sum()


def difference(found, expected):
    """Norm of the difference over the norm, of all parameters together."""
    assert found.keys() == expected.keys()
    squares = sum((found[name] - gradient).float().norm() ** 2 for name, gradient in expected.items())
    return float((squares / sum(gradient.float().norm() ** 2 for gradient in expected.values())) ** 0.5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", [*MODELS, *MORE_MODELS])
def test_gradients_over_micro_batches_are_those_of_trl(kind, dtype):
    model, batch = make_model(kind).to("cuda", dtype), batch_with_common_beginning()
    logps, entropies = of_trl(model, batch)
    expected = gradients(model, loss_of(logps, entropies, batch))
    enable(model)
    found_logps, found = update_over_micro_batches(model, batch)
    tolerance = 1e-5 if dtype is torch.float32 else 3e-2
    torch.testing.assert_close(found_logps, logps.detach(), rtol=tolerance, atol=tolerance)
    assert difference(found, expected) < tolerance


@pytest.mark.parametrize("do_sample", [False, True])
@pytest.mark.parametrize("kind", generation_support.MODELS | generation_support.MORE_MODELS)
def test_generated_tokens_are_those_of_plain_generate(kind, do_sample):
    model, sharing = generation_support.make_model(kind).cuda(), SharedGeneration()
    common = [3 + i % 20 for i in range(0, 7 * 70, 7)]
    dialogues = [[*common, 4, 5, 6]] * 3 + [[*common, 9]] * 2 + [[7, 8, 9, 10]] * 2
    ids, mask = (part.cuda() for part in generation_support.padded(dialogues))
    config = generation_support.config_of(do_sample=do_sample)
    torch.manual_seed(3)
    plain = model.generate(input_ids=ids, attention_mask=mask, generation_config=config)
    with sharing.on(model):
        torch.manual_seed(3)
        found = model.generate(input_ids=ids, attention_mask=mask, generation_config=config)
    assert sharing.counts["shared"] == 1, sharing.reasons
    assert found.equal(plain)


def test_bfloat16_passes_the_self_check_of_generation():
    model = generation_support.make_model("qwen3").to("cuda", torch.bfloat16)
    use_attention(model)
    assert generation_agrees(model, [[3 + i % 20 for i in range(90)]] * 4)
