"""Generation with shared prompts gives the tokens of plain `generate`. Needs the `train` extra."""

import logging

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("trl")

from generation_support import (  # noqa: E402
    EOS,
    MODELS,
    VOCABULARY,
    config_of,
    dialogues_of,
    make_model,
    own_tokens,
    padded,
)
from hypothesis import HealthCheck, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from peft import LoraConfig, get_peft_model  # noqa: E402

from fission_grpo.inference.pretrained import load_starter  # noqa: E402
from fission_grpo.shared_prefix import decoding, reading, rows  # noqa: E402
from fission_grpo.shared_prefix.generate import SharedGeneration  # noqa: E402
from fission_grpo.shared_prefix.models import use_attention  # noqa: E402
from fission_grpo.shared_prefix.reading import generation_agrees  # noqa: E402


def make_prompts(sizes: list[int], seed: int = 0):
    """One prompt per size, padded on the left; equal sizes are equal prompts."""
    tokens = {
        size: torch.randint(3, VOCABULARY, (size,), generator=torch.Generator().manual_seed(seed + size))
        for size in sizes
    }
    ids = torch.zeros(len(sizes), max(sizes)).long()
    mask = torch.zeros_like(ids)
    for row, size in enumerate(sizes):
        ids[row, max(sizes) - size :], mask[row, max(sizes) - size :] = tokens[size], 1
    return ids, mask


def both(model, ids, mask, sharing=None, seed=3, **more):
    """What plain `generate` gives, and what it gives while sharing, from the same seed."""
    sharing, found, config = sharing or SharedGeneration(), [], config_of(**more)
    torch.manual_seed(seed)
    plain = model.generate(input_ids=ids, attention_mask=mask, generation_config=config)
    after = torch.rand(1)
    with sharing.on(model):
        torch.manual_seed(seed)
        found = model.generate(input_ids=ids, attention_mask=mask, generation_config=config)
    if more.get("do_sample", True):
        assert torch.rand(1) == after  # as many random numbers were drawn
    return plain, found, sharing


UNEQUAL = [9, 17, 9, 9, 17, 4, 9]


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("do_sample", [False, True])
def test_tokens_are_those_of_plain_generate(kind, do_sample):
    plain, found, sharing = both(make_model(kind), *make_prompts(UNEQUAL), do_sample=do_sample)
    assert found.equal(plain)
    assert sharing.counts["shared"] == 1
    assert (sharing.counts["read_tokens"], sharing.counts["prompt_tokens"]) == (9 + 17 + 4, 4 * 9 + 2 * 17 + 4)


@pytest.mark.parametrize(
    "setting",
    [
        {"temperature": 0.6},
        {"top_k": 5},
        {"top_p": 0.7},
        {"min_p": 0.1},
        {"repetition_penalty": 1.4},
        {"no_repeat_ngram_size": 2},
        {"min_new_tokens": 6},
        {"suppress_tokens": [4, 5]},
        {"eos_token_id": [EOS, 7, 11]},
        {"eos_token_id": None},
        {"max_new_tokens": 1},
    ],
    ids=str,
)
def test_generation_settings_are_kept(setting):
    plain, found, sharing = both(make_model("llama"), *make_prompts(UNEQUAL), **setting)
    assert found.equal(plain)
    assert not sharing.reasons


def test_stop_strings_end_rows_as_in_plain_generate():
    model, tokenizer = load_starter()
    ids = torch.tensor([tokenizer("cancel the meeting")["input_ids"]] * 4)
    found = []
    for sharing in (None, SharedGeneration()):
        torch.manual_seed(0)
        more = {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "stop_strings": ["e"],
            "tokenizer": tokenizer,
        }
        if sharing is None:
            found.append(model.generate(**more, generation_config=config_of()))
        else:
            with sharing.on(model):
                found.append(model.generate(**more, generation_config=config_of()))
            assert sharing.reasons  # not among what TRL passes: left to `generate`, and said so
    assert found[0].equal(found[1])


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.integers(1, 14), min_size=1, max_size=9), st.integers(0, 99), st.sampled_from(list(MODELS)))
def test_any_groups_in_any_order(sizes, seed, kind):
    plain, found, _ = both(make_model(kind), *make_prompts(sizes, seed), seed=seed)
    assert found.equal(plain)


def test_rows_that_have_ended_are_not_computed():
    model, (ids, mask) = make_model("llama"), make_prompts([9] * 16)
    plain, found, sharing = both(model, ids, mask, max_new_tokens=60)
    assert found.equal(plain)
    ends = [(row == EOS).int().argmax().item() if (row == EOS).any() else 60 for row in found[:, 9:]]
    assert len(set(ends)) > 4
    assert sharing.counts["computed_row_steps"] < 0.75 * sharing.counts["row_steps"]


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize(("scores", "fused"), [(rows.MAX_SCORES, 64), (1, 64), (rows.MAX_SCORES, 2)])
def test_later_turns_read_only_what_was_added(kind, scores, fused, monkeypatch):
    monkeypatch.setattr(rows, "MAX_SCORES", scores)  # 1: tool results are read token by token
    for module in (rows, decoding):
        monkeypatch.setattr(module, "MIN_FUSED", fused)
    model, (ids, mask) = make_model(kind), make_prompts(UNEQUAL)
    config, sharing = config_of(max_new_tokens=9), SharedGeneration()
    dialogues = dialogues_of(ids, mask)
    added = 9 + 17 + 4  # the prompts, once each
    with sharing.on(model):
        for turn in range(3):
            before = sharing.counts["read_tokens"]
            ids, mask = padded(dialogues)
            longest = ids.shape[1]
            torch.manual_seed(turn)
            found = model.generate(input_ids=ids, attention_mask=mask, generation_config=config)
            torch.manual_seed(turn)
            expected = type(model).generate(model, input_ids=ids, attention_mask=mask, generation_config=config)
            assert found.equal(expected)
            assert sharing.counts["read_tokens"] - before == added
            rows_left = [i for i in range(len(dialogues)) if i % 4 != turn]  # some dialogues are over
            drawn = [own_tokens(found[i, longest:].tolist()) for i in rows_left]
            results = [[5 + i] * (3 + i) for i in range(len(rows_left))]
            # The last token drawn has not been read yet, unless its row stayed for another step.
            dialogues = [dialogues[i] + own + result for i, own, result in zip(rows_left, drawn, results, strict=True)]
            added = sum(len(one) - sharing.cache.match(one[:-1]) for one in dialogues)
            assert added <= sum(len(result) + 1 for result in results)
    assert not sharing.reasons


def test_a_batch_that_continues_nothing_is_read_afresh():
    model, sharing = make_model("llama"), SharedGeneration()
    with sharing.on(model):
        for seed in (0, 1):
            ids, mask = make_prompts(UNEQUAL, seed)
            found = model.generate(input_ids=ids, attention_mask=mask, generation_config=config_of(do_sample=False))
            plain = type(model).generate(
                model, input_ids=ids, attention_mask=mask, generation_config=config_of(do_sample=False)
            )
            assert found.equal(plain)


def test_adapters_take_part():
    model = make_model("qwen3")
    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False)
    model = get_peft_model(model, lora).eval()
    plain, found, sharing = both(model, *make_prompts(UNEQUAL))
    assert found.equal(plain)
    assert sharing.counts["shared"] == 1


def test_long_prompts_are_read_in_parts(monkeypatch):
    monkeypatch.setattr(reading, "MAX_TOKENS_PER_FORWARD", 20)
    plain, found, _ = both(make_model("gemma3_text"), *make_prompts(UNEQUAL))
    assert found.equal(plain)


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"num_beams": 2, "do_sample": False}, "num_beams is 2"),
        ({"return_dict_in_generate": True}, "return_dict_in_generate is True"),
        ({"cache_implementation": "static"}, "cache_implementation is 'static'"),
        ({"use_cache": False}, "use_cache is False"),
    ],
)
def test_unsupported_settings_are_left_to_generate_with_one_warning(more, why, caplog):
    model, (ids, mask) = make_model("llama"), make_prompts(UNEQUAL)
    sharing = SharedGeneration()
    with caplog.at_level(logging.WARNING), sharing.on(model):
        for _ in range(2):
            model.generate(input_ids=ids, attention_mask=mask, generation_config=config_of(**more))
    assert sharing.counts["unshared"] == 2
    assert list(sharing.reasons) == [why]
    assert caplog.text.count(why) == 1


def test_generate_is_put_back():
    model = make_model("llama")
    with SharedGeneration().on(model):
        assert "generate" in vars(model)
    assert "generate" not in vars(model)
    with pytest.raises(ValueError, match="max_new_tokens"), SharedGeneration().on(model):
        model.generate(torch.ones(1, 3).long(), max_new_tokens=0)
    assert "generate" not in vars(model)


def test_the_self_check_finds_hidden_prompt_tokens(monkeypatch, caplog):
    model, (ids, mask) = make_model("llama"), make_prompts(UNEQUAL)
    use_attention(model)
    assert generation_agrees(model, dialogues_of(ids, mask))
    right = decoding._Part.mask

    def hides_keys(self, query_at, window):
        first, _ = right(self, query_at, window)
        hidden = torch.zeros(len(self.positions), 1, 1, 1, 1, self.end - first, dtype=torch.bool)
        hidden[..., -3:] = True
        return first, hidden

    monkeypatch.setattr(decoding._Part, "mask", hides_keys)
    plain, found, sharing = both(model, ids, mask)
    assert found.equal(plain)  # left to `generate`
    assert sharing.reasons == {"the self-check failed": 1}
    assert "prefixes cannot be shared with this model" in caplog.text


def test_bfloat16_passes_the_self_check():
    model, (ids, mask) = make_model("llama").bfloat16(), make_prompts(UNEQUAL)
    use_attention(model)
    assert generation_agrees(model, dialogues_of(ids, mask))


def test_a_replaced_generate_that_takes_no_loop_is_left_alone_and_counted(caplog):
    model, (ids, mask) = make_model("llama"), make_prompts(UNEQUAL)
    config, plain = config_of(do_sample=False), type(make_model("llama")).generate

    def generate(input_ids, attention_mask, generation_config):
        return plain(model, input_ids=input_ids, attention_mask=attention_mask, generation_config=generation_config)

    model.generate = generate
    sharing = SharedGeneration()
    with sharing.on(model):
        found = model.generate(input_ids=ids, attention_mask=mask, generation_config=config)
    assert model.generate is generate
    assert found.equal(generate(ids, mask, config))
    assert sharing.reasons == {"generate was replaced": 1}
    assert "generate was replaced" in caplog.text


def test_of_two_contexts_the_inner_one_shares_and_the_outer_one_counts_nothing():
    model, (ids, mask) = make_model("llama"), make_prompts(UNEQUAL)
    outer, inner = SharedGeneration(), SharedGeneration()
    with outer.on(model), inner.on(model):
        model.generate(input_ids=ids, attention_mask=mask, generation_config=config_of())
    assert inner.counts["shared"] == 1
    assert not outer.counts
