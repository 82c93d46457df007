"""Coverage-guided fuzzing of one target with atheris (libFuzzer). How to run it: README.md beside this file."""

from __future__ import annotations

import argparse
import json
import random
import re
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
TARGETS = ("parser", "diagnosers", "leak_guard", "rows")


def fuzz(target: str, options: list[str]) -> None:
    """Fuzz in this process until libFuzzer ends it."""
    import atheris  # pyright: ignore[reportMissingImports]

    sys.path.insert(0, str(HERE))
    with atheris.instrument_imports(include=["fission_grpo"]):
        import targets
    from bend import bent

    def mutate(data: bytes, most: int, seed: int) -> bytes:
        rng = random.Random(seed)
        changed = atheris.Mutate(data, len(data)) if rng.random() < 0.5 else bent(data, rng)
        return (changed if rng.random() < 0.5 else atheris.Mutate(changed, most))[:most]

    atheris.Setup([sys.argv[0], *options], lambda data: targets.run(target, data), custom_mutator=mutate)
    atheris.Fuzz()


def supervised(target: str, work: Path, seconds: int) -> dict[str, object]:
    """Fuzz in a process of its own; what libFuzzer says of it at the end, and the inputs that broke a promise."""
    sys.path.insert(0, str(HERE))
    import targets

    corpus, found = work / "corpus" / target, work / "found" / target
    for folder in (corpus, found):
        folder.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(targets.seeds(target)):
        (corpus / f"seed-{number}").write_bytes(seed)
    before, started = set(found.iterdir()), time.monotonic()
    options = [
        f"-max_total_time={seconds}",
        "-timeout=20",
        "-rss_limit_mb=1500",
        "-max_len=8192",
        "-print_final_stats=1",
    ]
    options += [f"-dict={HERE / 'tokens.dict'}", f"-artifact_prefix={found}/", str(corpus)]
    command = [sys.executable, __file__, "--target", target, "--child", *options]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    log = done.stdout + done.stderr
    (work / f"{target}.log").write_text(log, encoding="utf-8")
    shown = re.findall(r"#\d+\s+\w+\s+cov: (\d+) ft: (\d+) corp: (\d+)", log)
    executed = re.findall(r"stat::number_of_executed_units:\s*(\d+)", log) or re.findall(r"#(\d+)\s", log)
    edges, features, kept = map(int, shown[-1]) if shown else (0, 0, 0)
    return {
        "target": target,
        "seconds": round(time.monotonic() - started),
        "executions": int(executed[-1]) if executed else 0,
        "edges": edges,
        "features": features,
        "corpus": kept,
        "exit": done.returncode,
        "found": sorted(path.name for path in set(found.iterdir()) - before),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", choices=TARGETS, required=True)
    parser.add_argument("--work", type=Path, default=Path("fuzz-work"), help="corpora, findings and logs")
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--child", action="store_true", help="fuzz in this process; used by the command itself")
    args, options = parser.parse_known_args()
    if args.child:
        fuzz(args.target, options)
    else:
        print(json.dumps(supervised(args.target, args.work, args.seconds)), flush=True)


if __name__ == "__main__":
    main()
