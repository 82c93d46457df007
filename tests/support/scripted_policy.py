"""A policy whose replies a function writes."""

from fission_grpo.inference.base import Reply


class ScriptedPolicy:
    """`write(dialogue)` returns the assistant's text. Assistant messages of the dialogue hold its earlier texts."""

    def __init__(self, write):
        self._write = write

    def reply(self, requests):
        return [Reply(self._write(request.messages)) for request in requests]
