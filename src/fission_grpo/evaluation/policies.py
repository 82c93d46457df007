"""Load the policy of an evaluation, a local model or an endpoint, with its description for the manifest."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from fission_grpo.core.errors import RunFileError
from fission_grpo.core.terminal import show
from fission_grpo.inference.endpoint import EndpointOptions
from fission_grpo.inference.pretrained import load_model, model_path

HASHED_BYTES = 1 << 20  # read at either end of a weight file for its fingerprint [ours]
PACKAGES = ("fission-grpo", "bfcl-eval", "agentdojo", "transformers", "torch", "trl", "openai")


@dataclass(frozen=True)
class Sampling:
    """How replies are sampled; see `LocalPolicy`."""

    temperature: float = 0.0
    max_new_tokens: int = 512
    seed: int = 0


@dataclass(frozen=True)
class LoadedPolicy:
    """A policy, and for the manifest its `description` and the `prompt` template that it renders dialogues with."""

    policy: Any
    description: Mapping[str, Any]
    prompt: Mapping[str, Any]


def load_local_policy(
    name: str,
    sampling: Sampling,
    batch_size: int,
    template_options: Mapping[str, Any] | None = None,
    tokenizer: Any = None,
    dtype: str | None = None,
) -> LoadedPolicy:
    """Load a transformers model into this process, as `load_model` does."""
    path = model_path(name)  # once: another checkpoint may come
    model, tokenizer = load_model(path, tokenizer, dtype)
    weights = fingerprint(Path(path))
    description = {"kind": "local", "model": name, "weights": weights, "dtype": str(model.dtype)}
    description["step"], description["tokens"] = read_training_progress(Path(path))
    return _local(model, tokenizer, sampling, batch_size, template_options, description)


def local_policy(
    model: Any,
    tokenizer: Any,
    sampling: Sampling,
    batch_size: int,
    template_options: Mapping[str, Any] | None = None,
    progress: Mapping[str, int] | None = None,
) -> LoadedPolicy:
    """The policy of a model that is loaded already. Without a tokenizer, that of the model's folder is loaded.

    `progress`: training steps (`step`) and sampled tokens (`tokens`) behind the model.
    """
    name = str(getattr(model.config, "name_or_path", "") or type(model).__name__)
    if tokenizer is None:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)  # of a processor
    description = {"kind": "local", "model": name, "weights": _digest(model), "dtype": str(model.dtype)}
    return _local(model, tokenizer, sampling, batch_size, template_options, description | dict(progress or {}))


def _local(
    model: Any,
    tokenizer: Any,
    sampling: Sampling,
    batch_size: int,
    template_options: Mapping[str, Any] | None,
    description: Mapping[str, Any],
) -> LoadedPolicy:
    from fission_grpo.inference.local import LocalPolicy

    how = (sampling.temperature, sampling.max_new_tokens, batch_size, sampling.seed, template_options)
    options = {"chat_template_kwargs": dict(template_options)} if template_options else {}
    template = {"template_sha256": _hash_template(tokenizer), **options}
    return LoadedPolicy(LocalPolicy(model, tokenizer, *how), description, template)


@contextmanager
def connect_endpoint(
    name: str, url: str | None, options: EndpointOptions, tokenizer_name: str | None = None
) -> Iterator[LoadedPolicy]:
    """Connect to a model behind an OpenAI-compatible endpoint, and request a short reply to check it.

    `url` None: OPENAI_BASE_URL, else OpenAI's own. The tokenizer (folder or hub id) renders dialogues for raw
    completions.
    """
    from fission_grpo.inference.endpoint import EndpointPolicy

    tokenizer = None
    if tokenizer_name is not None:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(model_path(tokenizer_name), trust_remote_code=False)
    with EndpointPolicy(name, url, options, tokenizer) as policy:
        policy.check()
        if not options.raw:
            show(f"endpoint: {policy.probe_tools()}", error=True)
        description = {"kind": "endpoint", "model": name, "url": policy.url}
        template = "the endpoint's" if tokenizer is None else _hash_template(tokenizer)
        yield LoadedPolicy(policy, description, {"template_sha256": template, "raw": options.raw})


def versions() -> dict[str, str]:
    """Versions of Python and of the packages in `PACKAGES` that are installed."""
    installed = {"python": platform.python_version()}
    for name in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            installed[name] = metadata.version(name)
    return installed


def read_training_progress(folder: Path) -> tuple[int, int]:
    """Training steps and sampled tokens behind a run directory's model; zeros if it has no training log."""
    path = folder / "trainer_state.json"
    if not path.is_file():
        return 0, 0
    try:
        history = json.loads(path.read_text(encoding="utf-8-sig"))["log_history"]
    except (ValueError, KeyError, TypeError) as error:
        raise RunFileError(f"{path}: not a training log ({error}); restore it, or delete it") from error
    steps = [row["step"] for row in history if "step" in row]
    tokens = [row["fission/generated_tokens"] for row in history if "fission/generated_tokens" in row]
    return int(max(steps, default=0)), int(max(tokens, default=0))


def fingerprint(folder: Path) -> str | None:
    """A hash of the names, sizes and both ends of the weight files, which avoids reading all. None for a hub id."""
    if not folder.is_dir():
        return None
    digest = hashlib.sha256()
    for path in sorted([*folder.glob("*model*.safetensors"), *folder.glob("*model*.bin")]):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}\n".encode())
        with path.open("rb") as file:
            digest.update(file.read(HASHED_BYTES))
            file.seek(max(0, size - HASHED_BYTES))
            digest.update(file.read())
    return digest.hexdigest()[:16]


def _digest(model: Any) -> str:
    """A hash of two sums over each parameter, which any update changes; cheaper than one of all bytes."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        values = parameter.detach().float()
        digest.update(f"{name} {values.sum().item()} {values.abs().sum().item()}\n".encode())
    return digest.hexdigest()[:16]


def _hash_template(tokenizer: Any) -> str | None:
    text = getattr(tokenizer, "chat_template", None)
    return hashlib.sha256(str(text).encode()).hexdigest()[:16] if text else None
