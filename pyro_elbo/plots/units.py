"""Which latent units carry information, and which are collapsed."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from .palette import TERM_COLOURS, axes_or_new

__all__ = ["unit_kl"]


def unit_kl(
    kl: ArrayLike, *, active: ArrayLike | None = None, unit: str = "nats", ax: Axes | None = None
) -> Axes:
    """The KL of each latent unit, the largest first; inactive units are drawn hollow.

    Args:
        kl: KL of each unit, shape [L].
        active: Whether each unit is active, shape [L]; all by default.
        unit: What the values are in, for the axis label.
        ax: Where to draw; a new figure by default.

    Raises:
        ValueError: ``kl`` is no vector, or ``active`` has another shape.

    Example:
        >>> ax = unit_kl([0.1, 2.0, 0.0], active=[True, True, False])
        >>> [float(bar.get_height()) for bar in ax.patches]
        [2.0, 0.1, 0.0]

    References:
        *Importance Weighted Autoencoders* (Burda, Grosse & Salakhutdinov, 2015), arXiv 1509.00519:
        a unit is active where the variance of its posterior mean over the data exceeds 0.01.
    """
    kl = np.asarray(kl, float)
    mask = np.ones(kl.shape, bool) if active is None else np.asarray(active, bool)
    if kl.ndim != 1 or mask.shape != kl.shape:
        raise ValueError(
            f"kl and active must be vectors of one length; got shapes {kl.shape} and {mask.shape}"
        )
    ax = axes_or_new(ax)
    order = np.argsort(-kl, kind="stable")
    colour = TERM_COLOURS["kl"]
    faces = [colour if mask[unit_index] else "none" for unit_index in order]
    ax.bar(np.arange(1, len(kl) + 1), kl[order], color=faces, edgecolor=colour, lw=0.9)
    ax.set(xlabel="latent unit, sorted", ylabel=unit)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.grid(axis="y", alpha=0.25, lw=0.6)
    ax.set_axisbelow(True)
    return ax
