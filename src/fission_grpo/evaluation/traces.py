r"""Foreign traces as records, without running a model: transcripts in OpenAI's message format, or BFCL's result files.

A file of transcripts has one a line (JSONL):

    {"id": "t1",                                                         # optional, unique; else "line-1"
     "messages": [{"role": "user", "content": "..."},
                  {"role": "assistant", "tool_calls": [{"id": "c1", "function": {"name": "f", "arguments": "{}"}}]},
                  {"role": "tool", "tool_call_id": "c1", "content": "..."}],
     "tools": [{"type": "function", "function": {...}}],                 # optional: errors are classed by them
     "success": true,                                                    # optional: your judge's verdict
     "category": "airline"}                                              # optional: reported apart
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fission_grpo.converters.dialogues import tools_of
from fission_grpo.evaluation.records import CaseRecord
from fission_grpo.evaluation.trace_messages import WrongField, printable, turns_of
from fission_grpo.json_lines import Line, RunFileError, read_lines
from fission_grpo.json_text import quoted
from fission_grpo.schema import check_tool_schema
from fission_grpo.toolrl_tools import RowDropped


def read_traces(path: str | Path, notes: list[str] | None = None) -> list[CaseRecord]:
    """The records of a file of traces, whichever of the two layouts it is in.

    Rows of a BFCL result file have "id" and "result"; its first row tells.

    Args:
        path: of the file.
        notes: is given a sentence about a last line that was cut off by a kill; without it that is an error as well.

    Raises:
        RunFileError: naming file, line and field of what cannot be read, or what has to be installed.
    """
    path = Path(path)
    if not path.is_file():
        raise RunFileError(f"{path}: no such file; give a JSONL file of transcripts or a BFCL result file")
    cut: list[str] = []
    try:
        lines = read_lines(path, cut)
    except RecursionError as error:
        raise RunFileError(f"{path}: a line is nested too deeply to be read; delete it") from error
    except OSError as error:
        raise RunFileError(f"{path}: cannot be read ({error.strerror})") from error
    if cut and notes is None:
        raise RunFileError(f"{path}: {cut[0]}: mend or delete this line")
    if notes is not None:
        notes += cut
    if not lines:
        raise RunFileError(f"{path}: no traces in it; write one JSON object a line, with 'messages'")
    if {"id", "result"} <= lines[0].record.keys() and "messages" not in lines[0].record:
        return _bfcl_results(path)
    return _transcripts(lines)


def _bfcl_results(path: Path) -> list[CaseRecord]:
    try:
        from fission_grpo.bfcl.results import read_result_file

        return read_result_file(path)
    except ModuleNotFoundError as error:
        from fission_grpo.bfcl import INSTALL

        raise RunFileError(f"{path}: a BFCL result file needs {error.name} to be judged; {INSTALL}") from error


def _transcripts(lines: list[Line]) -> list[CaseRecord]:
    records: list[CaseRecord] = []
    first_at: dict[str, int] = {}
    for line in lines:
        record = _record(line)
        if record.id in first_at:
            raise line.wrong(f"field 'id' {quoted(record.id)} is line {first_at[record.id]}'s already; leave it out")
        first_at[record.id] = line.number
        records.append(record)
    return records


def _record(line: Line) -> CaseRecord:
    messages = line.take("messages", list)
    if not messages:
        raise line.wrong("field 'messages' must not be empty")
    name = line.take("id", (str, int), optional=True)
    tools = line.take("tools", list, optional=True)
    try:
        turns = turns_of(messages, None if tools is None else [_tool(tool, i) for i, tool in enumerate(tools)])
    except WrongField as wrong:
        raise line.wrong(str(wrong)) from None
    except RecursionError as error:
        raise line.wrong("it is nested too deeply to be read") from error
    return CaseRecord(
        id=printable(str(name)) if name not in (None, "") else f"line-{line.number}",
        category=printable(line.take("category", str, optional=True) or ""),
        turns=turns,
        success=line.take("success", bool, optional=True),
    )


def _tool(tool: Any, number: int) -> Mapping[str, Any]:
    """A tool as it is if its parameters are JSON schema; else with BFCL's, Python's and other types made JSON's."""
    try:
        check_tool_schema(tool)
    except ValueError as problem:
        try:
            return tools_of([tool])[0]
        except RowDropped:
            raise WrongField(f"tools[{number}]", f"cannot be read: {problem}; mend it or leave 'tools' out") from None
    return tool
