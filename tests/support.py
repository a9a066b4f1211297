"""What the suites share: one failure budget, and the means that it judges."""

from __future__ import annotations

import pyro
import pytest
import torch
from pyro import poutine
from scipy.stats import t as student_t
from torch import Tensor

from pyro_elbo import TraceEntropy_ELBO, TraceGap_ELBO, TraceKL_ELBO

FAILURE_BUDGET = 1e-6
MAX_COMPARISONS = 200_000
EPS = torch.finfo(torch.float64).eps

LOSSES = [TraceGap_ELBO, TraceEntropy_ELBO, TraceKL_ELBO]
PARTICLES = {
    "sequential": {"num_particles": 2},
    "vectorised": {"num_particles": 20, "vectorize_particles": True},
}
SEQUENTIAL_IS_SLOW = pytest.mark.parametrize(
    "particles",
    [
        pytest.param(options, marks=pytest.mark.slow if name == "sequential" else (), id=name)
        for name, options in PARTICLES.items()
    ],
)
"""Means of samples: many at a time in `make test`, one after another in `make check` too."""


def assert_mean(samples: Tensor, exact: Tensor, what: str = "") -> None:
    """The mean over dim 0 of independent evaluations is `exact`, within the suite's budget.

    Entries without spread must be exact to rounding.
    """
    size = len(samples)
    level = FAILURE_BUDGET / MAX_COMPARISONS / 2
    threshold = float(student_t.isf(level, size - 1))
    spread = samples.std(0) / size**0.5
    rounding = 100 * EPS * (samples.abs().amax(0) + exact.abs())
    error = (samples.mean(0) - exact).abs()
    bad = error > threshold * spread + rounding
    assert not bad.any(), (
        f"{what}: off by {(error / spread)[bad]} standard errors (> {threshold:.1f})"
    )


def assert_same_mean(samples: Tensor, others: Tensor, what: str = "") -> None:
    """Two sets of independent evaluations, over dim 0, have one mean, within the suite's budget.

    Welch's test; entries without spread must be equal to rounding.
    """
    level = FAILURE_BUDGET / MAX_COMPARISONS / 2
    first, second = samples.var(0) / len(samples), others.var(0) / len(others)
    spread = (first + second).sqrt()
    freedom = spread**4 / (first**2 / (len(samples) - 1) + second**2 / (len(others) - 1))
    freedom = freedom.nan_to_num(nan=1.0)
    threshold = torch.as_tensor(student_t.isf(level, freedom))
    rounding = 100 * EPS * (samples.abs().amax(0) + others.abs().amax(0))
    error = (samples.mean(0) - others.mean(0)).abs()
    bad = error > threshold * spread + rounding
    assert not bad.any(), (
        f"{what}: off by {(error / spread)[bad]} standard errors (> {threshold[bad]})"
    )


def assert_close(
    actual: Tensor, expected: Tensor, scale: Tensor | float = 0.0, ulps: int = 64
) -> None:
    """Equal to rounding, relative to the larger of the value and `scale`."""
    actual, expected = torch.as_tensor(actual), torch.as_tensor(expected)
    largest = torch.maximum(expected.abs(), torch.as_tensor(scale).abs())
    assert ((actual - expected).abs() <= ulps * torch.finfo(actual.dtype).eps * largest).all(), (
        actual,
        expected,
    )


def gradients(parameters: dict[str, Tensor]) -> dict[str, Tensor]:
    """The gradients, zeros where a parameter got none."""
    return {
        name: torch.zeros_like(p) if p.grad is None else p.grad.clone()
        for name, p in parameters.items()
    }


def clear_gradients(parameters: dict[str, Tensor]) -> None:
    for parameter in parameters.values():
        parameter.grad = None


def evaluate(elbo, problem, seed: int | None = None):
    """One `loss_and_grads`: the loss, and the gradients by name."""
    if seed is not None:
        pyro.set_rng_seed(seed)
    parameters = problem.parameters()
    clear_gradients(parameters)
    loss = elbo.loss_and_grads(problem.model, problem.guide, *problem.args)
    return loss, gradients(parameters)


class ForcedGuide:
    """A guide, ``_guide``, that takes the samples of ``forced`` where that is a trace."""

    forced = None

    def guide(self):
        program = self._guide
        if self.forced is not None:
            program = poutine.replay(program, trace=self.forced)
        program()
