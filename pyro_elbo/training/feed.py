"""The arguments of each step: the same ones, or batches, epoch by epoch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from typing import Any, NamedTuple

from torch import Tensor

from .rng import RNG, loader_generators

__all__ = ["Feed", "Place", "StepInput", "spread"]

Signature = tuple[tuple[str, str], ...]


class Place(NamedTuple):
    """Where a run stands in its data, after so many of an epoch's batches.

    Args:
        epoch: From 0.
        batch: The number of batches taken of it.
        epoch_rng: The generators' state when the epoch began.
    """

    epoch: int = 0
    batch: int = 0
    epoch_rng: RNG | None = None


class StepInput(NamedTuple):
    """What one step is given, and where the run stands after it.

    Args:
        args: Positional.
        kwargs: By keyword.
        place: The place in the data, after the last step of the call.
        num_epochs: How many epochs the call is, each of one step; 1 where there are batches.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    place: Place
    num_epochs: int = 1


class Feed:
    """Yields what each step is given.

    Args:
        args: Of every step, where there are no batches.
        kwargs: Of every step.
        batches: What to go through, once in each epoch.
        num_epochs: After how many to end; never by default.
        steps_per_call: How many steps each input is for.

    Raises:
        TypeError: There are both positional arguments and batches, or batches cannot be iterated.
        ValueError: An epoch has no batches, a batch has other dtypes than the first, or batches
            that can be gone through once are to give several epochs.
    """

    def __init__(
        self,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        batches: Iterable[Any] | None,
        num_epochs: int | None,
        steps_per_call: int = 1,
    ) -> None:
        if batches is not None and args:
            raise TypeError(
                "with batches= the positional arguments of a step come from each batch; leave "
                f"{len(args)} of them out, or pass them by keyword"
            )
        if batches is not None and not isinstance(batches, Iterable):
            raise TypeError(f"batches must be iterable, such as a DataLoader; got {batches!r}")
        if isinstance(batches, Iterator) and num_epochs is not None and num_epochs > 1:
            raise ValueError(
                f"batches can be gone through once, and there are to be {num_epochs} epochs; pass "
                "a list or a DataLoader, not a generator"
            )
        self._args, self._kwargs, self._batches = args, kwargs, batches
        self._num_epochs, self._steps_per_call = num_epochs, steps_per_call
        self._signature: Signature | None = None
        self.place = Place()
        self.keeps_rng = False
        self.generators = loader_generators(batches)

    def __iter__(self) -> Iterator[StepInput]:
        return self._same() if self._batches is None else self._epochs()

    def _same(self) -> Iterator[StepInput]:
        epoch, size = self.place.epoch + self.place.batch, self._steps_per_call
        while self._num_epochs is None or epoch < self._num_epochs:
            epoch += size
            yield StepInput(self._args, self._kwargs, Place(epoch - 1, 1), size)

    def _epochs(self) -> Iterator[StepInput]:
        epoch, skip = self.place.epoch, self.place.batch
        while self._num_epochs is None or epoch < self._num_epochs:
            yield from self._batches_of(epoch, skip)
            epoch, skip = epoch + 1, 0

    @property
    def num_steps(self) -> int | None:
        """The steps of all epochs, where that is known beforehand."""
        if self._num_epochs is None or self._batches is None:
            return self._num_epochs
        try:
            num_batches = self._num_epochs * len(self._batches)  # type: ignore[arg-type]
        except TypeError:  # a DataLoader has a len, and its IterableDataset may have none
            return None
        return num_batches * self._steps_per_call

    def check_calls(self, num_steps: int | None, taken: int = 0) -> None:
        """Check that the run ends where a call does.

        Args:
            num_steps: The steps of the whole run, if those are what ends it.
            taken: How many were taken already.

        Raises:
            ValueError: It does not.
        """
        by_epochs = self._num_epochs if self._batches is None else None
        size = self._steps_per_call
        for name, number in (("num_steps", num_steps), ("num_epochs", by_epochs)):
            if number is not None and number > taken and (number - taken) % size:
                left = f" leaves {number - taken} steps, which" if taken else ""
                raise ValueError(
                    f"{name}={number}{left} is no multiple of the stepper's steps_per_call={size}"
                    + (f"; the checkpoint is of step {taken}" if taken else "")
                )

    def first(self) -> StepInput:
        """The first input of the epoch that a resumed run is in; the generators are as before."""
        if self._batches is None:
            return StepInput(self._args, self._kwargs, self.place)
        iterator = self._begin(self.place)
        batch = next(iterator, None)
        if batch is None:
            raise ValueError(self._why_empty(0, 0, 0))
        if iterator is self._batches:
            self._batches = chain([batch], iterator)
        return self._input(batch, self.place)

    def resume(self, place: Place) -> None:
        """Go on from a place: the epoch's batches are drawn anew, those taken are passed over."""
        self.place = place

    def _batches_of(self, epoch: int, skip: int) -> Iterator[StepInput]:
        now = RNG.now(self.generators) if skip or self.keeps_rng else None
        place = self.place if skip else Place(epoch, 0, now)
        iterator = self._begin(place)
        number = 0
        for number, batch in enumerate(iterator, 1):
            if number < skip:
                continue
            if number == skip and now is not None:
                now.restore(self.generators)
                continue
            yield self._input(batch, place._replace(batch=number))
        if number < max(skip, 1):
            raise ValueError(self._why_empty(epoch, number, skip))

    def _begin(self, place: Place) -> Iterator[Any]:
        if place.epoch_rng is not None:
            place.epoch_rng.restore(self.generators)
        set_epoch = getattr(getattr(self._batches, "sampler", None), "set_epoch", None)
        if set_epoch is not None:
            set_epoch(place.epoch)
        assert self._batches is not None
        return iter(self._batches)

    def _why_empty(self, epoch: int, number: int, skip: int) -> str:
        if number:
            return (
                f"batches gave {number} batches in epoch {epoch}, and the resumed run had taken "
                f"{skip} of it; resume with the data that it was trained on"
            )
        once = " anew: pass a list or a DataLoader, not a generator" if epoch else ""
        return f"batches has no batch in epoch {epoch}; it must give some{once}"

    def _input(self, batch: Any, place: Place) -> StepInput:
        args, kwargs = spread(batch)
        both = sorted(kwargs.keys() & self._kwargs.keys())
        if both:
            raise TypeError(f"{both} are in the batch and among fit's keywords; leave one out")
        self._check_dtypes(args, kwargs, place)
        return StepInput(args, {**self._kwargs, **kwargs}, place)

    def _check_dtypes(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], place: Place) -> None:
        signature = tuple(
            (str(name), str(value.dtype))
            for name, value in (*enumerate(args), *kwargs.items())
            if isinstance(value, Tensor)
        )
        if self._signature is None:
            self._signature = signature
        elif signature != self._signature:
            raise ValueError(
                f"batch {place.batch} of epoch {place.epoch} has tensors of {dict(signature)}, "
                f"the first had {dict(self._signature)}; give all batches the same dtypes, "
                "with .to(dtype)"
            )


def spread(batch: Any) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
    """A batch as arguments and keywords."""
    if isinstance(batch, Mapping):
        return (), batch
    if isinstance(batch, (tuple, list)):
        return tuple(batch), {}
    return (batch,), {}
