"""From the terms of each step to the columns of a history, without waiting for a number."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from ..terms import ELBOTerms
from .history import SITE_BETA, SITE_KL, History

__all__ = ["Recorder"]

TERMS = (
    *("objective", "elbo", "reconstruction", "kl", "weighted_kl"),
    *("entropy", "expected_log_joint", "expected_log_prior"),
)
PENDING = 256


class Recorder:
    """Collects rows; terms stay tensors until some hundred rows are read at once.

    Args:
        history: What to go on from.
    """

    def __init__(self, history: History | None = None) -> None:
        columns = {} if history is None else history.columns
        self._columns = {name: list(values) for name, values in columns.items()}
        self._num_rows = 0 if history is None else len(history)
        self._pending: list[tuple[dict[str, float], tuple[str, ...], Any]] = []

    def add(self, row: Mapping[str, float], loss: float, terms: ELBOTerms | None) -> None:
        """Append a step.

        Args:
            row: What is known as numbers.
            loss: What the step returned; minus the objective of a loss without terms.
            terms: The step's terms.
        """
        if terms is None:
            self._pending.append(({**row, "objective": -loss, "beta": np.nan}, (), None))
        else:
            names, values = _values(terms)
            numbers = {"num_data": terms.num_data or np.nan, **_betas(terms)}
            self._pending.append(({**row, **numbers}, names, values))
        if len(self._pending) >= PENDING:
            self._flush()

    def history(self, stopped: str = "", num_latest: int | None = None) -> History:
        """Everything so far, or the latest rows."""
        self._flush()
        first = 0 if num_latest is None else max(self._num_rows - num_latest, 0)
        columns = {name: np.array(v[first:], float) for name, v in self._columns.items()}
        return History(columns | _site_betas(columns), stopped)

    def _flush(self) -> None:
        for row, names, values in self._pending:
            numbers = [] if values is None else values.tolist()
            self._append({**row, **dict(zip(names, numbers, strict=True))})
        self._pending.clear()

    def _append(self, row: Mapping[str, float]) -> None:
        for name in row:
            self._columns.setdefault(name, [np.nan] * self._num_rows)
        for name, column in self._columns.items():
            column.append(row.get(name, np.nan))
        self._num_rows += 1


def _values(terms: ELBOTerms) -> tuple[tuple[str, ...], Any]:
    latents = {name: site for name, site in terms.sites.items() if site.beta is not None}
    names = (*TERMS, *(f"{SITE_KL}{name}" for name in latents))
    values = [getattr(terms, name) for name in TERMS]
    values += [site.total("kl") for site in latents.values()]
    return names, torch.stack([value.to(terms.objective.device) for value in values])


def _site_betas(columns: Mapping[str, Any]) -> dict[str, Any]:
    """The weights by site, also at steps where all sites that were there had the same one."""
    filled = {}
    for name in (name for name in columns if name.startswith(SITE_BETA)):
        is_there = ~np.isnan(columns[SITE_KL + name.removeprefix(SITE_BETA)])
        own = columns[name]
        filled[name] = np.where(np.isnan(own) & is_there, columns["beta"], own)
    return filled


def _betas(terms: ELBOTerms) -> dict[str, float]:
    betas = {name: float(s.beta) for name, s in terms.sites.items() if s.beta is not None}
    if len(set(betas.values())) <= 1:
        return {"beta": next(iter(betas.values()), float(terms.default_beta))}
    return {"beta": np.nan, **{f"{SITE_BETA}{name}": beta for name, beta in betas.items()}}
