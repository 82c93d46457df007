"""Rows of the data set whose turn a recover cycle took: they wait, and are explored in their order."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any

STREAMED_BATCHES = 256
"""Most batches that wait where the data set does not tell its length. [ours]"""


PackedRows = list[tuple[dict[str, Any], int]]
"""Rows with how often each is repeated in a row."""


def pack_rows(rows: Sequence[dict[str, Any]]) -> PackedRows:
    """Equal neighbours become one row and a count (a group's G rows are equal).

    >>> pack_rows([{"prompt": "a"}, {"prompt": "a"}, {"prompt": "b"}])
    [({'prompt': 'a'}, 2), ({'prompt': 'b'}, 1)]
    """
    return [(row, len(list(run))) for row, run in groupby(rows)]


def unpack_rows(packed: Iterable[tuple[dict[str, Any], int]]) -> list[dict[str, Any]]:
    """The rows again, each its own dict."""
    return [dict(row) for row, count in packed for _ in range(count)]


def split_batches(displaced: Sequence[Sequence[PackedRows]], process_index: int, processes: int) -> list[PackedRows]:
    """This rank's share of the displaced batches, which may come from another number of ranks.

    Args:
        displaced: per rank of the saving run, its batches in order.
    """
    batches = []
    for parts in zip(*displaced, strict=True):
        rows = [row for part in parts for row in unpack_rows(part)]
        size = len(rows) // processes
        batches.append(pack_rows(rows[process_index * size : (process_index + 1) * size]))
    return batches


def check_batches(displaced: Sequence[Sequence[PackedRows]], size: int, group_size: int) -> None:
    """Make sure that batches saved by another run fill generation batches of this one.

    Args:
        displaced: per rank of the saving run, its batches in order.
        size: rows of a generation batch of all ranks together.
        group_size: rows of equal prompt that stand one after the other in it (G).

    Raises:
        ValueError: they do not; the message tells what to set. With nothing displaced any size will do.

    Example:
        Two ranks that saved 4 rows each fit a `size` of 8, however many ranks share it, and no other.
    """
    for parts in zip(*displaced, strict=True):
        rows = [row for part in parts for row in unpack_rows(part)]
        if len(rows) != size:
            raise ValueError(
                f"the checkpoint holds {len(displaced[0])} generation batches of {len(rows)} rows that wait to be "
                f"explored, but a generation batch of this run has {size} (per_device_train_batch_size x processes x "
                f"steps_per_generation). When the number of processes changes, keep this product at {len(rows)}: "
                "change per_device_train_batch_size or steps_per_generation."
            )
        groups = [rows[start : start + group_size] for start in range(0, size, group_size)]
        if any(row != group[0] for group in groups for row in group):
            raise ValueError(
                "the checkpoint holds generation batches that wait to be explored, whose prompts are not repeated "
                f"num_generations = {group_size} times as this run's are. Keep the checkpoint's num_generations."
            )


class WaitingRows:
    """The generation batches of one rank that wait to be explored, the same number on every rank.

    Every recover cycle leaves one more to wait. When as many rows wait as the data set has, each of them is due to
    come again anyway, and a recover cycle's own batch is passed over: so memory and checkpoints stay bounded.

    Args:
        rows: of the data set; None if it is streamed and does not tell.
        batch: rows of a generation batch of all ranks that are not equal: generation_batch_size / num_generations.
    """

    def __init__(self, rows: int | None, batch: int):
        self.longest = STREAMED_BATCHES if rows is None else max(1, -(-rows // max(1, batch)))
        self.batches: deque[PackedRows] = deque()

    def add(self, rows: Sequence[dict[str, Any]]) -> None:
        """The data set's next batch waits behind the others."""
        self.batches.append(pack_rows(rows))

    def take(self) -> list[dict[str, Any]]:
        """The batch that has waited longest."""
        return unpack_rows(self.batches.popleft())

    def pass_over(self) -> bool:
        """Forget the newest batch if too many wait; returns whether it was."""
        if len(self.batches) <= self.longest:
            return False
        self.batches.pop()
        return True
