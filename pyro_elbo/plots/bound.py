r"""The terms of the bound: over training, and side by side.

.. math:: \mathrm{ELBO} = E_q[\log p(x \mid z)] - \mathrm{KL}(q \,\|\, p(z))
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from .palette import KL_HATCH, TERM_COLOURS, TERM_LABELS, TERM_MARKERS, axes_or_new

__all__ = ["beta_curve", "bound_bars", "term_curves"]

NUM_MARKERS = 8


def term_curves(
    steps: ArrayLike, terms: Mapping[str, ArrayLike], *, unit: str = "nats", ax: Axes | None = None
) -> Axes:
    """Terms over training, one line for each, in the term's own colour and with its own marker.

    The objective is dashed: where the weight is 1 it lies on the ELBO. The markers are a few of
    the steps, staggered so that none hides another.

    Args:
        steps: Training steps, shape [T].
        terms: Values of each term by its name in :class:`~pyro_elbo.ELBOTerms`, each of shape [T].
        unit: What the values are in, for the axis label.
        ax: Where to draw; a new figure by default.

    Raises:
        ValueError: A name is no term, or its values do not have the shape of ``steps``.

    Example:
        >>> ax = term_curves([0, 1, 2], {"elbo": [-3., -2., -1.], "kl": [0., 1., 1.]})
        >>> [line.get_label() for line in ax.lines]
        ['ELBO', 'KL(q ‖ p(z))']
    """
    steps = np.asarray(steps)
    curves = {name: _curve(name, values, steps) for name, values in terms.items()}
    ax = axes_or_new(ax)
    for place, (name, values) in enumerate(curves.items()):
        (line,) = ax.plot(steps, values, color=TERM_COLOURS[name], label=TERM_LABELS[name], lw=1.4)
        line.set(linestyle="--" if name == "objective" else "-", marker=TERM_MARKERS[name])
        line.set(markersize=4, markevery=_staggered(len(values), place, len(curves)))
    ax.set(xlabel="step", ylabel=unit)
    ax.margins(x=0.01)
    ax.grid(alpha=0.25, lw=0.6)
    return ax


def beta_curve(steps: ArrayLike, beta: ArrayLike, *, ax: Axes | None = None) -> Axes:
    r"""The KL weight :math:`\beta` over training, filled down to 0, and the ELBO's 1 dotted.

    Args:
        steps: Training steps, shape [T].
        beta: The weight at each, shape [T].
        ax: Where to draw; a new figure by default.

    Raises:
        ValueError: The shapes differ.

    Example:
        >>> ax = beta_curve([0, 1, 2], [4.0, 2.5, 1.0])
        >>> ax.lines[0].get_ydata().tolist()
        [4.0, 2.5, 1.0]
    """
    steps = np.asarray(steps)
    values = _curve("beta", beta, steps)
    ax = axes_or_new(ax)
    ax.plot(steps, values, color=TERM_COLOURS["beta"], lw=1.4)
    area = ax.fill_between(steps, values, color=TERM_COLOURS["beta"], alpha=0.2, lw=0)
    area.sticky_edges.y.append(0.0)
    ax.axhline(1.0, color=TERM_COLOURS["elbo"], ls=":", lw=1.0)
    ax.set(xlabel="step", ylabel=TERM_LABELS["beta"])
    ax.yaxis.set_major_locator(MaxNLocator(nbins=3, integer=True))
    ax.margins(x=0.01)
    ax.grid(alpha=0.25, lw=0.6)
    return ax


def bound_bars(
    reconstruction: ArrayLike,
    kl: ArrayLike,
    *,
    labels: Sequence[str],
    unit: str = "nats",
    ax: Axes | None = None,
) -> Axes:
    """How far each bound is from 0, and why: the reconstruction's share, then the KL's.

    Each bar starts at 0; the reconstruction leads down, the KL (hatched) follows, and the bar ends
    at the ELBO, which is written beside it. Where the KL leads back over a reconstruction above 0,
    it lies below it.

    Args:
        reconstruction: Expected log-likelihood of each bound, shape [R].
        kl: KL of each bound, shape [R].
        labels: Names of the R bounds, drawn from top to bottom.
        unit: What the values are in, for the axis label.
        ax: Where to draw; a new figure by default.

    Raises:
        ValueError: The three do not have the same length, or a value is not finite.

    Example:
        >>> ax = bound_bars([-18.0, -19.0], [5.0, 4.5], labels=["a", "b"])
        >>> [text.get_text() for text in ax.texts]
        ['−23.00', '−23.50']
    """
    reconstruction, kl = np.asarray(reconstruction, float), np.asarray(kl, float)
    if not reconstruction.shape == kl.shape == (len(labels),):
        raise ValueError(
            f"reconstruction, kl and labels must have the same length; got shapes "
            f"{reconstruction.shape} and {kl.shape} for {len(labels)} labels"
        )
    for label, fit, own in zip(labels, reconstruction, kl, strict=True):
        if not np.isfinite([fit, own]).all():
            raise ValueError(
                f"{label!r} is not finite: its reconstruction is {fit} and its KL {own}; leave it "
                "out, or ask where that comes from (a NonFiniteError of the loss names its site)"
            )
    is_alone, ax = ax is None, axes_or_new(ax)
    rows = np.arange(len(labels))
    height = np.where(reconstruction * kl > 0, 0.4, 0.8)
    above = 0.4 - height / 2
    parts = (
        ("reconstruction", rows - above, reconstruction, 0.0, ""),
        ("kl", rows + above, -kl, reconstruction, KL_HATCH),
    )
    for name, places, values, left, hatch in parts:
        colour, label = TERM_COLOURS[name], TERM_LABELS[name]
        bars = ax.barh(places, values, height, left, color=colour, label=label)
        for bar in bars:
            bar.set(hatch=hatch, edgecolor="white", linewidth=0)
    for row, fit, elbo in zip(rows, reconstruction, reconstruction - kl, strict=True):
        is_left = elbo <= 0
        ax.annotate(
            f"{elbo:.2f}".replace("-", "−"),
            (elbo if is_left else max(fit, elbo), row),
            xytext=(-4 if is_left else 4, 0),
            textcoords="offset points",
            ha="right" if is_left else "left",
            va="center",
            color=TERM_COLOURS["elbo"],
            weight="bold",
        )
    ax.set_yticks(rows, labels)
    ax.invert_yaxis()
    ends = np.concatenate([[0.0], reconstruction, reconstruction - kl])
    room = 0.18 * np.ptp(ends)
    ax.set_xlim(ends.min() - room * (ends.min() < 0), ends.max() + room * (ends.max() > 0))
    ax.set_xlabel(unit)
    ax.grid(axis="x", alpha=0.25, lw=0.6)
    if is_alone:
        shown = ax.get_legend_handles_labels()
        figure: Any = ax.get_figure()
        figure.legend(*shown, loc="outside upper center", ncols=2, frameon=False)
    return ax


def _staggered(num_steps: int, place: int, num_curves: int) -> slice:
    """Which of the steps are marked, so that each curve has its own."""
    every = max(num_steps // NUM_MARKERS, 1)
    return slice(place * every // num_curves, None, every)


def _curve(name: str, values: ArrayLike, steps: np.ndarray) -> np.ndarray:
    if name not in TERM_COLOURS:
        raise ValueError(f"{name!r} is no term; the terms are: {', '.join(TERM_COLOURS)}")
    array = np.asarray(values, float)
    if array.shape != steps.shape:
        raise ValueError(
            f"{name!r} has shape {array.shape}, steps has {steps.shape}; give a value for each step"
        )
    return array
