"""Options of a command that stand on the command line or in a YAML file, as in trl: read strictly."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import yaml

from fission_grpo.training_tasks import UsageError


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
    options = {action.dest for action in parser._actions} - {"help"}
    rest = list(argv)
    if "--config" in argv:
        at = argv.index("--config")
        if at + 1 == len(argv):
            raise UsageError("--config needs the path of a YAML file")
        rest = argv[:at] + argv[at + 2 :]
        for key in _yaml_keys(argv[at + 1]):
            if key not in options | {"env"}:
                raise UsageError(f"{argv[at + 1]}: unknown key '{key}'{_near(key, options)}; remove or correct it")
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


def _yaml_keys(path: str) -> list[str]:
    try:
        config = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"--config {path}: cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"--config {path}: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(config, dict):
        raise UsageError(f"--config {path}: must be a mapping, one 'key: value' a line")
    return [str(key) for key in config]


def _near(key: str, options: set[str]) -> str:
    close = difflib.get_close_matches(key, sorted(options), n=3, cutoff=0.6)
    return f" (did you mean {', '.join(close)}?)" if close else ""
