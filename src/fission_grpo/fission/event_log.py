"""fission.jsonl: every corrective instance and what became of it, one JSON object a line.

It is only ever appended to, but for a resume: what was written after the checkpoint is cut off, to be written again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from fission_grpo.core.files import writing
from fission_grpo.core.serialization import call_fields
from fission_grpo.core.types import Failure
from fission_grpo.feedback.dataset import make_example, tools_key
from fission_grpo.fission.recovery import CorrectiveInstance

TAIL = 1 << 16
"""Bytes before a checkpoint's mark by which the file is known again. [ours]"""


_log = logging.getLogger(__name__)


class EventLog:
    """Appends events to a file; `path=None` (every rank but the first) writes nothing."""

    def __init__(self, path: Path | None):
        self.path = path
        self._tools: set[str] = set()
        self._mine = False  # this process has begun or resumed the file

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
        alone = make_example(failure, "", "").failure
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

    def begin(self) -> None:
        """A run starts anew: a file that an earlier run left here is set aside, as fission.jsonl.1, .2 and so on."""
        if self.path is not None and not self._mine and self.path.exists():
            number = 1
            while (aside := self.path.with_name(f"{self.path.name}.{number}")).exists():
                number += 1
            self.path.rename(aside)
            _log.warning("%s was left by an earlier run, which is not resumed: now %s", self.path, aside.name)
        self._mine = True

    def mark(self) -> dict[str, Any] | None:
        """Where the file ends now, for a checkpoint: its length in bytes, and a hash of what stands before that.

        It is on the disk when this returns. None where nothing is written.
        """
        if self.path is None:
            return None
        if not self.path.exists():
            return {"bytes": 0, "tail": _tail(b"")}
        with self.path.open("rb") as file:
            os.fsync(file.fileno())
            return self._mark_at(file, os.fstat(file.fileno()).st_size)

    def resumed(self, step: int, mark: Mapping[str, Any] | None = None) -> None:
        """Leave out what was written after a checkpoint: the run goes on from there, and writes it again.

        The file is cut at the checkpoint's mark (one system call: a kill leaves it cut or uncut). Where it is not the
        file that the checkpoint was written with, an event "resumed" is written instead, which makes void what
        stands before it with a step >= `step`.
        """
        self._mine = True
        if self.path is None or not self.path.exists():
            return
        with self.path.open("rb+") as file:
            size = os.fstat(file.fileno()).st_size
            if mark is not None and mark["bytes"] <= size and self._mark_at(file, mark["bytes"]) == mark:
                file.truncate(mark["bytes"])
                os.fsync(file.fileno())
                if size > mark["bytes"]:
                    _log.warning("%s: %d bytes written after the checkpoint cut off", self.path, size - mark["bytes"])
                file.seek(0)
                known = (line for line in file if line.startswith(b'{"event": "tools"'))
                self._tools = {json.loads(line)["key"] for line in known}
                return
        _log.warning("%s is not as it was at the checkpoint: kept; its steps from %d on are void", self.path, step)
        if not self.path.read_bytes().endswith(b"\n"):  # a kill left half a line
            with self.path.open("a", encoding="utf-8") as file:
                file.write("\n")
        self._write(event="resumed", step=step)

    def _mark_at(self, file: BinaryIO, length: int) -> dict[str, Any]:
        file.seek(max(0, length - TAIL))
        return {"bytes": length, "tail": _tail(file.read(min(TAIL, length)))}

    def _write(self, **event: Any) -> None:
        if self.path is None:
            return
        line = json.dumps(event, ensure_ascii=True, default=list) + "\n"
        with writing(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(line)


def _tail(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()
