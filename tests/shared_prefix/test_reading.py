"""Prompts of any prefix tree are read once per token, and continued as by plain `generate`."""

import random

import pytest

torch = pytest.importorskip("torch")

from generation_support import (  # noqa: E402
    MODELS,
    MORE_MODELS,
    VOCABULARY,
    config_of,
    make_model,
    own_tokens,
    padded,
)
from hypothesis import HealthCheck, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from peft import LoraConfig, get_peft_model  # noqa: E402

from fission_grpo.shared_prefix import decoding, reading, rows  # noqa: E402
from fission_grpo.shared_prefix.generate import SharedGeneration  # noqa: E402
from fission_grpo.shared_prefix.models import use_attention  # noqa: E402
from fission_grpo.shared_prefix.prefix_cache import PrefixCache  # noqa: E402
from fission_grpo.shared_prefix.prefixes import MIN_SHARED, common_beginnings  # noqa: E402


def tokens(draw, most, least=1):
    return draw.choices(range(3, VOCABULARY), k=draw.randint(least, most))


def make_tree(draw):
    """Prompts of one to three tool sets, some in groups, some the beginning of another, some like no other."""
    begin, prompts = tokens(draw, 90), []
    for _ in range(draw.randint(1, 3)):
        tools = begin + tokens(draw, 90)
        prompts += [tools + tokens(draw, 20) for _ in range(draw.randint(1, 4))]
        if draw.random() < 0.3:
            prompts.append(tools)
        if draw.random() < 0.3:
            prompts.append(prompts[-1] + tokens(draw, 85))
    if draw.random() < 0.5:
        prompts.append(tokens(draw, 70))
    return [prompt for prompt in prompts for _ in range(draw.choice((1, 1, 2, 4)))]


def tokens_of_tree(prompts, cache):
    """How many tokens of these prompts must be read: common beginnings, and the rest of each different prompt."""
    different = [list(prompt) for prompt in dict.fromkeys(map(tuple, prompts))]
    begun = {
        tuple(different[members[0]][:end])
        for length, members in common_beginnings(different)
        for end in range(1, length + 1)
    }
    count = sum(cache.match(list(one)) < len(one) for one in begun)
    for prompt in different:
        known = max(end for end in range(len(prompt)) if not end or tuple(prompt[:end]) in begun)
        count += len(prompt) - max(known, cache.match(prompt[:-1]))
    return count


def check_turns(model, draw, turns=3, sharing=None):
    """Greedy and sampled tokens, and tokens read, of a few turns of dialogues, some of which end early."""
    sharing, dialogues = sharing or SharedGeneration(), make_tree(draw)
    with sharing.on(model):
        for turn in range(turns):
            config = config_of(do_sample=turn % 2 == 1, max_new_tokens=8)
            draw.shuffle(dialogues)
            ids, mask = padded(dialogues)
            expected_reads = tokens_of_tree(dialogues, sharing.cache)
            before = sharing.counts["read_tokens"]
            torch.manual_seed(turn)
            found = model.generate(input_ids=ids, attention_mask=mask, generation_config=config)
            torch.manual_seed(turn)
            plain = type(model).generate(model, input_ids=ids, attention_mask=mask, generation_config=config)
            assert found.equal(plain)
            assert sharing.counts["read_tokens"] - before == expected_reads
            drawn = [own_tokens(row) for row in found[:, ids.shape[1] :].tolist()]
            pairs = zip(dialogues, drawn, strict=True)
            dialogues = [one + said + tokens(draw, 30) for one, said in pairs if draw.random() < 0.8] or [[5, 6, 7]]
    assert not sharing.reasons
    return sharing


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 10**6), st.sampled_from(list(MODELS)), st.sampled_from([2, decoding.MIN_FUSED]))
def test_any_tree_is_continued_as_by_plain_generate_and_read_once(seed, kind, fused):
    with pytest.MonkeyPatch.context() as patch:
        for module in (rows, decoding):
            patch.setattr(module, "MIN_FUSED", fused)
        check_turns(make_model(kind), random.Random(seed))


@pytest.mark.parametrize("kind", MORE_MODELS)
def test_other_supported_types_continue_a_tree_as_by_plain_generate(kind):
    check_turns(make_model(kind), random.Random(7), turns=2)


@pytest.mark.parametrize("seed", range(4))
def test_long_beginnings_of_beginnings_are_levels_of_their_own(seed, monkeypatch):
    monkeypatch.setattr(reading, "MIN_LEVEL", 8)
    draw = random.Random(seed)
    begin = tokens(draw, 40, 20)
    prompts = [begin + tools + tokens(draw, 9) for tools in (tokens(draw, 60, 40) for _ in range(3)) for _ in range(3)]
    assert len(reading._nested_beginnings(prompts)) == 2
    for kind in ("llama", "gemma3_text"):
        model, sharing = make_model(kind), SharedGeneration()
        ids, mask = padded(prompts * 2)
        config = config_of(do_sample=False)
        with sharing.on(model):
            found = model.generate(input_ids=ids, attention_mask=mask, generation_config=config)
        assert found.equal(model.generate(input_ids=ids, attention_mask=mask, generation_config=config))
        assert sharing.counts["read_tokens"] == tokens_of_tree(prompts, PrefixCache())


def test_a_beginning_is_stored_once_for_all_rows_and_read_without_padding_of_other_prompts():
    draw = random.Random(0)
    common = tokens(draw, 100, 100)
    prompts = [common + tokens(draw, 4) for _ in range(6)] + [tokens(draw, 90, 90)]
    model, sharing, shapes = make_model("llama"), SharedGeneration(), []
    model.model.register_forward_pre_hook(
        lambda module, given, named: shapes.append(tuple(named["input_ids"].shape)), with_kwargs=True
    )
    ids, mask = padded(prompts)
    with sharing.on(model):
        sharing._agrees = True  # the self-check reads, too
        model.generate(input_ids=ids, attention_mask=mask, generation_config=config_of(max_new_tokens=2))
    begin, alone, *rest = shapes
    assert (begin, alone) == ((1, 100), (1, 90))
    assert rest[0][0] == 6
    assert rest[0][1] <= 4
    (level,) = reading.Reader(model, sharing.cache).rows_of(prompts)[0].levels
    assert [tuple(x.shape) for x in level.states[0]] == [(2, 2, 100, 8)] * 2  # the last prompt's node is empty


def test_without_remembering_only_beginnings_are_kept_until_the_weights_change():
    draw = random.Random(1)
    common = tokens(draw, 70, 70)
    prompts = [common + tokens(draw, 9) for _ in range(3)] * 2
    model, sharing = make_model("qwen3"), SharedGeneration(remember=False)
    ids, mask = padded(prompts)
    (length, _), *_ = common_beginnings(prompts[:3])
    rest = sum(len(prompt) - length for prompt in prompts[:3])
    expected = [length + rest, rest, length + rest]
    for number, tokens_read in enumerate(expected):
        if number == 2:
            model.lm_head.weight.data.mul_(2)
        before = sharing.counts["read_tokens"]
        with sharing.on(model):
            model.generate(input_ids=ids, attention_mask=mask, generation_config=config_of())
        assert sharing.counts["read_tokens"] - before == tokens_read


def test_a_limit_costs_reading_again_and_changes_no_token():
    model, sharing = make_model("llama"), SharedGeneration(limit=20_000)
    draw = random.Random(3)
    prompts = [tokens(draw, 120, 110) for _ in range(5)]
    ids, mask = padded(prompts)
    config = config_of(do_sample=False)
    plain = model.generate(input_ids=ids, attention_mask=mask, generation_config=config)
    with sharing.on(model):
        for _ in range(2):
            assert model.generate(input_ids=ids, attention_mask=mask, generation_config=config).equal(plain)
    assert sharing.cache.size <= 20_000
    assert sharing.counts["evicted_tokens"] > 100
    assert sharing.counts["read_tokens"] > sum(map(len, prompts)) + 100


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_self_check_agrees_on_a_tree(dtype):
    draw, model = random.Random(2), make_model("gemma3_text").to(dtype)
    tools = tokens(draw, 90, 90)
    prompts = [tools + tokens(draw, 70, 50) for _ in range(3)]
    assert min(map(len, prompts)) > reading.CHECKED_TOKENS  # longer than what is checked
    use_attention(model)
    assert reading.generation_agrees(model, prompts)


def test_adapters_and_scores_cut_into_parts_change_no_token(monkeypatch):
    monkeypatch.setattr(rows, "MAX_SCORES", 4 * 200)  # new tokens are read a few at a time
    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False)
    model = get_peft_model(make_model("qwen2 with windows"), lora).eval()
    check_turns(model.base_model.model, random.Random(5))
    assert MIN_SHARED < 90  # so that the trees have common beginnings


def test_beginnings_that_other_sets_of_tools_have_in_common_are_nested_and_no_level_occurs_twice():
    tools = [[1] * 2000 + [2] * 1000, [1] * 2000 + [3] * 1000, [4] * 3000]  # the first two sets begin alike
    prompts = [one + [5 + number] * 5 for one in tools for number in range(2)]
    levels = reading._nested_beginnings(prompts)
    assert [sorted(level) for level in levels] == [
        [(0, [4, 5]), (2000, [0, 1, 2, 3])],
        [(3000, [0, 1]), (3000, [2, 3]), (3000, [4, 5])],
    ]


@pytest.mark.parametrize("seed", range(3))
def test_nested_beginnings_beside_others_change_no_token(seed, monkeypatch):
    monkeypatch.setattr(reading, "MIN_LEVEL", 8)
    draw = random.Random(seed)
    begin, other = tokens(draw, 40, 30), tokens(draw, 90, 80)
    sets = [begin + tokens(draw, 80, 70), begin + tokens(draw, 80, 70), other]
    prompts = [one + tokens(draw, 9) for one in sets for _ in range(3)] + [tokens(draw, 30)]
    draw.shuffle(prompts)
    model, sharing = make_model("llama"), SharedGeneration()
    ids, mask = padded(prompts)
    with sharing.on(model):
        found = model.generate(input_ids=ids, attention_mask=mask, generation_config=config_of(do_sample=False))
    assert found.equal(
        model.generate(input_ids=ids, attention_mask=mask, generation_config=config_of(do_sample=False))
    )
    assert not sharing.reasons
