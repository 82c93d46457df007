"""Who writes the assistant's turns in an evaluation: a local model, or a script."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from fission_grpo.trajectory import Message

Tool = Callable[..., Any]


@dataclass(frozen=True)
class Reply:
    """One assistant turn as written. `truncated` means it hit its length limit, `tokens` counts what was generated."""

    text: str
    tokens: int = 0
    truncated: bool = False


class Policy(Protocol):
    """Writes the next assistant turn of every dialogue, in order."""

    def reply(self, dialogues: Sequence[Sequence[Message]], tools: Sequence[Sequence[Tool]]) -> list[Reply]:
        """One reply per dialogue, of which each has its own tools.

        Assistant messages in the dialogues hold the raw text of earlier replies.
        """
        ...


class ScriptedPolicy:
    """A policy for tests and references: `write(dialogue)` returns the assistant's text."""

    def __init__(self, write: Callable[[Sequence[Message]], str]):
        self._write = write

    def reply(self, dialogues: Sequence[Sequence[Message]], tools: Sequence[Sequence[Tool]]) -> list[Reply]:
        return [Reply(self._write(dialogue)) for dialogue in dialogues]


class LocalPolicy:
    """Samples from a transformers model in this process, in batches, with a KV cache and left padding.

    Args:
        model: a causal language model with `generate`.
        tokenizer: its tokenizer, with a chat template and a padding token.
        temperature: 0 takes the most probable token.
        max_new_tokens: limit of one turn, in tokens.
        batch_size: dialogues per batch; dialogues are sorted by length first.
        seed: of the sampling; the same seed, model and dialogues give the same replies on one machine. The global
            random state is left as it was.
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
        self._seed, self._calls = seed, 0

    def reply(self, dialogues: Sequence[Sequence[Message]], tools: Sequence[Sequence[Tool]]) -> list[Reply]:
        import torch

        prompts = [
            self.tokenizer(continued_text(self.tokenizer, dialogue, own), add_special_tokens=False)["input_ids"]
            for dialogue, own in zip(dialogues, tools, strict=True)
        ]
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        replies: dict[int, Reply] = {}
        was_training = self.model.training
        self.model.eval()
        with torch.random.fork_rng(devices=[self.model.device] if self.model.device.type == "cuda" else []):
            torch.manual_seed(hash((self._seed, self._calls)) % 2**31)
            for start in range(0, len(order), self.batch_size):
                indices = order[start : start + self.batch_size]
                replies |= zip(indices, self._sample([prompts[i] for i in indices]), strict=True)
        self.model.train(was_training)
        self._calls += 1
        return [replies[i] for i in range(len(prompts))]

    def _sample(self, prompts: list[list[int]]) -> list[Reply]:
        """One batch of prompts (token ids) continued."""
        import torch

        pad, length = self.tokenizer.pad_token_id, max(map(len, prompts))
        ids = torch.tensor([[pad] * (length - len(prompt)) + prompt for prompt in prompts])
        mask = torch.tensor([[0] * (length - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        sampling = {"do_sample": True, "temperature": self.temperature} if self.temperature else {"do_sample": False}
        with torch.no_grad():
            out = self.model.generate(
                input_ids=ids.to(self.model.device),
                attention_mask=mask.to(self.model.device),
                max_new_tokens=self.max_new_tokens,
                pad_token_id=pad,
                eos_token_id=self.tokenizer.eos_token_id,
                top_k=0,
                top_p=1.0,
                **sampling,
            )
        return [self._read(row) for row in out[:, length:].tolist()]

    def _read(self, ids: list[int]) -> Reply:
        eos = self.tokenizer.eos_token_id
        truncated = eos not in ids
        own = ids if truncated else ids[: ids.index(eos) + 1]
        return Reply(self.tokenizer.decode(own, skip_special_tokens=True), len(own), truncated)


def continued_text(tokenizer: Any, dialogue: Sequence[Message], tools: Sequence[Callable[..., Any]]) -> str:
    """The prompt for the next assistant turn, with the assistant's earlier text exactly as it was written.

    The first prompt is the chat template's. What follows a turn (end of turn, tool results, next header) is read off
    a stand-in dialogue, as TRL's `GRPOTrainer` does, since some templates change earlier turns when they render them
    again. Messages that follow an assistant turn are rendered apart from what came before it.
    """
    turns = [i for i, message in enumerate(dialogue) if message["role"] == "assistant"]
    opening = dialogue[: turns[0]] if turns else dialogue
    text = tokenizer.apply_chat_template(
        [dict(message) for message in opening], tools=list(tools) or None, add_generation_prompt=True, tokenize=False
    )
    for start, end in itertools.pairwise([*turns, len(dialogue)]):
        following = [dict(message) for message in dialogue[start + 1 : end]]
        text += str(dialogue[start]["content"]) + _after_turn(tokenizer, following)
    return text


def _after_turn(tokenizer: Any, messages: list[dict[str, Any]]) -> str:
    mark = "ASSISTANT TURN"
    stand_in = [{"role": "user", "content": "x"}, {"role": "assistant", "content": mark}, *messages]
    text = tokenizer.apply_chat_template(stand_in, add_generation_prompt=True, tokenize=False)
    return text[text.index(mark) + len(mark) :]
