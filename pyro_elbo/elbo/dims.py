"""Dims for enumerated sites, of which none stands for two sites at once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from pyro.poutine.enum_messenger import EnumMessenger
from pyro.poutine.runtime import _ENUM_ALLOCATOR
from pyro.poutine.util import site_is_factor

from ..errors import UnsupportedSiteError

__all__ = ["DimMessenger"]

TURNS = 8
NOWHERE = -1


class DimMessenger(EnumMessenger):
    """Pyro's enumeration in parallel, where two sites cannot come to share a dim unseen.

    A dim that ``pyro.markov`` recycles is not given to a later site outside of it, nor one of the
    guide to a site that the model sums out; and a replayed sample keeps the dims that it has from
    the guide, whatever is in scope in the model. Dims are recycled in turn, the oldest of eight
    first, so that a site that reaches back beyond its history is told, up to eight sites back. A
    site that may depend on two sites with one dim is marked. Sites that ``poutine.block`` hides are
    in nobody's history.

    Args:
        first_available_dim: In the guide, the first dim left of the plates.
        guide: In the model, the messenger that the guide ran under.
    """

    def __init__(
        self, first_available_dim: int | None = None, guide: DimMessenger | None = None
    ) -> None:
        super().__init__(first_available_dim)
        self._guide = guide

    def __enter__(self) -> Any:
        self._lowest = self._turn = 0
        self._shared: dict[str, set[int]] = {}
        entered = super().__enter__()
        self._markov_depths = defaultdict(lambda: NOWHERE)
        if self._guide is not None:
            self._reserve(self._guide._lowest)
        return entered

    def _pyro_sample(self, msg: Any) -> None:
        _check_count(msg)
        scope = msg["infer"].get("_markov_scope")
        if scope is None:
            self._reserve(self._lowest)
        self._shared[msg["name"]] = self._shared_in_scope(scope or {})
        first = _ENUM_ALLOCATOR.next_available_dim
        if scope is not None:
            _ENUM_ALLOCATOR.next_available_dim = first - self._turn % TURNS
        super()._pyro_sample(msg)
        if scope is not None:
            _ENUM_ALLOCATOR.next_available_dim = first
        own = msg["infer"].get("_enumerate_dim")
        if own is not None:
            self._turn += 1
            self._shared[msg["name"]].add(own)
            self._lowest = min(self._lowest, own)

    def _pyro_post_sample(self, msg: Any) -> None:
        name, given = msg["name"], msg["infer"].get("_dim_to_id")
        if given is not None and msg["value"] is not None:
            shape = msg["value"].shape[: msg["value"].dim() - msg["fn"].event_dim]
            own = {dim: number for dim, number in given.items() if _has(shape, dim)}
            scope = self._param_dims.get(name, {})
            self._shared[name] |= {d for d, number in own.items() if scope.get(d, number) != number}
            msg["infer"]["_dim_to_id"] = own
            self._param_dims[name] = scope | own
        shared = self._shared.get(name, ())
        msg["infer"]["_dims_clash"] = any(_has(msg["fn"].batch_shape, dim) for dim in shared)
        super()._pyro_post_sample(msg)
        if site_is_factor(msg):
            self._value_dims[name] = {}

    def _shared_in_scope(self, scope: Mapping[str, int]) -> set[int]:
        """The dims that stand for two of the sites in scope."""
        found: dict[int, int] = {}
        shared = set()
        for name in (name for name, depth in scope.items() if self._markov_depths[name] == depth):
            for dim, number in self._value_dims[name].items():
                if found.setdefault(dim, number) != number:
                    shared.add(dim)
        return shared

    @staticmethod
    def _reserve(dim: int) -> None:
        _ENUM_ALLOCATOR.next_available_dim = min(_ENUM_ALLOCATOR.next_available_dim, dim - 1)


def _check_count(msg: Any) -> None:
    count = msg["infer"].get("num_samples")
    if msg["infer"].get("enumerate") == "parallel" and count is not None and count < 2:
        raise UnsupportedSiteError(
            msg["name"],
            f"it is to be enumerated by num_samples={count}, and a mean in place of its values "
            "takes two samples or more",
            "leave enumerate and num_samples out, and it is sampled",
        )


def _has(shape: Any, dim: int) -> bool:
    return len(shape) >= -dim and shape[dim] > 1
