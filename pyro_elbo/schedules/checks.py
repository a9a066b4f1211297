"""The arithmetic and the argument checks that the schedules share."""

from __future__ import annotations

import math
from numbers import Real
from operator import index
from typing import Any

__all__ = ["between", "clamp", "count", "number", "plural", "show", "store", "weight"]


def between(start: float, stop: float, fraction: float) -> float:
    """The number at a fraction of the way from one end to the other."""
    return clamp(start + (stop - start) * fraction, start, stop)


def clamp(value: float, start: float, stop: float) -> float:
    """The value, not carried past either end by rounding."""
    return min(max(value, min(start, stop)), max(start, stop))


def count(value: Any, name: str, least: int) -> int:
    """An integer no less than ``least``."""
    try:
        integer = index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {value!r}; use int(...)") from None
    if integer < least:
        raise ValueError(f"{name} must be >= {least}, got {integer}")
    return integer


def weight(value: Any, name: str) -> float:
    """A weight of the KL: a finite number >= 0."""
    value = number(value, name)
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{name} is a weight of the KL and must be finite and >= 0, got {value!r}")
    return value


def number(value: Any, name: str) -> float:
    """A real number as a float."""
    if not isinstance(value, Real):
        raise TypeError(f"{name} must be a real number, got {value!r}; use float(...)")
    return float(value)


def show(value: float) -> str:
    """A number in full, without a needless ``.0``."""
    return repr(value).removesuffix(".0")


def plural(number: int, noun: str) -> str:
    """``1 step``, ``2 steps``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def store(record: object, **values: Any) -> None:
    """Set the fields of a frozen record, in its own constructor."""
    for name, value in values.items():
        object.__setattr__(record, name, value)
