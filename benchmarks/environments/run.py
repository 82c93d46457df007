"""Do environments stay fast and small: 64 episodes in flight, and 32,000 episodes in batches of 64?

    python benchmarks/environments/run.py

Prints, and writes to results.json: milliseconds per tool call bare, watched (limits, copies, a state after every call)
and by 64 episodes taking turns; and memory over 32,000 episodes, drawn in memory.png. BFCL's classes need bfcl-eval.
"""

import argparse
import asyncio
import json
import os
import statistics
import time
from collections import Counter
from pathlib import Path

from fission_grpo.core.types import ToolCall
from fission_grpo.envs.desk.env import Desk
from fission_grpo.envs.desk.tasks import make_rows, solution
from fission_grpo.envs.restore import restorable
from fission_grpo.envs.wrapper import tool_methods


def desk_material():
    return [(Desk, row, list(solution(row))) for row in make_rows(256, 0, "train")]


def bfcl_material():
    from fission_grpo.envs.bfcl.env import environment_of
    from fission_grpo.envs.bfcl.tasks import all_rows
    from fission_grpo.recipes.bfcl_tasks.generate import Mix, generate

    made = []
    for row in all_rows(generate("train", 150, 0, Mix()) + generate("heldout", 100, 0, Mix())):
        calls = [ToolCall(call["name"], call["arguments"]) for call in json.loads(row["scenario"])["reference"]]
        made.append((environment_of(row["environment"]), row, calls))
    return made


def begin(make, row):
    world = make()
    world.reset(**{key: value for key, value in row.items() if key != "environment"})
    return world


def timed(world, call, times):
    began = time.perf_counter()
    tool_methods(world)[call.name](**call.arguments)
    times.append(1000 * (time.perf_counter() - began))


def per_call(material, wrap):
    """Medians and 95th percentiles in ms: one episode after another, and 64 taking turns."""
    apart, together = [], []
    for make, row, calls in material:
        world = begin(wrap(make), row)
        for call in calls:
            timed(world, call, apart)
    for start in range(0, len(material), 64):
        flight = [(begin(wrap(make), row), calls) for make, row, calls in material[start : start + 64]]
        for turn in range(max(len(calls) for _, calls in flight)):
            for world, calls in flight:
                if turn < len(calls):
                    timed(world, calls[turn], together)
    return {name: spread(times) for name, times in (("one_by_one", apart), ("64_in_flight", together))}


def spread(times):
    return {
        "median_ms": statistics.median(times),
        "p95_ms": statistics.quantiles(times, n=20)[-1],
        "calls": len(times),
    }


def watched(make):
    return restorable(make, asyncio.run)


def memory(material, episodes):
    """Resident memory in MiB after every 10 batches of 8 rows x 8 rollouts, in instances kept by class as TRL does."""
    pools, curve = {}, []
    for batch in range(episodes // 64):
        taken = Counter()
        for number in range(64):
            make, row, calls = material[(8 * batch + number // 8) % len(material)]
            pool = pools.setdefault(make, [])
            if taken[make] == len(pool):
                pool.append(watched(make)())
            world = pool[taken[make]]
            taken[make] += 1
            world.reset(**{key: value for key, value in row.items() if key != "environment"})
            for call in calls:
                tool_methods(world)[call.name](**call.arguments)
        if batch % 10 == 9:
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            curve.append([64 * (batch + 1), round(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, 1)])
    return curve


def draw(curves, path):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    for name, curve in curves.items():
        axes.plot(*zip(*curve, strict=True), label=name)
    axes.set(xlabel="episodes", ylabel="resident memory (MiB)", title="Memory over many episodes", ylim=(0, None))
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=32_000)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent)
    options = parser.parse_args()
    result, curves = {"command": f"python benchmarks/environments/run.py --episodes {options.episodes}"}, {}
    for name, material in (("Desk", desk_material()), ("BFCL", bfcl_material())):
        result[name] = {"bare": per_call(material, lambda make: make), "watched": per_call(material, watched)}
        curves[name] = memory(material, options.episodes)
        for how in ("bare", "watched"):
            for when, one in result[name][how].items():
                print(f"{name:5} {how:8} {when:13} median {one['median_ms']:.4f} ms  95% {one['p95_ms']:.4f} ms")
        shown = (curves[name][0], curves[name][len(curves[name]) // 2], curves[name][-1])
        print(f"{name:5} memory " + ", ".join(f"{mib} MiB after {count:,} episodes" for count, mib in shown))
    (options.output / "results.json").write_text(json.dumps({**result, "memory_mib": curves}) + "\n")
    draw(curves, options.output / "memory.png")


if __name__ == "__main__":
    main()
