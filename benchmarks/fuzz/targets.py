"""What is fuzzed: one function per target that takes bytes and raises if a promise of ours is broken by them.

No fuzzer is imported here, so that the default tests run every kept finding (`tests/fixtures/fuzz/<target>/`) through
the same functions. `SEEDS` are where the fuzzer begins: texts of the tests and benchmarks.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

from fission_grpo.core.chat import parse, read_result, render_call
from fission_grpo.core.errors import TaskFileError
from fission_grpo.core.rewards import step_verdict
from fission_grpo.core.serialization import task_from_json, task_to_json
from fission_grpo.core.types import (
    Task,
    ToolCall,
    ToolResult,
    Trajectory,
    Turn,
)
from fission_grpo.data.step_tasks import load_step_tasks, row_of_step_task
from fission_grpo.evaluation.bfcl.decoding import decode_hermes, decode_python, python_calls
from fission_grpo.feedback.leak_guard import (
    COMMON_WORDS,
    find_reference_leak,
    is_short,
    letters_and_digits,
    normalize,
    number_of,
    states_boolean,
    states_date,
    states_number,
    states_time,
)
from fission_grpo.feedback.postprocess import usable_text
from fission_grpo.feedback.request import feedback_for
from fission_grpo.feedback.rules import MAX_LENGTH, rules
from fission_grpo.feedback.sources import FIXED_TEXT, FunctionSource
from fission_grpo.fission.failures import find_failure
from fission_grpo.fission.recovery import recovery_task
from fission_grpo.inference.messages import UnreadableResponse, read_completion

ROOT = Path(__file__).parent.parent.parent
SECONDS = 2.0
"""Most processor time one input may take. [ours]"""

TOOLS = (
    {
        "name": "book",
        "description": "",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string"},
                "date": {"type": "string", "pattern": r"^\d{4}-\d{2}-\d{2}$"},
                "seats": {"type": "integer", "minimum": 1, "multipleOf": 1},
                "price": {"type": "number", "maximum": 1e6},
                "cabin": {"type": "string", "enum": ["economy", "zqcabinzq", "first"]},
                "extras": {"type": "object", "properties": {"meals": {"type": "array"}}},
            },
            "required": ["city", "date"],
        },
    },
    {"type": "function", "function": {"name": "cancel", "parameters": {"type": "object", "properties": {}}}},
)
REFERENCE = (
    ToolCall("book", {"city": "zqcityzq", "date": "2931-08-27", "seats": 734_219, "extras": {"meals": ["zqmealzq"]}}),
)
SENTINELS = ("zqcityzq", "2931", "734219", "zqmealzq")


def parser(data: bytes) -> None:
    """Whatever is written is read, scored and quoted without an exception; rendered calls read back the same."""
    text = data.decode("utf-8", "surrogateescape" if data[:1] == b"\xff" else "replace")
    turn = parse(text, truncated=len(data) % 2 == 1)
    assert turn.text == text
    assert not (turn.error and turn.calls)
    for call in turn.calls:
        again = parse(render_call(call))
        assert again.error is None, again.error
        assert again.calls == (call,), (again.calls, call)
    step_verdict(Task("t", "x", TOOLS, REFERENCE), turn, length=len(text))
    json.dumps(read_result(ToolCall("book"), text).error, allow_nan=False)
    for decoded in (decode_hermes(text), decode_python(text, ["book", "cancel"])):
        json.dumps([[call.name, call.arguments, call.source] for call in decoded.calls], allow_nan=False).encode()
    with suppress(ValueError):
        python_calls(text)
    with suppress(UnreadableResponse):
        json.dumps(read_completion(data).text, allow_nan=False)
    states_boolean(text, True)
    states_number(text, number_of(text) or 12.5)
    states_date(text, text[:40])
    states_time(text, text[:40])
    answer = usable_text(text)
    assert (answer.text is None) == (answer.reason is not None)


def diagnosers(data: bytes) -> None:
    """A turn and what its tool answered: a kind is found, what is told holds no reference, and the task is JSON."""
    written, _, answered = data.partition(b"\x00\x00")
    text, content = written.decode("utf-8", "replace"), answered.decode("utf-8", "replace")
    turn = parse(text)
    if answered and turn.calls:
        results = tuple(read_result(call, content) for call in turn.calls)
        turn = Turn(turn.text, turn.content, turn.calls, turn.error, results)
    elif answered and turn.error:
        turn = Turn(turn.text, turn.content, (), turn.error, (ToolResult(ToolCall("book"), content, turn.error),))
    task = Task("t", ({"role": "user", "content": "book it"},), TOOLS, REFERENCE)
    failure = find_failure(Trajectory(task, (turn,)), step_verdict(task, turn, len(text)), TOOLS)
    if failure is None:
        return
    said = rules(failure)
    feedback = feedback_for(failure, [FunctionSource("rules", lambda _: said)])
    assert len(feedback.text) <= MAX_LENGTH
    own = text + content
    for sentinel in SENTINELS:
        assert sentinel in own or sentinel not in feedback.text, feedback.text
    recovery = recovery_task(failure, feedback.text)
    assert task_from_json(task_to_json(recovery)) == recovery
    json.dumps([dict(message) for message in recovery.prompt], allow_nan=False)


def leak_guard(data: bytes) -> None:
    """A forbidden value that stands in a text word for word, with space around it, is found."""
    head, _, rest = data.partition(b"\x00\x00")
    value, _, tail = rest.partition(b"\x00\x00")
    before, told, after = (part.decode("utf-8", "replace") for part in (head, value, tail))
    reference = [ToolCall("go", {"to": told, "n": len(told)})]
    find_reference_leak(before + told + after, reference, [ToolCall("go", {"to": before, "n": after})], TOOLS)
    plain = normalize(told).replace("`", "'")
    if "`" in told or not letters_and_digits(plain) or plain in COMMON_WORDS or re.search(r"true|false", plain):
        return  # found as a quotation only, or public as a list of all there is
    if is_short(plain):
        return  # found where it is used as a value
    assert find_reference_leak(f"{before} {told} {after}", reference) is not None, (before, told, after)
    if not any(option in plain for option in ("economy", "zqcabinzq", "first", "book", "cancel")):
        assert find_reference_leak(f"{before} {told} {after}", reference, (), TOOLS) is not None, (before, told, after)


def rows(data: bytes) -> None:
    """A step-task file of any bytes is tasks, each of which can be written again, or the one clear error."""
    with tempfile.TemporaryDirectory(prefix="fuzz", dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        path = Path(folder) / "rows.jsonl"
        path.write_bytes(data)
        try:
            tasks = load_step_tasks(path)
        except TaskFileError as wrong:
            told = str(wrong)
            tasks = None
        if tasks is None:
            assert told.encode().startswith(str(path).encode()), told
            return
        path.write_text("\n".join(row_of_step_task(task) for task in tasks), encoding="utf-8")
        assert load_step_tasks(path) == tasks
        assert [task_from_json(task_to_json(task)) for task in tasks] == tasks


TARGETS: Mapping[str, Callable[[bytes], None]] = {
    "parser": parser,
    "diagnosers": diagnosers,
    "leak_guard": leak_guard,
    "rows": rows,
}


def run(target: str, data: bytes) -> None:
    """One input through one target. Raises whatever the target does, and AssertionError if it takes too long."""
    started = time.process_time()
    TARGETS[target](data)
    spent = time.process_time() - started
    assert spent < SECONDS, f"{spent:.1f} s for {len(data)} bytes"


def seeds(target: str) -> list[bytes]:
    """Inputs to begin with, from the fixtures and benchmarks of the repository."""
    calls = [render_call(call) for call in REFERENCE] + [render_call(ToolCall("cancel"))]
    texts = [*calls, f"<think>\nwell\n</think>\n\n{calls[0]}", '[book(city="Rome", seats=2*3), cancel()]', FIXED_TEXT]
    texts += ["[f(x=10**5000)]", "[f(x=0x%s)]" % ("f" * 40), "[f(x=-2.5e3, y={'a': (1, None)}, z=g(b='c'))]"]
    situations = list(islice(_leak_suite(), 200))
    if target == "parser":
        asked = json.dumps(json.loads((ROOT / "tests/fixtures/bfcl_answered.json").read_text()))
        body = {"choices": [{"message": {"content": calls[0]}, "finish_reason": "stop"}], "usage": {}}
        return [text.encode() for text in [*texts, json.dumps(body), asked[:4000]]]
    if target == "diagnosers":
        answers = ["{'error': 'no such city'}", '{"ok": true}', "['a', 'b']", "error: bad"]
        return [f"{text}\0\0{answer}".encode() for text in texts for answer in ["", *answers]]
    if target == "leak_guard":
        found = []
        for row in situations:
            for value in map(str, row["reference"]["arguments"].values()):
                at = row["text"].find(value)
                parts = (
                    (row["text"][:at], value, row["text"][at + len(value) :]) if at >= 0 else (row["text"], value, "")
                )
                found.append("\0\0".join(parts).encode())
        return found
    first = {"messages": [{"role": "user", "content": "x"}], "tools": [TOOLS[0]], "reference": []}
    called = {**first, "id": "a", "reference": [{"name": "book", "arguments": {"city": "Oslo", "date": "2024-01-02"}}]}
    lines = [json.dumps(first), json.dumps(called), f"{json.dumps(first)}\n{json.dumps(called)}"]
    return [line.encode() for line in lines]


def _leak_suite() -> Iterator[dict[str, Any]]:
    """The cases of benchmarks/leaks, which its own script makes."""
    sys.path.insert(0, str(ROOT / "benchmarks" / "leaks"))
    from make_suite import rows

    return rows()
