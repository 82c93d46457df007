"""Fission-GRPO for TRL (arXiv 2601.15625): failed tool calls become recovery training data inside the RL loop.

Importing this package loads neither torch nor trl; the trainer is loaded when first asked for.
"""

import importlib
from typing import TYPE_CHECKING, Any

from fission_grpo.trajectory import ErrorKind, Failure, Task, ToolCall, ToolResult, Trajectory, Turn, Verdict

if TYPE_CHECKING:
    from fission_grpo.config import FissionGRPOConfig
    from fission_grpo.environment_report import check_environment
    from fission_grpo.faults import Fault, inject_faults
    from fission_grpo.trainer import FissionGRPOTrainer
    from fission_grpo.training_callbacks import StopAndSave
    from fission_grpo.watch import InfrastructureError

__version__ = "0.1.0"
__all__ = [
    "ErrorKind",
    "Failure",
    "Fault",
    "FissionGRPOConfig",
    "FissionGRPOTrainer",
    "InfrastructureError",
    "StopAndSave",
    "Task",
    "ToolCall",
    "ToolResult",
    "Trajectory",
    "Turn",
    "Verdict",
    "check_environment",
    "inject_faults",
]

_LATER = {
    "Fault": "fission_grpo.faults",
    "FissionGRPOConfig": "fission_grpo.config",
    "FissionGRPOTrainer": "fission_grpo.trainer",
    "InfrastructureError": "fission_grpo.watch",
    "StopAndSave": "fission_grpo.training_callbacks",
    "check_environment": "fission_grpo.environment_report",
    "inject_faults": "fission_grpo.faults",
}
"""Names that are loaded on first use, as importing trl takes seconds, by module."""


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module 'fission_grpo' has no attribute {name!r}")
    value = getattr(importlib.import_module(_LATER[name]), name)
    globals()[name] = value
    return value
