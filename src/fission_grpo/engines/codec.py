"""Between chat messages and token ids, as TRL's GRPOTrainer converts them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from fission_grpo.core.chat import takes_tools
from fission_grpo.core.types import Message


class ChatCodec:
    """Encodes prompts and tool results with a tokenizer's chat template, and decodes what the policy wrote.

    Args:
        tokenizer: of the policy.
        template_options: further arguments of the template, TRL's `chat_template_kwargs`.
        eos_ids: token ids that end a turn, beside the tokenizer's own.
    """

    def __init__(self, tokenizer: Any, template_options: Mapping[str, Any] | None = None, eos_ids: Iterable[int] = ()):
        self.tokenizer, self.template_options = tokenizer, dict(template_options or {})
        self.eos_ids = frozenset([*eos_ids, *([] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id])])

    def check_tools(self) -> None:
        """Raise ValueError if the chat template does not show tools to the policy, or there is none."""
        name = getattr(self.tokenizer, "name_or_path", "") or type(self.tokenizer).__name__
        fix = "take an instruction-tuned model with tool calling, or set tokenizer.chat_template"
        if not getattr(self.tokenizer, "chat_template", None):
            raise ValueError(f"the tokenizer {name} has no chat template; {fix}.")
        if not takes_tools(self.tokenizer):
            raise ValueError(f"the chat template of the tokenizer {name} does not show tools to the policy; {fix}.")

    def encode_prompt(self, prompt: str | Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()) -> list[int]:
        """The token ids of a prompt up to where the policy goes on; `tools` are schemas as `schemas` makes them."""
        if isinstance(prompt, str):
            return list(self.tokenizer(text=prompt)["input_ids"])
        return self._template(prompt, tools=list(tools) or None, add_generation_prompt=True)

    def encode_results(self, messages: Sequence[Message]) -> list[int]:
        """The token ids between the token that ended a turn and the next one: tool results, and the next header.

        They are taken from a dialogue of this turn alone, as templates may change earlier turns when they render them
        again.
        """
        function = {"name": messages[0]["name"], "arguments": {}}
        before = [
            {"role": "user", "content": "x"},
            {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}]},
        ]
        prefix, whole = self._template(before), self._template([*before, *messages], add_generation_prompt=True)
        ends = [i for i, token in enumerate(prefix) if token == self.tokenizer.eos_token_id]
        prefix = prefix[: ends[-1] + 1] if ends else prefix
        if whole[: len(prefix)] != prefix:
            raise ValueError("the chat template renders a turn in another way when a tool result follows it.")
        return whole[len(prefix) :]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, with special tokens."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=False))

    def schemas(self, tools: Iterable[Callable[..., Any]]) -> list[dict[str, Any]]:
        """JSON schemas of an environment's tools, as templates take them."""
        from transformers.utils import get_json_schema

        return [get_json_schema(tool) for tool in tools]

    def _template(self, messages: Sequence[Message], **options: Any) -> list[int]:
        return self.tokenizer.apply_chat_template(
            [dict(message) for message in messages],
            tokenize=True,
            return_dict=False,
            **options,
            **self.template_options,
        )
