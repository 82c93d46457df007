"""`fission-grpo train`: the trainer from a YAML file and command-line overrides, as `trl grpo` does it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from shlex import quote
from typing import Any

import torch
from datasets import Dataset
from huggingface_hub.errors import HfHubHTTPError
from pyarrow import ArrowException
from torch.utils.checkpoint import checkpoint
from transformers import AutoTokenizer, PrinterCallback, ProgressCallback, Trainer
from transformers.optimization import get_scheduler
from trl import ModelConfig, TrlParser, get_peft_config, get_quantization_config

from fission_grpo.cli.train_options import DESCRIPTION, TrainArguments
from fission_grpo.core.errors import CheckpointError, RunDirectoryError, UsageError
from fission_grpo.core.rewards import RewardConfig
from fission_grpo.core.terminal import show
from fission_grpo.data.load import load_training_data
from fission_grpo.data.rows import own_task
from fission_grpo.envs.step_calls import guard_with
from fission_grpo.envs.wrapper import ToolLimits
from fission_grpo.feedback.sources import FeedbackSource
from fission_grpo.feedback.spec import closing, endpoint_options, make_chain, usage_reports
from fission_grpo.inference.pretrained import loading_model, model_path, refuse_hub_kernels
from fission_grpo.training.arguments import parse_options
from fission_grpo.training.callbacks import LiveProgress, StopAndSave, print_resume_command
from fission_grpo.training.config import FissionGRPOConfig
from fission_grpo.training.resume import resume_point
from fission_grpo.training.run_folder import lock_run
from fission_grpo.training.trainer import FissionGRPOTrainer

# arguments of `apply_chat_template` that rendering sets itself
_TEMPLATE_ARGUMENTS = ("add_generation_prompt", "chat_template", "conversation", "return_dict", "tokenize", "tools")
_HUB_ERRORS: Any = HfHubHTTPError.__bases__[0]  # the HTTP library's, also for a connection that fails
_OPTIMIZERS_OF_MODELS = ("adalomo", "apollo", "galore", "lomo")  # they cannot be made without the model


def make_parser() -> TrlParser:
    return TrlParser(
        (TrainArguments, FissionGRPOConfig, ModelConfig, RewardConfig),  # pyright: ignore[reportArgumentType]
        prog="fission-grpo train",
        usage="fission-grpo train --config FILE [--option VALUE ...]",
        description=DESCRIPTION,
        allow_abbrev=False,
    )


def parse(argv: list[str]) -> tuple[TrainArguments, FissionGRPOConfig, ModelConfig, RewardConfig]:
    """Read the options. Where there is no accelerator, `use_cpu` is true and `bf16` false unless they are given."""
    parser = make_parser()
    if not torch.accelerator.is_available():
        parser.set_defaults(use_cpu=True, bf16=False)
    return parse_options(parser, argv)  # pyright: ignore[reportReturnType]


def train_command(argv: list[str]) -> int:
    """Run `fission-grpo train`.

    Returns 0; 1 if the run's folder cannot be written or another run has it, or the hub cannot be used; 2 for a
    mistake in configuration, data or model, or a checkpoint that does not fit, named in one line on stderr; 128 + the
    signal that stopped the run after a checkpoint was saved.
    """
    if "--help-all" in argv:
        make_parser().print_help()
        return 0
    try:
        return _train(argv)
    except (RunDirectoryError, _Refused) as error:
        show(f"error: {error}", error=True)
        return 1 if isinstance(error, RunDirectoryError) else 2
    except _HUB_ERRORS as error:
        show(f"error: the hub cannot be used ({error}); correct that, or leave out push_to_hub", error=True)
        return 1


class _Refused(Exception):
    """A mistake in configuration, data, model or checkpoint: not to be mixed up with errors of the user's own code."""


def _train(argv: list[str]) -> int:
    with ExitStack() as stack:
        try:
            script, args, model, reward = parse(argv)
            folder = str(args.output_dir)  # as it was given; the trainer makes it absolute
            if args.process_index == 0:
                stack.enter_context(lock_run(Path(folder)))
            resume_from = resume_point(args)
            chain = make_chain(script.feedback, *endpoint_options(script.feedback_model))
            sources = stack.enter_context(closing(chain))
            trainer = make_trainer(script, args, model, reward, sources)
            trainer.tasks = script.tasks or f"{script.environment}, rows {script.rows}"
        except RunDirectoryError:
            raise
        except (ValueError, OSError) as error:
            raise _Refused(error) from error
        stop = stack.enter_context(StopAndSave())
        trainer.add_callback(stop)
        try:
            trainer.train(resume_from_checkpoint=resume_from)
        except (CheckpointError, UsageError) as error:
            raise _Refused(error) from error
        for line in usage_reports(sources):
            show(line)
        if stop.signal is not None and trainer.state.global_step < trainer.state.max_steps:
            print_resume_command(trainer.state, ["fission-grpo", "train", *argv])
            return 128 + stop.signal
        if trainer.was_finished:
            show(f"the run was at its end, step {trainer.state.global_step}: no training, the model is saved again")
        trainer.save_state()
        trainer.create_model_card(model_name=Path(folder).name)  # a run may have ended without a checkpoint
        trainer.save_model()  # last, as it may upload
    show(f"model saved in {folder}. Report: fission-grpo report {quote(folder)}")
    return 0


def make_trainer(
    script: TrainArguments,
    args: FissionGRPOConfig,
    model: ModelConfig,
    reward: RewardConfig,
    sources: Sequence[FeedbackSource],
    trainer_class: type[FissionGRPOTrainer] = FissionGRPOTrainer,
) -> FissionGRPOTrainer:
    """The trainer with model, data, reward, feedback and progress. Raises ValueError and OSError for wrong input."""
    if not model.model_name_or_path:
        raise UsageError("model_name_or_path is missing; give a folder, a hub id, or 'starter'")
    _check_library_options(args)
    name = model_path(model.model_name_or_path)
    own: Any = args.model_init_kwargs or {}
    refuse_hub_kernels(name, model.model_revision, own.get("attn_implementation", model.attn_implementation))
    with loading_model(name):
        tokenizer = AutoTokenizer.from_pretrained(
            name, revision=model.model_revision, trust_remote_code=args.trust_remote_code, padding_side="left"
        )
    given = load_training_data(
        script.tasks or "",
        tokenizer,
        own=own_task(script.environment, script.rows, script.reward, script.tasks),
        skip_tasks=script.skip_tasks,
        num_tasks=script.num_tasks,
        max_prompt_tokens=script.max_prompt_tokens,
        seed=args.seed,
        reward=reward,
        chat_template_kwargs=args.chat_template_kwargs,  # pyright: ignore[reportArgumentType] # TRL reads JSON, too
        guard=guard_with(ToolLimits(args.tool_timeout, args.max_tool_result_chars), args.isolate_environments),
    )
    code, attention = args.trust_remote_code, model.attn_implementation
    loading: dict[str, Any] = {"revision": model.model_revision, "trust_remote_code": code, "dtype": model.dtype}
    args.model_init_kwargs = {**loading, "attn_implementation": attention, "use_safetensors": True, **own}
    try:
        with loading_model(name):
            trainer = trainer_class(
                model=name,
                reward_funcs=given.reward,
                args=args,
                train_dataset=_dataset(given.rows, script.rows or script.tasks),
                processing_class=tokenizer,
                quantization_config=get_quantization_config(model),
                peft_config=get_peft_config(model),
                environment_factory=given.environments,
                callbacks=[LiveProgress()],
                feedback=sources,
            )
    except (TypeError, ValueError) as error:
        unknown = next((key for key in own if f"unexpected keyword argument '{key}'" in str(error)), None)
        if unknown is None:
            raise
        raise UsageError(f"model_init_kwargs.{unknown}: the model does not know it; remove or correct it") from error
    trainer.remove_callback(ProgressCallback)
    trainer.remove_callback(PrinterCallback)
    return trainer


def _dataset(rows: Sequence[dict[str, Any]], path: str | None) -> Dataset:
    """The rows as a data set. Raises UsageError for a column whose values have no common type."""
    try:
        return Dataset.from_list(list(rows))
    except (ArrowException, TypeError, ValueError) as error:
        for name in rows[0]:
            try:
                Dataset.from_list([{name: row.get(name)} for row in rows])
            except (ArrowException, TypeError, ValueError) as problem:
                what = "holds values of different types, which cannot be one column of a data set"
                reason = " ".join(str(problem).split())[:160]
                raise UsageError(
                    f"{path}, field '{name}': {what} ({reason}); write an object with named fields"
                ) from error
        raise


def _check_library_options(args: Any) -> None:
    """Try the mappings that torch and transformers take first in the middle of training. Raises UsageError."""
    taken = next((key for key in args.chat_template_kwargs or {} if key in _TEMPLATE_ARGUMENTS), None)
    if taken is not None:
        raise UsageError(f"chat_template_kwargs.{taken}: this argument is set in training; remove it")
    parameter = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    if not str(args.optim.value).startswith(_OPTIMIZERS_OF_MODELS):
        try:
            optimizer_class, options = Trainer.get_optimizer_cls_and_kwargs(args)
            if isinstance(optimizer_class, type) and issubclass(optimizer_class, torch.optim.Optimizer):
                optimizer_class([parameter], **options)
        except (ImportError, RuntimeError, TypeError, ValueError) as error:
            raise UsageError(f"optim, optim_args, learning_rate or adam_*: {error}") from error
    try:
        if args.lr_scheduler_type != "greedy":
            options: Any = args.lr_scheduler_kwargs
            get_scheduler(args.lr_scheduler_type, optimizer, 0, 10, scheduler_specific_kwargs=options)
    except (TypeError, ValueError) as error:
        raise UsageError(f"lr_scheduler_kwargs do not fit lr_scheduler_type: {error}") from error
    try:
        if args.gradient_checkpointing and args.gradient_checkpointing_kwargs:
            options = {"use_reentrant": False, **args.gradient_checkpointing_kwargs}
            checkpoint(lambda inputs: inputs, parameter, **options)
    except (TypeError, ValueError) as error:
        raise UsageError(f"gradient_checkpointing_kwargs do not fit torch's checkpoint(): {error}") from error
