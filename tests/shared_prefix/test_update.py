"""Log-probabilities with shared prefixes are TRL's own, values and gradients. Needs the `train` extra."""

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("trl")

from hypothesis import HealthCheck, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from shared_prefix_support import MODELS, TWO_GROUPS, assert_same, gradients, make_batch, make_model, of_trl  # noqa: E402

from fission_grpo.shared_prefix.layout import GroupedBatch, groups_of, pack  # noqa: E402
from fission_grpo.shared_prefix.update import enable, rows_with_gradient, shared_logps  # noqa: E402
from fission_grpo.training.shared_prefix import group_micro_batches  # noqa: E402


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_values_and_gradients_are_those_of_trl(kind, checkpointing):
    model = make_model(kind)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    assert_same(model, make_batch(*TWO_GROUPS))


@pytest.mark.parametrize("kind", ["llama", "gemma3_text"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_adapters_get_the_gradients_of_trl(kind, checkpointing):
    model = make_model(kind, adapter=True)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    assert_same(model, make_batch(*TWO_GROUPS))
    assert {name for name, p in model.named_parameters() if p.grad is not None} == {
        name for name, _ in model.named_parameters() if "lora_" in name
    }


GROUPS = st.lists(
    st.tuples(st.integers(1, 24), st.lists(st.integers(1, 12), min_size=1, max_size=5)), min_size=1, max_size=4
)


@pytest.mark.parametrize("kind", ["llama", "gemma3_text"])
@settings(max_examples=6, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(groups=GROUPS, seed=st.integers(0, 1000), shuffled=st.booleans())
def test_any_lengths_and_any_order_of_rows(kind, groups, seed, shuffled):
    prompts, completions = zip(*groups, strict=True)
    assert_same(make_model(kind), make_batch(list(prompts), list(completions), seed, shuffled), noise=1e-6)


def test_many_completions_are_cut_into_runs_without_a_difference(monkeypatch):
    monkeypatch.setattr("fission_grpo.shared_prefix.layout._MIN_BLOCK", 1)
    batch = make_batch([6], [[5, 3, 4, 6, 2, 9]])
    (group,) = pack(batch, [[0, 1, 2, 3, 4, 5]], batch.completion_mask.bool()).layout.groups
    assert group.blocks == ((6, 11), (11, 14), (14, 18), (18, 24), (24, 26), (26, 35))
    for kind in ("llama", "gemma3_text"):
        assert_same(make_model(kind), batch)


def test_forwards_of_few_tokens_change_nothing():
    assert_same(make_model("qwen3"), make_batch(*TWO_GROUPS), max_tokens=30)


def test_rows_without_advantage_stay_out_of_the_graph_and_change_no_gradient():
    model, batch = make_model("llama"), make_batch(*TWO_GROUPS)
    advantages = torch.tensor([0.0, 0.7, 0.0, -0.7, 0.0, 0.0, 0.0])

    def loss(logps):
        ratio = (logps - logps.detach()).exp()
        return -(ratio * advantages[:, None] * batch.tool_mask).sum() / batch.tool_mask.sum()

    logps, entropies = of_trl(model, batch)
    expected = gradients(model, loss(logps))
    enable(model)
    scores = shared_logps(model, batch, with_gradient=rows_with_gradient(advantages))
    found = gradients(model, loss(scores.logps))
    torch.testing.assert_close(scores.logps, logps, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(scores.entropies, entropies, rtol=1e-5, atol=1e-5)
    for name, gradient in expected.items():
        assert (found[name] - gradient).norm() <= 1e-5 * gradient.norm() + 1e-9, name


def test_a_batch_without_any_advantage_has_a_backward_pass_of_zeros():
    model, batch = make_model("llama"), make_batch(*TWO_GROUPS)
    enable(model)
    logps = shared_logps(model, batch, with_gradient=rows_with_gradient(torch.zeros(7))).logps
    found = gradients(model, (logps * torch.zeros(7, 1)).sum())
    assert (logps[batch.completion_mask.bool()] < 0).all()
    assert len(found) == len(list(model.parameters()))
    assert not any(gradient.any() for gradient in found.values())


def test_a_term_that_every_row_has_keeps_every_row():
    advantages = torch.tensor([0.5, 0.0, -0.5, 0.0])
    assert rows_with_gradient(advantages).tolist() == [True, False, True, False]  # pyright: ignore
    per_token = torch.tensor([[0.0, 0.0], [0.0, 1.0]])
    assert rows_with_gradient(per_token).tolist() == [False, True]  # pyright: ignore
    assert rows_with_gradient(advantages, beta=0.04) is None
    assert rows_with_gradient(advantages, entropy_bonus=True) is None


def test_tool_results_are_read_but_not_scored_where_only_the_policy_counts():
    model, batch = make_model("qwen3"), make_batch(*TWO_GROUPS)
    logps, _ = of_trl(model, batch)
    enable(model)
    scores = shared_logps(model, batch, policy_tokens_only=True)
    assert pack(batch, [[0]], batch.tool_mask.bool()).labels.shape[1] == 3  # of 5 tokens, two are a tool's
    expected = torch.where(batch.tool_mask.bool(), logps, torch.tensor(0.0))
    torch.testing.assert_close(scores.logps, expected, rtol=1e-5, atol=1e-5)


def test_a_truncated_completion_that_trl_masks_has_zeros_as_in_trl():
    batch = make_batch(*TWO_GROUPS)
    mask = batch.completion_mask.clone()
    mask[1] = 0
    masked = GroupedBatch(batch.prompt_ids, batch.prompt_mask, batch.completion_ids, mask, batch.tool_mask * mask)
    assert_same(make_model("llama"), masked)


def test_a_packed_row_holds_every_prompt_once():
    batch = make_batch([4], [[3, 2]])
    packed = pack(batch, [[0, 1]], batch.completion_mask.bool())
    assert packed.input_ids.shape == (1, 9)
    assert packed.layout.positions.tolist() == [0, 1, 2, 3, 4, 5, 6, 4, 5]
    assert packed.layout.owner.tolist() == [-1, -1, -1, -1, 0, 0, 0, 1, 1]
    assert packed.layout.scored.tolist() == [3, 4, 5, 3, 7]
    assert [part.tolist() for part in packed.cells] == [[0, 0, 0, 1, 1], [0, 1, 2, 0, 1]]


def test_groups_are_found_whatever_stands_in_the_padding():
    ids = torch.tensor([[9, 1, 2], [3, 1, 2], [7, 8, 2], [5, 1, 2]])
    mask = torch.tensor([[0, 1, 1], [0, 1, 1], [0, 0, 1], [1, 1, 1]])
    assert groups_of(ids, mask) == [[0, 1], [2], [3]]


def test_micro_batches_get_the_rows_of_a_prompt_together():
    batch = make_batch([4, 5, 6], [[1] * 3] * 3, shuffled=True)
    rows = {"prompt_ids": batch.prompt_ids, "prompt_mask": batch.prompt_mask, "number": torch.arange(9)}
    parts = [{name: values[start : start + 3] for name, values in rows.items()} for start in (0, 3, 6)]
    order = torch.cat([part["number"] for part in group_micro_batches(parts)])
    assert sorted(order.tolist()) == list(range(9))
    shuffled = batch.rows(order)
    assert groups_of(shuffled.prompt_ids, shuffled.prompt_mask) == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
