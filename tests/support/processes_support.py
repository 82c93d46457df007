"""Trainings for one, two and four processes: the same rollouts, however many ranks share them, and what is left.

Ranks draw from random generators of their own, so two processes sample other rollouts than one. `Taped` therefore
writes down on one process what the policy said, by optimizer step, turn and global row, and gives out the same on
several. Everything else is real: environments, rewards, diagnoses, buffer, gradients, optimizer.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from datasets import Dataset
from safetensors.torch import save_file
from trainer_settings import QUIETLY_ON_CPU

from fission_grpo import FissionGRPOConfig, FissionGRPOTrainer
from fission_grpo.envs.desk.env import Desk
from fission_grpo.envs.desk.tasks import make_rows
from fission_grpo.inference.pretrained import load_starter

COMMON = {
    **QUIETLY_ON_CPU,
    "use_cpu": os.environ.get("ACCELERATE_USE_DEEPSPEED") != "true",  # accelerate has no DeepSpeed with it
    "learning_rate": 1e-3,
    "max_completion_length": 96,
    "max_tool_calling_iterations": 2,
}


class Taped(FissionGRPOTrainer):
    """Samples and writes down, or repeats what was written down; a prompt that is not the one on the tape is an error.

    Args:
        tape: {"step turn row": {"prompt": ids, "said": ids}}, filled while `repeat` is false.
        repeat: give out what the tape holds.
    """

    def __init__(self, *args, tape, repeat, **kwargs):
        super().__init__(*args, **kwargs)
        self.tape, self.repeat, self.pushed = tape, repeat, {}

    def _buffer_feedback(self):
        super()._buffer_feedback()
        self.pushed |= {item.task.id: item.to_json() for item in self.fission.buffer}

    def _generate(self, prompts):
        self._turn, self._first = 0, self.accelerator.process_index * len(prompts)
        self._dialogues = {row: [] for row in range(len(prompts))}  # ids so far of local rows that are not done
        return super()._generate(prompts)

    def _generate_single_turn(self, prompt_ids, *args, **kwargs):
        rows = self._rows_of(prompt_ids)
        keys = [f"{self.state.global_step} {self._turn} {self._first + row}" for row in rows]
        if self.repeat:
            assert [self.tape[key]["prompt"] for key in keys] == prompt_ids, "other prompts than on the tape"
            said, logprobs = [list(self.tape[key]["said"]) for key in keys], None
        else:
            said, logprobs = super()._generate_single_turn(prompt_ids, *args, **kwargs)
            entries = zip(keys, prompt_ids, said, strict=True)
            self.tape |= {key: {"prompt": list(ids), "said": list(new)} for key, ids, new in entries}
        self._dialogues = {row: ids + new for row, ids, new in zip(rows, prompt_ids, said, strict=True)}
        self._turn += 1
        return said, logprobs

    def _rows_of(self, prompt_ids):
        """The local rows whose dialogues these prompts continue; rows keep their order from turn to turn."""
        left, rows = list(self._dialogues), []
        for ids in prompt_ids:
            row = next(row for row in left if ids[: len(self._dialogues[row])] == self._dialogues[row])
            left.remove(row)
            rows.append(row)
        return rows


def tape_at(path):
    return json.loads(path.read_text()) if path.exists() else {}


def copied(run, folder, rank):
    """The run directory of a training, to be gone on with elsewhere. The first rank copies, the others wait."""
    done = folder.with_suffix(".copied")
    if rank == 0:
        shutil.copytree(run, folder)
        done.touch()
    while not done.exists():
        time.sleep(0.05)


def desk(folder, config, trainer=Taped, feedback="rules", **more):
    model, tokenizer = load_starter()
    given = {
        "train_dataset": Dataset.from_list(make_rows(16, seed=5, split="train")),
        "environment_factory": Desk,
        "feedback": feedback,
    }
    args = FissionGRPOConfig(output_dir=str(folder), **(COMMON | config))
    return trainer(model=model, args=args, processing_class=tokenizer, **(given | more))


def sampled(folder, processes, feedback="rules", more=None, **fields):
    """Episodes in an environment, sampled by every rank for its own rows: 16 rows a cycle, 2 groups, or 2 contexts."""
    config = {
        "per_device_train_batch_size": 16 // processes,
        "num_generations": 8,
        "max_steps": 3,
        "max_completion_length": 64,
        "max_tool_calling_iterations": 1,
    }
    return desk(folder, config | fields, feedback=feedback, tape={}, repeat=False, **(more or {}))


def straddling(folder, processes, tape, repeat, **fields):
    """Episodes in an environment: 24 rows a cycle, groups of 8 and of 12 (over 2 ranks, over 3 of 4), two updates."""
    config = {
        "per_device_train_batch_size": 12 // processes,
        "gradient_accumulation_steps": 2,
        "steps_per_generation": 2,
        "num_iterations": 2,
        "num_generations": 8,
        "num_recovery_generations": 12,
        "max_steps": 8,
    }
    return desk(folder, config | fields, tape=tape, repeat=repeat)


def mixed(folder, processes, tape, repeat, **fields):
    """As `straddling`, with 2 recovery groups of 6 beside 3 explored ones of 4 in a batch, as soon as there are 2."""
    config = {"num_generations": 4, "num_recovery_generations": 6, "recovery_batches": "mixed"}
    return straddling(folder, processes, tape, repeat, **(config | {"recovery_reward": "strict"} | fields))


def third_letter(completions, easy, **_):
    """All easy rows succeed; of the hard ones a third or so, by the length of what was said."""
    texts = [completion[0]["content"] for completion in completions]
    return [1.0 if one else float(len(text) % 3 == 0) for one, text in zip(easy, texts, strict=True)]


def uneven(folder, processes, tape, repeat, **fields):
    """Plain text: the first half of the ranks never fails and has no advantage, the others have long prompts."""
    model, tokenizer = load_starter()
    rows = []
    for number, row in enumerate(make_rows(16, seed=7, split="train")):
        text = row["prompt"][-1]["content"] * (1 if number % 2 == 0 else 3)
        rows.append({"id": f"u{number}", "prompt": [{"role": "user", "content": text}], "easy": number % 2 == 0})
    config = {
        "per_device_train_batch_size": 16 // processes,
        "num_generations": 8,
        "num_recovery_generations": 16,  # one context, over all ranks
        "max_steps": 4,
        "max_completion_length": 24,
        "shuffle_dataset": False,
        "optim": "sgd",  # unlike Adam it does not forgive a gradient of the wrong size
        "learning_rate": 0.005,
    }
    return Taped(
        model=model,
        args=FissionGRPOConfig(output_dir=str(folder), **(COMMON | config | fields)),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        reward_funcs=third_letter,
        tape=tape,
        repeat=repeat,
    )


def parameters_of(trainer):
    """The policy's parameters, whole also where each rank holds a part of them."""
    named = dict(trainer.accelerator.unwrap_model(trainer.model).named_parameters())
    with trainer._dist.gather_params(list(named.values())):
        whole = {name: getattr(value, "full_tensor", lambda value=value: value)() for name, value in named.items()}
        return {name: value.detach().clone().contiguous() for name, value in whole.items()}


def left_by(trainer, folder):
    """Write down what this rank holds after a training, in its output directory; the parameters once."""
    rank, parameters = trainer.accelerator.process_index, parameters_of(trainer)
    left = {
        "fission": trainer.fission.state(),
        "pushed": trainer.pushed,
        "displaced": list(trainer.deferred.rows),
        "parameters": hashlib.sha256(b"".join(x.numpy().tobytes() for x in parameters.values())).hexdigest(),
        "history": trainer.state.log_history,
        "tokens": trainer.generated_tokens,
        "unshared": sorted(trainer.shared_generation.reasons),
        "distributed": trainer.accelerator.distributed_type.value,
        "kinds": sorted({type(x).__name__ for x in trainer.model.parameters()}),
        "tape": {} if trainer.repeat else trainer.tape,
    }
    if stand_in := getattr(trainer, "stand_in", None):
        left |= {"asked": stand_in.asked, "synced": stand_in.synced}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"rank{rank}.json").write_text(json.dumps(left))
    if rank == 0:
        save_file(parameters, folder / "parameters.safetensors")


def launched(processes, script, *arguments, variables=None, timeout=600):
    """Run a script of this folder on several ranks of this machine; gives its standard error."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"} | (variables or {})
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    done = subprocess.run(
        [*command, str(Path(__file__).parent / script), *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-8000:]
    return done.stderr
