"""What a simulator is trained on and measured on: rows of the data folder, split, as TRL takes them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fission_grpo.evaluation.local import encodable
from fission_grpo.simulator.instances import TEST, TRAIN, Instance, load_instances
from fission_grpo.simulator.settings import LEFT_TO_RULES, PromptSettings
from fission_grpo.training_tasks import UsageError

Row = dict[str, list[dict[str, str]]]
HELD_OUT = 0.1
"""Most of the training rows kept back, to tell unseen rows from unseen APIs. [ours]"""


@dataclass(frozen=True)
class Rows:
    """To train on; to measure on, of the same APIs (`seen`) and of others (`unseen`); how many were left out."""

    train: Sequence[Instance]
    seen: Sequence[Instance]
    unseen: Sequence[Instance]
    left_to_rules: int = 0
    too_long: int = 0


def read_rows(data: str | None, seed: int, max_rows: int = 0, evaluate_rows: int = 0) -> Rows:
    """The data, split. Rows of the kinds that no local model is asked about are left out, and unlabelled ones refused.

    Args:
        data: the folder.
        seed: of the shuffling.
        max_rows: trained on at most; 0: all.
        evaluate_rows: of each kind kept for measuring; of seen APIs at most `HELD_OUT` of the rows.

    Raises:
        UsageError: no data given, or nothing left to train on.
        TaskFileError: a file is missing or has a mistake.
    """
    if not data:
        raise UsageError("data is missing; give the folder that `fission-grpo simulator data` wrote")
    folder = Path(data).expanduser()
    found, unseen = load_instances(folder / TRAIN), []
    if (folder / TEST).is_file() and (folder / TEST).stat().st_size:
        unseen = load_instances(folder / TEST)
    for name, some in ((TRAIN, found), (TEST, unseen)):
        for one in some:
            if not one.diagnosis:
                raise UsageError(f"{folder / name}, id {one.id!r}, field 'diagnosis': is empty; label it first")
    asked = [one for one in found if one.failure.kind not in LEFT_TO_RULES]
    unseen = [one for one in unseen if one.failure.kind not in LEFT_TO_RULES]
    if not asked:
        kinds = ", ".join(sorted(LEFT_TO_RULES))
        raise UsageError(f"{folder / TRAIN}: every row is of a kind that is left to the rules ({kinds})")
    draw = random.Random(seed)
    draw.shuffle(asked)
    draw.shuffle(unseen)
    back = min(evaluate_rows, int(HELD_OUT * len(asked)))
    train = asked[back:][: max_rows or None]
    return Rows(train, asked[:back], unseen[:evaluate_rows], len(found) - len(asked))


def fitting(rows: Rows, settings: PromptSettings, tokenizer: Any, tokens: int) -> Rows:
    """Without training rows longer than so many tokens, whose diagnoses would be cut off.

    Raises:
        UsageError: none is left.
    """
    template = {"tokenize": True, "return_dict": True}
    lengths = [len(tokenizer.apply_chat_template(_all(one, settings), **template)["input_ids"]) for one in rows.train]
    kept = [one for one, length in zip(rows.train, lengths, strict=True) if length <= tokens]
    if not kept:
        raise UsageError(
            f"every row is longer than {tokens} tokens (the shortest has {min(lengths)}); lower characters, set "
            "brief, or raise max_length"
        )
    return replace(rows, train=kept, too_long=len(rows.train) - len(kept))


def as_rows(instances: Sequence[Instance], settings: PromptSettings) -> list[Row]:
    """TRL's conversational prompt-completion rows."""
    dialogues = [_all(one, settings) for one in instances]
    return [{"prompt": dialogue[:-1], "completion": dialogue[-1:]} for dialogue in dialogues]


def _all(one: Instance, settings: PromptSettings) -> list[dict[str, str]]:
    messages = [*settings.messages(one.failure), {"role": "assistant", "content": one.diagnosis}]
    return [{"role": str(message["role"]), "content": encodable(str(message["content"]))} for message in messages]
