"""Training steps of TRL's GRPOTrainer and of ours without fission, on the same model, data and seed, in turn.

    python benchmarks/speed/run.py steps --output benchmarks/speed/starter.json
    python benchmarks/speed/run.py steps --model MODEL --prompt 2048 --completion 128 --output grid.json
    python benchmarks/speed/run.py buffer --output benchmarks/speed/buffer.json
    python benchmarks/speed/run.py plot grid.json grid.png

Without `--model` the starter policy plays the built-in tasks with its tools (8 groups of 8). With a model folder,
every G completions of exactly R tokens follow a random text of P tokens, for all given P, R and G.

`steps` adds its runs to what the file holds already, so a grid can be run in pieces and rounds. A step's parts are in
seconds of the processor ("..._clock": on the clock); ratios are of medians over all runs' steps but each run's first
(which has the self-checks; where a run has no other, it counts), beside the bound: tokens that pass through the model
without and with sharing, (P+R)G / (P+GR). On CPU, TRL's head scores prompts too, so that its part can exceed the
bound. Memory is the peak of a process of its own per trainer.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from itertools import islice, product
from pathlib import Path
from typing import Any

import torch
import transformers
import trl
from bookkeeping import fillers
from matplotlib.figure import Figure
from shared_prefix.steps import TRAINERS, Setting, peak, train

from fission_grpo.fission.buffer import FissionBuffer

PARTS = {
    "generation": lambda step: step["generation"],
    "log-probabilities and loss": lambda step: step["loss"],
    "backward": lambda step: step["backward"],
    "log-probabilities to backward": lambda step: step["loss"] + step["backward"],
    "whole step": lambda step: step["all"],
}


# -- steps ------------------------------------------------------------------------------------------------------------


def settings_of(options: argparse.Namespace) -> list[Setting]:
    if options.model is None:
        return [Setting(None)]
    grid = product(options.prompt, options.completion, options.group, [options.micro_batch], options.tools)
    return [Setting(options.model, options.layers, *point) for point in grid]


def steps_command(options: argparse.Namespace) -> None:
    if options.alone:
        print(json.dumps(peak(settings_of(options)[0], options.alone)))
        return
    held = json.loads(options.output.read_text())["runs"] if options.output.exists() else []
    options.output.parent.mkdir(parents=True, exist_ok=True)
    machine = {
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "trl": trl.__version__,
    }
    for setting, _, name in product(settings_of(options), range(options.rounds), options.trainers):
        load = Path("/proc/loadavg").read_text().split()[0]
        run = {"setting": asdict(setting), "trainer": name, "machine": {**machine, "load": float(load)}}
        held.append(run | train(setting, name, options.steps))
        write(options.output, held)
    for setting, name in product(settings_of(options) if options.memory else (), options.trainers):
        held.append({"setting": asdict(setting), "trainer": name, "machine": machine, **alone(setting, name)})
        write(options.output, held)
    for entry in summary(held):
        print(*(f"{key}: {entry[key]}" for key in entry if key != "median_least_most"), sep="\n  ")


def alone(setting: Setting, name: str) -> dict[str, float]:
    """Memory of a step in a process of its own."""
    command = [sys.executable, __file__, "steps", "--alone", name]
    if setting.model is not None:
        fields = asdict(setting)
        command += [text for field, value in fields.items() for text in (f"--{field.replace('_', '-')}", str(value))]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def write(path: Path, runs: list[dict[str, Any]]) -> None:
    path.write_text(json.dumps({"summary": summary(runs), "runs": runs}, indent=1) + "\n")


def summary(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Per setting (micro-batches apart): median and spread of each part, ratios, bound and memory."""
    runs = [{**run, "setting": {"tools": 0, **run["setting"], "micro_batch": 0}} for run in runs]
    settings = {json.dumps(run["setting"], sort_keys=True): run["setting"] for run in runs}
    return [_summary_of(one, runs) for one in settings.values()]


def _summary_of(setting: dict[str, Any], runs: list[dict[str, Any]]) -> dict[str, Any]:
    mine = [run for run in runs if run["setting"] == setting]
    seconds: dict[str, dict[str, list[float]]] = {}
    memory: dict[str, dict[str, float]] = {}
    shared: list[dict[str, float]] = []
    for name in TRAINERS:
        own = [run for run in mine if run["trainer"] == name]
        steps = [step for run in own for step in run.get("steps", [])[1:]]
        steps = steps or [step for run in own for step in run.get("steps", [])]
        shared = steps if name == "ours" else shared
        if steps:
            seconds[name] = {part: _spread([of(step) for step in steps]) for part, of in PARTS.items()}
            seconds[name]["steps"] = [len(steps)]
        for run in own:
            if "peak_mib" in run:
                memory[name] = {k: run[k] for k in ("peak_mib", "step_mib")}
    found: dict[str, Any] = {"setting": setting, "median_least_most": seconds}
    if len(seconds) == len(TRAINERS):
        found["bound"] = sum(s["tokens"] for s in shared) / sum(s["tokens_shared"] for s in shared)
        found["times_faster"] = {part: seconds["trl"][part][0] / seconds["ours"][part][0] for part in PARTS}
    if len(memory) == len(TRAINERS):
        found["memory"] = memory
        found["memory_ratio"] = {k: memory["ours"][k] / memory["trl"][k] for k in ("peak_mib", "step_mib")}
    return found


def _spread(values: list[float]) -> list[float]:
    return [statistics.median(values), min(values), max(values)]


# -- buffer -----------------------------------------------------------------------------------------------------------


def buffer_command(options: argparse.Namespace) -> None:
    """Times of operations on full buffers of each order and size."""
    found = []
    for order, size in product(("lifo", "random"), options.sizes):
        found.append({"order": order, "size": size, **buffer_times(order, size, options.repeats)})
        print(json.dumps(found[-1]), flush=True)
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps({"median_least_most_microseconds": found}, indent=1) + "\n")


def buffer_times(order: str, size: int, repeats: int) -> dict[str, list[float]]:
    """Microseconds to take 8 of a full buffer, to add one, and to look for instances too old."""
    items = fillers(size + 8 * repeats, seed=0)
    buffer, new = FissionBuffer(size, max_age=32, order=order), iter(items[size:])
    for item in items[:size]:
        buffer.push(item)
    times: dict[str, list[float]] = {"pop": [], "push": [], "expire": []}
    for _ in range(repeats):
        fresh = list(islice(new, 8))
        times["pop"].append(_microseconds(lambda: buffer.sample(8)))
        times["push"].append(_microseconds(lambda fresh=fresh: [buffer.push(item) for item in fresh]) / 8)
        times["expire"].append(_microseconds(lambda: buffer.expire(0)))
    return {name: _spread(values) for name, values in times.items()}


def _microseconds(run: Callable[[], Any]) -> float:
    started = time.perf_counter()
    run()
    return 1e6 * (time.perf_counter() - started)


# -- plot -------------------------------------------------------------------------------------------------------------


def plot_command(options: argparse.Namespace) -> None:
    """How many times faster each part is, over the bound; the line is where both are equal."""
    entries = [one for one in json.loads(options.results.read_text())["summary"] if "times_faster" in one]
    figure = Figure(figsize=(6.5, 4.5), layout="constrained")
    axes = figure.subplots()
    for part in ("generation", "log-probabilities to backward", "whole step"):
        axes.plot([e["bound"] for e in entries], [e["times_faster"][part] for e in entries], "o", label=part)
    limit = max(e["bound"] for e in entries)
    axes.plot([1, limit], [1, limit], "k--", linewidth=1, label="bound: tokens without / with sharing")
    axes.set(xlabel="(P+R)·G / (P+G·R)", ylabel="TRL's time / ours", title="Shared prefixes, medians")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(options.image, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    steps = commands.add_parser("steps", help="time and memory of training steps")
    steps.add_argument("--model", help="a folder; none: the starter policy at the built-in tasks")
    steps.add_argument("--layers", type=int, default=0, help="first layers of the model only (0: all)")
    steps.add_argument("--prompt", type=int, nargs="+", default=[256, 1024, 2048, 4096])
    steps.add_argument("--completion", type=int, nargs="+", default=[64, 128])
    steps.add_argument("--group", type=int, nargs="+", default=[4, 8, 16])
    steps.add_argument("--micro-batch", type=int, default=0, help="rows of a forward of TRL's, to spare its memory")
    steps.add_argument("--tools", type=int, nargs="+", default=[0], help="functions listed in the prompt")
    steps.add_argument("--trainers", nargs="+", choices=TRAINERS, default=list(TRAINERS))
    steps.add_argument("--steps", type=int, default=2, help="of each run; the first is not counted if there are more")
    steps.add_argument("--rounds", type=int, default=1)
    steps.add_argument("--memory", action="store_true", help="also the peak memory of each trainer")
    steps.add_argument("--output", type=Path, default=Path("benchmarks/speed/steps.json"))
    steps.add_argument("--alone", choices=TRAINERS, help=argparse.SUPPRESS)
    steps.set_defaults(run=steps_command)
    buffer = commands.add_parser("buffer", help="time of the buffer's operations by its size")
    buffer.add_argument("--sizes", type=int, nargs="+", default=[100, 1000, 10_000, 100_000])
    buffer.add_argument("--repeats", type=int, default=50)
    buffer.add_argument("--output", type=Path)
    buffer.set_defaults(run=buffer_command)
    plot = commands.add_parser("plot", help="ratios over their bounds")
    plot.add_argument("results", type=Path)
    plot.add_argument("image", type=Path)
    plot.set_defaults(run=plot_command)
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
