"""Environments by their names in task files and commands: the built-in ones, and classes of the user's modules."""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any, TypeGuard

from fission_grpo.core.errors import UsageError
from fission_grpo.core.install import install_line
from fission_grpo.core.json_io import quoted
from fission_grpo.envs.agentdojo.suites import suites_of
from fission_grpo.envs.desk.env import Desk

ENVIRONMENT = "environment"  # column of a row that names its environment
CLASSES = "classes"  # column with BFCL's classes, where that is "bfcl"
_CLASS = re.compile(r"(?:[A-Za-z_][\w.]*|.+\.py):[A-Za-z_]\w*")


def is_environment_name(value: Any) -> TypeGuard[str]:
    """Whether a value has the form of an environment's name; there need not be such an environment."""
    return isinstance(value, str) and (value in ("desk", "bfcl") or _CLASS.fullmatch(value) is not None)


def environment_of_row(row: Mapping[str, Any]) -> tuple[str, Callable[[], Any]]:
    """The environment that a row's column `environment` names: a name for its set of tools, and the class.

    "desk" is the built-in one. "bfcl" has the tools of the BFCL classes in column `classes`, "agentdojo:SUITE" those
    of a suite of AgentDojo. Anything else is "my_module:MyEnv" or "path/to/file.py:MyEnv".

    Raises:
        UsageError: the environment is not known or cannot be imported, or a package that it needs is missing.
    """
    name = row.get(ENVIRONMENT)
    if name == "desk":
        return "desk", Desk
    if name == "bfcl":
        return _bfcl(row.get(CLASSES))
    if isinstance(name, str) and len(suites := suites_of(name)) == 1:
        from fission_grpo.envs.agentdojo.env import ENVIRONMENTS

        return name, ENVIRONMENTS[suites[0]]
    if not is_environment_name(name):
        forms = "write desk, bfcl, agentdojo:SUITE, my_module:MyEnv or path/to/file.py:MyEnv"
        raise UsageError(f"unknown environment {quoted(name)}; {forms}, or rename a column that means something else")
    factory = load_factory(name)
    if not isinstance(factory, type) or not callable(getattr(factory, "reset", None)):  # a file may name any function
        raise UsageError(f"{name} is no class with a method `reset`")
    return name, factory


def _bfcl(classes: Any) -> tuple[str, Callable[[], Any]]:
    if not isinstance(classes, list | tuple) or not classes or not all(isinstance(one, str) for one in classes):
        raise UsageError(f'environment "bfcl" needs the column `classes`, a list of names, got {quoted(classes)}')
    try:
        from fission_grpo.envs.bfcl.env import environment_name, environment_of

        name = environment_name(classes)
        return name, environment_of(name)
    except ModuleNotFoundError as error:
        raise UsageError(f'environment "bfcl" needs {error.name}; {install_line("bfcl_eval")}') from error
    except ValueError as error:
        raise UsageError(str(error)) from error


def load_factory(name: str) -> Callable[[], Any]:
    """The class or factory `module:Class` or `path/to/file.py:Class`. Raises UsageError if there is none."""
    return _load(name, "class", "Class")


def load_function(name: str) -> Callable[..., Any]:
    """The function `module:function` or `path/to/file.py:function`. Raises UsageError if there is none."""
    return _load(name, "function", "function")


def _load(name: str, kind: str, form: str) -> Callable[..., Any]:
    """An object of the user's own module, which is also looked for in the working directory.

    A file is executed once, as a module by its own name.
    """
    place, _, attribute = name.rpartition(":")
    if not place or not attribute:
        raise UsageError(f"{name!r}: write module:{form} or path/to/file.py:{form}")
    if place.endswith(".py") and not Path(place).is_file():
        raise UsageError(f"{place}: there is no such file below {Path.cwd()}; correct the path")
    if (folder := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, folder)
    try:
        module = _load_file(Path(place).resolve()) if place.endswith(".py") else importlib.import_module(place)
    except (Exception, SystemExit) as error:
        raise UsageError(f"{place}: cannot be imported ({type(error).__name__}: {error})") from error
    found = getattr(module, attribute, None)
    if not callable(found):
        wanted = type if kind == "class" else FunctionType
        known = [key for key, value in vars(module).items() if isinstance(value, wanted) and not key.startswith("_")]
        nothing = "no classes" if kind == "class" else "no functions"
        raise UsageError(f"{place} has no {kind} {attribute!r}; it has {', '.join(known) or nothing}")
    return found


_loaded: set[str] = set()  # names of the modules that `_load_file` has made


@cache
def _load_file(path: Path) -> ModuleType:
    name = path.stem
    if name in sys.modules and name not in _loaded:
        raise ImportError(f"there is another module {name!r}; rename the file")
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))  # for modules beside it, and for environments in processes of their own
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None, "the name ends in .py"
    assert spec.loader is not None
    _loaded.add(name)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
