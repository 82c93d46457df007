"""Fission-GRPO for TRL (arXiv 2601.15625): failed tool calls become recovery training data inside the RL loop.

Importing this package loads neither torch nor trl; the trainer is loaded when first asked for.
"""

import importlib
from typing import TYPE_CHECKING, Any

from fission_grpo.core.types import (
    ErrorKind,
    Failure,
    Task,
    ToolCall,
    ToolResult,
    Trajectory,
    Turn,
    Verdict,
)

if TYPE_CHECKING:
    from fission_grpo.core.errors import InfrastructureError
    from fission_grpo.envs.check import check_environment
    from fission_grpo.envs.faults import Fault, inject_faults
    from fission_grpo.evaluation.evaluate import evaluate
    from fission_grpo.training.callbacks import StopAndSave
    from fission_grpo.training.config import FissionGRPOConfig
    from fission_grpo.training.trainer import FissionGRPOTrainer


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
    "evaluate",
    "inject_faults",
]


_LATER = {
    "Fault": "fission_grpo.envs.faults",
    "FissionGRPOConfig": "fission_grpo.training.config",
    "FissionGRPOTrainer": "fission_grpo.training.trainer",
    "InfrastructureError": "fission_grpo.core.errors",
    "StopAndSave": "fission_grpo.training.callbacks",
    "check_environment": "fission_grpo.envs.check",
    "evaluate": "fission_grpo.evaluation.evaluate",
    "inject_faults": "fission_grpo.envs.faults",
}
"""Names that are loaded on first use, as importing trl takes seconds, by module."""


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module 'fission_grpo' has no attribute {name!r}")
    value = getattr(importlib.import_module(_LATER[name]), name)
    globals()[name] = value
    return value
