"""One colour and one label for each term, and the Axes that a figure is drawn on."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from matplotlib.axes import Axes

__all__ = ["TERM_COLOURS", "TERM_LABELS", "axes_or_new"]

TERM_COLOURS: Mapping[str, str] = MappingProxyType(
    {
        "elbo": "#0072B2",
        "objective": "#56B4E9",
        "reconstruction": "#009E73",
        "kl": "#D55E00",
        "weighted_kl": "#E69F00",
        "entropy": "#CC79A7",
        "expected_log_joint": "#6A51A3",
        "expected_log_prior": "#8C6D31",
        "log_evidence": "#222222",
        "gap": "#9A9A9A",
        "beta": "#555555",
    }
)
"""The colour of each term, told apart under the common colour-vision deficiencies."""

TERM_LABELS: Mapping[str, str] = MappingProxyType(
    {
        "elbo": "ELBO",
        "objective": r"objective at $\beta$",
        "reconstruction": r"reconstruction  E[log p(x|z)]",
        "kl": r"KL(q ‖ p(z))",
        "weighted_kl": r"$\beta\,$KL(q ‖ p(z))",
        "entropy": r"entropy  H[q]",
        "expected_log_joint": r"expected log joint  E[log p(x, z)]",
        "expected_log_prior": r"expected log prior  E[log p(z)]",
        "log_evidence": "log p(x)",
        "gap": "gap  KL(q ‖ p(z|x))",
        "beta": r"$\beta$",
    }
)
"""What a legend calls each term."""


def axes_or_new(ax: Axes | None) -> Axes:
    """The given Axes, or the one of a new figure."""
    if ax is not None:
        return ax
    from matplotlib import pyplot

    return pyplot.subplots(layout="constrained")[1]
