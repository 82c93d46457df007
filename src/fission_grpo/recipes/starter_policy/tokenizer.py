"""The starter policy's tokenizer: byte-level BPE of fewer than a thousand tokens and a Qwen-style chat template."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TAGS = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>")
"""Single tokens, but not special tokens, since TRL decodes completions with `skip_special_tokens=True`."""
SHIPPED = Path(__file__).parents[2] / "inference" / "starter_policy"
CHAT_TEMPLATE = (SHIPPED / "chat_template.jinja").read_text(encoding="utf-8")
"""Qwen's format, except that tools are shown as signatures, which keeps prompts short."""
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

    `vocabulary` is the number of tokens, 256 of which are the bytes; `positions` the longest input in tokens.
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
