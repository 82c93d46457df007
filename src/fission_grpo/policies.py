"""A policy that follows a script, for tests and references. Local models and endpoints are in `evaluation`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fission_grpo.evaluation.play import Reply, Request
from fission_grpo.trajectory import Message


class ScriptedPolicy:
    """`write(dialogue)` returns the assistant's text. Assistant messages of the dialogue hold its earlier texts."""

    def __init__(self, write: Callable[[Sequence[Message]], str]):
        self._write = write

    def reply(self, requests: Sequence[Request]) -> list[Reply]:
        return [Reply(self._write(request.messages)) for request in requests]
