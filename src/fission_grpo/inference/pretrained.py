"""Model folders and hub ids, and the starter policy of the package: a Qwen3 with a million parameters.

The starter is trained a little on desk tasks. Sampled at T = 1 on held-out tasks it succeeds in 30-60% of them,
recovers from errors in 5-25%, and solves far more within eight tries (measured: 0.417, 0.150 and 0.733;
`benchmarks/archive/starter`).
"""

from __future__ import annotations

import json
import os
import socket
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from fission_grpo.core.checkpoints import MANIFEST, find_corruption, numbered
from fission_grpo.core.json_io import walk_json
from fission_grpo.core.terminal import get_logger, warn_once

_log = get_logger(__name__)

_OUR_FOLDERS = ("models/", "runs/")  # of this repository's commands; nobody's names on the hub [ours]
_PICKLED_WEIGHTS = ("pytorch_model*.bin", "adapter_model*.bin", "model*.pt", "model*.pth")


def starter_path() -> Path:
    """Return the folder of the starter policy: `model.safetensors`, `config.json`, tokenizer and `training.json`.

    Raises:
        FileNotFoundError: the package was installed without it.
    """
    path = Path(__file__).parent / "starter_policy"
    if not (path / "model.safetensors").is_file():
        command = f"python -m fission_grpo.recipes.starter_policy.train --output {path}"
        raise FileNotFoundError(f"no starter policy in {path}; make one with: {command}")
    return path


def load_starter(path: Path | None = None) -> tuple[Any, Any]:
    """Load model (float32, on the CPU) and tokenizer of the starter policy, or of another folder of its format."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = path or starter_path()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model, AutoTokenizer.from_pretrained(folder)


def load_model(name: str, tokenizer: Any = None, dtype: str | None = None) -> tuple[Any, Any]:
    """Load a model and, unless given, its tokenizer: on a GPU in the saved dtype, on a CPU in float32 (faster on
    most); or in another `dtype`, such as "bfloat16".

    The random state is kept. Raises ValueError if there is no such model, or it cannot be loaded.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = model_path(name)
    placement: dict[str, Any] = {"dtype": torch.float32}
    if torch.cuda.is_available():
        placement = {"dtype": "auto", "device_map": f"cuda:{torch.cuda.current_device()}"}
    with torch.random.fork_rng(), loading_model(path):
        refuse_hub_kernels(path)
        placement |= {} if dtype is None else {"dtype": dtype}
        model = AutoModelForCausalLM.from_pretrained(path, use_safetensors=True, trust_remote_code=False, **placement)
        return model, tokenizer or AutoTokenizer.from_pretrained(path, trust_remote_code=False)


def model_path(name: str) -> str:
    """Return a folder or hub id; "starter" is the starter policy. Raises ValueError for a folder without a model.

    A run that was stopped has no model but checkpoints: it is the newest complete one, which a warning names. Where
    the hub cannot be found, only its cache is used from then on.
    """
    if name == "starter":
        return str(starter_path())
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not _holds_model(folder):
            folder = _newest_checkpoint(folder)
            warn_once(_log, f"{name} holds no finished model; its newest complete checkpoint is used: {folder}")
        pickled = [path.name for pattern in _PICKLED_WEIGHTS for path in sorted(folder.glob(pattern))]
        if pickled and not any(folder.glob("*.safetensors")):
            raise ValueError(
                f"model: {name} holds its weights as a pickle ({pickled[0]}), which is never loaded, as it may run "
                "code; if you trust it, load it with transformers and save it again (save_pretrained: safetensors)"
            )
        return str(folder)
    is_path = folder.is_absolute() or name.startswith((".", "~", *_OUR_FOLDERS)) or name.count("/") > 1
    if is_path or ("/" in name and folder.parent.is_dir()):
        raise ValueError(
            f"model: the folder {name} does not exist; give a folder, a hub id, or 'starter'. If a file of configs/ "
            "names it, the first lines of that file say which command makes it"
        )
    _use_cache_without_network()
    return name


def _holds_model(folder: Path) -> bool:
    return any((folder / file).is_file() for file in ("config.json", "adapter_config.json"))


def _newest_checkpoint(run: Path) -> Path:
    """The checkpoint of the highest step that holds a model and is as it was written."""
    problems = []
    for checkpoint in reversed(numbered(run)):
        problem = None if _holds_model(checkpoint) else f"{checkpoint} holds no config.json"
        if (checkpoint / MANIFEST).exists():
            problem = find_corruption(checkpoint) or problem
        if problem is None:
            return checkpoint
        problems.append(problem)
    if problems:
        raise ValueError(f"model: {run} holds no finished model and no complete checkpoint: {problems[0]}")
    raise ValueError(
        f"model: {run} holds no config.json and no checkpoint-*, so it is no model folder. If its run stopped before "
        "the first checkpoint, give its `fission-grpo train` command again; otherwise name the folder of the model"
    )


def _use_cache_without_network() -> None:
    """Switch the hub's client to its cache if its host's name cannot be resolved: it would retry for minutes."""
    host = urlsplit(os.environ.get("HF_ENDPOINT") or "https://huggingface.co").hostname
    if getproxies():  # they resolve names
        return
    try:
        socket.getaddrinfo(host, 443)
    except socket.gaierror as error:
        from huggingface_hub import constants

        if not constants.HF_HUB_OFFLINE:
            _log.warning("%s cannot be found (%s): only cached models are used", host, error.strerror)
            constants.HF_HUB_OFFLINE = True


_JSON_FILES = ("*config.json", "*.index.json", "special_tokens_map.json", "tokenizer.json", "chat_template.json")


@contextmanager
def loading_model(path: str) -> Iterator[None]:
    """Turn what the libraries raise while they load a model or tokenizer into a ValueError that names it.

    Errors that come from elsewhere pass. A file that is damaged is named.
    """
    try:
        yield
    except Exception as error:  # tokenizers raises a bare Exception
        frames = [frame.name for frame in traceback.extract_tb(error.__traceback__)]
        if "from_pretrained" not in frames:
            raise
        problem = " ".join(str(error).split())[:300]
        damaged = _damaged_file(Path(path))
        where = f"model: {path}" if damaged is None else f"model: {damaged} is damaged, so {path}"
        raise ValueError(f"{where} cannot be loaded ({type(error).__name__}: {problem})") from error


def _damaged_file(folder: Path) -> Path | None:
    """The first file of a model folder that holds no JSON object, or no safetensors; None if all can be read."""
    from safetensors import SafetensorError, safe_open

    for path in sorted({path for pattern in _JSON_FILES for path in folder.glob(pattern)}):
        try:
            if not isinstance(json.loads(path.read_text(encoding="utf-8")), dict):
                return path
        except (OSError, ValueError, RecursionError):
            return path
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, "pt"):
                pass
        except (OSError, SafetensorError):
            return path
    return None


def refuse_hub_kernels(path: str, revision: str | None = None, chosen: str | None = None) -> None:
    """Raise ValueError if a model's config.json names an attention kernel of the hub, which is code to be downloaded.

    transformers would load it without `trust_remote_code`. `chosen` is the attention implementation that the user
    has named, which is trusted.
    """
    from transformers import PreTrainedConfig

    try:
        config, _ = PreTrainedConfig.get_config_dict(path, revision=revision)
    except (OSError, ValueError, RecursionError):  # `from_pretrained` has the same reason, and says it
        return
    for place, kernel in walk_json(config):
        key = next((key for key in place[-2:] if str(key).endswith("attn_implementation")), None)
        if key and isinstance(kernel, str) and "/" in kernel and kernel != chosen:
            raise ValueError(
                f"model: {path}, config.json, field '{key}' names {kernel!r}, an attention kernel of the hub, "
                "which is code; remove the field, or set attn_implementation to it if you trust it"
            )
