"""Where samples in two dims lie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .checks import Floats

__all__ = ["Density"]

NUM_CELLS = 80
TIE = 0.999
NORMAL_QUARTILES = 1.349


@dataclass(frozen=True, eq=False)
class Density:
    """A histogram of samples in two dims, smoothed by a normal kernel.

    Args:
        grid: Centres to the right [G], centres upwards [G], and densities [G, G], rows upwards.
        at_samples: The density at each sample, shape [S], the smallest first.
    """

    grid: tuple[Floats, Floats, Floats]
    at_samples: Floats

    @classmethod
    def of(cls, samples: Floats, limits: Sequence[tuple[float, float]]) -> Density:
        r"""The density of samples, shape [S, 2], between the limits of each dim.

        The kernel's width is Scott's, :math:`S^{-1/6}` standard deviations, and half a cell at
        least. Where the quartiles tell of a smaller deviation, as a heavy tail makes them, that
        counts. A sample outside the limits has density 0.
        """
        edges = [np.linspace(*ends, NUM_CELLS + 1) for ends in limits]
        counts = np.histogramdd(samples, bins=edges)[0]
        quartiles = np.diff(np.quantile(samples, (0.25, 0.75), axis=0), axis=0)[0]
        spreads = np.minimum(samples.std(axis=0), quartiles / NORMAL_QUARTILES)
        spreads *= len(samples) ** (-1 / 6)
        kernels = [_kernel(*pair) for pair in zip(edges, spreads, strict=True)]
        smooth = kernels[0] @ counts @ kernels[1].T
        centres = [(one[1:] + one[:-1]) / 2 for one in edges]
        cells = [
            np.clip(np.searchsorted(one, values, side="right") - 1, 0, NUM_CELLS - 1)
            for one, values in zip(edges, samples.T, strict=True)
        ]
        inside = [(v >= one[0]) & (v <= one[-1]) for one, v in zip(edges, samples.T, strict=True)]
        at_samples = np.where(inside[0] & inside[1], smooth[cells[0], cells[1]], 0.0)
        return cls((centres[0], centres[1], smooth.T), np.sort(at_samples))

    def levels(self, shares: Sequence[float]) -> list[float]:
        """The densities that the given shares of the samples reach, the lowest first.

        Where they tie, as they do for a point mass, each is a little below the next.
        """
        levels, above = [], float(self.grid[2].max())
        for share in sorted(shares):
            above = min(float(np.quantile(self.at_samples, 1 - share)), TIE * above)
            levels.append(above)
        return levels[::-1]


def _kernel(edges: Floats, spread: float) -> Floats:
    centres, cell = (edges[1:] + edges[:-1]) / 2, edges[1] - edges[0]
    distances = (centres[:, None] - centres[None]) / max(spread, cell / 2)
    weights: Floats = np.exp(-0.5 * distances**2)
    return weights / weights.sum(0)
