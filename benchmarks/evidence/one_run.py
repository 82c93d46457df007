"""One arm with one seed: train, evaluate at every point, leave the raw results in the run's folder.

`points.jsonl` gets a line per evaluation, `run.json` is written last: a folder with it is finished. A run that was
killed goes on from its newest checkpoint if its options save any, else it begins anew.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from typing import Any

from arms import VARIANTS, recover_offline
from points import EvaluateAtPoints, Moment, Recorder
from suite import ROOT, Job
from transformers import AutoModelForCausalLM, AutoTokenizer

from fission_grpo.cli.train import make_trainer, parse, resume_point
from fission_grpo.evaluation.policies import versions
from fission_grpo.feedback.spec import closing, endpoint_options, make_chain
from fission_grpo.inference.pretrained import model_path
from fission_grpo.training.checkpoint_files import load_state

KEPT = ("fission/", "recovery/", "feedback/", "env/", "simulator/")
KEPT += ("reward", "completions/mean_length", "grad_norm", "entropy", "loss")
"""Beginnings of the logged numbers that are kept of every cycle."""
BEGUN, RUN = "begun.json", "run.json"


def run(job: Job) -> None:
    """Do a job; `run.json` is there afterwards."""
    finished = _train(job) if job.suite.arms[job.arm].train else _evaluate_untrained(job)
    (job.folder / RUN).write_text(json.dumps({**job.key, **finished, "versions": versions()}) + "\n")


def _evaluate_untrained(job: Job) -> dict[str, Any]:
    job.folder.mkdir(parents=True, exist_ok=True)
    options = job.suite.training_options(job.arm)
    name = model_path(options["model_name_or_path"])
    tokenizer = AutoTokenizer.from_pretrained(name, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(name, dtype="float32")
    recorder = Recorder(job, lambda: model, tokenizer)
    recorder.evaluate(0, Moment(0, {}, 0, 0.0), last=True)
    return {
        "options": options,
        "seconds": 0.0,
        "eval_seconds": round(recorder.seconds, 1),
        "extra_tokens": {},
        "cycles": [],
    }


def _train(job: Job) -> dict[str, Any]:
    arm, points = job.suite.arms[job.arm], list(job.suite.points)
    begun = job.folder / BEGUN
    if not list(job.folder.glob("checkpoint-*")) or json.loads(begun.read_text()) != job.key:
        shutil.rmtree(job.folder, ignore_errors=True)
    job.folder.mkdir(parents=True, exist_ok=True)
    begun.write_text(json.dumps(job.key))
    beforehand = arm.offline or arm.charged
    offline: dict[str, Any] = load_state(ROOT / beforehand) if beforehand else {"generated_tokens": 0}
    options = job.suite.training_options(job.arm) | {
        "output_dir": str(job.folder),
        "seed": job.seed,
        "max_generated_tokens": points[-1] - offline["generated_tokens"],
        "max_steps": 1_000_000,
        "resume_from_checkpoint": "true" if list(job.folder.glob("checkpoint-*")) else "none",
    }
    script, args, model, reward = parse(_as_arguments(options))
    checkpoint = resume_point(args)
    with closing(make_chain(script.feedback, *endpoint_options(script.feedback_model))) as sources:
        trainer = make_trainer(script, args, model, reward, sources, VARIANTS[arm.trainer])
        if arm.offline:
            recover_offline(trainer, offline["fission"]["buffer"])
        recorder = Recorder(job, lambda: trainer.accelerator.unwrap_model(trainer.model), trainer.processing_class)
        points_reached = EvaluateAtPoints(trainer, recorder, points, offline["generated_tokens"])
        trainer.add_callback(points_reached)
        trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_state()
    trainer.save_model()  # so that one can look into why a policy does what it does
    cycles = [_cycle(row, points_reached.clock.by_step) for row in trainer.state.log_history if "fission/phase" in row]
    return {
        "options": job.suite.training_options(job.arm),
        "seconds": round(points_reached.clock.seconds, 2),
        "eval_seconds": round(recorder.seconds, 1),
        "extra_tokens": points_reached.extra(),
        "cycles": cycles,
    }


def _as_arguments(options: Mapping[str, Any]) -> list[str]:
    """`{"seed": 1, "feedback_model": {"url": "x"}}` as `["--seed", "1", "--feedback_model", '{"url": "x"}']`."""
    given: list[str] = []
    for name, value in options.items():
        if isinstance(value, list):
            given += [f"--{name}", *map(str, value)]
        elif value is not None:
            given += [f"--{name}", json.dumps(value) if isinstance(value, dict | bool) else str(value)]
    return given


def _cycle(row: Mapping[str, Any], seconds: Mapping[str, float]) -> dict[str, Any]:
    kept = {name: float(f"{value:.4g}") for name, value in row.items() if name.startswith(KEPT)}
    del kept["fission/phase"], kept["fission/generated_tokens"]
    return {
        "step": row["step"],
        "phase": int(row["fission/phase"]),
        "tokens": int(row["fission/generated_tokens"]),
        "seconds": seconds.get(str(row["step"])),
        **kept,
    }
