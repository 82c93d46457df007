"""The layouts of tool-calling data that can be converted: one reader of a row each, which may raise RowDropped."""

from __future__ import annotations

import ast
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

from fission_grpo.core.chat import tagged_blocks, text_between
from fission_grpo.core.errors import TaskFileError
from fission_grpo.core.messages import (
    OTHER_FORM,
    UNREADABLE_CALL,
    ChatMessage,
    MessageError,
    is_trained,
    plain_messages,
    read_content,
    read_messages,
)
from fission_grpo.core.tool_schema import check_call
from fission_grpo.core.types import Task
from fission_grpo.data.convert.dialogues import (
    ALL_TURNS,
    Converted,
    ConvertOptions,
    Dialogue,
    RowDropped,
    RowReader,
    assistant_message,
    convert_rows,
    decoded,
    field,
    literal_of,
    read_literal,
    tool_messages,
)
from fission_grpo.data.convert.files import read_dialogues
from fission_grpo.data.convert.toolrl import read_toolrl
from fission_grpo.data.convert.tools import tools_of
from fission_grpo.envs.agentdojo.suites import SUITES, suites_of
from fission_grpo.envs.catalog import ENVIRONMENT

GUESSED_ROWS = 1000  # rows that decide the layout of a file [ours]


def read_openai(row: Mapping[str, Any]) -> Dialogue:
    """OpenAI's chat and fine-tuning format (https://platform.openai.com/docs/guides/function-calling); Anthropic's."""
    listed = decoded(row.get("tools") or row.get("functions"), "the tools")
    given = decoded(field(row, "messages", (list, str)), "the messages")
    try:
        read = [message for several in read_messages(given) for message in several]
        system = read_content(row.get("system"), "system")
    except MessageError as error:
        raise RowDropped(error.reason) from error
    if system and not (read and read[0].role == "system"):
        read.insert(0, ChatMessage("system", system))
    if any(message.unread for message in read):
        raise RowDropped(UNREADABLE_CALL)
    if row.get(ENVIRONMENT) is not None:  # every call is made again, to be compared with its result
        read = _in_order_of_calls(read)
    failed = frozenset(at for at, message in enumerate(read) if message.role == "tool" and message.error is not None)
    untrained = frozenset(at for at, message in enumerate(read) if not message.is_trained)
    return Dialogue(tools_of(listed or []), tuple(plain_messages(read)), failed, untrained)


def _in_order_of_calls(messages: Sequence[ChatMessage]) -> list[ChatMessage]:
    """The messages with the results of each turn in the order of its calls, as far as their ids say it."""
    keyed: list[tuple[int, int, ChatMessage]] = []  # with the numbers of the turn, and of a result's call in it
    turn, places = 0, dict[str, int]()
    for number, message in enumerate(messages):
        if message.role == "tool":
            keyed.append((turn, places.get(str(message.call_id), len(places)), message))
            continue
        turn, places = number, {str(call.id): place for place, call in enumerate(message.calls)}
        keyed.append((turn, -1, message))
    return [message for *_, message in sorted(keyed, key=lambda entry: entry[:2])]


def read_xlam(row: Mapping[str, Any]) -> Dialogue:
    """xLAM: https://huggingface.co/datasets/Salesforce/xlam-function-calling-60k."""
    answers = decoded(field(row, "answers", (str, list)), "the answers")
    if not isinstance(answers, list) or not all(isinstance(answer, dict) for answer in answers):
        raise RowDropped("the answers cannot be read")
    question = {"role": "user", "content": field(row, "query", str)}
    answer = assistant_message(answers) if answers else {"role": "assistant", "content": ""}
    return Dialogue(tools_of(decoded(row.get("tools"), "the tools")), (question, answer))


_ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "observation": "tool",
    "tool": "tool",
}
MAX_STARTS = 100
"""Most places of a text at which a list of tools is looked for. [ours] Each may be read to the end of the text."""
_HERMES_TOOLS = re.compile(r"<tools>((?:(?!<tools>).)*?)</tools>", re.S)
_KEY = r"""[^\s"'()\[\]{},=:][^"'()\[\]{},=:\n]*+"""  # the name of an argument, Python's or not, and spaces after it
_STRING = r""""(?:[^"\\]|\\.)*+(?:"|\Z)|'(?:[^'\\]|\\.)*+(?:'|\Z)"""  # of Python, not with triple quotes; or unclosed
_SEPARATORS = re.compile(r"[ \t\r\n,]*+")
_LINE_BREAK = re.compile(r"\\.|[\n\r]", re.S)  # or an escape, to be left as it is
_TOOLACE_SYSTEM = "You are a helpful assistant that can call functions."  # the original asks for its own format [ours]


def _conversation(row: Mapping[str, Any], roles: Mapping[str, str] = _ROLES) -> list[tuple[str, str]]:
    """Role and text of every entry of `conversations`, the field of ShareGPT that three layouts use."""
    entries = []
    for entry in field(row, "conversations", list):
        role, text = (entry.get("from"), entry.get("value")) if isinstance(entry, dict) else (None, None)
        if not isinstance(text, str):
            raise RowDropped("a message cannot be read")
        if not isinstance(role, str) or role not in roles:
            raise RowDropped("a message has an unknown role")
        entries.append((roles[role], text))
    return entries


def _with_weights(row: Mapping[str, Any], tools: tuple[Mapping[str, Any], ...], messages: Sequence[Any]) -> Dialogue:
    """The dialogue of a row of `conversations`, whose entries may have a `weight`."""
    turns = [at for at, message in enumerate(messages) if message["role"] == "assistant"]
    entries = [one for one in row["conversations"] if one["from"] in ("gpt", "assistant", "function_call")]
    try:
        untrained = frozenset(
            at for at, one in zip(turns, entries, strict=True) if not is_trained(one, "conversations")
        )
    except MessageError as error:
        raise RowDropped(error.reason) from error
    return Dialogue(tools, tuple(messages), untrained=untrained)


def read_apigen_mt(row: Mapping[str, Any]) -> Dialogue:
    """APIGen-MT: https://huggingface.co/datasets/Salesforce/APIGen-MT-5k."""
    system = row.get("system")
    messages: list[dict[str, Any]] = []
    if isinstance(system, str) and system:
        messages.append({"role": "system", "content": system})
    for role, text in _conversation(row, {**_ROLES, "function_call": "call"}):
        if role == "call":
            call = decoded(text, "a tool call")
            messages.append(assistant_message(call if isinstance(call, list) else [call]))
        elif role == "tool":
            messages += tool_messages(text, messages)
        else:
            messages.append({"role": role, "content": text})
    return _with_weights(row, tools_of(decoded(row.get("tools"), "the tools")), messages)


def read_hermes(row: Mapping[str, Any]) -> Dialogue:
    """Hermes: https://huggingface.co/datasets/NousResearch/hermes-function-calling-v1. Calls may be in Python."""
    messages: list[dict[str, Any]] = []
    listed = decoded(row.get("tools"), "the tools", read_literal) or []
    for role, text in _conversation(row):
        blocks = tagged_blocks(text, "tool_call", "think", "scratch_pad", innermost=True)
        outside = "".join(text_between(text, (one for one in blocks if one.tag != "tool_call")))
        called = list(tagged_blocks(outside, "tool_call")) if role == "assistant" else []  # thoughts mention the tags
        if role == "system" and "<tools>" in text:  # the message is only the instructions for calling tools
            listed = listed or _hermes_tools(text)
        elif role == "tool":
            parts = [block.body.strip() for block in tagged_blocks(text, "tool_response")] or [text]
            messages += tool_messages(parts if len(parts) > 1 else parts[0], messages)
        elif called:
            calls = [call for one in called for call in decoded(one.body.strip(), "a tool call", read_literals)]
            rest = "".join(text_between(outside, called)).strip()
            if not calls or "tool_call>" in rest:
                raise RowDropped(UNREADABLE_CALL)
            messages.append(assistant_message(calls, rest))
        elif role == "assistant" and "<tool_call>" in outside:
            raise RowDropped(UNREADABLE_CALL)
        else:
            messages.append({"role": role, "content": text})
    return _with_weights(row, tools_of(listed), messages)


def _hermes_tools(text: str) -> list[Any]:
    """The tools in the `<tools>` tags of a system message, which may mention the empty tags before."""
    tools = []
    for body in _HERMES_TOOLS.findall(text):
        with suppress(ValueError):
            tools += read_literals(body)
    if not tools:
        raise RowDropped("the tools cannot be read")
    return tools


def read_literals(text: str) -> list[Any]:
    """The items of a list, or the values that stand one after another, in JSON or Python. Raises ValueError."""
    text = text.strip().removeprefix("```json").removeprefix("```").removesuffix("```").strip()
    for whole in (text, f"[{text}]"):
        with suppress(ValueError):
            value = read_literal(whole)
            return value if isinstance(value, list) else [value]
    values, at = [], 0
    with suppress(ValueError, RecursionError):
        while at < len(text):
            value, at = json.JSONDecoder().raw_decode(text, at)
            at = _SEPARATORS.match(text, at).end()  # pyright: ignore[reportOptionalMemberAccess] - it always matches
            values += value if isinstance(value, list) else [value]
        return values
    return [read_literal(line.strip().rstrip(",")) for line in text.split("\n") if line.strip()]


def read_toolace(row: Mapping[str, Any]) -> Dialogue:
    """ToolACE: https://huggingface.co/datasets/Team-ACE/ToolACE. Calls are written as Python, results as JSON."""
    tools = tools_of(_first_json_list(field(row, "system", str)))
    names = sorted((str(tool["name"]) for tool in tools), key=len, reverse=True)
    messages: list[dict[str, Any]] = [{"role": "system", "content": _TOOLACE_SYSTEM}]
    for role, text in _conversation(row):
        calls = read_toolace_calls(text, names) if role == "assistant" else []
        if calls:
            messages.append(assistant_message(calls))
        elif role == "tool":
            with suppress(ValueError, RecursionError):
                text = json.loads(text)
            messages += tool_messages(text, messages)
        else:
            messages.append({"role": role, "content": text})
    return _with_weights(row, tools, messages)


def _first_json_list(text: str) -> Any:
    """The first JSON list of objects in a text."""
    for start in islice(re.finditer(r"\[\s*+\{", text), MAX_STARTS):
        with suppress(ValueError, RecursionError):
            return json.JSONDecoder().raw_decode(text, start.start())[0]
    raise RowDropped("the tools cannot be read")


def read_toolace_calls(text: str, names: Sequence[str]) -> list[dict[str, Any]]:
    """The calls of "[name(x=1), other name(y='a')]"; [] for other text.

    `names` are those of the tools, longest first, so that a name that starts with another is matched completely.
    Raises RowDropped for a broken list, and for one with other text around it.
    """
    body = text.strip()
    known = "|".join(map(re.escape, names)) or "(?!)"
    arguments = rf"\(\s*+(?:\)|{_KEY}\s*+=)"
    starts = re.compile(rf"""\[\s*+(?:{known}|[^\[\]()="'\n]++)\s*+{arguments}|\A(?:{known})\s*+{arguments}""")
    is_list = body.startswith("[") and body.endswith(")]")
    if not (is_list and (starts.match(body) or re.match(rf"\[\s*(?:{known})\s*\(", body))):
        if starts.search(body):
            raise RowDropped(OTHER_FORM)
        return []
    # names may contain spaces and dots: placeholders, outside of strings, make the list valid Python
    mark = re.compile(
        rf"""(?P<string>{_STRING})|(?<=[\[,])\s*(?P<name>{known})\s*\(|(?<=[(,])\s*+(?P<key>{_KEY})\s*+=(?!=)""", re.S
    )
    originals: dict[str, str] = {}

    def marked(found: re.Match[str]) -> str:
        if found["string"]:
            return _LINE_BREAK.sub(lambda one: one[0] if one[0][0] == "\\" else repr(one[0])[1:-1], found[0])
        original = found["name"] or found["key"].rstrip()
        placeholder = f"_{'tool' if found['name'] else 'key'}_{original}".encode().hex()
        originals[f"_{placeholder}"] = original
        return f" _{placeholder}{'(' if found['name'] else '='}"

    try:
        nodes = ast.parse(mark.sub(marked, body).strip(), mode="eval").body
        return [_toolace_call(node, originals) for node in nodes.elts] if isinstance(nodes, ast.List) else []
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError) as error:
        raise RowDropped(UNREADABLE_CALL) from error


def _toolace_call(node: ast.expr, originals: Mapping[str, str]) -> dict[str, Any]:
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name) or node.args:
        raise ValueError("not a call with named arguments")
    values = {
        originals.get(str(keyword.arg), str(keyword.arg)): literal_of(keyword.value) for keyword in node.keywords
    }
    arguments = json.loads(json.dumps(values, allow_nan=False))
    return {"name": originals.get(node.func.id, node.func.id), "arguments": arguments}


def read_cases(path: Path) -> Converted:
    """The step tasks of a case file, or of a category of BFCL's own cases ("multi_turn_base")."""
    from fission_grpo.envs.bfcl.env import TaskError
    from fission_grpo.envs.bfcl.official import MULTI_TURN
    from fission_grpo.envs.bfcl.tasks import load_cases, official_cases, step_tasks

    is_official = str(path) in MULTI_TURN and not path.exists()
    tasks: list[Task] = []
    dropped: Counter[str] = Counter()
    for case in official_cases(str(path)) if is_official else load_cases(path):
        try:
            steps = list(step_tasks(case))
        except TaskError:
            dropped["a case whose reference fails in its own environment"] += 1
            continue
        valid = [task for task in steps if all(check_call(one, task.tools) is None for one in task.reference or ())]
        tasks += valid
        dropped["the reference violates its tool's schema, or its tool is held back"] += len(steps) - len(valid)
    if not tasks:
        raise TaskFileError(f"{path}: nothing in it can become a task; `tasks check` names the first mistake")
    note = "these are test cases of BFCL: evaluate on them, and train on none"
    return Converted(tuple(tasks), len(tasks) + dropped.total(), +dropped, notes=(note,) if is_official else ())


def read_agentdojo(path: Path) -> Converted:
    """The step tasks of AgentDojo's suites: `path` is "agentdojo", or "agentdojo:banking" for one."""
    suites = suites_of(str(path))
    if not suites:
        raise TaskFileError(f"{path}: is no suite; write agentdojo, or one of agentdojo:{', agentdojo:'.join(SUITES)}")
    from fission_grpo.envs.agentdojo.tasks import step_tasks as agentdojo_steps

    dropped: Counter[str] = Counter()
    tasks = [task for suite in suites for task in agentdojo_steps(suite, dropped)]
    note = "these are test tasks of AgentDojo: evaluate on other suites than you train on"
    return Converted(tuple(tasks), len(tasks) + dropped.total(), dropped, notes=(note,))


LAYOUTS: Mapping[str, RowReader] = {
    "openai": read_openai,
    "xlam": read_xlam,
    "toolace": read_toolace,
    "hermes": read_hermes,
    "apigen-mt": read_apigen_mt,
}
OWN_FIELDS: Mapping[str, tuple[str, ...]] = {  # of a row, which hold its dialogue and tools
    "openai": ("messages", "tools", "functions", "system"),
    "xlam": ("query", "answers", "tools"),
    "toolace": ("system", "conversations"),
    "hermes": ("conversations", "tools"),
    "apigen-mt": ("system", "conversations", "tools"),
}


def convert_file(path: Path, layout: str, options: ConvertOptions = ALL_TURNS) -> tuple[str, Converted]:
    """The layout of a file and its step tasks. Raises TaskFileError.

    `layout` is a key of `LAYOUTS`, "toolrl", "cases", "agentdojo", or "auto".
    """
    layout = guess_layout(path) if layout == "auto" else layout
    if layout in _WHOLE:
        read_file, what = _WHOLE[layout]
        given = {name: getattr(options, name) for name in ("abstentions", "recoveries", "tools")}
        given["error_pattern"] = options.error_if
        if named := [name for name, value in given.items() if value]:
            raise TaskFileError(f"{path}: --{named[0]} does not fit the layout {layout}: {what}; leave it out")
        return layout, read_file(path)
    return layout, convert_rows(path, LAYOUTS[layout], options, OWN_FIELDS[layout])


_WHOLE = {  # layouts without options: their reader, and why
    "toolrl": (read_toolrl, "a row of ToolRL is one turn with calls, so it changes nothing"),
    "cases": (read_cases, "the turns of cases without calls are tasks anyway, and no call of a reference fails"),
    "agentdojo": (read_agentdojo, "every turn of its references has a call, and none fails"),
}


def guess_layout(path: Path) -> str:
    """The layout that fits all rows of known form. Raises TaskFileError if there is none, or rows are of two."""
    rows = list(islice(read_dialogues(path), GUESSED_ROWS))
    layouts: list[str] = []
    since = 0
    for number, row in enumerate(rows, start=1):
        fitting = layouts_of(row)
        if layouts and fitting and not set(layouts) & set(fitting):
            names = f"row {since} is of {' or '.join(layouts)}, row {number} of {' or '.join(fitting)}"
            raise TaskFileError(f"{path}: {names}; split the file, or name the rows to convert with --from")
        if fitting:
            since = since or number
            layouts = [name for name in layouts or fitting if name in fitting]
    if not layouts:
        fields = sorted(map(str, rows[0])) if rows else []
        raise TaskFileError(f"{path}: its first row has the fields {fields}, as no layout has; name one with --from")
    return layouts[0]


def layouts_of(row: Mapping[str, Any]) -> list[str]:
    """The layouts that a row can be of, the likeliest first; [] for an unknown form."""
    if "reward_model" in row or {"instruction", "input", "output"} <= row.keys():
        return ["toolrl"]
    if {"classes", "config", "turns"} <= row.keys():
        return ["cases"]
    if "messages" in row:
        return ["openai"]
    if {"query", "answers"} <= row.keys():
        return ["xlam"]
    entries = row.get("conversations")
    entries = entries if isinstance(entries, list) else []
    speakers = {str(entry.get("from")) for entry in entries if isinstance(entry, dict)}
    if {"function_call", "observation"} & speakers:
        return ["apigen-mt"]
    if "system" in speakers:
        return ["hermes"]
    if {"gpt", "human"} & speakers:
        return ["hermes", "apigen-mt"]
    return ["toolace"] if speakers and "system" in row else []
