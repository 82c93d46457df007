"""`fission-grpo simulator train`: train an Error Simulator with TRL's SFTTrainer on the data of `simulator data`."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoConfig, AutoTokenizer, TrainerCallback
from trl import ModelConfig, SFTConfig, SFTTrainer, TrlParser, get_peft_config, get_quantization_config

from fission_grpo.core.errors import UsageError
from fission_grpo.core.files import write_file
from fission_grpo.core.json_io import encodable
from fission_grpo.core.terminal import show
from fission_grpo.evaluation.metrics import metrics_json
from fission_grpo.feedback.dataset import TEST, TRAIN, FeedbackExample, load_examples
from fission_grpo.feedback.local_model import LocalModelFeedback
from fission_grpo.feedback.prompt import LEFT_TO_RULES, SHORT_SYSTEM, SYSTEMS, PromptSettings, write_settings
from fission_grpo.feedback.runtime_messages import learn_templates
from fission_grpo.inference.pretrained import model_path
from fission_grpo.recipes.error_simulator.check import check_source, metrics_table
from fission_grpo.recipes.starter_policy.tokenizer import train_tokenizer
from fission_grpo.recipes.starter_policy.train import make_model
from fission_grpo.training.arguments import parse_options
from fission_grpo.training.callbacks import StopAndSave, print_resume_command
from fission_grpo.training.resume import resume_point

RECORD = "training.json"
HELD_OUT = 0.1  # most of the training rows kept for evaluation on seen APIs [ours]
RATES = {"full": 2e-5, "lora": 2e-4}  # learning rates: TRL's own, and ten times that for an adapter [ours]

TINY = "tiny"
SMALL = (TINY, "starter")  # models of a million parameters, which have defaults of their own
TINY_VOCABULARY, TINY_POSITIONS = 2000, 1024  # tokens [ours]
TINY_SETTINGS = PromptSettings(SHORT_SYSTEM, characters=400, brief=True)  # about 150 tokens [ours]
TINY_TRAINING = {  # [ours]
    "learning_rate": 3e-3,
    "lr_scheduler_type": "cosine_with_min_lr",
    "lr_scheduler_kwargs": {"min_lr_rate": 0.05},
    "warmup_steps": 0.03,
    "per_device_train_batch_size": 8,
    "num_train_epochs": 6,
    "gradient_checkpointing": False,
    "bf16": False,
}
DESCRIPTION = f"""\
Train a model to write feedback, with TRL's SFTTrainer and loss on the feedback only. Every option below can also be
given in the YAML file of --config FILE (without the dashes); the command line overrides it. Beyond our own options
these are TRL's SFTConfig and ModelConfig. --model_name_or_path (or --model) is a folder, a hub id, or, for machines
without a GPU, '{TINY}': a new model of 1.2M parameters, or 'starter': the starter policy, with the same defaults.
--use_peft true trains a LoRA adapter. The folder of --output_dir (or --output) holds all that a feedback source needs.
Ctrl-C saves a checkpoint and says how to resume."""


def _option(default: Any, text: str, **metadata: Any) -> Any:
    return field(default=default, metadata={"help": text, **metadata})


@dataclass
class SimulatorTrainArguments:
    """The options of `fission-grpo simulator train` beyond TRL's own."""

    data: str | None = _option(None, f"Folder of `simulator data`, with {TRAIN} and {TEST} (unseen APIs). Required.")
    characters: int | None = _option(None, f"Longest prompt. Default: 24000; {TINY_SETTINGS.characters} for {TINY}.")
    system: str | None = _option(
        None, f"System prompt: full or short. Default: full; short for {TINY}.", choices=list(SYSTEMS)
    )
    brief: bool | None = _option(None, f"Show tools as signatures only. Default: false; true for {TINY}.")
    max_rows: int = _option(0, "Train on this many rows at most, drawn by `seed`; 0: all.")
    evaluate_rows: int = _option(200, "Rows of seen and of unseen APIs for the evaluation at the end; 0: none.")


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
    """Read the YAML file and the command line; the defaults of some options depend on the model."""
    names = {"--model": "--model_name_or_path", "--output": "--output_dir"}
    argv = ["=".join([names.get(name, name), *value]) for name, *value in (arg.split("=", 1) for arg in argv)]
    _, _, model = parse_options(make_parser(), argv)
    parser = make_parser()
    if model.model_name_or_path in SMALL:
        parser.set_defaults(**TINY_TRAINING)
    else:
        parser.set_defaults(learning_rate=RATES["lora" if model.use_peft else "full"])
    return parse_options(parser, argv)  # pyright: ignore[reportReturnType]


def train_command(argv: list[str]) -> int:
    """Run the command. Returns 0; 2 after a mistake in options, data or model; 128 + the signal that stopped it."""
    if "-h" in argv or "--help" in argv:
        make_parser().print_help()
        return 0
    try:
        script, args, model = parse(argv)
        checkpoint = resume_point(args)
        trainer, rows, settings = make_trainer(script, args, model)
    except (ValueError, OSError) as error:
        show(f"error: {error}", error=True)
        return 2
    started = time.monotonic()
    with StopAndSave() as stop:
        trainer.add_callback(stop)
        trainer.train(resume_from_checkpoint=checkpoint)
    if stop.signal is not None and trainer.state.global_step < trainer.state.max_steps:
        print_resume_command(trainer.state, ["fission-grpo", "simulator", "train", *argv])
        return 128 + stop.signal
    trainer.save_model()
    trainer.save_state()
    minutes = round((time.monotonic() - started) / 60, 1)
    prompt = {name: value for name, value in asdict(settings).items() if name != "templates"}
    record = {"model": model.model_name_or_path, "data": script.data, "prompt": prompt}
    record |= {"templates": len(settings.templates)}
    record |= {**evaluate_training(trainer, rows, settings), "minutes": minutes}
    if trainer.is_world_process_zero():
        folder = Path(str(args.output_dir))
        write_settings(folder, settings)
        write_file(folder / RECORD, json.dumps(record, indent=1) + "\n")
        show(
            f"{record['trained']:,} of {record['parameters']:,} parameters trained in {minutes} minutes; rows left "
            f"out: {record['left_out']}"
        )
        show(f"model saved in {folder}, with {RECORD}")
    return 0


def make_trainer(
    script: SimulatorTrainArguments, args: SFTConfig, model: ModelConfig
) -> tuple[SFTTrainer, TrainingRows, PromptSettings]:
    """The trainer with model and data, the rows, and the settings of the prompts.

    Raises UsageError, ValueError or OSError if the data or the model cannot be used.
    """
    name = model.model_name_or_path
    if not name:
        raise UsageError(f"model is missing; give a folder, a hub id, or '{TINY}'")
    if name == "starter-size":
        raise UsageError(f"model 'starter-size' is now called '{TINY}'; give --model {TINY}")
    settings = prompt_settings(script, TINY_SETTINGS if name in SMALL else PromptSettings())
    rows = read_rows(script.data, args.seed, script.max_rows, script.evaluate_rows)
    if name == TINY:
        loaded, tokenizer = make_tiny_model(rows.train, settings, args.seed)
        context = TINY_POSITIONS
    else:
        loaded, tokenizer, context = load_pretrained(name, model, args)
    templates, left_out = learn_templates(rows.train)
    settings = replace(settings, templates=templates)
    if left_out:
        show(f"{left_out} rare templates of environment messages are left out; their texts are guarded", error=True)
    limits = [limit for limit in (args.max_length, context) if limit]
    rows = drop_long_rows(rows, settings, tokenizer, min(limits)) if limits else rows
    evaluated = {name: some for name, some in (("seen", rows.seen), ("unseen", rows.unseen)) if some}
    trainer = SFTTrainer(
        model=loaded,
        args=args,
        train_dataset=Dataset.from_list(as_rows(rows.train, settings)),
        eval_dataset={name: Dataset.from_list(as_rows(some, settings)) for name, some in evaluated.items()} or None,
        processing_class=tokenizer,
        quantization_config=get_quantization_config(model),
        peft_config=get_peft_config(model),
        callbacks=[SaveSettings(settings)],
    )
    return trainer, rows, settings


def prompt_settings(script: SimulatorTrainArguments, default: PromptSettings) -> PromptSettings:
    """The prompt's options as given, else the model's defaults. Raises UsageError for values out of range."""
    system = SYSTEMS[script.system] if script.system else None
    given = {"system": system, "characters": script.characters, "brief": script.brief}
    settings = replace(default, **{name: value for name, value in given.items() if value is not None})
    if settings.characters < 1 or script.max_rows < 0 or script.evaluate_rows < 0:
        raise UsageError("characters must be positive, and max_rows, evaluate_rows must not be negative")
    return settings


def make_tiny_model(examples: Sequence[FeedbackExample], settings: PromptSettings, seed: int) -> tuple[Any, Any]:
    """An untrained Qwen3 of 1.2M parameters (float32), and its tokenizer, trained on the examples' texts."""
    texts = [str(message["content"]) for example in examples for message in settings.messages(example.failure)]
    texts += [example.diagnosis for example in examples]
    tokenizer = train_tokenizer(texts, TINY_VOCABULARY, TINY_POSITIONS)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make_model(tokenizer, TINY_POSITIONS), tokenizer


def load_pretrained(name: str, model: ModelConfig, args: SFTConfig) -> tuple[str, Any, int | None]:
    """A model's path, its tokenizer and its context length in tokens; sets `args.model_init_kwargs` for TRL."""
    path = model_path(name)
    options = {"revision": model.model_revision, "trust_remote_code": args.trust_remote_code}
    tokenizer = AutoTokenizer.from_pretrained(path, **options)
    if not getattr(tokenizer, "chat_template", None):
        raise UsageError(f"model: {path} has no chat template; take an instruction-tuned model, or add one")
    config = AutoConfig.from_pretrained(path, **options).get_text_config(decoder=True)
    args.model_init_kwargs = {
        **options,
        "attn_implementation": model.attn_implementation,
        "dtype": model.dtype,
        "use_safetensors": True,
        **(args.model_init_kwargs or {}),  # pyright: ignore[reportGeneralTypeIssues]
    }
    return path, tokenizer, getattr(config, "max_position_embeddings", None)


class SaveSettings(TrainerCallback):
    """Saves the prompt's settings with every checkpoint, which makes it a feedback source."""

    def __init__(self, settings: PromptSettings):
        self._settings = settings

    def on_save(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            write_settings(Path(str(args.output_dir)) / f"checkpoint-{state.global_step}", self._settings)


@dataclass(frozen=True)
class TrainingRows:
    """Rows to train on, to evaluate on for seen and for unseen APIs, and how many were left out."""

    train: Sequence[FeedbackExample]
    seen: Sequence[FeedbackExample]
    unseen: Sequence[FeedbackExample]
    left_to_rules: int = 0
    too_long: int = 0


def read_rows(data: str | None, seed: int, max_rows: int = 0, evaluate_rows: int = 0) -> TrainingRows:
    """Read and split the data, without the kinds of failure that are left to the rules.

    Args:
        data: the folder.
        seed: of the shuffle.
        max_rows: most rows to train on; 0: all.
        evaluate_rows: most rows to evaluate on, of unseen APIs and of seen ones (there at most `HELD_OUT` of all).
    """
    if not data:
        raise UsageError("data is missing; give the folder that `fission-grpo simulator data` wrote")
    folder = Path(data).expanduser()
    has_test = (folder / TEST).is_file() and (folder / TEST).stat().st_size
    read = {TRAIN: load_examples(folder / TRAIN), TEST: load_examples(folder / TEST) if has_test else []}
    for name, examples in read.items():
        if unlabelled := [example.id for example in examples if not example.diagnosis]:
            raise UsageError(f"{folder / name}, id {unlabelled[0]!r}, field 'diagnosis': is empty; label it first")
    train, unseen = (
        [example for example in examples if example.failure.kind not in LEFT_TO_RULES] for examples in read.values()
    )
    if not train:
        kinds = ", ".join(sorted(LEFT_TO_RULES))
        raise UsageError(f"{folder / TRAIN}: every row is of a kind that is left to the rules ({kinds})")
    draw = random.Random(seed)
    draw.shuffle(train)
    draw.shuffle(unseen)
    held_out = min(evaluate_rows, int(HELD_OUT * len(train)))
    kept = train[held_out:][: max_rows or None]
    return TrainingRows(kept, train[:held_out], unseen[:evaluate_rows], len(read[TRAIN]) - len(train))


def drop_long_rows(rows: TrainingRows, settings: PromptSettings, tokenizer: Any, tokens: int) -> TrainingRows:
    """Drop training rows of more than `tokens` tokens, whose feedback would be cut off; UsageError if none is left."""
    dialogues = [_dialogue(example, settings) for example in rows.train]
    encoded = [tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True) for messages in dialogues]
    lengths = [len(entry["input_ids"]) for entry in encoded]
    kept = [example for example, length in zip(rows.train, lengths, strict=True) if length <= tokens]
    if not kept:
        raise UsageError(
            f"every row is longer than {tokens} tokens (the shortest has {min(lengths)}); lower characters, set "
            "brief, or raise max_length"
        )
    return replace(rows, train=kept, too_long=len(rows.train) - len(kept))


def as_rows(examples: Sequence[FeedbackExample], settings: PromptSettings) -> list[dict[str, list[dict[str, str]]]]:
    """TRL's conversational prompt-completion rows."""
    dialogues = [_dialogue(example, settings) for example in examples]
    return [{"prompt": messages[:-1], "completion": messages[-1:]} for messages in dialogues]


def _dialogue(example: FeedbackExample, settings: PromptSettings) -> list[dict[str, str]]:
    messages = [*settings.messages(example.failure), {"role": "assistant", "content": example.diagnosis}]
    return [{"role": str(message["role"]), "content": encodable(str(message["content"]))} for message in messages]


def evaluate_training(trainer: SFTTrainer, rows: TrainingRows, settings: PromptSettings) -> dict[str, Any]:
    """What `training.json` holds: rows, sizes, losses, and `check_source` on rows that were not trained on."""
    state, weights = trainer.state, list(trainer.model.parameters())  # pyright: ignore[reportOptionalMemberAccess]
    losses = [{"step": log["step"], "loss": round(log["loss"], 4)} for log in state.log_history if "loss" in log]
    record: dict[str, Any] = {
        "rows": {"train": len(rows.train), "seen": len(rows.seen), "unseen": len(rows.unseen)},
        "left_out": {"kinds left to rules": rows.left_to_rules, "too long": rows.too_long},
        "parameters": sum(weight.numel() for weight in weights),
        "trained": sum(weight.numel() for weight in weights if weight.requires_grad),
        "steps": state.global_step,
        "losses": losses,
    }
    if not rows.seen and not rows.unseen:
        return record
    logs = trainer.evaluate()
    record |= {"evaluation_loss": {}, "trial": {}}
    source = LocalModelFeedback(trainer.model, trainer.processing_class, settings=settings)
    for name, examples in (("seen", rows.seen), ("unseen", rows.unseen)):
        if examples:
            record["evaluation_loss"][name] = round(logs[f"eval_{name}_loss"], 4)
            metrics, answers = check_source([source], {name: examples})
            exact = sum(answer.is_label for answer in answers) / len(answers)
            record["trial"][name] = {"rows": len(answers), "exact": round(exact, 4), **metrics_json(metrics[0])}
            if trainer.is_world_process_zero():
                show(f"{metrics_table(metrics)}\nequal to the teacher   {exact:.3f}")
    return record
