"""The results as a table to read, and as CSV and JSON."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..tables import table
from .comparison import Result

__all__ = ["guide_page", "print_table", "save_tables"]

HEADINGS = (
    "nats per image",
    "ELBO",
    "±",
    "log p(x) ≥",
    "reconstr.",
    "KL",
    "entropy",
    "active",
    "β at end",
    "s/step",
)
FORMATS = ("", ".3f", ".3f", ".3f", ".3f", ".3f", ".3f", "d", "g", ".4f")


def print_table(results: Sequence[Result]) -> None:
    """Print a row for each run."""
    rows = [list(HEADINGS)]
    for result in results:
        cells = zip(result.row.values(), FORMATS, strict=True)
        rows.append([format(value, spec) for value, spec in cells])
    print(table(rows))


def guide_page(result: Result) -> str:
    """Whether a run's guide is any good, as a page to read."""
    title = f"Is the guide of {result.name} any good? On the held-out images, in nats:"
    return f"{title}\n\n{result.report}"


def save_tables(results: Sequence[Result], settings: Mapping[str, Any], out: Path) -> None:
    """Write ``held_out.csv``, ``training.csv``, ``guide_report.txt`` and ``results.json``."""
    (out / "guide_report.txt").write_text(guide_page(results[0]) + "\n", encoding="utf-8")
    _write_csv(out / "held_out.csv", (result.row for result in results))
    _write_csv(out / "training.csv", (row for result in results for row in _points(result)))
    record = {"settings": dict(settings), "runs": [_record(result) for result in results]}
    text = json.dumps(record, indent=1, ensure_ascii=False)
    (out / "results.json").write_text(text + "\n", encoding="utf-8")


def _write_csv(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    rows = list(rows)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def _points(result: Result) -> Iterable[dict[str, Any]]:
    curves = result.curves
    for i, (step, beta) in enumerate(zip(curves.step, curves.beta, strict=True)):
        terms = {name: values[i] for name, values in curves.terms.items()}
        yield {"run": result.name, "step": step, "beta": beta, **terms}


def _record(result: Result) -> dict[str, Any]:
    curves = result.curves
    return {
        "run": result.name,
        "beta_at_end": result.beta,
        "seconds_per_step": curves.seconds_per_step,
        "held_out": asdict(result.held_out),
        "training": {"step": curves.step, "beta": curves.beta, **curves.terms},
    }
