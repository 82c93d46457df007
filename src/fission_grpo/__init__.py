"""Fission-GRPO for TRL (arXiv 2601.15625): failed tool calls become recovery training data inside the RL loop.

Importing this package loads neither torch nor trl; the trainer is loaded when first asked for.
"""

from typing import TYPE_CHECKING, Any

from fission_grpo.trajectory import ErrorKind, Failure, Task, ToolCall, ToolResult, Trajectory, Turn, Verdict

if TYPE_CHECKING:
    from fission_grpo.config import FissionGRPOConfig
    from fission_grpo.trainer import FissionGRPOTrainer

__version__ = "0.1.0"
__all__ = [
    "ErrorKind",
    "Failure",
    "FissionGRPOConfig",
    "FissionGRPOTrainer",
    "Task",
    "ToolCall",
    "ToolResult",
    "Trajectory",
    "Turn",
    "Verdict",
]


def __getattr__(name: str) -> Any:
    """Load the two TRL classes on first use (importing trl takes seconds)."""
    if name == "FissionGRPOConfig":
        from fission_grpo.config import FissionGRPOConfig

        return FissionGRPOConfig
    if name == "FissionGRPOTrainer":
        from fission_grpo.trainer import FissionGRPOTrainer

        return FissionGRPOTrainer
    raise AttributeError(f"module 'fission_grpo' has no attribute {name!r}")
