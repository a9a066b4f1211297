"""A program as densities of unconstrained coordinates, per particle and per datum."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pyro.distributions import Delta
from pyro.distributions.util import scale_and_mask, sum_rightmost
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import biject_to

from ..elbo.costs import SiteCosts
from ..elbo.sites import has_base
from ..site_terms import PARTICLES, Atom
from .ratios import RatioELBO
from .weigher import Batch, Weigher

__all__ = ["Coordinate", "Density", "Point"]


@dataclass(frozen=True, eq=False)
class Coordinate:
    """One site's value with the constraints of its support taken off.

    Args:
        value: The unconstrained value, particles leftmost.
        log_jacobian: Of the map to the constrained one, in the site's batch shape.
        stack: The site's plates, particles included.
    """

    value: Tensor
    log_jacobian: Tensor
    stack: tuple[Any, ...]

    def per_entry(self, values: Tensor, plates: Sequence[str]) -> Tensor:
        """The sum of values in its shape over all but particles and plates."""
        values = sum_rightmost(values, values.dim() - self.log_jacobian.dim())
        return Atom(values, self.stack, 1.0, False).laid_out(plates)

    def spread(self, entries: Tensor, plates: Sequence[str]) -> Tensor:
        """Values for particles and plates, at their places in its shape."""
        events = self.value.dim() - self.log_jacobian.dim()
        frames = [frame for frame in self.stack if frame.name in (PARTICLES, *plates)]
        shape = [1] * self.value.dim()
        for frame, size in zip(sorted(frames, key=lambda f: f.dim), entries.shape, strict=True):
            shape[frame.dim - events] = size
        return entries.reshape(shape)


@dataclass(frozen=True, eq=False)
class Point:
    """The log-densities at some coordinates, with a graph, shape ``[particles, *plates]``.

    Args:
        log_model: The model's, at the constrained values.
        log_guide: The guide's, at the constrained values.
        log_jacobian: Of the map to them.
        coordinates: Where, by the name of the guide's site.
    """

    log_model: Tensor
    log_guide: Tensor
    log_jacobian: Tensor
    coordinates: Mapping[str, Coordinate]

    @property
    def log_ratio(self) -> Tensor:
        """Model over guide."""
        return self.log_model - self.log_guide

    def log_density(self, temperature: float) -> Tensor:
        """Of the coordinates, between the guide at 0 and the model at 1."""
        return self.log_guide + temperature * self.log_ratio + self.log_jacobian


class Density:
    """Evaluates model and guide at coordinates: those of the guide's sites that have a density.

    A ``Delta`` carries minus the log Jacobian of the map to its value.

    Args:
        weigher: The program.
        num_particles: How many points there are at once, at least two.
        plates: The plates whose data are independent.
        batch: The data.
    """

    def __init__(
        self, weigher: Weigher, num_particles: int, plates: Sequence[str], batch: Batch
    ) -> None:
        self.program, self.plates, self._batch = weigher.program, tuple(plates), batch
        self._elbo = RatioELBO(num_particles, weigher.layout.nesting, self._choose)
        layout = weigher.layout
        self._names = layout.inside if plates else (*layout.outside, *layout.inside)
        self._given: Mapping[str, Tensor] = {}
        self._fixed: Mapping[str, Tensor] = {}
        self._found: dict[str, Coordinate] = {}
        self._jacobians: list[Atom] = []

    def __call__(self, values: Mapping[str, Tensor] | None = None) -> Point:
        """The densities at unconstrained values; at new samples of the guide by default."""
        self._given, self._found, self._jacobians = values or {}, {}, []
        args = self.program.model, self.program.guide, self.program.args, self.program.kwargs
        branches = next(iter(self._elbo._get_branches(*args)))
        sites = self._elbo._branch(*branches[0], self.program).sites
        inside = [sites[name] for name in self._names if name in sites]
        model = self._total(inside, "log_likelihood") + self._total(inside, "log_prior")
        log_jacobian: Any = sum(atom.laid_out(self.plates) for atom in self._jacobians)
        return Point(model, -self._total(inside, "log_guide"), log_jacobian, self._found)

    def coordinates_of(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The coordinates of constrained values, the same for each particle.

        Args:
            values: By the name of the guide's site.
        """
        self._fixed = values
        try:
            return {name: at.value for name, at in self().coordinates.items()}
        finally:
            self._fixed = {}

    def _total(self, sites: Sequence[SiteCosts], part: str) -> Any:
        costs = [cost for site in sites for cost in site.parts.get(part, ())]
        atoms = [Atom(cost.value, cost.stack, cost.scale, cost.masked) for cost in costs]
        return sum(atom.laid_out(self.plates) for atom in atoms)

    def _choose(self, msg: Any) -> Tensor | None:
        name, fn = msg["name"], msg["fn"]
        if name in self._batch.indices:
            return self._batch.indices[name]
        stack = msg["cond_indep_stack"]
        if site_is_subsample(msg):
            return None
        if has_base(fn, Delta):
            value = fn(*msg["args"], **msg["kwargs"])
            self._jacobians.append(Atom(-fn.log_prob(value), stack, 1.0, False))
            return value
        transform = biject_to(fn.support)
        if name in self._given:
            value = self._given[name]
            constrained = transform(value)
        else:
            constrained = fn(*msg["args"], **msg["kwargs"])
            if name in self._fixed:
                constrained = self._fixed[name].expand_as(constrained)
            value = transform.inv(constrained)
        jacobian = transform.log_abs_det_jacobian(value, constrained)
        jacobian = sum_rightmost(jacobian, jacobian.dim() - len(fn.batch_shape))
        jacobian = scale_and_mask(jacobian, mask=msg["mask"])
        self._jacobians.append(Atom(jacobian, stack, 1.0, False))
        self._found[name] = Coordinate(value, jacobian, stack)
        return constrained
