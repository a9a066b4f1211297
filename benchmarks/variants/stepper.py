"""What is measured, and what takes its steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Cell", "Stepper"]


@dataclass(frozen=True)
class Cell:
    """A variant on a workload.

    Args:
        workload: The workload's name.
        variant: The variant's.
        size: What the workload is sized by, where that is not its own.
        particles: Samples of the guide in a step, drawn at once.
    """

    workload: str
    variant: str
    size: int | None = None
    particles: int = 1

    @property
    def name(self) -> str:
        """A short name."""
        size = "" if self.size is None else f" {self.size}"
        particles = "" if self.particles == 1 else f" x{self.particles}"
        return f"{self.workload}{size}{particles} {self.variant}"

    @property
    def sizes(self) -> tuple[int, ...]:
        """The arguments of the workload's factory."""
        return () if self.size is None else (self.size,)


@dataclass(frozen=True)
class Stepper:
    """Takes steps.

    Args:
        call: Takes some.
        steps: How many.
    """

    call: Callable[[], object]
    steps: int = 1
