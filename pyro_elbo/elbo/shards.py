"""What a process draws and sees of the data that many processes share."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

__all__ = ["OwnSubsamples", "ddp_group", "own_subsamples", "seen_by_the_next"]


def ddp_group() -> Any:
    """The processes of the ``DistributedDataParallel`` whose forward is under way, if any."""
    active = DistributedDataParallel._get_active_ddp_module()
    return None if active is None else active.process_group


def own_subsamples() -> AbstractContextManager[Any]:
    """Inside a ``DistributedDataParallel``, the handler that gives a rank its own subsamples."""
    group = ddp_group()
    return nullcontext() if group is None else OwnSubsamples(group.rank(), group.size())


def seen_by_the_next(value: Any) -> Any:
    """What the next process has in the place of a value; all of them call this together."""
    group = ddp_group()
    if group is None:
        return value
    values: list[Any] = [None] * group.size()
    torch.distributed.all_gather_object(values, value, group=group)
    return values[(group.rank() + 1) % group.size()]


class OwnSubsamples(Messenger):
    r"""Gives each rank of a group other indices of a subsampled ``pyro.plate``.

    All ranks draw the same permutations of the N data, and each takes B entries that are its own;
    a plate that is given its ``subsample`` keeps it.

    Args:
        rank: Of this process.
        size: How many there are.

    Law:
        Any B of the N data are equally likely on each rank. Where all ranks have one random state,
        as after one seed, their subsamples are disjoint, as long as :math:`N / B` ranks have room;
        where they have not, they are independent.

    Example:
        >>> import torch, pyro
        >>> from pyro_elbo.elbo.shards import OwnSubsamples
        >>> drawn = []
        >>> for rank in range(2):
        ...     pyro.set_rng_seed(0)
        ...     with OwnSubsamples(rank, 2), pyro.plate("data", 6, subsample_size=3) as indices:
        ...         drawn += indices.tolist()
        >>> sorted(drawn)
        [0, 1, 2, 3, 4, 5]
    """

    def __init__(self, rank: int, size: int) -> None:
        super().__init__()
        self._rank, self._size = rank, size

    def _pyro_sample(self, msg: Any) -> None:
        if site_is_subsample(msg) and msg["value"] is None and not msg["done"]:
            subsample = msg["fn"]
            if subsample.subsample_size is not None and subsample.subsample_size < subsample.size:
                msg["value"] = self._share(subsample)

    def _share(self, subsample: Any) -> Tensor:
        count = subsample.subsample_size
        room = subsample.size // count
        orders = [
            torch.randperm(subsample.size, device=subsample.device)
            for _ in range(-(-self._size // room))
        ]
        start = self._rank % room * count
        return orders[self._rank // room][start : start + count].clone()
