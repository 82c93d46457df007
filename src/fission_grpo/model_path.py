"""Which model a name on the command line stands for."""

from __future__ import annotations

from pathlib import Path

from fission_grpo.starter import starter_path

PICKLED = ("pytorch_model*.bin", "adapter_model*.bin", "model*.pt", "model*.pth")
"""Files of weights that are pickles."""


def model_path(name: str) -> str:
    """A folder or hub id: "starter" is the shipped policy's folder. Raises ValueError where nothing can be there."""
    if name == "starter":
        return str(starter_path())
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not any((folder / file).is_file() for file in ("config.json", "adapter_config.json")):
            raise ValueError(f"model: {name} holds no config.json, so it is no model folder")
        pickled = [path.name for kind in PICKLED for path in sorted(folder.glob(kind))]
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
