"""What diagnosing costs a training step: rules, an endpoint with 100 ms latency, and one of which half goes wrong.

    python benchmarks/archive/simulator/step_share.py

Twelve cycles of 8 x 8 rollouts of the starter policy at the desk with each, one thread. The server (a process of its
own, tests/openai_server.py) gives "error: ..." texts; the faulty one refuses, hangs, answers 429, 500 and garbage,
10% of the requests each. `share` is the time waited for diagnoses, of the time of all steps; asked one after another
without other work going on, the endpoint would take `one_by_one_share` of them. Results go to step_share.json beside
this file; about two minutes.
"""

import json
import multiprocessing
import os
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[3] / "tests" / "support"))
RESULTS = Path(__file__).with_suffix(".json")
CYCLES, LATENCY = 12, 0.1
SPOILED = {0: "close", 1: "hang", 2: "429", 3: "500", 4: "html"}


def serve(pipe, faulty):
    from openai_server import OpenAIServer

    def answer(body):
        time.sleep(LATENCY)
        return "error: one of the arguments is not right; look again at what was asked for."

    with OpenAIServer(answer) as server:
        if faulty:
            server.faults = lambda number: SPOILED.get(number % 10) if number else None  # the first is `check`'s
        pipe.send(server.url)
        pipe.recv()
        pipe.send(len(server.asked))


def train(diagnose, folder):
    """Numbers of one run, from what the trainer logged."""
    from datasets import Dataset

    from fission_grpo import FissionGRPOConfig, FissionGRPOTrainer
    from fission_grpo.envs.desk.env import Desk
    from fission_grpo.envs.desk.tasks import make_rows
    from fission_grpo.inference.pretrained import load_starter

    model, tokenizer = load_starter()
    args = FissionGRPOConfig(
        output_dir=folder,
        max_steps=CYCLES,
        per_device_train_batch_size=64,
        num_generations=8,
        max_completion_length=96,
        max_tool_calling_iterations=2,
        learning_rate=3e-4,
        beta=0.0,
        logging_steps=1,
        save_strategy="no",
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to="none",
        disable_tqdm=True,
    )
    rows = Dataset.from_list(make_rows(512, seed=0, split="train"))
    trainer = FissionGRPOTrainer(
        model=model,
        args=args,
        train_dataset=rows,
        processing_class=tokenizer,
        environment_factory=Desk,
        feedback=diagnose,
    )
    began = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - began
    logs = trainer.state.log_history
    total = {key: sum(log.get(key, 0) for log in logs) for key in sorted({key for log in logs for key in log})}
    counted = {
        key: n for key, n in total.items() if key.startswith(("fission/fallback", "simulator/", "feedback/leaks"))
    }
    waited = total["feedback/seconds"]
    return {
        "steps": trainer.state.global_step,
        "recover_cycles": int(total["fission/phase"]),
        "seconds": round(seconds, 2),
        "waited_seconds": round(waited, 4),
        "share": round(waited / seconds, 5),
        "pushed": total["fission/pushed"],
        "counted": {key: round(n, 3) for key, n in counted.items()},
    }


def with_server(faulty, folder):
    from fission_grpo.feedback.endpoint import EndpointFeedback, FeedbackModelOptions

    here, there = multiprocessing.Pipe()
    server = multiprocessing.Process(target=serve, args=(there, faulty), daemon=True)
    server.start()
    options = FeedbackModelOptions(timeout=2.0, max_retries=0, circuit_after=1000)
    with EndpointFeedback("small", here.recv(), options) as source:
        found = train([source, "rules"], folder)
    here.send("end")
    asked = here.recv()
    server.join()
    one_by_one = round(asked * LATENCY / found["seconds"], 4)
    return {**found, "requests_seen_by_server": asked, "one_by_one_share": one_by_one}


def main():
    with tempfile.TemporaryDirectory() as folder:
        found = {
            "cycles": CYCLES,
            "latency_s": LATENCY,
            "rules": train("rules", f"{folder}/rules"),
            "endpoint": with_server(False, f"{folder}/endpoint"),
            "faulty_endpoint": with_server(True, f"{folder}/faulty"),
        }
    RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    multiprocessing.set_start_method("spawn")
    main()
