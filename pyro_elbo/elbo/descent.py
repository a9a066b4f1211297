"""What numbers are computed from, followed below everything that can call an operation of torch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["Descent", "EscapeError"]

Names = frozenset[str]

_TRUTHS = (torch.bool, torch.uint8)


class EscapeError(Exception):
    """A followed value became a number or a shape, or was written where it cannot be followed."""


class Descent(TorchDispatchMode):
    """Follows samples, by the memory that tensors keep their numbers in, to what is computed.

    A scripted function, a transform of ``torch.func`` or an extension calls operations without
    Python's functions, which a tensor that carries its origin is lost in.
    """

    def __init__(self) -> None:
        super().__init__()
        self._names: dict[int, Names] = {}
        self._kept: list[Any] = []  # else other numbers come to be in the same memory
        self._taken: set[str] | None = None

    @contextmanager
    def watched(self) -> Iterator[set[str]]:
        """Inside, numbers may be taken from tensors: what those were computed from is given."""
        outer, self._taken = self._taken, set()
        try:
            yield self._taken
        finally:
            self._taken = outer

    def mark(self, value: Tensor, names: Names) -> None:
        """Say what a tensor is, whatever it was computed from; its memory is its own."""
        storage = _storage(value)
        self._kept.append(storage)
        self._names[storage._cdata] = names

    def add(self, values: Any, names: Names, given: Any = ()) -> None:
        """Say what tensors were computed from as well; views of what was given are what that is."""
        if not names:
            return
        others = {_storage(tensor)._cdata for tensor in _tensors(given)}
        for tensor in _tensors(values):
            if _storage(tensor)._cdata not in others:
                self.mark(tensor, names | self.of(tensor))

    def of(self, *values: Any) -> Names:
        """What some values, or what they hold, were computed from."""
        found = (self._names.get(_storage(t)._cdata, frozenset()) for t in _tensors(values))
        return frozenset().union(*found)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        names = self.of(args, kwargs)
        is_number = isinstance(result, bool | int | float | complex)
        if names and is_number:
            if self._taken is None:
                raise EscapeError(str(func))
            self._taken |= names
        if names and self.of(_give_a_shape(func, args)):
            raise EscapeError(f"the shape of what {func} gives")
        self.add(result, names)
        return result


def _give_a_shape(func: Any, args: Any) -> Any:
    """The arguments of an operation on whose values the shape of what it gives depends."""
    if torch.Tag.dynamic_output_shape not in func.tags:
        return ()
    if func is torch.ops.aten.index.Tensor:
        return [index for index in args[1] if index is not None and index.dtype in _TRUTHS]
    return args[1] if func is torch.ops.aten.masked_select.default else args


def _tensors(values: Any) -> Iterator[Tensor]:
    return (leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor))


def _storage(tensor: Tensor) -> Any:
    try:
        return tensor.untyped_storage()
    except (NotImplementedError, RuntimeError) as error:
        raise EscapeError("a tensor without memory of its own") from error
