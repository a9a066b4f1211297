"""The bound's three views, and the terms that follow from the kept ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

__all__ = ["EvidenceGap", "JointEntropy", "PlateTerms", "ReconstructionKL", "Totals"]


class ReconstructionKL(NamedTuple):
    r"""View 3: :math:`E_q[\log p(x \mid z)] - \mathrm{KL}(q \| p(z))`, in nats."""

    reconstruction: Tensor
    kl: Tensor

    @property
    def elbo(self) -> Tensor:
        """The bound."""
        return self.reconstruction - self.kl


class JointEntropy(NamedTuple):
    r"""View 2: :math:`E_q[\log p(x, z)] + H[q]`, in nats."""

    expected_log_joint: Tensor
    entropy: Tensor

    @property
    def elbo(self) -> Tensor:
        """The bound."""
        return self.expected_log_joint + self.entropy


class EvidenceGap(NamedTuple):
    r"""View 1: :math:`\log p(x) - \mathrm{KL}(q \| p(z \mid x))`, in nats."""

    log_evidence: Tensor
    gap: Tensor

    @property
    def elbo(self) -> Tensor:
        """The bound."""
        return self.log_evidence - self.gap


class Totals:
    """The terms that follow from reconstruction, log prior, log guide and weighted KL."""

    if TYPE_CHECKING:

        @property
        def reconstruction(self) -> Tensor: ...  # noqa: D102
        @property
        def expected_log_prior(self) -> Tensor: ...  # noqa: D102
        @property
        def expected_log_guide(self) -> Tensor: ...  # noqa: D102
        @property
        def kl(self) -> Tensor: ...  # noqa: D102

    @property
    def expected_log_likelihood(self) -> Tensor:
        """Another name of ``reconstruction``."""
        return self.reconstruction

    @property
    def entropy(self) -> Tensor:
        r""":math:`-E_q[\log q(z)]`; a point mass counts 0 by convention."""
        return -self.expected_log_guide

    @property
    def expected_log_joint(self) -> Tensor:
        r""":math:`E_q[\log p(x, z)]`."""
        return self.reconstruction + self.expected_log_prior

    @property
    def elbo(self) -> Tensor:
        """The bound itself, at weight 1 whatever the weights of the objective."""
        return self.reconstruction - self.kl


@dataclass(frozen=True)
class PlateTerms(Totals):
    """Each datum's own terms inside one plate, the plate's scale divided out.

    All values have the plate's size as their only dim and are in nats, averaged over particles.
    Sites outside the plate are not in here.

    Args:
        plate: Name of the plate.
        indices: The data that the entries belong to, in order.
        scale: What an entry counts in the totals: the plate's full size over its size.
        reconstruction: Log-likelihood of each datum.
        expected_log_prior: Log prior of each datum's latents.
        expected_log_guide: Log guide of each datum's latents.
        kl: The KL of each datum's latents. Negative on some samples.
        weighted_kl: The KL under the weights of the objective.
    """

    plate: str
    indices: Tensor
    scale: float
    reconstruction: Tensor
    expected_log_prior: Tensor
    expected_log_guide: Tensor
    kl: Tensor
    weighted_kl: Tensor

    @property
    def objective(self) -> Tensor:
        """Reconstruction minus the weighted KL."""
        return self.reconstruction - self.weighted_kl
