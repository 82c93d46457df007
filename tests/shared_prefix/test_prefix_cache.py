"""What was read is found again at any token, within a limit of bytes, and only for the same weights."""

import copy
import random

import pytest

torch = pytest.importorskip("torch")

from transformers import Qwen3ForCausalLM  # noqa: E402

from fission_grpo.inference.pretrained import load_starter  # noqa: E402
from fission_grpo.shared_prefix.prefix_cache import PrefixCache, weights_version  # noqa: E402


def states_of(tokens, start=0):
    """Two layers of states that tell the tokens: keys are token ids, values are their negatives."""
    row = torch.tensor(tokens[start:], dtype=torch.float32)[None, :, None].expand(3, -1, 4)
    return [(row + 100 * layer, -row - 100 * layer) for layer in (0, 1)]


def kept(cache, tokens, start=0):
    """The token ids that the pieces of a kept sequence tell."""
    pieces = cache.pieces(tokens, start)
    for keys, values in pieces:
        assert keys.equal(-values)
        assert keys[1].equal(keys[0] + 100)
    return [int(x) for keys, _ in pieces for x in keys[0, 0, :, 0]]


def stored(*sequences, limit=None):
    cache = PrefixCache(limit)
    for tokens in sequences:
        cache.insert(tokens, 0, states_of(tokens))
    return cache


def test_the_longest_kept_beginning_is_found_wherever_it_ends():
    cache = stored([1, 2, 3, 4, 5], [1, 2, 3, 7])
    assert [cache.match(tokens) for tokens in ([1, 2, 3, 4, 9], [1, 2], [1, 2, 3, 7, 7], [2], [])] == [4, 2, 4, 0, 0]
    assert kept(cache, [1, 2, 3, 7]) == [1, 2, 3, 7]
    assert kept(cache, [1, 2, 3, 4], start=2) == [3, 4]
    assert cache.size == 2 * 2 * 3 * 4 * 4 * 6  # keys and values, layers, heads, head size, bytes; 6 different tokens


def test_what_continues_a_kept_sequence_is_kept_without_it():
    cache = stored([1, 2, 3])
    cache.insert([1, 2, 3, 4, 5], 3, states_of([1, 2, 3, 4, 5], 3))
    assert kept(cache, [1, 2, 3, 4, 5], start=1) == [2, 3, 4, 5]
    with pytest.raises(KeyError, match="of the first 2 tokens only 0 are stored"):
        cache.insert([8, 9, 9], 2, states_of([8, 9, 9], 2))
    with pytest.raises(KeyError, match="of 4 tokens only 3 are stored"):
        cache.pieces([1, 2, 3, 9], 0)


@pytest.mark.parametrize("seed", range(20))
def test_any_sequences_are_kept_each_token_once(seed):
    draw = random.Random(seed)
    cache, sequences = PrefixCache(), []
    for _ in range(30):
        known = draw.choice(sequences)[: draw.randint(0, 9)] if sequences else []
        tokens = known + draw.choices(range(3), k=draw.randint(1, 6))
        start = draw.randint(0, cache.match(tokens))
        cache.insert(tokens, start, states_of(tokens, start))
        sequences.append(tokens)
    for tokens in sequences:
        start = draw.randint(0, len(tokens))
        assert kept(cache, tokens, start) == tokens[start:]
    beginnings = {tuple(tokens[:end]) for tokens in sequences for end in range(1, len(tokens) + 1)}
    assert cache.size == 2 * 2 * 3 * 4 * 4 * len(beginnings)


def test_what_was_not_used_for_the_longest_time_goes_first_and_is_counted():
    size = 2 * 2 * 3 * 4 * 4  # of a token
    cache = stored([1, 2, 3], [1, 2, 4, 4], [7, 7], limit=6 * size)
    assert cache.match([1, 2, 3]) == 3
    cache.evict()
    assert cache.evicted == 2
    assert [cache.match(tokens) for tokens in ([1, 2, 3], [1, 2, 4, 4], [7, 7])] == [3, 2, 2]
    cache.limit = 0
    cache.evict()
    assert (cache.size, cache.evicted) == (0, 7)
    assert cache.match([1, 2, 3]) == 0


def changes_of(model):
    """Ways to change what the model computes, each with what undoes it."""
    weight = model.model.layers[0].mlp.down_proj.weight
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    def step():
        model(input_ids=torch.tensor([[5, 6, 7]])).logits.sum().backward()
        optimizer.step()

    other = {name: value + 1 for name, value in model.state_dict().items()}
    return {
        "an optimizer step": step,
        "load_state_dict": lambda: model.load_state_dict(other),
        "an addition to .data": lambda: weight.data.add_(0.5),
        "other data": lambda: setattr(weight, "data", weight.data.clone()),
        "an addition in place": lambda: torch.no_grad()(weight.add_)(0.5),
    }


NAMES = ("an optimizer step", "load_state_dict", "an addition to .data", "other data", "an addition in place")


@pytest.mark.parametrize("name", NAMES)
def test_other_weights_forget(name):
    starter = load_starter()[0]
    model = Qwen3ForCausalLM(starter.config)
    cache = stored([1, 2, 3])
    cache.use(weights_version(model))
    assert cache.match([1, 2]) == 0  # of no version
    cache.insert([1, 2, 3], 0, states_of([1, 2, 3]))
    model(input_ids=torch.tensor([[5, 6]]))
    copy.deepcopy(model)
    cache.use(weights_version(model))
    assert cache.match([1, 2]) == 2
    changes_of(model)[name]()
    cache.use(weights_version(model))
    assert cache.match([1, 2]) == 0


def test_other_adapters_forget():
    peft = pytest.importorskip("peft")
    base = Qwen3ForCausalLM(load_starter()[0].config)
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    model = peft.get_peft_model(base, config)
    model.add_adapter("second", config)
    first = weights_version(base)
    assert weights_version(base) == first
    with model.disable_adapter():
        assert weights_version(base) != first
    assert weights_version(base) == first
    model.set_adapter("second")
    assert weights_version(base) != first
    model.set_adapter("default")
    assert weights_version(base) == first
    model.merge_adapter()
    merged = weights_version(base)
    assert merged != first
    model.unmerge_adapter()
    assert weights_version(base) != merged
