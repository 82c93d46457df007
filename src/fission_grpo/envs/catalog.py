"""Environments by their names in task files and commands: "desk", "bfcl", and classes of the user's own modules."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from fission_grpo.core.errors import UsageError
from fission_grpo.core.json_io import quoted
from fission_grpo.envs.desk.env import Desk

ENVIRONMENT = "environment"  # column of a row that names its environment


def environment_of_row(row: Mapping[str, Any]) -> tuple[str, Callable[[], Any]]:
    """The environment that a row's column `environment` names: a name for its set of tools, and the class or factory.

    "desk" is the built-in one. "bfcl" has the tools of the BFCL classes in column `classes`, without the functions in
    `without`. Anything else is "my_module:MyEnv" or "path/to/file.py:MyEnv".

    Raises:
        UsageError: the environment is not known or cannot be imported, or a package that it needs is missing.
    """
    name = row.get(ENVIRONMENT)
    if name == "desk":
        return "desk", Desk
    if name == "bfcl":
        return _bfcl(row.get("classes"), row.get("without") or ())
    if not isinstance(name, str) or ":" not in name:
        raise UsageError(f"unknown environment {quoted(name)}; write desk, bfcl, or my_module:MyEnv")
    return name, load_factory(name)


def _bfcl(classes: Any, without: Any) -> tuple[str, Callable[[], Any]]:
    for field, names in (("classes", classes), ("without", without)):
        if not isinstance(names, list | tuple) or not all(isinstance(one, str) for one in names):
            raise UsageError(f'environment "bfcl" needs `{field}` as a list of names, got {quoted(names)}')
    try:
        from fission_grpo.envs.bfcl.env import environment_name, environment_of

        name = environment_name(classes, without)
        return name, environment_of(name)
    except ModuleNotFoundError as error:
        from fission_grpo.envs.bfcl import INSTALL

        raise UsageError(f'environment "bfcl" needs {error.name}; {INSTALL}') from error
    except ValueError as error:
        raise UsageError(str(error)) from error


def load_factory(name: str) -> Callable[[], Any]:
    """The class or factory `module:Class` or `path/to/file.py:Class`; modules are also looked for in the folder.

    Raises UsageError if there is none.
    """
    place, _, attribute = name.rpartition(":")
    if not place or not attribute:
        raise UsageError(f"{name!r}: write module:Class or path/to/file.py:Class")
    if place.endswith(".py") and not Path(place).is_file():
        raise UsageError(f"{place}: there is no such file")
    if (folder := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, folder)
    try:
        module = _load_file(Path(place)) if place.endswith(".py") else importlib.import_module(place)
    except (Exception, SystemExit) as error:
        raise UsageError(f"{place}: cannot be imported ({type(error).__name__}: {error})") from error
    factory = getattr(module, attribute, None)
    if not callable(factory):
        known = [name for name, value in vars(module).items() if isinstance(value, type) and not name.startswith("_")]
        raise UsageError(f"{place} has no class {attribute!r}; it has {', '.join(known) or 'no classes'}")
    return factory


def _load_file(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None, "the name ends in .py"
    assert spec.loader is not None
    module = sys.modules[path.stem] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
