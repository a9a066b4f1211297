"""The arguments of a step, taken apart into tensors and the rest."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from operator import attrgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

__all__ = ["Arguments", "arguments_of"]

_PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size)
_STRIDED = (torch.strided, torch.sparse_coo)
_KIND = attrgetter("shape", "dtype", "device", "requires_grad")


class _Slot(NamedTuple):
    """Where a tensor belongs."""

    number: int


class Arguments(NamedTuple):
    """Arguments as tensors and the rest.

    Args:
        tensors: The tensors, in order.
        rest: ``(args, kwargs)`` without them, to be compared by ``==``.
    """

    tensors: list[Tensor]
    rest: Any

    @property
    def key(self) -> Any:
        """What a graph depends on: all but the values in the tensors."""
        negated = [*map(Tensor.is_neg, self.tensors)]
        return self.rest, [*map(_KIND, self.tensors)], [*map(Tensor.stride, self.tensors)], negated

    @property
    def callables(self) -> list[Any]:
        """Modules and functions among them."""
        return list(_callables(self.rest))

    def filled(self, tensors: Sequence[Tensor]) -> tuple[Any, Any]:
        """Positional and keyword arguments with other tensors."""
        args, kwargs = self.rest
        return _filled(args, tensors), _filled(kwargs, tensors)


def arguments_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
    """Take arguments apart.

    Raises:
        TypeError: There is one that could change unseen.
    """
    if not kwargs and all(isinstance(v, Tensor) and v.layout is torch.strided for v in args):
        return Arguments(list(args), _only_tensors(len(args)))
    tensors: list[Tensor] = []
    return Arguments(tensors, (_taken(args, tensors), _taken(kwargs, tensors)))


@cache
def _only_tensors(count: int) -> Any:
    """What is left of so many tensors."""
    return (tuple, [_Slot(number) for number in range(count)]), (dict, [])


def _taken(value: Any, tensors: list[Tensor]) -> Any:
    if isinstance(value, Tensor) and value.layout in _STRIDED:
        tensors.append(value)
        return _Slot(len(tensors) - 1)
    if isinstance(value, Tensor):
        raise TypeError(f"an argument is a tensor of layout {value.layout}; pass a dense one")
    if isinstance(value, (tuple, list)) and not hasattr(value, "_fields"):
        return type(value), [_taken(part, tensors) for part in value]
    if type(value) is dict:
        return dict, [(name, _taken(part, tensors)) for name, part in value.items()]
    if isinstance(value, (*_PLAIN, nn.Module)) or callable(value):
        return type(value), value
    raise TypeError(
        f"an argument is of type {type(value).__name__}, which could change unseen; pass tensors, "
        "numbers, strings, or tuples, lists and dicts of them"
    )


def _callables(rest: Any) -> Iterator[Any]:
    for part in rest if isinstance(rest, (tuple, list)) and not isinstance(rest, _Slot) else ():
        if isinstance(part, (tuple, list)):
            yield from _callables(part)
        elif callable(part) and not isinstance(part, type):
            yield part


def _filled(rest: Any, tensors: Sequence[Tensor]) -> Any:
    if isinstance(rest, _Slot):
        return tensors[rest.number]
    kind, value = rest
    if kind is dict:
        return {name: _filled(part, tensors) for name, part in value}
    if isinstance(value, list):
        return kind(_filled(part, tensors) for part in value)
    return value
