"""FSDP2 and DeepSpeed on CPU: run on every rank, under the variables of a file in configs/accelerate.

accelerate turns both on for accelerators only. This tells it to do so on CPU as well; `fully_shard` or DeepSpeed's
engine, their collectives over gloo, and all of accelerate's, transformers' and TRL's code for them are real.
"""

import os
import runpy
import sys
from pathlib import Path

from accelerate import state
from accelerate.utils import DistributedType

_begin = state.AcceleratorState.__init__


def _begin_sharded(self, *args, fsdp_plugin=None, **kwargs):
    _begin(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
    if fsdp_plugin is not None:
        self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, fsdp_plugin
        state.PartialState._shared_state["distributed_type"] = DistributedType.FSDP


state.AcceleratorState.__init__ = _begin_sharded
if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
    state.PartialState._prepare_backend = lambda *_, **__: ("gloo", DistributedType.MULTI_CPU)
sys.path.insert(0, str(Path(__file__).parent))
runpy.run_path(str(Path(__file__).parent / "several_processes.py"), run_name="__main__")
