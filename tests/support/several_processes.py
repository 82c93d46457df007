"""Run by test_processes.py on several ranks: FOLDER, which holds the tapes of one process, then names of jobs.

A job is a training of `processes_support`, by its name; `straddling<2` is resumed from the checkpoint of two ranks.
"""

import os
import sys
import time
from concurrent.futures import Future
from pathlib import Path

from endpoint_source_support import SAID, source_of
from openai_server import OpenAIServer
from processes_support import copied, left_by, mixed, sampled, straddling, tape_at, uneven
from vllm_stand_in import VLLMStandIn, without_vllm

from fission_grpo.envs.desk.env import Desk
from fission_grpo.envs.desk.tasks import make_rows
from fission_grpo.feedback.sources import Diagnosis, completed
from fission_grpo.inference.pretrained import load_starter

FOLDER, RANK, PROCESSES = Path(sys.argv[1]), int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


def taped(make, folder):
    fields = {} if make is uneven else {"save_strategy": "steps", "save_steps": 4}
    return make(folder, PROCESSES, tape_at(FOLDER / f"{make.__name__}.json"), repeat=True, **fields)


def endpoint(folder):
    """Each rank has a server of its own; that of the last rank is gone when training begins."""
    server = OpenAIServer(lambda body: SAID)
    trainer = sampled(folder, PROCESSES, feedback=[source_of(server), "rules"], max_steps=2)
    if RANK == PROCESSES - 1:
        server.faults = lambda number: "close"  # connections that are open still
        server.close()
    return trainer


def raising(folder):
    def broken_source(failure):
        if RANK == PROCESSES - 1:
            raise RuntimeError("this rank's source is broken")
        return SAID

    return sampled(folder, PROCESSES, feedback=broken_source, max_steps=2)


class Slow:
    """A source that never answers on the last rank."""

    name, asynchronous = "slow", True

    def start(self, failures):
        return [Future() if RANK == PROCESSES - 1 else completed(Diagnosis(SAID)) for _ in failures]

    def check(self): ...

    def counts(self):
        return {}


def slow(folder):
    return sampled(folder, PROCESSES, feedback=Slow(), feedback_timeout=0.5, max_steps=2)


def turns(folder):
    """The last rank never goes on after a tool call, the others do."""
    trainer = sampled(
        folder, PROCESSES, max_steps=4, max_tool_calling_iterations=2, save_strategy="steps", save_steps=2
    )
    trainer.max_tool_calling_iterations = 0 if RANK == PROCESSES - 1 else 2
    return trainer


def server(folder):
    """TRL's vLLM server mode; the server lives in the first rank's process."""
    stand_in = VLLMStandIn(*load_starter()) if RANK == 0 else None
    with without_vllm(stand_in):
        url = stand_in.url if stand_in else "http://127.0.0.1:1"  # only the first rank speaks to it
        more = {"use_vllm": True, "vllm_mode": "server", "vllm_server_base_url": url, "num_recovery_generations": 4}
        more["max_completion_length"] = 96
        trainer = sampled(folder, PROCESSES, max_steps=4, max_tool_calling_iterations=2, **more)
    trainer.max_tool_calling_iterations = 1 if RANK == PROCESSES - 1 else 2
    trainer.stand_in = stand_in
    return trainer


class Lottery(Desk):
    """Draws its own task, which its snapshot holds."""

    drawn = 1000 * RANK

    def reset(self, **row):
        Lottery.drawn += 1
        self.number = Lottery.drawn
        super().reset(**make_rows(1, seed=self.number, split="train")[0])
        return f"Task {self.number}."

    def _snapshot(self):
        return [super()._snapshot(), self.number]

    def _restore(self, state):
        super()._restore(state[0])
        self.number = state[1]


def in_its_task(prompts, environments, **_):
    """0 in the task that the prompt names, else 1."""
    told = zip(prompts, environments, strict=True)
    return [float(f"Task {one.number}." not in str(prompt)) for prompt, one in told]


def drawn(folder):
    """An environment that draws its tasks: failures of each rank are recovered from on both."""
    more = {"train_dataset": None, "environment_factory": Lottery, "reward_funcs": in_its_task}
    return sampled(folder, PROCESSES, max_steps=2, feedback="fixed", more=more, max_completion_length=24)


class HangsInReset(Desk):
    """On the last rank every fourth `reset` hangs, and the others exit."""

    resets = 0

    def reset(self, **row):
        HangsInReset.resets += 1
        if RANK == PROCESSES - 1:
            time.sleep(600 if HangsInReset.resets % 4 == 1 else 0)
            sys.exit(0)
        super().reset(**row)


def hanging(folder):
    more = {"environment_factory": HangsInReset}
    return sampled(folder, PROCESSES, max_steps=2, tool_timeout=0.2, more=more, max_completion_length=24)


def run(job):
    name, _, begun = job.partition("<")
    folder = FOLDER / str(PROCESSES) / job.replace("<", "_from_")
    checkpoint = None
    if begun:
        copied(FOLDER / begun / name, folder, RANK)
        checkpoint = str(next(folder.glob("checkpoint-[24]")))
    makers = {
        "drawn": drawn,
        "hanging": hanging,
        "endpoint": endpoint,
        "raising": raising,
        "slow": slow,
        "turns": turns,
        "server": server,
    }
    if name == "sampled":
        trainer = sampled(folder, PROCESSES, max_steps=4, save_strategy="steps", save_steps=2)
    elif name in makers:
        trainer = makers[name](folder)
    else:
        trainer = taped({"straddling": straddling, "uneven": uneven, "mixed": mixed}[name], folder)
    with without_vllm(getattr(trainer, "stand_in", None)):
        trainer.train(resume_from_checkpoint=checkpoint)
    left_by(trainer, folder)
    trainer.accelerator.wait_for_everyone()
    return trainer


for job in sys.argv[2:]:
    trainer = run(job)
trainer.accelerator.end_training()
sys.stdout.flush()
os._exit(0)  # on a busy machine gloo's threads now and then abort while the interpreter ends, which is not tested here
