"""What a schedule is, and when it ends."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

__all__ = ["Schedule", "ends_at"]

Schedule: TypeAlias = Callable[[int], float]
"""Any callable from a step to a weight."""


def ends_at(schedule: Schedule) -> int | None:
    """The step from which a schedule no longer changes.

    Args:
        schedule: Any callable from a step to a weight.

    Returns:
        Its ``num_steps``, or ``None``: it never ends, or does not say.

    Example:
        >>> from pyro_elbo.schedules import Constant, Cyclical, Linear, ends_at
        >>> ends_at(Linear(4, 1, num_steps=1000)), ends_at(Constant(1))
        (1000, 0)
        >>> ends_at(Cyclical(0, 1, period=100)), ends_at(lambda step: 1 / (1 + step))
        (None, None)
    """
    num_steps = getattr(schedule, "num_steps", None)
    return num_steps if isinstance(num_steps, int) else None
