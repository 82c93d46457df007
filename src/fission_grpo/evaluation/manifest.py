"""`manifest.json`: what an evaluation evaluated, so that runs are compared only where they can be.

{"version": 1, "name": "qwen3-8b", "tasks": {"kind": "bfcl", "sha256": "...", "count": 800},
 "prompt": {"format": "qwen_fc"}, "decoding": {"temperature": 0.0, "seed": 0},
 "policy": {"model": "Qwen/Qwen3-8B"}, "versions": {"fission-grpo": "0.1.0"}}
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fission_grpo.json_lines import RunFileError
from fission_grpo.json_text import quoted

MANIFEST = "manifest.json"
VERSION = 1
"""Of the file's layout."""

_PARTS = ("tasks", "prompt", "decoding", "policy", "versions")
_ABSENT: Any = object()


@dataclass(frozen=True)
class Manifest:
    """What was evaluated, on what, and how. All values are JSON.

    Args:
        name: what tables call it.
        tasks: the cases: their `kind`, a `sha256` over them, their `count`.
        prompt: how they were put to the policy.
        decoding: how replies were sampled; a `seed` in it may differ between runs that are compared.
        policy: who played; the one thing that is meant to differ.
        versions: of what played a part.
    """

    name: str
    tasks: Mapping[str, Any]
    prompt: Mapping[str, Any]
    decoding: Mapping[str, Any]
    policy: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, Any] = field(default_factory=dict)


def write_manifest(directory: str | Path, manifest: Manifest) -> Path:
    """Write `DIRECTORY/manifest.json` in one go and return its path. Raises ValueError for what is not JSON."""
    path = Path(directory) / MANIFEST
    text = json.dumps({"version": VERSION, **asdict(manifest)}, ensure_ascii=False, indent=1, allow_nan=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_suffix(".json.half")  # a kill between the two lines leaves the old file, never half a new one
    half.write_text(text + "\n", encoding="utf-8")
    half.replace(path)
    return path


def read_manifest(directory: str | Path) -> Manifest:
    """The manifest of a run directory. `policy` and `versions` may be missing.

    Raises:
        RunFileError: naming the file, the field and how to mend it.
    """
    path = Path(directory) / MANIFEST
    try:
        values = json.loads(path.read_bytes().decode("utf-8"))
    except OSError as error:
        raise RunFileError(
            f"{path}: cannot be read ({error.strerror}); give the output directory of a `fission-grpo eval`"
        ) from error
    except (ValueError, RecursionError) as error:
        raise RunFileError(f"{path}: not JSON ({error}); evaluate again, or restore the file") from error
    if not isinstance(values, dict):
        raise RunFileError(f"{path}: must be a JSON object, got {quoted(values)}; evaluate again, or restore the file")
    if values.get("version") != VERSION:
        found = quoted(values["version"]) if "version" in values else "missing"
        raise RunFileError(f"{path}: field 'version' must be {VERSION}, but is {found}; evaluate with this version")
    if not isinstance(values.get("name"), str):
        raise RunFileError(f"{path}: field 'name' must be a string, got {quoted(values.get('name'))}")
    for part in _PARTS:
        value = values.get(part, {} if part in ("policy", "versions") else None)
        if not isinstance(value, dict):
            found = f"got {quoted(value)}" if part in values else "but is missing"
            raise RunFileError(f"{path}: field '{part}' must be an object, {found}; restore it, or evaluate again")
    return Manifest(values["name"], *(values.get(part, {}) for part in _PARTS))


def differences(a: Manifest, b: Manifest) -> list[str]:
    """Every field of tasks, prompt and decoding that differs, with both values; the seed of decoding may.

    Example:
        ["decoding.temperature: 0.0 in A, 1.0 in B"]
    """
    found = []
    for part in ("tasks", "prompt", "decoding"):
        ours, theirs = _flat(part, getattr(a, part)), _flat(part, getattr(b, part))
        for name in dict.fromkeys((*ours, *theirs)):
            if name == "decoding.seed":
                continue
            one, other = ours.get(name, _ABSENT), theirs.get(name, _ABSENT)
            if one != other or isinstance(one, bool) != isinstance(other, bool):
                found.append(f"{name}: {_shown(one, other)} in A, {_shown(other, one)} in B")
    return found


def _flat(name: str, value: Any) -> dict[str, Any]:
    """Leaves by dotted path. Example: `_flat("a", {"b": {"c": 1}})` is {"a.b.c": 1}; `_flat("a", {})` is {}."""
    if isinstance(value, Mapping) and (value or "." not in name):
        return {path: leaf for key, inner in value.items() for path, leaf in _flat(f"{name}.{key}", inner).items()}
    return {name: value}


def _shown(value: Any, other: Any) -> str:
    """A value, quoted; of long texts the part from where they differ."""
    if value is _ABSENT:
        return "absent"
    if not (isinstance(value, str) and isinstance(other, str)) or len(value) <= 40:
        return quoted(value)
    at = next((i for i, (x, y) in enumerate(zip(value, other, strict=False)) if x != y), min(len(value), len(other)))
    return quoted(value[at:] if at < 20 else "..." + value[at - 10 :])
