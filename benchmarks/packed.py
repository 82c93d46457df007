"""Raw results that are stored as FILE.gz: `gzip -9n FILE` packs, `gunzip -k FILE.gz` unpacks the same bytes."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory


@contextmanager
def unpacked(path: Path) -> Iterator[Path]:
    """Give `path` itself, or a copy that is unpacked from `path`.gz and deleted afterwards.

    New results are written plain. If both files exist, the plain one is newer and is read.
    """
    packed = path.with_name(f"{path.name}.gz")
    if path.exists() or not packed.is_file():
        yield path
        return
    with TemporaryDirectory() as folder:
        copy = Path(folder) / path.resolve().parent.name / path.name  # messages name the file and its folder
        copy.parent.mkdir()
        copy.write_bytes(gzip.decompress(packed.read_bytes()))
        yield copy
