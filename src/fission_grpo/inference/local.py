"""A transformers model in this process as a policy: batched, and no token is read twice."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

from fission_grpo.core.chat import template_text
from fission_grpo.core.json_io import encodable
from fission_grpo.core.special_tokens import SpecialTokenFilter
from fission_grpo.core.types import Message
from fission_grpo.inference.base import Reply, Request
from fission_grpo.shared_prefix.prefixes import common_beginnings

_PLACEHOLDER = "ASSISTANT TURN"


class LocalPolicy:
    """Samples from a transformers model in this process.

    The model's other generation settings (repetition penalty, top-k, ...) are not used.

    Args:
        model: a causal language model with `generate`.
        tokenizer: its tokenizer. Without a chat template it can only continue requests with a `prompt`.
        temperature: sampling temperature; 0 for greedy decoding.
        max_new_tokens: most tokens of one turn.
        batch_size: requests per batch. Prompts with a common beginning are batched together, by length.
        seed: of the sampling. The same seed, model and requests in the same order and batches give the same replies
            on one machine. The global random state is kept. Requests with a seed of their own, if all of a batch have
            one, get the same replies in any batch, up to rounding: padding changes logits in their last digits.
        template_options: further arguments of the chat template, as in TRL's `chat_template_kwargs`.
        shared_prefix: read what prompts have in common once, and of a dialogue's later turns what is new, as long as
            the weights stay the same (`SharedGeneration`, whose counts are in `sharing`). Rounding differs.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        temperature: float = 1.0,
        max_new_tokens: int = 64,
        batch_size: int = 64,
        seed: int = 0,
        template_options: Mapping[str, Any] | None = None,
        shared_prefix: bool = True,
    ):
        from fission_grpo.shared_prefix.generate import SharedGeneration

        if temperature < 0 or max_new_tokens < 1 or batch_size < 1:
            limits = "temperature >= 0, max_new_tokens >= 1 and batch_size >= 1"
            raise ValueError(f"LocalPolicy needs {limits}, got {temperature}, {max_new_tokens}, {batch_size}")
        self.model, self.tokenizer = model, tokenizer
        self.temperature, self.max_new_tokens, self.batch_size = temperature, max_new_tokens, batch_size
        self.eos = eos_ids(model, tokenizer)
        self.context = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else next(iter(self.eos), None)
        if pad is None:
            raise ValueError(f"{_name(tokenizer)} has neither a padding nor an end token; set tokenizer.pad_token")
        self._pad = int(pad)
        self._seed, self._calls, self._template_options = seed, 0, template_options
        self.sharing = SharedGeneration() if shared_prefix else None

    def reply(self, requests: Sequence[Request]) -> list[Reply]:
        """Return one reply per request. A prompt that fills the model's context gets an empty, truncated reply.

        Raises ValueError if the chat template is missing or rejects a dialogue.
        """
        import torch

        from fission_grpo.shared_prefix.check import eval_mode

        prompts = [self._ids(request) or [self._pad] for request in requests]
        replies = {i: Reply("", truncated=True) for i, prompt in enumerate(prompts) if self._room(prompt) < 1}
        order = self._order(prompts, [i for i in range(len(prompts)) if i not in replies])
        devices = [self.model.device] if self.model.device.type == "cuda" else []
        sharing = self.sharing.on(self.model) if self.sharing else nullcontext()
        with torch.random.fork_rng(devices), sharing, eval_mode(self.model):
            torch.manual_seed(hash((self._seed, self._calls)) % 2**31)
            for room, group in itertools.groupby(order, key=lambda i: self._room(prompts[i])):
                indices = list(group)
                for start in range(0, len(indices), self.batch_size):
                    batch = indices[start : start + self.batch_size]
                    seeds = [requests[i].seed for i in batch]
                    replies |= zip(batch, self._sample([prompts[i] for i in batch], room, seeds), strict=True)
        self._calls += 1
        return [replies[i] for i in range(len(prompts))]

    def _ids(self, request: Request) -> list[int]:
        text = encodable(prompt_text(self.tokenizer, request, self._template_options))
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def _order(self, prompts: Sequence[Sequence[int]], some: list[int]) -> list[int]:
        """Numbers of `some` prompts, those with equal room together, then those that begin alike, then by length."""
        clusters = common_beginnings([prompts[i] for i in some])
        cluster = {some[i]: number for number, (_, members) in enumerate(clusters) for i in members}
        return sorted(some, key=lambda i: (-self._room(prompts[i]), cluster[i], len(prompts[i])))

    def _room(self, prompt: Sequence[int]) -> int:
        return min(self.max_new_tokens, self.context - len(prompt)) if self.context else self.max_new_tokens

    def _sample(self, prompts: list[list[int]], room: int, seeds: Sequence[int | None]) -> list[Reply]:
        """Continue one batch of prompts (token ids) by at most `room` tokens."""
        import torch
        from transformers import GenerationConfig

        length = max(map(len, prompts))
        ids = torch.tensor([[self._pad] * (length - len(prompt)) + prompt for prompt in prompts])
        mask = torch.tensor([[0] * (length - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        is_sampled = self.temperature > 0
        own_seeds = [seed for seed in seeds if seed is not None] if is_sampled else []
        noise = (
            [_seeded_noise(own_seeds, self.temperature, self.model.device)] if len(own_seeds) == len(prompts) else None
        )
        model, settings = self.model, self.model.generation_config
        model.generation_config = GenerationConfig()  # `generate` would use the model's for all that is not given
        try:
            with torch.no_grad():
                out = model.generate(
                    input_ids=ids.to(model.device),
                    attention_mask=mask.to(model.device),
                    max_new_tokens=room,
                    pad_token_id=self._pad,
                    eos_token_id=sorted(self.eos) or None,
                    use_cache=True,
                    do_sample=is_sampled and not noise,
                    temperature=self.temperature if is_sampled and not noise else None,
                    logits_processor=noise,
                    top_k=0,
                    top_p=1.0,
                )
        finally:
            model.generation_config = settings
        return [self._read(row) for row in out[:, length:].tolist()]

    def _read(self, ids: list[int]) -> Reply:
        end = next((at for at, token in enumerate(ids) if token in self.eos), None)
        reply = ids if end is None else ids[: end + 1]
        text = self.tokenizer.decode(reply, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return Reply(text, len(reply), truncated=end is None)


def _seeded_noise(seeds: Sequence[int], temperature: float, device: Any) -> Any:
    """A logits processor after which the largest score is a sample, drawn for each row with its own seed.

    The index of the largest `logit / temperature + g`, with g from a standard Gumbel distribution, has the
    distribution softmax(logits / temperature).
    """
    import torch

    generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]

    def add_noise(_: Any, scores: Any) -> Any:
        drawn = torch.empty_like(scores, dtype=torch.float32)
        for row, generator in zip(drawn, generators, strict=True):
            row.exponential_(generator=generator)
        return scores.float() / temperature - drawn.clamp_min(1e-30).log()

    return add_noise


def prompt_text(tokenizer: Any, request: Request, template_options: Mapping[str, Any] | None = None) -> str:
    """Return the text that a reply continues: the request's `prompt`, else its dialogue in the chat template.

    As in training, special tokens in tool results and in the policy's text are broken up (`SpecialTokenFilter`).
    Raises ValueError if there is no chat template, or it rejects the dialogue.
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

    special_tokens = SpecialTokenFilter.from_tokenizer(tokenizer)
    dialogue = [
        special_tokens.sanitize_messages([message])[0] if message["role"] in ("tool", "assistant") else message
        for message in request.messages
    ]
    try:
        return continued_text(tokenizer, dialogue, request.tools, template_options)
    except TemplateError as error:
        roles = ", ".join(str(message["role"]) for message in request.messages)
        what = f"the chat template of {_name(tokenizer)} refuses a dialogue of the roles {roles}"
        raise ValueError(f"{what}: {error}") from error


def continued_text(
    tokenizer: Any,
    dialogue: Sequence[Message],
    tools: Sequence[Mapping[str, Any]],
    template_options: Mapping[str, Any] | None = None,
) -> str:
    """Return the prompt for the next assistant turn, with the assistant's earlier text verbatim.

    The first prompt is rendered by the chat template, which may change earlier turns when it renders them again. So
    the text after a turn (end of turn, tool results, next header) is taken from a dialogue with a placeholder, as in
    TRL's `GRPOTrainer`. Assistant messages whose calls are not in their content come from data, not from a policy;
    the template renders them, and all messages before them.
    """
    turns: list[int] = []
    for i, message in enumerate(dialogue):
        if message["role"] == "assistant":
            turns = [*turns, i] if _is_own(message) else []
    text = template_text(dialogue[: turns[0]] if turns else dialogue, tools, tokenizer, template_options)
    for start, end in itertools.pairwise([*turns, len(dialogue)]):
        placeholder = [{"role": "user", "content": "x"}, {"role": "assistant", "content": _PLACEHOLDER}]
        rendered = template_text([*placeholder, *dialogue[start + 1 : end]], (), tokenizer, template_options)
        text += dialogue[start]["content"] + rendered.split(_PLACEHOLDER, 1)[1]
    return text


def eos_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    """Return the token ids that end a turn: the tokenizer's, and those of the model's generation settings."""
    more = getattr(model.generation_config, "eos_token_id", None)
    ids = [tokenizer.eos_token_id, *(more if isinstance(more, list | tuple) else [more])]
    return frozenset(int(token) for token in ids if token is not None)


def _is_own(message: Message) -> bool:
    """Whether an assistant message holds the complete text of a policy, as in `Request`."""
    content = message.get("content")
    return isinstance(content, str) and (not message.get("tool_calls") or "<tool_call>" in content)


def _name(tokenizer: Any) -> str:
    return f"the tokenizer {getattr(tokenizer, 'name_or_path', '') or type(tokenizer).__name__}"
