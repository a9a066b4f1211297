"""What a program reads beside its arguments: modules, closures, globals."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import chain
from operator import attrgetter, call, is_
from types import FunctionType, MethodType
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

__all__ = ["Surroundings"]

_LIBRARIES = {"torch", "pyro", "pyro_elbo", "numpy", "builtins", "functools", "contextlib"}
_PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device)
MOST = 2000

_Book = Callable[[], Iterable[Any]]
"""What says what something holds now."""


class Surroundings:
    """Modules, functions and what they hold, as they are now.

    Found are modules, functions of one's own, what their closures and globals are, methods and
    partial functions, poutine handlers, and lists, tuples and dicts of these. Another object is
    taken for what it was, and so is one of its kind in its place.

    Args:
        programs: Model and guide.
    """

    def __init__(self, *programs: Any) -> None:
        self._books: list[_Book] = []
        self._values: list[list[Any]] = []
        self._empty: list[dict[Any, Any]] = []
        self.modules: list[nn.Module] = []
        self._seen: dict[int, Any] = {}
        self._visit(programs)
        found = {id(p): p for module in self.modules for p in module._parameters.values()}
        parameters = [parameter for parameter in found.values() if parameter is not None]
        self._noted(partial(map, attrgetter("requires_grad"), parameters))
        self._noted(lambda: (torch.get_default_dtype(),))
        self._all = list(chain.from_iterable(self._values))

    @property
    def buffers(self) -> list[Tensor]:
        """The buffers of all modules."""
        found = {id(b): b for module in self.modules for b in module._buffers.values()}
        return [buffer for buffer in found.values() if buffer is not None]

    @property
    def hold(self) -> bool:
        """Whether everything is as it was."""
        if any(self._empty):
            return False
        now = list(chain.from_iterable(map(call, self._books)))
        if len(now) == len(self._all) and all(map(is_, now, self._all)):
            return True
        found = [list(book()) for book in self._books]
        if not all(map(_are_alike, found, self._values)):
            return False
        self._values, self._all = found, now
        return True

    def _visit(self, things: Iterable[Any]) -> None:
        left = list(things)
        while left and len(self._seen) < MOST:
            thing = left.pop()
            if id(thing) in self._seen or isinstance(thing, (Tensor, type, *_PLAIN)):
                continue
            self._seen[id(thing)] = thing
            left.extend(self._inside(thing))

    def _inside(self, thing: Any) -> Iterator[Any]:
        if isinstance(thing, nn.Module):
            self.modules.append(thing)
            yield from self._noted(vars(thing).values)
        elif isinstance(thing, Messenger):
            yield from self._noted(vars(thing).values)
        elif isinstance(thing, MethodType):
            yield from (thing.__self__, thing.__func__)
        elif isinstance(thing, partial):
            yield from (thing.func, thing.args, thing.keywords)
        elif isinstance(thing, FunctionType):
            yield from self._of_function(thing)
        elif isinstance(thing, dict) and not thing:
            self._empty.append(thing)
        elif isinstance(thing, dict):
            yield from self._noted(thing.values)
        elif isinstance(thing, list):
            yield from self._noted(thing.__iter__)
        elif isinstance(thing, tuple):
            yield from thing

    def _noted(self, book: _Book) -> list[Any]:
        self._books.append(book)
        self._values.append(list(book()))
        return self._values[-1]

    def _of_function(self, function: FunctionType) -> Iterator[Any]:
        if (function.__module__ or "").split(".")[0] in _LIBRARIES:
            yield from (getattr(function, "__wrapped__", None),)
            return
        filled = [cell for cell in function.__closure__ or () if _is_filled(cell)]
        yield from self._noted(partial(map, attrgetter("cell_contents"), filled))
        names = [name for name in function.__code__.co_names if name in function.__globals__]
        yield from self._noted(partial(map, function.__globals__.get, names))
        yield from (function.__defaults__, function.__kwdefaults__)


def _is_filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:
        return False


def _are_alike(some: list[Any], others: list[Any]) -> bool:
    return len(some) == len(others) and all(map(_alike, some, others))


def _alike(one: Any, other: Any) -> bool:
    if one is other:
        return True
    if type(one) is not type(other) or isinstance(one, (Tensor, nn.Module, FunctionType)):
        return False
    if isinstance(one, _PLAIN):
        return bool(one == other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_alike(one[name], other[name]) for name in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(_alike, one, other))
    if isinstance(one, MethodType):
        return one.__func__ is other.__func__ and _alike(one.__self__, other.__self__)
    return True
