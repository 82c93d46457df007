"""`fission-grpo train`: the trainer from a YAML file and command-line overrides, as `trl grpo` does it."""

from __future__ import annotations

import difflib
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from datasets import Dataset
from transformers import AutoTokenizer, PrinterCallback, ProgressCallback
from transformers.trainer_utils import get_last_checkpoint
from trl import ModelConfig, TrlParser, get_peft_config, get_quantization_config

from fission_grpo.config import FissionGRPOConfig
from fission_grpo.environments.desk import Desk
from fission_grpo.environments.desk_tasks import make_rows
from fission_grpo.model_path import model_path
from fission_grpo.run_state import load_state
from fission_grpo.step_reward import StepReward
from fission_grpo.tasks import load_tasks, to_rows
from fission_grpo.toolrl import read_toolrl
from fission_grpo.trainer import FissionGRPOTrainer
from fission_grpo.training_callbacks import LiveProgress, StopAndSave
from fission_grpo.trajectory import Task
from fission_grpo.verify import RewardConfig

DESK_TASKS = 512
"""Rows drawn for the built-in environment where `num_tasks` is 0. [ours]"""

DESCRIPTION = """\
Train with Fission-GRPO. Every option below can stand in the YAML file of --config FILE (without the dashes) and be
overridden on the command line. Beyond our own options these are TRL's GRPOConfig and ModelConfig, untouched; the
constants of the step-task reward (alpha, correctness_threshold, format_weight_*, correctness_weight_*, length_*) are
documented in fission_grpo/verify.py. Ctrl-C finishes the cycle, saves a checkpoint and says how to resume."""


class UsageError(ValueError):
    """The command or its configuration is wrong; the message says what to mend."""


@dataclass
class ScriptArguments:
    """What `fission-grpo train` needs beyond the trainer's own configuration."""

    tasks: str | None = field(
        default=None,
        metadata={
            "help": "What to train on: 'desk' (the built-in environment), a step-task file (.jsonl, see `fission-grpo "
            "tasks`), or a ToolRL file (rlla_*.json, *.parquet). Required."
        },
    )
    num_tasks: int = field(
        default=0,
        metadata={"help": f"Take this many tasks, from skip_tasks on; 0: all of a file, {DESK_TASKS} of 'desk'."},
    )
    skip_tasks: int = field(
        default=0,
        metadata={"help": "Leave out this many tasks at the beginning of a file, such as those of a warm-up."},
    )
    max_prompt_tokens: int = field(
        default=0, metadata={"help": "Leave out step tasks with a longer rendered prompt, in tokens; 0: keep all."}
    )
    diagnose: str = field(
        default="rules",
        metadata={"help": "What a failed rollout is told: 'rules', 'environment' (its own message) or 'fixed' text."},
    )


def make_parser() -> TrlParser:
    """The parser of `fission-grpo train`: dataclasses only, no abbreviated options."""
    return TrlParser(
        (ScriptArguments, FissionGRPOConfig, ModelConfig, RewardConfig),  # pyright: ignore[reportArgumentType]
        prog="fission-grpo train",
        usage="fission-grpo train --config FILE [--option VALUE ...]",
        description=DESCRIPTION,
        allow_abbrev=False,
    )


def parse(argv: list[str]) -> tuple[ScriptArguments, FissionGRPOConfig, ModelConfig, RewardConfig]:
    """Read the YAML file and the command line.

    Raises:
        UsageError: the file cannot be read, or holds, or the command line has, a key that does not exist.
        ValueError: a value is out of range (from the dataclasses).
    """
    parser = make_parser()
    argv = [part for arg in argv for part in (arg.split("=", 1) if arg.startswith("--config=") else [arg])]
    options = {action.dest for action in parser._actions} - {"help"}
    rest = list(argv)
    if "--config" in argv:
        at = argv.index("--config")
        if at + 1 == len(argv):
            raise UsageError("--config needs the path of a YAML file")
        rest = argv[:at] + argv[at + 2 :]
        for key in _yaml_keys(argv[at + 1]):
            if key not in options | {"env"}:
                raise UsageError(f"{argv[at + 1]}: unknown key '{key}'{_near(key, options)}; remove or correct it")
    for word in parser.parse_known_args(rest)[1]:
        if word.startswith("--"):
            key = word.removeprefix("--").split("=")[0]
            raise UsageError(f"unknown option '--{key}'{_near(key.replace('-', '_'), options)}; see --help")
        raise UsageError(f"unexpected argument '{word}'; options are --name value, see --help")
    return parser.parse_args_and_config(argv)  # pyright: ignore[reportReturnType]


def train_command(argv: list[str]) -> int:
    """Run `fission-grpo train`.

    Returns:
        0; 2 after one line on stderr about a mistake in configuration, data or model; 128 + the signal that stopped
        the run after a checkpoint was saved. What goes wrong during training is raised.
    """
    if "-h" in argv or "--help" in argv:
        make_parser().print_help()
        return 0
    try:
        script, args, model, reward = parse(argv)
        checkpoint = resume_point(args)
        trainer = make_trainer(script, args, model, reward)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    with StopAndSave() as stop:
        trainer.add_callback(stop)
        trainer.train(resume_from_checkpoint=checkpoint)
    if stop.signal is not None and trainer.state.global_step < trainer.state.max_steps:
        resume = ["--resume_from_checkpoint", "true"]
        again = argv if argv[-2:] == resume else [*argv, *resume]  # the last one counts
        print(f"stopped at step {trainer.state.global_step} of {trainer.state.max_steps}, checkpoint saved. Resume:")
        print(f"  {shlex.join(['fission-grpo', 'train', *again])}")
        return 128 + stop.signal
    trainer.save_model()
    trainer.save_state()
    print(f"model saved in {args.output_dir}. Report: fission-grpo report {args.output_dir}")
    return 0


def resume_point(args: FissionGRPOConfig) -> str | None:
    """The checkpoint folder to resume from, None to begin anew. `true` means the newest in `output_dir`.

    Raises:
        UsageError: there is none, or the path given is no folder.
        ValueError: it holds no fission buffer, though `fission` is on.
    """
    wanted = args.resume_from_checkpoint
    if str(wanted).lower() in ("none", "false"):
        return None
    if str(wanted).lower() == "true":
        folder = Path(str(args.output_dir))
        found = get_last_checkpoint(str(folder)) if folder.is_dir() else None
        if found is None:
            raise UsageError(
                f"no checkpoint-* in {folder} to resume from; check output_dir, or start without resuming"
            )
    else:
        found = str(wanted)
        if not Path(found).is_dir():
            raise UsageError(f"resume_from_checkpoint: {found} is no folder; give a checkpoint-* folder, or 'true'")
    if args.fission:
        load_state(Path(found))
    return found


def make_trainer(
    script: ScriptArguments, args: FissionGRPOConfig, model: ModelConfig, reward: RewardConfig
) -> FissionGRPOTrainer:
    """The trainer with model, data, reward and progress display in place.

    Raises:
        UsageError, ValueError, OSError: the data or the model cannot be used.
    """
    if not model.model_name_or_path:
        raise UsageError("model_name_or_path is missing; give a folder, a hub id, or 'starter'")
    name = model_path(model.model_name_or_path)
    tokenizer = AutoTokenizer.from_pretrained(
        name, revision=model.model_revision, trust_remote_code=args.trust_remote_code, padding_side="left"
    )
    rows = task_rows(script, args.seed, tokenizer)
    args.model_init_kwargs = {
        "revision": model.model_revision,
        "trust_remote_code": args.trust_remote_code,
        "attn_implementation": model.attn_implementation,
        "dtype": model.dtype,
        **(args.model_init_kwargs or {}),  # pyright: ignore[reportGeneralTypeIssues]
    }
    desk = script.tasks == "desk"
    trainer = FissionGRPOTrainer(
        model=name,
        reward_funcs=None if desk else StepReward(reward),
        args=args,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        quantization_config=get_quantization_config(model),
        peft_config=get_peft_config(model),
        environment_factory=Desk if desk else None,
        callbacks=[LiveProgress()],
        diagnose=script.diagnose,
    )
    trainer.remove_callback(ProgressCallback)
    trainer.remove_callback(PrinterCallback)
    return trainer


def task_rows(script: ScriptArguments, seed: int, tokenizer: Any) -> list[dict[str, Any]]:
    """The data set's rows, in order; says on stderr what was left out. Raises UsageError if none are left."""
    if script.num_tasks < 0 or script.skip_tasks < 0 or script.max_prompt_tokens < 0:
        raise UsageError("num_tasks, skip_tasks and max_prompt_tokens must not be negative")
    if not script.tasks:
        raise UsageError("tasks is missing; give 'desk', a step-task file (.jsonl) or a ToolRL file")
    if script.tasks == "desk":
        return make_rows(script.num_tasks or DESK_TASKS, seed, "train")
    tasks = load_any(script.tasks)
    chosen = tasks[script.skip_tasks :][: script.num_tasks or None]
    rows = to_rows(chosen, tokenizer)
    if script.max_prompt_tokens:
        rows = [row for row in rows if len(tokenizer(row["prompt"])["input_ids"]) <= script.max_prompt_tokens]
    print(
        f"{script.tasks}: {len(tasks)} tasks, {len(chosen)} after skip_tasks and num_tasks, "
        f"{len(rows)} within max_prompt_tokens",
        file=sys.stderr,
    )
    if not rows:
        raise UsageError(f"no task of {script.tasks} is left; lower skip_tasks or raise num_tasks, max_prompt_tokens")
    return rows


def load_any(path: str) -> Sequence[Task]:
    """Tasks of a step-task file (.jsonl) or a ToolRL file (.json, .parquet), told apart by the name's ending."""
    ending = Path(path).suffix
    if ending == ".jsonl":
        return load_tasks(path)
    if ending in (".json", ".parquet"):
        converted = read_toolrl(path)
        print(f"{path}: {converted.summary()}", file=sys.stderr)
        return converted.tasks
    raise UsageError(f"tasks: {path!r} is neither 'desk' nor a .jsonl, .json or .parquet file")


def _yaml_keys(path: str) -> list[str]:
    try:
        config = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"--config {path}: cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"--config {path}: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(config, dict):
        raise UsageError(f"--config {path}: must be a mapping, one 'key: value' a line")
    return [str(key) for key in config]


def _near(key: str, options: set[str]) -> str:
    close = difflib.get_close_matches(key, sorted(options), n=3, cutoff=0.6)
    return f" (did you mean {', '.join(close)}?)" if close else ""
