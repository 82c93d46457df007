"""Diagnoses already given, on disk by content, so that a resumed run asks nothing twice.

A folder holds one file of JSON lines per process, `{"key": <sha256>, "text": <diagnosis>}`. Files are only ever
appended to. Prompts, URLs and keys of endpoints stand in none of them.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import threading
from io import FileIO
from pathlib import Path
from typing import Any

from fission_grpo.feedback import MAX_LENGTH

_log = logging.getLogger(__name__)


class DiagnosisCache:
    """A mapping from keys to diagnoses, in memory and, with a folder, on disk. Any thread may use it.

    Whatever is wrong with the folder stops nothing: lines that cannot be read are skipped, texts that cannot be
    written stay in memory; both are counted, and logged once.

    Args:
        folder: made if need be; all its `*.jsonl` files are read now, later ones of other processes are not.

    Attributes:
        path: this process's file, None without a folder. It is made with the first text.
        skipped: lines that were no entries (torn by a crash, or alien), and files that could not be read.
        failed: texts that could not be written.
    """

    def __init__(self, folder: Path | None):
        self.path = folder / f"diagnoses-{os.getpid()}-{secrets.token_hex(4)}.jsonl" if folder else None
        self.skipped = self.failed = 0
        self._texts: dict[str, str] = {}
        self._file: FileIO | None = None
        self._torn = False
        self._lock = threading.Lock()
        if folder is not None:
            self._read(folder)

    def __len__(self) -> int:
        return len(self._texts)

    def get(self, key: str) -> str | None:
        """The diagnosis kept under a key, None if there is none."""
        return self._texts.get(key)

    def texts(self) -> dict[str, str]:
        """All diagnoses by key, a copy."""
        with self._lock:
            return dict(self._texts)

    def put(self, key: str, text: str) -> None:
        """Keep a diagnosis; what is there already stays. Never raises for what is the disk's fault."""
        with self._lock:
            if key in self._texts:
                return
            self._texts[key] = text
            if self.path is None:
                return
            try:
                self._write(self.path, json.dumps({"key": key, "text": text}).encode() + b"\n")
            except OSError as error:
                self.failed += 1
                if self.failed == 1:
                    _log.warning("diagnoses are kept in memory only, %s cannot be written: %s", self.path, error)

    def close(self) -> None:
        """Close the file. Texts put in later open it again."""
        with self._lock:
            if self._file is not None:
                self._file.close()
                self._file = None

    def _write(self, path: Path, line: bytes) -> None:
        if self._file is None:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = FileIO(path, "a")
        whole = b"\n" + line if self._torn else line  # what a full disk has cut must not spoil the next line
        self._torn = True
        if self._file.write(whole) != len(whole):
            raise OSError("the disk is full")
        self._torn = False

    def _read(self, folder: Path) -> None:
        try:
            paths = sorted(path for path in folder.glob("*.jsonl") if path.is_file())
        except OSError as error:
            paths = []
            self._skip(f"{folder}: {error}")
        for path in paths:
            try:
                with path.open("rb") as lines:
                    for number, line in enumerate(lines, 1):
                        if line.strip() and not self._add(line):
                            self._skip(f"{path}, line {number}: no entry of this cache")
            except OSError as error:
                self._skip(f"{path}: {error}")

    def _add(self, line: bytes) -> bool:
        """Whether a line is an entry; it is taken then."""
        try:
            entry: Any = json.loads(line)
        except (ValueError, RecursionError):
            return False
        key, text = (entry.get("key"), entry.get("text")) if isinstance(entry, dict) else (None, None)
        if not (isinstance(key, str) and len(key) == 64 and isinstance(text, str) and 0 < len(text) <= MAX_LENGTH):
            return False
        self._texts.setdefault(key, text)
        return True

    def _skip(self, what: str) -> None:
        self.skipped += 1
        if self.skipped == 1:
            _log.warning("skipped in the cache of diagnoses, as everything like it: %s", what)
