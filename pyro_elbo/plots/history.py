"""A run of training at a glance."""

from __future__ import annotations

from collections.abc import Sequence
from operator import index

import numpy as np
from matplotlib.axes import Axes

from ..training import History
from .bound import term_curves
from .checks import Floats
from .palette import legend
from .training import beta_line

__all__ = ["history"]

TERMS = ("elbo", "objective", "reconstruction", "kl")


def history(
    history: History,
    *,
    terms: Sequence[str] | None = None,
    num_points: int = 200,
    per_datum: bool = False,
    ax: Axes | None = None,
) -> Axes:
    r"""The terms of a run over its steps, and its weight at the right where it changed.

    Args:
        history: What :func:`~pyro_elbo.fit` returned.
        terms: The columns to draw; by default ELBO, reconstruction, KL, and the objective where a
            weight differs from 1, of those that there are.
        num_points: A longer run is drawn as the means of so many windows of steps.
        per_datum: Whether each step's terms are divided by the number of its data.
        ax: Where to draw; a new figure by default.

    Raises:
        ValueError: There are no steps, ``num_points`` is below 1, or the number of data is asked
            for and not known.
        KeyError: The history has no such column.

    Example:
        >>> from pyro_elbo import History
        >>> run = History({"step": [1, 2], "elbo": [-3., -2.], "kl": [0., 1.], "beta": [0., 1.]})
        >>> ax = history(run)
        >>> [text.get_text() for text in ax.get_legend().get_texts()]
        ['ELBO', 'KL(q ‖ p(z))', '$\\beta$']
    """
    if not len(history):
        raise ValueError("the history has no steps, so there is nothing to draw")
    if index(num_points) < 1:
        raise ValueError(f"num_points must be >= 1, got {num_points}")
    shown = _shown(history) if terms is None else terms
    windows = np.array_split(np.arange(len(history)), min(num_points, len(history)))
    steps = history["step"][[window[-1] for window in windows]]
    size = _num_data(history) if per_datum else np.ones(len(history))
    curves = {name: _means(history[name] / size, windows) for name in shown}
    unit = "nats per datum" if per_datum else "nats"
    ax = term_curves(steps, curves, unit=unit, ax=ax)
    handles = ax.get_legend_handles_labels()[0]
    beta = history.columns.get("beta", np.array([np.nan]))
    if np.isfinite(beta).all() and beta.min() < beta.max():
        line = beta_line(ax, steps, _means(beta, windows))
        ax.set_zorder(1)
        ax.patch.set_visible(False)
        handles = [*handles, line]
    legend(ax, handles)
    return ax


def _shown(history: History) -> list[str]:
    names = [name for name in TERMS if name in history.columns]
    is_bound = "elbo" in names and bool(
        (history.columns.get("beta", np.array(np.nan)) == 1.0).all()
    )
    return [name for name in names if name != "objective" or not is_bound]


def _num_data(history: History) -> Floats:
    size = history.columns.get("num_data", np.array([np.nan]))
    if not np.isfinite(size).all():
        raise ValueError(
            "the number of data is not known at every step: that needs observed sites that share "
            "one plate; leave per_datum out"
        )
    return size


def _means(values: Floats, windows: Sequence[np.ndarray]) -> Floats:
    return np.array([values[window].mean() for window in windows])
