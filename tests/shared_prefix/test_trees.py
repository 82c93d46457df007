"""Updates over random trees of prompts: the numbers of TRL's unshared pass, and no token computed twice."""

import random

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("trl")

from shared_prefix_support import MODELS, MORE_MODELS, VOCABULARY, gradients, loss_of, make_model, of_trl  # noqa: E402

from fission_grpo.shared_prefix.beginnings import Beginnings  # noqa: E402
from fission_grpo.shared_prefix.layout import GroupedBatch, rows_by_prompt  # noqa: E402
from fission_grpo.shared_prefix.models import causal_lm  # noqa: E402
from fission_grpo.shared_prefix.prefixes import common_beginnings  # noqa: E402
from fission_grpo.shared_prefix.update import enable, shared_logps  # noqa: E402

KINDS = ("mixed", "one prompt", "one group each", "a prompt is the beginning of another", "two sets of tools")

CASES = [(kind, tree, False, False) for kind in MORE_MODELS for tree in ("mixed", "two sets of tools")]
CASES += [  # every kind of model with every kind of tree, and every pair of settings with each of both
    (kind, tree, bool((i + j) % 2), bool((i + j) // 2 % 2))
    for i, kind in enumerate(MODELS)
    for j, tree in enumerate(KINDS)
]


def tokens(rng: random.Random, low: int, high: int) -> list[int]:
    return rng.choices(range(1, VOCABULARY), k=rng.randint(low, high))


def random_prompts(rng: random.Random, kind: str) -> list[list[int]]:
    """One prompt a row, shuffled."""
    common = tokens(rng, 65, 90)
    groups = rng.randint(2, 4)
    prompts = [common + tokens(rng, 1, 9) for _ in range(1 if kind == "one prompt" else groups)]
    if kind == "a prompt is the beginning of another":
        prompts[0] = common
    if kind == "two sets of tools":
        other = common[:5] + tokens(rng, 70, 80)
        prompts += [other + tokens(rng, 1, 9) for _ in range(2)]
    rows = [prompt for prompt in prompts for _ in range(1 if kind == "one group each" else rng.randint(1, 4))]
    rows += rows[:1] if len(rows) < 2 else []
    return rng.sample(rows, len(rows))


def random_batch(rng: random.Random, kind: str) -> GroupedBatch:
    prompts = random_prompts(rng, kind)
    completions = [tokens(rng, 1, 12) for _ in prompts]
    width, length = max(map(len, prompts)), max(map(len, completions))
    left = [[0] * (width - len(prompt)) for prompt in prompts]
    right = [[0] * (length - len(completion)) for completion in completions]
    completion_mask = torch.tensor([[1] * len(c) + pad for c, pad in zip(completions, right, strict=True)])
    tool_mask = torch.tensor([[rng.choice((0, 1, 1)) for _ in range(length)] for _ in prompts]) * completion_mask
    tool_mask[:, 0] = 1
    return GroupedBatch(
        torch.tensor([pad + prompt for prompt, pad in zip(prompts, left, strict=True)]),
        torch.tensor([pad + [1] * len(prompt) for prompt, pad in zip(prompts, left, strict=True)]),
        torch.tensor([c + pad for c, pad in zip(completions, right, strict=True)]),
        completion_mask,
        tool_mask,
    )


def micro_batches(rng: random.Random, batch: GroupedBatch) -> list[torch.Tensor]:
    """Rows of two or more micro-batches, the last row alone now and then."""
    count = len(batch.prompt_ids)
    cuts = sorted(rng.sample(range(1, count), rng.randint(1, min(3, count - 1))))
    return [torch.arange(start, end) for start, end in zip([0, *cuts], [*cuts, count], strict=True)]


class CountTokens:
    """Counts the tokens that pass through a model's decoder."""

    def __init__(self, model):
        self.tokens = 0
        self._hook = causal_lm(model).base_model.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, module, args, kwargs):
        self.tokens += kwargs["input_ids"].numel()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._hook.remove()


def tokens_of_tree(batch: GroupedBatch, parts: list[torch.Tensor]) -> int:
    """Tokens of the tree whose prompts' own parts are computed once a micro-batch."""
    micro = [rows_by_prompt(batch.prompt_ids[rows], batch.prompt_mask[rows]) for rows in parts]
    prompts = list(dict.fromkeys(prompt for found in micro for prompt in found))
    uses = [sum(prompt in found for found in micro) for prompt in prompts]
    prompt_tokens = sum(
        length + sum(uses[i] * (len(prompts[i]) - length) for i in members)
        for length, members in common_beginnings(prompts, uses)
    )
    return prompt_tokens + int(batch.completion_mask.sum())


def assert_equal_gradients(found, expected):
    assert found.keys() == expected.keys()
    floor = 1e-7 * sum(gradient.norm() ** 2 for gradient in expected.values()) ** 0.5
    for name, gradient in expected.items():
        assert (found[name] - gradient).norm() <= 1e-5 * gradient.norm() + floor, name


def prepared(model, checkpointing: bool):
    if checkpointing:
        causal_lm(model).gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model


@pytest.mark.parametrize(("kind", "tree", "checkpointing", "adapter"), CASES)
def test_one_graph_over_a_tree_has_the_gradients_of_trl(kind, tree, checkpointing, adapter):
    rng = random.Random(f"{kind} {tree} {checkpointing} {adapter}")
    model, batch = prepared(make_model(kind, adapter), checkpointing), random_batch(rng, tree)
    logps, entropies = of_trl(model, batch)
    expected = gradients(model, loss_of(logps, entropies, batch))
    enable(model)
    with CountTokens(model) as count:
        scores = shared_logps(model, batch)
    assert count.tokens == tokens_of_tree(batch, [torch.arange(len(batch.prompt_ids))])
    torch.testing.assert_close(scores.logps, logps, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(scores.entropies, entropies, rtol=1e-5, atol=1e-5)
    assert_equal_gradients(gradients(model, loss_of(scores.logps, scores.entropies, batch)), expected)


@pytest.mark.parametrize(("kind", "tree", "checkpointing", "adapter"), CASES)
def test_micro_batches_accumulate_the_gradients_of_trl(kind, tree, checkpointing, adapter):
    rng = random.Random(f"{kind} {tree} {checkpointing} {adapter}")
    model, batch = prepared(make_model(kind, adapter), checkpointing), random_batch(rng, tree)
    weight = torch.randn(batch.completion_ids.shape, generator=torch.Generator().manual_seed(2)) * batch.tool_mask
    expected = gradients(model, (of_trl(model, batch)[0] * weight).sum())
    enable(model)
    parts = micro_batches(rng, batch)
    with_gradient = torch.tensor([rng.random() < 0.7 for _ in batch.prompt_ids])
    if rng.random() < 0.5:
        with_gradient[parts[-1]] = False  # the last micro-batch has no gradient of its own
    weight = weight * with_gradient[:, None] if rng.random() < 0.5 else weight
    chosen = with_gradient if (weight[~with_gradient] == 0).all() else None
    if chosen is not None:
        expected = gradients(model, (of_trl(model, batch)[0] * weight).sum())
    model.zero_grad()
    uses = {}
    for rows in parts:
        for prompt in rows_by_prompt(batch.prompt_ids[rows], batch.prompt_mask[rows]):
            uses[prompt] = uses.get(prompt, 0) + 1
    beginnings = Beginnings(model, uses, across_backward=True)
    with CountTokens(model) as count:
        for number, rows in enumerate(parts):
            zero = beginnings.attach() if number == len(parts) - 1 else None
            part = batch.rows(rows)
            of_rows = None if chosen is None else chosen[rows]
            logps = shared_logps(model, part, beginnings=beginnings, with_gradient=of_rows).logps
            ((logps if zero is None else logps + zero) * weight[rows]).sum().backward()
    if chosen is None:
        assert count.tokens == tokens_of_tree(batch, parts)
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    assert_equal_gradients(found, expected)


def test_a_beginning_first_needed_by_the_last_micro_batch_gets_its_gradient():
    model = make_model("llama")
    rng = random.Random(3)
    batch = random_batch(rng, "mixed")
    weight = torch.randn(batch.completion_ids.shape, generator=torch.Generator().manual_seed(2)) * batch.tool_mask
    expected = gradients(model, (of_trl(model, batch)[0] * weight).sum())
    enable(model)
    model.zero_grad()
    uses = dict.fromkeys(rows_by_prompt(batch.prompt_ids, batch.prompt_mask), 2)
    beginnings = Beginnings(model, uses, across_backward=True)
    assert beginnings.attach() is None
    (shared_logps(model, batch, beginnings=beginnings).logps * weight).sum().backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    assert_equal_gradients(found, expected)


def test_reentrant_checkpointing_shares_within_groups_only_and_says_so(caplog):
    model = make_model("llama")
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    enable(model)
    batch = random_batch(random.Random(5), "mixed")
    with CountTokens(model) as count:
        shared_logps(model, batch)
    prompts = rows_by_prompt(batch.prompt_ids, batch.prompt_mask)
    assert count.tokens == sum(map(len, prompts)) + int(batch.completion_mask.sum())
    assert "use_reentrant" in caplog.text


def test_dropout_of_a_beginning_is_the_same_in_its_forward_and_backward_pass():
    """With dropout in the model, the accumulated gradient is that of the loss which was computed."""
    from peft import LoraConfig, get_peft_model

    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False, lora_dropout=0.3)
    model = get_peft_model(make_model("llama"), lora).train()
    enable(model)
    batch = random_batch(random.Random(7), "mixed")
    uses = dict.fromkeys(rows_by_prompt(batch.prompt_ids, batch.prompt_mask), 1)
    found = []
    for across in (False, True):
        model.zero_grad()
        torch.manual_seed(0)
        beginnings = Beginnings(model, uses, across_backward=across)
        for prompt in uses:
            beginnings.find(prompt)
        zero = beginnings.attach()
        logps = shared_logps(model, batch, beginnings=beginnings).logps
        (logps if zero is None else logps + zero).sum().backward()
        found.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    assert_equal_gradients(*found)


def test_between_micro_batches_only_the_inputs_of_a_beginnings_layers_are_kept():
    def kept(length: int, across: bool) -> int:
        """Bytes that autograd keeps for the backward pass through a beginning."""
        model = make_model("llama")
        enable(model)
        storages: dict[int, int] = {}

        def note(x):
            storages[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        prompt = tuple(range(1, 50)) * 5
        with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
            found = Beginnings(model, {prompt[: length + 1]: 2}, across_backward=across).find(prompt[: length + 1])
        assert found is not None
        assert found.length == length
        return sum(storages.values())

    def growth(across: bool) -> int:
        return kept(200, across) - kept(100, across)

    assert growth(True) < growth(False) / 5


@pytest.mark.parametrize("autocast", [False, True])
def test_bfloat16_agrees_to_its_own_rounding(autocast):
    model, batch = make_model("llama"), random_batch(random.Random(11), "mixed")
    expected = gradients(model, of_trl(model, batch)[0].mean())
    enable(model if autocast else model.bfloat16())
    model.zero_grad()
    parts = torch.arange(len(batch.prompt_ids)).split(2)
    beginnings = Beginnings(
        model, dict.fromkeys(rows_by_prompt(batch.prompt_ids, batch.prompt_mask), 2), across_backward=True
    )
    for rows in parts:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            zero = beginnings.attach() if rows is parts[-1] else None
            logps = shared_logps(model, batch.rows(rows), beginnings=beginnings).logps
        ((logps if zero is None else logps + zero).sum() / batch.completion_ids.numel()).backward()
    error = sum((p.grad.float() - expected[name]).norm() ** 2 for name, p in model.named_parameters()) ** 0.5
    assert error <= 2e-2 * sum(gradient.norm() ** 2 for gradient in expected.values()) ** 0.5
