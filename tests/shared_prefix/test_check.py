"""The self-check of shared prefixes, their limits, rounding and memory. Needs the `train` extra."""

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("trl")

from shared_prefix_support import MODELS, TWO_GROUPS, gradients, loss_of, make_batch, make_model, of_trl  # noqa: E402
from transformers import AutoConfig, AutoModelForCausalLM  # noqa: E402
from trl.trainer.utils import use_adapter  # noqa: E402

from fission_grpo.shared_prefix.check import agrees  # noqa: E402
from fission_grpo.shared_prefix.layout import GroupedBatch, pack  # noqa: E402
from fission_grpo.shared_prefix.models import unsupported  # noqa: E402
from fission_grpo.shared_prefix.update import enable, shared_logps  # noqa: E402


@pytest.mark.parametrize("kind", MODELS)
def test_the_self_check_agrees_with_a_supported_model_and_sets_it_back_to_training(kind):
    model = make_model(kind)
    model.model.layers[0].eval()
    enable(model)
    assert agrees(model, make_batch(*TWO_GROUPS))
    assert model.training
    assert not model.model.layers[0].training


def test_the_self_check_finds_completions_that_see_each_other(monkeypatch, caplog):
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


def test_a_head_that_is_not_trls_is_refused():
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
