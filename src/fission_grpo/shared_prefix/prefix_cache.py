"""Keys and values of tokens that were read, kept in a prefix tree for as long as the weights stay the same."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fission_grpo.shared_prefix.decoding import States

CPU_LIMIT = 2 * 2**30
"""[ours] Most bytes kept in main memory: 45,000 tokens of SmolLM2-135M in float32, beside what training takes of the
16 GiB of a common machine."""

GPU_SHARE = 4  # [ours] at most 1 / 4 of a GPU's memory is kept


class _Node:
    """A run of tokens after those of its parents, with their keys and values, (layers, K, n, d) each."""

    def __init__(self, tokens: Sequence[int], states: tuple[Tensor, Tensor] | None, parent: _Node | None):
        self.tokens, self.states, self.parent = tokens, states, parent
        self.children: dict[int, _Node] = {}  # by first token
        self.used = 0

    @property
    def size(self) -> int:
        return sum(x.nbytes for x in self.states) if self.states else 0

    def cut(self, at: int) -> None:
        """Leave the first `at` tokens to this node, and the others to a new child, so that each can be dropped."""
        assert self.states
        rest = _Node(self.tokens[at:], tuple(x[:, :, at:].clone() for x in self.states), self)  # pyright: ignore
        rest.children, rest.used = self.children, self.used
        for child in rest.children.values():
            child.parent = rest
        self.tokens, self.states = self.tokens[:at], tuple(x[:, :, :at].clone() for x in self.states)  # pyright: ignore
        self.children = {rest.tokens[0]: rest}


class PrefixCache:
    """Finds the longest stored beginning of any token sequence, cut at any token.

    Args:
        limit: most bytes kept; None: `CPU_LIMIT`, or 1 / `GPU_SHARE` of the GPU's memory.

    `size` is the number of bytes now kept, `evicted` the number of tokens dropped because of the limit so far.
    """

    def __init__(self, limit: int | None = None):
        self.limit, self.evicted = limit, 0
        self._version: Any = None
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        self._root, self._clock, self.size = _Node((), None, None), 0, 0

    def use(self, version: Any) -> None:
        """Forget everything if this is not the version of the weights (`weights_version`) of the last call."""
        if version != self._version:
            self.clear()
        self._version = version

    def _path(self, tokens: Sequence[int]) -> Iterator[tuple[_Node, int]]:
        """The nodes that `tokens` pass through, and how many tokens of each."""
        node, at = self._root, 0
        while at < len(tokens) and (child := node.children.get(tokens[at])):
            node, run = child, tokens[at : at + len(child.tokens)]
            same = len(run)
            if run != node.tokens[:same]:
                same = next(i for i, (a, b) in enumerate(zip(run, node.tokens, strict=False)) if a != b)
            yield node, same
            at += same
            if same < len(node.tokens):
                return

    def match(self, tokens: Sequence[int]) -> int:
        """Number of tokens at the beginning of `tokens` that are stored."""
        self._clock += 1
        length = 0
        for node, count in self._path(tokens):
            node.used = self._clock
            length += count
        return length

    def insert(self, tokens: Sequence[int], start: int, states: States) -> None:
        """Store what is not yet stored of a sequence.

        Args:
            tokens: the sequence; its first `start` tokens are stored.
            states: per layer keys and values of the other tokens, (K, n, d).
        """
        node, length = self._root, 0
        for node, count in list(self._path(tokens)):
            length += count
            if count < len(node.tokens) and length < len(tokens):
                node.cut(count)
        if length < start:
            raise KeyError(f"of the first {start} tokens only {length} are stored")
        if length == len(tokens):
            return
        added = [torch.stack([layer[i][:, length - start :] for layer in states]) for i in (0, 1)]
        child = _Node(tokens[length:], (added[0], added[1]), node)
        node.children[tokens[length]] = child
        self._clock += 1
        child.used = self._clock
        self.size += child.size

    def pieces(self, tokens: Sequence[int], start: int) -> list[tuple[Tensor, Tensor]]:
        """Keys and values (layers, K, n, d) of the stored `tokens` from `start` on, in pieces that are no copies."""
        found, at = [], 0
        for node, count in self._path(tokens):
            first = max(0, start - at)
            if first < count:
                assert node.states
                found.append(tuple(x[:, :, first:count] for x in node.states))
            at += count
        if at < len(tokens):
            raise KeyError(f"of {len(tokens)} tokens only {at} are stored")
        return found

    def evict(self) -> None:
        """Drop what was not used for the longest time until the limit is kept."""
        limit = self.limit
        if limit is None:
            limit = _default_limit(self._root)
        while self.size > limit:
            oldest = min((node for node in _below(self._root) if not node.children), key=lambda node: node.used)
            assert oldest.parent
            del oldest.parent.children[oldest.tokens[0]]
            self.size -= oldest.size
            self.evicted += len(oldest.tokens)


def _below(node: _Node) -> Iterator[_Node]:
    waiting = list(node.children.values())
    while waiting:
        node = waiting.pop()
        yield node
        waiting += node.children.values()


def _default_limit(root: _Node) -> int:
    first = next(iter(root.children.values()), None)
    if first is None or first.states is None or first.states[0].device.type != "cuda":
        return CPU_LIMIT
    return torch.cuda.get_device_properties(first.states[0].device).total_memory // GPU_SHARE


def weights_version(model: nn.Module) -> Any:
    """A value that changes when the model's weights, or the adapters that take part, do.

    In-place changes raise a parameter's version, except those through `.data`; these show in sampled values.
    """
    parameters = list(model.parameters())
    places = [(p.data_ptr(), None if p.is_inference() else p._version) for p in parameters]
    samples = [
        p.detach()[tuple(int(part * (size - 1)) for size in p.shape)].to(torch.float64)
        for p in parameters
        if p.numel()
        for part in (0, 0.5, 1)
    ]
    by_device: dict[torch.device, list[Tensor]] = {}
    for sample in samples:
        by_device.setdefault(sample.device, []).append(sample)
    values = [torch.stack(some).tolist() for some in by_device.values()]
    names = ("_disable_adapters", "active_adapters", "merged_adapters", "scaling")  # of PEFT's layers
    layers = [module for module in model.modules() if hasattr(module, names[0])]
    adapters = [str([getattr(layer, name, None) for name in names]) for layer in layers]
    device = parameters[0].device.type
    computes_in = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device)
    return places, values, adapters, computes_in
