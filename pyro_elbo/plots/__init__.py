"""Figures of what the bound is made of: arrays first, the rest by keyword, always an Axes back.

Every term has one colour, :data:`TERM_COLOURS`, in every figure, and a marker, a dash or a hatch
beside it, so that a print in grey and a reader who sees no colours lose nothing. Values are drawn
as they come: give nats per datum to read nats per datum. Where a figure has a legend,
``ax.get_legend().remove()`` takes it away.
"""

from .bound import beta_curve, bound_bars, term_curves
from .history import history
from .images import image_grid
from .palette import TERM_COLOURS, TERM_LABELS, TERM_MARKERS
from .posterior import guide_against_posterior
from .rate import rate_distortion_curve
from .training import gap_curve, schedule_curve, stacked_terms
from .traversal import latent_traversal
from .units import unit_kl
from .weights import khat_points

__all__ = [
    "TERM_COLOURS",
    "TERM_LABELS",
    "TERM_MARKERS",
    "beta_curve",
    "bound_bars",
    "gap_curve",
    "guide_against_posterior",
    "history",
    "image_grid",
    "khat_points",
    "latent_traversal",
    "rate_distortion_curve",
    "schedule_curve",
    "stacked_terms",
    "term_curves",
    "unit_kl",
]
