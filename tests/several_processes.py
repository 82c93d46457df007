"""Run by test_processes.py on 2 and on 4 ranks: FOLDER, which holds the tapes of one process, then names of jobs."""

import os
import sys
import time
from pathlib import Path

from processes_support import left_by, straddling, tape_at, uneven

folder, jobs = Path(sys.argv[1]), sys.argv[2:]
processes = int(os.environ["WORLD_SIZE"])
here = folder / str(processes)

import faulthandler; faulthandler.dump_traceback_later(100, exit=True)
for job in jobs:
    began = time.monotonic()
    make, _, begun = job.partition("<")  # "straddling<1": resumed from the checkpoint of one process
    make = {"straddling": straddling, "uneven": uneven}[make]
    fields = {"save_strategy": "steps", "save_steps": 4} if make is straddling else {}
    name = job.replace("<", "_from_")
    trainer = make(here / name, processes, tape_at(folder / f"{make.__name__}.json"), repeat=True, **fields)
    checkpoint = folder / begun / "straddling" / "checkpoint-4"
    trainer.train(resume_from_checkpoint=str(checkpoint) if begun else None)
    left_by(trainer, here, name)
    print(f"{processes} {job} {time.monotonic() - began:.1f}", file=sys.stderr)
    trainer.accelerator.wait_for_everyone()
trainer.accelerator.end_training()
sys.stdout.flush()
os._exit(0)  # on a busy machine gloo's threads now and then abort while the interpreter ends, which is not tested here
