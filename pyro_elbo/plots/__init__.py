"""Figures of what the bound is made of: arrays first, the rest by keyword, always an Axes back.

Every term has one colour, :data:`TERM_COLOURS`, in every figure. Values are drawn as they come:
give nats per datum to read nats per datum.
"""

from .bound import beta_curve, bound_bars, term_curves
from .images import image_grid
from .palette import TERM_COLOURS, TERM_LABELS
from .units import unit_kl

__all__ = [
    "TERM_COLOURS",
    "TERM_LABELS",
    "beta_curve",
    "bound_bars",
    "image_grid",
    "term_curves",
    "unit_kl",
]
