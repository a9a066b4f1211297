"""What numbers are computed from, followed below everything that can call an operation of torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["Descent", "EscapeError"]

Names = frozenset[str]


class EscapeError(Exception):
    """A followed value became a number, or was written where it cannot be followed."""


class Descent(TorchDispatchMode):
    """Follows samples, by the memory that tensors keep their numbers in, to what is computed.

    A scripted function, a transform of ``torch.func`` or an extension calls operations without
    Python's functions, which a tensor that carries its origin is lost in.
    """

    def __init__(self) -> None:
        super().__init__()
        self._names: dict[int, Names] = {}
        self._kept: list[Any] = []  # else other numbers come to be in the same memory

    def mark(self, value: Tensor, names: Names) -> None:
        """Say what a tensor is, whatever it was computed from; its memory is its own."""
        storage = _storage(value)
        self._kept.append(storage)
        self._names[storage._cdata] = names

    def of(self, *values: Any) -> Names:
        """What some values, or what they hold, were computed from."""
        found = (self._names.get(_storage(t)._cdata, frozenset()) for t in _tensors(values))
        return frozenset().union(*found)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        names = self.of(args, kwargs)
        if names and isinstance(result, bool | int | float | complex):
            raise EscapeError(str(func))
        for tensor in _tensors(result) if names else ():
            self.mark(tensor, names | self.of(tensor))
        return result


def _tensors(values: Any) -> Iterator[Tensor]:
    return (leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor))


def _storage(tensor: Tensor) -> Any:
    try:
        return tensor.untyped_storage()
    except (NotImplementedError, RuntimeError) as error:
        raise EscapeError("a tensor without memory of its own") from error
