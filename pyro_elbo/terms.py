r"""What the bound is made of: per site, per plate, and as a whole.

Per latent site two numbers are kept, :math:`E_q[\log p(z)]` and :math:`E_q[\log q(z)]`; their
difference is the KL, and everything else follows, so the three views of one record agree:

.. math::
    \mathrm{ELBO} = E_q[\log p(x \mid z)] - \mathrm{KL}(q \,\|\, p(z))
                  = E_q[\log p(x, z)] + H[q]
                  = \log p(x) - \mathrm{KL}(q \,\|\, p(z \mid x)).

Nothing is reduced until it is read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from .importance import importance_bound, why_no_bound
from .site_terms import SiteTerms, sum_of
from .tables import terms_table
from .views import EvidenceGap, JointEntropy, PlateTerms, ReconstructionKL, Totals

__all__ = ["ELBOTerms", "EvidenceGap", "JointEntropy", "PlateTerms", "ReconstructionKL"]


@dataclass(frozen=True, eq=False)
class ELBOTerms(Totals):
    r"""The terms of one evaluation: detached 0-dim tensors in nats, summed over the data set.

    Plate and user scales are included. Read ``reconstruction``, ``kl``, ``weighted_kl``,
    ``expected_log_joint``, ``entropy``, ``expected_log_prior``, ``elbo``, ``objective`` and
    ``factors``; per site from ``sites``; per datum from :meth:`per_datum`; or one of the three
    views. ``print`` shows them as a table.

    Args:
        sites: The terms of each site, by name.
        objective: What the loss maximised, with its own weights.
        indices: The indices of each plate's data (``None`` where particles saw different data).
        default_beta: The weight of a program without latents.
        known_evidence: :math:`\log p(x)`, where the loss was told.

    Law:
        ``reconstruction_kl.elbo``, ``joint_entropy.elbo`` and ``evidence_gap(v).elbo`` are equal to
        rounding, for every ``v``; ``objective == reconstruction - weighted_kl`` for all views of
        this package.

    Example:
        >>> import torch, pyro, pyro.distributions as dist
        >>> from pyro_elbo import TraceKL_ELBO
        >>> def model():
        ...     z = pyro.sample("z", dist.Normal(0., 1.))
        ...     pyro.sample("x", dist.Normal(z, 1.), obs=torch.tensor(0.))
        >>> def guide():
        ...     pyro.sample("z", dist.Normal(1., 1.))
        >>> terms = TraceKL_ELBO().decompose(model, guide)
        >>> terms.kl, terms.sites["z"].how["kl"]
        (tensor(0.5000), 'exact')
        >>> torch.isclose(terms.reconstruction_kl.elbo, terms.joint_entropy.elbo)
        tensor(True)
    """

    sites: Mapping[str, SiteTerms]
    objective: Tensor
    indices: Mapping[str, Tensor | None]
    default_beta: Any = 1.0
    known_evidence: Tensor | None = None

    @cached_property
    def num_particles(self) -> int:
        """How many particles the terms are averaged over."""
        return max((site.num_particles for site in self.sites.values()), default=1)

    @cached_property
    def num_data(self) -> int:
        """How many data there are, where all observed sites share one plate; 0 where not."""
        observed = [site for site in self.sites.values() if site.role == "observed"]
        shared = [set(site.plates) for site in observed]
        plates = set.intersection(*shared) if shared else set()
        if len(plates) != 1:
            return 0
        frame = observed[0].frame(plates.pop())
        return int(frame.size if frame.full_size is None else frame.full_size)

    @cached_property
    def reconstruction(self) -> Tensor:
        r""":math:`E_q[\log p(x \mid z)]`: all likelihoods, and the model's factors."""
        return self._total("log_likelihood")

    @cached_property
    def factors(self) -> Tensor:
        """The share of the model's ``pyro.factor`` sites in the reconstruction."""
        factors = [site for site in self.sites.values() if site.role == "factor"]
        return self._total("log_likelihood", factors)

    @cached_property
    def expected_log_prior(self) -> Tensor:
        r""":math:`E_q[\log p(z)]`."""
        return self._total("log_prior")

    @cached_property
    def expected_log_guide(self) -> Tensor:
        r""":math:`E_q[\log q(z)]`, minus the entropy."""
        return self._total("log_guide")

    @cached_property
    def kl(self) -> Tensor:
        r""":math:`E_q[\log q(z) - \log p(z)]`, unweighted. Negative on some samples."""
        return self._total("kl")

    @cached_property
    def weighted_kl(self) -> Tensor:
        r""":math:`\sum_s \beta_s \mathrm{KL}_s`; a term of weight 0 is dropped."""
        return self._total("weighted_kl")

    @property
    def beta(self) -> Any:
        """The weight, if all latents share one.

        Raises:
            ValueError: The latents have different weights.
        """
        betas = [site.beta for site in self.sites.values() if site.beta is not None]
        if any(beta != betas[0] for beta in betas[1:]):
            raise ValueError(
                "the latents have different weights, so terms.beta is ambiguous; read "
                "terms.sites[name].beta"
            )
        return betas[0] if betas else self.default_beta

    @property
    def reconstruction_kl(self) -> ReconstructionKL:
        """Reconstruction minus prior KL (the VAE's view)."""
        return ReconstructionKL(self.reconstruction, self.kl)

    @property
    def joint_entropy(self) -> JointEntropy:
        """Expected joint plus entropy (EM's view)."""
        return JointEntropy(self.expected_log_joint, self.entropy)

    def evidence_gap(self, log_evidence: float | Tensor | None = None) -> EvidenceGap:
        r"""Evidence minus posterior KL.

        Args:
            log_evidence: :math:`\log p(x)` in nats. By default the value that the loss was given,
                else the particles' own importance-weighted bound, and the gap is then a
                lower bound of itself in expectation.

        Raises:
            ValueError: No evidence is known, and the particles give no bound.
        """
        evidence = self.known_evidence if log_evidence is None else log_evidence
        if evidence is None:
            evidence, why = self.importance_bound, self.no_bound
            if why:
                raise ValueError(
                    "log p(x) is not known, and the importance-weighted bound cannot stand in for "
                    f"it: {why}; pass evidence_gap(log_evidence=...)"
                )
        evidence = torch.as_tensor(evidence, dtype=self.elbo.dtype, device=self.elbo.device)
        return EvidenceGap(evidence, evidence - self.elbo)

    @cached_property
    def importance_bound(self) -> Tensor:
        r"""The importance-weighted bound of the particles (IWAE), at :math:`\beta = 1`.

        :math:`\sum_n \log \frac1S \sum_s p(x_n, z_{ns}) / q(z_{ns})` where every site is inside
        a plate, over the joint otherwise. It is nan where it would be no bound, and ``no_bound``
        says why: one particle, a point mass, a guide site without a prior, a mask on some sites
        only, a user's scale, subsampling inside of the sum, or sequential particles that each
        drew their own minibatch.

        References:
            *Importance Weighted Autoencoders* (Burda, Grosse & Salakhutdinov, 2015),
            arXiv 1509.00519.
        """
        if self.no_bound:
            return self.objective.new_full((), torch.nan)
        return importance_bound(list(self.sites.values()))

    @cached_property
    def no_bound(self) -> str | None:
        """Why ``importance_bound`` is nan; ``None`` where it is a bound."""
        return why_no_bound(list(self.sites.values()), self.indices)

    @cached_property
    def standard_error(self) -> Mapping[str, Tensor]:
        """Standard error of each term over particles, by name; nan for one particle.

        Given the minibatch, where particles share it (``vectorize_particles=True``): the error of
        subsampling is then no part of it, and can be many times larger. The entry
        ``objective`` is that of reconstruction minus weighted KL.

        References:
            *Monte Carlo theory, methods and examples* (Owen, 2013), chapter 2.
        """
        rec = self._per_particle("log_likelihood")
        prior, guide = self._per_particle("log_prior"), self._per_particle("log_guide")
        kl, weighted = self._per_particle("kl"), self._per_particle("weighted_kl")
        samples = {
            "reconstruction": rec,
            "kl": kl,
            "weighted_kl": weighted,
            "expected_log_joint": rec + prior,
            "entropy": guide,
            "expected_log_prior": prior,
            "elbo": rec - kl,
            "objective": rec - weighted,
        }
        return {name: _standard_error(values) for name, values in samples.items()}

    def per_datum(self, plate: str) -> PlateTerms:
        """Each datum's own terms inside a plate.

        Args:
            plate: Name of a plate.

        Raises:
            ValueError: No site is inside such a plate, the guide's density over the plate sits in a
                joint site outside of it, or the particles saw different minibatches.

        Sites outside the plate are in no datum's terms: where the likelihood is in another plate,
        the reconstruction is 0 here.

        Law:
            ``scale`` times the sum of an entry, plus the sites outside the plate, is the total.
        """
        inside = [site for site in self.sites.values() if plate in site.plates]
        self._check_plate(plate, inside)
        frame = inside[0].frame(plate)
        scale = frame.full_size / frame.size
        parts = {
            part: sum(
                (site.per_particle(part, (plate,)).mean(0) for site in inside),
                start=self.elbo.new_zeros(()),
            )
            / scale
            for part in ("log_likelihood", "log_prior", "log_guide", "kl", "weighted_kl")
        }
        indices = self.indices[plate]
        assert indices is not None
        return PlateTerms(plate, indices, scale, *parts.values())

    def __str__(self) -> str:
        return terms_table(self)

    __repr__ = __str__

    def _total(self, part: str, sites: Iterable[SiteTerms] | None = None) -> Tensor:
        chosen = self.sites.values() if sites is None else sites
        return sum_of([site.total(part) for site in chosen], self.objective.new_zeros(()))

    def _per_particle(self, part: str) -> Tensor:
        zero = self.objective.new_zeros(self.num_particles)
        return sum((site.per_particle(part, ()) for site in self.sites.values()), start=zero)

    def _check_plate(self, plate: str, inside: list[SiteTerms]) -> None:
        for site in self.sites.values():
            if site.role == "joint" and plate in site.member_plates:
                raise ValueError(
                    f"per_datum({plate!r}): the guide's density of {', '.join(site.members)} "
                    f"sits in the joint site {site.name!r}, so no datum has its own; use a guide "
                    "that samples inside the plate, such as AutoNormal"
                )
        if not inside:
            plates = sorted({name for site in self.sites.values() for name in site.plates})
            raise ValueError(f"no site is inside a plate {plate!r}; the plates are: {plates}")
        if self.indices.get(plate) is None:
            raise ValueError(
                f"per_datum({plate!r}): the sequential particles drew different minibatches; use "
                "vectorize_particles=True, or num_particles=1"
            )


def _standard_error(values: Tensor) -> Tensor:
    if len(values) < 2:
        return values.new_full((), torch.nan)
    return values.std(0) / len(values) ** 0.5
