r"""The bound over training: its two terms stacked, its distance from the evidence, its weight.

.. math:: \log p(x) - \mathrm{KL}(q \,\|\, p(z \mid x)) = \mathrm{ELBO}
    = E_q[\log p(x \mid z)] - \mathrm{KL}(q \,\|\, p(z))
"""

from __future__ import annotations

from collections.abc import Callable
from operator import index

import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from numpy.typing import ArrayLike

from .bound import beta_curve
from .checks import Floats, finite, rising, vectors
from .palette import KL_HATCH, TERM_COLOURS, TERM_LABELS, TERM_MARKERS, axes_or_new, legend

__all__ = ["beta_line", "gap_curve", "schedule_curve", "stacked_terms"]

NUM_ERRORS = 2.0
SIGNS = {"lower": "≥ ", "exact": "", "upper": "≤ "}


def stacked_terms(
    steps: ArrayLike,
    reconstruction: ArrayLike,
    kl: ArrayLike,
    beta: ArrayLike | None = None,
    *,
    unit: str = "nats",
    ax: Axes | None = None,
) -> Axes:
    r"""Reconstruction and KL over training as areas that add up to the ELBO.

    .. math:: 0 \;\to\; E_q[\log p(x \mid z)] \;\to\; E_q[\log p(x \mid z)] - \mathrm{KL}

    The reconstruction's area reaches from 0 to the reconstruction, the KL's (hatched) from there
    down to the ELBO, a line. Where the reconstruction is above 0, as densities can be, the KL's
    area lies over the reconstruction's. The weights are on an axis of their own at the right.

    Args:
        steps: Training steps, rising, shape [T] with T at least 2.
        reconstruction: Expected log-likelihood at each, shape [T].
        kl: KL to the prior at each, without its weight, shape [T].
        beta: The KL's weight at each, shape [T]; not drawn by default.
        unit: What the values are in, for the axis label.
        ax: Where to draw; a new figure by default.

    Raises:
        ValueError: The lengths differ, a value is not finite, or the steps do not rise or are
            fewer than two.

    Law:
        The lower edge of the KL's area is ``reconstruction - kl``, the ELBO.

    Example:
        >>> ax = stacked_terms([0, 1, 2], [-9., -6., -4.], [0., 1., 1.5], [0., 0.5, 1.])
        >>> ax.lines[0].get_label(), ax.lines[0].get_ydata().tolist()
        ('ELBO', [-9.0, -7.0, -5.5])
    """
    weights = {} if beta is None else {"beta": beta}
    at, fit, divergence, *rest = vectors(
        steps=steps, reconstruction=reconstruction, kl=kl, **weights
    )
    rising(at)
    if len(at) < 2:
        raise ValueError("one step makes no area; bound_bars draws a single bound")
    ax = axes_or_new(ax)
    _area(ax, at, np.zeros_like(fit), fit, "reconstruction")
    _area(ax, at, fit, fit - divergence, "kl", hatch=KL_HATCH)
    ax.plot(at, fit - divergence, color=TERM_COLOURS["elbo"], label=TERM_LABELS["elbo"], lw=1.8)
    handles = ax.get_legend_handles_labels()[0] + [beta_line(ax, at, one) for one in rest]
    legend(ax, handles)
    return _over_steps(ax, unit)


def gap_curve(
    steps: ArrayLike,
    elbo: ArrayLike,
    log_evidence: ArrayLike,
    log_evidence_error: ArrayLike | None = None,
    *,
    bound: str = "lower",
    unit: str = "nats",
    ax: Axes | None = None,
) -> Axes:
    r"""The ELBO rising towards the evidence, and the gap between them.

    .. math:: \log p(x) - \mathrm{ELBO} = \mathrm{KL}(q \,\|\, p(z \mid x))

    The evidence has a band of two standard errors to either side. The legend says the gap at the
    last step. :class:`~pyro_elbo.training.TrackEvidence` has the arrays under the same names.

    Args:
        steps: Training steps, rising, shape [T].
        elbo: The ELBO at each, shape [T].
        log_evidence: The evidence as estimated at each, shape [T].
        log_evidence_error: Its standard error, shape [T]; no band by default.
        bound: What the evidence is, ``"lower"``, ``"exact"`` or ``"upper"`` as in
            :class:`~pyro_elbo.evidence.EvidenceEstimate`: under a lower bound the gap is at least
            what is drawn, and the legend says so.
        unit: What the values are in, for the axis label.
        ax: Where to draw; a new figure by default.

    Raises:
        ValueError: The lengths differ, a value is not finite, the steps do not rise, an error is
            negative, or ``bound`` is none of the three.

    Example:
        >>> ax = gap_curve([0, 10, 20], [-5., -3., -2.5], [-2.2, -2.1, -2.], [0.2, 0.1, 0.1])
        >>> [text.get_text() for text in ax.get_legend().get_texts()]
        ['gap  KL(q ‖ p(z|x)) ≥ 0.500 at the end', 'log p(x) ± 2 std. errors', 'ELBO']
    """
    if bound not in SIGNS:
        raise ValueError(f"bound must be one of {', '.join(map(repr, SIGNS))}, not {bound!r}")
    errors = {} if log_evidence_error is None else {"log_evidence_error": log_evidence_error}
    at, lower, upper, *error = vectors(steps=steps, elbo=elbo, log_evidence=log_evidence, **errors)
    rising(at)
    if any((one < 0).any() for one in error):
        raise ValueError("log_evidence_error must be >= 0; a standard error has no sign")
    ax = axes_or_new(ax)
    gap = f"{TERM_LABELS['gap']} {SIGNS[bound] or '= '}{upper[-1] - lower[-1]:.3f} at the end"
    _area(ax, at, lower, upper, "gap", label=gap.replace("-", "−"))
    _line(ax, at, upper, "log_evidence", *error)
    _line(ax, at, lower, "elbo")
    legend(ax)
    return _over_steps(ax, unit)


def schedule_curve(
    schedule: Callable[[int], float], num_steps: int, *, ax: Axes | None = None
) -> Axes:
    r"""The weight :math:`\beta` that a schedule gives at each step, and the ELBO's 1 dotted.

    Args:
        schedule: Any callable from a step to a weight; it is called once for each step.
        num_steps: The last step that is drawn, at least 1.
        ax: Where to draw; a new figure by default.

    Raises:
        ValueError: ``num_steps`` is below 1, or a weight is not finite.
        TypeError: ``schedule`` is not callable, or ``num_steps`` is no integer.

    Example:
        >>> from pyro_elbo.schedules import Linear
        >>> ax = schedule_curve(Linear(4, 1, num_steps=2), 3)
        >>> ax.lines[0].get_ydata().tolist()
        [4.0, 2.5, 1.0, 1.0]
    """
    if not callable(schedule):
        raise TypeError(f"schedule must be a callable of the step, got {schedule!r}")
    if index(num_steps) < 1:
        raise ValueError(f"num_steps must be >= 1, got {num_steps}")
    steps = np.arange(index(num_steps) + 1)
    weights = np.array([float(schedule(step)) for step in steps.tolist()])
    return beta_curve(steps, finite("schedule", weights), ax=ax)


def _area(
    ax: Axes,
    steps: Floats,
    start: Floats,
    stop: Floats,
    term: str,
    label: str | None = None,
    hatch: str | None = None,
) -> None:
    area = ax.fill_between(
        *(steps, start, stop),
        facecolor=TERM_COLOURS[term],
        label=label or TERM_LABELS[term],
        hatch=hatch,
        edgecolor="white",
        alpha=0.35 if term == "gap" else 1.0,
        lw=0,
    )
    area.sticky_edges.y.append(0.0)


def _line(ax: Axes, steps: Floats, values: Floats, term: str, error: Floats | None = None) -> None:
    colour, label = TERM_COLOURS[term], TERM_LABELS[term]
    if error is not None:
        half = NUM_ERRORS * error
        label = f"{label} ± {NUM_ERRORS:g} std. errors"
        ax.errorbar(steps, values, half, fmt="none", ecolor=colour, elinewidth=0.9, capsize=2.5)
        ax.fill_between(steps, values - half, values + half, color=colour, alpha=0.25, lw=0)
    style = "--" if term == "log_evidence" else "-"
    marker = TERM_MARKERS[term]
    ax.plot(steps, values, style, marker=marker, ms=4, color=colour, label=label, lw=1.4)


def beta_line(ax: Axes, steps: Floats, beta: Floats) -> Line2D:
    """The weight over the steps, on an axis of its own at the right."""
    twin = ax.twinx()
    (line,) = twin.plot(
        steps, beta, "--", color=TERM_COLOURS["beta"], label=TERM_LABELS["beta"], lw=1.4
    )
    line.set_path_effects([patheffects.withStroke(linewidth=3.2, foreground="white")])
    twin.set_ylabel(TERM_LABELS["beta"])
    twin.set_ylim(0.0, 1.08 * max(1.0, beta.max()))
    return line


def _over_steps(ax: Axes, unit: str) -> Axes:
    ax.set(xlabel="step", ylabel=unit)
    ax.margins(x=0.01)
    ax.grid(alpha=0.25, lw=0.6)
    return ax
