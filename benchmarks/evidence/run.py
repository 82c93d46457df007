"""Run a suite of experiments: every arm with every seed that is not there yet.

    python benchmarks/evidence/run.py benchmarks/evidence/episode.yaml --workers 2

Finished runs are kept in the results folder, one JSON line per (arm, seed, evaluation point, set) in
`evaluations.jsonl` and one per (arm, seed) in `runs.jsonl`; the same command goes on after a kill. Every run has a
process of its own with one thread, so two workers on two cores do not slow each other. `fission-grpo report
WORK/SUITE/ARM-SEED` draws one run, `fission-grpo report WORK/SUITE` all of them.
"""

import argparse
import json
import multiprocessing
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Collection
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

HERE = Path(__file__).resolve().parent
os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])  # of the fork server
sys.path.insert(0, str(HERE))
sys.path.append(str(HERE.parent))

from packed import unpacked  # noqa: E402 - after the environment is set
from suite import ROOT, Job, Suite, SuiteError, read_suite  # noqa: E402


def prepare(suite: Suite, arms: Collection[str]) -> None:
    """Run the commands that make what these arms need, unless it is there."""
    for step in suite.prepare:
        if (ROOT / step["creates"]).exists() or not set(step.get("arms", arms)) & set(arms):
            continue
        print(f"prepare: {step['command']}", flush=True)
        words = shlex.split(step["command"])
        if words[0] == "python":
            words[0] = sys.executable
        elif words[0] == "fission-grpo":
            words[:1] = [sys.executable, "-m", "fission_grpo.cli"]
        subprocess.run(words, cwd=ROOT, check=True)


def work(suite: Suite, arm: str, seed: int, folder: Path) -> tuple[str, int]:
    """Do one job in this process; what it prints goes to the folder's log."""
    from one_run import run

    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".log").open("w") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        os.chdir(ROOT)
        run(Job(suite, arm, seed, folder))
    return arm, seed


class Results:
    """The results folder of a suite."""

    def __init__(self, suite: Suite, folder: Path):
        self.suite, self.folder = suite, folder
        self.runs, self.evaluations, self.sets = (
            folder / name for name in ("runs.jsonl", "evaluations.jsonl", "sets.json")
        )
        folder.mkdir(parents=True, exist_ok=True)

    def done(self) -> set[tuple[str, int]]:
        """The (arm, seed) that are there, made with the arm as it is now."""
        lines = map(json.loads, _lines(self.runs))
        known = self.suite.arms
        return {
            (line["arm"], line["seed"])
            for line in lines
            if line["arm"] in known and line["config"] == self.suite.config(line["arm"])
        }

    def take(self, arm: str, seed: int, folder: Path) -> None:
        """Add a finished run's lines; lines of the same arm and seed with another configuration go."""
        sets = json.loads(self.sets.read_text()) if self.sets.is_file() else {}
        for name, card in json.loads((folder / "sets.json").read_text()).items():
            sets[name] = card
        points = [json.loads(line) for line in (folder / "points.jsonl").read_text().splitlines()]
        latest = {(line["point"], line["set"]): line for line in points if line["config"] == self.suite.config(arm)}
        self._replace(self.evaluations, arm, seed, list(latest.values()))
        self._replace(self.runs, arm, seed, [json.loads((folder / "run.json").read_text())])
        self.sets.write_text(json.dumps(sets, indent=None) + "\n")

    def _replace(self, file: Path, arm: str, seed: int, lines: list[dict]) -> None:
        kept = [line for line in _lines(file) if (json.loads(line)["arm"], json.loads(line)["seed"]) != (arm, seed)]
        new = file.with_suffix(".new")
        new.write_text("\n".join([*kept, *map(json.dumps, lines)]) + "\n")
        new.replace(file)


def _lines(file: Path) -> list[str]:
    with unpacked(file) as plain:
        return plain.read_text().splitlines() if plain.is_file() else []


def finished(suite: Suite, arm: str, folder: Path) -> bool:
    """Whether a run's folder holds all of it, made with the arm as it is now."""
    file = folder / "run.json"
    return file.is_file() and json.loads(file.read_text())["config"] == suite.config(arm)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suite", type=Path, help="YAML file, see suite.py")
    parser.add_argument("--workers", type=int, default=2, help="runs side by side, one thread each")
    parser.add_argument("--arms", nargs="+", help="only these")
    parser.add_argument("--seeds", type=int, nargs="+", help="only these")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "evidence", help="folder of the runs themselves")
    parser.add_argument("--results", type=Path, default=HERE / "results", help="folder of the raw results")
    parser.add_argument("--prepare", action="store_true", help="make what the arms need, and run none")
    options = parser.parse_args()
    try:
        suite = read_suite(options.suite)
    except SuiteError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if strangers := [arm for arm in options.arms or () if arm not in suite.arms]:
        print(f"error: no arm {strangers[0]!r} in {options.suite}; there are {', '.join(suite.arms)}", file=sys.stderr)
        return 2
    if options.prepare:
        prepare(suite, suite.arms)
        return 0
    results = Results(suite, options.results.resolve() / suite.name)
    folders = {job: options.work.resolve() / suite.name / f"{job[0]}-{job[1]}" for job in suite.jobs()}
    wanted = [
        job
        for job in suite.jobs()
        if (not options.arms or job[0] in options.arms) and (options.seeds is None or job[1] in options.seeds)
    ]
    for job in wanted:
        if job not in results.done() and finished(suite, job[0], folders[job]):
            results.take(*job, folders[job])
    missing = [job for job in wanted if job not in results.done()]
    print(f"{suite.name}: {len(wanted) - len(missing)} of {len(wanted)} runs are there", flush=True)
    if not missing:
        return 0
    prepare(suite, {arm for arm, _ in missing})
    return run_all(suite, missing, folders, results, options.workers)


def run_all(suite: Suite, missing: list, folders: dict, results: Results, workers: int) -> int:
    """Run what is missing, so many at a time. 1 if some run failed; the others are kept."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["one_run"])  # torch, transformers and TRL are imported once, not in every run
    began, failed = time.monotonic(), 0
    with ProcessPoolExecutor(workers, mp_context=context, max_tasks_per_child=1) as pool:
        going = {pool.submit(work, suite, *job, folders[job]): job for job in missing}
        for number, future in enumerate(as_completed(going), 1):
            arm, seed = going[future]
            if (error := future.exception()) is not None:
                failed += 1
                print(f"{arm} {seed} failed, see {folders[arm, seed]}.log: {error!r}", flush=True)
                continue
            results.take(arm, seed, folders[arm, seed])
            spent = time.monotonic() - began
            print(f"[{spent:5.0f} s] {number}/{len(missing)} {arm} seed {seed}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
