"""Hamiltonian Monte Carlo on the coordinates of a program, all particles and data at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .coordinates import Density, Point

__all__ = ["Kernel"]

Values = dict[str, Tensor]


@dataclass(frozen=True, eq=False)
class Kernel:
    r"""Leapfrog trajectories that leave :math:`q^{1-t} p^t` as it is.

    Args:
        density: The guide and the model.
        scales: The typical size of each coordinate.
        num_leapfrog_steps: The length of a trajectory.

    References:
        *MCMC using Hamiltonian dynamics* (Neal, 2011), arXiv 1206.1901.
    """

    density: Density
    scales: Mapping[str, Tensor]
    num_leapfrog_steps: int

    def move(self, point: Point, temperature: float, step_size: Tensor) -> tuple[Point, Tensor]:
        """One trajectory from each point, accepted or not for each entry on its own.

        Args:
            point: Where the particles are.
            temperature: From 0, the guide, to 1, the model.
            step_size: One for each entry, shape ``[*plates]``.

        Returns:
            The new points, and each one's probability of acceptance.
        """
        start = self._values(point)
        momenta = {name: torch.randn_like(value) for name, value in start.items()}
        sizes = self._sizes(point, step_size)
        values, moved = start, dict(momenta)
        forces = self._forces(start, temperature)
        for _ in range(self.num_leapfrog_steps):
            moved = {n: moved[n] + 0.5 * sizes[n] * forces[n] for n in values}
            values = {n: values[n] + sizes[n] * self.scales[n] * moved[n] for n in values}
            forces = self._forces(values, temperature)
            moved = {n: moved[n] + 0.5 * sizes[n] * forces[n] for n in values}
        proposal = self._at(values)
        gain = proposal.log_density(temperature) - point.log_density(temperature)
        gain = gain + self._kinetic(point, momenta) - self._kinetic(point, moved)
        chance = gain.exp().clamp(max=1.0).nan_to_num(nan=0.0)
        accepted = torch.rand_like(chance) < chance
        return self._chosen(point, proposal, accepted), chance

    def _values(self, point: Point) -> Values:
        return {name: at.value for name, at in point.coordinates.items()}

    def _sizes(self, point: Point, step_size: Tensor) -> Values:
        entries = step_size.unsqueeze(0)
        plates = self.density.plates
        return {name: at.spread(entries, plates) for name, at in point.coordinates.items()}

    def _at(self, values: Values) -> Point:
        with torch.no_grad():
            return self.density(values)

    def _forces(self, values: Values, temperature: float) -> Values:
        leaves = {name: value.detach().requires_grad_() for name, value in values.items()}
        with torch.enable_grad():
            total = self.density(leaves).log_density(temperature).sum()
            grads = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
        forces = {}
        for (name, leaf), grad in zip(leaves.items(), grads, strict=True):
            grad = torch.zeros_like(leaf) if grad is None else grad
            forces[name] = self.scales[name] * grad.nan_to_num(nan=0.0)
        return forces

    def _kinetic(self, point: Point, momenta: Values) -> Tensor:
        plates = self.density.plates
        parts = [at.per_entry(momenta[n] ** 2, plates) for n, at in point.coordinates.items()]
        total: Tensor = 0.5 * torch.stack(parts).sum(0)
        return total

    def _chosen(self, old: Point, new: Point, accepted: Tensor) -> Point:
        plates = self.density.plates
        values = {
            name: torch.where(at.spread(accepted, plates), new.coordinates[name].value, at.value)
            for name, at in old.coordinates.items()
        }
        return self._at(values)
