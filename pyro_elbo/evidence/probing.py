"""Whether a program can be run as it is about to be: many samples at once, data independent."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from pyro.distributions import Delta
from torch import Tensor

from ..elbo.at_once import moved
from ..elbo.sites import has_base
from .layout import Layout
from .ratios import RatioELBO

__all__ = ["Ratios", "data_are_independent", "runs_at_once"]

Choose = Callable[[Any], Any]
TIMES_APART = 4


class Ratios(NamedTuple):
    """The log-ratios of a run, and the values that they are of.

    Args:
        outside: Of the sites outside of the data's plates, shape ``[particles]``.
        inside: Of those inside, shape ``[particles, *plates]``.
        sites: The guide's sites, by name.
    """

    outside: Tensor
    inside: Tensor
    sites: Mapping[str, Any]

    @property
    def values(self) -> dict[str, Tensor]:
        """The value of each site of the guide."""
        return {name: site["value"] for name, site in self.sites.items()}


def runs_at_once(run: Callable[[RatioELBO], Ratios], layout: Layout, choose: Choose) -> bool:
    """Whether two samples in a plate of their own have the weights that each has alone.

    Indexing from the left (``w[0]``), sums over what is on the left, or a matrix product mix the
    samples up, with an error or without one. Where a guide draws them close together it hardly
    shows, so that samples that are farther apart are looked at as well. Of a program that has other
    numbers each time, at the same values, nothing can be said.
    """
    apart = _apart(choose)
    return all(_runs_at_once(run, layout, choose, own) for own in (choose, apart, apart))


def _runs_at_once(
    run: Callable[[RatioELBO], Ratios], layout: Layout, choose: Choose, own: Choose
) -> bool:
    try:
        both = run(RatioELBO(2, layout.nesting, own))
    except NotImplementedError:
        raise
    except (RuntimeError, ValueError, IndexError, TypeError):
        return own is not choose
    for at in range(2):
        values = {name: value[at] for name, value in both.values.items()}
        alone = run(RatioELBO(1, float("inf"), given(layout.indices, values)))
        pairs = (both.outside[at], alone.outside[0]), (both.inside[at], alone.inside[0])
        if not all(same(*pair) for pair in pairs):
            again = run(RatioELBO(1, float("inf"), given(layout.indices, values)))
            return not (same(again.outside, alone.outside) and same(again.inside, alone.inside))
    return True


def _apart(choose: Choose) -> Choose:
    """Chooses values farther apart than a guide may draw them, where nothing else is chosen."""

    def chosen(msg: Any) -> Any:
        value = choose(msg)
        return moved(msg) if value is None else value

    return chosen


def data_are_independent(
    run: Callable[[RatioELBO], Ratios], layout: Layout, choose: Choose
) -> bool:
    """Whether no datum's weight moves when the latents of another do.

    The data are split in two by each bit of their number, so that every pair is apart in one split,
    and one half is given other latents: those that the guide draws, and some farther apart, as a
    dependence may be on values that are seldom drawn.
    """
    if not layout.local or not layout.plates:
        return True
    if not _are_independent(run, layout, choose, lambda own: own):
        return False
    try:
        return all(_are_independent(run, layout, choose, _apart) for _ in range(TIMES_APART))
    except (ArithmeticError, RuntimeError, ValueError):  # it cannot be run there
        return True


def _are_independent(
    run: Callable[[RatioELBO], Ratios],
    layout: Layout,
    choose: Choose,
    spread: Callable[[Choose], Choose],
) -> bool:
    first = run(RatioELBO(1, float("inf"), spread(choose)))
    shared = {name: v for name, v in first.values.items() if name not in layout.local}
    second = run(RatioELBO(1, float("inf"), spread(given(layout.indices, shared))))
    again = run(RatioELBO(1, float("inf"), given(layout.indices, first.values)))
    if not same(first.inside, again.inside):
        return True
    frames = [layout.frames[name] for name in layout.plates]
    sizes = [frame.size for frame in frames]
    index = torch.arange(_product(sizes), device=first.inside.device).reshape(sizes)
    for bit in range(int(index.numel() - 1).bit_length()):
        half = (index >> bit) % 2 == 1
        values = {
            name: _mixed(first.sites[name], second.sites[name], half, frames)
            for name in layout.local
        }
        mixed = run(RatioELBO(1, float("inf"), given(layout.indices, shared | values)))
        if not same(torch.where(half, second.inside[0], first.inside[0]), mixed.inside[0]):
            return False
    return True


def given(indices: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> Choose:
    """Chooses the indices of plates, and values by name in the shape of the site."""

    def choose(msg: Any) -> Any:
        if msg["name"] in indices:
            return indices[msg["name"]]
        value = values.get(msg["name"])
        is_computed = has_base(msg["fn"], Delta)  # as before, and not but for rounding
        if value is None or is_computed:
            return None
        shape = msg["fn"].shape()
        return value.reshape(shape) if value.numel() == shape.numel() else value

    return choose


def same(one: Tensor, other: Tensor) -> bool:
    """Whether two numbers are equal but for rounding."""
    tolerance = torch.finfo(one.dtype).eps ** 0.5
    return torch.allclose(one, other, tolerance, tolerance, equal_nan=True)


def _mixed(one: Any, other: Any, half: Tensor, frames: Sequence[Any]) -> Tensor:
    """One value, where half of the data have another's."""
    events = one["fn"].event_dim
    shape = [1] * (one["value"].dim() - events)
    for frame in frames:
        shape[frame.dim] = frame.size
    mixed: Tensor = torch.where(half.reshape([*shape, *[1] * events]), other["value"], one["value"])
    return mixed


def _product(sizes: Sequence[int]) -> int:
    return int(torch.tensor(sizes).prod())
