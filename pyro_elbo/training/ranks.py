"""The random states of all processes of a run, as one checkpoint holds them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.distributed as distributed

__all__ = ["of_all_ranks", "of_this_rank"]


def of_all_ranks(value: Any) -> list[Any]:
    """The value that each rank has, in their order; all of them call this together.

    Example:
        >>> from pyro_elbo.training.ranks import of_all_ranks, of_this_rank
        >>> of_all_ranks("mine"), of_this_rank(["mine"]), of_this_rank(["one", "other"])
        (['mine'], 'mine', None)
    """
    values = [value]
    if distributed.is_available() and distributed.is_initialized():
        values = values * distributed.get_world_size()
        distributed.all_gather_object(values, value)
    return values


def of_this_rank(values: Sequence[Any]) -> Any:
    """This rank's among the values of all; ``None`` where those were fewer or more."""
    rank, size = 0, 1
    if distributed.is_available() and distributed.is_initialized():
        rank, size = distributed.get_rank(), distributed.get_world_size()
    return values[rank] if len(values) == size else None
