"""fission.jsonl: every corrective instance and what became of it, one JSON object a line, only ever appended."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fission_grpo.buffer import CorrectiveInstance


class Journal:
    """Appends events to a file; `path=None` (every rank but the first) writes nothing."""

    def __init__(self, path: Path | None):
        self.path = path

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
