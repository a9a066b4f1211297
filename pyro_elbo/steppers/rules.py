"""How many moves an E-step or an M-step takes: a number, or a rule that says when to stop."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from itertools import count
from numbers import Integral, Real
from statistics import fmean
from typing import Any, Protocol

__all__ = [
    "FixedSteps",
    "StopRule",
    "UntilConverged",
    "UntilMutualInformationStopsRising",
    "rule_of",
]

Enough = Callable[[float], bool]


class StopRule(Protocol):
    """What ``e_steps`` and ``m_steps`` may be, beside a number.

    A rule that remembers something from one EM step to the next also has ``state_dict()`` and
    ``load_state_dict(state)``, of plain numbers.
    """

    def start(self) -> Enough:
        """Called at the start of each E-step (M-step).

        Returns:
            A function that is given the loss of each move, in nats, taken before the parameters
            moved, and says whether that move was the last.
        """


class FixedSteps:
    """A number of moves.

    Args:
        num_steps: The number.

    Raises:
        ValueError: It is below 1.
    """

    def __init__(self, num_steps: int) -> None:
        self.num_steps = _counted("num_steps", num_steps)

    def start(self) -> Enough:
        """Count anew."""
        moves = count(1)
        return lambda loss: next(moves) >= self.num_steps


class UntilConverged:
    r"""Until the ELBO stops rising.

    The last move is the first, at a multiple of ``window``, with

    .. math::
        \overline{L}_{t-2w+1:t-w} - \overline{L}_{t-w+1:t} \le \mathrm{tolerance},

    the mean loss of the latest window against that of the window before: the longer the window, the
    less a noisy loss stops it too early, or keeps it going.

    Args:
        tolerance: What a window has to gain on the one before, in nats over the data set.
        window: Moves in a window.
        max_steps: The most moves.

    Raises:
        ValueError: One of them makes no sense.

    Example:
        >>> from pyro_elbo.steppers import UntilConverged
        >>> enough = UntilConverged(tolerance=0.1, window=1).start()
        >>> [enough(loss) for loss in (5.0, 4.0, 3.95)]
        [False, False, True]

    References:
        *Lagging Inference Networks and Posterior Collapse in Variational Autoencoders* (He,
        Spokoyny, Neubig & Berg-Kirkpatrick, 2019), arXiv 1901.05534: windows of 10, at most 100.
    """

    def __init__(self, tolerance: float = 0.0, window: int = 10, max_steps: int = 100) -> None:
        if not isinstance(tolerance, Real) or not 0 <= tolerance < math.inf:
            raise ValueError(f"tolerance must be finite and >= 0 nats, not {tolerance!r}")
        self.tolerance: float = float(tolerance)
        self.window: int = _counted("window", window)
        self.max_steps: int = _counted("max_steps", max_steps)

    def start(self) -> Enough:
        """Forget the losses of the step before."""
        losses: list[float] = []

        def enough(loss: float) -> bool:
            losses.append(loss)
            return len(losses) >= self.max_steps or self._has_converged(losses)

        return enough

    def _has_converged(self, losses: list[float]) -> bool:
        windows, rest = divmod(len(losses), self.window)
        if rest or windows < 2:
            return False
        before, latest = losses[-2 * self.window : -self.window], losses[-self.window :]
        return not fmean(before) - fmean(latest) > self.tolerance


class UntilMutualInformationStopsRising:
    r"""For ``e_steps``: an encoder that is kept from lagging behind, as long as it needs that.

    At the start of training a decoder that moves at the encoder's pace learns to do without
    latents that do not tell it anything yet, and the posterior collapses onto the prior. Here each
    E-step runs to its end until

    .. math::
        I_q(x; z) = E_x\,\mathrm{KL}(q(z \mid x) \,\|\, p(z)) - \mathrm{KL}(q(z) \,\|\, p(z))

    no longer rises on held-out data; from then on an E-step is one move, which is plain training.

    Args:
        information: Returns the mutual information now, in nats: on held-out data
            ``lambda: diagnostics.posterior_collapse(model, guide, x).mutual_information``.
        every: EM steps between two looks at it.
        patience: Looks in a row, none above all before, at which it no longer rises.
        until: The E-step's rule meanwhile; by default :class:`UntilConverged`.

    Raises:
        ValueError: ``every`` or ``patience`` is below 1; at a look, the information is not finite.
        TypeError: ``information`` cannot be called, or ``until`` is no rule.

    Attributes: ``is_rising``, whether E-steps still run to their end; ``best``, the largest value.

    Example:
        >>> from pyro_elbo.steppers import UntilMutualInformationStopsRising
        >>> looks = iter([0.5, 0.9, 0.8])
        >>> rule = UntilMutualInformationStopsRising(lambda: next(looks), until=5)
        >>> def num_moves():
        ...     enough = rule.start()
        ...     return next(n for n in range(1, 10) if enough(0.0))
        >>> [num_moves() for _ in range(5)]
        [5, 5, 5, 1, 1]

    References:
        *Lagging Inference Networks and Posterior Collapse in Variational Autoencoders* (He,
        Spokoyny, Neubig & Berg-Kirkpatrick, 2019), arXiv 1901.05534.
    """

    def __init__(
        self,
        information: Callable[[], Any],
        every: int = 1,
        patience: int = 1,
        until: int | StopRule | None = None,
    ) -> None:
        if not callable(information):
            raise TypeError(
                "information must be a function without arguments that returns the mutual "
                f"information in nats, not {information!r}"
            )
        self.information = information
        self.every, self.patience = _counted("every", every), _counted("patience", patience)
        self.until = rule_of("until", UntilConverged() if until is None else until)
        self.is_rising, self.best = True, -math.inf
        self._num_steps = self._num_misses = 0

    def start(self) -> Enough:
        """Look at the information where it is time."""
        if self.is_rising and self._num_steps and self._num_steps % self.every == 0:
            self._look()
        self._num_steps += 1
        return self.until.start() if self.is_rising else FixedSteps(1).start()

    def state_dict(self) -> dict[str, float]:
        """What a checkpoint needs."""
        return {
            "is_rising": self.is_rising,
            "best": self.best,
            "num_steps": self._num_steps,
            "num_misses": self._num_misses,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore :meth:`state_dict`."""
        self.is_rising, self.best = bool(state["is_rising"]), float(state["best"])
        self._num_steps, self._num_misses = int(state["num_steps"]), int(state["num_misses"])

    def _look(self) -> None:
        value = float(self.information())
        if not math.isfinite(value):
            raise ValueError(f"the mutual information must be a finite number, it is {value}")
        self._num_misses = 0 if value > self.best else self._num_misses + 1
        self.best = max(self.best, value)
        self.is_rising = self._num_misses < self.patience


def rule_of(name: str, steps: Any) -> StopRule:
    """The rule that a number of steps is, or a rule itself.

    Raises:
        ValueError: The number is below 1.
        TypeError: It is neither.
    """
    if isinstance(steps, Integral):
        return FixedSteps(_counted(name, steps))
    if isinstance(steps, type) or not callable(getattr(steps, "start", None)):
        raise TypeError(
            f"{name} must be a number of steps or a stop rule, such as "
            f"pyro_elbo.steppers.UntilConverged(), not {steps!r}"
        )
    rule: StopRule = steps
    return rule


def _counted(name: str, value: Any) -> int:
    if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} must be an integer >= 1, not {value!r}")
    return int(value)
