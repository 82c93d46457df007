"""One training step of one trainer at one cell, with a clock in each part; run.py starts it in a process of its own.

It imports of the package only what commit e0b301f has too, so that older code can be measured with it.
"""

from __future__ import annotations

import gc
import json
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
import trl
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    TrainerCallback,
)
from trl import GRPOConfig, GRPOTrainer

from fission_grpo import FissionGRPOConfig, FissionGRPOTrainer

WARM_UP = {"common": 80, "own": 8, "completion": 4}  # [ours] tokens of the step before the one that counts


@dataclass(frozen=True)
class Cell:
    """What is trained: N prompts of C common and Q own tokens, each with G completions of R tokens.

    Args:
        model: a folder, which without weights gets random ones; "random": two layers with random weights, for tests.
        layers: first layers of the model only; 0: all.
        device: "cpu" or "cuda".
        dtype: of weights and computation.
    """

    model: str
    layers: int
    common: int
    own: int
    completion: int
    group: int
    groups: int
    device: str = "cpu"
    dtype: str = "float32"

    def tokens(self, way: str) -> int:
        """Tokens that pass through the model once, without sharing ("trl") and with it."""
        prompt, completions = self.common + self.own, self.group * self.completion
        return {
            "trl": self.groups * (self.group * prompt + completions),
            "groups": self.groups * (prompt + completions),
            "tree": self.common + self.groups * (self.own + completions),
        }[way]


@dataclass(frozen=True)
class Run:
    """How it is trained.

    Args:
        way: "trl", "groups" or "tree".
        rows: completions in a micro-batch; gradients are accumulated over all micro-batches of the step.
        generated: groups in a call of `generate`, which takes less memory if they are few; 0: all.
        part: "step"; "generation": the update is left out.
        greedy: the most likely tokens in place of drawn ones.
        save: a file for the gradients and the tokens.
    """

    way: str
    rows: int
    generated: int = 0
    part: str = "step"
    greedy: bool = False
    save: str | None = None


class ProcessMemory:
    """MiB that this process holds in main memory."""

    def held(self) -> float:
        return self._read("VmRSS")

    def peak(self) -> float:
        return self._read("VmHWM")

    def forget_peak(self) -> None:
        Path("/proc/self/clear_refs").write_text("5")

    def _read(self, name: str) -> float:
        return int(Path("/proc/self/status").read_text().split(f"{name}:")[1].split()[0]) / 1024


class GPUMemory:
    """MiB that PyTorch's tensors take on the GPU."""

    def held(self) -> float:
        return torch.cuda.memory_allocated() / 2**20

    def peak(self) -> float:
        return torch.cuda.max_memory_allocated() / 2**20

    def forget_peak(self) -> None:
        torch.cuda.reset_peak_memory_stats()


MEMORY = {"cpu": ProcessMemory, "cuda": GPUMemory}


class Clocks(TrainerCallback):
    """Seconds of each part of every step, [of the processor, on the clock], and its memory.

    "update" is all but generation and optimizer, so that no trainer can hide work between the parts.
    """

    def __init__(self, cell: Cell, run: Run):
        self.cell, self.run, self.memory = cell, run, MEMORY[cell.device]()
        self.steps: list[dict[str, Any]] = []
        self.tokens: list[Any] = []  # drawn in the current step
        self._open: dict[str, tuple[float, float]] = {}

    def attach(self, trainer: Any) -> None:
        """Take the time of the backward passes, and count the tokens that pass through the model."""
        self.trainer, backward = trainer, trainer.accelerator.backward

        def timed_backward(*args, **kwargs):
            with self.part("backward"):
                backward(*args, **kwargs)

        def count_tokens(_, args):
            self.steps[-1]["generation_tokens" if "generation" in self._open else "update_tokens"] += args[0].numel()

        trainer.accelerator.backward = timed_backward
        trainer.model.get_input_embeddings().register_forward_pre_hook(count_tokens)
        trainer.add_callback(self)

    def on_step_begin(self, *args, **kwargs):
        tokens = self.cell.completion if self.steps else min(WARM_UP["completion"], self.cell.completion)
        self.trainer.generation_config.max_new_tokens = self.trainer.generation_config.min_new_tokens = tokens
        self.tokens = []
        gc.collect()
        self.memory.forget_peak()
        self.steps.append({"generation_tokens": 0, "update_tokens": 0, "start_mib": self.memory.held(), "seconds": {}})
        self._start("whole")

    def on_pre_optimizer_step(self, *args, **kwargs):
        with self.part("saving"):
            if self.run.save and len(self.steps) == 2:
                gradients = {n: p.grad for n, p in self.trainer.model.named_parameters() if p.grad is not None}
                torch.save({"tokens": self.tokens, "gradients": gradients}, self.run.save)
        self._start("optimizer")

    def on_optimizer_step(self, *args, **kwargs):
        self._stop("optimizer")

    def on_step_end(self, *args, **kwargs):
        self._stop("whole")
        self.steps[-1]["peak_mib"] = self.memory.peak()
        seconds = self.steps[-1]["seconds"]
        whole, saving, optimizer, generation = (seconds[n] for n in ("whole", "saving", "optimizer", "generation"))
        seconds["whole"] = whole = [a - b for a, b in zip(whole, saving, strict=True)]
        seconds["update"] = [a - b - c for a, b, c in zip(whole, optimizer, generation, strict=True)]

    def reward(self, completions, completion_ids, **_):
        """Every second completion of a group is good, so that every row has a gradient."""
        self.tokens += completion_ids
        return [float(i % 2) for i in range(len(completions))]

    def check(self, inputs: dict[str, Any]) -> None:
        if len(self.steps) < 2:
            return
        prompt, completion = self.cell.common + self.cell.own, self.cell.completion
        if bool(
            (inputs["prompt_mask"].sum(1) != prompt).any() or (inputs["completion_mask"].sum(1) != completion).any()
        ):
            raise SystemExit(f"a row does not have {prompt} and {completion} tokens: this tokenizer splits words")

    @contextmanager
    def part(self, name: str):
        self._start(name)
        yield
        self._stop(name)

    def _start(self, name: str) -> None:
        self._wait()
        self._open[name] = time.process_time(), time.perf_counter()

    def _stop(self, name: str) -> None:
        self._wait()
        processor, clock = self._open.pop(name)
        seconds = self.steps[-1]["seconds"].setdefault(name, [0.0, 0.0])
        seconds[0] += time.process_time() - processor
        seconds[1] += time.perf_counter() - clock

    def _wait(self) -> None:
        if self.cell.device == "cuda":
            torch.cuda.synchronize()


def clocked(way: str, run: Run, clocks: Clocks) -> type:
    """The trainer class of a way, with a clock in generation and in the forward pass of each micro-batch."""
    base: Any = GRPOTrainer if way == "trl" else FissionGRPOTrainer
    if way == "tree" and not hasattr(base, "share_common"):
        raise SystemExit("this version of the package shares within groups only: leave out --ways tree")

    class Clocked(base):
        share_common = way == "tree"

        def _generate(self, *args, **kwargs):
            with clocks.part("generation"):
                return super()._generate(*args, **kwargs)

        def _compute_loss(self, model, inputs):
            if run.part == "generation":
                return next(model.parameters()).sum() * 0
            clocks.check(inputs)
            with clocks.part("log-probabilities"):
                return super()._compute_loss(model, inputs)

    return Clocked


def load(cell: Cell) -> tuple[Any, Any]:
    """Model and tokenizer."""
    if cell.model != "random":
        cut = {"num_hidden_layers": cell.layers} if cell.layers else {}
        tokenizer, dtype = AutoTokenizer.from_pretrained(cell.model), getattr(torch, cell.dtype)
        if any(Path(cell.model).glob("*.safetensors")):
            return AutoModelForCausalLM.from_pretrained(cell.model, dtype=dtype, **cut), tokenizer
        torch.manual_seed(0)
        with torch.device(cell.device):
            config = AutoConfig.from_pretrained(cell.model, **cut)
            return AutoModelForCausalLM.from_config(config, dtype=dtype), tokenizer
    names = [a + b for a in "bcdfghjklm" for b in "aeiou"]
    vocabulary = {name: i for i, name in enumerate(["[PAD]", "[EOS]", *names])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="[PAD]"))  # pyright: ignore[reportCallIssue]
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="[PAD]", eos_token="[EOS]")
    return LlamaForCausalLM(config), tokenizer


def prompts_of(cell: Cell, tokenizer: Any) -> list[str]:
    """N short prompts for the step before the one that counts, and its N prompts; random words of one token each."""
    words = dict.fromkeys(tokenizer.decode([i]).strip() for i in range(min(len(tokenizer), 20_000)))
    plain = (word for word in words if word.isascii() and word.isalpha() and word.islower())
    whole = [word for word in plain if len(tokenizer(f" {word}")["input_ids"]) == 1]
    generator = torch.Generator().manual_seed(0)

    def text(length: int) -> str:
        return "".join(f" {whole[i]}" for i in torch.randint(len(whole), (length,), generator=generator))

    short = min(WARM_UP["common"], cell.common), min(WARM_UP["own"], cell.own)
    prompts = []
    for common, own in (short, (cell.common, cell.own)):
        shared = text(common)
        prompts += [shared + text(own) for _ in range(cell.groups)]
    return prompts


def measure(cell: Cell, run: Run) -> dict[str, Any]:
    """Seconds, tokens and memory of the second of two steps; the first has the self-checks and the optimizer's start.

    The learning rate is 0, so that all trainers take the gradient at the same weights.
    """
    model, tokenizer = load(cell)
    clocks = Clocks(cell, run)
    fields: dict[str, Any] = {
        "max_steps": 2,
        "num_generations": cell.group,
        "per_device_train_batch_size": run.rows,
        "gradient_accumulation_steps": cell.groups * cell.group // run.rows,
        "generation_batch_size": (run.generated or cell.groups) * cell.group,
        "max_completion_length": cell.completion,
        "generation_kwargs": {"do_sample": not run.greedy},
        "learning_rate": 0.0,
        "lr_scheduler_type": "constant",
        "shuffle_dataset": False,
        "use_cpu": cell.device == "cpu",
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": "none",
        "disable_tqdm": True,
        "logging_steps": 1,
        "save_strategy": "no",
    }
    config = GRPOConfig if run.way == "trl" else FissionGRPOConfig
    if run.way != "trl":
        fields["fission"] = False
    data = Dataset.from_list([{"prompt": prompt} for prompt in prompts_of(cell, tokenizer)])
    with tempfile.TemporaryDirectory() as folder:
        trainer = clocked(run.way, run, clocks)(
            model=model,
            reward_funcs=clocks.reward,
            args=config(output_dir=folder, **fields),
            train_dataset=data,
            processing_class=tokenizer,
        )
        clocks.attach(trainer)
        gc.collect()
        loaded = clocks.memory.held()
        trainer.train()
    if run.way != "trl" and trainer.shared_generation.counts["unshared"]:
        raise SystemExit(f"{run.way} did not share in generation: {trainer.shared_generation.reasons}")
    logged = [{k: e[k] for k in ("loss", "grad_norm")} for e in trainer.state.log_history if "loss" in e]
    versions = {"torch": torch.__version__, "transformers": transformers.__version__, "trl": trl.__version__}
    device = torch.cuda.get_device_name() if cell.device == "cuda" else "cpu"
    model_of = {"parameters": sum(p.numel() for p in model.parameters()), "device_name": device}
    return {**clocks.steps[1], "loaded_mib": loaded, "logged": logged[1], "versions": versions, **model_of}


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    found = measure(Cell(**given["cell"]), Run(**given["run"]))
    Path(given["result"]).write_text(json.dumps(found))
