"""Checks of what a person gives an estimator."""

from __future__ import annotations

from numbers import Integral
from typing import Any

__all__ = ["check_count"]


def check_count(name: str, value: Any, least: int) -> None:
    """Check a number of samples or steps.

    Raises:
        ValueError: It is no integer, or too small.
    """
    if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} must be an integer >= {least}, not {value!r}")
