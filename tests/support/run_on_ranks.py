"""Run by test_run_identity.py on two ranks: what each rank raises, and what a finished run does. FOLDER is given."""

import json
import os
import sys
from pathlib import Path

from resume_support import tiny_trainer

FOLDER, RANK = Path(sys.argv[1]), int(os.environ["RANK"])
FIELDS = {"per_device_train_batch_size": 4, "max_steps": 1, "ddp_timeout": 60}
found = {}


def attempt(name, action):
    try:
        found[name] = str(action())
    except (ValueError, OSError) as error:
        found[name] = f"{type(error).__name__}: {error}"


def finished():
    tiny_trainer(FOLDER / "finished", **FIELDS).train()
    trainer = tiny_trainer(FOLDER / "finished", **FIELDS)
    trainer.train(resume_from_checkpoint=True)
    trainer.save_model()
    return trainer.was_finished, trainer.state.global_step, trainer._run


attempt("finished", finished)
attempt("locked", lambda: tiny_trainer(FOLDER / "locked", **FIELDS).train())
attempt("missing", lambda: tiny_trainer(FOLDER / "missing", **FIELDS).train(resume_from_checkpoint=True))
attempt("few", lambda: tiny_trainer(FOLDER / "few", count=1, **FIELDS).train())
(FOLDER / f"rank{RANK}.json").write_text(json.dumps(found))
sys.stdout.flush()
os._exit(0)
