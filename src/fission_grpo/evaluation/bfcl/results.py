"""Write and read BFCL's official result files, so that the official CLI can confirm a score, and ours any file.

A row is `{"id": ..., "result": [[step, ...] per user turn]}`, or `"result": step` for a single-turn case. Files are in
`FOLDER/result/MODEL/GROUP/BFCL_v4_CATEGORY_result.json`, GROUP being multi_turn, live or non_live.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from fission_grpo.core.chat import render_call
from fission_grpo.core.errors import RunFileError
from fission_grpo.core.files import Line, read_lines, write_file
from fission_grpo.core.types import ToolCall
from fission_grpo.envs.bfcl import official
from fission_grpo.envs.bfcl.judge import write_call
from fission_grpo.envs.bfcl.official import MULTI_TURN, SINGLE_TURN, VERSION, MultiTurnCase, SingleTurnCase
from fission_grpo.evaluation.bfcl import decoding
from fission_grpo.evaluation.bfcl.decoding import Decoded, OfficialCall, Undecodable, clean
from fission_grpo.evaluation.bfcl.run_case import FORCED, INFERENCE_ERROR, CaseState
from fission_grpo.evaluation.bfcl.single_turn import call_records, judge_single
from fission_grpo.evaluation.records import CaseRecord, StepRecord, TurnRecord, request_text

ResultCase = MultiTurnCase | SingleTurnCase


def write_result_files(
    records: Iterable[CaseRecord], cases: Sequence[ResultCase], folder: str | Path, model: str = "Qwen/Qwen3-8B-FC"
) -> list[Path]:
    """Write records as the official CLI would, one file per category; returns the files.

    A step is written as the policy wrote it, without thoughts, if the official decoder of `model` reads the executed
    calls in it; else the executed calls are written in that decoder's form. Missing cases are left out: the CLI then
    needs `--partial-eval`.

    Args:
        records: of equal ids the last counts.
        cases: of the records, in the order to be written in.
        folder: BFCL_PROJECT_ROOT of the CLI.
        model: sets the folder's name and the decoder: `<tool_call>` blocks if it ends in "-FC", else Python. Raises
            ValueError if calls cannot be written for it.
    """
    by_id = {record.id: record for record in records}
    unknown = sorted(set(by_id) - {case.id for case in cases})
    if unknown:
        raise ValueError(f"{len(unknown)} records belong to none of the cases given, the first is {unknown[0]!r}")
    rows: dict[Path, list[str]] = {}
    for case in cases:
        record = by_id.get(case.id)
        if record is not None and record.missing is None:
            row = {"id": case.id, "result": _result(record, case, model.endswith("-FC"))}
            rows.setdefault(result_path(folder, case.category, model), []).append(json.dumps(row))
    for path, lines in rows.items():
        write_file(path, "\n".join(lines) + "\n")
    return list(rows)


def result_path(folder: str | Path, category: str, model: str = "Qwen/Qwen3-8B-FC") -> Path:
    """Where the official CLI looks for a category's results. Raises ValueError for a model that names no folder."""
    if model in ("", ".", "..") or "\0" in model or "\\" in model:
        raise ValueError(f"{model!r} cannot be the name of a model's results; give a hub id such as Qwen/Qwen3-8B-FC")
    single_turn = "live" if category.startswith("live") else "non_live"
    group = "multi_turn" if category in MULTI_TURN else single_turn
    return Path(folder, "result", model.replace("/", "_"), group, f"{VERSION}_{category}_result.json")


def _result(record: CaseRecord, case: ResultCase, is_hermes: bool) -> Any:
    if record.verdict == INFERENCE_ERROR:
        return "Error during inference: the dialogue cannot be rendered"
    texts = [[_step_text(step, case, is_hermes) for step in turn.steps] for turn in record.turns]
    return texts if isinstance(case, MultiTurnCase) else texts[0][0]


def _step_text(step: StepRecord, case: ResultCase, is_hermes: bool) -> str:
    calls = [ToolCall(call.name, call.arguments) for call in step.calls]
    rewritten = "\n".join(map(render_call, calls)) if is_hermes else f"[{', '.join(map(write_call, calls))}]"
    for text in (decoding.answer_text(step.text), rewritten if calls else ""):
        if _official_calls(text, case, is_hermes) == calls:
            return text
    raise ValueError(f"case {case.id!r}: its calls cannot be written as Python; write the files for a model '...-FC'")


def _official_calls(text: str, case: ResultCase, is_hermes: bool) -> list[ToolCall]:
    """The calls that the official CLI will read in a text."""
    try:
        if isinstance(case, MultiTurnCase):
            calls = decoding.hermes_calls(text) if is_hermes else decoding.python_calls(text)
        else:
            calls = call_records(decoding.hermes_ast(text) if is_hermes else decoding.python_ast(text))
    except Undecodable:
        return []
    return [ToolCall(call.name, call.arguments) for call in calls]


def read_result_file(path: str | Path) -> list[CaseRecord]:
    """Replay a result file through our executor and judge it.

    One decode rule is chosen for all steps of the file. "hermes" (as `QwenFCHandler`) if any text holds `<tool_call>`;
    else "mappings" if any step is a mapping or list of mappings `{name: arguments}` (API models), and only these are
    calls; else "python" (as the prompting handlers), unless the file is in a folder of a Qwen "-FC" model.

    Fields other than `id` and `result`, and a last line that was cut off by a kill, are ignored. RunFileError names
    file, line and field of a mistake.
    """
    path = Path(path)
    if not path.is_file():
        raise RunFileError(f"{path} does not exist; a BFCL result file is named {VERSION}_CATEGORY_result.json")
    rows = [(line, _case(line), _checked_result(line)) for line in read_lines(path, notes=[])]
    ids: set[str] = set()
    for line, case, _ in rows:
        if case.id in ids:
            raise line.wrong(f"field 'id': {case.id!r} is also in an earlier line")
        ids.add(case.id)
    is_qwen_fc = any(part.startswith("Qwen") and part.endswith("-FC") for part in path.parts)
    rule = _decode_rule([result for _, _, result in rows], is_qwen_fc)
    return [
        replay_case(case, result, rule) if isinstance(case, MultiTurnCase) else _replay_single(case, result, rule)
        for _, case, result in rows
    ]


def replay_case(case: MultiTurnCase, result: Any, rule: str = "hermes") -> CaseRecord:
    """Execute and judge the `result` of a row by a decode rule of `read_result_file`."""
    if isinstance(result, str):
        return CaseRecord(case.id, case.category, success=False, verdict=INFERENCE_ERROR)
    names = [doc["name"] for docs in (case.functions, *case.added.values()) for doc in docs]
    state = CaseState(case)
    turns = []
    for number, turn in enumerate(result):
        steps = []
        for step in turn:
            decoded = _decode(step, rule, names)
            steps.append(StepRecord(_as_text(step), state.execute(decoded.calls), decoded.unread))
        turns.append(TurnRecord(tuple(steps), state.end_turn(), request_text(next(iter(case.turns[number:]), ()))))
    verdict = FORCED if len(turns) != len(case.reference) else state.verdict
    return CaseRecord(case.id, case.category, tuple(turns), verdict is None, verdict)


def _replay_single(case: SingleTurnCase, result: Any, rule: str) -> CaseRecord:
    names = [str(doc["name"]) for doc in case.functions]
    try:
        calls = _decode_single(result, rule, names)
    except Undecodable:
        calls = None
    verdict = judge_single(case, calls)
    step = StepRecord(_as_text(result), call_records(calls or ()), _decode(result, rule, names).unread)
    return CaseRecord(
        case.id,
        case.category,
        (TurnRecord((step,), verdict is None, request_text(case.messages)),),
        verdict is None,
        verdict,
    )


def _decode(step: Any, rule: str, names: Sequence[str]) -> Decoded:
    if isinstance(step, str):
        if rule == "hermes":
            return decoding.decode_hermes(step)
        return decoding.decode_python(step, names) if rule == "python" else Decoded()
    items = [step] if isinstance(step, dict) else step
    texts = [item for item in items if isinstance(item, str)]
    if len(texts) == len(items):
        return decoding.decode_python(f"[{', '.join(texts)}]", names)
    try:
        return Decoded(tuple(_mapped_calls(items)))
    except Undecodable as error:
        return Decoded(unread=str(error))


def _decode_single(result: Any, rule: str, names: Sequence[str]) -> list[dict[str, Any]]:
    if isinstance(result, str):
        if rule == "mappings":
            raise Undecodable("the reply is words")
        decode = decoding.hermes_ast if rule == "hermes" else decoding.python_ast
        return decode(decoding.answer_text(result))
    underscored = {name.replace(".", "_"): name for name in names}  # API models may write no dots
    calls = _mapped_calls([result] if isinstance(result, dict) else result)
    return [{underscored.get(call.name, call.name): dict(call.arguments)} for call in calls]


def _mapped_calls(items: Sequence[Any]) -> list[OfficialCall]:
    """The calls of the items that are `{name: arguments}`, as API models write them; arguments may be JSON text."""
    mappings = [item for item in items if isinstance(item, dict)]
    return [decoding.hermes_call(name, arguments) for item in mappings for name, arguments in item.items()]


def _decode_rule(results: Sequence[Any], is_qwen_fc: bool) -> str:
    turns = [turn for result in results for turn in (result if isinstance(result, list) else [result])]
    steps = [step for turn in turns for step in (turn if isinstance(turn, list) else [turn])]
    if any(isinstance(step, str) and "<tool_call>" in step for step in steps):
        return "hermes"
    if any(isinstance(step, dict) for step in steps):
        return "mappings"
    return "hermes" if is_qwen_fc else "python"


def _as_text(step: Any) -> str:
    return str(clean(step)) if isinstance(step, str) else json.dumps(step, ensure_ascii=False)


def _case(line: Line) -> ResultCase:
    case_id = line.take("id", str)
    category = official.category_of(case_id)
    known = (*MULTI_TURN, *SINGLE_TURN)
    if category not in known:
        names = ", ".join(known)
        raise line.wrong(f"field 'id': {case_id!r} is of no BFCL category that can be judged here ({names})")
    case = _cases(category).get(case_id)
    if case is None:
        raise line.wrong(f"field 'id': BFCL's {category} has no case {case_id!r}")
    return case


@cache
def _cases(category: str) -> Mapping[str, ResultCase]:
    cases = official.multi_turn_cases(category) if category in MULTI_TURN else official.single_turn_cases(category)
    return {case.id: case for case in cases}


def _checked_result(line: Line) -> Any:
    """The field `result`: a text, a step, or turns of steps."""
    result = line.take("result", (str, list, dict))
    if official.category_of(line.record["id"]) in SINGLE_TURN:
        _check_step(line, "result", result)
    elif isinstance(result, dict):
        raise line.wrong("field 'result' must be a list of user turns, but is an object")
    elif isinstance(result, list):
        for i, turn in enumerate(result):
            if not isinstance(turn, list):
                raise line.wrong(f"field 'result[{i}]' must be a list of steps, but is {json.dumps(turn)[:60]}")
            for j, step in enumerate(turn):
                _check_step(line, f"result[{i}][{j}]", step)
    return result


def _check_step(line: Line, name: str, step: Any) -> None:
    items = step if isinstance(step, list) else [step]
    if not all(isinstance(item, str | dict) for item in items):
        wanted = "text, an object {name: arguments} or a list of these"
        raise line.wrong(f"field '{name}' must be {wanted}, but is {json.dumps(step)[:60]}")
