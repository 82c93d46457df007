"""Strict reading of the command line and of the YAML file of `--config`, on top of `trl.TrlParser`."""

from __future__ import annotations

import difflib
from argparse import ArgumentTypeError
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from fission_grpo.core.errors import UsageError
from fission_grpo.core.json_io import quoted
from fission_grpo.training.config import RENAMED


def parse_options(parser: Any, argv: list[str]) -> tuple[Any, ...]:
    """Read the command line and the YAML file that `--config FILE` names, with a `trl.TrlParser`.

    Returns:
        The parser's dataclasses.

    Raises:
        UsageError: the file cannot be read, a key or option is unknown, or a value has the wrong type.
        ValueError: a value is out of range (from the dataclasses).
    """
    argv = [part for arg in argv for part in (arg.split("=", 1) if arg.startswith("--config=") else [arg])]
    actions = {action.dest: action for action in parser._actions if action.option_strings[0] != f"--no_{action.dest}"}
    names = sorted(actions.keys() - {"help"})
    rest = list(argv)
    if "--config" in argv:
        at = argv.index("--config")
        if at + 1 == len(argv):
            raise UsageError("--config needs the path of a YAML file")
        path, rest = argv[at + 1], argv[:at] + argv[at + 2 :]
        mappings = {one.name for kind in parser.dataclass_types for one in fields(kind) if "dict" in str(one.type)}
        for key, value in _read_yaml(path).items():
            if key == "env":  # TrlParser's own: environment variables
                continue
            if key not in names:
                if RENAMED.get(key) in names:
                    raise UsageError(f"{path}: {key} is now called {RENAMED[key]}")
                raise UsageError(f"{path}: unknown key '{key}'{_similar(key, names)}; remove or correct it")
            if value is not None and not (key in mappings and isinstance(value, dict)):
                _check_value(f"{path}: {key}", value, actions[key])
    for word in parser.parse_known_args(rest)[1]:
        if word.startswith("--"):
            key = word.removeprefix("--").split("=")[0]
            name = key.replace("-", "_")
            if RENAMED.get(name) in names:
                raise UsageError(f"--{key} is now called --{RENAMED[name]}")
            raise UsageError(f"unknown option '--{key}'{_similar(name, names)}; see --help")
        raise UsageError(f"unexpected argument '{word}'; options are --name value, see --help")
    return parser.parse_args_and_config(argv)


class _UniqueKeyLoader(yaml.SafeLoader):
    """Refuses a key that occurs twice, of which YAML would take the last."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        lines: dict[str, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if key.value in lines and isinstance(key, yaml.ScalarNode):
                raise UsageError(f"line {line}: '{key.value}' is given twice, first in line {lines[key.value]}")
            lines[str(key.value)] = line
        return super().construct_mapping(node, deep)


def _read_yaml(path: str) -> dict[str, Any]:
    try:
        config = _UniqueKeyLoader(Path(path).read_text(encoding="utf-8-sig")).get_single_data()
    except OSError as error:
        raise UsageError(f"--config {path}: cannot be read ({error.strerror})") from error
    except UsageError as error:
        raise UsageError(f"--config {path}, {error}; keep one") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"--config {path}: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(config, dict):
        raise UsageError(f"--config {path}: must be a mapping, one 'key: value' a line")
    return {str(key): value for key, value in config.items()}


def _check_value(where: str, value: Any, action: Any) -> None:
    """Check a value of the file by the type of its option; argparse checks strings only."""
    is_list = isinstance(value, list) and action.nargs in ("+", "*")
    for item in value if is_list else [value]:
        try:
            valid = not isinstance(item, dict | list)
            if valid and action.type is not None:
                action.type(str(item))
        except (ValueError, TypeError, ArgumentTypeError):
            valid = False
        if not valid:
            kind = getattr(action.type, "__name__", "")
            wanted = {"int": "a whole number", "float": "a number", "string_to_bool": "true or false"}
            shown = f"a {type(item).__name__}" if isinstance(item, dict | list) else quoted(item)
            raise UsageError(f"{where} is {shown}; give {wanted.get(kind, 'a value that --help names')}")


def _similar(key: str, names: list[str]) -> str:
    close = difflib.get_close_matches(key, names, n=3, cutoff=0.6)
    return f" (did you mean {', '.join(close)}?)" if close else ""
