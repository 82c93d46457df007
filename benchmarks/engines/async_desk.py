"""Does the starter policy learn at the desk with TRL's asynchronous trainer as it does with the synchronous one?

    PYTHONPATH=tests/support python benchmarks/engines/async_desk.py --seeds 0 1 --steps 40

Both trainers run the same Fission-GRPO: cycles of 64 rollouts (G = G' = 8), one update each, no KL term. Each run is
added to async_desk.json when it ends (those that are there are not repeated): for every cycle its phase, the tokens
sampled so far, and the success of the rollouts that explored; then the success on held-out tasks, one rollout each.
async_desk.png shows the curves. The asynchronous trainer samples in this process (tests/support/async_on_cpu.py).
"""

import argparse
import asyncio
import json
import queue
import time
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

from async_on_cpu import SamplerOnCPU, let_trl_train_on_cpu
from datasets import Dataset
from trainer_settings import QUIETLY_ON_CPU
from trl.experimental.async_grpo import AsyncGRPOConfig, AsyncGRPOTrainer

from fission_grpo import Fission, FissionGRPOConfig, FissionGRPOTrainer, FissionSettings
from fission_grpo.engines.codec import ChatCodec
from fission_grpo.engines.cycles import RecoveryCycles
from fission_grpo.engines.episode import TaskRunner
from fission_grpo.engines.trl_async import FissionRolloutWorker
from fission_grpo.envs.desk.env import Desk
from fission_grpo.envs.desk.tasks import make_rows
from fission_grpo.inference.pretrained import load_starter, starter_path

RESULTS, PICTURE = (Path(__file__).with_suffix(suffix) for suffix in (".json", ".png"))
GROUPS = {"num_generations": 8, "num_recovery_generations": 8}
ROLLOUTS, TURNS, LENGTH, RATE, HELD_OUT = 64, 4, 160, 3e-4, 256  # as configs/desk_fission.yaml
SHOWN = 5  # explore cycles at the beginning and the end that are compared
KEPT = {
    "phase": "fission/phase",
    "tokens": "fission/generated_tokens",
    "success": "fission/success",
    "recovery_rate": "recovery/rate",
    "pushed": "fission/pushed",
}


def common(folder, seed, steps):
    """What both configurations have in common."""
    settings = {name: value for name, value in QUIETLY_ON_CPU.items() if name != "beta"}
    rates = {"learning_rate": RATE, "lr_scheduler_type": "constant", "per_device_train_batch_size": ROLLOUTS}
    return {"output_dir": folder, "seed": seed, "max_steps": steps, **settings, **rates}


def rows_of(seed):
    return make_rows(512, seed, "train")


def runner_of(fission, tokenizer):
    return TaskRunner(fission, ChatCodec(tokenizer), Desk, max_turns=TURNS, max_completion_length=LENGTH)


def train_sync(folder, seed, steps):
    model, tokenizer = load_starter()
    limits = {"max_tool_calling_iterations": TURNS - 1, "max_completion_length": LENGTH}
    args = FissionGRPOConfig(**common(folder, seed, steps), **GROUPS, **limits, beta=0.0, shuffle_dataset=False)
    trainer = FissionGRPOTrainer(
        model=model,
        args=args,
        train_dataset=Dataset.from_list(rows_of(seed)),
        processing_class=tokenizer,
        environment_factory=Desk,
    )
    trainer.train()
    return trainer.model, [entry for entry in trainer.state.log_history if "fission/phase" in entry]


class Recording(queue.Queue):
    """A queue that keeps what was put."""

    def __init__(self):
        super().__init__()
        self.kept = []

    def put(self, item, block=True, timeout=None):
        self.kept.append(item)
        super().put(item, block, timeout)


def train_async(folder, seed, steps):
    let_trl_train_on_cpu()
    model, tokenizer = load_starter()
    sampler = SamplerOnCPU(model, tokenizer, seed)
    fission = Fission(FissionSettings(**GROUPS, generation_batch_size=ROLLOUTS, seed=seed))
    rows = rows_of(seed)
    worker = FissionRolloutWorker(RecoveryCycles(fission, runner_of(fission, tokenizer), len(rows)), rows, sampler)
    worker.metrics_queue = Recording()
    trainer = AsyncGRPOTrainer(
        str(starter_path()),
        args=AsyncGRPOConfig(**common(folder, seed, steps), token_budget=0),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        rollout_worker=worker,
        weight_transfer=sampler,
        callbacks=[worker],
    )
    trainer.train()
    cycles = [entry for entry in worker.metrics_queue.kept if "fission/phase" in entry]
    return sampler.model, cycles[:steps]  # the worker is ahead: what the trainer took last was not trained


def held_out(model):
    """The success of one rollout of each held-out task."""
    weights, (model, tokenizer) = model.state_dict(), load_starter()  # without what a trainer has put into it
    model.load_state_dict(weights)
    runner, sampler = runner_of(Fission(FissionSettings()), tokenizer), SamplerOnCPU(model, tokenizer, 1)

    async def run():
        return await asyncio.gather(*(runner.run(row, sampler) for row in make_rows(HELD_OUT, 1000, "held_out")))

    return sum(episode.reward for episode in asyncio.run(run())) / HELD_OUT


def one_run(arm, seed, steps):
    began = time.monotonic()
    with TemporaryDirectory() as folder:
        model, cycles = (train_sync if arm == "sync" else train_async)(folder, seed, steps)
    curve = [{name: entry[key] for name, key in KEPT.items() if key in entry} for entry in cycles]
    seconds = round(time.monotonic() - began, 1)
    versions = {name: version(name) for name in ("trl", "transformers", "torch")}
    after = held_out(model)
    return {"arm": arm, "seed": seed, "steps": steps, "held_out": after, "seconds": seconds, "curve": curve} | versions


def summary(results):
    """A row for each run: its tokens, and the success of its first and its last explore cycles and on held-out tasks.

    The last cycles are those up to the tokens that every run of the seed has sampled.
    """
    rows = []
    for run in results["runs"]:
        most = min(one["curve"][-1]["tokens"] for one in results["runs"] if one["seed"] == run["seed"])
        explored = [one["success"] for one in run["curve"] if "success" in one and one["tokens"] <= most]
        first, last = (sum(part) / SHOWN for part in (explored[:SHOWN], explored[-SHOWN:]))
        cells = [f"{run['curve'][-1]['tokens']:,.0f}", *(f"{rate:.2f}" for rate in (first, last, run["held_out"]))]
        rows.append(f"| {run['arm']} | {run['seed']} | {' | '.join(cells)} |")
    return rows


def draw(results):
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(6, 3.6), layout="constrained")
    colours = {"sync": "#888888", "async": "#1f77b4"}
    for run in results["runs"]:
        points = [(one["tokens"] / 1000, one["success"]) for one in run["curve"] if "success" in one]
        windows = [[y for _, y in points[max(0, i - 3) : i + 1]] for i in range(len(points))]
        means = [sum(window) / len(window) for window in windows]
        label = f"{run['arm']}, seed {run['seed']} (held out: {run['held_out']:.2f})"
        line = "-" if run["seed"] == 0 else "--"
        axis.plot([x for x, _ in points], means, line, color=colours[run["arm"]], label=label)
    before = results["starter"]
    axis.axhline(before, color="black", linewidth=0.6, label=f"starter, held out: {before:.2f}")
    axis.set(xlabel="sampled tokens (thousands)", ylabel="success, mean of 4 explore cycles", ylim=(0, 1))
    axis.legend(fontsize=7)
    figure.savefig(PICTURE, dpi=150)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--steps", type=int, default=40)
    options = parser.parse_args()
    results = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {"runs": []}
    if "starter" not in results:
        results["starter"] = held_out(load_starter()[0])
    for seed in options.seeds:
        for arm in ("async", "sync"):
            if not any((run["arm"], run["seed"]) == (arm, seed) for run in results["runs"]):
                results["runs"].append(one_run(arm, seed, options.steps))
                RESULTS.write_text(json.dumps(results, indent=1) + "\n")
                print(arm, seed, {key: results["runs"][-1][key] for key in ("held_out", "seconds")}, flush=True)
    print(*summary(results), sep="\n")
    draw(results)


if __name__ == "__main__":
    main()
