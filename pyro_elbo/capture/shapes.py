"""The shapes of what the operations of a graph give."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_arg

__all__ = ["copied", "is_plain", "largest", "unfilled", "values_of"]


def unfilled(tensor: Tensor) -> Tensor:
    """A tensor that lies in memory as another does, of its own memory, without its numbers."""
    if tensor.layout is not torch.strided:
        return tensor.clone()
    like: dict[str, Any] = {"dtype": tensor.dtype, "device": tensor.device}
    return torch.empty_strided(tensor.shape, tensor.stride(), **like)


def copied(tensor: Tensor) -> Tensor:
    """A copy that lies in memory as a tensor does; itself where its entries are one in memory."""
    if tensor.layout is not torch.strided:
        return tensor.clone()
    shape, strides = tensor.shape, tensor.stride()
    if any(size > 1 and not stride for size, stride in zip(shape, strides, strict=True)):
        return tensor
    return unfilled(tensor).copy_(tensor)


def largest(module: fx.GraphModule, inputs: Sequence[Tensor]) -> int:
    """The entries of the largest tensor that a graph takes, or makes."""
    values = values_of(module, inputs).values()
    return max((value.numel() for value in _tensors(values)), default=0)


def values_of(module: fx.GraphModule, inputs: Sequence[Tensor]) -> dict[fx.Node, Any]:
    """For each node of a graph a tensor like what it gives, without numbers; or several."""
    left = iter(inputs)
    values: dict[fx.Node, Any] = {}
    for node in module.graph.nodes:
        if node.op == "placeholder":
            values[node] = _without_numbers(next(left))
        elif node.op == "get_attr":
            values[node] = _without_numbers(getattr(module, str(node.target)))
        elif "val" in node.meta:
            values[node] = _without_numbers(node.meta["val"])
        elif node.op == "call_function":
            target: Any = node.target
            args, kwargs = map_arg((node.args, node.kwargs), values.get)
            values[node] = _without_numbers(target(*args, **kwargs))
    return values


def _without_numbers(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_without_numbers(part) for part in value]
    if not is_plain(value):
        return value
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")


def is_plain(value: Any) -> bool:
    """Whether something is a tensor of real numbers that lie in memory one by one."""
    return isinstance(value, Tensor) and value.layout is torch.strided and not value.is_complex()


def _tensors(values: Iterable[Any]) -> Iterable[Tensor]:
    for value in values:
        if isinstance(value, list | tuple):
            yield from _tensors(value)
        elif isinstance(value, Tensor):
            yield value
