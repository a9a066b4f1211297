"""The learning-rate schedulers of torch, as Pyro wraps them."""

from __future__ import annotations

from typing import Any

import numpy as np
from pyro.optim import PyroLRScheduler

from ..evidence.checks import check_count
from .run import Run

__all__ = ["LearningRate"]


class LearningRate:
    """Steps a learning-rate scheduler every so many steps.

    Every scheduler of torch is in :mod:`pyro.optim`, ``pyro.optim.ExponentialLR({"optimizer":
    torch.optim.Adam, "optim_args": {"lr": 0.01}, "gamma": 0.99})``; it is the ``optim`` of ``SVI``,
    and part of a checkpoint with it.

    Args:
        scheduler: The optimiser.
        every: Steps between; ``len(loader)`` for once an epoch.
        metric: Whether it is told minus the mean objective of the steps between, of those with a
            finite one, as ``ReduceLROnPlateau`` asks for.

    Raises:
        TypeError: It is no scheduler.
        ValueError: ``every`` is below 1.
    """

    def __init__(self, scheduler: Any, every: int = 1, metric: bool = False) -> None:
        if not isinstance(scheduler, PyroLRScheduler):
            raise TypeError(
                f"{scheduler!r} is no scheduler of Pyro's, such as pyro.optim.ExponentialLR; make "
                "it the optimiser of the stepper, and pass it here too"
            )
        check_count("every", every, 1)
        self._scheduler, self._every, self._metric = scheduler, every, metric

    def __call__(self, run: Run) -> None:
        """Step it, where it is time."""
        if run.step % self._every:
            return
        if not self._metric:
            self._scheduler.step()
            return
        objective = run.latest(self._every)["objective"]
        finite = objective[np.isfinite(objective)]
        if len(finite):
            self._scheduler.step(-finite.mean())
