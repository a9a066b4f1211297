r"""Whether importance weights can be trusted: the Pareto shape of each datum's."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from .checks import vector
from .palette import MARK_COLOURS, axes_or_new, legend

__all__ = ["khat_points"]

GOOD, USABLE = 0.5, 0.7


def khat_points(khat: ArrayLike, *, ax: Axes | None = None) -> Axes:
    r"""The Pareto shape :math:`\hat k` of each datum's weights, with its thresholds.

    Up to 0.5 (hollow circles) the weights have a finite variance, up to 0.7 (triangles) they can
    still be used, and above (crosses) they cannot. The legend has the share of each, among the data
    that have a :math:`\hat k`; a note counts those that are nan, whose weights have no tail to fit.

    Args:
        khat: Pareto shape of each datum's weights, shape [N]; nan is left out.
        ax: Where to draw; a new figure by default.

    Raises:
        ValueError: ``khat`` is no vector, is empty, or has an infinite value.

    Example:
        >>> ax = khat_points([0.1, 0.6, 0.9, float("nan"), 0.2])
        >>> [text.get_text() for text in ax.get_legend().get_texts()][-1]
        '$\\hat k$ > 0.7:  25.0 %  (1 of 4)'
        >>> ax.texts[0].get_text()
        'nan, left out: 1 of 5'

    References:
        *Pareto Smoothed Importance Sampling* (Vehtari et al., 2024), arXiv 1507.02646.
        *Yes, but Did It Work?: Evaluating Variational Inference* (Yao et al., 2018),
        arXiv 1802.02538.
    """
    values = vector("khat", khat, allow_nan=True)
    ax = axes_or_new(ax)
    groups = (
        (values <= GOOD, "good", "o", rf"$\hat k$ ≤ {GOOD}"),
        ((values > GOOD) & (values <= USABLE), "fair", "^", rf"{GOOD} < $\hat k$ ≤ {USABLE}"),
        (values > USABLE, "bad", "X", rf"$\hat k$ > {USABLE}"),
    )
    total = int(np.count_nonzero(~np.isnan(values)))
    for chosen, mark, marker, name in groups:
        count, colour = np.count_nonzero(chosen), MARK_COLOURS[mark]
        label = f"{name}:  {100 * count / max(total, 1):.1f} %  ({count:,} of {total:,})"
        face = "none" if mark == "good" else colour
        points = np.flatnonzero(chosen), values[chosen]
        ax.scatter(*points, s=30, marker=marker, fc=face, ec=colour, lw=0.8, label=label)
    for threshold, style in ((GOOD, ":"), (USABLE, "--")):
        ax.axhline(threshold, color="black", ls=style, lw=1.0)
    _note_missing(ax, len(values) - total, len(values))
    ax.set(xlabel="datum", ylabel=r"Pareto $\hat k$")
    ax.update_datalim([(0.0, 0.0), (len(values) - 1.0, 1.0)])
    ax.autoscale_view()
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    legend(ax)
    return ax


def _note_missing(ax: Axes, count: int, total: int) -> None:
    if count:
        text = f"nan, left out: {count:,} of {total:,}"
        ax.text(1.0, 1.01, text, transform=ax.transAxes, ha="right", va="bottom")
