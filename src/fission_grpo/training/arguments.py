"""Strict reading of the command line and of the YAML file of `--config`, on top of `trl.TrlParser`."""

from __future__ import annotations

import difflib
import json
import math
import os
import re
from argparse import ArgumentTypeError
from collections.abc import Mapping
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from fission_grpo.core.errors import UsageError
from fission_grpo.core.json_io import quoted
from fission_grpo.fission.options import REMOVED, RENAMED

# Options of text that also take true or false: TRL's former values, "the newest checkpoint", "all parameters".
_ALSO_FLAGS = frozenset({"fsdp", "resume_from_checkpoint", "scale_rewards"})
# Mappings that may also be the name of a file, or that are read elsewhere.
_MAPPING_OR_PATH = frozenset({"accelerator_config", "deepspeed", "feedback_model", "fsdp_config"})
_WANTED = {"int": "a whole number", "float": "a number", "string_to_bool": "true or false", "_mapping": "a mapping"}
# What YAML 1.1 reads otherwise than JSON: yes, no, on, off as truth values, 010 in base 8, 12:30 in base 60.
_READ_OTHERWISE = re.compile(r"(?i:yes|no|on|off)|[-+]?0[0-9_]+|[^:\n]*+:.*")
_TAG = "tag:yaml.org,2002:"


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
    types = _types(parser)
    for name, kind in types.items():
        if dict in _members(kind) and name not in _MAPPING_OR_PATH:
            actions[name].type = _mapping
    names = sorted(actions.keys() - {"help"})
    rest, path, in_file = list(argv), "", {}
    if "--config" in argv:
        at = argv.index("--config")
        if at + 1 == len(argv):
            raise UsageError("--config needs the path of a YAML file")
        path, rest = argv[at + 1], argv[:at] + argv[at + 2 :]
        in_file = _read_config(path, actions, types)
        parser.set_defaults_with_config(**in_file)
    for word in parser.parse_known_args(rest)[1]:
        if word.startswith("--"):
            key = word.removeprefix("--").split("=")[0]
            name = key.replace("-", "_")
            if RENAMED.get(name) in names:
                raise UsageError(f"--{key} is now called --{RENAMED[name]}")
            raise UsageError(f"unknown option '--{key}'{_similar(name, names)}; see --help")
        raise UsageError(f"unexpected argument '{word}'; options are --name value, see --help")
    try:
        return parser.parse_args_into_dataclasses(args=rest)
    except ValueError as error:
        name = str(error).split(" ")[0]
        if name not in in_file or any(word.split("=")[0].replace("-", "_") == f"__{name}" for word in rest):
            raise
        raise UsageError(f"{path}: {error}") from error


def _mapping(text: str) -> dict[str, Any]:
    """A mapping on the command line, as JSON."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ArgumentTypeError(f"{quoted(text)} is not JSON ({error}); write it like '{{\"a\": 1}}'") from None
    if not isinstance(value, dict):
        raise ArgumentTypeError(f"{quoted(text)} is not a mapping; write it like '{{\"a\": 1}}'")
    return value


def _types(parser: Any) -> dict[str, Any]:
    """The declared type of every option. `HfArgumentParser` reduces those in `fields` to one that argparse knows."""
    return {name: kind for group in parser.dataclass_types for name, kind in get_type_hints(group).items()}


class _Loader(yaml.SafeLoader):
    """Refuses a key that occurs twice, of which YAML would take the last, and reads 1e-6 as a number, as JSON does.

    Keys are words or whole numbers, as the file has them: `on` is no truth value.
    """

    def check_keys(self, node: yaml.MappingNode) -> None:
        """Raise UsageError for a key that occurs twice."""
        lines: dict[str, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if isinstance(key, yaml.ScalarNode) and key.value in lines:
                raise UsageError(f"line {line}: '{key.value}' is given twice, first in line {lines[key.value]}")
            lines[str(key.value)] = line

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        self.check_keys(node)
        self.flatten_mapping(node)
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != _TAG + "int":
                key.tag = _TAG + "str"
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def _read_config(path: str, actions: Mapping[str, Any], types: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a YAML file, by name. `env`, as in TRL, holds environment variables, which are set."""
    try:
        loader = _Loader(Path(path).read_text(encoding="utf-8-sig"))
        root = loader.get_single_node()
        if not isinstance(root, yaml.MappingNode):
            raise UsageError(": must be a mapping, one 'key: value' a line")
        loader.check_keys(root)
        loader.flatten_mapping(root)
        for key, node in root.value:
            if isinstance(node, yaml.MappingNode) and key.value != "env":
                _check_words(str(key.value), node)
        given = {str(key.value): (node, loader.construct_object(node, deep=True)) for key, node in root.value}
    except OSError as error:
        raise UsageError(f"--config {path}: cannot be read ({error.strerror})") from error
    except UsageError as error:
        text = str(error)
        raise UsageError(f"--config {path}{text if text[0] == ':' else f', {text}; keep one'}") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise UsageError(f"--config {path}: not YAML: {' '.join(str(error).split())}") from error
    names = sorted(actions.keys() - {"help"})
    values = {}
    for key, (node, value) in given.items():
        if key == "env":
            if not isinstance(value, dict):
                raise UsageError(f"{path}: env must be a mapping of environment variables, got {quoted(value)}")
            for name, inner in node.value:
                if not isinstance(inner, yaml.ScalarNode):
                    raise UsageError(
                        f"{path}: env.{name.value} must be one word or number, as environment variables are"
                    )
                if not name.value or set("=\0") & {*name.value} or "\0" in inner.value:
                    raise UsageError(
                        f"{path}: env.{quoted(name.value)} cannot be set; a name has letters, digits and _"
                    )
                os.environ[str(name.value)] = _word(inner)
            continue
        if key not in names:
            if RENAMED.get(key) in names:
                raise UsageError(f"{path}: {key} is now called {RENAMED[key]}")
            raise UsageError(f"{path}: unknown key '{key}'{_similar(key, names)}; remove or correct it")
        values[key] = _checked(f"{path}: {key}", value, node, actions[key], types.get(key, str))
    return values


def _check_words(where: str, mapping: yaml.MappingNode) -> None:
    """Refuse values inside a mapping that YAML reads as another thing than their words; dates become text, as in JSON.

    The type that an entry of a mapping should have is not known here, so that a word cannot be taken as it stands.
    """
    waiting: list[tuple[str, yaml.Node]] = [(where, mapping)]
    seen: set[int] = set()
    while waiting:
        place, node = waiting.pop()
        if id(node) in seen:  # an alias
            continue
        seen.add(id(node))
        if isinstance(node, yaml.MappingNode):
            waiting += [(f"{place}.{key.value}", inner) for key, inner in node.value]
        elif isinstance(node, yaml.SequenceNode):
            waiting += [(f"{place}[{k}]", inner) for k, inner in enumerate(node.value)]
        elif node.tag == _TAG + "timestamp":
            node.tag = _TAG + "str"
        elif node.tag in (_TAG + "bool", _TAG + "int", _TAG + "float") and _READ_OTHERWISE.fullmatch(node.value):
            meant = json.dumps(yaml.safe_load(node.value))
            raise UsageError(
                f": {place} is {node.value}, which YAML reads as {meant}; write {meant}, or quote it: '{node.value}'"
            )


def _word(node: yaml.Node) -> str:
    """The text of a value as the file has it: YAML reads the words no, off, 010 and 12:30 as something else."""
    return str(node.value) if isinstance(node, yaml.ScalarNode) else ""


def _checked(where: str, value: Any, node: yaml.Node, action: Any, kind: Any) -> Any:
    """A value of the file, checked by the declared type of its option; argparse checks strings only.

    Raises:
        UsageError: the value has the wrong type.
    """
    kinds = _members(kind)
    if isinstance(value, dict) and dict in kinds:
        number = next((key for key in value if not isinstance(key, str)), None)
        if number is not None:
            raise UsageError(f"{where} has the key {number}; keys are the names of arguments, such as in {{name: 1}}")
        return value
    if value is None:
        if type(None) in kinds or action.default is None:
            return None
        raise UsageError(f"{where} is empty; give it a value, or remove the line")
    if isinstance(value, list) and (list in kinds or action.nargs in ("+", "*")):
        items = next((get_args(one) for one in (kind, *get_args(kind)) if get_origin(one) is list), ())
        inner = _members(items[0]) if items else {Any}
        return [_scalar(where, item, of, action, inner) for item, of in zip(value, node.value, strict=True)]
    scalar = _scalar(where, value, node, action, kinds)
    return [scalar] if list in kinds and str not in kinds else scalar


def _members(kind: Any) -> set[Any]:
    """The types that a declared type allows. Example: `dict[str, Any] | str | None` gives {dict, str, NoneType}."""
    if get_origin(kind) in (Union, UnionType):
        return set().union(*map(_members, get_args(kind)))
    if get_origin(kind) is Literal:
        return set(map(type, get_args(kind)))
    return {get_origin(kind) or kind}


def _scalar(where: str, value: Any, node: yaml.Node, action: Any, kinds: set[Any]) -> Any:
    """A word or number, checked; a word that YAML reads as another type is taken as the file has it."""
    word = _word(node)
    if not isinstance(node, yaml.ScalarNode):
        raise UsageError(f"{where} is a {type(value).__name__}; give a value that --help names")
    if value is None:
        raise UsageError(f"{where} has an empty item; remove it, or quote '{word}'")
    choices = [getattr(choice, "value", choice) for choice in action.choices or ()]
    if choices:
        chosen = next((choice for choice in (value, word, word.lower()) if choice in choices), None)
        if chosen is None:
            raise UsageError(f"{where} is {quoted(word or value)}; give one of {', '.join(map(str, choices))}")
        return chosen
    if str in kinds and not isinstance(value, str):
        if isinstance(value, bool) and not (bool in kinds or action.dest in _ALSO_FLAGS):
            known = f"YAML reads the word {word} as {json.dumps(value)}"
            raise UsageError(f"{where} is {json.dumps(value)}, as {known}; to mean the word, quote it: '{word}'")
        if isinstance(value, bool):
            return value
        if type(value) not in kinds:
            value = word
    if isinstance(value, bool) or (isinstance(value, float) and not math.isfinite(value)):
        word = str(value)
    convert = type(value) if str in kinds and not isinstance(value, str | bool) else action.type
    try:  # a number by its word, as on the command line
        converted = convert(word) if convert is not None else value
    except (ValueError, TypeError, ArgumentTypeError):
        wanted = _WANTED.get(getattr(convert, "__name__", ""), "a value that --help names")
        raise UsageError(f"{where} is {quoted(value if isinstance(value, bool) else word)}; give {wanted}") from None
    return value if isinstance(value, bool) else converted


def _similar(key: str, names: list[str]) -> str:
    if key in REMOVED:
        return f" (it was removed: it {REMOVED[key]})"
    close = difflib.get_close_matches(key, names, n=3, cutoff=0.6)
    return f" (did you mean {', '.join(close)}?)" if close else ""
