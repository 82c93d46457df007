"""fission.jsonl: every corrective instance and its outcome, one JSON object per line.

Events: `tools` (a set of tool schemas by key), `failed` (a failure as feedback sources see it),
`pushed` (the corrective instance), `recovered` (rewards and texts of its recovery rollouts), `dropped`,
and `resumed`. The file is append-only. A resume removes what was written after the checkpoint, as the
resumed run writes it again.

A corrective instance's prompt begins with the dialogue of its failure. So that a dialogue is stored once, `failed`
leaves out the first messages if the `pushed` before it has them: `shared` is their number. If that prompt is a text,
it begins with the content of the first message, of `shared_text` characters. `read_events` puts them back.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

from fission_grpo.core.files import RESUME, Line, append_line, read_lines
from fission_grpo.core.serialization import call_fields
from fission_grpo.core.terminal import get_logger
from fission_grpo.core.types import Failure
from fission_grpo.feedback.dataset import make_example, tools_key
from fission_grpo.fission.recovery import CorrectiveInstance

LOG = "fission.jsonl"
TAIL = 1 << 16
"""Bytes before a checkpoint's mark that are hashed to recognise the file. [ours]"""

EVENTS = ("tools", "failed", "pushed", "recovered", "dropped")

_log = get_logger(__name__)


class EventLog:
    """Appends events to a file. With `path=None` (every rank but the first) it writes nothing."""

    def __init__(self, path: Path | None):
        self.path = path
        self._tools: set[str] = set()
        self._pushed: tuple[str, Any] | None = None  # of the last "pushed" event: its id and prompt

    def pushed(self, item: CorrectiveInstance) -> None:
        """Log a corrective instance that entered the buffer."""
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
        self._pushed = task.id, task.prompt

    def failed(self, failure: Failure, item_id: str, step: int) -> None:
        """Log all that feedback on a failure may use: dialogue, tools, reference (for `fission-grpo simulator data`).

        Each distinct set of tools is logged once, as an event "tools". `item_id` is the corrective instance's.
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
            **self._unshared(item_id, list(alone.task.prompt)),
        )

    def _unshared(self, item_id: str, messages: list[Any]) -> dict[str, Any]:
        """The fields for a dialogue, without what the last event "pushed" has of it if it is of the same instance."""
        name, prompt = self._pushed or ("", ())
        if name != item_id or not messages:
            return {"messages": messages}
        if isinstance(prompt, str):
            text = messages[0].get("content")
            if messages[0].keys() != {"role", "content"} or messages[0]["role"] != "user" or not isinstance(text, str):
                return {"messages": messages}
            is_shared = bool(text) and prompt.startswith(text)
            return {"messages": messages[1:], "shared_text": len(text)} if is_shared else {"messages": messages}
        pairs = zip(messages, prompt, strict=False)
        shared = next((k for k, (one, other) in enumerate(pairs) if one != other), min(len(messages), len(prompt)))
        return {"messages": messages[shared:], "shared": shared} if shared else {"messages": messages}

    def recovered(self, item: CorrectiveInstance, step: int, rewards: list[float | None], texts: list[str]) -> None:
        """Log the rewards and texts of an instance's recovery rollouts."""
        self._write(
            event="recovered", id=item.task.id, step=step, age=step - item.step, rewards=rewards, completions=texts
        )

    def dropped(self, item: CorrectiveInstance, step: int, reason: str) -> None:
        """Log an instance that left the buffer unused: reason "age" or "capacity"."""
        self._write(event="dropped", id=item.task.id, step=step, reason=reason)

    def start(self) -> None:
        """Forget what an earlier run of this process wrote, whose file is moved away."""
        self._tools.clear()
        self._pushed = None

    def mark(self) -> dict[str, Any] | None:
        """Return the file's length in bytes and a hash of its end, for a checkpoint; None if nothing is written.

        The file is flushed to the disk before this returns.
        """
        if self.path is None:
            return None
        if not self.path.exists():
            return {"bytes": 0, "tail": _tail(b"")}
        with self.path.open("rb") as file:
            os.fsync(file.fileno())
            return self._mark_at(file, os.fstat(file.fileno()).st_size)

    def resumed(self, step: int, mark: Mapping[str, Any] | None = None) -> None:
        """Remove what was written after the checkpoint that a run resumes from.

        The file is truncated at the checkpoint's mark, in one system call, so that a kill cannot leave half of it. If
        the file is not the one that the checkpoint was written with, a "resumed" event is appended instead. It makes
        the earlier events with a step of at least `step` void, see `read_events`.
        """
        if self.path is None or not self.path.exists():
            return
        with self.path.open("rb+") as file:
            size = os.fstat(file.fileno()).st_size
            if mark is not None and mark["bytes"] <= size and self._mark_at(file, mark["bytes"]) == mark:
                file.truncate(mark["bytes"])
                os.fsync(file.fileno())
                if size > mark["bytes"]:
                    _log.warning("%s: removed %d bytes written after the checkpoint", self.path, size - mark["bytes"])
                file.seek(0)
                known = (line for line in file if line.startswith(b'{"event": "tools"'))
                self._tools = {json.loads(line)["key"] for line in known}
                return
        _log.warning(
            "%s differs from the file at the checkpoint: it is kept, and its events from step %d on are void",
            self.path,
            step,
        )
        if not self.path.read_bytes().endswith(b"\n"):  # a kill left half a line
            append_line(self.path, "", RESUME)
        self._write(event="resumed", step=step)

    def _mark_at(self, file: BinaryIO, length: int) -> dict[str, Any]:
        file.seek(max(0, length - TAIL))
        return {"bytes": length, "tail": _tail(file.read(min(TAIL, length)))}

    def _write(self, **event: Any) -> None:
        if self.path is None:
            return
        append_line(self.path, json.dumps(event, ensure_ascii=True, default=list), RESUME)


def _tail(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()


def read_events(path: Path, notes: list[str] | None = None) -> list[Line]:
    """Read the events of a run in file order, without those that a resumed run made void; dialogues are whole.

    `notes` receives a note about a last line that a kill cut off. Raises RunFileError, naming file, line and field.
    """
    events: list[Line] = []
    pushed: dict[str, Line] = {}  # events by id
    for line in read_lines(path, [] if notes is None else notes):
        event = line.take("event", str)
        if event == "resumed":
            step = line.take("step", int)
            events = [past for past in events if past.record["event"] == "tools" or past.take("step", int) < step]
        elif event in EVENTS:
            events.append(_with_dialogue(line, pushed) if event == "failed" else line)
        else:
            raise line.wrong(f"field 'event' must be one of {', '.join(EVENTS)} or resumed, but is {event!r}")
        if event == "pushed":
            pushed[line.take("id", str)] = line
    return events


def _with_dialogue(line: Line, pushed: Mapping[str, Line]) -> Line:
    """A "failed" event with all its messages."""
    count, characters = (line.take(name, int, optional=True) for name in ("shared", "shared_text"))
    if count is None and characters is None:
        return line
    other = pushed.get(line.take("id", str))
    if other is None:
        raise line.wrong("its dialogue should begin in the event 'pushed' of the same id before it, which is missing")
    prompt = other.take("prompt", (str, list))
    if isinstance(prompt, str):
        whole, first = characters, [{"role": "user", "content": prompt[:characters]}]
    else:
        whole, first = count, prompt[:count]
    if whole is None or not 0 < whole <= len(prompt):
        raise line.wrong(f"fields 'shared' and 'shared_text' do not fit the prompt in line {other.number}")
    return replace(line, record={**line.record, "messages": [*first, *line.take_all("messages", dict)]})
