r"""Rate against distortion, over the weight of the KL.

.. math:: \mathrm{ELBO} = -(D + R), \qquad R = \mathrm{KL}(q(z \mid x) \,\|\, p(z)), \quad
    D = -E_q[\log p(x \mid z)]
"""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import AxLine
from matplotlib.patheffects import AbstractPathEffect, withStroke
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from .checks import vectors
from .palette import TERM_COLOURS, TERM_LABELS, axes_or_new

__all__ = ["rate_distortion_curve"]

NUM_LEVELS = 6
HALO: list[AbstractPathEffect] = [withStroke(linewidth=2.5, foreground="white")]


def rate_distortion_curve(
    rate: ArrayLike,
    distortion: ArrayLike,
    betas: ArrayLike | None = None,
    *,
    unit: str = "nats",
    ax: Axes | None = None,
) -> Axes:
    r"""What each weight makes of a nat: distortion over rate, the weights beside the points.

    .. math:: \min_q\; D + \beta R \quad\Rightarrow\quad dD / dR = -\beta

    Along a dotted line the ELBO :math:`-(D + R)` is the same; the further down to the left, the
    better. At :math:`\beta = 1` the curve touches one. The points are joined in the order of their
    rates. :class:`~pyro_elbo.diagnostics.RateDistortion` has the arrays under the same names.

    Args:
        rate: KL to the prior at each weight, shape [points].
        distortion: Minus the expected log-likelihood, shape [points].
        betas: The weights, shape [points]; not written by default.
        unit: What the values are in, for the axis labels.
        ax: Where to draw; a new figure by default.

    Raises:
        ValueError: The lengths differ, or a value is not finite.

    Example:
        >>> ax = rate_distortion_curve([3., 1., 2.], [5., 8., 5.5], [0.5, 4., 1.])
        >>> ax.lines[0].get_xydata().tolist()
        [[1.0, 8.0], [2.0, 5.5], [3.0, 5.0]]
        >>> [text.get_text() for text in ax.texts][:3]
        ['$\\beta$ = 0.5', '$\\beta$ = 4', '$\\beta$ = 1']

    References:
        *Fixing a Broken ELBO* (Alemi et al., 2018), arXiv 1711.00464.
    """
    given = {} if betas is None else {"betas": betas}
    rates, distortions, *weights = vectors(rate=rate, distortion=distortion, **given)
    ax = axes_or_new(ax)
    order = np.argsort(rates, kind="stable")
    line = ax.plot(rates[order], distortions[order], "o-", color=TERM_COLOURS["beta"], lw=1.4)[0]
    line.set(markersize=5, zorder=3)
    for beta, *point in zip(*weights, rates, distortions, strict=True) if weights else ():
        text = f"{TERM_LABELS['beta']} = {beta:g}"
        note = ax.annotate(text, tuple(point), xytext=(6, 5), textcoords="offset points", zorder=4)
        note.set(rotation=30, path_effects=HALO)
    ax.margins(x=0.2, y=0.15)
    ax.set(xlabel=f"rate  {TERM_LABELS['kl']}  ({unit})")
    ax.set(ylabel=f"distortion  −E[log p(x|z)]  ({unit})")
    _elbo_lines(ax)
    return ax


def _elbo_lines(ax: Axes) -> None:
    """A line for each round ELBO in view, its value in the middle; the limits stay."""
    (left, right), (bottom, top) = ax.get_xlim(), ax.get_ylim()
    for level in MaxNLocator(NUM_LEVELS).tick_values(-right - top, -left - bottom):
        start, stop = max(left, -level - top), min(right, -level - bottom)
        if stop - start < 0.15 * (right - left):
            continue
        middle = (start + stop) / 2
        line = AxLine((middle, -level - middle), None, -1.0)
        line.set(color=TERM_COLOURS["elbo"], linestyle=":", linewidth=1.0, zorder=1)
        ax.add_artist(line)
        text = ax.text(middle, -level - middle, f"ELBO {level:.10g}".replace("-", "−"))
        text.set(ha="center", va="bottom", color=TERM_COLOURS["elbo"], fontsize="small")
        text.set(rotation=-45, rotation_mode="anchor", transform_rotates_text=True, clip_on=True)
