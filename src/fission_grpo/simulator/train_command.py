"""`fission-grpo simulator train`: TRL's SFTTrainer on the data of `fission-grpo simulator data`."""

from __future__ import annotations

import fission_grpo.trl_checked  # noqa: F401 - before TRL

# isort: split
import json
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, disable_progress_bars
from transformers import AutoConfig, AutoTokenizer, PrinterCallback, ProgressCallback
from trl import ModelConfig, SFTConfig, TrlParser, get_peft_config, get_quantization_config

from fission_grpo.evaluation.secrets import shown_command
from fission_grpo.model_path import model_path
from fission_grpo.option_parsing import newest_checkpoint, parse_options
from fission_grpo.simulator import starter_size
from fission_grpo.simulator.instances import TEST, TRAIN
from fission_grpo.simulator.local import LocalSource
from fission_grpo.simulator.settings import SYSTEMS, PromptSettings
from fission_grpo.simulator.trainer import LossLines, SimulatorTrainer
from fission_grpo.simulator.training_rows import Rows, as_rows, fitting, read_rows
from fission_grpo.simulator.trial import try_source
from fission_grpo.training_callbacks import StopAndSave
from fission_grpo.training_tasks import UsageError

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
class ScriptArguments:
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
        (ScriptArguments, SFTConfig, ModelConfig),  # pyright: ignore[reportArgumentType]
        prog="fission-grpo simulator train",
        usage="fission-grpo simulator train --data DIR --model MODEL --output DIR [--option VALUE ...]",
        description=DESCRIPTION,
        allow_abbrev=False,
    )
    parser.set_defaults(max_length=None)
    if not torch.cuda.is_available():
        parser.set_defaults(bf16=False, gradient_checkpointing=False)
    return parser


def parse(argv: list[str]) -> tuple[ScriptArguments, SFTConfig, ModelConfig]:
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
        checkpoint = newest_checkpoint(args.resume_from_checkpoint, args.output_dir)
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


def prompt_settings(script: ScriptArguments, is_starter: bool) -> PromptSettings:
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


def make_trainer(script: ScriptArguments, args: SFTConfig, model: ModelConfig) -> tuple[SimulatorTrainer, Rows]:
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


def measured(trainer: SimulatorTrainer, rows: Rows) -> dict[str, Any]:
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
        source = LocalSource(trainer.model, trainer.processing_class, **asdict(trainer.settings))
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
