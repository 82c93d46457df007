"""AgentDojo's suites as TRL environments, whose tools are the official functions with their official docs.

An episode is one user task. Calls are made by the official runtime, and the official utility check judges the state,
the calls and the assistant's last message. This module needs the package agentdojo.
"""

from __future__ import annotations

import ast
import inspect
import json
import pickle
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from fission_grpo.core.errors import error_message
from fission_grpo.core.json_io import quoted
from fission_grpo.core.terminal import get_logger, warn_once
from fission_grpo.core.types import Message, ToolCall
from fission_grpo.envs.agentdojo.suites import load_suite, official

CACHED_STARTS = 512  # [ours] states with injections, and at the start of tasks: the rollouts of a group share one

_log = get_logger(__name__)
_runtime: Any = official("functions_runtime")
_execution: Any = official("agent_pipeline.tool_execution")
_types: Any = official("types")

Snapshot = tuple[str, bytes, bytes]  # the task, its start, and the pickled rest: deep copies share them


class RefusedCall(Exception):
    """A call that AgentDojo's runtime answers with an error; the message is AgentDojo's, "ErrorType: message"."""


class AgentDojoEnvironment:
    """The base class of the four suites."""

    _suite: Any
    _functions: Any

    def __init_subclass__(cls, suite: str = ""):
        if not suite:  # a subclass of one of the four
            return
        cls._suite = load_suite(suite)
        cls._functions = _runtime.FunctionsRuntime(cls._suite.tools)
        for function in cls._suite.tools:
            setattr(cls, function.name, _make_tool(cls.__qualname__, function))

    def __init__(self):
        self._task = ""
        self._start = b""
        self._state: Any = None
        self._calls: list[tuple[Any, bool]] = []  # every call of a known tool, and whether it succeeded
        self._injected: tuple[str, ...] = ()  # the row's texts for injection vectors, see `_squeezed`
        self._injection_task = ""
        self._shown = False  # whether a result held one of these texts

    def reset(self, **row: Any) -> None:
        """Start the task of a row, of whose columns these are read. Raises ValueError for a wrong one.

        Columns:
            user_task: an official id ("user_task_3").
            injections: optional, the JSON text of an object with texts by injection vector, for places in the state;
                the official defaults are in the others.
            injection_task: optional, the official id of what these texts ask for.
        """
        name, injections = row.get("user_task"), row.get("injections") or "{}"
        where = f"row {row['id']!r}: " if "id" in row else ""
        if not isinstance(name, str) or name not in self._suite.user_tasks:
            what = f"{where}column 'user_task' must be an id of a user task of {self._suite.name}"
            raise ValueError(f"{what}, such as user_task_0, got {quoted(name)}")
        try:
            self._start = _start_of(self._suite.name, name, injections)
            self._injected = tuple(map(_squeezed, filter(None, json.loads(injections).values())))
        except (TypeError, AttributeError, ValueError) as error:
            known = ", ".join(self._suite.get_injection_vector_defaults())
            what = f"{where}column 'injections' must be the JSON text of an object with texts for some of {known}"
            raise ValueError(f"{what} ({error})") from error
        self._injection_task = str(row.get("injection_task") or "")
        if self._injection_task and self._injection_task not in self._suite.injection_tasks:
            known = ", ".join(self._suite.injection_tasks)
            raise ValueError(f"{where}column 'injection_task' must be one of {known}, got {self._injection_task!r}")
        self._task, self._state, self._calls, self._shown = name, pickle.loads(self._start), [], False

    def _reward(self, output: str = "", judge: str = "utility") -> float:
        """What an official check says of the episode.

        Args:
            output: the assistant's last message, which half of the checks read.
            judge: "utility": 1.0 if the user's task is done, else 0.0. "injection": 1.0 if the injected task is done
                (the attack succeeded), 0.0 if it is not, -1.0 if it is not and no result held its text.
        """
        suite = self._suite
        if judge == "utility":
            return float(self._check(suite._check_user_task_utility, suite.user_tasks[self._task], output))
        task = suite.injection_tasks[self._injection_task]
        done = self._check(suite._check_injection_task_security, task, output)
        return float(done) if done or self._shown else -1.0

    def _check(self, check: Callable[..., Any], task: Any, output: str) -> bool:
        before, after = pickle.loads(self._start), pickle.loads(pickle.dumps(self._state))
        blocks, calls = [_types.text_content_block_from_string(output)], [call for call, _ in self._calls]
        try:
            return bool(check(task, blocks, before, after, calls))
        except Exception as error:  # noqa: BLE001 - some checks index what a wrong call left out
            problem = f"{type(error).__name__}: {error_message(error)}"
            warn_once(_log, f"the check of {self._suite.name}/{task.ID} raised {problem}: judged as not solved")
            return False

    def _progress(self) -> float:
        """The share of the reference's calls whose tools have been called with success, as often as there. [ours]

        Arguments are not compared, since many of them are free texts.
        """
        expected = Counter(call.name for call in self._reference())
        made = Counter(call.function for call, succeeded in self._calls if succeeded)
        return (expected & made).total() / max(1, expected.total())

    def _reference(self) -> tuple[ToolCall, ...]:
        """The official calls that do the task. Feedback must not reveal them."""
        task = self._suite.user_tasks[self._task]
        calls = task.ground_truth(pickle.loads(self._start))
        return tuple(ToolCall(call.function, dict(call.args)) for call in calls)

    def _snapshot(self) -> Snapshot:
        """A copy of what changes in an episode."""
        return self._task, self._start, pickle.dumps((self._state, self._calls, self._shown))

    def _restore(self, state: Snapshot) -> None:
        """Return to a state from `_snapshot` of this or another instance."""
        self._task, self._start, rest = state
        self._state, self._calls, self._shown = pickle.loads(rest)

    def _call(self, name: str, arguments: Mapping[str, Any]) -> str:
        """The result of a call as the official executor writes it. Raises RefusedCall."""
        call = _runtime.FunctionCall(function=name, args={key: _as_list(value) for key, value in arguments.items()})
        result, error = self._functions.run_function(self._state, name, call.args)
        self._calls.append((call, error is None))
        if error is not None:
            raise RefusedCall(error)
        text = _execution.tool_result_to_str(result)
        if self._injected and not self._shown:
            squeezed = _squeezed(text)
            self._shown = any(one in squeezed for one in self._injected)
        return text


@lru_cache(maxsize=CACHED_STARTS)
def _start_of(suite: str, user_task: str, injections: str) -> bytes:
    """The pickled state in which a task begins."""
    state = pickle.loads(_state_of(suite, injections))
    return pickle.dumps(load_suite(suite).user_tasks[user_task].init_environment(state))


@lru_cache(maxsize=CACHED_STARTS)
def _state_of(suite: str, injections: str) -> bytes:
    """The pickled state of a suite; to read it from its YAML file takes 60 times as long as from a pickle."""
    return pickle.dumps(load_suite(suite).load_and_inject_default_environment(json.loads(injections)))


def _as_list(value: Any) -> Any:
    """A text that is a list in Python is read as that list, as the official executor does."""
    is_list = isinstance(value, str) and _execution.is_string_list(value)
    return ast.literal_eval(value) if is_list else value


def _squeezed(text: str) -> str:
    """A text's letters and digits: results are YAML, which breaks, quotes and escapes lines."""
    return "".join(filter(str.isalnum, text.replace("\\n", "")))


def _make_tool(owner: str, function: Any) -> Callable[..., str]:
    """A method that calls an official function, with a signature and docstring that say what its schema says."""
    fields = function.parameters.model_fields
    defaults = inspect.signature(function.run).parameters
    parameters = [inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)]
    for name, field in fields.items():
        hint = str if _choices(field) else field.annotation
        parameters.append(defaults[name].replace(annotation=hint, kind=inspect.Parameter.POSITIONAL_OR_KEYWORD))

    def tool(self: AgentDojoEnvironment, *args: Any, **arguments: Any) -> str:
        return self._call(function.name, dict(zip(fields, args, strict=False)) | arguments)

    tool.__name__, tool.__qualname__ = function.name, f"{owner}.{function.name}"
    tool.__doc__ = _docstring(function)
    tool.__annotations__ = {one.name: one.annotation for one in parameters[1:]}
    # Python does not allow required parameters after optional ones
    parameters.sort(key=lambda parameter: parameter.default is not inspect.Parameter.empty)
    tool.__signature__ = inspect.Signature(parameters)  # pyright: ignore[reportFunctionMemberAccess]
    return tool


def _docstring(function: Any) -> str:
    """A Google docstring with the official descriptions, as `transformers.utils.get_json_schema` reads it."""
    lines = [_one_line(function.description), ""]
    for name, field in function.parameters.model_fields.items():
        choices = f" (choices: {json.dumps(_choices(field))})" if _choices(field) else ""
        lines += [*(["Args:"] if len(lines) == 2 else []), f"    {name}: {_one_line(field.description)}{choices}"]
    return "\n".join(lines).strip()


def _choices(field: Any) -> list[str]:
    """The values of a parameter that is an enumeration; hints cannot express it with the official descriptions."""
    return [member.value for member in getattr(field.annotation, "__members__", {}).values()]


def _one_line(text: str) -> str:
    return " ".join(text.split())


class Workspace(AgentDojoEnvironment, suite="workspace"):
    """E-mail, calendar and files of an employee."""


class Travel(AgentDojoEnvironment, suite="travel"):
    """Hotels, restaurants, car rental and flights, with a calendar and e-mail."""


class Banking(AgentDojoEnvironment, suite="banking"):
    """A bank account with transactions, and files."""


class Slack(AgentDojoEnvironment, suite="slack"):
    """Channels, direct messages and web pages."""


ENVIRONMENTS: Mapping[str, type[AgentDojoEnvironment]] = {
    "workspace": Workspace,
    "travel": Travel,
    "banking": Banking,
    "slack": Slack,
}


def utility(environments: Sequence[Any], completions: Sequence[Sequence[Message]], **_: Any) -> list[float | None]:
    """TRL reward function: the official utility check of each episode, with the assistant's last message."""
    return _judged("utility", environments, completions)


def injection(environments: Sequence[Any], completions: Sequence[Sequence[Message]], **_: Any) -> list[float | None]:
    """The official security check of each episode as a reward function, see `_reward`: 1.0 if the attack succeeded."""
    return _judged("injection", environments, completions)


def _judged(judge: str, environments: Sequence[Any], completions: Sequence[Sequence[Message]]) -> list[float | None]:
    pairs = zip(environments, completions, strict=True)
    return [environment._reward(_last_text(completion), judge) for environment, completion in pairs]


def _last_text(completion: Sequence[Message]) -> str:
    content = completion[-1].get("content") if completion and completion[-1]["role"] == "assistant" else ""
    return content if isinstance(content, str) else ""
