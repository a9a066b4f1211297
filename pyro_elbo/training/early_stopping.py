"""The end of training where the bound has stopped rising."""

from __future__ import annotations

import warnings
from array import array
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from ..evidence.checks import check_count
from ..schedules import ends_at
from .evaluate_on import EvaluateOn
from .history import History
from .run import Run
from .stop_rules import Floats, Plateau, StopRule

__all__ = ["EarlyStopping"]


class EarlyStopping:
    """Ends training by a rule on the true ELBO, at weight 1, once all schedules have ended.

    Steps taken while a schedule went on are no part of the stream of values, nor are values that
    are not finite. A first step outside of a resumed run begins a new stream.

    Args:
        rule: A callable from the values so far, of which there is one at least, oldest first, to
            why training may end, or ``None``:
            :class:`~pyro_elbo.training.Plateau` or :class:`~pyro_elbo.training.RelativeChange`.
        every: The rule is asked at steps that are multiples of this.
        on: What the values are, where they are not the ELBO of each step: an
            :class:`~pyro_elbo.training.EvaluateOn` that is a callback too, before this one; or a
            callable from the :class:`~pyro_elbo.training.Run` to a number, called at the same
            steps as the rule. The rule then counts evaluations.

    Raises:
        TypeError: The rule is no callable, returns no reason, or ``on`` is neither of the two.
        ValueError: ``every`` is below 1.

    Before the first step, a ``TypeError`` says that the loss has no terms, and a ``ValueError``
    that a schedule does not say when it ends.

    Warns:
        UserWarning: Training ended, and ``on`` was never evaluated.

    Law:
        It never ends training while a schedule goes on.

    Example:
        >>> import torch, pyro, pyro.distributions as dist
        >>> from pyro.infer import SVI
        >>> from pyro_elbo import TraceKL_ELBO, fit
        >>> from pyro_elbo.training import EarlyStopping, Plateau
        >>> _ = pyro.set_rng_seed(0)
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0., 1.))
        ...         pyro.sample("x", dist.Normal(z, 1.), obs=x)
        >>> def guide(x):
        ...     loc = pyro.param("loc", torch.zeros(len(x)))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(loc, 0.7))
        >>> svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), TraceKL_ELBO())
        >>> stopping = EarlyStopping(Plateau(min_gain=1.0))
        >>> x = torch.tensor([2., -1., 1.])
        >>> history = fit(svi, x, num_steps=20_000, callbacks=[stopping], progress=False)
        >>> len(history) < 20_000, history.stopped[:23]
        (True, 'early stopping at step ')
    """

    def __init__(
        self,
        rule: StopRule | None = None,
        every: int = 100,
        on: EvaluateOn | Callable[[Run], Any] | None = None,
    ) -> None:
        rule = Plateau() if rule is None else rule
        if not callable(rule) or isinstance(rule, type):
            raise TypeError(
                f"rule must be a callable of the values so far, such as Plateau(), not {rule!r}"
            )
        if on is not None and not callable(on):
            raise TypeError(f"on must be an EvaluateOn or a callable of the run, not {on!r}")
        check_count("every", every, 1)
        self._rule, self._every, self._on = rule, every, on
        self._begin(0)

    def start(self, run: Run) -> None:
        """Refuse what cannot be judged."""
        if self._on is None and not hasattr(run.loss, "decompose"):
            raise TypeError(
                "early stopping is judged on the true ELBO, and the stepper's loss has no terms: "
                f"{run.loss!r}; use a loss of this package, or say on=..."
            )
        for name in _endless(run.loss):
            raise ValueError(
                f"the schedule of {name} does not say when it ends, and early stopping begins "
                "there; give it an end (num_cycles=...), or an attribute num_steps, or use "
                "schedules.Piecewise"
            )
        if run.step == 0:
            self._begin(0)
        self._is_annealing = run.is_annealing

    def __call__(self, run: Run) -> None:
        """Ask the rule, where it is time."""
        if self._is_annealing:
            self._begin(run.step)
        self._is_annealing = run.is_annealing
        if self._is_annealing or run.step % self._every:
            return
        self._values.extend(self._new_values(run))
        reason = self._rule(np.array(self._values)) if self._values else None
        if reason is not None and not isinstance(reason, str):
            raise TypeError(f"the rule {self._rule!r} must return a string or None, not {reason!r}")
        if reason:
            run.stop(f"early stopping at step {run.step}: {reason}")

    def finish(self, run: Run) -> None:
        """Say so where there was nothing to judge."""
        if isinstance(self._on, EvaluateOn) and not len(self._on.history):
            warnings.warn(
                f"early stopping had nothing to judge: on={self._on!r} was never evaluated. Make "
                "it a callback too, before EarlyStopping, and evaluate it more often",
                UserWarning,
                stacklevel=2,
            )

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs."""
        return {"seen": self._seen, "values": torch.tensor(self._values, dtype=torch.float64)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore :meth:`state_dict`."""
        self._begin(int(state["seen"]))
        self._values.extend(state["values"].tolist())

    def _begin(self, step: int) -> None:
        """Begin a stream with what comes after a step."""
        self._seen, self._values = step, array("d")
        self._is_annealing = False

    def _new_values(self, run: Run) -> Floats:
        if self._on is None:
            values = run.latest(run.step - self._seen)["elbo"]
            self._seen = run.step
        elif isinstance(self._on, EvaluateOn):
            values = self._new_evaluations(self._on.history)
        else:
            values = np.array([float(self._on(run))])
        return values[np.isfinite(values)]

    def _new_evaluations(self, history: History) -> Floats:
        if not len(history):
            return np.empty(0)
        values = history["elbo"][history["step"] > self._seen]
        self._seen = max(self._seen, int(history["step"][-1]))
        return values


def _endless(loss: Any) -> list[str]:
    """What the schedules that do not say when they end are the weight of."""
    schedules = loss._schedules() if hasattr(loss, "_schedules") else {}
    return [name for name, value in schedules.items() if callable(value) and ends_at(value) is None]
