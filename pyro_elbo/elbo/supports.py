r"""Supports that move with parameters, under which :math:`E_q[\nabla \log q] = 0` does not hold."""

from __future__ import annotations

from typing import Any, Literal

from pyro.distributions import ExpandedDistribution, Independent, MaskedDistribution
from torch import Tensor, nn
from torch.distributions import (
    AffineTransform,
    ComposeTransform,
    IndependentTransform,
    TransformedDistribution,
    constraints,
)

__all__ = ["moves"]

Region = Literal["line", "half-line", "other"]
_WRAPPERS = (Independent, ExpandedDistribution, MaskedDistribution)


def moves(fn: Any) -> bool:
    """Whether a distribution's support depends on what takes a gradient."""
    while isinstance(fn, _WRAPPERS):
        fn = fn.base_dist
    if isinstance(fn, TransformedDistribution) and "support" not in _own_attributes(fn):
        return moves(fn.base_dist) or _carried(fn.transforms, _region(fn.base_dist.support)) is None
    return any(tensor.requires_grad for tensor in _tensors(getattr(fn, "support", None)))


def _own_attributes(fn: Any) -> set[str]:
    classes = type(fn).__mro__
    plain = next(at for at, cls in enumerate(classes) if cls is TransformedDistribution)
    return {name for cls in classes[:plain] for name in vars(cls)}


def _carried(transforms: Any, region: Region | None) -> Region | None:
    """Where transforms take a region; ``None`` where that depends on what takes a gradient."""
    for transform in transforms:
        if isinstance(transform, ComposeTransform):
            region = _carried(transform.parts, region)
        elif region is not None:
            region = _moved(transform, region)
    return region


def _moved(transform: Any, region: Region) -> Region | None:
    while isinstance(transform, IndependentTransform):
        transform = transform.base_transform
    if region == "line":
        return _region(transform.codomain)
    if isinstance(transform, AffineTransform):
        by_scale = region == "half-line" and not _takes_gradient(transform.loc)
        at_zero = isinstance(transform.loc, (int, float)) and transform.loc == 0
        if by_scale and (at_zero or not _takes_gradient(transform.scale)):
            return "half-line" if at_zero else "other"
        return None if _takes_gradient(transform.loc, transform.scale) else "other"
    return None if _takes_gradient(transform) else "other"


def _region(support: Any) -> Region:
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    if support is constraints.real:
        return "line"
    bound = getattr(support, "lower_bound", None)
    at_zero = isinstance(bound, (int, float)) and bound == 0 and not hasattr(support, "upper_bound")
    return "half-line" if at_zero else "other"


def _takes_gradient(*things: Any) -> bool:
    return any(tensor.requires_grad for thing in things for tensor in _tensors(thing))


def _tensors(thing: Any) -> list[Tensor]:
    if isinstance(thing, Tensor):
        return [thing]
    if isinstance(thing, nn.Module):
        return list(thing.parameters())
    held = vars(thing).values() if hasattr(thing, "__dict__") else ()
    inner = [value for value in held if isinstance(value, (Tensor, constraints.Constraint))]
    return [tensor for value in inner for tensor in _tensors(value)]
