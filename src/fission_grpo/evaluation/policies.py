"""Who plays an evaluation: a local model or an endpoint, and what a manifest says of it."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from fission_grpo.inference.endpoint import EndpointOptions
from fission_grpo.inference.pretrained import model_path

ENDS = 1 << 20
"""Bytes read at either end of a file of weights for its fingerprint. [ours]"""


PACKAGES = ("fission-grpo", "bfcl-eval", "transformers", "torch", "trl", "openai")


@dataclass(frozen=True)
class Sampling:
    """How replies are sampled; see `LocalPolicy`."""

    temperature: float = 0.0
    max_new_tokens: int = 512
    seed: int = 0


@dataclass(frozen=True)
class Player:
    """A policy, and what a manifest says of it: `described` is who it is, `prompt` how it renders dialogues."""

    policy: Any
    described: Mapping[str, Any]
    prompt: Mapping[str, Any]


def local_player(name: str, sampling: Sampling, batch_size: int) -> Player:
    """A transformers model in this process: on a GPU in its own dtype, on a CPU in float32 (bfloat16 crawls there).

    Raises:
        ValueError: there is no such model.
        ModuleNotFoundError: transformers or torch is missing.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from fission_grpo.inference.local import LocalPolicy

    path, gpu = model_path(name), torch.cuda.is_available()
    where: Any = {"dtype": "auto", "device_map": "cuda"} if gpu else {"dtype": torch.float32}
    model = AutoModelForCausalLM.from_pretrained(path, use_safetensors=True, trust_remote_code=False, **where)
    tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    policy = LocalPolicy(
        model, tokenizer, sampling.temperature, sampling.max_new_tokens, batch_size=batch_size, seed=sampling.seed
    )
    step, tokens = trained(Path(path))
    described = {"kind": "local", "model": name, "weights": fingerprint(Path(path)), "dtype": str(model.dtype)}
    described |= {"step": step, "tokens": tokens}
    return Player(policy, described, {"template_sha256": _template(tokenizer)})


@contextmanager
def server_player(
    name: str, url: str | None, options: EndpointOptions, tokenizer_name: str | None = None
) -> Iterator[Player]:
    """A model behind an OpenAI-compatible endpoint, which is asked for a short reply first.

    Args:
        name: of the model there.
        url: base URL; None: OPENAI_BASE_URL, else OpenAI's own.
        options: of the requests.
        tokenizer_name: folder or hub id; renders dialogues for raw completions.

    Raises:
        EndpointError: it does not answer, or refuses; the message says what to mend.
        ModuleNotFoundError: the `openai` package is missing.
    """
    from fission_grpo.inference.endpoint import EndpointPolicy

    tokenizer = None
    if tokenizer_name is not None:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(model_path(tokenizer_name), trust_remote_code=False)
    with EndpointPolicy(name, url, options, tokenizer) as policy:
        policy.check()
        described = {"kind": "endpoint", "model": name, "url": policy.url}
        template = "the endpoint's" if tokenizer is None else _template(tokenizer)
        yield Player(policy, described, {"template_sha256": template, "raw": options.raw})


def versions() -> dict[str, str]:
    """Of Python and of the packages that play a part, where they are installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def trained(folder: Path) -> tuple[int, int]:
    """Training steps and sampled tokens behind a run directory's model, zeros if it has no training log.

    Raises:
        RunFileError: there is one, and it is damaged.
    """
    state = folder / "trainer_state.json"
    history = json.loads(state.read_text(encoding="utf-8"))["log_history"] if state.is_file() else ()
    steps = [row["step"] for row in history if "step" in row]
    tokens = [row["fission/generated_tokens"] for row in history if "fission/generated_tokens" in row]
    return int(max(steps, default=0)), int(max(tokens, default=0))


def fingerprint(folder: Path) -> str | None:
    """Tells weights apart without reading all of them: names, sizes, both ends of every file. None for a hub id."""
    if not folder.is_dir():
        return None
    digest = hashlib.sha256()
    for path in sorted(path for ending in ("safetensors", "bin") for path in folder.glob(f"*model*.{ending}")):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}\n".encode())
        with path.open("rb") as file:
            digest.update(file.read(ENDS))
            file.seek(max(0, size - ENDS))
            digest.update(file.read())
    return digest.hexdigest()[:16]


def _template(tokenizer: Any) -> str | None:
    text = getattr(tokenizer, "chat_template", None)
    return hashlib.sha256(str(text).encode()).hexdigest()[:16] if text else None
