"""A simulator from nothing: a Qwen3 of a million parameters, a tokenizer trained on its data, and what it needs to
learn to copy names in minutes on one core: loss on the prompt too, and Muon."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from fission_grpo.feedback.dataset import Instance
from fission_grpo.feedback.prompt import SHORT_SYSTEM, PromptSettings

NAME = "starter-size"


SETTINGS = PromptSettings(SHORT_SYSTEM, characters=400, brief=True)
"""Signatures, the failed turn, the reference, and what is left for dialogue: about 150 tokens. [ours]"""


PROMPT_WEIGHT = 0.1
"""Loss weight of the prompt's tokens; predicting them teaches to copy. [ours]"""


VOCABULARY = 2000  # tokens [ours]


POSITIONS = 1024  # tokens of prompt and diagnosis [ours]


TRAINING = {
    "learning_rate": 3e-3,
    "lr_scheduler_type": "cosine_with_min_lr",
    "lr_scheduler_kwargs": {"min_lr_rate": 0.05},
    "warmup_steps": 0.03,
    "per_device_train_batch_size": 8,
    "num_train_epochs": 6,
    "train_sampling_strategy": "group_by_length",
    "gradient_checkpointing": False,
    "bf16": False,
}
"""Defaults of the trainer for this size. [ours]"""


_HEADINGS = (
    "Tools",
    "Dialogue",
    "Failed turn",
    "Kind of failure",
    "The runtime's own message",
    "Correct calls (secret)",
)


PIECES = (
    "|".join(re.escape(text) for text in (SHORT_SYSTEM, *(f"# {heading}\n" for heading in _HEADINGS)))
    + r'|\n?\{"name": "|", "arguments": \{"?|": \[?"?|"?\]?, "|"?\}\}\n?|<(?:/?tool_call)>\n?|error: '
    + r"| (?:a|an|the|is|are|be|was|not|of|to|in|for|and|or|no|on|by|it|as|at|than|this|must|got|needed|with)\b"
    + r"|: `?|; |, `?|` |\n|\p{L}+|\p{N}{1,2}|\s|[^\s\p{L}\p{N}]"
)
"""As the starter policy's: words stand without their space, so that copying a word is copying a token; what every
prompt repeats is one piece. [ours]"""


def make_starter_size(instances: Sequence[Instance], settings: PromptSettings, seed: int) -> tuple[Any, Any]:
    """An untrained model (about 1.2M parameters, float32) and its tokenizer, trained on the instances' texts."""
    import torch

    from fission_grpo.recipes.starter_policy.tokenizer import train_tokenizer
    from fission_grpo.recipes.starter_policy.train import make_model

    texts = [str(message["content"]) for one in instances for message in settings.messages(one.failure)]
    texts += [one.diagnosis for one in instances]
    tokenizer = train_tokenizer(texts, VOCABULARY, POSITIONS, PIECES)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make_model(tokenizer, POSITIONS), tokenizer
