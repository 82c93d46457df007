"""Fission-GRPO for TRL (arXiv 2601.15625): failed tool calls become recovery training data inside the RL loop.

Importing this package loads neither torch nor trl. A name below is loaded when it is first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

from fission_grpo.core.types import ErrorKind, Failure, Rollout, Task, ToolCall, ToolResult, Trajectory, Turn, Verdict

if TYPE_CHECKING:
    from fission_grpo.core.errors import InfrastructureError
    from fission_grpo.data.load import load_training_data
    from fission_grpo.data.rows import load_rows
    from fission_grpo.envs.check import check_environment
    from fission_grpo.envs.faults import Fault, inject_faults
    from fission_grpo.evaluation.evaluate import evaluate
    from fission_grpo.feedback.leak_guard import find_leak
    from fission_grpo.feedback.sources import FeedbackSource
    from fission_grpo.fission.algorithm import Fission
    from fission_grpo.fission.buffer import FissionBuffer
    from fission_grpo.fission.failures import failed_rollout, find_failure
    from fission_grpo.fission.metrics import group_advantages
    from fission_grpo.fission.options import FissionSettings
    from fission_grpo.fission.recovery import recovery_task
    from fission_grpo.training.callbacks import StopAndSave
    from fission_grpo.training.config import FissionGRPOConfig
    from fission_grpo.training.trainer import FissionGRPOTrainer

__version__ = "0.1.0"
__all__ = [
    "ErrorKind",
    "Failure",
    "Fault",
    "FeedbackSource",
    "Fission",
    "FissionBuffer",
    "FissionGRPOConfig",
    "FissionGRPOTrainer",
    "FissionSettings",
    "InfrastructureError",
    "Rollout",
    "StopAndSave",
    "Task",
    "ToolCall",
    "ToolResult",
    "Trajectory",
    "Turn",
    "Verdict",
    "check_environment",
    "evaluate",
    "failed_rollout",
    "find_failure",
    "find_leak",
    "group_advantages",
    "inject_faults",
    "load_rows",
    "load_training_data",
    "recovery_task",
]

_MODULES = {  # of the names that are loaded on first use, as importing trl takes seconds
    "Fault": "envs.faults",
    "FeedbackSource": "feedback.sources",
    "Fission": "fission.algorithm",
    "FissionBuffer": "fission.buffer",
    "FissionGRPOConfig": "training.config",
    "FissionGRPOTrainer": "training.trainer",
    "FissionSettings": "fission.options",
    "InfrastructureError": "core.errors",
    "StopAndSave": "training.callbacks",
    "check_environment": "envs.check",
    "evaluate": "evaluation.evaluate",
    "failed_rollout": "fission.failures",
    "find_failure": "fission.failures",
    "find_leak": "feedback.leak_guard",
    "group_advantages": "fission.metrics",
    "inject_faults": "envs.faults",
    "load_rows": "data.rows",
    "load_training_data": "data.load",
    "recovery_task": "fission.recovery",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'fission_grpo' has no attribute {name!r}")
    try:
        value = getattr(importlib.import_module(f"fission_grpo.{_MODULES[name]}"), name)
    except ModuleNotFoundError as error:
        from fission_grpo.core.install import install_line

        raise ModuleNotFoundError(f"{name} needs {error.name}; {install_line(error.name)}", name=error.name) from error
    globals()[name] = value
    return value
