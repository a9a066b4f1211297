"""The terms in TensorBoard."""

from __future__ import annotations

from typing import Any

from ..evidence.checks import check_count
from .run import Run

__all__ = ["TensorBoard"]

SKIPPED = ("step", "epoch", "seconds")


class TensorBoard:
    """Writes every column of the history with torch's own writer.

    Args:
        writer: A ``torch.utils.tensorboard.SummaryWriter(folder)``, or anything with its
            ``add_scalar(tag, value, step)``; it is flushed at the end, and yours to close.
        every: At steps that are multiples of this.
        prefix: In front of each tag.

    Raises:
        TypeError: The writer has no ``add_scalar``.
        ValueError: ``every`` is below 1.
    """

    def __init__(self, writer: Any, every: int = 10, prefix: str = "") -> None:
        if not callable(getattr(writer, "add_scalar", None)):
            raise TypeError(f"{writer!r} has no add_scalar; give a SummaryWriter(folder)")
        check_count("every", every, 1)
        self._writer, self._every, self._prefix = writer, every, prefix

    def __call__(self, run: Run) -> None:
        """Write, where it is time."""
        if run.step % self._every == 0:
            for name, values in run.latest().columns.items():
                if name not in SKIPPED:
                    self._writer.add_scalar(f"{self._prefix}{name}", float(values[-1]), run.step)

    def finish(self, run: Run) -> None:
        """Flush."""
        if hasattr(self._writer, "flush"):
            self._writer.flush()
