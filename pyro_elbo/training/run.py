"""What a callback sees of a run of training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeAlias

from pyro.infer import ELBO

from ..errors import StopTraining
from ..summary import Summary, summary_of
from ..terms import ELBOTerms
from .history import History
from .recorder import Recorder

__all__ = ["Callback", "Run", "loss_of"]


class Run:
    """A run of :func:`~pyro_elbo.fit`, as a callback is given it after each step.

    Args:
        stepper: What takes the steps.
        num_steps: The steps of the whole run; ``None`` where epochs are counted.

    The attributes: ``step``, the number of steps taken, from 1; ``epoch``, from 0; ``batch``, the
    number of batches taken of the epoch; ``args`` and ``kwargs``, what the step was given;
    ``loss``, the stepper's :class:`pyro.infer.ELBO`, or ``None``; ``is_whole``, whether no step was
    broken off.
    """

    def __init__(self, stepper: Any, num_steps: int | None = None) -> None:
        self.stepper = stepper
        self.num_steps = num_steps
        self.loss: Any = loss_of(stepper)
        self.step = self.epoch = self.batch = 0
        self.args: tuple[Any, ...] = ()
        self.kwargs: Mapping[str, Any] = {}
        self.recorder = Recorder()
        self.is_whole = True

    @property
    def steps_per_call(self) -> int:
        """How many steps one call of the stepper takes."""
        return int(getattr(self.stepper, "steps_per_call", 1))

    @property
    def terms(self) -> ELBOTerms | None:
        """The terms of the step, where the loss has some."""
        return self.loss.terms if hasattr(self.loss, "decompose") else None

    @property
    def summary(self) -> Summary | None:
        """The totals of these terms."""
        terms = self.terms
        return None if terms is None else summary_of(terms)

    @property
    def history(self) -> History:
        """The steps so far, as a copy."""
        return self.recorder.history()

    def latest(self, num_steps: int = 1) -> History:
        """The latest steps alone, at a cost that does not grow with the run."""
        return self.recorder.history(num_latest=num_steps)

    @property
    def is_annealing(self) -> bool:
        """Whether a schedule of the loss goes on after this step."""
        return bool(getattr(self.loss, "unfinished_schedules", None))

    def stop(self, reason: str) -> None:
        """End training after this step.

        Raises:
            StopTraining: Always; ``fit`` catches it.
        """
        raise StopTraining(reason)


class CallableCallback(Protocol):
    """A callable of the run; it may also have the methods of ``fit``'s docstring."""

    def __call__(self, run: Run, /) -> Any: ...


Callback: TypeAlias = CallableCallback | Callable[[Run], Any]


def loss_of(stepper: Any) -> Any:
    """The loss behind a stepper: Pyro's ``SVI`` keeps only a bound method of it."""
    loss = getattr(stepper, "loss", None)
    owner = getattr(loss, "__self__", loss)
    return owner if isinstance(owner, ELBO) else None
