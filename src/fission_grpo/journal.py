"""fission.jsonl: every corrective instance and what became of it, one JSON object a line, only ever appended."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fission_grpo.corrective_instance import CorrectiveInstance
from fission_grpo.simulator.instances import instance, tools_key
from fission_grpo.task_json import call_fields
from fission_grpo.trajectory import Failure


class Journal:
    """Appends events to a file; `path=None` (every rank but the first) writes nothing."""

    def __init__(self, path: Path | None):
        self.path = path
        self._tools: set[str] = set()

    def pushed(self, item: CorrectiveInstance) -> None:
        task = item.task
        self._write(
            event="pushed",
            id=task.id,
            step=item.step,
            root=task.root,
            parent=task.parent,
            depth=task.depth,
            kind=str(item.kind),
            source=item.source,
            feedback=item.feedback,
            leaked=item.leaked,
            fallback=item.fallback,
            failed=item.failed,
            reward=item.reward,
            prompt=task.prompt,
        )

    def failed(self, failure: Failure, item_id: str, step: int) -> None:
        """All that the failure's diagnosis may go by, for `fission-grpo simulator data`: dialogue, tools, reference.

        The tools stand in an event of their own, "tools", once for each distinct set.

        Args:
            failure: the failure itself, before it was made a task.
            item_id: of its corrective instance (`recovery_id`).
            step: optimizer step of the failure.
        """
        if self.path is None:
            return
        alone = instance(failure, "", "").failure
        schemas = [dict(tool) for tool in alone.tools]
        key = tools_key(schemas)
        if key not in self._tools:
            self._tools.add(key)
            self._write(event="tools", key=key, tools=schemas)
        reference = alone.reference
        self._write(
            event="failed",
            id=item_id,
            step=step,
            root=failure.task.root,
            depth=failure.task.depth,
            kind=str(failure.kind),
            detail=failure.detail,
            call_index=failure.call_index,
            truncated=alone.turns[-1].truncated,
            failed=alone.turns[-1].text,
            reference=None if reference is None else [call_fields(call) for call in reference],
            tools=key,
            messages=alone.task.prompt,
        )

    def recovered(self, item: CorrectiveInstance, step: int, rewards: list[float | None], texts: list[str]) -> None:
        self._write(
            event="recovered", id=item.task.id, step=step, age=step - item.step, rewards=rewards, completions=texts
        )

    def dropped(self, item: CorrectiveInstance, step: int, reason: str) -> None:
        self._write(event="dropped", id=item.task.id, step=step, reason=reason)

    def resumed(self, step: int) -> None:
        """Lines written before this one with a step >= `step` are void: the run goes on from there without them."""
        if self.path is None or not self.path.exists():
            return
        if not self.path.read_bytes().endswith(b"\n"):  # a kill left half a line
            with self.path.open("a", encoding="utf-8") as file:
                file.write("\n")
        self._write(event="resumed", step=step)

    def _write(self, **event: Any) -> None:
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(event, ensure_ascii=True, default=list) + "\n")
