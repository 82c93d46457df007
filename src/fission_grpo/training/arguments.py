"""Options of a command that stand on the command line or in a YAML file, as in trl: read strictly."""

from __future__ import annotations

import difflib
from argparse import ArgumentTypeError
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from fission_grpo.core.errors import UsageError
from fission_grpo.core.json_io import quoted


def parse_options(parser: Any, argv: list[str]) -> tuple[Any, ...]:
    """Read the command line and the YAML file that `--config FILE` names.

    Args:
        parser: a `trl.TrlParser`.
        argv: the command's arguments.

    Returns:
        tuple: the parser's dataclasses.

    Raises:
        UsageError: the file cannot be read, or holds, or the command line has, a key that does not exist.
        ValueError: a value is out of range (from the dataclasses).
    """
    argv = [part for arg in argv for part in (arg.split("=", 1) if arg.startswith("--config=") else [arg])]
    actions = {action.dest: action for action in parser._actions if action.option_strings[0] != f"--no_{action.dest}"}
    options = set(actions) - {"help"}
    rest = list(argv)
    if "--config" in argv:
        at = argv.index("--config")
        if at + 1 == len(argv):
            raise UsageError("--config needs the path of a YAML file")
        rest = argv[:at] + argv[at + 2 :]
        for key, value in _yaml_options(argv[at + 1]).items():
            if key not in options | {"env"}:
                raise UsageError(f"{argv[at + 1]}: unknown key '{key}'{_near(key, options)}; remove or correct it")
            if key != "env":
                _check_value(f"{argv[at + 1]}: {key}", value, actions[key], key in _mappings(parser))
    for word in parser.parse_known_args(rest)[1]:
        if word.startswith("--"):
            key = word.removeprefix("--").split("=")[0]
            raise UsageError(f"unknown option '--{key}'{_near(key.replace('-', '_'), options)}; see --help")
        raise UsageError(f"unexpected argument '{word}'; options are --name value, see --help")
    return parser.parse_args_and_config(argv)


def newest_checkpoint(wanted: Any, output: Any) -> str | None:
    """The folder that `--resume_from_checkpoint` means, None to begin anew; `true` is the newest in `output`.

    Raises:
        UsageError: there is none, or the path given is no folder.
    """
    from transformers.trainer_utils import get_last_checkpoint

    if str(wanted).lower() in ("none", "false"):
        return None
    if str(wanted).lower() == "true":
        folder = Path(str(output))
        found = get_last_checkpoint(str(folder)) if folder.is_dir() else None
        if found is None:
            raise UsageError(
                f"no checkpoint-* in {folder} to resume from; check output_dir, or start without resuming"
            )
        return found
    if not Path(str(wanted)).is_dir():
        raise UsageError(f"resume_from_checkpoint: {wanted} is no folder; give a checkpoint-* folder, or 'true'")
    return str(wanted)


class _OnceOnly(yaml.SafeLoader):
    """YAML that may not give a key twice, as the last one would count and the others be lost."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: dict[str, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if key.value in seen and isinstance(key, yaml.ScalarNode):
                raise UsageError(f"line {line}: '{key.value}' is given twice, first in line {seen[key.value]}")
            seen[str(key.value)] = line
        return super().construct_mapping(node, deep)


def _yaml_options(path: str) -> dict[str, Any]:
    try:
        config = _OnceOnly(Path(path).read_text(encoding="utf-8")).get_single_data()
    except OSError as error:
        raise UsageError(f"--config {path}: cannot be read ({error.strerror})") from error
    except UsageError as error:
        raise UsageError(f"--config {path}, {error}; keep one") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"--config {path}: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(config, dict):
        raise UsageError(f"--config {path}: must be a mapping, one 'key: value' a line")
    return {str(key): value for key, value in config.items()}


def _mappings(parser: Any) -> set[str]:
    """Options whose value may be a mapping."""
    return {one.name for kind in parser.dataclass_types for one in fields(kind) if "dict" in str(one.type)}


def _check_value(where: str, value: Any, action: Any, may_be_mapping: bool) -> None:
    """Raise UsageError for what the command line would not take, either; argparse looks at texts only."""
    if value is None or (may_be_mapping and isinstance(value, dict)):
        return
    several = isinstance(value, list) and action.nargs in ("+", "*")
    for one in value if several else [value]:
        try:
            good = not isinstance(one, dict | list)
            if good and action.type is not None:
                action.type(str(one))
        except (ValueError, TypeError, ArgumentTypeError):
            good = False
        if not good:
            kind = getattr(action.type, "__name__", "")
            wanted = {"int": "a whole number", "float": "a number", "string_to_bool": "true or false"}
            found = quoted(one) if not isinstance(one, dict | list) else f"a {type(one).__name__}"
            raise UsageError(f"{where} is {found}; give {wanted.get(kind, 'a value that --help names')}")


def _near(key: str, options: set[str]) -> str:
    close = difflib.get_close_matches(key, sorted(options), n=3, cutoff=0.6)
    return f" (did you mean {', '.join(close)}?)" if close else ""
