"""Tool loops on several ranks whose generation is a collective operation: all ranks generate equally often."""

from __future__ import annotations

from typing import Any

import torch

from fission_grpo.training.trl_compat import MixinBase


class LockstepToolCallsMixin(MixinBase):
    """Makes ranks generate together after tool calls, in `class Trainer(LockstepToolCallsMixin, GRPOTrainer)`.

    TRL's tool loop ends on a rank when its own rollouts call no more tools. Where generation needs all ranks (sharded
    parameters, a vLLM server, tensor parallelism, weights sent before each call), this adds calls whose output is
    discarded, until no rank has a tool call left. Otherwise it changes nothing.

    Overrides: `_tool_call_loop`, `_generate_single_turn`.

    Without it, in these setups, other ranks wait forever or take completions of other ranks' prompts: TRL 1.16 splits
    the server's output as if all ranks had sent equally many prompts (`VLLMGeneration.generate`, huggingface/trl pull
    request 6673).
    """

    args: Any
    _in_tool_loop = False

    @property
    def _is_collective(self) -> bool:
        """Whether one rank's call of the generator needs the other ranks."""
        if self.accelerator.num_processes == 1:
            return False
        if not self.use_vllm:
            plugin = self.args.deepspeed_plugin
            return self.is_fsdp_enabled or (plugin is not None and plugin.zero_stage == 3)
        return self._needs_equal_counts or self.args.vllm_enable_sleep_mode

    @property
    def _needs_equal_counts(self) -> bool:
        """Whether the output is split as if all ranks had sent equally many prompts."""
        return self.use_vllm and (self.vllm_mode == "server" or self.args.vllm_tensor_parallel_size > 1)

    def _tool_call_loop(self, prompts: Any, prompt_ids: list[list[int]], *args: Any, **kwargs: Any) -> Any:
        if not self._is_collective:
            return super()._tool_call_loop(prompts, prompt_ids, *args, **kwargs)
        self._in_tool_loop = True
        try:
            result = super()._tool_call_loop(prompts, prompt_ids, *args, **kwargs)
        finally:
            self._in_tool_loop = False
        while largest := self._largest_count(0):  # other ranks go on; this output is discarded
            rows = largest if self._needs_equal_counts else 1
            super()._generate_single_turn([prompt_ids[0]] * rows, None, {}, 1)
        return result

    def _generate_single_turn(self, prompt_ids: list[list[int]], images: Any, *args: Any, **kwargs: Any) -> Any:
        if not self._in_tool_loop:
            return super()._generate_single_turn(prompt_ids, images, *args, **kwargs)
        count, largest = len(prompt_ids), self._largest_count(len(prompt_ids))
        if self._needs_equal_counts:
            prompt_ids = prompt_ids + [prompt_ids[-1]] * (largest - count)
            images = images + [images[-1]] * (largest - count) if images else images
        completion_ids, logprobs = super()._generate_single_turn(prompt_ids, images, *args, **kwargs)
        return completion_ids[:count], None if logprobs is None else logprobs[:count]

    def _largest_count(self, rows: int) -> int:
        """The largest number of rows that any rank generates now; 0 when all have ended. All ranks must call this."""
        counts: Any = self.accelerator.gather(torch.tensor([rows], device=self.accelerator.device))
        return int(counts.max())
