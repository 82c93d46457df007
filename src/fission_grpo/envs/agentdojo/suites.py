"""AgentDojo's suites by name, imported without the clients of language models that its package loads."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from fission_grpo.core.errors import UsageError
from fission_grpo.core.install import install_line

SUITES = ("workspace", "travel", "banking", "slack")
VERSION = "v1.2.2"  # of the benchmark, the default of the official command of agentdojo 0.1.35
MAX_TURNS = 16  # assistant turns of an episode: officially 15 with calls that are made, and one more reply
NAME = "agentdojo"


def environment_name(suite: str) -> str:
    """The name of a suite's environment, for the column `environment`, such as "agentdojo:banking"."""
    return f"{NAME}:{suite}"


def suites_of(tasks: str) -> tuple[str, ...]:
    """The suites that a name of tasks means: all of "agentdojo", two of "agentdojo:banking,slack"; else ().

    Raises UsageError for an unknown suite.
    """
    name, colon, listed = tasks.partition(":")
    if name != NAME:
        return ()
    suites = tuple(dict.fromkeys(listed.split(","))) if colon else SUITES
    if not set(suites) <= set(SUITES):
        known = f"after 'agentdojo:' write one of {', '.join(SUITES)}, or several with commas"
        raise UsageError(f"{tasks!r}: there is no such suite; {known}")
    return suites


@cache
def load_suite(name: str) -> Any:
    """A suite of `VERSION`, a TaskSuite. Raises UsageError if agentdojo or a package that it needs is missing."""
    return official("task_suite").get_suite(VERSION, name)


@cache
def official(module: str) -> Any:
    """A module of the package agentdojo. Raises UsageError if that or a package that it needs is missing."""
    try:
        with _without_clients():
            importlib.import_module("agentdojo.task_suite")
            return importlib.import_module(f"agentdojo.{module}")
    except ImportError as error:
        raise UsageError(f"AgentDojo's suites cannot be imported ({error}); {install_line(NAME)}") from error


@contextmanager
def _without_clients() -> Iterator[None]:
    """Have modules of `agentdojo.agent_pipeline` imported without its `__init__`.

    The `__init__` imports the client packages of all providers, of which the suites need none. It runs as usual if
    that package itself is imported later.
    """
    name = "agentdojo.agent_pipeline"
    spec = None if name in sys.modules else importlib.util.find_spec(name)
    if spec is None:
        yield
        return
    sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        yield
    finally:
        del sys.modules[name]
