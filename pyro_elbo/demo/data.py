"""Images to train on: the digits that scikit-learn ships, or a file of one's own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

__all__ = ["DataError", "Images", "binarise", "load_digits", "load_npz"]

NUM_TRAIN = 1500
ARRAYS = ("x_train", "x_test")
HOW_TO_SAVE = (
    "save it with numpy.savez(FILE, x_train=..., x_test=...), "
    "images as [n, height, width], floats in [0, 1] or uint8"
)


class DataError(ValueError):
    """A file holds no images that can be used; the message names the file and the remedy."""


@dataclass(frozen=True)
class Images:
    """Grey images with intensities in [0, 1], as rows of pixels.

    Args:
        name: What the images are.
        train: Shape [n, height * width].
        test: The held-out ones, shape [m, height * width].
        height: Pixels from top to bottom.
        width: Pixels from left to right.
    """

    name: str
    train: Tensor
    test: Tensor
    height: int
    width: int


def load_digits() -> Images:
    """The 1,797 handwritten digits of scikit-learn, 8 by 8 pixels, in a fixed split.

    References:
        *Methods of combining multiple classifiers and their applications to handwritten digit
        recognition* (Xu, Krzyzak & Suen, 1992); UCI Machine Learning Repository, 10.24432/C50P49.
    """
    from sklearn import datasets

    pixels = torch.as_tensor(datasets.load_digits().data / 16, dtype=torch.get_default_dtype())
    order = torch.as_tensor(np.random.default_rng(0).permutation(len(pixels)))
    return Images("scikit-learn digits", pixels[order[:NUM_TRAIN]], pixels[order[NUM_TRAIN:]], 8, 8)


def load_npz(path: Path) -> Images:
    """The arrays ``x_train`` and ``x_test`` of an ``.npz`` file.

    Each has shape [n, height, width], [n, height, width, 1] or, for square images,
    [n, height * width]; values are floats in [0, 1], or uint8 (from 0 to 255, or 0 and 1).

    Raises:
        DataError: The file cannot be read, or an array is missing, empty, of another shape or type,
            has values outside [0, 1], or the two have images of different sizes.
    """
    arrays = {name: _stacked(path, name, array) for name, array in _read(path).items()}
    sizes = {name: array.shape[1:] for name, array in arrays.items()}
    if sizes["x_train"] != sizes["x_test"]:
        raise DataError(
            f"{path}: x_train has images of {_by(sizes['x_train'])} pixels and x_test of "
            f"{_by(sizes['x_test'])}; give both the same size"
        )
    peak = max((int(a.max()) for a in arrays.values() if a.dtype == np.uint8), default=1)
    train, test = (_intensities(path, name, arrays[name], peak) for name in ARRAYS)
    return Images(path.name, train, test, *sizes["x_train"])


def binarise(intensities: Tensor, generator: torch.Generator) -> Tensor:
    """Black-and-white images: each pixel is 1 with its intensity as the probability.

    References:
        *On the Quantitative Analysis of Deep Belief Networks* (Salakhutdinov & Murray, 2008).
    """
    return torch.bernoulli(intensities, generator=generator)


def _read(path: Path) -> dict[str, np.ndarray]:
    try:
        archive = np.load(path, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise DataError(f"{path}: holds one array without a name; {HOW_TO_SAVE}")
        with archive:
            missing = [name for name in ARRAYS if name not in archive]
            if missing:
                found = ", ".join(archive.files) or "nothing"
                raise DataError(
                    f"{path}: {' and '.join(missing)} missing (found: {found}); {HOW_TO_SAVE}"
                )
            return {name: archive[name] for name in ARRAYS}
    except DataError:
        raise
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}; {HOW_TO_SAVE}") from error
    except Exception as error:  # NumPy lets the errors of zipfile, zlib and tokenize through
        raise DataError(f"{path}: is no .npz file of plain arrays; {HOW_TO_SAVE}") from error


def _stacked(path: Path, name: str, array: np.ndarray) -> np.ndarray:
    """The images as [n, height, width]."""
    shape = array.shape
    if array.ndim == 4 and shape[-1] == 1:
        array = array[..., 0]
    elif array.ndim == 2:
        side = round(shape[1] ** 0.5)
        if side**2 != shape[1]:
            raise DataError(
                f"{path}: {name} has shape {shape}, and {shape[1]} pixels do not make a square; "
                "save the images as [n, height, width]"
            )
        array = array.reshape(len(array), side, side)
    if array.ndim != 3:
        raise DataError(
            f"{path}: {name} has shape {shape}; save grey images as [n, height, width], "
            "[n, height, width, 1] or, if square, [n, height * width]"
        )
    if len(array) < 2 or array.size == 0:
        raise DataError(f"{path}: {name} has shape {shape}; give it 2 images or more")
    return array


def _intensities(path: Path, name: str, array: np.ndarray, peak: int) -> Tensor:
    """Rows of pixels in [0, 1]; bytes of which none exceeds 1 are black and white already."""
    if array.dtype == np.uint8:
        array = array / np.float32(255 if peak > 1 else 1)
    elif array.dtype.kind not in "fb":
        raise DataError(
            f"{path}: {name} has dtype {array.dtype}; convert it to uint8, or to floats in [0, 1]"
        )
    if not np.isfinite(array).all():
        raise DataError(f"{path}: {name} has values that are nan or infinite; remove those images")
    low, high = float(array.min()), float(array.max())
    if low < 0 or high > 1:
        raise DataError(f"{path}: {name} has values from {low!r} to {high!r}; scale them to [0, 1]")
    rows = np.ascontiguousarray(array.reshape(len(array), -1), dtype=np.float32)
    return torch.as_tensor(rows, dtype=torch.get_default_dtype())


def _by(size: tuple[int, ...]) -> str:
    return " by ".join(map(str, size))
