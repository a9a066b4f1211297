"""What a workload is made of."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pyro.infer.autoguide import AutoDiagonalNormal, AutoNormal
from pyro.infer.autoguide.initialization import init_to_feasible
from torch import Tensor
from torch.nn.functional import softplus

__all__ = [
    "INITIAL_SCALE",
    "ByHand",
    "Workload",
    "auto_diagonal_normal",
    "auto_normal",
    "generator",
    "locs_and_scales",
    "sampled",
]

INITIAL_SCALE = 0.1
AUTO = {"init_loc_fn": init_to_feasible, "init_scale": INITIAL_SCALE}


@dataclass(frozen=True)
class ByHand:
    """The same fit in PyTorch alone.

    Args:
        make_parameters: A factory of the parameters, each call's at the guide's initial values.
        loss: Minus the ELBO's estimate, up to a constant, of the parameters and the arguments.
        constant: What the loss leaves out: Pyro's is ``loss + constant`` in mean.
    """

    make_parameters: Callable[[], list[Tensor]]
    loss: Callable[..., Tensor]
    constant: float = 0.0


@dataclass(frozen=True)
class Workload:
    """A fit to measure.

    Args:
        name: Its name.
        model: The Pyro model.
        make_guide: A factory of its guide.
        arguments: Those of both.
        by_hand: The same in PyTorch alone.
        enumerates: Whether a site is summed out, by ``TraceEnum_ELBO`` in Pyro.
        max_plate_nesting: The most plates in one another.
    """

    name: str
    model: Callable[..., Any]
    make_guide: Callable[[], Callable[..., Any]]
    arguments: tuple[Any, ...]
    by_hand: ByHand
    enumerates: bool = False
    max_plate_nesting: int = 1


def generator() -> torch.Generator:
    """The generator of all synthetic data."""
    return torch.Generator().manual_seed(0)


def auto_normal(model: Callable[..., Any]) -> AutoNormal:
    """An AutoNormal that starts where the hand-written parameters do."""
    return AutoNormal(model, **AUTO)


def auto_diagonal_normal(model: Callable[..., Any]) -> AutoDiagonalNormal:
    """An AutoDiagonalNormal that starts there."""
    return AutoDiagonalNormal(model, **AUTO)


def locs_and_scales(*shapes: tuple[int, ...]) -> list[Tensor]:
    """A location and an inverse-softplus scale for each shape."""
    start = math.log(math.expm1(INITIAL_SCALE))
    return [t for shape in shapes for t in (torch.zeros(shape), torch.full(shape, start))]


def sampled(parameters: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
    """A draw of each latent in unconstrained space, and minus log q there without constants."""
    values: list[Tensor] = []
    entropy = torch.zeros(())
    for loc, unconstrained in zip(parameters[::2], parameters[1::2], strict=True):
        scale, noise = softplus(unconstrained), torch.randn(loc.shape)
        values.append(loc + scale * noise)
        entropy = entropy + (scale.log() + 0.5 * noise * noise).sum()
    return values, entropy
