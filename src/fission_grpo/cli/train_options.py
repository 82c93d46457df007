"""The options of `fission-grpo train` beyond TRL's, and their help, without loading any library."""

from __future__ import annotations

import json
import textwrap
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

from fission_grpo.core.rewards import RewardConfig
from fission_grpo.data.load import DESK_TASKS
from fission_grpo.feedback.spec import SOURCE_FORMS
from fission_grpo.fission.options import FissionOptions

DESCRIPTION = """\
Train with Fission-GRPO. Every option can stand in the YAML file of --config FILE (without the dashes) and be
overridden on the command line. Beyond those listed here these are TRL's GRPOConfig and ModelConfig, untouched:
--help-all lists all. Ctrl-C finishes the cycle, saves a checkpoint and says how to resume."""
USUAL = {  # options of TRL and transformers that most runs set
    "model_name_or_path": "A folder, a hub id, or 'starter'. Required.",
    "output_dir": "Where checkpoints, the model and the logs go. Required.",
    "max_steps": "Optimizer steps.",
    "learning_rate": "TRL's default is 1e-6.",
    "num_generations": "G, rollouts per task.",
    "per_device_train_batch_size": "Rollouts per backward pass; limits memory.",
    "gradient_accumulation_steps": "Backward passes per update.",
    "max_completion_length": "Tokens of a rollout, tool results included.",
    "max_tool_calling_iterations": "Turns with calls in an episode.",
    "temperature": "Of sampling.",
    "use_peft": "Train a LoRA adapter: --use_peft true.",
    "use_vllm": "Sample with vLLM.",
    "report_to": "wandb, trackio, tensorboard or none.",
    "resume_from_checkpoint": "true: the newest checkpoint in output_dir.",
}


@dataclass
class TrainArguments:
    """What `fission-grpo train` needs beyond the trainer's own configuration."""

    tasks: str | None = field(
        default=None,
        metadata={
            "help": "What to train on: 'desk' (the built-in environment), 'desk:2' (its tasks of two requests; up to "
            "4), 'desk:steps' (its tasks as single turns against references), a step-task file or a case file over "
            "BFCL's environments (.jsonl, see `fission-grpo tasks`), or a ToolRL file (rlla_*.json, *.parquet). "
            "Required, unless there is an environment of yours, with rows."
        },
    )
    environment: str | None = field(
        default=None,
        metadata={"help": "An environment of yours to train in: module:Class or path/to/file.py:Class. With rows."},
    )
    rows: str | None = field(
        default=None,
        metadata={
            "help": "The file of its tasks (.jsonl, .json, .parquet): a row has a prompt, and the columns of `reset` "
            "and of the reward functions."
        },
    )
    reward: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Its reward functions, module:function or path/to/file.py:function, as TRL's reward_funcs; none "
            "if it has `get_reward`."
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
    feedback: str | list[str] = field(
        default_factory=lambda: ["rules"],
        metadata={
            "help": "Feedback on a failed rollout, from one source or several; each is requested where the one before "
            f"has none. {'; '.join(SOURCE_FORMS.splitlines())}. In the YAML file also as a list."
        },
    )
    feedback_model: dict[str, Any] | str | None = field(
        default=None,
        metadata={
            "help": "Options of a feedback model behind an endpoint: `url` and the fields of FeedbackModelOptions "
            "(docs/simulator.md), as a mapping in the YAML file or as JSON. The key is read from OPENAI_API_KEY."
        },
    )


def help_text() -> str:
    """The help of our own options and of the usual ones of TRL."""
    lines = ["usage: fission-grpo train --config FILE [--option VALUE ...]", "", *DESCRIPTION.split("\n")]
    groups = {"tasks and feedback": TrainArguments, "fission": FissionOptions, "reward of step tasks": RewardConfig}
    lines += ["", "usual options of TRL:", *(_entry(name, "", text) for name, text in USUAL.items())]
    for title, group in groups.items():
        lines += ["", f"{title}:"]
        for option in fields(group):
            default = "" if option.default in (None, MISSING) else json.dumps(option.default)
            lines.append(_entry(option.name, default, option.metadata.get("help", "")))
    lines += ["", "The rewards' constants are explained in docs/fission-grpo.md, all options of TRL by --help-all."]
    return "\n".join(lines)


def _entry(name: str, default: str, text: str) -> str:
    text = f"{text} (default {default})".strip() if default else text
    return "\n".join(textwrap.wrap(text, 118, initial_indent=f"  --{name}  ", subsequent_indent=" " * 6))
