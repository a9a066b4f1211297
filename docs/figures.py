"""Draws the documentation's figures into docs/_static: `make figures`."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import pyro
import torch
from pyro.infer import SVI

from pyro_elbo import TraceGap_ELBO, TraceKL_ELBO, fit, plots, reference, schedules
from pyro_elbo.demo.data import binarise, load_digits
from pyro_elbo.demo.vae import VAE
from pyro_elbo.plots import TERM_COLOURS, TERM_LABELS

STATIC = Path(__file__).parent / "_static"
PLACES = {
    "schedules": (0.4, 0),
    "weighting": (1.5, 0),
    "terms": (2.6, 0),
    "reference": (4.0, 0),
    "elbo": (1.5, 1),
    "capture": (0.4, 2),
    "steppers": (0.4, 3),
    "interop": (2.6, 2),
    "evidence": (2.6, 3),
    "diagnostics": (2.6, 4),
    "training": (1.5, 5),
    "plots": (1.5, 6),
}
STYLE = {"figure.constrained_layout.use": True, "svg.hashsalt": "pyro_elbo", "font.size": 11}


def draw_faces(ax: plt.Axes) -> None:
    """Three ways to arrive at one number, on a problem whose every number is known."""
    problem = reference.ConjugateNormal()
    particles = {"num_particles": 20_000, "vectorize_particles": True, "max_plate_nesting": 1}
    loss = TraceGap_ELBO(log_evidence=problem.log_evidence(), **particles)
    terms = loss.decompose(problem.model, problem.guide, *problem.args)
    views = terms.evidence_gap(), terms.joint_entropy, terms.reconstruction_kl
    for row, view in enumerate(views):
        ends = [0.0, float(view[0]), float(view.elbo)]
        for i, name in enumerate(view._fields):
            left, right = sorted(ends[i : i + 2])
            colour, place = TERM_COLOURS[name], row + 0.36 * i
            ax.barh(place, right - left, 0.32, left=left, color=colour)
            value = f"{float(view[i]):.2f}".replace("-", "−")
            ax.text(0.4, place, f"{TERM_LABELS[name]} = {value}", va="center")
    elbo = float(terms.elbo)
    ax.axvline(elbo, color=TERM_COLOURS["elbo"], lw=1.6)
    label = f" ELBO = {elbo:.2f}".replace("-", "−")
    ax.text(elbo, -0.42, label, color=TERM_COLOURS["elbo"], va="center")
    ax.set_yticks([0.18, 1.18, 2.18], ["1 gap", "2 entropy", "3 KL"])
    least = ax.dataLim.x0
    ax.set(ylim=(2.7, -0.7), xlim=(1.05 * least, -least), xlabel="nats")
    ax.set_xticks([tick for tick in ax.get_xticks() if least < tick <= 0])
    ax.spines["bottom"].set_bounds(1.05 * least, 0)
    ax.spines[["top", "right"]].set_visible(False)


def draw_training(ax: plt.Axes, num_steps: int = 1500) -> None:
    """A VAE on the digits, its weight annealed from 4 to 1."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    images = load_digits().train
    x = binarise(images, torch.Generator().manual_seed(0))[:500]
    vae = VAE(x.shape[-1], num_units=8, num_hidden=100)
    elbo = TraceKL_ELBO(beta=schedules.Linear(4.0, 1.0, num_steps=2 * num_steps // 3))
    svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 2e-3}), elbo)
    history = fit(svi, x, num_steps=num_steps, progress=False)
    legend = plots.history(history, per_datum=True, ax=ax).get_legend()
    legend.set_loc("lower left")
    legend.set_bbox_to_anchor((0.1, 0.0), transform=ax.transAxes)


def may_import() -> dict[str, list[str]]:
    """The table that the tests hold the imports to."""
    path = Path(__file__).parents[1] / "tests" / "test_imports.py"
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "MAY_IMPORT":
            return eval(ast.unparse(node.value))
    raise ValueError(f"{path} has no MAY_IMPORT")


def draw_concepts(ax: plt.Axes) -> None:
    """What may import what, without what follows from another arrow."""
    table = may_import()
    uses = {name: set(others) for name, others in table.items() if name in PLACES}
    below = {name: set().union(*(uses[other] for other in others)) for name, others in uses.items()}
    for name, others in uses.items():
        for other in sorted(others - below[name]):
            start, end = PLACES[other], PLACES[name]
            arrow = {"arrowstyle": "-|>", "color": "#777777", "shrinkA": 13, "shrinkB": 13}
            ax.annotate("", end, start, arrowprops=arrow)
    box = {"boxstyle": "round,pad=0.35", "facecolor": "#E8F1F8", "edgecolor": "#0072B2"}
    for name, place in PLACES.items():
        ax.text(*place, name, ha="center", va="center", bbox=box)
    ax.set(xlim=(-0.5, 4.5), ylim=(6.5, -0.5))
    ax.axis("off")


def main(folder: Path) -> None:
    """Write every figure."""
    torch.set_num_threads(1)
    with plt.rc_context(STYLE):
        for name, draw, size in (
            ("faces", draw_faces, (8.0, 3.6)),
            ("training", draw_training, (8.0, 3.8)),
            ("concepts", draw_concepts, (7.0, 5.2)),
        ):
            pyro.set_rng_seed(0)
            figure, ax = plt.subplots(figsize=size)
            draw(ax)
            figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
            plt.close(figure)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else STATIC)
