"""A training step in three ways: TRL's, with shared groups, and with what all prompts share computed once.

    python benchmarks/speed/run.py steps --model models/smollm2 --common 2000 --groups 8 \
        --ways groups trl tree groups tree --rows 2 --groups-at e0b301f --compare --output FILE.json
    python benchmarks/speed/run.py steps --tiny --output FILE.json
    python benchmarks/speed/run.py show FILE.json [FILE.json ...]
    python benchmarks/speed/run.py plot FILE.json IMAGE.png

The ways: "trl" is TRL's GRPOTrainer; "groups" and "tree" are ours without fission, which compute each group's prompt
once, and in "tree" also the common beginning of all prompts once per optimizer step. All take the same step: N prompts
of C common and Q own tokens, G completions of R tokens each, one optimizer step, on the same model, data and seed.

Each run is a process of its own, which takes a short step first. `steps` adds its runs to what FILE holds, so that a
grid can be run in pieces; the summary is made again. Seconds are the processor's (on one thread; raw: the clock's,
too), on a GPU the clock's. A model folder without weights (its configuration and tokenizer) gets random ones.
"update" is all that is neither generation nor the optimizer's. A bound is the number of tokens that pass through the
model's layers in the update, without sharing over with it. On a CPU TRL's head scores prompts too, so that a ratio can
exceed its bound.

Where TRL was not measured at N groups, its seconds are computed as N / n of those at the largest n measured, because
its micro-batches are all alike; such numbers are marked ("computed_from": n, and ~ in tables).
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict, replace
from itertools import chain, product
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from one_way import Cell, Run

ROOT = Path(__file__).parents[2]
WAYS = ("trl", "groups", "tree")
PARTS = ("generation", "log-probabilities", "backward", "update", "whole")
PAIRS = {"groups": ("trl", "groups"), "tree": ("trl", "tree"), "tree over groups": ("groups", "tree")}
TINY = Cell("random", 0, common=100, own=10, completion=6, group=4, groups=2)
TOO_MANY_TOKENS = 1.1  # [ours] tokens of the update over those expected, beyond which a way has not shared


# -- steps ------------------------------------------------------------------------------------------------------------


def steps_command(options: argparse.Namespace) -> None:
    cells = [TINY] if options.tiny else cells_of(options)
    results = read(options.output)
    with tempfile.TemporaryDirectory() as folder:
        older = unpacked(options.groups_at, Path(folder)) if options.groups_at else None
        for cell in cells:
            kept = options.keep or Path(folder)
            earlier = sorted(kept.glob("*.pt"), key=lambda path: not path.stem.startswith("trl"))  # with --keep
            saved = {path.stem: path for path in earlier}
            for way in options.ways:
                rows = options.rows if way == "trl" and options.rows else options.our_rows or cell.group
                generated = options.generated if way == "trl" else 0
                run = Run(way, rows, generated, options.part, options.greedy)
                source = older if way == "groups" and older else ROOT / "src"
                name = f"{way}, {rows} rows"
                if options.compare and name not in saved:
                    saved[name] = kept / f"{name}.pt"
                    run = replace(run, save=str(saved[name]))
                found = one_process(cell, run, source, Path(folder) / "result.json")
                check_shared(cell, run, found)
                code = options.groups_at if source is older else "this"
                results["runs"].append(
                    {"cell": asdict(cell), **asdict(replace(run, save=None)), "code": code, **found}
                )
                write(options.output, results)
                print(json.dumps(results["runs"][-1]), flush=True)
            if options.compare:
                results["compared"] += compared(cell, options.greedy, saved)
                write(options.output, results)
                for path in () if options.keep else saved.values():
                    path.unlink()
    print(tables(results))


def cells_of(options: argparse.Namespace) -> list[Cell]:
    if options.model is None:
        raise SystemExit(
            "--model is missing: give a folder, made for example by scripts/prepare_smollm2.py, or --tiny"
        )
    return [
        Cell(
            options.model,
            options.layers,
            common,
            options.own,
            options.completion,
            options.group,
            groups,
            options.device,
            options.dtype,
        )
        for common, groups in product(options.common, options.groups)
    ]


def unpacked(commit: str, folder: Path) -> Path:
    """The package at a commit of this repository, in a temporary folder."""
    archive = subprocess.run(["git", "archive", commit, "src"], cwd=ROOT, check=True, stdout=subprocess.PIPE)
    subprocess.run(["tar", "-x", "-C", str(folder)], input=archive.stdout, check=True)
    return folder / "src"


def one_process(cell: Cell, run: Run, source: Path, result: Path) -> dict[str, Any]:
    given = json.dumps({"cell": asdict(cell), "run": asdict(run), "result": str(result)})
    load = float(Path("/proc/loadavg").read_text().split()[0])
    threads = torch.get_num_threads()
    path = os.pathsep.join([str(source), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, str(Path(__file__).with_name("one_way.py")), given]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise SystemExit(f"{run.way} at {cell} ended with {done.returncode}:\n{done.stdout[-4000:]}")
    return {"threads": threads, "load_before": load, **json.loads(result.read_text())}


def check_shared(cell: Cell, run: Run, found: dict[str, Any]) -> None:
    expected = cell.tokens(run.way)
    if run.part == "step" and run.rows % cell.group == 0 and found["update_tokens"] > TOO_MANY_TOKENS * expected:
        raise SystemExit(f"{run.way} did not share: {found['update_tokens']} tokens in the update, not {expected}")


def compared(cell: Cell, greedy: bool, saved: dict[str, Path]) -> list[dict[str, Any]]:
    """Of every way but the first: equal tokens and, if all are, relative differences of the gradient."""
    (first, reference), *others = ((way, torch.load(path, mmap=True)) for way, path in saved.items())
    found = []
    for way, other in others:
        pairs = zip(chain(*reference["tokens"]), chain(*other["tokens"]), strict=True)
        equal = [a == b for a, b in pairs]
        one = {"cell": asdict(cell), "way": way, "against": first, "greedy": greedy}
        one |= {"tokens": len(equal), "equal_tokens": sum(equal)}
        found.append(one | (differences(reference["gradients"], other["gradients"]) if all(equal) else {}))
    return found


def differences(reference: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Norms of differences over norms: of all parameters together, and of the one in which it is largest."""
    norms = {n: (float((other[n] - own).norm()), float(own.norm())) for n, own in reference.items() if own.any()}
    if not norms:
        return {}
    worst = max(norms, key=lambda name: norms[name][0] / norms[name][1])
    together = math.hypot(*(a for a, _ in norms.values())) / math.hypot(*(b for _, b in norms.values()))
    parameter = {"largest_of_a_parameter": norms[worst][0] / norms[worst][1], "parameter": worst}
    return {"gradient_difference": together, **parameter, "parameters": len(norms)}


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.exists() else {"runs": [], "compared": []}


def write(path: Path, results: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    held = {"summary": summary(results["runs"]), "compared": results["compared"], "runs": results["runs"]}
    path.write_text(json.dumps(held, indent=1) + "\n")


# -- summary ----------------------------------------------------------------------------------------------------------


def summary(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Per cell: median, least and most of each part's processor seconds, memory, ratios and bounds."""
    return [entry_of(cell, runs) for cell in dict.fromkeys(Cell(**run["cell"]) for run in runs)]


def entry_of(cell: Cell, runs: list[dict[str, Any]]) -> dict[str, Any]:
    alike = [run for run in runs if replace(Cell(**run["cell"]), groups=cell.groups) == cell and not run["greedy"]]
    labels = dict.fromkeys(label(run) for run in alike)
    ways = {name: numbers(cell, [run for run in alike if label(run) == name]) for name in labels}
    ways = {name: found for name, found in ways.items() if found}
    entry: dict[str, Any] = {"cell": asdict(cell), "ways": ways}
    entry["bounds"] = {name: cell.tokens(a) / cell.tokens(b) for name, (a, b) in PAIRS.items()}
    entry["ratios"], entry["memory_ratios"] = {}, {}
    for name, (a, b) in PAIRS.items():
        if a in ways and b in ways:
            parts = [part for part in PARTS if part in ways[a] and part in ways[b]]
            entry["ratios"][name] = {part: ways[a][part]["median"] / ways[b][part]["median"] for part in parts}
            kinds = [kind for kind in ("peak_mib", "step_mib") if kind in ways[a] and kind in ways[b]]
            entry["memory_ratios"][name] = {kind: ways[b][kind] / ways[a][kind] for kind in kinds}
    return entry


def label(run: dict[str, Any]) -> str:
    """The way, and its rows where ours has other micro-batches than groups."""
    usual = run["way"] == "trl" or run["rows"] == run["cell"]["group"]
    return run["way"] if usual else f"{run['way']}, {run['rows']} rows"


def numbers(cell: Cell, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Seconds of the parts and MiB at this cell, where TRL's may be computed from fewer groups."""
    found: dict[str, Any] = {}
    steps = [run for run in runs if run["part"] == "step"]
    for part in PARTS:
        alike = runs if part == "generation" else steps
        if part != "whole" and (values := seconds_of(cell, alike, part)):
            found[part] = values
    mine = [run for run in steps if Cell(**run["cell"]) == cell]
    if mine:
        found["whole"] = seconds_of(cell, mine, "whole")
        found["rows"] = mine[0]["rows"]
        found["peak_mib"] = max(run["peak_mib"] for run in mine)
        found["step_mib"] = max(run["peak_mib"] - run["loaded_mib"] for run in mine)
    elif "update" in found and "generation" in found:
        parts = found["update"], found["generation"]
        computed_from = min(part.get("computed_from", cell.groups) for part in parts)
        found["whole"] = {"median": sum(part["median"] for part in parts), "computed_from": computed_from}
    return found


def seconds_of(cell: Cell, runs: list[dict[str, Any]], part: str) -> dict[str, Any]:
    """Spread of a part at this cell; if it was not measured there: computed from fewer groups, for TRL only."""
    measured = sorted({run["cell"]["groups"] for run in runs if run["cell"]["groups"] <= cell.groups})
    if not measured or (measured[-1] < cell.groups and runs[0]["way"] != "trl"):
        return {}
    n = measured[-1]
    clock = cell.device == "cuda"  # its time is not the processor's
    values = [run["seconds"][part][clock] * cell.groups / n for run in runs if run["cell"]["groups"] == n]
    spread = {"median": statistics.median(values), "least": min(values), "most": max(values), "runs": len(values)}
    return spread if n == cell.groups else {**spread, "computed_from": n}


# -- tables and picture -----------------------------------------------------------------------------------------------


def show_command(options: argparse.Namespace) -> None:
    for path in options.results:
        print(tables(json.loads(path.read_text())))


def tables(results: dict[str, Any]) -> str:
    """Markdown: seconds and ratios of each cell, then what was compared."""
    lines = []
    for entry in summary(results["runs"]):
        cell, ways = entry["cell"], entry["ways"]
        lines += ["", ", ".join(f"{name} {value}" for name, value in cell.items())]
        lines.append("| | " + " | ".join([*ways, *entry["ratios"]]) + " |")
        lines.append("|---|" + "---|" * (len(ways) + len(entry["ratios"])))
        for part in PARTS:
            ratios = [f"{ratio[part]:.1f}" if part in ratio else "" for ratio in entry["ratios"].values()]
            lines.append(
                f"| {part} | " + " | ".join([*(as_text(way.get(part)) for way in ways.values()), *ratios]) + " |"
            )
        bounds = [f"{entry['bounds'][name]:.1f}" for name in entry["ratios"]]
        lines.append("| bound | " + " | ".join(["", *[""] * (len(ways) - 1), *bounds]) + " |")
        for kind in ("peak_mib", "step_mib"):
            values = [f"{way[kind]:,.0f}" if kind in way else "" for way in ways.values()]
            ratios = [f"{one[kind]:.2f}" if kind in one else "" for one in entry["memory_ratios"].values()]
            lines.append(f"| {kind} | " + " | ".join([*values, *ratios]) + " |")
    return "\n".join([*lines, *(json.dumps(one) for one in results["compared"])])


def as_text(seconds: dict[str, Any] | None) -> str:
    if seconds is None:
        return ""
    if "computed_from" in seconds:
        return f"~{seconds['median']:.1f} s"
    return f"{seconds['median']:.1f} s ({seconds['least']:.1f}–{seconds['most']:.1f})"


def plot_command(options: argparse.Namespace) -> None:
    """How many times faster than TRL, by number of groups; a panel for each C, filled where TRL was measured."""
    entries = [one for one in json.loads(options.results.read_text())["summary"] if "tree" in one["ratios"]]
    commons = sorted({one["cell"]["common"] for one in entries})
    figure = Figure(figsize=(3.4 * len(commons), 6), layout="constrained")
    axes = figure.subplots(2, len(commons), squeeze=False, sharex="col")
    for (i, part), (j, common) in product(enumerate(("update", "whole")), enumerate(commons)):
        draw(axes[i][j], [one for one in entries if one["cell"]["common"] == common], part)
    for i, name in enumerate(("log-probabilities and backward", "whole step")):
        axes[i][0].set_ylabel(f"TRL's seconds / ours:\n{name}")
    for j, common in enumerate(commons):
        axes[0][j].set_title(f"C = {common:,} common tokens", fontsize=10)
        axes[1][j].set_xlabel("N, groups in an optimizer step")
    axes[0][0].legend(fontsize=8)
    figure.savefig(options.image, dpi=120)


def draw(axes: Any, entries: list[dict[str, Any]], part: str) -> None:
    entries = sorted(entries, key=lambda one: one["cell"]["groups"])
    n = [one["cell"]["groups"] for one in entries]
    for name, color in (("tree", "tab:blue"), ("groups", "tab:orange")):
        found = [one for one in entries if part in one["ratios"].get(name, {})]
        x, y = [one["cell"]["groups"] for one in found], [one["ratios"][name][part] for one in found]
        axes.plot(x, y, color=color, label=name)
        for one, *point in zip(found, x, y, strict=True):
            computed = "computed_from" in one["ways"]["trl"][part]
            axes.plot(*point, "o", color=color, markerfacecolor="white" if computed else color)
        axes.plot(
            n, [one["bounds"][name] for one in entries], "--", color=color, linewidth=1, label=f"bound of {name}"
        )
    axes.set_xscale("log", base=2)
    axes.set_xticks(n, [str(one) for one in n])
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    steps = commands.add_parser("steps", help="time and memory of a training step in each way")
    steps.add_argument("--model", help="a model folder")
    steps.add_argument("--tiny", action="store_true", help="two random layers and few tokens, in seconds")
    steps.add_argument("--layers", type=int, default=0, help="first layers of the model only (0: all)")
    steps.add_argument("--common", type=int, nargs="+", default=[500, 2000, 6000], help="C")
    steps.add_argument("--own", type=int, default=60, help="Q")
    steps.add_argument("--completion", type=int, default=100, help="R")
    steps.add_argument("--group", type=int, default=8, help="G")
    steps.add_argument("--groups", type=int, nargs="+", default=[1, 4, 8, 16], help="N")
    steps.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), help="in this order, also repeated")
    steps.add_argument("--rows", type=int, default=0, help="of TRL's micro-batches, as its memory allows (0: G)")
    steps.add_argument("--generated", type=int, default=0, help="groups in a call of TRL's generation (0: all)")
    steps.add_argument("--our-rows", type=int, default=0, help="of our micro-batches (0: G)")
    steps.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    steps.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="float32", help="of weights and computation"
    )
    steps.add_argument("--part", choices=("step", "generation"), default="step")
    steps.add_argument("--greedy", action="store_true", help="the most likely tokens; not for the summary")
    steps.add_argument("--compare", action="store_true", help="also gradients and tokens with those of the first way")
    steps.add_argument("--keep", type=Path, help="a folder for these, to compare other ways later at the same cell")
    steps.add_argument("--groups-at", metavar="COMMIT", help='"groups" by the package at this commit, not by this one')
    steps.add_argument("--output", type=Path, required=True)
    steps.set_defaults(run=steps_command)
    show = commands.add_parser("show", help="tables of results")
    show.add_argument("results", type=Path, nargs="+")
    show.set_defaults(run=show_command)
    plot = commands.add_parser("plot", help="ratios and bounds by number of groups")
    plot.add_argument("results", type=Path)
    plot.add_argument("image", type=Path)
    plot.set_defaults(run=plot_command)
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
