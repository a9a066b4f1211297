"""A run of a program beside the one that counts, which leaves no trace in what it moves."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from threading import get_ident
from types import CodeType, FunctionType, MethodType
from typing import Any

import numpy
import pyro
import torch
from pyro import poutine
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

__all__ = ["aside", "names_in", "pythons_generators_kept"]

_LIBRARIES = ("torch", "pyro", "numpy", "functools", "contextlib", "builtins", "collections")
_LONGEST = 1000  # what has more items has data, and no modules


@contextmanager
def aside(*programs: Any) -> Iterator[None]:
    """Inside, programs run for themselves: what is outside is kept, from generators to buffers.

    Args:
        *programs: The programs and their arguments: the modules that they are, or hold, are run on
            copies of their buffers, as every module is that is called.
    """
    with (
        torch.random.fork_rng(),
        pythons_generators_kept(),
        torch.no_grad(),
        pyro.validation_enabled(False),
        poutine.block(),
        _on_copies_of_buffers(programs),
    ):
        yield


@contextmanager
def pythons_generators_kept() -> Iterator[None]:
    """Afterwards the generators of Python and numpy are where they were."""
    states = random.getstate(), numpy.random.get_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        numpy.random.set_state(states[1])


@contextmanager
def _on_copies_of_buffers(programs: Iterable[Any]) -> Iterator[None]:
    """Inside, modules move copies of their buffers (running averages, counts)."""
    own: dict[tuple[nn.Module, str], Tensor] = {}
    seen: set[nn.Module] = set()
    thread = get_ident()

    def copy(root: nn.Module, args: Any = ()) -> None:
        if root in seen or get_ident() != thread:
            return
        for module in root.modules():
            if module in seen or isinstance(module, torch.jit.ScriptModule):
                continue
            seen.add(module)
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    own[module, name] = buffer
                    module._buffers[name] = buffer.clone()

    handle = register_module_forward_pre_hook(copy)
    try:
        for module in _modules_in(programs):
            copy(module)
        yield
    finally:
        handle.remove()
        for (module, name), buffer in own.items():
            module._buffers[name] = buffer


def _modules_in(things: Iterable[Any]) -> Iterator[nn.Module]:
    """The modules that programs are, or hold: by methods, closures, globals, attributes, items."""
    seen: set[int] = set()
    left = list(things)
    while left:
        thing = left.pop()
        if id(thing) in seen:
            continue
        seen.add(id(thing))
        if isinstance(thing, nn.Module):
            yield thing
        else:
            left.extend(_held(thing))


def _held(thing: Any) -> Iterable[Any]:
    if isinstance(thing, MethodType):
        return thing.__self__, thing.__func__
    if isinstance(thing, partial):
        return thing.func, *thing.args, *thing.keywords.values()
    if isinstance(thing, FunctionType):
        return *_enclosed(thing), *_named(thing), getattr(thing, "__wrapped__", None)
    if isinstance(thing, dict | list | tuple | set | frozenset) and len(thing) <= _LONGEST:
        return thing.values() if isinstance(thing, dict) else thing
    if _is_own(type(thing)) and not isinstance(thing, type):
        return getattr(thing, "__dict__", {}).values()
    return ()


def _enclosed(function: FunctionType) -> Iterator[Any]:
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # it is empty as yet
            continue


def _named(function: FunctionType) -> Iterable[Any]:
    if not _is_own(function):
        return ()
    names = names_in(function.__code__)
    return [function.__globals__[name] for name in names if name in function.__globals__]


def names_in(code: CodeType) -> list[str]:
    """The names that a function and those inside of it look up."""
    inner = [const for const in code.co_consts if isinstance(const, CodeType)]
    found = [*code.co_names, *(name for own in inner for name in names_in(own))]
    return list(dict.fromkeys(found))


def _is_own(thing: Any) -> bool:
    """Whether a class or a function is of no library."""
    return (thing.__module__ or "").partition(".")[0] not in _LIBRARIES
