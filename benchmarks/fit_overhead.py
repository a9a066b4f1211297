"""What ``fit`` with history and bar costs beside a bare loop of ``SVI.step``, on the small VAE.

``python benchmarks/fit_overhead.py`` prints the ratio of the medians, and the quartiles of the
rounds' ratios. The rounds are interleaved in one process; each is so many steps of both.
"""

from __future__ import annotations

import argparse
import sys
from importlib import import_module
from io import StringIO
from statistics import median, quantiles
from time import perf_counter

import pyro
import torch
from pyro.infer import SVI
from pyro.optim import Adam

from pyro_elbo import TraceKL_ELBO, fit
from pyro_elbo.demo.vae import VAE

NUM_PIXELS, NUM_UNITS, NUM_HIDDEN, BATCH = 784, 20, 400, 128
NUM_STEPS = 20


def make() -> tuple[SVI, torch.Tensor]:
    """The VAE with 784, 400 and 20 units, on a batch of 128."""
    vae = VAE(NUM_PIXELS, NUM_UNITS, NUM_HIDDEN)
    x = (torch.rand(BATCH, NUM_PIXELS) < 0.2).float()
    return SVI(vae.model, vae.guide, Adam({"lr": 1e-3}), TraceKL_ELBO()), x


def bare(svi: SVI, x: torch.Tensor) -> float:
    """The seconds of a round of the loop."""
    start = perf_counter()
    for _ in range(NUM_STEPS):
        svi.step(x)
    return perf_counter() - start


def fitted(svi: SVI, x: torch.Tensor) -> float:
    """The seconds of a round of ``fit``."""
    start = perf_counter()
    fit(svi, x, num_steps=NUM_STEPS)
    return perf_counter() - start


def rounds(num_rounds: int) -> list[tuple[float, float]]:
    """Pairs of seconds, after one round of each that is not counted."""
    torch.manual_seed(0)
    pyro.clear_param_store()
    svi, x = make()
    bare(svi, x), fitted(svi, x)
    return [(bare(svi, x), fitted(svi, x)) for _ in range(num_rounds)]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=40)
    options = parser.parse_args()
    import_module("pyro_elbo.training.fit").BAR_DELAY = 0.0  # a round is shorter than the delay
    sys.stderr, stderr = StringIO(), sys.stderr
    pairs = rounds(options.rounds)
    sys.stderr = stderr
    ratio = median(b for _, b in pairs) / median(a for a, _ in pairs)
    low, middle, high = quantiles([b / a for a, b in pairs], n=4)
    step = 1e3 * median(a for a, _ in pairs) / NUM_STEPS
    print(f"a step {step:.2f} ms; fit / loop {ratio:.3f}", end="; ")
    print(f"quartiles {low:.3f} {middle:.3f} {high:.3f}")


if __name__ == "__main__":
    main()
