"""Names for the dims of an enumerated program: a symbol for each plate and each enumerated site."""

from __future__ import annotations

import string
from collections.abc import Iterable, Mapping
from typing import Any

from pyro.ops import packed
from torch import Tensor

from ..errors import UnsupportedSiteError
from ..weighting import factor_of

__all__ = [
    "Packed",
    "is_enumerated",
    "name_dims",
    "ordinal",
    "pack",
    "scaled",
    "unpack",
    "vectorised",
]

Packed = Any  # a Tensor whose dims are named by its attribute _pyro_dims


def is_enumerated(site: Any) -> bool:
    """Whether a site was enumerated, in parallel or in sequence (and not by ``num_samples``)."""
    infer = site["infer"]
    return "_enum_total" in infer or (
        infer.get("_enumerate_dim") is not None and not infer.get("num_samples")
    )


def name_dims(model: Mapping[str, Any], guide: Mapping[str, Any]) -> None:
    """Store in each site a symbol for each of its dims: even ones are plates, odd ones enumerated.

    Args:
        model: The model's sites by name.
        guide: The guide's sites by name.
    """
    plates: dict[str, str] = {}
    for site in (*guide.values(), *model.values()):
        if site["infer"].get("_dims_clash"):
            raise UnsupportedSiteError(
                site["name"],
                "Enumeration dim conflict: it depends on a site whose dim pyro.markov has given to "
                "another by then, or has a batch dim there that no plate declares",
                "increase history= of pyro.markov (in the guide, for what is enumerated there), or "
                "declare the dim with pyro.plate or .to_event()",
            )
        symbols = {}
        for frame in vectorised(site["cond_indep_stack"]):
            symbol = plates.setdefault(frame.name, _symbol(2 * len(plates)))
            symbols[frame.dim] = symbol
        for dim, number in site["infer"].get("_dim_to_id", {}).items():
            symbols[dim] = _symbol(2 * number + 1)
        site["dim_to_symbol"], site["plate_to_symbol"] = symbols, plates


def _symbol(number: int) -> str:
    letters = string.ascii_letters
    return letters[number] if number < len(letters) else chr(number + 140)


def ordinal(stack: Iterable[Any], dims: Mapping[int, str]) -> frozenset[str]:
    """The symbols of the plates of a stack."""
    return frozenset(dims[frame.dim] for frame in vectorised(stack))


def pack(name: str, value: Tensor, dims: Mapping[int, str]) -> Packed:
    """Drop the dims of size 1 and name the others.

    Raises:
        ValueError: A dim belongs to no plate and no enumerated site.
    """
    try:
        return packed.pack(value[...], dims)
    except ValueError as error:
        raise ValueError(
            f"Enumeration dim conflict at site {name!r}: the log-density has shape "
            f"{tuple(value.shape)}, and a dim of it is neither a plate's nor that of an enumerated "
            "site in reach; declare it with pyro.plate, or with .to_event(), or increase history= "
            "of pyro.markov"
        ) from error


def unpack(value: Packed, places: Mapping[str, int]) -> Tensor:
    """Put a packed tensor back into dims, those that it lacks with size 1.

    Args:
        value: The packed tensor.
        places: The dim of each symbol, counted from the right.
    """
    unpacked: Tensor = packed.unpack(value, places)
    missing = -min(places.values(), default=0) - unpacked.dim()
    return unpacked.reshape((1,) * missing + unpacked.shape) if missing > 0 else unpacked


def scaled(value: Packed, scale: Any) -> Packed:
    """A packed tensor times a number."""
    result = value * factor_of(value, scale)
    result._pyro_dims = value._pyro_dims
    return result


def vectorised(stack: Iterable[Any]) -> list[Any]:
    """The vectorised plates of a stack."""
    return [frame for frame in stack if frame.vectorized]
