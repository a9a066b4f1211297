"""One colour, label and marker for each term, and the Axes that a figure is drawn on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from matplotlib.artist import Artist
from matplotlib.axes import Axes

__all__ = [
    "KL_HATCH",
    "MARK_COLOURS",
    "TERM_COLOURS",
    "TERM_LABELS",
    "TERM_MARKERS",
    "axes_or_new",
    "legend",
]

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

TERM_MARKERS: Mapping[str, str] = MappingProxyType(
    {
        "elbo": "o",
        "objective": "D",
        "reconstruction": "^",
        "kl": "s",
        "weighted_kl": "v",
        "entropy": "P",
        "expected_log_joint": "X",
        "expected_log_prior": "<",
        "log_evidence": "*",
        "gap": ">",
        "beta": "d",
    }
)
"""What marks each term's line, which a print without colours still shows."""

MARK_COLOURS: Mapping[str, str] = MappingProxyType(
    {
        "good": "#7A7A7A",
        "fair": "#444444",
        "bad": "#B2182B",
        "guide": "#332288",
        "reference": "#B0B0B0",
    }
)
"""The colours of what is no term."""

KL_HATCH = "///"
"""What tells an area of the KL from the reconstruction's, beside its colour."""


def axes_or_new(ax: Axes | None) -> Axes:
    """The given Axes, or the one of a new figure."""
    if ax is not None:
        return ax
    from matplotlib import pyplot

    return pyplot.subplots(layout="constrained")[1]


def legend(ax: Axes, handles: Sequence[Artist] | None = None, title: str | None = None) -> None:
    """A legend that lets little through; of everything that has a label by default."""
    shown = handles or ax.get_legend_handles_labels()[0]
    ax.legend(
        handles=shown,
        title=title,
        fontsize="small",
        title_fontsize="small",
        framealpha=0.85,
        edgecolor="none",
    )
