"""Bayesian logistic regression on a subsample."""

from __future__ import annotations

from typing import Any

from .logistic import regression

__all__ = ["program"]


def program(subsample: int = 256) -> tuple[Any, Any]:
    """256 data at each step."""
    return regression(subsample)
