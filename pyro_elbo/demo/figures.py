"""The demo's figures, made of the package's plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

from .. import plots
from .comparison import Result
from .data import Images

__all__ = ["save_figures"]

CURVES = ("elbo", "objective", "reconstruction", "kl", "entropy", "expected_log_joint")
UNIT = "nats per image"
NUM_COLUMNS = 14
NUM_UNITS = 8
DPI = 130


def save_figures(
    results: Sequence[Result], images: Images, x: Tensor, *, seed: int, out: Path
) -> None:
    """Write the figures as PNG.

    Args:
        results: The runs.
        images: The data.
        x: The held-out images as binarised, shape [m, pixels].
        seed: Chooses the samples shown.
        out: The folder.
    """
    figures = {
        "terms.png": terms_figure(results),
        "bound.png": bound_figure(results),
        "reconstructions.png": reconstructions_figure(results, images, x),
        "samples.png": samples_figure(results, images, seed),
        "units.png": units_figure(results),
        "stacked.png": stacked_figure(results),
        "guide.png": guide_figure(results[0]),
        "traversal.png": traversal_figure(results[0], images),
    }
    for name, figure in figures.items():
        figure.savefig(out / name, dpi=DPI, bbox_inches="tight")


def terms_figure(results: Sequence[Result]) -> Figure:
    """The terms over training, a panel for each run, its weight in a strip below."""
    figure = Figure(figsize=(12, 9), layout="constrained")
    ratios = {"height_ratios": [5, 1, 5, 1]}
    axes = figure.subplots(4, 3, sharex=True, sharey="row", gridspec_kw=ratios)
    axes[2, 0].sharey(axes[0, 0])
    axes[3, 0].sharey(axes[1, 0])
    for i, result in enumerate(results):
        curves, row, column = result.curves, 2 * (i // 3), i % 3
        terms = {name: curves.terms[name] for name in _shown(result)}
        plots.term_curves(curves.step, terms, unit=UNIT, ax=axes[row, column])
        plots.beta_curve(curves.step, curves.beta, ax=axes[row + 1, column])
        axes[row, column].set_title(result.name, weight="bold")
    for ax in axes.flat:
        ax.label_outer()
    axes[0, 0].set_ylim(_settled_range(results))
    legend = axes[2, 2].get_legend_handles_labels()
    figure.legend(*legend, loc="outside lower center", ncols=3, frameon=False)
    figure.suptitle("What the bound is made of, over training (minibatches)")
    return figure


def _shown(result: Result) -> list[str]:
    """The terms of a run; its objective only where that is not the ELBO throughout."""
    weighted = any(beta != 1.0 for beta in result.curves.beta)
    return [name for name in CURVES if weighted or name != "objective"]


def _settled_range(results: Sequence[Result]) -> tuple[float, float]:
    """The range of all terms from the first twentieth of training on, and a margin."""
    values = [
        value
        for result in results
        for name in CURVES
        for value in result.curves.terms[name][len(result.curves.step) // 20 :]
    ]
    margin = 0.05 * (max(values) - min(values))
    return min(values) - margin, max(values) + margin


def bound_figure(results: Sequence[Result]) -> Figure:
    """Reconstruction and KL of each run on held-out images, adding up to the ELBO."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    ax = plots.bound_bars(
        [result.held_out.reconstruction for result in results],
        [result.held_out.kl for result in results],
        labels=[result.name for result in results],
        unit=UNIT,
        ax=figure.subplots(),
    )
    figure.legend(
        *ax.get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False
    )
    ax.set_title("ELBO of held-out images = reconstruction − KL")
    return figure


@torch.no_grad()
def reconstructions_figure(results: Sequence[Result], images: Images, x: Tensor) -> Figure:
    """Held-out images, and what each run decodes from the mean of their posterior."""
    x = x[:NUM_COLUMNS]
    rows = {"image": images.test[:NUM_COLUMNS], "as binarised": x}
    rows |= {result.name: result.vae.decode(result.vae.posterior(x).mean) for result in results}
    return _image_figure(rows, images, "Held-out images, reconstructed from the posterior mean")


@torch.no_grad()
def samples_figure(results: Sequence[Result], images: Images, seed: int) -> Figure:
    """What each run decodes from the same draws of the prior."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(NUM_COLUMNS, results[0].vae.num_units, generator=generator)
    rows = {result.name: result.vae.decode(z) for result in results}
    return _image_figure(rows, images, "The same samples of the prior, decoded by each run")


def units_figure(results: Sequence[Result]) -> Figure:
    """The KL of each latent unit on held-out images, a panel for each run."""
    figure = Figure(figsize=(12, 6), layout="constrained")
    axes = figure.subplots(2, 3, sharex=True, sharey=True)
    for ax, result in zip(axes.flat, results, strict=True):
        held_out = result.held_out
        plots.unit_kl(held_out.unit_kl, active=held_out.unit_active, unit=UNIT, ax=ax)
        ax.set_title(result.name, weight="bold")
        count = f"{held_out.active_units} of {len(held_out.unit_kl)} units active"
        ax.text(0.97, 0.92, count, transform=ax.transAxes, ha="right", va="top")
        ax.label_outer()
    figure.suptitle("KL of each latent unit on held-out images (×: dead)")
    return figure


def stacked_figure(results: Sequence[Result]) -> Figure:
    """Reconstruction and KL of the runs whose weight moves, adding up to the ELBO."""
    moving = [result for result in results if len(set(result.curves.beta)) > 1]
    figure = Figure(figsize=(12, 4.4), layout="constrained")
    axes = figure.subplots(1, max(len(moving), 1), sharey=True, squeeze=False)[0]
    for ax, result in zip(axes, moving, strict=False):
        curves = result.curves
        terms = {name: curves.terms[name] for name in ("reconstruction", "kl")}
        plots.stacked_terms(curves.step, **terms, beta=curves.beta, unit=UNIT, ax=ax)
        ax.set_title(result.name, weight="bold")
        legend = ax.get_legend()
        legend.remove()
    if moving:
        words = [text.get_text() for text in legend.get_texts()]
        handles = legend.legend_handles
        figure.legend(handles, words, loc="outside lower center", ncols=len(words), frameon=False)
    figure.suptitle("Reconstruction and KL add up to the ELBO while the weight moves (minibatches)")
    return figure


def guide_figure(result: Result) -> Figure:
    """The gap of a run's guide over training, and whether each image's weights can be used."""
    assert result.gap is not None and result.report is not None
    figure = Figure(figsize=(12, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    gap = result.gap
    count = len(gap.estimates[0].per_datum.value)
    per_image = {
        name: (getattr(gap, name) / count).numpy()
        for name in ("elbo", "log_evidence", "log_evidence_error")
    }
    plots.gap_curve(gap.steps, **per_image, unit=UNIT, ax=left)
    left.set_title(f"The gap over training, on {count} held-out images", fontsize="medium")
    datum = result.report.gap.evidence.per_datum
    assert datum is not None
    plots.khat_points(datum.khat.numpy(), ax=right)
    right.set_title("Can each held-out image's importance weights be used?", fontsize="medium")
    figure.suptitle(f"Is the guide of {result.name} any good?")
    return figure


def traversal_figure(result: Result, images: Images) -> Figure:
    """What the units of a run that say the most draw."""
    vae, kl = result.vae, result.held_out.unit_kl
    units = sorted(range(vae.num_units), key=lambda unit: -kl[unit])[:NUM_UNITS]

    def decode(z: Tensor) -> Tensor:
        return vae.decode(z).unflatten(-1, (images.height, images.width))

    figure = Figure(figsize=(6, 7), layout="constrained")
    plots.latent_traversal(decode, vae.num_units, units=units, ax=figure.subplots())
    figure.suptitle(f"{result.name}: one unit moves, the others stay at 0 (largest KL first)")
    return figure


def _image_figure(rows: Mapping[str, Tensor], images: Images, title: str) -> Figure:
    stacked = torch.stack(list(rows.values())).reshape(len(rows), -1, images.height, images.width)
    columns = stacked.shape[1]
    aspect = len(rows) * (images.height + 1) / (columns * (images.width + 1))
    figure = Figure(figsize=(11, min(9.5 * aspect + 0.5, 15)), layout="constrained")
    ax = plots.image_grid(stacked.numpy(), row_labels=list(rows), ax=figure.subplots())
    ax.set_title(title)
    return figure
