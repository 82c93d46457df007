"""The starter policy's tokenizer: byte-level BPE of fewer than a thousand tokens and a Qwen-style chat template."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TAGS = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>")
"""Single tokens, but not special tokens, since TRL decodes completions with `skip_special_tokens=True`."""
CHAT_TEMPLATE = """\
{#- Qwen's format, except that tools are shown as signatures, which keeps prompts short. -#}
{%- set system = messages[0].content if messages[0].role == 'system' else '' %}
{%- if system or tools %}
    {{- '<|im_start|>system\\n' + system }}
    {%- if tools %}
        {{- ('\\n' if system else '') + 'Tools:' }}
        {%- for tool in tools %}
            {%- set tool = tool.function or tool %}
            {{- ' ' + tool.name + '(' + (tool.parameters.properties or {}) | join(', ') + ')' }}
        {%- endfor %}
    {%- endif %}
    {{- '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- set content = message.content if message.content is string else '' %}
    {%- if message.role == 'user' or (message.role == 'system' and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' }}
    {%- elif message.role == 'assistant' %}
        {{- '<|im_start|>assistant\\n' }}
        {%- generation %}
        {{- content }}
        {%- for tool_call in message.tool_calls or [] %}
            {{- '\\n' if content or not loop.first else '' }}
            {%- set tool_call = tool_call.function or tool_call %}
            {{- '<tool_call>\\n{"name": "' + tool_call.name + '", "arguments": ' }}
            {{- tool_call.arguments if tool_call.arguments is string else tool_call.arguments | tojson }}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>' }}
        {%- endgeneration %}
        {{- '\\n' }}
    {%- elif message.role == 'tool' %}
        {{- '<|im_start|>user' if loop.first or messages[loop.index0 - 1].role != 'tool' else '' }}
        {{- '\\n<tool_response>\\n' + content + '\\n</tool_response>' }}
        {{- '<|im_end|>\\n' if loop.last or messages[loop.index0 + 1].role != 'tool' else '' }}
    {%- endif %}
{%- endfor %}
{{- '<|im_start|>assistant\\n' if add_generation_prompt else '' }}
"""
PIECES = (
    r'\n?\{"name": "|", "arguments": \{"|": "|", "|"\}\}\n?'
    r"|\n\{'error': [\"']|[\"']\}\n|no (?:file|event) '|'; similar: | is locked; call unlock_file first"
    r"| is taken; next free |(?:time must be 24h HH:MM|date must be YYYY-MM-DD), got '?|Sorry, I could not do that"
    r"| ?[a-z]+_(?:file|event|id|name)\b|\([a-z_]+(?:, [a-z_]+)*\)|\p{L}+|\p{N}{1,2}|\s|[^\s\p{L}\p{N}]"
)
"""Pattern of the pieces within which tokens are formed. Words are separate from their space, so that the policy can
copy a word by copying tokens; numbers are pairs of digits; fixed phrases are one piece. [ours]"""


def train_tokenizer(texts: Iterable[str], vocabulary: int = 960, positions: int = 1024, pieces: str = PIECES) -> Any:
    """Train a `PreTrainedTokenizerFast` for TRL's tool calling, with TRL's response template of Qwen3.

    Args:
        texts: to train on.
        vocabulary: number of tokens, 256 of which are the bytes.
        positions: longest input of the model, in tokens.
        pieces: pattern of the pieces within which tokens are formed.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast
    from trl.chat_template_utils import qwen3_template

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(pieces), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - len(TAGS),
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens([AddedToken(tag, normalized=False, special=False) for tag in TAGS])
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>"],
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=positions,
    )
    wrapped.chat_template = CHAT_TEMPLATE
    wrapped.response_template = qwen3_template
    return wrapped
