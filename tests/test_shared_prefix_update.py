"""Log-probabilities with shared prefixes are TRL's own, values and gradients. Needs the `train` extra."""

from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("trl")

from accelerate import Accelerator  # noqa: E402
from hypothesis import HealthCheck, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from peft import LoraConfig, get_peft_model  # noqa: E402
from transformers import AutoConfig, AutoModelForCausalLM  # noqa: E402
from trl import GRPOTrainer  # noqa: E402
from trl.trainer.utils import add_fused_lm_head, use_adapter  # noqa: E402

from fission_grpo.shared_prefix.check import agrees  # noqa: E402
from fission_grpo.shared_prefix.layout import GroupedBatch, groups_of, pack, whole_groups  # noqa: E402
from fission_grpo.shared_prefix.update import enable, rows_with_gradient, shared_logps, unsupported  # noqa: E402

VOCABULARY = 61
SLIDING = {"sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"]}
MODELS = {
    "llama": {},
    "mistral": {"sliding_window": 5},
    "qwen2": {},
    "qwen3": {"head_dim": 8},
    "qwen2 with windows": {"use_sliding_window": True, **SLIDING},
    "gemma3_text": {"head_dim": 8, "query_pre_attn_scalar": 16, **SLIDING},
}


def make_model(kind: str, adapter: bool = False, temperature: float = 0.7):
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        kind.split()[0],
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        pad_token_id=0,
        **MODELS[kind],
    )
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    add_fused_lm_head(model, temperature, outputs=("log_probs", "entropy"))
    if adapter:
        lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False)
        model = get_peft_model(model, lora)
    return model.train()


def make_batch(prompts: list[int], completions: list[list[int]], seed: int = 0, shuffled: bool = False):
    """Groups with prompts and completions of the lengths given; every third token of a completion is a tool's."""
    generator = torch.Generator().manual_seed(seed)
    width, length = max(prompts), max(max(group) for group in completions)
    rows = []
    for size, group in zip(prompts, completions, strict=True):
        tokens = torch.randint(1, VOCABULARY, (size,), generator=generator)
        rows += [(tokens, size, own) for own in group]
    if shuffled:
        rows = [rows[i] for i in torch.randperm(len(rows), generator=generator).tolist()]
    prompt_ids, completion_ids = torch.zeros(len(rows), width).long(), torch.zeros(len(rows), length).long()
    prompt_mask, completion_mask = torch.zeros_like(prompt_ids), torch.zeros_like(completion_ids)
    for i, (tokens, size, own) in enumerate(rows):
        prompt_ids[i, width - size :], prompt_mask[i, width - size :] = tokens, 1
        completion_ids[i, :own] = torch.randint(1, VOCABULARY, (own,), generator=generator)
        completion_mask[i, :own] = 1
    tool_mask = (torch.arange(length) % 3 != 1).long() * completion_mask
    return GroupedBatch(prompt_ids, prompt_mask, completion_ids, completion_mask, tool_mask)


def of_trl(model, batch):
    """TRL's own function, without its profiler."""
    ids = torch.cat([batch.prompt_ids, batch.completion_ids], 1)
    mask = torch.cat([batch.prompt_mask, batch.completion_mask], 1)
    compute = GRPOTrainer._get_per_token_logps_and_entropies.__wrapped__  # pyright: ignore
    trainer = SimpleNamespace(accelerator=Accelerator(cpu=True))
    return compute(trainer, model, ids, mask, batch.completion_ids.shape[1], compute_entropy=True)[:2]


def gradients(model, loss) -> dict:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def loss_of(logps, entropies, batch, seed: int = 1):
    """A clipped policy loss with an entropy bonus, over the policy's tokens."""
    generator = torch.Generator().manual_seed(seed)
    advantages = torch.randn(len(logps), 1, generator=generator)
    old = logps.detach() + 0.3 * torch.randn(logps.shape, generator=generator)
    ratio = (logps - old).exp()
    per_token = -torch.min(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages) - 0.1 * entropies
    return (per_token * batch.tool_mask).sum() / batch.tool_mask.sum()


def assert_same(model, batch, noise: float = 0.0, **options):
    """Log-probabilities, entropies, loss and every gradient agree to 1e-5 relative.

    `noise` is for gradients that are 0 but for rounding (those of a query that sees one key): a share of the norm of
    the whole gradient by which one parameter's may differ besides.
    """
    logps, entropies = of_trl(model, batch)
    loss = loss_of(logps, entropies, batch)
    expected = gradients(model, loss)
    enable(model)
    scores = shared_logps(model, batch, **options)
    shared_loss = loss_of(scores.logps, scores.entropies, batch)
    found = gradients(model, shared_loss)
    torch.testing.assert_close(scores.logps, logps, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(scores.entropies, entropies, rtol=1e-5, atol=1e-5)
    assert abs(shared_loss - loss) <= 1e-5 * abs(loss)
    assert found.keys() == expected.keys()
    floor = noise * sum(gradient.norm() ** 2 for gradient in expected.values()) ** 0.5
    for name, gradient in expected.items():
        assert (found[name] - gradient).norm() <= 1e-5 * gradient.norm() + floor, name


TWO_GROUPS = ([19, 7], [[5, 9, 1, 4], [8, 3, 2]])


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
@settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(groups=GROUPS, seed=st.integers(0, 1000), shuffled=st.booleans())
def test_any_lengths_and_any_order_of_rows(kind, groups, seed, shuffled):
    prompts, completions = zip(*groups, strict=True)
    assert_same(make_model(kind), make_batch(list(prompts), list(completions), seed, shuffled), noise=1e-6)


def test_many_completions_are_cut_into_runs_without_a_difference(monkeypatch):
    monkeypatch.setattr("fission_grpo.shared_prefix.layout._SMALLEST_BLOCK", 1)
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
    scores = shared_logps(model, batch, policy_tokens_only=True, fill=torch.full_like(logps, -3.0))
    assert pack(batch, [[0]], batch.tool_mask.bool()).labels.shape[1] == 3  # of 5 tokens, two are a tool's
    expected = torch.where(batch.tool_mask.bool(), logps, torch.tensor(-3.0))
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


def test_shuffling_keeps_the_rows_of_a_prompt_together():
    batch = make_batch([4, 5, 6], [[1] * 3] * 3, shuffled=True)
    order = whole_groups(batch.prompt_ids, batch.prompt_mask, torch.Generator().manual_seed(1))
    assert sorted(order.tolist()) == list(range(9))
    shuffled = batch.rows(order)
    assert groups_of(shuffled.prompt_ids, shuffled.prompt_mask) == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]


@pytest.mark.parametrize("kind", MODELS)
def test_the_self_check_agrees_with_a_supported_model_and_sets_it_back_to_training(kind):
    model = make_model(kind)
    model.model.layers[0].eval()
    enable(model)
    assert agrees(model, make_batch(*TWO_GROUPS))
    assert model.training
    assert not model.model.layers[0].training


def test_the_self_check_sees_completions_that_see_each_other(monkeypatch, caplog):
    model, batch = make_model("llama"), make_batch(*TWO_GROUPS)
    enable(model)
    honest = pack

    def blind(*arguments):
        packed = honest(*arguments)
        packed.layout.owner.fill_(-1)
        return packed

    monkeypatch.setattr("fission_grpo.shared_prefix.update.pack", blind)
    assert not agrees(model, batch)
    assert "prefixes cannot be shared with this model" in caplog.text


@pytest.mark.parametrize("autocast", [False, True])
def test_bfloat16_agrees_to_its_own_rounding(autocast):
    model, batch = make_model("llama"), make_batch(*TWO_GROUPS)
    exact, entropies = of_trl(model, batch)
    expected = gradients(model, loss_of(exact, entropies, batch))
    enable(model if autocast else model.bfloat16())
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        scores = shared_logps(model, batch)
        assert agrees(model, batch)
    found = gradients(model, loss_of(scores.logps, scores.entropies, batch))
    torch.testing.assert_close(scores.logps.float(), exact, rtol=2e-2, atol=2e-2)
    error = sum((found[name].float() - gradient).norm() ** 2 for name, gradient in expected.items()) ** 0.5
    assert error <= 2e-2 * sum(gradient.norm() ** 2 for gradient in expected.values()) ** 0.5


def test_a_reference_without_the_adapter_is_trls():
    model, batch = make_model("qwen3", adapter=True), make_batch(*TWO_GROUPS)
    enable(model)
    with torch.no_grad(), use_adapter(model, adapter_name=None):
        expected, _ = of_trl(model, batch)
        reference = shared_logps(model, batch, max_tokens=40).logps
    torch.testing.assert_close(reference, expected, rtol=1e-5, atol=1e-5)
    assert (shared_logps(model, batch).logps - reference).abs().max() > 1e-3


def test_what_the_graph_keeps_of_a_prompt_does_not_grow_with_the_group():
    """Eight rows: TRL keeps about eight times as much per prompt token; attention probabilities would show here."""

    def kept(compute, prompt: int) -> int:
        """Bytes that autograd keeps for the backward pass."""
        model, batch = make_model("llama"), make_batch([prompt], [[16] * 8])
        enable(model)
        storages: dict[int, int] = {}

        def note(x):
            storages[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
            logps = compute(model, batch)[0]
        assert logps.requires_grad
        return sum(storages.values())

    def growth(compute) -> int:
        return kept(compute, 256) - kept(compute, 128)

    assert growth(of_trl) > 6 * growth(shared_logps)


def test_an_enabled_model_generates_and_scores_ordinary_batches_as_before():
    model, batch = make_model("gemma3_text").eval(), make_batch(*TWO_GROUPS)

    def said():
        return model.generate(
            input_ids=batch.prompt_ids, attention_mask=batch.prompt_mask, max_new_tokens=6, do_sample=False
        )

    tokens, logps = said(), of_trl(model, batch)[0]
    enable(model)
    enable(model)
    assert torch.equal(said(), tokens)
    assert torch.equal(of_trl(model, batch)[0], logps)


def test_a_model_that_cannot_share_says_why():
    bloom = AutoConfig.for_model("bloom", vocab_size=9, hidden_size=8, n_layer=1, n_head=2)
    assert "'bloom' is not among those tested" in (unsupported(AutoModelForCausalLM.from_config(bloom)) or "")
    model = make_model("llama")
    model.set_attn_implementation("eager")
    with pytest.raises(ValueError, match="load the model with attn_implementation='sdpa'"):
        enable(model)


def test_a_head_that_is_not_trls_is_told():
    model = AutoModelForCausalLM.from_config(make_model("llama").config)
    with pytest.raises(ValueError, match="add_fused_lm_head"):
        enable(model)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt_mask": torch.tensor([[1, 0]])}, "padding on its left"),
        ({"prompt_mask": torch.tensor([[0, 0]])}, "every prompt needs a token"),
        ({"completion_mask": torch.tensor([[0, 1]])}, "padded on their right"),
        ({"completion_mask": torch.tensor([[1, 1, 1]])}, "shape of its token ids"),
        ({"tool_mask": torch.tensor([[1]])}, "tool_mask is"),
    ],
)
def test_a_batch_that_is_not_padded_as_trl_does_is_refused(change, message):
    fine = {
        "prompt_ids": torch.tensor([[1, 2]]),
        "prompt_mask": torch.tensor([[1, 1]]),
        "completion_ids": torch.tensor([[3, 4]]),
        "completion_mask": torch.tensor([[1, 0]]),
    }
    with pytest.raises(ValueError, match=message):
        GroupedBatch(**{**fine, **change})
