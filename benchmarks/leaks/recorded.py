"""Read the texts of the committed runs that the old leak guard refused, and a sample of those that it passed.

`refused.jsonl.gz` was made by `record_refused.py`, which also documents its rows.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fission_grpo.core.chat import parse
from fission_grpo.core.types import ErrorKind, Failure, Task, ToolCall

FILE = Path(__file__).with_name("refused.jsonl.gz")
OTHER_SENSE = re.compile(  # texts with a number or word that is no argument there
    r"missing 1 required positional argument: '\w+'$|delimiter at character 69$|(?:value|quotes) at character [12]$"
    r"|(?:Priority|position) must be between \d and \d\.$|with ID (?:16|[1-5]) not found\.$|^Start the engine before"
)


@dataclass(frozen=True)
class Recorded:
    """A feedback text with the failure that it is about.

    Args:
        text: the feedback.
        failure: of one turn, without tool results.
        found: what the old guard named; None if the text passed.
        record: the committed file of the run, below `benchmarks/`.
        source: what said the text.
        false_alarm: why the old guard was wrong to refuse the text; "" if it was not.
    """

    text: str
    failure: Failure
    found: str | None
    record: str
    source: str
    false_alarm: str


def load_recorded(path: Path = FILE) -> Iterator[Recorded]:
    """Every recorded text, in the order of the file."""
    tools = {}
    for line in gzip.decompress(path.read_bytes()).decode("utf-8").splitlines():
        row = json.loads(line)
        if "schemas" in row:
            tools[row["key"]] = tuple(row["schemas"])
            continue
        reference = tuple(ToolCall(**call) for call in row["reference"])
        task = Task("recorded", tuple(row["messages"]), tools[row["tools"]], reference)
        failure = Failure(task, (parse(row["failed"]),), ErrorKind(row["kind"]), row["detail"], row["call_index"])
        false_alarm = row.get("false_alarm", "")
        if (row["found"] or "").startswith("the value") and OTHER_SENSE.search(row["text"]):
            false_alarm = "the value stands there in another sense"
        yield Recorded(row["text"], failure, row["found"], row["record"], row["source"], false_alarm)
