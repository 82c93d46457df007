"""Tool loops on several ranks whose generation is a joint work: every rank generates as often as the others.

TRL's `_tool_call_loop` ends on a rank as soon as its own rollouts call no more tools. Where generation is collective
(sharded parameters, a vLLM server for all ranks, tensor parallelism, weights sent before each call) the others then
wait for ever, or take answers to other ranks' prompts: TRL 1.16 cuts the server's answers into slices as if all ranks
had asked equally much (`VLLMGeneration.generate`, huggingface/trl pull request 6673).
"""

from __future__ import annotations

from typing import Any

import torch
from trl import GRPOConfig, GRPOTrainer

from fission_grpo.training.trl_compat import check_server_tools, one_completion_each


class ToolTurnsInStep(GRPOTrainer):
    """`trl.GRPOTrainer` whose ranks take part in each other's turns after a tool call, where they must."""

    args: GRPOConfig
    _in_tool_loop = False

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if self.tools and self._slices_equally:
            check_server_tools()

    @property
    def _turns_together(self) -> bool:
        """Whether one rank's call of the generator needs the other ranks."""
        if self.accelerator.num_processes == 1:
            return False
        if not self.use_vllm:
            plugin = self.args.deepspeed_plugin
            return self.is_fsdp_enabled or (plugin is not None and plugin.zero_stage == 3)
        return self._slices_equally or self.args.vllm_enable_sleep_mode

    @property
    def _slices_equally(self) -> bool:
        """Whether answers are given out as if all ranks had asked for equally many."""
        return self.use_vllm and (self.vllm_mode == "server" or self.args.vllm_tensor_parallel_size > 1)

    def _tool_call_loop(self, prompts: Any, prompt_ids: list[list[int]], *more: Any, **named: Any) -> Any:
        if not self._turns_together:
            return super()._tool_call_loop(prompts, prompt_ids, *more, **named)
        self._in_tool_loop = True
        try:
            result = super()._tool_call_loop(prompts, prompt_ids, *more, **named)
        finally:
            self._in_tool_loop = False
        while most := self._most_rows(0):  # others go on; what is generated here is of no account
            rows = most if self._slices_equally else 1
            super()._generate_single_turn([prompt_ids[0]] * rows, None, {}, *one_completion_each())
        return result

    def _generate_single_turn(self, prompt_ids: list[list[int]], images: Any, *more: Any, **named: Any) -> Any:
        if not self._in_tool_loop:
            return super()._generate_single_turn(prompt_ids, images, *more, **named)
        count, most = len(prompt_ids), self._most_rows(len(prompt_ids))
        if self._slices_equally:
            prompt_ids = prompt_ids + [prompt_ids[-1]] * (most - count)
            images = images + [images[-1]] * (most - count) if images else images
        completion_ids, logprobs = super()._generate_single_turn(prompt_ids, images, *more, **named)
        return completion_ids[:count], None if logprobs is None else logprobs[:count]

    def _most_rows(self, rows: int) -> int:
        """The largest number of rows for which a rank generates now; 0 once no rank does. All ranks must ask."""
        counts: Any = self.accelerator.gather(torch.tensor([rows], device=self.accelerator.device))
        return int(counts.max())
