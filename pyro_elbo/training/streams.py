"""Random numbers of one's own, beside those of training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pyro

from .rng import RNG

__all__ = ["OwnStream"]


class OwnStream:
    """A stream that goes on from where it was left, and leaves the others where they were.

    Args:
        seed: Where it begins.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._rng: RNG | None = None

    def restart(self) -> None:
        """Begin again at the seed."""
        self._rng = None

    @contextmanager
    def on(self) -> Iterator[None]:
        """Inside, every generator draws from the stream."""
        before = RNG.now()
        try:
            if self._rng is None:
                pyro.set_rng_seed(self._seed)
            else:
                self._rng.restore()
            yield
            self._rng = RNG.now()
        finally:
            before.restore()

    def state_dict(self) -> dict[str, Any]:
        """Where it stands, as plain data."""
        return {"rng": None if self._rng is None else dict(self._rng.state)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore :meth:`state_dict`."""
        self._rng = None if state["rng"] is None else RNG(state["rng"])
