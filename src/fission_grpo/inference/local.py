"""A transformers model in this process as a policy: batched, with a KV cache and left padding."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from fission_grpo.core.chat import template_text
from fission_grpo.core.json_io import encodable
from fission_grpo.core.special_tokens import SpecialTokenFilter
from fission_grpo.core.types import Message
from fission_grpo.inference.base import Reply, Request

MIN_SHARED = 32
"""Shortest prefix that is read once for a batch, in tokens. [ours] A shorter one saves less than it costs."""

_PLACEHOLDER = "ASSISTANT TURN"


def shared_length(prompts: Sequence[Sequence[int]]) -> int:
    """Return the length of the common prefix of prompts, at least one token less than each; 0 below `MIN_SHARED`.

    Example:
        Two prompts of 100 tokens that differ in the last ten share 90; two equal ones share 99; a single one shares 0.
    """
    if len(prompts) < 2:
        return 0
    ordered = sorted(list(prompt) for prompt in prompts)
    pairs = zip(ordered[0], ordered[-1], strict=False)  # all others lie between these two
    equal = itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)
    length = min(sum(1 for _ in equal), min(map(len, prompts)) - 1)
    return length if length >= MIN_SHARED else 0


class LocalPolicy:
    """Samples from a transformers model in this process.

    The model's other generation settings (repetition penalty, top-k, ...) are not used.

    Args:
        model: a causal language model with `generate`.
        tokenizer: its tokenizer. Without a chat template it can only continue requests with a `prompt`.
        temperature: sampling temperature; 0 for greedy decoding.
        max_new_tokens: most tokens of one turn.
        batch_size: requests per batch. Prompts are batched by length, and their common prefix is read once.
        seed: of the sampling. The same seed, model and requests in the same order and batches give the same replies
            on one machine. The global random state is kept.

    Raises:
        ValueError: a limit out of range; a tokenizer without a token for padding.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        temperature: float = 1.0,
        max_new_tokens: int = 64,
        batch_size: int = 64,
        seed: int = 0,
    ):
        if temperature < 0 or max_new_tokens < 1 or batch_size < 1:
            raise ValueError(
                "LocalPolicy needs temperature >= 0, max_new_tokens >= 1 and batch_size >= 1, got "
                f"{temperature}, {max_new_tokens}, {batch_size}"
            )
        self.model, self.tokenizer = model, tokenizer
        self.temperature, self.max_new_tokens, self.batch_size = temperature, max_new_tokens, batch_size
        self.eos = eos_ids(model, tokenizer)
        self.context = context_length(model)
        self._pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else next(iter(self.eos), None)
        if self._pad is None:
            raise ValueError(f"{_name(tokenizer)} has neither a padding nor an end token; set tokenizer.pad_token")
        self._seed, self._calls = seed, 0

    def reply(self, requests: Sequence[Request]) -> list[Reply]:
        """Return one reply per request. A prompt that fills the model's context gets an empty, truncated reply.

        Raises:
            ValueError: a request without `prompt`, if the chat template is missing or rejects the dialogue.
        """
        import torch

        prompts = [self._ids(request) for request in requests]
        replies = {i: Reply("", truncated=True) for i, prompt in enumerate(prompts) if self._room(prompt) < 1}
        order = sorted((i for i in range(len(prompts)) if i not in replies), key=lambda i: len(prompts[i]))
        was_training = self.model.training
        self.model.eval()
        with torch.random.fork_rng(devices=[self.model.device] if self.model.device.type == "cuda" else []):
            torch.manual_seed(hash((self._seed, self._calls)) % 2**31)
            for room, group in itertools.groupby(order, key=lambda i: self._room(prompts[i])):
                indices = list(group)
                for start in range(0, len(indices), self.batch_size):
                    batch = indices[start : start + self.batch_size]
                    replies |= zip(batch, self._sample([prompts[i] for i in batch], room), strict=True)
        self.model.train(was_training)
        self._calls += 1
        return [replies[i] for i in range(len(prompts))]

    def _ids(self, request: Request) -> list[int]:
        text = encodable(prompt_text(self.tokenizer, request))
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def _room(self, prompt: Sequence[int]) -> int:
        """The number of new tokens that fit after a prompt, at most `max_new_tokens`."""
        return min(self.max_new_tokens, self.context - len(prompt)) if self.context else self.max_new_tokens

    def _sample(self, prompts: list[list[int]], room: int) -> list[Reply]:
        """Continue one batch of prompts (token ids) by at most `room` tokens."""
        import torch

        from fission_grpo.inference.kv_cache import make_growing_cache, read_prompts

        length, shared = max(1, *map(len, prompts)), shared_length(prompts)
        cache = make_growing_cache(self.model, length - shared + room if shared else room)
        if cache is None:
            shared = 0
        elif shared:
            prefix = torch.tensor([prompts[0][:shared]], device=self.model.device)
            with torch.no_grad():
                states, _ = read_prompts(self.model, prefix)
            for number, (keys, values) in enumerate(states):
                keys, values = (x.expand(len(prompts), -1, -1, -1) for x in (keys, values))
                cache.update(keys, values, number)
        gaps = [length - len(prompt) for prompt in prompts]  # padding is on the left, or after the common prefix
        ids = torch.tensor(
            [prompt[:shared] + [self._pad] * gap + prompt[shared:] for prompt, gap in zip(prompts, gaps, strict=True)]
        )
        mask = torch.tensor([[1] * shared + [0] * gap + [1] * (length - shared - gap) for gap in gaps])
        sampling = {"do_sample": True, "temperature": self.temperature} if self.temperature else {"do_sample": False}
        with torch.no_grad(), _plain_generation(self.model):
            out = self.model.generate(
                input_ids=ids.to(self.model.device),
                attention_mask=mask.to(self.model.device),
                max_new_tokens=room,
                pad_token_id=self._pad,
                eos_token_id=sorted(self.eos) or None,
                use_cache=True,
                past_key_values=cache,
                top_k=0,
                top_p=1.0,
                **sampling,
            )
        return [self._read(row) for row in out[:, length:].tolist()]

    def _read(self, ids: list[int]) -> Reply:
        end = next((at for at, token in enumerate(ids) if token in self.eos), None)
        reply = ids if end is None else ids[: end + 1]
        text = self.tokenizer.decode(reply, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return Reply(text, len(reply), truncated=end is None)


def prompt_text(tokenizer: Any, request: Request) -> str:
    """Return the text that a reply continues: the request's `prompt`, else its dialogue in the chat template.

    As in training, special tokens in tool results and in the policy's text are broken up (`SpecialTokenFilter`).

    Raises:
        ValueError: there is no chat template, or it rejects the dialogue.
    """
    if request.prompt is not None:
        return request.prompt
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError(
            f"{_name(tokenizer)} has no chat template, so dialogues cannot be rendered for it: take the "
            "instruction-tuned model's tokenizer, set tokenizer.chat_template, or evaluate on cases that bring their "
            "own prompt text"
        )
    from jinja2 import TemplateError

    try:
        return continued_text(tokenizer, _sanitize(tokenizer, request.messages), request.tools)
    except TemplateError as error:
        roles = ", ".join(str(message["role"]) for message in request.messages)
        raise ValueError(
            f"the chat template of {_name(tokenizer)} refuses a dialogue of the roles {roles}: {error}"
        ) from error


def continued_text(tokenizer: Any, dialogue: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> str:
    """Return the prompt for the next assistant turn, with the assistant's earlier text verbatim.

    The first prompt is rendered by the chat template, which may change earlier turns when it renders them again. So
    the text after a turn (end of turn, tool results, next header) is taken from a dialogue with a placeholder, as in
    TRL's `GRPOTrainer`. Assistant messages whose calls are not in their content come from data, not from a policy;
    the template renders them, and all messages before them.
    """
    from_data = [i for i, message in enumerate(dialogue) if message["role"] == "assistant" and not _is_own(message)]
    first = from_data[-1] + 1 if from_data else 0
    turns = [i for i, message in enumerate(dialogue) if message["role"] == "assistant" and i >= first]
    text = template_text(dialogue[: turns[0]] if turns else dialogue, tools, tokenizer)
    for start, end in itertools.pairwise([*turns, len(dialogue)]):
        text += dialogue[start]["content"] + _after_turn(tokenizer, dialogue[start + 1 : end])
    return text


def _sanitize(tokenizer: Any, dialogue: Sequence[Message]) -> list[Message]:
    special_tokens = SpecialTokenFilter.from_tokenizer(tokenizer)
    return [
        special_tokens.sanitize_messages([message])[0] if message["role"] in ("tool", "assistant") else message
        for message in dialogue
    ]


def eos_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    """Return the token ids that end a turn: the tokenizer's, and those of the model's generation settings."""
    more = getattr(model.generation_config, "eos_token_id", None)
    ids = [tokenizer.eos_token_id, *(more if isinstance(more, list | tuple) else [more])]
    return frozenset(int(token) for token in ids if token is not None)


def context_length(model: Any) -> int | None:
    """Return the most tokens of prompt and reply together, None if the model's config does not say."""
    return getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)


def _is_own(message: Message) -> bool:
    """Whether an assistant message holds the complete text of a policy, as in `Request`."""
    content = message.get("content")
    return isinstance(content, str) and (not message.get("tool_calls") or "<tool_call>" in content)


def _after_turn(tokenizer: Any, messages: Sequence[Message]) -> str:
    dialogue = [{"role": "user", "content": "x"}, {"role": "assistant", "content": _PLACEHOLDER}, *messages]
    text = template_text(dialogue, (), tokenizer)
    return text[text.index(_PLACEHOLDER) + len(_PLACEHOLDER) :]


@contextmanager
def _plain_generation(model: Any) -> Iterator[None]:
    """Reset the model's generation settings, which `generate` would use for everything that is not given."""
    from transformers import GenerationConfig

    before = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = before


def _name(tokenizer: Any) -> str:
    return f"the tokenizer {getattr(tokenizer, 'name_or_path', '') or type(tokenizer).__name__}"
