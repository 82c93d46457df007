"""Kill a training run with SIGKILL again and again, resume it each time, and compare with a run left in peace.

    OMP_NUM_THREADS=1 python benchmarks/chaos/run.py --output benchmarks/chaos --work /tmp/chaos

Both runs are `fission-grpo train` on the built-in tasks with the shipped starter policy. Every start is a process of
its own; to save minutes of imports it is forked from this one, which has imported torch and trl but not used them.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import random
import re
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests" / "support"))

from fission_grpo.training.checkpoint_files import (  # noqa: E402
    MANIFEST,
    STAGING,
    find_corruption,
    numbered,
)

STEPS = int(os.environ.get("CHAOS_STEPS", "160"))
OPTIONS = f"""--config {ROOT}/configs/desk_fission.yaml --num_tasks 24 --max_steps {STEPS} --save_steps 2
--save_total_limit 2 --logging_steps 3 --per_device_train_batch_size 8 --gradient_accumulation_steps 1
--num_generations 4 --num_recovery_generations 4 --max_completion_length 64 --max_tool_calling_iterations 2
--learning_rate 5e-5 --recovery_ratio 0.34 --buffer_order random --feedback shuffled:rules
--disable_tqdm true --beta 0""".split()
"""Steps of well under a second, an epoch every 12 explore cycles, a log every 3 and a save every 2 steps."""
LONGEST = 12.0
"""Seconds after which a run is killed at the latest, unless a save was to be hit."""
FOUND = re.compile(
    r"removed$|moved there$|NOT resumed|written after the checkpoint|which is not resumed|was at its end"
)
AIMS = ("rotation", "final", "exit")
"""What `--runs` aims at: the deletion of an old checkpoint, the save of the final model, all after the last save."""


@dataclass(frozen=True)
class Kill:
    """One SIGKILL.

    `aim` is "any" moment, a "save", or its "end" (manifest, rename, deletion of an older checkpoint), or of `AIMS`;
    `seconds` since the process began; `step` the last one it logged, None before the first; `phase` what it was doing;
    `left` the entries of `.saving` then; `checkpoints` those in their place; `next_start` what the next start's log
    said of it.
    """

    number: int
    aim: str
    seconds: float
    step: int | None
    phase: str
    left: list[str]
    checkpoints: list[str]
    next_start: list[str]


def start(folder: Path, log: Path) -> int:
    """Fork a process that trains in `folder`, resuming if there is something to resume; returns its id."""
    resume = ["--resume_from_checkpoint", "true"] if numbered(folder) or _whole_aside(folder) else []
    process = os.fork()
    if process:
        return process
    try:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        from fission_grpo.cli.train import train_command

        code = train_command([*OPTIONS, "--output_dir", str(folder), *resume])
        sys.stdout.flush()
        os._exit(code)
    except BaseException:  # noqa: BLE001 - whatever it is, this process must not go on as its parent would
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)


def _ending(folder: Path) -> bool:
    """Whether a save is at its manifest, or at deleting an older checkpoint."""
    try:
        left = list((folder / STAGING).iterdir())
    except FileNotFoundError:
        return False
    return any(path.name.startswith("deleted-") or (path / (MANIFEST + ".tmp")).exists() for path in left)


def _whole_aside(folder: Path) -> bool:
    return any(True for _ in (folder / STAGING).glob(f"checkpoint-*/{MANIFEST}"))


def ended(process: int) -> int | None:
    """The exit status of a process that has ended, None while it runs."""
    found, status = os.waitpid(process, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if found else None


def until(process: int, moment: Callable[[], bool]) -> int | None:
    """Wait for a moment; returns the exit status if the process ends before it."""
    while not moment():
        if (code := ended(process)) is not None:
            return code
        time.sleep(0.001)
    return None


def _moment(aim: str, folder: Path) -> Callable[[], bool]:
    """Whether the moment has come at which a kill is aimed."""
    staging = folder / STAGING
    if aim == "save":
        return staging.is_dir
    if aim == "end":
        return lambda: _ending(folder)
    if aim == "rotation":
        return lambda: any(staging.glob("deleted-*"))
    return (staging / "model").is_dir if aim == "final" else (folder / f"checkpoint-{STEPS}").is_dir


def disturbed(
    folder: Path, logs: Path, wanted: int, seed: int, ends: float, told: Callable[[Kill], None], aimed: bool = False
) -> list[Kill]:
    """Train with `wanted` kills (fewer if the run is over before), then to the end. RuntimeError if a start fails."""
    draw, kills, pending = random.Random(seed), [], None
    while True:
        log, began = logs / f"start-{len(kills)}.txt", time.monotonic()
        process = start(folder, log)
        aim = "any" if draw.random() < 0.55 else "save"
        if ends and draw.random() < ends:
            aim = "end"
        aim = draw.choice(AIMS) if aimed else aim
        is_late = (folder / f"checkpoint-{STEPS}").is_dir()  # the whole start is after the last save
        moment, pause = draw.uniform(0.0, LONGEST), draw.uniform(0.0, draw.choice((0.05, 0.25)))
        if len(kills) == wanted:
            code = until(process, lambda: False)
        elif aim == "any":
            code = until(process, lambda began=began, moment=moment: time.monotonic() - began >= moment)
        elif aim == "exit" and is_late:
            code = until(process, lambda began=began, moment=moment: time.monotonic() - began >= moment / 2)
        else:  # `.saving` may be left of the last kill: a save is what appears after training has begun
            code, come = None, _moment(aim, folder)
            if aim not in AIMS:
                code = until(process, lambda log=log: "step " in _text(log))
            elif aim != "exit":
                code = until(process, lambda come=come: not come())
            code = until(process, come) if code is None else code
            time.sleep(pause if aim in ("save", "exit") else pause / 20)
        text = _text(log)
        if pending is not None:
            kills[-1] = Kill(**{**asdict(pending), "next_start": [x for x in text.splitlines() if FOUND.search(x)]})
            told(kills[-1])
        if code == 0:
            return kills
        if code is not None:
            raise RuntimeError(f"start {len(kills)} ended with {code} after {len(kills)} kills:\n{text[-3000:]}")
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        pending = _kill(len(kills) + 1, aim, time.monotonic() - began, _text(log), folder)
        kills.append(pending)


def _kill(number: int, aim: str, seconds: float, log: str, folder: Path) -> Kill:
    steps = re.findall(r"^step (\d+)/", log, re.M)
    staging = folder / STAGING
    left = sorted(path.name for path in staging.iterdir()) if staging.is_dir() else []
    files = [path.name for path in staging.glob("checkpoint-*/*")]
    phase = "training" if steps else "starting"
    if any(name.startswith("deleted-") for name in left):
        phase = "deleting an old checkpoint"
    if any(name.startswith("checkpoint-") for name in left):
        phase = "saving: all written" if MANIFEST in files else f"saving: {len(files)} files begun"
    if "model" in left:
        phase = "saving the final model"
    there = [path.name for path in numbered(folder)]
    if phase == "training" and f"checkpoint-{STEPS}" in there:
        phase = "after the last save"
    return Kill(number, aim, round(seconds, 2), int(steps[-1]) if steps else None, phase, left, there, [])


def _text(path: Path) -> str:
    return path.read_text(errors="replace") if path.exists() else ""


def compared(peace: Path, chaos: Path) -> dict[str, Any]:
    """What the two runs do not share: nothing, if all is well."""
    from resume_support import differences

    def instances(run: Path) -> list[tuple[Any, ...]]:
        events = [json.loads(line) for line in (run / "fission.jsonl").read_text().splitlines()]
        return [(one["event"], one.get("id"), one.get("step")) for one in events if one["event"] != "tools"]

    undisturbed, killed = instances(peace), instances(chaos)
    lost, more = Counter(undisturbed) - Counter(killed), Counter(killed) - Counter(undisturbed)
    faults = [
        fault for run in (peace, chaos) for path in numbered(run) if (fault := find_corruption(path)) is not None
    ]
    first, second = final_files(peace), final_files(chaos)
    different = [name for name in sorted({*first, *second}) if first.get(name) != second.get(name)]
    return {
        "different": differences(peace, chaos, f"checkpoint-{STEPS}") + different,
        "compared": "of the last checkpoint: weights, optimizer, scheduler, random states, buffer, displaced rows, "
        "sources, metrics since the last log, trainer state with log_history (but times); fission.jsonl byte by byte; "
        "every file beside the checkpoints but those that hold the folder's name, trainer_state.json without times",
        "events": dict(Counter(event for event, *_ in undisturbed)),
        "instances_lost": sum(lost.values()),
        "instances_doubled": sum(more.values()),
        "same_order": undisturbed == killed,
        "faults_in_checkpoints": faults,
    }


def final_files(run: Path) -> dict[str, Any]:
    """What a run leaves beside its checkpoints, by name."""
    from resume_support import without_times

    own = ("README.md", "training_args.bin", "fission_run.json")  # they hold the folder's name, or a random one
    files: dict[str, Any] = {
        path.name: path.read_bytes() for path in run.iterdir() if path.is_file() and path.name not in own
    }
    state = without_times(json.loads(files.pop("trainer_state.json", b"{}")))
    places = ("best_model_checkpoint",)
    checkpoints = [path.name for path in numbered(run)]
    return {**files, "state": {k: v for k, v in state.items() if k not in places}, "checkpoints": checkpoints}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "chaos", help="where result.json goes")
    parser.add_argument("--work", type=Path, required=True, help="folder of the two runs; emptied first")
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ends", type=float, default=0.0, help="share of kills aimed at the end of a save")
    parser.add_argument(
        "--runs", type=int, default=0, help="many short runs with kills at their ends; set CHAOS_STEPS=6, say"
    )
    parser.add_argument("--compare", action="store_true", help="only write the result of what is in --work already")
    given = parser.parse_args()
    for name in ("resume_support", "fission_grpo.cli.train"):  # and with them torch, trl, transformers
        importlib.import_module(name)

    if not given.compare:
        run(given.work, given.kills, given.seed, given.ends, given.runs)
    return written(given)


def run(work: Path, kills: int, seed: int, ends: float, runs: int = 0) -> None:
    """Both runs in `work`, which is emptied first; `kills.jsonl` and `times.json` tell of them."""
    threads = len(list(Path("/proc/self/task").iterdir()))
    shutil.rmtree(work, ignore_errors=True)
    peace, chaos, logs = (work / name for name in ("peace", "chaos", "logs"))
    logs.mkdir(parents=True)
    began = time.monotonic()
    if until(process := start(peace, logs / "peace.txt"), lambda: False) != 0:
        raise RuntimeError(f"the undisturbed run ({process}) failed:\n{_text(logs / 'peace.txt')[-3000:]}")
    alone = time.monotonic() - began

    def told(kill: Kill) -> None:
        with (work / "kills.jsonl").open("a") as file:
            file.write(json.dumps(asdict(kill)) + "\n")

    for k in range(runs):
        (logs / str(k)).mkdir()
        share = kills // runs + (k < kills % runs)
        disturbed(work / f"chaos-{k}", logs / str(k), share, seed + k, ends, told, aimed=True)
    if not runs:
        disturbed(chaos, logs, kills, seed, ends, told)
    seconds = {"undisturbed": round(alone, 1), "killed": round(time.monotonic() - began - alone, 1)}
    (work / "times.json").write_text(json.dumps({"threads_at_fork": threads, "seconds": seconds}))


def written(given: argparse.Namespace) -> int:
    """Compare the two runs and write `result.json`; returns 1 if they differ."""
    kills = [json.loads(line) for line in (given.work / "kills.jsonl").read_text().splitlines()]
    times = _text(given.work / "times.json")
    result = {
        "command": f"python benchmarks/chaos/run.py --kills {given.kills} --seed {given.seed} --ends {given.ends} "
        f"--runs {given.runs}, CHAOS_STEPS={STEPS}",
        "options": " ".join(OPTIONS).replace(str(ROOT), "."),
        **(json.loads(times) if times else {}),
        "kills": len(kills),
        "aims": dict(Counter(kill["aim"] for kill in kills)),
        "phases": dict(Counter(re.sub(r"\d+ files", "files", kill["phase"]) for kill in kills)),
        "result": compared(given.work / "peace", given.work / ("chaos-0" if given.runs else "chaos")),
        "each": kills,
    }
    bad = [result["result"]]
    if given.runs:
        bad = [compared(given.work / "peace", given.work / f"chaos-{k}") for k in range(given.runs)]
        result["runs"] = [{"different": one["different"], "lost": one["instances_lost"]} for one in bad]
    given.output.mkdir(parents=True, exist_ok=True)
    (given.output / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({name: value for name, value in result.items() if name != "each"}, indent=1))
    return int(any(one["different"] or one["instances_lost"] or one["instances_doubled"] for one in bad))


if __name__ == "__main__":
    sys.exit(main())
