"""Particles between a guide and a posterior, and the weights that they gather on the way."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import pyro
import torch
from torch import Tensor

from .coordinates import Density, Point
from .hamiltonian import Kernel
from .weigher import Batch, Weigher

__all__ = ["Annealing", "temperatures"]

NUM_PILOTS = 16
TARGET = 0.8
GAIN = 0.5
SLOPE = 4.0


def temperatures(num_temperatures: int) -> list[float]:
    """From 0 to 1, densest at both ends."""
    steps = torch.linspace(-SLOPE, SLOPE, num_temperatures + 1, dtype=torch.double).sigmoid()
    values: list[float] = ((steps - steps[0]) / (steps[-1] - steps[0])).tolist()
    return values


class Annealing:
    """One set of data, annealed.

    Args:
        weigher: The program.
        batch: Its data.
        num_temperatures: Steps from the guide to the posterior.
        num_leapfrog_steps: Length of each trajectory.
        bar: A progress bar.
    """

    def __init__(
        self,
        weigher: Weigher,
        batch: Batch,
        num_temperatures: int,
        num_leapfrog_steps: int,
        bar: Any,
    ) -> None:
        self._weigher, self._batch, self._bar = weigher, batch, bar
        self._temperatures = temperatures(num_temperatures)
        self._num_leapfrog_steps = num_leapfrog_steps

    def forward(self, num_samples: int) -> Tensor:
        """Log weights of particles that go from the guide to the posterior."""
        with _unvalidated():
            step_sizes, scales = self._tuned
            kernel = self._kernel(num_samples, scales)
            point = kernel.density()
            log_weight = torch.zeros_like(point.log_ratio)
            for before, after, size in self._steps(step_sizes):
                log_weight = log_weight + (after - before) * point.log_ratio
                point, _ = kernel.move(point, after, size)
            return log_weight

    def backward(self, values: Mapping[str, Tensor], num_samples: int) -> Tensor:
        """Log weights of particles that go from one posterior sample to the guide.

        Args:
            values: The sample: constrained values by the name of the guide's site.
            num_samples: Particles.
        """
        with _unvalidated():
            step_sizes, scales = self._tuned
            kernel = self._kernel(num_samples, scales)
            point = kernel.density(kernel.density.coordinates_of(values))
            log_weight = torch.zeros_like(point.log_ratio)
            for before, after, size in reversed(list(self._steps(step_sizes))):
                point, _ = kernel.move(point, after, size)
                log_weight = log_weight + (after - before) * point.log_ratio
            return log_weight

    def _steps(self, step_sizes: list[Tensor]) -> Iterator[tuple[float, float, Tensor]]:
        pairs = zip(self._temperatures, self._temperatures[1:], step_sizes, strict=False)
        for step in pairs:
            yield step
            self._bar.update()

    @cached_property
    def _tuned(self) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Step sizes by temperature, from a pilot run, and the scale of each coordinate."""
        start = self._density(NUM_PILOTS)()
        scales = {name: _spread_of(at.value) for name, at in start.coordinates.items()}
        kernel = self._kernel(NUM_PILOTS, scales)
        point: Point = kernel.density({n: at.value for n, at in start.coordinates.items()})
        log_size = torch.full(point.log_ratio.shape[1:], -1.0)
        sizes = []
        for after in self._temperatures[1:]:
            sizes.append(log_size.exp())
            point, chance = kernel.move(point, after, sizes[-1])
            log_size = log_size + GAIN * (chance.mean(0) - TARGET)
            self._bar.update()
        return sizes, scales

    def _kernel(self, num_particles: int, scales: dict[str, Tensor]) -> Kernel:
        return Kernel(self._density(num_particles), scales, self._num_leapfrog_steps)

    def _density(self, num_particles: int) -> Density:
        layout = self._weigher.layout
        plates = () if layout.shared else layout.plates
        return Density(self._weigher, num_particles, plates, self._batch)


def _spread_of(value: Tensor) -> Tensor:
    scale = value.detach().std(0, keepdim=True)
    return torch.where(scale > 0, scale, torch.ones_like(scale))


@contextmanager
def _unvalidated() -> Iterator[None]:
    """A trajectory may leave what can be evaluated; it is then not accepted."""
    with torch.no_grad(), pyro.validation_enabled(False):
        yield
