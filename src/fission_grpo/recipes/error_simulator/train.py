"""`fission-grpo simulator train`: TRL's SFTTrainer on the data of `fission-grpo simulator data`."""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, disable_progress_bars
from transformers import AutoConfig, AutoTokenizer, PrinterCallback, ProgressCallback, TrainerCallback
from trl import ModelConfig, SFTConfig, SFTTrainer, TrlParser, get_peft_config, get_quantization_config

from fission_grpo.core.errors import UsageError
from fission_grpo.core.json_io import encodable
from fission_grpo.core.timing import format_duration
from fission_grpo.feedback.dataset import (
    TEST,
    TRAIN,
    FeedbackExample,
    load_examples,
)
from fission_grpo.feedback.local_model import LocalModelFeedback
from fission_grpo.feedback.prompt import LEFT_TO_RULES, SYSTEMS, PromptSettings, write_settings
from fission_grpo.inference.pretrained import model_path
from fission_grpo.inference.secrets import shown_command
from fission_grpo.recipes.error_simulator import tiny_model as starter_size
from fission_grpo.recipes.error_simulator.check import try_source
from fission_grpo.recipes.starter_policy.train import muon_update
from fission_grpo.training.arguments import parse_options
from fission_grpo.training.callbacks import StopAndSave
from fission_grpo.training.checkpoint import resume_point

MOMENTUM = 0.95


class SimulatorTrainer(SFTTrainer):
    """An `SFTTrainer` that writes `simulator.json` beside every model it saves.

    Args:
        settings: of the prompts.
        prompt_weight: loss weight of the prompt's tokens in training; 0 is TRL's completion-only loss. Evaluation is
            always of the completions only.
        muon: use `MuonAdamW`.
    """

    def __init__(
        self, *args: Any, settings: PromptSettings, prompt_weight: float = 0.0, muon: bool = False, **kwargs: Any
    ):
        self.settings, self._prompt_weight, self._muon = settings, prompt_weight, muon
        super().__init__(*args, **kwargs)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if not self._prompt_weight or not model.training or return_outputs:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        ids, labels, mask = inputs["input_ids"], inputs["labels"], inputs["attention_mask"]
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1]
        losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
        own = (labels[:, 1:] != -100).flatten().float()
        weights = own + self._prompt_weight * (mask[:, 1:].flatten().float() - own)
        loss = (losses * weights).sum() / weights.sum()  # a mean, so that losses and gradients keep their usual size
        return loss if num_items_in_batch is None else loss * own.sum() / num_items_in_batch

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        if self._muon and self.optimizer is None:
            trained: Any = self.model if model is None else model
            self.optimizer = MuonAdamW(trained, self.args.learning_rate)
        return super().create_optimizer(model)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            write_settings(Path(str(output_dir or self.args.output_dir)), self.settings)


class MuonAdamW(torch.optim.AdamW):
    """Muon (Jordan 2024) for the layers' matrices, AdamW for embeddings and norms, at one learning rate."""

    def __init__(self, model: torch.nn.Module, lr: float):
        named = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
        matrices = [weight for name, weight in named if weight.ndim == 2 and "embed" not in name]
        rest = [weight for name, weight in named if weight.ndim != 2 or "embed" in name]
        groups = [{"params": matrices, "muon": True}, {"params": rest, "muon": False}]
        super().__init__(groups, lr=lr, betas=(0.9, 0.98), weight_decay=0.01)

    @torch.no_grad()
    def step(self, closure=None):
        groups = self.param_groups
        self.param_groups = [group for group in groups if not group["muon"]]
        loss = super().step(closure)
        self.param_groups = groups
        for group in groups:
            if group["muon"]:
                self._muon_step(group)
        return loss

    def _muon_step(self, group: dict[str, Any]) -> None:
        by_shape: dict[Any, list[torch.Tensor]] = {}
        for weight in group["params"]:
            if weight.grad is not None:
                by_shape.setdefault(weight.shape, []).append(weight)
        for same in by_shape.values():
            for weight in same:
                state = self.state[weight]
                if "momentum" not in state:
                    state["momentum"], state["step"] = (
                        torch.zeros_like(weight),
                        torch.tensor(0.0),
                    )  # AdamW wants a step
                state["momentum"].lerp_(weight.grad, 1 - MOMENTUM)  # pyright: ignore[reportArgumentType]
            directions = [weight.grad.lerp(self.state[weight]["momentum"], MOMENTUM) for weight in same]  # pyright: ignore
            for weight, update in zip(same, muon_update(directions), strict=True):
                weight.mul_(1 - group["lr"] * group["weight_decay"]).sub_(group["lr"] * update)


class LossLines(TrainerCallback):
    """One line on stderr per log: step, loss, and the time left."""

    def on_train_begin(self, args, state, control, **kwargs):
        self._began, self._first = time.monotonic(), state.global_step

    def on_log(self, args, state, control, logs=None, **kwargs):
        done = state.global_step - self._first
        if not state.is_world_process_zero or not logs or "loss" not in logs or done < 1:
            return
        left = (state.max_steps - state.global_step) * (time.monotonic() - self._began) / done
        line = f"step {state.global_step}/{state.max_steps} · loss {logs['loss']:.4f} · {format_duration(left)} left"
        print(line, file=sys.stderr, flush=True)


TrainingRow = dict[str, list[dict[str, str]]]


HELD_OUT = 0.1
"""Most of the training rows kept back, to tell unseen rows from unseen APIs. [ours]"""


@dataclass(frozen=True)
class TrainingRows:
    """To train on; to measure on, of the same APIs (`seen`) and of others (`unseen`); how many were left out."""

    train: Sequence[FeedbackExample]
    seen: Sequence[FeedbackExample]
    unseen: Sequence[FeedbackExample]
    left_to_rules: int = 0
    too_long: int = 0


def read_rows(data: str | None, seed: int, max_rows: int = 0, evaluate_rows: int = 0) -> TrainingRows:
    """The data, split. Rows of the kinds that no local model is asked about are left out, and unlabelled ones refused.

    Args:
        data: the folder.
        seed: of the shuffling.
        max_rows: trained on at most; 0: all.
        evaluate_rows: of each kind kept for measuring; of seen APIs at most `HELD_OUT` of the rows.

    Raises:
        UsageError: no data given, or nothing left to train on.
        TaskFileError: a file is missing or has a mistake.
    """
    if not data:
        raise UsageError("data is missing; give the folder that `fission-grpo simulator data` wrote")
    folder = Path(data).expanduser()
    found, unseen = load_examples(folder / TRAIN), []
    if (folder / TEST).is_file() and (folder / TEST).stat().st_size:
        unseen = load_examples(folder / TEST)
    for name, some in ((TRAIN, found), (TEST, unseen)):
        for one in some:
            if not one.diagnosis:
                raise UsageError(f"{folder / name}, id {one.id!r}, field 'diagnosis': is empty; label it first")
    asked = [one for one in found if one.failure.kind not in LEFT_TO_RULES]
    unseen = [one for one in unseen if one.failure.kind not in LEFT_TO_RULES]
    if not asked:
        kinds = ", ".join(sorted(LEFT_TO_RULES))
        raise UsageError(f"{folder / TRAIN}: every row is of a kind that is left to the rules ({kinds})")
    draw = random.Random(seed)
    draw.shuffle(asked)
    draw.shuffle(unseen)
    back = min(evaluate_rows, int(HELD_OUT * len(asked)))
    train = asked[back:][: max_rows or None]
    return TrainingRows(train, asked[:back], unseen[:evaluate_rows], len(found) - len(asked))


def fitting(rows: TrainingRows, settings: PromptSettings, tokenizer: Any, tokens: int) -> TrainingRows:
    """Without training rows longer than so many tokens, whose diagnoses would be cut off.

    Raises:
        UsageError: none is left.
    """
    template = {"tokenize": True, "return_dict": True}
    lengths = [len(tokenizer.apply_chat_template(_all(one, settings), **template)["input_ids"]) for one in rows.train]
    kept = [one for one, length in zip(rows.train, lengths, strict=True) if length <= tokens]
    if not kept:
        raise UsageError(
            f"every row is longer than {tokens} tokens (the shortest has {min(lengths)}); lower characters, set "
            "brief, or raise max_length"
        )
    return replace(rows, train=kept, too_long=len(rows.train) - len(kept))


def as_rows(instances: Sequence[FeedbackExample], settings: PromptSettings) -> list[TrainingRow]:
    """TRL's conversational prompt-completion rows."""
    dialogues = [_all(one, settings) for one in instances]
    return [{"prompt": dialogue[:-1], "completion": dialogue[-1:]} for dialogue in dialogues]


def _all(one: FeedbackExample, settings: PromptSettings) -> list[dict[str, str]]:
    messages = [*settings.messages(one.failure), {"role": "assistant", "content": one.diagnosis}]
    return [{"role": str(message["role"]), "content": encodable(str(message["content"]))} for message in messages]


RECORD = "training.json"


RATES = {"full": 2e-5, "lora": 2e-4}
"""Default learning rates: TRL's own for all weights, ten times that for an adapter. [ours]"""


DESCRIPTION = f"""\
Train a model to write diagnoses, with TRL's SFTTrainer and loss on the diagnoses only. Every option below can stand
in the YAML file of --config FILE (without the dashes) and be overridden on the command line. Beyond our own options
these are TRL's SFTConfig and ModelConfig. --model_name_or_path (or --model) is a folder, a hub id, or
'{starter_size.NAME}': a new model of 1.2M parameters that learns in minutes on one core, with a little loss on the
prompt too. --use_peft true trains a LoRA adapter. The folder of --output_dir (or --output) holds all that a
diagnosis source needs. Ctrl-C saves a checkpoint and says how to resume."""


@dataclass
class SimulatorTrainArguments:
    """What `fission-grpo simulator train` needs beyond TRL's own configuration."""

    data: str | None = field(
        default=None,
        metadata={
            "help": f"Folder of `fission-grpo simulator data`, with {TRAIN} and {TEST} (unseen APIs). Required."
        },
    )
    characters: int | None = field(
        default=None,
        metadata={
            "help": f"Longest prompt. Default: 24000; {starter_size.SETTINGS.characters} of {starter_size.NAME}."
        },
    )
    system: str | None = field(
        default=None,
        metadata={
            "help": f"System prompt: full or short. Default: full; short of {starter_size.NAME}.",
            "choices": list(SYSTEMS),
        },
    )
    brief: bool | None = field(
        default=None,
        metadata={"help": f"Show tools as signatures only. Default: false; true of {starter_size.NAME}."},
    )
    prompt_weight: float | None = field(
        default=None,
        metadata={
            "help": "Loss weight of the prompt's tokens, which teaches a new model to copy. Default: 0; "
            f"{starter_size.PROMPT_WEIGHT} of {starter_size.NAME}."
        },
    )
    max_rows: int = field(default=0, metadata={"help": "Train on this many rows at most, drawn by `seed`; 0: all."})
    evaluate_rows: int = field(
        default=200,
        metadata={"help": "Rows of each kind (seen and unseen APIs) on which it is measured at the end; 0: none."},
    )


def make_parser() -> TrlParser:
    """The parser of `fission-grpo simulator train`: dataclasses only, no abbreviated options."""
    parser = TrlParser(
        (SimulatorTrainArguments, SFTConfig, ModelConfig),  # pyright: ignore[reportArgumentType]
        prog="fission-grpo simulator train",
        usage="fission-grpo simulator train --data DIR --model MODEL --output DIR [--option VALUE ...]",
        description=DESCRIPTION,
        allow_abbrev=False,
    )
    parser.set_defaults(max_length=None)
    if not torch.cuda.is_available():
        parser.set_defaults(bf16=False, gradient_checkpointing=False)
    return parser


def parse(argv: list[str]) -> tuple[SimulatorTrainArguments, SFTConfig, ModelConfig]:
    """Read the YAML file and the command line; the defaults of some options depend on the model.

    Raises as `parse_options` does.
    """
    names = {"--model": "--model_name_or_path", "--output": "--output_dir"}
    argv = ["=".join([names.get(name, name), *value]) for name, *value in (arg.split("=", 1) for arg in argv)]
    _, _, model = parse_options(make_parser(), argv)
    parser = make_parser()
    if model.model_name_or_path == starter_size.NAME:
        parser.set_defaults(**starter_size.TRAINING)
    else:
        parser.set_defaults(learning_rate=RATES["lora" if model.use_peft else "full"])
    return parse_options(parser, argv)  # pyright: ignore[reportReturnType]


def train_command(argv: list[str]) -> int:
    """Run `fission-grpo simulator train`.

    Returns:
        0; 2 after one line on stderr about a mistake in configuration, data or model; 128 + the signal that stopped
        the run after a checkpoint was saved. What goes wrong during training is raised.
    """
    if "-h" in argv or "--help" in argv:
        make_parser().print_help()
        return 0
    if not sys.stderr.isatty():
        disable_progress_bars()  # of tokenization
    try:
        script, args, model = parse(argv)
        checkpoint = resume_point(args)
        trainer, rows = make_trainer(script, args, model)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    began, spent = time.monotonic(), time.process_time()
    with StopAndSave() as stop:
        trainer.add_callback(stop)
        trainer.train(resume_from_checkpoint=checkpoint)
    if stop.signal is not None and trainer.state.global_step < trainer.state.max_steps:
        resume = ["--resume_from_checkpoint", "true"]
        again = argv if argv[-2:] == resume else [*argv, *resume]  # the last one counts
        print(f"stopped at step {trainer.state.global_step} of {trainer.state.max_steps}, checkpoint saved. Resume:")
        print(f"  {shown_command(['fission-grpo', 'simulator', 'train', *again])}")
        return 128 + stop.signal
    trainer.save_model()
    trainer.save_state()
    took = {"minutes": time.monotonic() - began, "processor_minutes": time.process_time() - spent}
    record = measured(trainer, rows) | {name: round(seconds / 60, 1) for name, seconds in took.items()}
    record = {"model": model.model_name_or_path, "data": script.data, "prompt": asdict(trainer.settings), **record}
    if trainer.is_world_process_zero():
        path = Path(str(args.output_dir)) / RECORD
        path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        print(summary(record))
        print(f"model saved in {args.output_dir}, with {path.name}")
    return 0


def prompt_settings(script: SimulatorTrainArguments, is_starter: bool) -> PromptSettings:
    """What prompts are made with: the options given, else the model's defaults. Raises UsageError out of range."""
    default = starter_size.SETTINGS if is_starter else PromptSettings()
    settings = PromptSettings(
        SYSTEMS[script.system] if script.system else default.system,
        default.characters if script.characters is None else script.characters,
        default.brief if script.brief is None else script.brief,
    )
    numbers = ("max_rows", "evaluate_rows", "prompt_weight")
    if settings.characters < 1 or any((getattr(script, name) or 0) < 0 for name in numbers):
        raise UsageError(f"characters must be positive, and {', '.join(numbers)} must not be negative")
    return settings


def make_trainer(
    script: SimulatorTrainArguments, args: SFTConfig, model: ModelConfig
) -> tuple[SimulatorTrainer, TrainingRows]:
    """The trainer with model and data in place, and the rows.

    Raises:
        UsageError, ValueError, OSError: the data or the model cannot be used.
    """
    if not model.model_name_or_path:
        raise UsageError(f"model is missing; give a folder, a hub id, or '{starter_size.NAME}'")
    is_starter = model.model_name_or_path == starter_size.NAME
    settings = prompt_settings(script, is_starter)
    rows = read_rows(script.data, args.seed, script.max_rows, script.evaluate_rows)
    weight = script.prompt_weight
    if is_starter:
        loaded, tokenizer = starter_size.make_starter_size(rows.train, settings, args.seed)
        weight, context = starter_size.PROMPT_WEIGHT if weight is None else weight, starter_size.POSITIONS
    else:
        loaded, tokenizer, context = named_model(model, args)
    rows = fitting(rows, settings, tokenizer, min(one for one in (args.max_length, context, 10**9) if one))
    measured_on = {name: some for name, some in (("seen", rows.seen), ("unseen", rows.unseen)) if some}
    sets = {name: Dataset.from_list(as_rows(some, settings)) for name, some in measured_on.items()}
    trainer = SimulatorTrainer(
        model=loaded,
        args=args,
        train_dataset=Dataset.from_list(as_rows(rows.train, settings)),
        eval_dataset=sets or None,
        processing_class=tokenizer,
        quantization_config=get_quantization_config(model),
        peft_config=get_peft_config(model),
        callbacks=[LossLines()],
        settings=settings,
        prompt_weight=weight or 0.0,
        muon=is_starter,
    )
    trainer.remove_callback(ProgressCallback)
    trainer.remove_callback(PrinterCallback)
    return trainer, rows


def named_model(model: ModelConfig, args: SFTConfig) -> tuple[str, Any, int | None]:
    """A model's path (TRL loads it, as `args.model_init_kwargs` then say), its tokenizer, and its context in tokens.

    Raises:
        UsageError, ValueError, OSError: there is none, or it cannot chat.
    """
    assert model.model_name_or_path
    path = model_path(model.model_name_or_path)
    given = {"revision": model.model_revision, "trust_remote_code": args.trust_remote_code}
    tokenizer = AutoTokenizer.from_pretrained(path, **given)
    if not getattr(tokenizer, "chat_template", None):
        raise UsageError(f"model: {path} has no chat template; take an instruction-tuned model, or add one")
    config = AutoConfig.from_pretrained(path, **given).get_text_config(decoder=True)
    args.model_init_kwargs = {
        **given,
        "attn_implementation": model.attn_implementation,
        "dtype": model.dtype,
        "use_safetensors": True,
        **(args.model_init_kwargs or {}),  # pyright: ignore[reportGeneralTypeIssues]
    }
    return path, tokenizer, getattr(config, "max_position_embeddings", None)


def measured(trainer: SimulatorTrainer, rows: TrainingRows) -> dict[str, Any]:
    """What `training.json` holds: rows, sizes, losses, and how the trained model does on rows it has not seen."""
    state, weights = trainer.state, list(trainer.model.parameters())  # pyright: ignore[reportOptionalMemberAccess]
    losses = [{"step": one["step"], "loss": round(one["loss"], 4)} for one in state.log_history if "loss" in one]
    record: dict[str, Any] = {
        "rows": {"train": len(rows.train), "seen": len(rows.seen), "unseen": len(rows.unseen)},
        "left_out": {"kinds left to rules": rows.left_to_rules, "too long": rows.too_long},
        "parameters": sum(weight.numel() for weight in weights),
        "trained": sum(weight.numel() for weight in weights if weight.requires_grad),
        "steps": state.global_step,
        "losses": losses,
    }
    if rows.seen or rows.unseen:
        found = trainer.evaluate()
        record["evaluation_loss"] = {
            name: round(found[f"eval_{name}_loss"], 4) for name in ("seen", "unseen") if f"eval_{name}_loss" in found
        }
        source = LocalModelFeedback(trainer.model, trainer.processing_class, settings=trainer.settings)
        trials = {"seen": try_source(source, rows.seen), "unseen": try_source(source, rows.unseen)}
        record["trial"] = {name: asdict(trial) for name, trial in trials.items() if trial}
    return record


def summary(record: dict[str, Any]) -> str:
    """A few lines for the terminal."""
    rows, losses = record["rows"], record["losses"]
    lines = [
        f"{record['model']}: {record['trained']:,} of {record['parameters']:,} parameters trained on "
        f"{rows['train']:,} rows, {record['steps']} steps, {record['minutes']} minutes"
    ]
    lines += [f"{count:,} rows left out: {why}" for why, count in record["left_out"].items() if count]
    if losses:
        lines.append(f"training loss {losses[0]['loss']} -> {losses[-1]['loss']}")
    for name, trial in record.get("trial", {}).items():
        lines.append(
            f"{name} APIs, {trial['rows']} rows: loss {record['evaluation_loss'][name]}, as the teacher "
            f"{trial['exact']:.1%}, specific {trial['specific']:.1%}, leaked {trial['leaked']:.1%}, no usable text "
            f"{trial['fallback']:.1%} {trial['reasons'] or ''}"
        )
    return "\n".join(lines)
