"""What a run gives to people: the model card, and tables of recoveries for W&B and trackio."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from importlib.metadata import metadata
from pathlib import Path
from typing import Any

from fission_grpo.core.files import write_file
from fission_grpo.core.model_readme import README, evaluations_section
from fission_grpo.core.types import Message
from fission_grpo.fission.metrics import RecoveryOutcome, outcomes_by_context
from fission_grpo.fission.recovery import CorrectiveInstance
from fission_grpo.training.trl_compat import MixinBase

SETTINGS = (
    "fission", "num_generations", "beta", "loss_type", "learning_rate", "temperature", "max_completion_length",
    "seed",
)  # fmt: skip
RECOVERY_SETTINGS = (
    "num_recovery_generations", "recovery_batches", "recovery_reward", "recovery_scope", "recovery_ratio",
    "failure_threshold",
)  # fmt: skip
"""Options that the model card names, and those that a run without recovery has not. [ours]"""

PAPER = {
    "title": "Robust Tool Use via Fission-GRPO: Learning to Recover from Execution Errors",
    "id": "2601.15625",
    "citation": """\
@article{fissiongrpo2026,
    title  = {{Robust Tool Use via Fission-GRPO: Learning to Recover from Execution Errors}},
    year   = 2026,
    eprint = {arXiv:2601.15625}
}""",
}

COLUMNS = ("step", "request", "kind", "failed call", "feedback", "rewards", "best recovery", "worst recovery")
"""Columns of a table of recoveries: one row for each corrective instance of a cycle."""


class ReportingMixin(MixinBase):
    """Writes the model card with paper, evaluations and settings of Fission-GRPO, and TRL's part below."""

    _name = "Fission-GRPO"
    _paper = PAPER

    @property
    def _tag_names(self) -> list[str]:
        return [*super()._tag_names, *(["fission-grpo"] if self.args.fission else [])]  # pyright: ignore

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        if not self.args.fission:  # pyright: ignore[reportAttributeAccessIssue]
            self._name, self._paper = super()._name, super()._paper
        super().create_model_card(*args, **kwargs)
        path = Path(str(self.args.output_dir)) / README
        if self.is_world_process_zero():
            write_file(path, self._readme_text(path.read_text(encoding="utf-8")))

    def _readme_text(self, text: str) -> str:
        """TRL's text with our sections before its own, and names in place of None for a model from a folder."""
        base = Path(str(getattr(self.model.config, "_name_or_path", ""))).name  # pyright: ignore
        text = text.replace("[None](https://huggingface.co/None)", f"`{base}` (a local model)" if base else "a model")
        text = text.replace('model="None"', f'model="{Path(str(self.args.output_dir)).name}"')
        before, heading, after = text.partition("## Quick start")
        return before + self._readme_sections() + heading + after

    def _readme_sections(self) -> str:
        has_recovery: bool = self.args.fission  # pyright: ignore[reportAttributeAccessIssue]
        names = (*SETTINGS, *(RECOVERY_SETTINGS if has_recovery else ()))
        settings = {name: getattr(self.args, name, None) for name in names}
        if has_recovery:
            settings["feedback"] = ", ".join(str(source.name) for source in self.fission.sources)  # pyright: ignore
        settings["error_pattern"] = getattr(self.error_if, "name", None)  # pyright: ignore[reportAttributeAccessIssue]
        settings["rewards"] = ", ".join(self.reward_func_names)
        settings["environment"] = ", ".join(sorted({type(one).__name__ for one in self.environments or ()}))
        settings["trained for"] = f"{self.state.global_step} steps, {self.generated_tokens:,} generated tokens"  # pyright: ignore
        given = {name: str(value).replace("|", r"\|") for name, value in settings.items() if value not in (None, "")}
        rows = "\n".join(f"| {name} | {value} |" for name, value in given.items())
        about = metadata("fission-grpo")
        links = [entry.partition(", ")[2] for entry in about.get_all("Project-URL") or ()]
        name = f"[fission-grpo]({links[0]})" if links else "`fission-grpo`"
        return f"""\
## Evaluation

{evaluations_section(Path(str(self.args.output_dir)))}

## Settings

Trained with {name} {about["Version"]}, an open implementation of Fission-GRPO.

| setting | value |
|---|---|
{rows}

"""


class RecoveryTables:
    """Logs a table of recoveries to W&B or trackio at the first and then every `every`-th recover cycle; 0: never."""

    def __init__(self, every: int, report_to: Sequence[str]):
        self._every, self._cycles = every, 0
        self._backends = [name for name in ("wandb", "trackio") if name in report_to]

    def log(self, contexts: Sequence[CorrectiveInstance], outcomes: Sequence[RecoveryOutcome], step: int) -> None:
        """Log the recoveries of all ranks in a recover cycle."""
        self._cycles += 1
        if not self._every or (self._cycles - 1) % self._every:
            return
        rows = recovery_rows(contexts, outcomes, step)
        for name in self._backends:
            backend: Any = importlib.import_module(name)
            if name == "trackio" or backend.run is not None:
                backend.log({"recoveries": backend.Table(columns=list(COLUMNS), data=rows)})


def recovery_rows(
    contexts: Sequence[CorrectiveInstance], outcomes: Sequence[RecoveryOutcome], step: int
) -> list[list[Any]]:
    """Return the rows of a table with `COLUMNS`. A recovery that could not be judged has no reward, and is no best."""
    rows = []
    for item, group in zip(contexts, outcomes_by_context(contexts, outcomes).values(), strict=True):
        judged = sorted((one for one in group if one.reward is not None), key=lambda one: one.reward or 0.0)
        rewards = " ".join("-" if one.reward is None else f"{one.reward:.3g}" for one in group)
        best, worst = (judged[-1].text, judged[0].text) if judged else ("", "")
        request = request_of(item.task.prompt, item.feedback)
        rows.append([step, request, str(item.kind), item.failed, item.feedback, rewards, best, worst])
    return rows


def request_of(prompt: str | Sequence[Message], feedback: str) -> str:
    """The user's last message in a recovery prompt, but for the feedback; all of a prompt that is one text."""
    if isinstance(prompt, str):
        return prompt
    said: list[Mapping[str, Any]] = [message for message in prompt if message["role"] == "user"]
    own = [message for message in said if message.get("content") != feedback] or said
    return str(own[-1].get("content")) if own else ""
