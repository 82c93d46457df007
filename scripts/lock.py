"""Write the versions of a pip report as constraints; see `make lock`.

    pip install --dry-run --ignore-installed --report report.json PACKAGES && python scripts/lock.py report.json

torch is left out, as its build differs (CPU, CUDA) from machine to machine; the Makefile names its version. Hashes are
left out, too: pip wants either all of them or none, and torch's differs with the build.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

HEAD = """\
# Versions that `make test` installs. Users of the package have the ranges of pyproject.toml. Renewed by `make lock`.
# Without torch (its version stands in the Makefile), whose builds for CPU and CUDA differ, and so without hashes.
"""


def main() -> int:
    """Print the constraints to standard output."""
    installed = json.loads(Path(sys.argv[1]).read_text())["install"]
    pins = {re.sub(r"[-_.]+", "-", one["metadata"]["name"]).lower(): one["metadata"]["version"] for one in installed}
    left_out = ("torch", "triton", "fission-grpo")
    kept = sorted(name for name in pins if name not in left_out and not name.startswith(("nvidia-", "cuda-")))
    print(HEAD, end="")
    print("\n".join(f"{name}=={pins[name]}" for name in kept))
    return 0


if __name__ == "__main__":
    sys.exit(main())
