"""A ``DataLoader`` that a checkpoint in the midst of an epoch can bring back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch.utils.data import DataLoader

from .ranks import of_all_ranks, of_this_rank
from .rng import RNG, loader_generators

__all__ = ["ResumableLoader"]


class ResumableLoader(DataLoader[Any]):
    """A ``DataLoader`` whose position is part of Lightning's checkpoints.

    Takes what ``DataLoader`` takes. For ``ModelCheckpoint(every_n_train_steps=...)``, where a plain
    ``DataLoader`` would start another epoch when the run is resumed, and for a loader with a
    ``generator`` of its own, which no other part of the checkpoint holds. The position is the
    random state at the epoch's start and the number of batches given; resuming draws these batches
    again, drops them, and goes back to the random state of the checkpoint.

    Raises:
        ValueError: The dataset has no length.

    Law:
        A loader that goes on from :meth:`state_dict` gives the batches that the first one would
        have given next.

    Example:
        >>> import torch
        >>> from pyro_elbo.training.loaders import ResumableLoader
        >>> loader = ResumableLoader(torch.arange(6), batch_size=1, shuffle=True)
        >>> batches = iter(loader)
        >>> for _ in range(4):
        ...     _ = next(batches)
        >>> state = loader.state_dict()
        >>> rest = [int(x) for x in batches]
        >>> other = ResumableLoader(torch.arange(6), batch_size=1, shuffle=True)
        >>> other.load_state_dict(state)
        >>> rest == [int(x) for x in other]
        True
    """

    _start: RNG | None = None
    _given = 0
    _resuming = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        try:
            len(self)
        except TypeError as error:
            raise ValueError(
                "ResumableLoader needs a dataset with a length: Lightning takes a batch ahead from "
                "data without one, so that their position is not known; give the IterableDataset a "
                "__len__, or use a DataLoader and checkpoints at the ends of epochs"
            ) from error

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        """The batches of an epoch; nothing is drawn before the first is asked for."""
        generators = loader_generators(self)
        now = RNG.now(generators)
        if not self._resuming:
            self._given = 0
        if not self._given or self._start is None:
            self._start = now
        self._resuming = False
        self._start.restore(generators)
        batches = super().__iter__()
        for _ in range(self._given):
            next(batches)
        if self._given:
            now.restore(generators)
        for batch in batches:
            self._given += 1
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """The position; on many ranks, all call this together."""
        own = [generator.get_state() for generator in loader_generators(self)]
        start = self._start and self._start.state
        return {"given": self._given, "ranks": of_all_ranks({"start": start, "own": own})}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a position with the next epoch that is iterated."""
        self._given, self._resuming = state["given"], True
        rank = of_this_rank(state["ranks"])
        if rank is not None:
            self._start = rank["start"] and RNG(rank["start"])
            for generator, own in zip(loader_generators(self), rank["own"], strict=True):
                generator.set_state(own)

    def end_at(self, count: float) -> None:
        """Let the next epoch start at its beginning where an epoch of ``count`` batches is over."""
        self._resuming = self._resuming and self._given < count
