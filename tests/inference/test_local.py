"""A transformers model in this process as a policy: batches, prompts taken as they are, ends, limits.

Repeatability, left padding and what dialogues look like with the starter are in test_starter.py.
"""

import copy
import dataclasses
import inspect

import pytest

pytest.importorskip("transformers")
pytest.importorskip("torch")

from fission_grpo.envs.desk.env import Desk
from fission_grpo.envs.desk.tasks import make_rows
from fission_grpo.envs.wrapper import tool_methods
from fission_grpo.evaluation.episodes import ToolSchemas
from fission_grpo.evaluation.evaluate import evaluate
from fission_grpo.inference.base import Reply, Request
from fission_grpo.inference.local import LocalPolicy, eos_ids, prompt_text
from fission_grpo.inference.pretrained import load_starter
from fission_grpo.shared_prefix.kv_cache import CACHE_ARGUMENTS, GrowingLayer, find_cache_argument
from fission_grpo.shared_prefix.prefixes import MIN_SHARED, common_beginnings

SCHEMAS = ToolSchemas(tool_methods(Desk()))
ASK = {"role": "user", "content": "Move plan_7.txt to home."}


@pytest.fixture(scope="module")
def starter():
    return load_starter()


@pytest.fixture
def own(starter):
    """The starter, to be changed."""
    return copy.deepcopy(starter)


def requests_of_odd_lengths(count):
    """Tasks with dialogues of zero to three earlier turns."""
    turn = [
        {"role": "assistant", "content": '<tool_call>\n{"name": "list_files", "arguments": {}}\n</tool_call>'},
        {"role": "tool", "name": "list_files", "content": "['plan_7.txt']"},
    ]
    rows = make_rows(count, 5, "held_out")
    return [Request([*row["prompt"], *turn * (number % 4)], SCHEMAS) for number, row in enumerate(rows)]


def greedy(starter, **settings):
    return LocalPolicy(*starter, temperature=0, **settings)


def test_dialogues_of_all_lengths_are_answered_in_order_as_if_each_were_alone(starter):
    requests = requests_of_odd_lengths(11)
    together = greedy(starter, batch_size=4).reply(requests)
    assert together == [greedy(starter, batch_size=1).reply([request])[0] for request in requests]
    assert len({reply.text for reply in together}) > 5  # they are told apart


def test_a_prompt_is_continued_verbatim_and_no_template_is_used(own):
    model, tokenizer = own
    request = requests_of_odd_lengths(1)[0]
    (expected,) = greedy(own).reply([request])
    text = prompt_text(tokenizer, request)
    tokenizer.chat_template = None
    assert greedy((model, tokenizer)).reply([Request((), prompt=text)]) == [expected]
    (other,) = greedy((model, tokenizer)).reply([Request((), prompt=text + '<tool_call>\n{"name": "')])
    assert other.text
    assert not other.text.startswith("<tool_call>")  # it goes on in the middle of the call


def test_every_end_token_of_the_model_ends_a_turn(own):
    model, tokenizer = own
    request = requests_of_odd_lengths(1)[0]
    (whole,) = greedy(own).reply([request])
    ids = tokenizer(whole.text, add_special_tokens=False)["input_ids"]
    assert whole.tokens == len(ids) + 1  # the end token counts
    early = ids[5]
    model.generation_config.eos_token_id = [early, tokenizer.eos_token_id]
    assert eos_ids(model, tokenizer) == {early, tokenizer.eos_token_id}
    (cut,) = greedy(own).reply([request])
    assert (cut.tokens, cut.truncated) == (ids.index(early) + 1, False)
    assert whole.text.startswith(cut.text)
    assert model.generation_config.eos_token_id == [early, tokenizer.eos_token_id]  # left as it was


def test_the_models_own_generation_settings_change_nothing(own):
    model, _ = own
    requests = requests_of_odd_lengths(4)
    before = greedy(own).reply(requests)
    model.generation_config.update(do_sample=True, temperature=3.0, repetition_penalty=9.0, max_new_tokens=1)
    assert greedy(own).reply(requests) == before


def test_a_prompt_that_fills_the_context_gets_an_empty_truncated_reply_and_others_theirs(own):
    model, tokenizer = own
    request = requests_of_odd_lengths(1)[0]
    (expected,) = greedy(own).reply([request])
    length = len(tokenizer(prompt_text(tokenizer, request), add_special_tokens=False)["input_ids"])
    model.config.max_position_embeddings = length + expected.tokens
    too_long = Request((), prompt="a b " * (length + expected.tokens))
    policy = greedy(own)
    assert policy.reply([too_long, request, too_long]) == [
        Reply("", truncated=True),
        expected,
        Reply("", truncated=True),
    ]
    model.config.max_position_embeddings = length + 3
    (short,) = greedy(own).reply([request])
    assert (short.tokens, short.truncated) == (3, True)
    assert expected.text.startswith(short.text)


def test_without_a_chat_template_the_error_says_what_to_do(own):
    own[1].chat_template = None
    with pytest.raises(ValueError, match=r"has no chat template.*set tokenizer\.chat_template"):
        greedy(own).reply([Request([ASK])])


def test_a_template_that_refuses_the_dialogue_is_named_with_the_roles(own):
    own[1].chat_template = "{{ raise_exception('no system messages') }}"
    with pytest.raises(ValueError, match="refuses a dialogue of the roles system, user: no system messages"):
        greedy(own).reply([Request([{"role": "system", "content": "x"}, ASK])])


def test_earlier_turns_stand_in_the_prompt_as_they_were_written(starter):
    _, tokenizer = starter
    odd = '<think>a</think>\n <tool_call>{"name":"x" , "arguments":{}}</tool_call>  '
    answer = {"role": "tool", "name": "x", "content": "ok"}
    second = {"role": "assistant", "content": "  Done. "}
    text = prompt_text(tokenizer, Request([ASK, {"role": "assistant", "content": odd}, answer, second, ASK], SCHEMAS))
    assert text.count(f"<|im_start|>assistant\n{odd}<|im_end|>") == 1
    assert text.count("<|im_start|>assistant\n  Done. <|im_end|>") == 1
    assert text.endswith(f"{ASK['content']}<|im_end|>\n<|im_start|>assistant\n")


def test_text_that_is_no_unicode_is_taken_and_the_random_state_is_left_alone(starter):
    import torch

    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    assert LocalPolicy(*starter, max_new_tokens=4).reply([Request([{"role": "user", "content": "\ud83d"}])])
    assert torch.equal(torch.rand(3), expected)


def test_nothing_asked_is_nothing_answered_and_an_empty_prompt_is_no_error(starter):
    assert greedy(starter).reply([]) == []
    (reply,) = greedy(starter, max_new_tokens=4).reply([Request((), prompt="")])
    assert reply.tokens <= 4


@pytest.mark.parametrize("settings", [{"temperature": -1.0}, {"max_new_tokens": 0}, {"batch_size": 0}])
def test_limits_out_of_range_are_told(starter, settings):
    with pytest.raises(ValueError, match="LocalPolicy needs temperature >= 0"):
        LocalPolicy(*starter, **settings)


def renamed(starter, ours, new):
    """The starter's model with a forward and a `generate` that take the cache by another name."""
    from transformers import Qwen3ForCausalLM

    def forward(self, input_ids=None, attention_mask=None, position_ids=None, logits_to_keep=0, **kwargs):
        if new in kwargs:
            kwargs[ours] = kwargs.pop(new)
        return Qwen3ForCausalLM.forward(
            self, input_ids, attention_mask, position_ids, logits_to_keep=logits_to_keep, **kwargs
        )

    def generate(self, **kwargs):
        return Qwen3ForCausalLM.generate(self, **{ours if name == new else name: kwargs[name] for name in kwargs})

    named = inspect.signature(forward).parameters
    shown = [*list(named.values())[:-1], inspect.Parameter(new, inspect.Parameter.KEYWORD_ONLY, default=None)]
    forward.__signature__ = inspect.Signature([*shown, named["kwargs"]])
    members = {"forward": forward, "generate": generate}
    model = type("Renamed", (Qwen3ForCausalLM,), members)(starter[0].config)
    model.load_state_dict(starter[0].state_dict())
    return model.eval()


@pytest.mark.parametrize("name", [None, "past_key_values", "cache"])
def test_a_shared_beginning_is_read_once_and_changes_no_reply(starter, name):
    """By whatever name this version of transformers, or a model's own code, takes the cache."""
    ours = next(one for one in CACHE_ARGUMENTS if one in inspect.signature(starter[0].forward).parameters)
    if name not in (None, ours):
        starter = (renamed(starter, ours, name), starter[1])
        assert find_cache_argument(starter[0]) == name
    system = {"role": "system", "content": "You keep the files and the calendar of a small office in good order."}
    requests = [Request([system, *request.messages], SCHEMAS) for request in requests_of_odd_lengths(9)]
    alone = [greedy(starter, batch_size=1).reply([request])[0] for request in requests]
    policy, shapes = greedy(starter, batch_size=9), []
    assert policy.reply(requests[:1]) == alone[:1]  # with the self-check
    read = policy.sharing.counts["read_tokens"]
    hook = starter[0].base_model.register_forward_pre_hook(
        lambda module, given, named: shapes.append(tuple(named["input_ids"].shape)), with_kwargs=True
    )
    together = policy.reply(requests)
    hook.remove()
    assert together == alone
    assert not policy.sharing.counts["unshared"]
    prompts = [policy._ids(request) for request in requests]
    (shared, _), *others = common_beginnings(prompts)
    assert shared >= MIN_SHARED
    assert not others
    rest = sum(len(one) - max(shared, common_beginnings([one, prompts[0]], least=1)[0][0]) for one in prompts[1:])
    assert policy.sharing.counts["read_tokens"] - read == rest + 1  # the first is known but for its last token
    assert max(rows for rows, tokens in shapes if tokens == 1) == 9
    assert sum(rows * tokens for rows, tokens in shapes if tokens > 1) < 1.5 * rest


def test_a_later_turn_reads_only_what_is_new_in_whatever_batch_and_call(starter):
    requests = requests_of_odd_lengths(8)
    policy = greedy(starter, batch_size=3)
    replies = policy.reply(requests)
    before = policy.sharing.counts["read_tokens"]
    later = [
        Request([*request.messages, {"role": "assistant", "content": reply.text}, ASK], SCHEMAS)
        for request, reply in zip(requests, replies, strict=True)
    ][::-1]
    assert policy.reply(later) == [greedy(starter, batch_size=1).reply([request])[0] for request in later]
    known = [len(policy._ids(request)) + reply.tokens - 1 for request, reply in zip(requests, replies, strict=True)]
    new = sum(len(policy._ids(request)) for request in later) - sum(known)
    assert policy.sharing.counts["read_tokens"] - before <= new
    assert new < 8 * 30
    starter[0].lm_head.weight.data.mul_(1)  # the same weights
    policy.reply(later)
    assert policy.sharing.counts["read_tokens"] - before <= new + len(later)


def test_an_evaluation_reads_each_token_of_its_dialogues_once(starter):
    """With the installed version of transformers: a fast path that it silently switches off fails here."""
    policy = greedy(starter)
    assert evaluate(policy, Desk, make_rows(12, 3, "held_out"), max_turns=4).metrics.cases == 12
    counts = policy.sharing.counts
    assert counts["shared"] > 1
    assert not counts["unshared"]
    assert counts["read_tokens"] < counts["prompt_tokens"] / 2


def test_a_forward_that_takes_its_cache_by_a_new_name_is_left_to_generate_and_counted(starter, caplog):
    ours = find_cache_argument(starter[0])
    policy = greedy((renamed(starter, ours, "memory"), starter[1]), max_new_tokens=4)
    assert policy.reply(requests_of_odd_lengths(2)) == greedy(starter, max_new_tokens=4).reply(
        requests_of_odd_lengths(2)
    )
    assert policy.sharing.counts == {"unshared": 1}
    assert "its forward takes no KV cache by the name past_key_values or cache" in caplog.text


def test_replies_are_those_without_sharing(starter):
    requests = requests_of_odd_lengths(7)
    plain = greedy(starter, shared_prefix=False)
    assert plain.reply(requests) == greedy(starter).reply(requests)
    assert plain.sharing is None


def test_a_model_that_cannot_share_replies_all_the_same_with_one_warning_and_a_count(starter, caplog):
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model("bloom", vocab_size=len(starter[1]), hidden_size=8, n_layer=1, n_head=2)
    policy = greedy((AutoModelForCausalLM.from_config(config), starter[1]), max_new_tokens=3, batch_size=2)
    assert len(policy.reply(requests_of_odd_lengths(4))) == 4
    assert policy.sharing.counts == {"unshared": 2}
    assert [record.levelname for record in caplog.records if "does not share prompts" in record.message] == ["WARNING"]
    assert "model type 'bloom' is not among those tested" in caplog.text


def test_a_model_with_a_sliding_window_shares_beginnings_longer_than_the_window(starter):
    from transformers import Qwen3ForCausalLM

    config = copy.deepcopy(starter[0].config)
    config.use_sliding_window, config.sliding_window = True, 48
    config.layer_types = ["sliding_attention"] * config.num_hidden_layers
    model = Qwen3ForCausalLM(config)
    model.load_state_dict(starter[0].state_dict())
    prompts = [Request((), prompt="Move the plan. " * 20 + end) for end in ("Now", "Then it is done", "Or not")]
    policy = greedy((model, starter[1]), max_new_tokens=8)
    together = policy.reply(prompts)
    plain = greedy((model, starter[1]), max_new_tokens=8, shared_prefix=False)
    assert together == [plain.reply([prompt])[0] for prompt in prompts]
    assert policy.sharing.counts["read_tokens"] < policy.sharing.counts["prompt_tokens"] / 2


def test_a_cache_with_room_holds_what_transformers_own_holds_and_moves_nothing_while_there_is_room(starter):
    import torch
    from transformers.cache_utils import Cache, DynamicCache

    torch.manual_seed(0)
    plain = DynamicCache(config=starter[0].config)
    roomy = Cache(layers=[GrowingLayer(room=3) for _ in plain.layers])
    places = []
    for tokens in (5, 1, 2, 1, 4):  # 5 and room for 3; the fourth goes beyond, to 9 and room for 3; so does the fifth
        keys, values = torch.randn(2, 2, tokens, 32), torch.randn(2, 2, tokens, 32)
        for ours, theirs in zip(roomy.update(keys, values, 0), plain.update(keys, values, 0), strict=True):
            assert torch.equal(ours, theirs)
        places.append(roomy.layers[0].keys.data_ptr())
    assert places[0] == places[1] == places[2] != places[3] != places[4]
    assert roomy.get_seq_length() == 13


def test_template_options_reach_every_prompt(starter):
    model, tokenizer = starter
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template += "{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}"
    later = [ASK, {"role": "assistant", "content": "Yes."}, ASK]
    for messages in ([ASK], later):
        assert "<think>" not in prompt_text(tokenizer, Request(messages, SCHEMAS))
        text = prompt_text(tokenizer, Request(messages, SCHEMAS), {"enable_thinking": False})
        assert text.endswith("<think></think>")
        assert text.count("<think></think>") == text.count("<|im_start|>assistant")  # as each turn was asked for
    policy = LocalPolicy(model, tokenizer, template_options={"enable_thinking": False})
    assert tokenizer.decode(policy._ids(Request([ASK], SCHEMAS))).endswith("<think></think>")


def seeded(requests, base=0):
    return [dataclasses.replace(request, seed=base + number) for number, request in enumerate(requests)]


def test_a_request_with_a_seed_gets_the_same_reply_in_any_batch_and_order(starter):
    requests = seeded(requests_of_odd_lengths(12))
    alone = [LocalPolicy(*starter, max_new_tokens=24).reply([request])[0] for request in requests]
    policy = LocalPolicy(*starter, max_new_tokens=24, batch_size=5)
    policy.reply(requests[3:7])
    assert policy.reply(requests) == alone
    assert policy.reply(requests[::-1]) == alone[::-1]
    assert len({reply.text for reply in alone}) > 5
    other = LocalPolicy(*starter, max_new_tokens=24).reply(seeded(requests_of_odd_lengths(12), base=100))
    assert sum(a != b for a, b in zip(alone, other, strict=True)) > 2


def test_replies_with_seeds_are_samples_of_the_same_distribution(starter):
    import torch

    model, tokenizer = starter
    policy = LocalPolicy(model, tokenizer, 0.5, max_new_tokens=1, batch_size=500)
    request = Request([ASK], SCHEMAS)
    ids = torch.tensor([policy._ids(request)])
    with torch.no_grad():
        expected = (model(ids).logits[0, -1] / 0.5).softmax(-1)
    replies = policy.reply(seeded([request] * 2000))
    drawn = torch.zeros_like(expected)
    for reply in replies:
        token = tokenizer(reply.text, add_special_tokens=False)["input_ids"] or [tokenizer.eos_token_id]
        drawn[token[0]] += 1 / len(replies)
    assert (drawn - expected).abs().sum() < 0.15


def test_greedy_replies_do_not_depend_on_seeds(starter):
    requests = requests_of_odd_lengths(3)
    assert greedy(starter).reply(seeded(requests)) == greedy(starter).reply(requests)


def test_an_error_in_generate_leaves_every_module_in_its_mode(starter):
    policy = greedy(starter)
    model = policy.model
    model.train()
    model.lm_head.eval()
    model.generate = lambda **_: 1 / 0
    try:
        with pytest.raises(ZeroDivisionError):
            policy.reply([Request((), prompt="a b")])
        assert model.training
        assert not model.lm_head.training
    finally:
        del model.generate
        model.eval()
