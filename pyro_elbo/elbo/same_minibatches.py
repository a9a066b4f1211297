"""Runs of a program that are to see the same data."""

from __future__ import annotations

from typing import Any

from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

__all__ = ["SameMinibatches"]


class SameMinibatches(Messenger):
    """Has every run of a program inside see the minibatches that the first one drew."""

    def __init__(self) -> None:
        super().__init__()
        self._drawn: dict[Any, Tensor] = {}

    def _pyro_sample(self, msg: Any) -> None:
        if site_is_subsample(msg) and not msg["done"] and _plate(msg) in self._drawn:
            msg["value"], msg["done"] = self._drawn[_plate(msg)], True

    def _pyro_post_sample(self, msg: Any) -> None:
        if site_is_subsample(msg):
            self._drawn.setdefault(_plate(msg), msg["value"])


def _plate(msg: Any) -> tuple[str, int, int]:
    return msg["name"], msg["fn"].size, msg["fn"].subsample_size
