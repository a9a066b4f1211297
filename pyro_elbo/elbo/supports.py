r"""Supports that move with parameters, under which :math:`E_q[\nabla \log q] = 0` does not hold."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from pyro.distributions import ExpandedDistribution, Independent, MaskedDistribution
from torch import Tensor, nn
from torch.distributions import (
    AffineTransform,
    ComposeTransform,
    ExpTransform,
    IndependentTransform,
    TransformedDistribution,
    constraints,
)

__all__ = ["flat", "moves", "takes_gradient"]

_Inverse = type(ExpTransform().inv)
_WRAPPERS = (Independent, ExpandedDistribution, MaskedDistribution)


def moves(fn: Any) -> bool:
    """Whether a distribution's support depends on what takes a gradient."""
    while isinstance(fn, _WRAPPERS):
        fn = fn.base_dist
    if isinstance(fn, TransformedDistribution) and "support" not in _own_attributes(fn):
        return moves(fn.base_dist) or _is_moved(fn.base_dist.support, fn.transforms)
    return any(tensor.requires_grad for tensor in _tensors(getattr(fn, "support", None)))


def _own_attributes(fn: Any) -> set[str]:
    classes = type(fn).__mro__
    plain = next(at for at, cls in enumerate(classes) if cls is TransformedDistribution)
    return {name for cls in classes[:plain] for name in vars(cls)}


def _is_moved(region: Any, transforms: Any) -> bool:
    """Whether transforms take a region to where it depends on what takes a gradient."""
    for transform in flat(transforms):
        if _is_same(transform.domain, region):
            region = transform.codomain
        elif _is_half_line(region) and (affine := _affine(transform)) is not None:
            if takes_gradient(affine.loc):
                return True
            at_zero = bool((torch.as_tensor(affine.loc) == 0).all())
            if not at_zero and takes_gradient(affine.scale):
                return True
            region = region if at_zero else None
        elif takes_gradient(transform):
            return True
        else:
            region = None
    return False


def flat(transforms: Any) -> Iterator[Any]:
    """Transforms, the parts of composed ones each for itself."""
    for transform in transforms:
        while isinstance(transform, IndependentTransform):
            transform = transform.base_transform
        if isinstance(transform, ComposeTransform):
            yield from flat(transform.parts)
        else:
            yield transform


def _affine(transform: Any) -> Any:
    """The affine transform that this is, or is the inverse of."""
    inverse = getattr(transform, "_inv", None)
    inner = inverse if isinstance(inverse, AffineTransform) else transform
    return inner if isinstance(inner, AffineTransform) else None


def _is_same(one: Any, other: Any) -> bool:
    one, other = _of_one(one), _of_one(other)
    return one is other or (_is_half_line(one) and _is_half_line(other)) or _is_unit(one, other)


def _of_one(region: Any) -> Any:
    """The constraint of one entry."""
    while isinstance(region, constraints.independent):
        region = region.base_constraint
    return region


def _is_half_line(region: Any) -> bool:
    region = _of_one(region)
    bound = getattr(region, "lower_bound", None)
    at_zero = isinstance(bound, (int, float)) and bound == 0
    return at_zero and not hasattr(region, "upper_bound")


def _is_unit(one: Any, other: Any) -> bool:
    names = ("lower_bound", "upper_bound")
    both = [[getattr(region, name, None) for name in names] for region in (one, other)]
    return all(isinstance(b, (int, float)) for pair in both for b in pair) and both[0] == both[1]


def takes_gradient(*things: Any) -> bool:
    """Whether a gradient flows into tensors, constraints or transforms, or into what they hold."""
    return any(tensor.requires_grad for thing in things for tensor in _tensors(thing))


def _tensors(thing: Any) -> list[Tensor]:
    if isinstance(thing, Tensor):
        return [thing]
    if isinstance(thing, nn.Module):
        return list(thing.parameters())
    if type(thing) is _Inverse:
        return _tensors(thing.inv)
    held = vars(thing).values() if hasattr(thing, "__dict__") else ()
    inner = [value for value in held if isinstance(value, (Tensor, constraints.Constraint))]
    return [tensor for value in inner for tensor in _tensors(value)]
