"""The one place that imports ArviZ."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["psis_khat"]


def psis_khat(log_weights: Any) -> Any:
    """Pareto shape of the largest weights, over the last axis; nan where there is no tail."""
    import arviz as az

    weights = np.array(log_weights, dtype=float)
    if weights.shape[-1] < 25 or np.ptp(weights) == 0:
        return np.full(weights.shape[:-1], np.nan)
    khat = np.asarray(az.psislw(weights)[1])
    return np.where(np.isfinite(khat), khat, np.nan)
