"""Which latent units carry information, and which are collapsed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from .checks import finite
from .palette import TERM_COLOURS, axes_or_new

__all__ = ["unit_kl"]

MAX_LEVEL_LETTERS = 60


def unit_kl(
    kl: ArrayLike,
    *,
    active: ArrayLike | None = None,
    units: Sequence[str] | None = None,
    unit: str = "nats",
    ax: Axes | None = None,
) -> Axes:
    """The KL of each latent unit, the largest first; dead units are hollow and have a cross.

    :class:`~pyro_elbo.diagnostics.CollapseReport` has the arrays under the same names. A unit can
    be dead and cost something, and that is what shows here.

    Args:
        kl: KL of each unit, shape [L].
        active: Whether each unit is active, shape [L]; all by default.
        units: Names of the units, written below their bars; their rank by default.
        unit: What the values are in, for the axis label.
        ax: Where to draw; a new figure by default.

    Raises:
        ValueError: ``kl`` is no vector, is empty or has a value that is not finite; or ``active``
            has another shape, or ``units`` another length.

    Example:
        >>> ax = unit_kl([0.1, 2.0, 0.0], active=[True, True, False], units=["a", "b", "c"])
        >>> [float(bar.get_height()) for bar in ax.patches]
        [2.0, 0.1, 0.0]
        >>> [label.get_text() for label in ax.get_xticklabels()]
        ['b', 'a', 'c']

    References:
        *Importance Weighted Autoencoders* (Burda, Grosse & Salakhutdinov, 2015), arXiv 1509.00519:
        a unit is active where the variance of its posterior mean over the data exceeds 0.01.
    """
    kl = np.asarray(kl, float)
    mask = np.ones(kl.shape, bool) if active is None else np.asarray(active, bool)
    if kl.ndim != 1 or not kl.size or mask.shape != kl.shape:
        raise ValueError(
            f"kl and active must be vectors of one length; got shapes {kl.shape} and {mask.shape}"
        )
    if units is not None and len(units) != len(kl):
        raise ValueError(f"{len(units)} names of units for {len(kl)} units; give one for each")
    order = np.argsort(-finite("kl", kl), kind="stable")
    ax = axes_or_new(ax)
    ranks, dead = np.arange(1, len(kl) + 1), ~mask[order]
    colour = TERM_COLOURS["kl"]
    faces = ["none" if is_dead else colour for is_dead in dead]
    ax.bar(ranks, kl[order], color=faces, edgecolor=colour, lw=0.9)
    _cross(ax, ranks[dead], kl[order][dead])
    label = "latent unit, sorted" + (" (×: dead)" if dead.any() else "")
    ax.set(xlabel=label, ylabel=unit)
    _name(ax, [] if units is None else [units[i] for i in order])
    ax.grid(axis="y", alpha=0.25, lw=0.6)
    ax.set_axisbelow(True)
    return ax


def _cross(ax: Axes, ranks: np.ndarray, heights: np.ndarray) -> None:
    """A cross a little above each bar, which shows where a bar has no height."""
    place: dict[str, Any] = {"xytext": (0, 2), "textcoords": "offset points"}
    place |= {"ha": "center", "va": "bottom"}
    for rank, height in zip(ranks, heights, strict=True):
        ax.annotate("×", (rank, max(height, 0.0)), color=TERM_COLOURS["kl"], **place)


def _name(ax: Axes, names: Sequence[str]) -> None:
    if names:
        ax.set_xticks(range(1, len(names) + 1), names)
        if sum(map(len, names)) > MAX_LEVEL_LETTERS:
            ax.tick_params("x", rotation=90, labelsize="xx-small")
    else:
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
