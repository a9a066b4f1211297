"""The terms of one site, as recorded, and laid out by plate when they are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from math import prod
from operator import add
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["PARTICLES", "Atom", "SiteTerms", "Sites", "sum_of"]

PARTICLES = "num_particles_vectorized"


class Atom(NamedTuple):
    """One recorded log-density.

    Args:
        value: Detached, in nats, under its own scale and mask, without the weight.
        stack: The plates (Pyro's frames) that it was computed in.
        scale: Its scale: the product of plate scales and the user's.
        masked: Whether it has a mask.
        event_dim: How many dims on its right are those of one event.
    """

    value: Tensor
    stack: tuple[Any, ...]
    scale: Any
    masked: bool
    event_dim: int = 0

    @property
    def frames(self) -> dict[str, Any]:
        """The vectorised plates by name, left to right, particles included."""
        vectorised = [frame for frame in self.stack if frame.dim is not None]
        return {frame.name: frame for frame in sorted(vectorised, key=lambda frame: frame.dim)}

    @property
    def user_scale(self) -> Any:
        """The scale without the plates' own."""
        return self.scale / prod(subsampling(frame) for frame in self.stack)

    @property
    def total(self) -> Tensor:
        """The sum of the value, averaged over vectorised particles."""
        frame = self.frames.get(PARTICLES)
        if frame is None or self.value.dim() < self.event_dim - frame.dim:
            return self.value.sum()
        return self.value.sum() / self.value.shape[frame.dim - self.event_dim]

    def laid_out(self, plates: Sequence[str]) -> Tensor:
        """The value with shape ``(particles, *plates, *event)``, summed over every other dim."""
        frames = self.frames
        depth = max([self.value.dim(), *(self.event_dim - frame.dim for frame in frames.values())])
        value = self.value.reshape((1,) * (depth - self.value.dim()) + self.value.shape)
        kept = [frames[name].dim for name in (PARTICLES, *plates) if name in frames]
        kept = [dim - self.event_dim for dim in kept] + list(range(-self.event_dim, 0))
        summed = [dim for dim in range(-depth, 0) if dim not in kept]
        value = value.sum(summed) if summed else value
        value = value.permute([sorted(kept).index(dim) for dim in kept])
        return value if PARTICLES in frames else value.unsqueeze(0)


def sum_of(values: Sequence[Tensor], zero: Tensor) -> Tensor:
    """The sum of zero and some tensors; zero is left out where it has no say in the dtype."""
    if values and values[0].dtype == zero.dtype:
        return reduce(add, values)
    return sum(values, start=zero)


def subsampling(frame: Any) -> float:
    """What one entry of a plate counts: its full size over its size."""
    return 1.0 if frame.full_size is None else frame.full_size / frame.size


@dataclass(frozen=True, eq=False)
class SiteTerms:
    """The terms of one site, or of one group of sites whose density cannot be split.

    ``log_likelihood``, ``log_prior``, ``log_guide``, ``kl`` and ``weighted_kl`` are averaged over
    particles, shaped by ``plates``, in nats, with the site's scale and mask.

    Args:
        name: The site, or the guide's joint site.
        role: ``"observed"``, ``"latent"``, ``"joint"`` (one auxiliary guide site and the model's
            sites computed from it), ``"factor"`` or ``"map"`` (a point mass).
        beta: The weight of the KL; ``None`` at observed sites.
        how: How ``log_prior``, ``log_guide`` and ``kl`` were had: ``"exact"``, ``"sampled"`` or
            ``"enumerated"``.
        why: The reason for that, in words.
        gradient: How the gradient is had: ``"direct"``, ``"pathwise"``, ``"score function"`` or
            ``"enumerated"``.
        members: The sites of the group.
        particles: The recorded atoms, one mapping for each sequential particle (or one mapping for
            all vectorised particles).
        is_density: Whether the guide has a density over all of its dimensions; it has none over a
            point mass.
    """

    name: str
    role: str
    beta: Any
    how: Mapping[str, str]
    why: str
    gradient: str
    members: tuple[str, ...]
    particles: tuple[Mapping[str, tuple[Atom, ...]], ...]
    is_density: bool = True

    @property
    def log_likelihood(self) -> Tensor:
        """Log-likelihood of an observed site, or a model factor; 0 at latents."""
        return self._mean("log_likelihood")

    @property
    def log_prior(self) -> Tensor:
        r""":math:`E_q[\log p(z)]` given the site's parents; 0 at observed sites."""
        return self._mean("log_prior")

    @property
    def log_guide(self) -> Tensor:
        r""":math:`E_q[\log q(z)]` given the site's parents; 0 at observed sites."""
        return self._mean("log_guide")

    @property
    def kl(self) -> Tensor:
        """Log guide minus log prior."""
        return self._mean("kl")

    @property
    def kl_per_dimension(self) -> Tensor:
        """The KL of each dim of the event, shaped by ``plates`` and the event; it sums to ``kl``.

        Raises:
            ValueError: The KL was not had in closed form from two independent distributions.
        """
        if not all("kl_per_dimension" in parts for parts in self.particles):
            raise ValueError(
                f"site {self.name!r} has no KL of each dim: that needs a KL in closed form (as in "
                "TraceKL_ELBO) of distributions that are independent over the event (.to_event()), "
                "on both sides"
            )
        return self._mean("kl_per_dimension")

    @property
    def weighted_kl(self) -> Tensor:
        """The weight times the KL, dropped where the weight is 0."""
        return self._mean("weighted_kl")

    @cached_property
    def atoms(self) -> tuple[Atom, ...]:
        """Everything recorded at the site."""
        return tuple(atom for parts in self.particles for atoms in parts.values() for atom in atoms)

    @property
    def has_prior(self) -> bool:
        """Whether the model has a density for the group."""
        return any("log_prior" in parts for parts in self.particles)

    @cached_property
    def plates(self) -> tuple[str, ...]:
        """Names of the plates that all of the site's terms share, left to right."""
        common = set.intersection(*(set(atom.frames) for atom in self.atoms)) - {PARTICLES}
        return tuple(name for name in self.atoms[0].frames if name in common)

    @cached_property
    def member_plates(self) -> frozenset[str]:
        """Names of the plates that any of the site's terms is in."""
        return frozenset(name for atom in self.atoms for name in atom.frames) - {PARTICLES}

    @property
    def is_nan(self) -> bool:
        """Whether anything recorded at the site is nan."""
        return any(bool(atom.value.isnan().any()) for atom in self.atoms)

    @cached_property
    def num_particles(self) -> int:
        """How many particles were recorded."""
        return len(self.per_particle("kl", ()))

    def frame(self, plate: str) -> Any:
        """Pyro's frame of one of the site's plates."""
        return self.atoms[0].frames[plate]

    def total(self, part: str) -> Tensor:
        """One term as a 0-dim tensor: summed over plates, averaged over particles."""
        if part not in self._totals:
            self._totals[part] = self._summed(part)
        return self._totals[part]

    def per_particle(self, part: str, plates: Sequence[str]) -> Tensor:
        """One term with shape ``(particles, *plates)``, summed over every other dim."""
        if part == "kl" and not all(part in parts for parts in self.particles):
            return self.per_particle("log_guide", plates) - self.per_particle("log_prior", plates)
        if part == "weighted_kl":
            if self._is_dropped:
                return torch.zeros_like(self.per_particle("log_prior", plates))
            return self._weigh(self.per_particle("kl", plates))
        return torch.cat([self._laid_out(parts, part, plates) for parts in self.particles])

    def _summed(self, part: str) -> Tensor:
        if part == "kl" and not all(part in parts for parts in self.particles):
            return self.total("log_guide") - self.total("log_prior")
        if part == "weighted_kl":
            return self._zero if self._is_dropped else self._weigh(self.total("kl"))
        atoms = [atom for parts in self.particles for atom in parts.get(part, ())]
        return sum_of([atom.total for atom in atoms], self._zero) / len(self.particles)

    @cached_property
    def _totals(self) -> dict[str, Tensor]:
        return {}

    @property
    def _zero(self) -> Tensor:
        return self.atoms[0].value.new_zeros(())

    @property
    def _is_dropped(self) -> bool:
        """Whether there is no KL, or one of weight 0."""
        return self.beta is None or (isinstance(self.beta, (int, float)) and self.beta == 0)

    def _weigh(self, kl: Tensor) -> Tensor:
        """The weight times a KL, in its precision also where the weight is an input of a graph."""
        beta = self.beta.to(kl.dtype) if isinstance(self.beta, Tensor) else self.beta
        weighted: Tensor = beta * kl
        return weighted

    def _laid_out(
        self, parts: Mapping[str, tuple[Atom, ...]], part: str, plates: Sequence[str]
    ) -> Tensor:
        if part in parts:
            return torch.stack([atom.laid_out(plates) for atom in parts[part]]).sum(0)
        like = next(iter(parts.values()), self.atoms[:1])[0].laid_out(plates)
        return torch.zeros_like(like)

    def _mean(self, part: str) -> Tensor:
        sizes = {tuple(atom.frames[name].size for name in self.plates) for atom in self.atoms}
        if len(sizes) > 1:
            raise ValueError(
                f"site {self.name!r}: the sizes of its plates {self.plates} differ over particles; "
                "read the totals, or evaluate with num_particles=1"
            )
        return self.per_particle(part, self.plates).mean(0)


class Sites(dict[str, SiteTerms]):
    """The terms of each site by name; a member of a group is found at the group's name only."""

    def __missing__(self, name: str) -> SiteTerms:
        for site in self.values():
            if name in site.members:
                raise KeyError(
                    f"site {name!r} has no terms of its own: it is part of {site.name!r} "
                    f"({', '.join(site.members)})"
                )
        raise KeyError(f"no site {name!r}; the sites are {list(self)}")
