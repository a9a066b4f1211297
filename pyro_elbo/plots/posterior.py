"""The guide beside the posterior that it stands for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from numpy.typing import ArrayLike

from .checks import Floats, finite
from .density import Density
from .palette import MARK_COLOURS, axes_or_new, legend

__all__ = ["guide_against_posterior"]

SHARES = (0.5, 0.9)
NUM_POINTS = 300
NUM_BINS = 40
TAILS = (0.01, 0.99)
PAD = 0.25
SIDE = 0.18


def guide_against_posterior(
    guide_samples: ArrayLike,
    reference_samples: ArrayLike,
    *,
    labels: tuple[str, str] = ("guide", "posterior"),
    dims: tuple[int, int] = (0, 1),
    names: Sequence[str] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Two dims of the guide (lines and points) over the same two of a reference (grey areas).

    Each has its regions that hold 50 % and 90 % of its samples, and its marginals above and at the
    right. A guide that is too narrow lies inside, one that lacks a correlation is round where the
    reference is long. For more pairs, call it for each with ``dims`` and ``ax``.

    Args:
        guide_samples: Shape [S, D] with S and D at least 2; the first 300 are drawn as points.
        reference_samples: Of the posterior, by MCMC or in closed form, shape [R, D].
        labels: What the legend calls the two.
        dims: The dims that are drawn, to the right and up.
        names: Names of the D dims, for the axis labels; their numbers by default.
        ax: Where to draw; a new figure by default. The marginals are inset axes outside of it, at
            ``ax.child_axes``.

    Raises:
        ValueError: The samples have other shapes, fewer than two dims or samples, or a value that
            is not finite; ``dims`` are not two of them; or ``names`` is not one for each.

    Example:
        >>> import numpy as np
        >>> z = np.random.default_rng(0).normal(size=(500, 3))
        >>> ax = guide_against_posterior(0.5 * z, z, dims=(0, 2))
        >>> ax.get_xlabel(), ax.get_ylabel(), len(ax.child_axes)
        ('z[0]', 'z[2]', 2)

    References:
        *Yes, but Did It Work?: Evaluating Variational Inference* (Yao et al., 2018),
        arXiv 1802.02538.
    """
    samples = [
        _samples("guide_samples", guide_samples),
        _samples("reference_samples", reference_samples),
    ]
    _check(samples, dims, names)
    guide, reference = (one[:, list(dims)] for one in samples)
    limits = _limits(guide, reference)
    ax = axes_or_new(ax)
    _draw_areas(ax, Density.of(reference, limits))
    _draw_lines(ax, Density.of(guide, limits))
    ax.plot(*guide[:NUM_POINTS].T, ".", color=MARK_COLOURS["guide"], ms=2.5, alpha=0.6, zorder=2)
    for axis, dim in zip("xy", dims, strict=True):
        ax.set(**{f"{axis}label": names[dim] if names else f"z[{dim}]"})
    ax.set(xlim=limits[0], ylim=limits[1])
    _draw_marginals(ax, guide, reference, limits)
    keys = [
        Line2D([], [], color=MARK_COLOURS["guide"], marker=".", ms=4, label=labels[0]),
        Patch(color=MARK_COLOURS["reference"], label=labels[1]),
    ]
    legend(ax, keys, title="regions of 50 % and 90 %")
    return ax


def _samples(name: str, values: ArrayLike) -> Floats:
    array = np.asarray(values, float)
    if array.ndim != 2 or min(array.shape) < 2:
        raise ValueError(
            f"{name} must have shape [samples, dims] with two of each at least, got {array.shape}"
        )
    return finite(name, array)


def _check(samples: Sequence[Floats], dims: Sequence[int], names: Sequence[str] | None) -> None:
    num_dims, other = (one.shape[1] for one in samples)
    if num_dims != other:
        raise ValueError(f"the guide's samples have {num_dims} dims, the reference's {other}")
    if len(dims) != 2 or dims[0] == dims[1] or not all(0 <= dim < num_dims for dim in dims):
        raise ValueError(f"dims must be two from 0 to {num_dims - 1}, got {tuple(dims)}")
    if names is not None and len(names) != num_dims:
        raise ValueError(f"{len(names)} names for {num_dims} dims; give one for each")


def _limits(guide: Floats, reference: Floats) -> list[tuple[float, float]]:
    """What holds nearly all of both, and a margin; a far tail does not shrink the rest."""
    ends = np.stack([np.quantile(one, TAILS, axis=0) for one in (guide, reference)])
    low, high = ends[:, 0].min(0), ends[:, 1].max(0)
    pad = np.where(high > low, PAD * (high - low), 0.5)
    return [(float(a), float(b)) for a, b in zip(low - pad, high + pad, strict=True)]


def _draw_areas(ax: Axes, density: Density) -> None:
    levels = [*density.levels(SHARES), np.inf]
    ax.contourf(*density.grid, levels=levels, colors=["#D9D9D9", MARK_COLOURS["reference"]])


def _draw_lines(ax: Axes, density: Density) -> None:
    style: dict[str, Any] = {"linestyles": ["dashed", "solid"], "linewidths": 1.6, "zorder": 3}
    ax.contour(*density.grid, levels=density.levels(SHARES), colors=MARK_COLOURS["guide"], **style)


def _draw_marginals(
    ax: Axes, guide: Floats, reference: Floats, limits: Sequence[tuple[float, float]]
) -> None:
    top = ax.inset_axes((0.0, 1.02, 1.0, SIDE), sharex=ax)
    right = ax.inset_axes((1.02, 0.0, SIDE, 1.0), sharey=ax)
    for dim, (side, way) in enumerate([(top, "vertical"), (right, "horizontal")]):
        shape: dict[str, Any] = {"density": True, "orientation": way}
        shape |= {"bins": NUM_BINS, "range": limits[dim]}
        side.hist(reference[:, dim], color=MARK_COLOURS["reference"], **shape)
        side.hist(guide[:, dim], histtype="step", color=MARK_COLOURS["guide"], lw=1.4, **shape)
        side.set_axis_off()
