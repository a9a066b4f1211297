"""Guides that start where Pyro's do."""

from __future__ import annotations

from typing import Any

from numpyro.infer.autoguide import AutoDiagonalNormal, AutoNormal
from numpyro.infer.initialization import init_to_feasible

__all__ = ["auto_diagonal_normal", "auto_normal"]

INITIAL_SCALE = 0.1


def auto_normal(model: Any) -> AutoNormal:
    """An AutoNormal."""
    return AutoNormal(model, init_loc_fn=init_to_feasible, init_scale=INITIAL_SCALE)


def auto_diagonal_normal(model: Any) -> AutoDiagonalNormal:
    """An AutoDiagonalNormal."""
    return AutoDiagonalNormal(model, init_loc_fn=init_to_feasible, init_scale=INITIAL_SCALE)
