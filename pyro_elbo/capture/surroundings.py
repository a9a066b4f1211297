"""What a program reads beside its arguments: modules, closures, globals, objects."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections import UserDict, UserList, deque
from collections.abc import Callable, Iterable, Iterator
from functools import cache, partial
from itertools import chain
from operator import attrgetter, call, is_
from types import FunctionType, MethodType, ModuleType, SimpleNamespace
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn
from torch.distributions import Distribution

from ..elbo.aside import names_in

__all__ = ["Surroundings"]

_LIBRARIES = {"torch", "pyro", "pyro_elbo", "numpy", "builtins", "functools", "contextlib"}
_PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device)
_END = (object(),)
_OBJECTS = (Messenger, SimpleNamespace, Namespace, UserDict, UserList)
_MODES = (torch.get_default_dtype, partial(torch.is_autocast_enabled, "cpu"))
_DEFAULTS = attrgetter("__defaults__", "__kwdefaults__")
MOST = 50_000

_Book = Callable[[], Iterable[Any]]
"""What says what something holds now."""


class Surroundings:
    """What is read beside the arguments, as it is now.

    Found are modules, functions of one's own, what their closures and globals are, methods and
    partial functions, poutine handlers, one's own classes and their objects, attributes of one's
    own modules and functions, namespaces, and lists, deques, sets, tuples and dicts of these. An
    object of a library is taken for what it was, and so is one of its kind in its place, but for
    distributions and for an array in another's place; the entries of an array are not looked at.

    Args:
        *held: Say what there is to begin with: model, guide, settings.

    Raises:
        ValueError: There is more than can be looked at before each step.
    """

    def __init__(self, *held: _Book) -> None:
        self._books: list[_Book] = []
        self._values: list[list[Any]] = []
        self._sized: list[Any] = []
        self._sizes: list[int] = []
        self._empty: list[dict[Any, Any]] = []
        self.modules: list[nn.Module] = []
        self.generators: list[torch.Generator] = []
        self._tensors: list[Tensor] = []
        self._of_modules: set[int] = set()
        self._seen: dict[int, Any] = {}
        self._visit([thing for book in held for thing in self._noted(book)])
        found = {id(p): p for module in self.modules for p in module._parameters.values()}
        parameters = [parameter for parameter in found.values() if parameter is not None]
        self._noted(partial(map, attrgetter("requires_grad"), parameters))
        self._noted(partial(map, call, _MODES))
        self._keep(self._values)

    @property
    def buffers(self) -> list[Tensor]:
        """The buffers of all modules."""
        found = {id(b): b for module in self.modules for b in module._buffers.values()}
        return [buffer for buffer in found.values() if buffer is not None]

    @property
    def tensors(self) -> list[Tensor]:
        """Tensors that are neither parameters nor buffers."""
        buffers = {id(buffer) for buffer in self.buffers}
        return [t for t in self._tensors if not t.requires_grad and id(t) not in buffers]

    @property
    def hold(self) -> bool:
        """Whether everything is as it was."""
        if any(self._empty):
            return False
        now = chain.from_iterable(map(call, self._books))
        are_as_long = [*map(len, self._sized)] == self._sizes
        if are_as_long and all(map(is_, chain(now, _END), self._all)):
            return True
        found = [list(book()) for book in self._books]
        if not all(map(_are_alike, found, self._values)):
            return False
        self._keep(found)
        return True

    def renew(self) -> None:
        """Take what the program changed of them, as it was run, for what they are."""
        self._keep([list(book()) for book in self._books])

    def _keep(self, values: list[list[Any]]) -> None:
        self._values, self._all = values, [*chain.from_iterable(values), *_END]
        self._sizes = [*map(len, self._sized)]

    def _visit(self, things: Iterable[Any]) -> None:
        left = list(things)
        while left:
            thing = left.pop()
            if isinstance(thing, _PLAIN) or id(thing) in self._seen:
                continue
            self._seen[id(thing)] = thing
            if len(self._seen) > MOST:
                raise ValueError(
                    f"model and guide hold more than {MOST} objects, too many to look at at each "
                    "step; pass large collections as tensors"
                )
            left.extend(self._inside(thing))

    def _inside(self, thing: Any) -> Iterator[Any]:
        if isinstance(thing, Tensor):
            self._tensors.append(thing)
        elif isinstance(thing, torch.Generator):
            self.generators.append(thing)
        elif isinstance(thing, nn.Module):
            self.modules.append(thing)
            self._of_modules |= set(map(id, vars(thing).values()))
            yield from self._of_object(thing)
        elif isinstance(thing, MethodType):
            yield from (thing.__self__, thing.__func__)
        elif isinstance(thing, partial):
            yield from (thing.func, thing.args, thing.keywords)
        elif isinstance(thing, FunctionType):
            yield from self._of_function(thing)
        elif isinstance(thing, property):
            yield thing.fget
        elif isinstance(thing, (staticmethod, classmethod)):
            yield thing.__func__
        elif isinstance(thing, type) and not _is_of_library(thing.__module__):
            yield from self._noted(vars(thing).values, vars(thing))
            yield from thing.__bases__
        elif isinstance(thing, dict) and not thing:
            self._empty.append(thing)
        elif isinstance(thing, dict):
            yield from self._noted(thing.values, thing)
            if id(thing) not in self._of_modules:
                self._noted(thing.keys)
        elif isinstance(thing, (list, set, deque)):
            yield from self._noted(thing.__iter__, thing)
        elif isinstance(thing, tuple):
            yield from thing
        elif isinstance(thing, _OBJECTS) or _is_own(thing):
            yield from self._of_object(thing)

    def _noted(self, book: _Book, *sized: Any) -> list[Any]:
        self._books.append(book)
        self._sized += sized
        self._values.append(list(book()))
        return self._values[-1]

    def _of_object(self, thing: Any) -> Iterator[Any]:
        if hasattr(thing, "__dict__"):
            yield from self._noted(vars(thing).values, vars(thing))
        if slots := [name for name in _slots(type(thing)) if hasattr(thing, name)]:
            yield from self._noted(partial(map, partial(getattr, thing), slots))
        yield type(thing)

    def _of_function(self, function: FunctionType) -> Iterator[Any]:
        if _is_of_library(function.__module__ or ""):
            yield from (getattr(function, "__wrapped__", None),)
            return
        filled = [cell for cell in function.__closure__ or () if _is_filled(cell)]
        yield from self._noted(partial(map, attrgetter("cell_contents"), filled))
        names = [name for name in names_in(function.__code__) if name in function.__globals__]
        found = self._noted(partial(map, function.__globals__.get, names))
        yield from found
        for module in filter(_is_own_module, found):
            used = [name for name in names_in(function.__code__) if name in vars(module)]
            yield from self._noted(partial(map, vars(module).get, used))
        if vars(function):
            yield from self._noted(vars(function).values, vars(function))
        yield from self._noted(partial(_DEFAULTS, function))


def _slots(cls: type) -> list[str]:
    """The slots of a class and of those that it is made from."""
    own = [one for one in cls.__mro__ if not _is_of_library(one.__module__)]
    slots = [vars(one).get("__slots__", ()) for one in own]
    return [name for some in slots for name in ([some] if isinstance(some, str) else some)]


@cache
def _is_of_library(module: str) -> bool:
    """Whether a module is none of one's own: torch, the standard library, what pip installed."""
    top = module.split(".")[0]
    if top in _LIBRARIES or top in sys.stdlib_module_names:
        return top != "__main__"
    path = getattr(sys.modules.get(top), "__file__", None) or ""
    return "site-packages" in path or "dist-packages" in path


def _is_own_module(thing: Any) -> bool:
    return isinstance(thing, ModuleType) and not _is_of_library(thing.__name__)


def _is_own(thing: Any) -> bool:
    """Whether something is an object of one's own class."""
    if isinstance(thing, (type, ModuleType, Distribution)):
        return False
    return not _is_of_library(type(thing).__module__)


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
    if type(one) is not type(other) or isinstance(one, _EACH_ITS_OWN):
        return False
    if isinstance(one, _PLAIN):
        return bool(one == other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_alike(one[name], other[name]) for name in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(_alike, one, other))
    if isinstance(one, MethodType):
        return one.__func__ is other.__func__ and _alike(one.__self__, other.__self__)
    if _is_own(one) and hasattr(one, "__dict__"):
        return _alike(vars(one), vars(other))
    return type(one).__module__ != "numpy"


_EACH_ITS_OWN = (Tensor, nn.Module, FunctionType, Distribution, torch.Generator)
