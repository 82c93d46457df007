"""A corrective instance with given fields."""

from fission_grpo.core.types import (
    ErrorKind,
    Task,
)
from fission_grpo.fission.recovery import CorrectiveInstance


def instance(name, step=0, **fields):
    task = Task(id=name, prompt=({"role": "user", "content": f"do {name}"},), root=f"root-{name}", parent="p", depth=1)
    given = {"kind": ErrorKind.RAISED, "source": "rules", "feedback": "no such file", "failed": "ls", "reward": 0.0}
    return CorrectiveInstance(task=task, step=step, **(given | fields))
