"""Constraints as plain data, so that a checkpoint holds no code."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.distributions import constraints

__all__ = ["decode", "encode"]

MODULES = ("torch.distributions.constraints", "pyro.distributions.constraints")
Plain = (int, float, bool, str, type(None), Tensor)


def encode(value: Any) -> Any:
    """A constraint, or what it holds, as plain data.

    Args:
        value: A constraint of torch or Pyro; a number, string or tensor; or a list of such.

    Raises:
        ValueError: It is of another kind.

    Law:
        :func:`decode` gives back a constraint of the same kind and numbers.

    Example:
        >>> from torch.distributions import constraints
        >>> decode(encode(constraints.interval(0., 2.)))
        Interval(lower_bound=0.0, upper_bound=2.0)
    """
    if isinstance(value, Plain):
        return value
    if isinstance(value, (list, tuple)):
        return [encode(item) for item in value]
    cls = type(value)
    if isinstance(value, constraints.Constraint) and cls.__module__ in MODULES:
        state = {name: encode(item) for name, item in vars(value).items()}
        return {"module": cls.__module__, "class": cls.__name__, "state": state}
    raise ValueError(f"{value!r} of {cls.__module__} is no constraint of torch or Pyro")


def decode(data: Any) -> Any:
    """What :func:`encode` was given.

    Args:
        data: What it returned.

    Raises:
        ValueError: It names what is no constraint.
    """
    if isinstance(data, list):
        return [decode(item) for item in data]
    if not isinstance(data, Mapping):
        return data
    if data["module"] not in MODULES:
        raise ValueError(f"{data['module']!r} has no constraints")
    cls = getattr(sys.modules[data["module"]], data["class"], None)
    if not (isinstance(cls, type) and issubclass(cls, constraints.Constraint)):
        raise ValueError(f"{data['class']!r} is no constraint")
    constraint = cls.__new__(cls)
    vars(constraint).update({name: decode(item) for name, item in data["state"].items()})
    return constraint
