"""What every figure asks of its arrays."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["Floats", "finite", "rising", "vector", "vectors"]

Floats = NDArray[np.float64]


def vector(name: str, values: ArrayLike, *, allow_nan: bool = False) -> Floats:
    """One dim, at least one value, and no value that cannot be drawn.

    Args:
        name: What the error calls them.
        values: The values, shape [N].
        allow_nan: Whether some may be nan; none may be infinite.

    Raises:
        ValueError: They are not such.

    Example:
        >>> vector("kl", [0.5, float("nan")])
        Traceback (most recent call last):
        ValueError: kl has 1 value that is not finite, the first at index 1; leave it out
    """
    array = np.asarray(values, float)
    if array.ndim != 1 or not array.size:
        raise ValueError(f"{name} must be a vector with a value at least, got shape {array.shape}")
    return finite(name, array, allow_nan=allow_nan)


def finite(name: str, array: Floats, *, allow_nan: bool = False) -> Floats:
    """The array, where every value of it is finite.

    Args:
        name: What the error calls it.
        array: Of any shape.
        allow_nan: Whether some may be nan.

    Raises:
        ValueError: A value is not finite.
    """
    bad = np.argwhere(np.isinf(array) if allow_nan else ~np.isfinite(array))
    if len(bad):
        first = ", ".join(map(str, bad[0]))
        many = "value that is" if len(bad) == 1 else "values that are"
        what = "infinite" if allow_nan else "not finite"
        leave = "leave it out" if len(bad) == 1 else "leave them out"
        raise ValueError(
            f"{name} has {len(bad)} {many} {what}, the first at index {first}; {leave}"
        )
    return array


def vectors(**values: ArrayLike) -> list[Floats]:
    """Vectors of one length, each by its name.

    Args:
        **values: Each of shape [N].

    Raises:
        ValueError: One is no vector, is empty, or has a value that is not finite; or the lengths
            differ.

    Example:
        >>> vectors(steps=[0, 1], elbo=[-2.0])
        Traceback (most recent call last):
        ValueError: steps and elbo must have one length, got 2 and 1
    """
    arrays = [vector(name, one) for name, one in values.items()]
    lengths = [len(array) for array in arrays]
    if len(set(lengths)) > 1:
        names = " and ".join([", ".join(list(values)[:-1]), list(values)[-1]])
        sizes = " and ".join([", ".join(map(str, lengths[:-1])), str(lengths[-1])])
        raise ValueError(f"{names} must have one length, got {sizes}")
    return arrays


def rising(steps: Floats) -> None:
    """Refuse steps that do not rise.

    Args:
        steps: Shape [T].

    Raises:
        ValueError: A step is not above the one before it.
    """
    if (np.diff(steps) <= 0).any():
        at = int(np.argmax(np.diff(steps) <= 0)) + 1
        raise ValueError(f"steps must rise, but {steps[at]:g} follows {steps[at - 1]:g}; sort them")
