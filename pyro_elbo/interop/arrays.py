"""ArviZ 0.x and 1.x behind one face: numpy arrays in, labelled groups out; no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["Variable", "inference_data", "psis_khat", "to_dataset", "unmasked", "why_no_khat"]

MIN_SAMPLES = 25
ROUNDINGS, FEW_ROUNDINGS, NO_TAIL = 1000, 16, 0.01
"""Of terms that cancel a weight has many roundings, but no more of them where they are large."""
SAMPLE_DIMS = ("chain", "draw")

Floats = NDArray[np.float64]


def psis_khat(log_weights: ArrayLike, eps: float | None = None) -> Floats:
    r"""The Pareto shape :math:`\hat k` of the largest importance weights, by ArviZ' own fit.

    .. math::
        w_s = p(x, z_s) / q(z_s), \qquad
        P(w > u + y \mid w > u) \approx (1 + \hat k\, y / \sigma)^{-1 / \hat k}

    Above 0.7 the mean of the weights cannot be trusted.

    Args:
        log_weights: In nats, shape ``[..., samples]``; minus infinity is a weight of 0.
        eps: Precision that they were computed in; by default that of their dtype. Weights that
            differ by its rounding only are equal.

    Returns:
        Shape ``[...]``; nan, never infinity, where there is no tail to fit: see
        :func:`why_no_khat`.

    Law:
        Adding a constant to all log weights changes nothing beyond rounding.

    Example:
        >>> import numpy as np
        >>> reciprocal = -np.log(np.arange(1000) + 0.5)  # weights 1 / u, u uniform: k = 1
        >>> bool(0.9 < psis_khat(reciprocal) < 1.0)
        True
        >>> psis_khat(np.zeros((2, 1000)))
        array([nan, nan])

    References:
        *Pareto Smoothed Importance Sampling* (Vehtari et al., 2024), arXiv 1507.02646.
    """
    return _fit(log_weights, eps)[0]


def why_no_khat(log_weights: ArrayLike, eps: float | None = None) -> NDArray[np.str_]:
    r"""Why :func:`psis_khat` is nan: an array of its shape, empty text where it is a number.

    Args:
        log_weights: In nats, shape ``[..., samples]``.
        eps: Precision that they were computed in; by default that of their dtype.

    Example:
        >>> import numpy as np
        >>> print(why_no_khat(np.zeros(1000)))
        all weights are equal, as where the guide is the posterior
    """
    return _fit(log_weights, eps)[1]


def _fit(log_weights: ArrayLike, eps: float | None) -> tuple[Floats, NDArray[np.str_]]:
    given = np.atleast_1d(np.asarray(log_weights))
    if eps is None:
        eps = np.finfo(given.dtype).eps if given.dtype.kind == "f" else np.finfo(float).eps
    weights = np.array(given, dtype=float)
    with np.errstate(all="ignore"):
        why = _why_no_tail(weights, float(eps))
        khat = np.full(why.shape, np.nan)
        tails = why == ""
        if tails.any():
            khat[tails] = _arviz_khat(weights[tails])
    failed = tails & ~np.isfinite(khat)
    return np.where(failed, np.nan, khat), np.where(failed, "no Pareto shape fits the tail", why)


def _why_no_tail(weights: Floats, eps: float) -> NDArray[np.str_]:
    size = weights.shape[-1]
    if size < MIN_SAMPLES:
        return np.full(weights.shape[:-1], f"there are {size} samples, fewer than {MIN_SAMPLES}")
    ordered = np.sort(weights, axis=-1)  # nan comes last
    smallest, largest = ordered[..., 0], ordered[..., -1]
    of_tail = ordered[..., -math.floor(min(size / 5, 3 * size**0.5))]
    unit = eps * np.maximum(1.0, np.abs(largest))
    rounding = np.minimum(ROUNDINGS * unit, np.maximum(NO_TAIL, FEW_ROUNDINGS * unit))
    reasons = {
        "a weight is infinite or nan": np.isnan(largest) | (largest == np.inf),
        "every weight is 0": largest == -np.inf,
        "all weights are equal, as where the guide is the posterior": largest - smallest
        <= rounding,
        "the largest weights are equal, so they have no tail": largest - of_tail <= rounding,
    }
    return np.select(list(reasons.values()), [np.array(why) for why in reasons], np.array(""))


def _arviz_khat(weights: Floats) -> Floats:
    if _major() == 0:
        import arviz as az

        return np.asarray(az.psislw(weights)[1])
    from arviz_stats.base import array_stats

    return np.asarray(array_stats.psislw(-weights)[1])  # it takes log-likelihoods


class Variable(NamedTuple):
    """An array with names.

    Args:
        values: The numbers, draws first where there are draws.
        dims: Names of the dims after those of the draws.
        labels: Coordinates along one of the dims under names of their own: ``{name: (dim, at)}``.
    """

    values: NDArray[Any]
    dims: tuple[str, ...] = ()
    labels: Mapping[str, tuple[str, NDArray[Any]]] = {}


def unmasked(
    group: Mapping[str, Variable], masks: Mapping[str, Variable], coords: Mapping[str, NDArray[Any]]
) -> dict[str, Variable]:
    """A group without the entries that no draw's mask lets through.

    Args:
        group: Variables by name.
        masks: True where an entry counts, for some of the variables, draws first; their dims are
            the first dims of the variable.
        coords: The entries of dims by name; other dims are numbered from 0.

    Returns:
        A variable with a part of its entries has one dim ``name_entry`` in place of the mask's
        dims, labelled by them; one without any is left out.
    """
    kept = {name: np.asarray(mask.values.any(0)) for name, mask in masks.items()}
    whole = {name: v for name, v in group.items() if name not in kept or kept[name].all()}
    parts = {
        name: _entries(name, variable, masks[name].dims, kept[name], coords)
        for name, variable in group.items()
        if name not in whole and kept[name].any()
    }
    found = whole | parts
    return {name: found[name] for name in group if name in found}


def _entries(
    name: str,
    variable: Variable,
    dims: tuple[str, ...],
    kept: NDArray[np.bool_],
    coords: Mapping[str, NDArray[Any]],
) -> Variable:
    entry = f"{name}_entry"
    draws = [slice(None)] * (variable.values.ndim - len(variable.dims))
    index: tuple[Any, ...] = (*draws, kept)
    places = zip(dims, np.nonzero(kept), strict=True)
    labels = {
        f"{name}_{dim}": (entry, coords[dim][at] if dim in coords else at) for dim, at in places
    }
    dims = (entry, *variable.dims[len(dims) :])
    return Variable(variable.values[index], dims, labels)


def inference_data(
    groups: Mapping[str, Mapping[str, Variable]],
    coords: Mapping[str, NDArray[Any]],
    attrs: Mapping[str, Mapping[str, str]],
) -> Any:
    """Groups of named arrays as ArviZ takes them.

    Args:
        groups: Variables by group and name; those of ``observed_data`` have no draws, the draws of
            all others make one chain.
        coords: The entries of dims by name; other dims are numbered from 0.
        attrs: Remarks by group.

    Returns:
        An ``arviz.InferenceData`` (ArviZ 0.x) or an ``xarray.DataTree`` (ArviZ 1.x).

    Raises:
        ValueError: A name stands for two things.

    Example:
        >>> import numpy as np
        >>> z = Variable(np.zeros((100, 3)), ("data",))
        >>> data = inference_data({"posterior": {"z": z}}, {"data": np.array([7, 8, 9])}, {})
        >>> dict(data.posterior["z"].sizes)
        {'chain': 1, 'draw': 100, 'data': 3}
    """
    import xarray as xr

    datasets = {
        group: _dataset(group, variables, coords, attrs.get(group, {}))
        for group, variables in groups.items()
    }
    if _major() > 0:
        return xr.DataTree.from_dict(datasets)
    import arviz as az

    return az.InferenceData(**datasets)


def _dataset(
    group: str,
    variables: Mapping[str, Variable],
    coords: Mapping[str, NDArray[Any]],
    attrs: Mapping[str, str],
) -> Any:
    import xarray as xr

    arrays: dict[str, Any] = {}
    sizes: dict[str, int] = {}
    labels: dict[str, Any] = {}
    for name, variable in variables.items():
        values, dims = variable.values, variable.dims
        if group != "observed_data":
            values, dims = values[None], (*SAMPLE_DIMS, *dims)
        arrays[name] = (dims, values)
        labels |= variable.labels
        _check_dims(name, dims, values.shape, sizes)
        sizes |= zip(dims, values.shape, strict=True)
    _check_names(arrays, [*sizes, *SAMPLE_DIMS], labels)
    entries = {dim: coords.get(dim, np.arange(size)) for dim, size in sizes.items()}
    return xr.Dataset(arrays, {**entries, **labels}, {**attrs})


def _check_dims(
    name: str, dims: tuple[str, ...], shape: tuple[int, ...], sizes: Mapping[str, int]
) -> None:
    for dim, size in zip(dims, shape, strict=True):
        if dims.count(dim) > 1:
            raise ValueError(
                f"site {name!r} has two dims {dim!r}: ArviZ' own draws and chains, a plate, or the "
                "dims of an event; rename the plate"
            )
        if sizes.get(dim, size) != size:
            raise ValueError(
                f"site {name!r}: its dim {dim!r} has {size} entries, and {sizes[dim]} at another "
                "site; give the plates names of their own"
            )


def _check_names(variables: Mapping[str, Any], dims: list[str], labels: Mapping[str, Any]) -> None:
    for name in variables:
        if name in dims or name in labels:
            raise ValueError(
                f"site {name!r} has the name of a dim: ArviZ' own {SAMPLE_DIMS}, a plate's, or "
                "that of an event; rename the site"
            )


def _major() -> int:
    import arviz as az

    return int(az.__version__.split(".")[0])


def to_dataset(
    variables: Mapping[str, tuple[tuple[str, ...], ArrayLike]],
    coords: Mapping[str, ArrayLike],
    attrs: Mapping[str, Any],
) -> Any:
    """An :class:`xarray.Dataset` of named dims.

    Args:
        variables: Each with its dims and values.
        coords: The labels of the dims.
        attrs: What else is known.
    """
    import xarray

    return xarray.Dataset(dict(variables), dict(coords), dict(attrs))
