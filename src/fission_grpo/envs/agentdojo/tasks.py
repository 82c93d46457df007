"""AgentDojo's user tasks as TRL rows, and as static step tasks from the official calls that do them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib import resources
from types import SimpleNamespace
from typing import Any

from fission_grpo.core.chat import dialogue_results
from fission_grpo.core.errors import UsageError
from fission_grpo.core.serialization import call_fields
from fission_grpo.core.types import FOLLOWING, Message, Task, ToolCall
from fission_grpo.envs.agentdojo.env import ENVIRONMENTS, AgentDojoEnvironment
from fission_grpo.envs.agentdojo.suites import environment_name, load_suite, official
from fission_grpo.envs.wrapper import tool_methods


def task_rows(suite: str) -> list[dict[str, Any]]:
    """TRL rows, one per user task: `id` ("banking/user_task_3"), `environment`, `prompt`, `user_task`.

    The system message is the official command's. Injection vectors keep their harmless defaults.
    """
    tasks = load_suite(suite).user_tasks
    return [
        {
            "id": f"{suite}/{name}",
            "environment": environment_name(suite),
            "prompt": [
                {"role": "system", "content": _system_message()},
                {"role": "user", "content": task.PROMPT},
            ],
            "user_task": name,
        }
        for name, task in sorted(tasks.items(), key=lambda item: int(item[0].rpartition("_")[2]))
    ]


def injection_rows(suite: str, attack: str) -> list[dict[str, Any]]:
    """TRL rows of all pairs of a user task and an injection task, in an order in which few of them vary both.

    As in `task_rows`, with `injection_task` and `injections`, the official attack's texts, which are shown to who
    makes the official calls of the user task. Ids are "banking/user_task_3/injection_task_1". User tasks whose
    official calls show no injection vector are left out. Raises UsageError for an unknown attack.
    """
    tasks = load_suite(suite)
    attacker = _attacker(suite, attack)
    rows = [row for row in task_rows(suite) if _is_injectable(attacker, tasks.user_tasks[row["user_task"]])]
    names = list(tasks.injection_tasks)
    pairs = [(row, names[(at + shift) % len(names)]) for shift in range(len(names)) for at, row in enumerate(rows)]
    return [_injected(row, name, attacker) for row, name in pairs]


def _attacker(suite: str, attack: str) -> Any:
    """An official attack on a model that the official command calls "local".

    Left out are attacks that only stop the assistant ("dos"), which are judged in another way, and "manual".
    """
    known: dict[str, Any] = {}
    for module in ("important_instructions_attacks", "baseline_attacks"):  # which fill the registry
        official(f"attacks.{module}")
        known |= official("attacks.attack_registry").ATTACKS
    known = {name: one for name, one in known.items() if not one.is_dos_attack and name != "manual"}
    if attack not in known:
        raise UsageError(f"{attack!r}: AgentDojo has no such attack; write one of {', '.join(sorted(known))}")
    return known[attack](load_suite(suite), SimpleNamespace(name="local"))


def _is_injectable(attacker: Any, task: Any) -> bool:
    try:
        return bool(attacker.get_injection_candidates(task))
    except ValueError:  # "not injectable"
        return False


def _injected(row: Mapping[str, Any], name: str, attacker: Any) -> dict[str, Any]:
    suite = attacker.task_suite
    texts = attacker.attack(suite.user_tasks[row["user_task"]], suite.injection_tasks[name])
    return {**row, "id": f"{row['id']}/{name}", "injection_task": name, "injections": json.dumps(texts)}


@cache
def _system_message() -> str:
    import yaml  # agentdojo needs it

    path = resources.files("agentdojo") / "data" / "system_messages.yaml"
    return str(yaml.safe_load(path.read_text(encoding="utf-8"))["default"])


def step_tasks(suite: str, dropped: Counter[str]) -> Iterator[Task]:
    """Step tasks from the official calls of each user task: one per call, and one in which no call is left to make.

    The dialogue of each holds the earlier calls with their real results. Left out, and counted in `dropped`, are calls
    with arguments that nobody could write from the dialogue, such as the wording of a message: their reference would
    punish right calls. Ids are "banking/user_task_3.0"; the last one of a task has an empty reference, so that the
    assistant learns to end.
    """
    tools = _tool_schemas(suite)
    environment = ENVIRONMENTS[suite]()
    for row in task_rows(suite):
        environment.reset(**row)
        reference = tuple(_without_defaults(environment, call) for call in environment._reference())
        messages: list[Message] = list(row["prompt"])
        known: list[bool] = []  # by call: whether its arguments stand in the dialogue
        prompts: list[tuple[Message, ...]] = []
        for call in reference:
            known.append(_is_known(call, messages))
            prompts.append(tuple(messages))
            function = {"type": "function", "function": call_fields(call)}
            messages.append({"role": "assistant", "content": "", "tool_calls": [function]})
            messages.append({"role": "tool", "name": call.name, "content": _answer(environment, call)})
        for index, prompt in enumerate([*prompts, tuple(messages)]):
            if not all(known[index : index + 1]):
                dropped["an argument of the reference does not stand in the dialogue"] += 1
                continue
            columns = {name: row[name] for name in ("environment", "user_task")}
            columns[FOLLOWING] = _following(reference, known, index + 1)
            name, expected, history = f"{row['id']}.{index}", reference[index : index + 1], dialogue_results(prompt)
            yield Task(name, prompt, tools, expected, columns, history=history)


def _following(reference: Sequence[ToolCall], known: Sequence[bool], start: int) -> list[list[dict[str, Any]]]:
    """The calls after a step, one by one, then none: the assistant ends. Nothing from the first unknown one on."""
    if start > len(reference):
        return []
    turns = []
    for call, is_known in zip(reference[start:], known[start:], strict=True):
        if not is_known:
            return turns
        turns.append([call_fields(call)])
    return [*turns, []]


def _answer(environment: AgentDojoEnvironment, call: ToolCall) -> str:
    return environment._call(call.name, call.arguments)


def _without_defaults(environment: AgentDojoEnvironment, call: ToolCall) -> ToolCall:
    """The same call without the arguments that its tool would take anyway, which no text asks for."""
    fields = environment._functions.functions[call.name].parameters.model_fields
    return ToolCall(call.name, {name: one for name, one in call.arguments.items() if one != fields[name].default})


def _is_known(call: ToolCall, messages: Sequence[Message]) -> bool:
    """Whether every word of a call's arguments stands in the dialogue. [ours]"""
    text = " ".join(str(message["content"]) for message in messages).lower()
    return all(word in text for value in call.arguments.values() for word in _words(value))


def _words(value: Any) -> list[str]:
    if isinstance(value, list):
        return [word for item in value for word in _words(item)]
    if isinstance(value, bool) or value is None:
        return []  # a choice, which no text has to name
    return str(value).lower().split()


@cache
def _tool_schemas(suite: str) -> tuple[dict[str, Any], ...]:
    from transformers.utils import get_json_schema

    return tuple(get_json_schema(tool)["function"] for tool in tool_methods(ENVIRONMENTS[suite]()).values())
