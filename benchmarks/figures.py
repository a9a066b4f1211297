"""The measurements as pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .harness import Quartiles
from .results import Results
from .tasks import GROWING, GROWTH
from .variants import LABELS
from .workloads import WORKLOADS

__all__ = ["draw"]

STYLE: Any = {"figure.constrained_layout.use": True, "svg.hashsalt": "pyro_elbo", "font.size": 10}
MARKS = {
    "trace": ("#9A9A9A", "o"),
    "kl": ("#56B4E9", "s"),
    "compiled": ("#0072B2", "D"),
    "compiled_10": ("#222222", "*"),
    "by_hand": ("#E69F00", "v"),
    "by_hand_compiled": ("#D55E00", "^"),
    "numpyro": ("#009E73", "P"),
    "numpyro_scan": ("#CC79A7", "X"),
    "pymc": ("#8C6D31", "d"),
}


def draw_steps(results: Results, ax: Axes) -> None:
    """The time of a step by workload and variant."""
    for variant, (colour, marker) in MARKS.items():
        times = {name: results.time(name, variant) for name in WORKLOADS}
        found = {name: t for name, t in times.items() if isinstance(t, Quartiles)}
        places = [list(WORKLOADS).index(name) for name in found]
        medians = [1e-3 * t.median for t in found.values()]
        ax.plot(medians, places, marker, color=colour, label=LABELS[variant])
    ax.set_yticks(range(len(WORKLOADS)), [name.replace("_", " ") for name in WORKLOADS])
    ax.set(xscale="log", xlabel="ms per step")
    ax.invert_yaxis()
    ax.grid(axis="x", alpha=0.3)
    ax.figure.legend(loc="outside lower center", ncols=2, fontsize="small", frameon=False)


def draw_growth(results: Results, what: str, ax: Axes) -> None:
    """The time of a step as something grows."""
    workload, values = GROWTH[what]
    key = "particles" if what == "particles" else "size"
    for variant in GROWING:
        times = {v: results.time(f"growth_{what}", variant, **{key: v}) for v in values}
        found = {v: 1e-3 * t.median for v, t in times.items() if isinstance(t, Quartiles)}
        colour, marker = MARKS[variant]
        line = list(found), list(found.values())
        ax.plot(*line, marker=marker, color=colour, label=LABELS[variant])
    title = workload.replace("_", " ")
    ax.set(xscale="log", yscale="log", xlabel=what, ylabel="ms per step", title=title)
    ax.set_xticks(values, [f"{value:,}" for value in values])
    ax.set_xticks([], minor=True)
    ax.grid(alpha=0.3)


def save(figure: Figure, path: Path) -> None:
    """Write a figure that is the same for the same numbers."""
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def draw(results: Results, folder: Path) -> None:
    """Write the figures into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with plt.rc_context(STYLE):
        figure, ax = plt.subplots(figsize=(8, 6))
        draw_steps(results, ax)
        save(figure, folder / "step_times.svg")
        grown = [what for what in GROWTH if f"growth_{what}" in results.tasks]
        if grown:
            figure, axes = plt.subplots(1, len(grown), figsize=(3 * len(grown), 4), squeeze=False)
            for ax, what in zip(axes[0], grown, strict=True):
                draw_growth(results, what, ax)
            handles, labels = axes[0, 0].get_legend_handles_labels()
            figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
            save(figure, folder / "step_growth.svg")
