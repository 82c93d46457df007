"""Guards around one environment's tools: limits on every call, a snapshot after it, and counts of what went wrong.

The arguments are copied, so that a tool cannot change what the policy wrote. A call that exceeds its time limit ends
the episode with reward 0, as the policy chose its arguments; one that raises InfrastructureError ends it without a
reward, because the policy is not to blame.
"""

from __future__ import annotations

import copy
import functools
import inspect
import json
import types
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from fission_grpo.core.chat import read_result
from fission_grpo.core.errors import (
    CallStopped,
    ExitAttempt,
    InfrastructureError,
    TimeLimitExceeded,
    error_message,
)
from fission_grpo.core.terminal import get_logger, warn_once
from fission_grpo.core.timing import contained, contained_async
from fission_grpo.core.types import PARSE_ERROR, ToolCall, ToolCallParseError

_log = get_logger(__name__)

ENDED = "the episode has ended: "  # answers the calls after one that was stopped
ADVICE = "With isolate_environments its process would be ended (docs/environments.md)."


@dataclass(frozen=True)
class ToolLimits:
    """Limits of one call of a tool, 0 for no limit, and which results are errors. [ours]

    The timeout of sync code needs SIGALRM and the main thread (where TRL calls tools), see `contained`.
    """

    timeout: float = 60.0  # in seconds; also of `reset`, the reward and the optional methods
    max_result_chars: int = 20_000  # of a result or error shown to the policy; the rest is cut
    takes_images: Callable[[], bool] = lambda: True  # whether the policy can read images in results
    error_if: Callable[[str], bool] | None = None  # of a result's text, beside the errors that `read_result` finds


@dataclass
class EpisodeMonitor:
    """Guards an environment's tools and records what happens in it."""

    environment: Any
    limits: ToolLimits
    snapshots: list[Any] = field(default_factory=list)  # from the episode's start and after every call, if supported
    infrastructure_error: str | None = None  # why this episode cannot be judged
    stopped: str | None = None  # the policy's call that did not end by itself; the episode's reward is then 0
    counts: Counter[str] = field(default_factory=Counter)  # of events ("env/..."), until the trainer clears them
    takes_snapshots: bool = True  # whether `_snapshot` has worked so far

    def record_snapshot(self) -> None:
        """Take a snapshot, if the environment supports it. After a failure no more are taken.

        The state after a call that was stopped is not known: a recovery begins with the state before it.
        """
        if self.stopped is not None:
            self.snapshots += self.snapshots[-1:]
            return
        if not self.takes_snapshots or self.infrastructure_error is not None or not can_snapshot(self.environment):
            return
        name = f"{type(self.environment).__name__}._snapshot"
        try:
            take = self.environment._snapshot
            state = contained(
                lambda: copy.deepcopy(take()), name, self.limits.timeout, ADVICE
            )  # it may be the live one
            self.snapshots.append(state)
        except Exception as error:  # noqa: BLE001 - the user's code; counted, and replay is the fallback
            self.takes_snapshots = False
            self.snapshots = []
            self.counts["snapshot_failed"] += 1
            problem = self._cut(error_message(error))
            _log.warning("%s failed (%s); its episodes are restored by replay", name, problem)

    def begin_episode(self) -> None:
        """Forget the episode before, and wait for the environment's process if it has one (see `worker`)."""
        self.infrastructure_error = self.stopped = None
        if (start := getattr(self.environment, "_fission_start", None)) is not None:
            with self._recorded("the start of its process", by_policy=False):
                start()

    def record_infrastructure_error(self, error: Exception, default: str) -> None:
        """Mark the episode as one that cannot be judged; `default` is the reason if the error has no message."""
        self.infrastructure_error = str(error) or default
        self.counts["broken"] += 1

    def run(self, call: Callable[[], Any], method: str) -> Any:
        """The result of code of the environment that is no tool, within the limits; None if it cannot be judged.

        So is code that raises InfrastructureError, runs into its time limit or tries to end the process: the policy is
        not to blame for what `reset` or the reward do. Other exceptions are the user's, to be seen.
        """
        with self._recorded(method, by_policy=False):
            return contained(call, self.name_of(method), self.limits.timeout, ADVICE)

    async def run_async(self, call: Awaitable[Any], method: str) -> Any:
        """The same as `run`, of async code."""
        with self._recorded(method, by_policy=False):
            return await contained_async(call, self.name_of(method), self.limits.timeout, ADVICE)

    def name_of(self, method: str) -> str:
        """The name of a method that is no tool in messages."""
        return f"{type(self.environment).__name__}.{method}"

    def wrap(self, tool: Callable[..., Any]) -> Callable[..., Any]:
        """The guarded tool, with the same name, signature and docstring."""
        name = getattr(tool, "__name__", "a tool")

        @functools.wraps(tool)
        def call(*args: Any, **kwargs: Any) -> Any:
            args, kwargs = self._checked(args, kwargs)

            def answer() -> Any:
                with readable_errors(self._cut):
                    return self._to_text(tool(*args, **kwargs))

            try:
                with self._recorded(name):
                    return contained(answer, name, self.limits.timeout, ADVICE)
            finally:
                self.record_snapshot()

        @functools.wraps(tool)
        async def call_async(*args: Any, **kwargs: Any) -> Any:
            args, kwargs = self._checked(args, kwargs)

            async def answer() -> Any:
                with readable_errors(self._cut):
                    return self._to_text(await tool(*args, **kwargs))

            try:
                with self._recorded(name):
                    return await contained_async(answer(), name, self.limits.timeout, ADVICE)
            finally:
                self.record_snapshot()

        return call_async if inspect.iscoroutinefunction(tool) else call

    def _checked(self, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """A copy of a call's arguments. Refuses unparsable calls, and calls in an episode that has ended."""
        if PARSE_ERROR in kwargs:
            raise ToolCallParseError(str(kwargs[PARSE_ERROR]))
        if self.infrastructure_error is not None:
            raise InfrastructureError(self.infrastructure_error)
        if self.stopped is not None:
            self.record_snapshot()
            raise ValueError(f"{ENDED}{self.stopped}")
        return copy.deepcopy((args, kwargs))

    @contextmanager
    def _recorded(self, name: str, by_policy: bool = True) -> Iterator[None]:
        """Record what ends the episode: a call of the policy that did not end by itself, or a broken environment."""
        try:
            yield
        except (CallStopped, ExitAttempt, InfrastructureError) as error:
            if isinstance(error, CallStopped):
                self.counts["timeouts" if isinstance(error, TimeLimitExceeded) else "crashes"] += 1
            if by_policy and isinstance(error, CallStopped):
                self.stopped = str(error)
            elif isinstance(error, InfrastructureError):
                self.record_infrastructure_error(error, f"{name} failed")
            elif not by_policy:
                self.record_infrastructure_error(error, "")
                warn_once(_log, f"{error}; such episodes are not judged, and counted as env/broken")
            if by_policy:
                raise

    def _to_text(self, result: Any) -> Any:
        """The result as TRL takes it: text, or a list of content blocks (images and texts)."""
        result = from_blocks(result, self.limits.takes_images())
        if isinstance(result, list):
            return result
        if not isinstance(result, str):
            try:
                json.dumps(result)
            except (TypeError, ValueError, RecursionError):
                self.counts["not_json"] += 1
        whole = str(result)
        text = self._cut(whole)
        if text is whole or (error := read_result(ToolCall(""), whole).error) is None:
            return text
        return str({"error": error[: self.limits.max_result_chars]})  # a cut result would no longer be an error

    def _cut(self, text: str) -> str:
        short = cut_text(text, self.limits.max_result_chars)
        if short is not text:
            self.counts["truncated_results"] += 1
        return short


@contextmanager
def readable_errors(cut: Callable[[str], str] = str) -> Iterator[None]:
    """Have an exception of the body say something, in a text that is `cut`, as the policy reads it."""
    try:
        yield
    except InfrastructureError:
        raise
    except Exception as error:
        message = cut(error_message(error))
        if error.args == (message,):
            raise
        raise ValueError(message) from error


def from_blocks(result: Any, takes_images: bool = True) -> Any:
    """A tool's result as the policy gets it: a list with images stays one, every other list becomes text.

    Texts in content blocks (`{"type": "text", "text": ...}`, as in MCP) are joined by line breaks, because templates
    of text models leave out lists. Any other list is data.
    """
    if not isinstance(result, list):
        return result
    texts = [block["text"] for block in result if _is_block(block, "text") and isinstance(block["text"], str)]
    images = [block for block in result if _is_block(block, "image")]
    if not result or len(texts) + len(images) < len(result):
        return str(result)
    if images:
        return result if takes_images else str(result)
    return "\n".join(texts)


def _is_block(value: Any, kind: str) -> bool:
    """Whether a value is `{"type": kind, kind: ...}` and nothing more: a record with other fields is data."""
    return isinstance(value, dict) and value.get("type") == kind and value.keys() == {"type", kind}


def cut_text(text: str, most: int) -> str:
    """A result's text as the policy reads it: at most `most` characters (0: all), and a note on the rest."""
    return f"{text[:most]}... [cut: {len(text)} characters]" if 0 < most < len(text) else text


def can_snapshot(environment: Any) -> bool:
    """Whether the environment has `_snapshot` and `_restore`."""
    return callable(getattr(environment, "_snapshot", None)) and callable(getattr(environment, "_restore", None))


def tool_methods(environment: Any) -> dict[str, Callable[..., Any]]:
    """The environment's tools by name: public methods of its class, without `reset` and `get_reward` (as in TRL)."""
    return {
        name: getattr(environment, name)
        for name, _ in inspect.getmembers(type(environment), predicate=inspect.isfunction)
        if name not in ("reset", "get_reward") and not name.startswith("_")
    }


def guard_tools(environment: Any, limits: ToolLimits) -> EpisodeMonitor:
    """Guard all tools of an instance. The monitor is also stored as `environment._fission_monitor`."""
    monitor = EpisodeMonitor(environment, limits)
    set_attribute(environment, "_fission_monitor", monitor)
    for name, tool in tool_methods(environment).items():
        bind_method(environment, name, monitor.wrap(tool))
    return monitor


def set_attribute(environment: Any, name: str, value: Any) -> None:
    """Set an attribute of an instance. Raises a TypeError that names the fix if the instance takes none."""
    try:
        setattr(environment, name, value)
    except AttributeError as error:
        raise TypeError(
            f"{type(environment).__name__} does not let `{name}` be replaced on an instance ({error}). Remove its "
            "__slots__, or make it a plain class, so that fission can bring it back to the failed turn."
        ) from error


def bind_method(environment: Any, name: str, call: Callable[..., Any]) -> None:
    """Replace a method by `call`, which takes no `self`. It stays a bound method: TRL before 1.15 takes no others."""
    original = inspect.getattr_static(type(environment), name, None)
    if not inspect.isfunction(original):  # a static method, or an attribute of the instance
        set_attribute(environment, name, call)
        return

    def method(_: Any, *args: Any, **kwargs: Any) -> Any:
        return call(*args, **kwargs)

    async def method_async(_: Any, *args: Any, **kwargs: Any) -> Any:
        return await call(*args, **kwargs)

    function = functools.wraps(original)(method_async if inspect.iscoroutinefunction(call) else method)
    set_attribute(environment, name, types.MethodType(function, environment))
