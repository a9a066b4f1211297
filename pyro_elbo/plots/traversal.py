"""What each latent unit draws."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from matplotlib.axes import Axes
from torch import Tensor

from .images import image_grid

__all__ = ["latent_traversal"]

VALUES = (-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0)


@torch.no_grad()
def latent_traversal(
    decode: Callable[[Tensor], Tensor],
    num_units: int,
    *,
    values: Sequence[float] = VALUES,
    units: Sequence[int] | None = None,
    base: Tensor | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Images as one latent unit moves and the others stay, a row for each unit.

    A row whose images do not change is a unit that the decoder does not use. Modules are run as
    they are: call ``.eval()`` first where they have dropout or batch norm.

    Args:
        decode: From codes of shape [n, units] to intensities in [0, 1] of shape
            [n, height, width]; it is called once.
        num_units: Units of a code.
        values: What each unit is moved through, written below the columns.
        units: The units that are moved; all by default.
        base: The code that they are moved from, shape [num_units]; 0 by default. The codes have its
            type and device.
        ax: Where to draw; a new figure by default.

    Raises:
        ValueError: There are no values or units, a unit does not exist, a value or ``base`` is not
            finite, ``base`` has another shape, or the images have, or leave [0, 1].

    Example:
        >>> import torch
        >>> def decode(z):
        ...     return z.sigmoid()[:, :, None].expand(-1, -1, 3)
        >>> ax = latent_traversal(decode, 2, values=[-1., 0., 1.])
        >>> [label.get_text() for label in ax.get_yticklabels()]
        ['z[0]', 'z[1]']

    References:
        *beta-VAE: Learning Basic Visual Concepts with a Constrained Variational Framework*
        (Higgins et al., 2017).
    """
    moved = list(range(num_units) if units is None else units)
    start = torch.zeros(num_units) if base is None else base
    _check(num_units, moved, values, start)
    codes = start.repeat(len(moved), len(values), 1)
    for row, unit in enumerate(moved):
        codes[row, :, unit] = torch.as_tensor(values).to(start)
    images = torch.as_tensor(decode(codes.flatten(0, 1))).cpu()
    _check_images(images, len(moved) * len(values))
    grid = images.unflatten(0, (len(moved), len(values)))
    ax = image_grid(grid.numpy(), row_labels=[f"z[{unit}]" for unit in moved], ax=ax)
    width = images.shape[-1]
    centres = [column * (width + 1) + (width - 1) / 2 for column in range(len(values))]
    ax.set_xticks(centres, [f"{float(value):g}".replace("-", "−") for value in values])
    ax.set_xlabel("value of the unit")
    return ax


def _check(num_units: int, units: Sequence[int], values: Sequence[float], base: Tensor) -> None:
    if not len(units) or not len(values):
        raise ValueError("there are no units or no values to move them through; name one at least")
    if not all(0 <= unit < num_units for unit in units):
        raise ValueError(f"units {list(units)} must be from 0 to {num_units - 1}")
    if base.shape != (num_units,):
        raise ValueError(f"base must have shape [{num_units}], got {list(base.shape)}")
    if not (base.isfinite().all() and torch.as_tensor(values).isfinite().all()):
        raise ValueError("base and values must be finite")


def _check_images(images: Tensor, count: int) -> None:
    if images.dim() != 3 or len(images) != count:
        raise ValueError(
            f"decode must return [{count}, height, width] for {count} codes, got "
            f"{list(images.shape)}; reshape its pixels"
        )
    low, high = images.min(), images.max()
    if not (low >= 0 and high <= 1):
        raise ValueError(
            f"decode must return intensities in [0, 1], got {low:g} to {high:g}; take .sigmoid() "
            "of logits, or .clamp(0, 1) of means"
        )
