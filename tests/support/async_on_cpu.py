"""TRL's asynchronous trainer on a CPU without vLLM: what its GPU parts compute, and a sampler in this process.

Two parts of TRL want a GPU: the attention of its packing (FlashAttention 3), which `sdpa_tree_attention` computes
segment by segment, and the number of floating-point operations that the device can do. Weights go to the sampler by a
copy. Test support, also of `benchmarks/engines`.
"""

import asyncio
import threading

import torch
from trl.experimental.async_grpo import async_grpo_trainer, packing

from fission_grpo.engines.episode import Sampled


def sdpa_tree_attention(module, query, key, value, attention_mask, *, tree_kv_index, scaling=None, **kwargs):
    """`packing.tree_attention` for one row: each segment of the tree sees its path from the root."""
    ends_q, ends_k = (kwargs[f"tree_cu_seqlens_{one}"].tolist() for one in "qk")
    parts = []
    for q0, q1, k0, k1 in zip(ends_q, ends_q[1:], ends_k, ends_k[1:], strict=False):
        seen, own = tree_kv_index[k0:k1], q1 - q0
        sees = torch.ones(own, k1 - k0, dtype=torch.bool).tril(k1 - k0 - own)
        parts.append(
            torch.nn.functional.scaled_dot_product_attention(
                query[:, :, q0:q1], key[:, :, seen], value[:, :, seen], sees, scale=scaling, enable_gqa=True
            )
        )
    return torch.cat(parts, 2).transpose(1, 2), None


def let_trl_train_on_cpu(monkeypatch=None):
    """Replace the two parts that want a GPU; for good without `monkeypatch`."""
    put = monkeypatch.setattr if monkeypatch is not None else setattr
    put(packing, "tree_attention", sdpa_tree_attention)
    put(async_grpo_trainer, "get_peak_flops_per_device", lambda accelerator, dtype: 1e12)


class SamplerOnCPU:
    """Samples from its own copy of the policy, all requests that wait together; also TRL's transfer of weights."""

    def __init__(self, model, tokenizer, seed=0):
        self.model, self.tokenizer, self.synced = model.eval(), tokenizer, 0
        self._random = torch.Generator().manual_seed(seed)
        self._waiting, self._task, self._weights = [], None, threading.Lock()

    async def __call__(self, token_ids, max_tokens):
        answer = asyncio.get_running_loop().create_future()
        self._waiting.append((list(token_ids), max_tokens, answer))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._serve())
        return await answer

    async def _serve(self):
        while self._waiting:
            await asyncio.sleep(0.005)  # until the other rollouts have made their requests
            waiting, self._waiting = self._waiting, []
            try:
                said = await asyncio.to_thread(self.generate, *zip(*[one[:2] for one in waiting], strict=True))
            except Exception as error:  # noqa: BLE001 - it is the answer to every request
                said = [error] * len(waiting)
            for (*_, answer), sampled in zip(waiting, said, strict=True):
                if not answer.done():
                    failed = isinstance(sampled, Exception)
                    answer.set_exception(sampled) if failed else answer.set_result(sampled)

    @torch.no_grad()
    def generate(self, prompts, limits):
        """One `Sampled` for each prompt, of at most so many tokens."""
        width, eos = max(map(len, prompts)), self.tokenizer.eos_token_id
        ids = torch.tensor([[eos] * (width - len(one)) + one for one in prompts])
        mask = torch.tensor([[0] * (width - len(one)) + [1] * len(one) for one in prompts])
        left, tokens, scores, cache = torch.tensor(limits), [], [], None
        with self._weights:
            while bool((left > len(tokens)).any()):
                positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
                inputs = {"attention_mask": mask, "position_ids": positions, "past_key_values": cache}
                out = self.model(ids, **inputs, logits_to_keep=1)
                cache, chances = out.past_key_values, out.logits[:, -1].log_softmax(-1)
                ids = torch.multinomial(chances.exp(), 1, generator=self._random)
                tokens.append(ids[:, 0])
                scores.append(chances.gather(1, ids)[:, 0])
                left = left.where(ids[:, 0] != eos, left.clamp(max=len(tokens)))
                mask = torch.cat([mask, torch.ones_like(ids)], 1)
        rows = zip(torch.stack(tokens, 1).tolist(), torch.stack(scores, 1).tolist(), left.tolist(), strict=True)
        return [Sampled(row[:n], one[:n]) for row, one, n in rows]

    def init_weight_transfer(self): ...

    def destroy(self): ...

    def pause(self):
        self._weights.acquire()

    def send_weights(self, iterator):
        named = {name: value.detach().clone() for name, value in iterator}
        assert not self.model.load_state_dict(named, strict=False).unexpected_keys
        self.synced += 1

    def resume(self):
        self._weights.release()
