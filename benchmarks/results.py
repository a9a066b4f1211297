"""What was measured, task by task."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from .harness import Quartiles, quartiles, ratios

__all__ = ["BREAKS", "NOT_INSTALLED", "Results", "Value"]

BREAKS, NOT_INSTALLED = "breaks", "not installed"

Value = Quartiles | float | str | None
"""A measurement; ``"breaks"``; or ``None`` where there is none."""


@dataclass(frozen=True)
class Results:
    """The records of a run, as they are in ``results.json``.

    Args:
        about: Machine, versions, and whether the run was a quick one.
        tasks: The record of each task.
    """

    about: Mapping[str, Any]
    tasks: Mapping[str, Mapping[str, Any]]

    def cell(self, task: str, variant: str, **sized: int) -> Mapping[str, Any] | None:
        """The entry of a variant, of so many particles or of such a size."""
        for entry in self.cells(task):
            if entry["variant"] == variant and all(entry[k] == v for k, v in sized.items()):
                return entry
        return None

    def cells(self, task: str) -> Iterable[Mapping[str, Any]]:
        """The entries of a task."""
        cells: Iterable[Mapping[str, Any]] = self.tasks.get(task, {}).get("cells", ())
        return cells

    def read(self, task: str, variant: str, key: str, **sized: int) -> Any:
        """A number of an entry; ``"breaks"``; or ``None`` where it, or its library, is missing."""
        entry = self.cell(task, variant, **sized)
        if entry is None or entry.get("error", "").startswith(NOT_INSTALLED):
            return None
        return BREAKS if "error" in entry else entry.get(key)

    def time(self, task: str, variant: str, **sized: int) -> Value:
        """The microseconds of a step."""
        times = self.read(task, variant, "microseconds", **sized)
        return quartiles(times) if isinstance(times, list) else times

    def ratio(self, task: str, variant: str, other: str) -> Value:
        """The ratio of two variants, round by round."""
        return quotient(
            self.read(task, variant, "microseconds"), self.read(task, other, "microseconds")
        )

    def growth(self, variant: str, most: int, least: int) -> Value:
        """The ratio of a step with so many particles to one with fewer."""
        task, key = "growth_particles", "microseconds"
        return quotient(
            self.read(task, variant, key, particles=most),
            self.read(task, variant, key, particles=least),
        )

    def found(self, task: str, key: str) -> Any:
        """What a task without rounds says of something."""
        found = self.tasks.get(task, {}).get("found")
        if found is None:
            return None
        return BREAKS if "error" in found else found[key]


def quotient(times: Any, others: Any) -> Value:
    """The ratio of two lists of times, where both were measured."""
    if times is None or others is None:
        return None
    if BREAKS in (times, others):
        return BREAKS
    return ratios(times, others)
