"""From the terms of each step to the columns of a history, without waiting for a number."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..summary import TERMS, Summary
from .history import SITE_BETA, SITE_KL, History

__all__ = ["Recorder"]

PENDING = 256


class Recorder:
    """Collects rows; totals stay tensors until some hundred rows are read at once.

    Args:
        history: What to go on from.
    """

    def __init__(self, history: History | None = None) -> None:
        columns = {} if history is None else history.columns
        self._columns = {name: list(values) for name, values in columns.items()}
        self._num_rows = 0 if history is None else len(history)
        self._pending: list[tuple[dict[str, float], tuple[str, ...], Any]] = []

    def add(self, row: Mapping[str, float], loss: float, summary: Summary | None) -> None:
        """Append a step.

        Args:
            row: What is known as numbers.
            loss: What the step returned; minus the objective of a loss without terms.
            summary: The totals of the step's terms.
        """
        if summary is None:
            self._pending.append(({**row, "objective": -loss, "beta": np.nan}, (), None))
        else:
            names = (*TERMS, *(f"{SITE_KL}{name}" for name in summary.betas))
            numbers = {"num_data": summary.num_data or np.nan, **_betas(summary)}
            self._pending.append(({**row, **numbers}, names, summary.totals))
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
        for name in (name for name in row if name not in self._columns):
            self._columns[name] = [np.nan] * self._num_rows
        for name, column in self._columns.items():
            column.append(row.get(name, np.nan))
        self._num_rows += 1


def _site_betas(columns: Mapping[str, Any]) -> dict[str, Any]:
    """The weights by site, also at steps where all sites that were there had the same one."""
    filled = {}
    for name in (name for name in columns if name.startswith(SITE_BETA)):
        is_there = ~np.isnan(columns[SITE_KL + name.removeprefix(SITE_BETA)])
        own = columns[name]
        filled[name] = np.where(np.isnan(own) & is_there, columns["beta"], own)
    return filled


def _betas(summary: Summary) -> dict[str, float]:
    betas = summary.betas
    if len(set(betas.values())) <= 1:
        return {"beta": next(iter(betas.values()), summary.default_beta)}
    return {"beta": np.nan, **{f"{SITE_BETA}{name}": beta for name, beta in betas.items()}}
