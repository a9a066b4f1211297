"""Train and judge the same autoencoder under each loss, from the same initial weights."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from torch import Tensor
from tqdm import tqdm

from ..diagnostics import GuideReport
from ..training import Run, TrackEvidence
from .data import Images, binarise
from .evaluation import HeldOut, evaluate
from .guide import gap_tracker, report_of
from .training import Batches, Curves, Loss, num_batches, runs, train
from .vae import VAE

__all__ = ["Result", "binarised_test", "compare"]

SHOWN_EVERY = 20


@dataclass(frozen=True)
class Result:
    """One run.

    Args:
        name: What was run.
        vae: The trained autoencoder.
        beta: The KL weight when training ended.
        curves: The terms over training.
        held_out: The terms on held-out images.
        gap: The gap of some of these images over training; of the first run.
        report: Whether the guide is any good on them; of the first run.
    """

    name: str
    vae: VAE
    beta: float
    curves: Curves
    held_out: HeldOut
    gap: TrackEvidence | None = None
    report: GuideReport | None = None

    @property
    def row(self) -> dict[str, Any]:
        """The run's row of the table."""
        held_out = self.held_out
        return {
            "run": self.name,
            "elbo": held_out.elbo,
            "elbo_standard_error": held_out.elbo_standard_error,
            "importance_bound": held_out.importance_bound,
            "reconstruction": held_out.reconstruction,
            "kl": held_out.kl,
            "entropy": held_out.entropy,
            "active_units": held_out.active_units,
            "beta_at_end": self.beta,
            "seconds_per_step": self.curves.seconds_per_step,
        }


def binarised_test(images: Images, seed: int) -> Tensor:
    """The held-out images in black and white, shape [m, pixels]; one set for each seed."""
    return binarise(images.test, torch.Generator().manual_seed(seed))


def compare(images: Images, *, num_epochs: int, seed: int) -> list[Result]:
    """Train and judge each run; Pyro's parameters and the generators stay as they were.

    Every run starts from the same weights and sees the same minibatches and the same noise.

    Args:
        images: The data.
        num_epochs: Passes through the training images.
        seed: Of the weights, the order, the pixels and the codes.
    """
    with _seeded(seed):
        initial = VAE(images.train.shape[1])
    num_steps = num_epochs * num_batches(images.train)
    losses = runs(num_steps)
    interval = 0.1 if sys.stderr.isatty() else 10.0
    with tqdm(total=len(losses) * num_steps, unit="step", mininterval=interval) as bar:
        return [
            _run(name, elbo, deepcopy(initial), images, num_epochs, seed, bar, is_first=not i)
            for i, (name, elbo) in enumerate(losses.items())
        ]


def _run(
    name: str,
    elbo: Loss,
    vae: VAE,
    images: Images,
    num_epochs: int,
    seed: int,
    bar: Any,
    *,
    is_first: bool,
) -> Result:
    def show(run: Run) -> None:
        bar.update()
        if run.step % SHOWN_EVERY == 0:
            latest = run.latest(SHOWN_EVERY)
            shown = {"ELBO": latest["elbo"], "KL": latest["kl"]}
            means = {k: f"{(v / latest['num_data']).mean():.2f}" for k, v in shown.items()}
            bar.set_postfix({**means, "β": f"{latest['beta'][-1]:.2f}"}, refresh=False)

    bar.set_postfix_str("", refresh=False)
    bar.set_description(f"{name:16s}")
    batches = Batches(images.train, torch.Generator().manual_seed(seed))
    x = binarised_test(images, seed)
    with _seeded(seed), pyro.get_param_store().scope():
        gap = gap_tracker(vae, x, num_epochs * len(batches)) if is_first else None
        curves = train(vae, elbo, batches, num_epochs, [show, *([gap] if gap else [])])
        held_out = evaluate(vae, x)
        report = report_of(vae, x) if is_first else None
        return Result(name, vae, elbo.beta, curves, held_out, gap, report)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
