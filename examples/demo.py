"""Train GRPO and Fission-GRPO on the same static data, evaluate both and the starter policy live, write a report.

    python examples/demo.py --output runs/demo

Takes minutes on two cores. Both arms start from the shipped policy, train on the same single turns against reference
calls, and stop when the policy has sampled the same number of tokens. Fission-GRPO makes the failed calls in their
environment, and recovers from its real errors. Then each policy acts in live episodes. One seed is a demonstration and
no evidence (docs/evidence.md): the intervals are over held-out tasks, not over training runs.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from fission_grpo.report.run import read_run

ROOT = Path(__file__).parent.parent
ARMS = {"grpo": "GRPO", "fission": "Fission-GRPO"}
CONFIG = ROOT / "configs" / "desk_static.yaml"
SHOWN_EVERY = 15.0  # seconds between two lines of progress where no terminal shows them [ours]


def start(command: list[str], log: Path) -> subprocess.Popen:
    """Start a fission-grpo command on one thread, with its output in `log`."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    with log.open("w") as file:
        arguments = [sys.executable, "-m", "fission_grpo.cli", *command]
        return subprocess.Popen(arguments, stdout=file, stderr=subprocess.STDOUT, env=environment)


def wait_for(processes: dict[Path, subprocess.Popen]) -> None:
    """Wait for all processes, showing how far they are. None outlives this function.

    If one fails, the program exits with the end of its log.
    """
    shown = time.monotonic()
    try:
        while any(process.poll() is None for process in processes.values()):
            for log, process in processes.items():
                if process.poll():
                    sys.exit(f"failed, see {log}:\n" + log.read_text()[-3000:])
            if sys.stdout.isatty():
                width = shutil.get_terminal_size().columns - 1
                print(f"\r{progress(processes):{width}.{width}}", end="", flush=True)
            elif time.monotonic() - shown > SHOWN_EVERY:
                shown = time.monotonic()
                print(progress(processes), flush=True)
            time.sleep(0.5)
        if sys.stdout.isatty():
            print("\r\x1b[K", end="")
    finally:
        end(list(processes.values()))
    for log, process in processes.items():
        if process.returncode:
            sys.exit(f"failed, see {log}:\n" + log.read_text()[-3000:])


def progress(processes: dict[Path, subprocess.Popen]) -> str:
    """Success and time left of each process, from the newest line of progress in its log."""
    parts = []
    for log, process in processes.items():
        lines = log.read_text(errors="replace").split("\n")[:-1]  # the last one may not be whole
        newest = next((line for line in reversed(lines) if " · " in line), "")
        words = [word for word in newest.split(" · ") if word.startswith("success") or word.endswith("left")]
        state = "starting" if process.poll() is None else "done"
        parts.append(f"{ARMS.get(log.parent.name, 'starter')}: {', '.join(words) or state}")
    return "   ".join(parts)


def end(processes: list[subprocess.Popen]) -> None:
    """End the processes that still run: they are asked first, and killed after ten seconds."""
    running = [process for process in processes if process.poll() is None]
    for process in running:
        process.terminate()
    for process in running:
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def evaluation(model: str, name: str, output: Path, options: argparse.Namespace) -> list[str]:
    tasks = ["--num_tasks", str(options.eval_tasks), "--seed", str(options.seed)]
    return ["eval", "--model", model, "--name", name, "--output", str(output), *tasks]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/demo"), help="output folder; replaced")
    parser.add_argument("--tokens", type=int, default=40_000, help="tokens each arm may sample in training")
    parser.add_argument("--eval_tasks", type=int, default=300, help="held-out tasks per evaluation")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    started = time.monotonic()

    def log_progress(text: str) -> None:
        print(f"[{time.monotonic() - started:4.0f} s] {text}", flush=True)

    shutil.rmtree(options.output, ignore_errors=True)
    folders = {"base": options.output} | {arm: options.output / arm for arm in ARMS}
    for folder in folders.values():
        folder.mkdir(parents=True, exist_ok=True)

    log_progress(f"training GRPO and Fission-GRPO on static data, {options.tokens:,} sampled tokens and a thread each")
    running = {}
    for arm in ARMS:
        budget = ["--max_generated_tokens", str(options.tokens), "--max_steps", "10000", "--seed", str(options.seed)]
        fission = "true" if arm == "fission" else "false"
        command = ["train", "--config", str(CONFIG), "--fission", fission, "--save_strategy", "no", *budget]
        running[folders[arm] / "train.log"] = start(
            [*command, "--output_dir", str(folders[arm])], folders[arm] / "train.log"
        )
    wait_for(running)

    log_progress(f"evaluating the starter policy and both arms in live episodes, {options.eval_tasks} held-out tasks")
    for group in (("base", "grpo"), ("fission",)):
        running = {}
        for arm in group:
            model = "starter" if arm == "base" else str(folders[arm])
            log = folders[arm] / "eval.log"
            running[log] = start(evaluation(model, ARMS.get(arm, "base"), folders[arm], options), log)
        wait_for(running)

    log = options.output / "report.log"
    wait_for({log: start(["report", str(options.output)], log)})
    log_progress("done\n")
    print_table(options.output)
    a, b = (folders[arm] / f"eval-{name}" for arm, name in ARMS.items())
    print(f"\nside by side: fission-grpo compare {a} {b}")
    print(f"report: {(options.output / 'report' / 'report.html').resolve()}")


def print_table(output: Path) -> None:
    """Print success and error recovery of every arm, with Wilson 95% intervals over the held-out tasks."""
    print(f"{'':16}{'success':>22}{'error recovery':>22}{'errors met':>14}{'sampled tokens':>17}")
    for folder in (output, *(output / arm for arm in ARMS)):
        for line in read_run(folder).evaluations:
            success, recovery = "nothing judged", "no errors"
            if line.success is not None and line.success_ci is not None:
                low, high = line.success_ci
                success = f"{line.success:.3f} [{low:.3f}, {high:.3f}]"
            if line.recovery_rate is not None and line.recovery_ci is not None:
                low, high = line.recovery_ci
                recovery = f"{line.recovery_rate:.3f} [{low:.3f}, {high:.3f}]"
            met = f"{line.error_cases} of {line.tasks}"
            print(f"{line.name:16}{success:>22}{recovery:>22}{met:>14}{line.generated_tokens:>17,}")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that `wait_for` ends the children
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("\nstopped; the runs were ended, too")
