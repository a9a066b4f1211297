"""Rows of images: data, reconstructions, samples."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import ArrayLike

from .palette import axes_or_new

__all__ = ["image_grid"]


def image_grid(
    images: ArrayLike, *, row_labels: Sequence[str] = (), ax: Axes | None = None
) -> Axes:
    """Images in rows and columns on one Axes, 0 white and 1 black.

    Args:
        images: Intensities in [0, 1], shape [rows, columns, height, width].
        row_labels: A name for each row; none by default.
        ax: Where to draw; a new figure by default.

    Raises:
        ValueError: ``images`` has another number of dims, or there is not one label for each row.

    Example:
        >>> import numpy as np
        >>> ax = image_grid(np.zeros((2, 3, 8, 8)), row_labels=["data", "model"])
        >>> ax.images[0].get_array().shape
        (17, 26)
    """
    images = np.asarray(images, float)
    if images.ndim != 4:
        raise ValueError(
            f"images must have shape [rows, columns, height, width], got {images.shape}"
        )
    if len(row_labels) not in (0, len(images)):
        raise ValueError(f"{len(row_labels)} row labels for {len(images)} rows; give one for each")
    ax = axes_or_new(ax)
    ax.imshow(_mosaic(images), cmap="Greys", vmin=0.0, vmax=1.0, interpolation="nearest")
    height = images.shape[2]
    centres = np.arange(len(row_labels)) * (height + 1) + (height - 1) / 2
    ax.set_yticks(centres, row_labels)
    ax.set_xticks([])
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    return ax


def _mosaic(images: np.ndarray) -> np.ma.MaskedArray:
    """Lay the images side by side, one masked pixel between them."""
    rows, columns, height, width = images.shape
    padded = np.pad(images, ((0, 0), (0, 0), (0, 1), (0, 1)), constant_values=np.nan)
    tiled = padded.transpose(0, 2, 1, 3).reshape(rows * (height + 1), columns * (width + 1))
    return np.ma.masked_invalid(tiled[:-1, :-1])
