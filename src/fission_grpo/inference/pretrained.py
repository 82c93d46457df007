"""Model folders and hub ids, and the starter policy of the package: a Qwen3 with a million parameters.

The starter is trained a little on desk tasks. Sampled at T = 1 on held-out tasks it succeeds in 30-60% of them,
recovers from errors in 5-25%, and solves far more within eight tries (measured: 0.417, 0.150 and 0.733;
`benchmarks/archive/starter`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

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


def model_path(name: str) -> str:
    """Return a folder or hub id; "starter" is the starter policy. Raises ValueError for a folder without a model."""
    if name == "starter":
        return str(starter_path())
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not any((folder / file).is_file() for file in ("config.json", "adapter_config.json")):
            raise ValueError(f"model: {name} holds no config.json, so it is no model folder")
        pickled = [path.name for pattern in _PICKLED_WEIGHTS for path in sorted(folder.glob(pattern))]
        if pickled and not any(folder.glob("*.safetensors")):
            raise ValueError(
                f"model: {name} holds its weights as a pickle ({pickled[0]}), which is never loaded, as it may run "
                "code; if you trust it, load it with transformers and save it again (save_pretrained: safetensors)"
            )
        return str(folder)
    is_path = folder.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1
    if is_path or ("/" in name and folder.parent.is_dir()):
        raise ValueError(f"model: the folder {name} does not exist; give a folder, a hub id, or 'starter'")
    return name
