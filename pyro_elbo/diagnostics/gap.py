r"""How far the ELBO is below the evidence: :math:`\mathrm{KL}(q \,\|\, p(z \mid x))`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..evidence import (
    BidirectionalMonteCarlo,
    EvidenceEstimate,
    EvidenceInterval,
    ImportanceWeighting,
)
from ..evidence.mean_ratio import MeanLogRatio

__all__ = ["DatumGap", "EvidenceGapEstimate", "evidence_gap"]


@dataclass(frozen=True, eq=False)
class DatumGap:
    """The gap of each datum, in nats, without any scale.

    Args:
        plates: Names of the plates, in the order of the dims.
        value: The gaps, one dim for each plate.
        standard_error: Their Monte Carlo errors.
        indices: The data's indices in the one plate; ``None`` for several.
    """

    plates: tuple[str, ...]
    value: Tensor
    standard_error: Tensor
    indices: Tensor | None = None


@dataclass(frozen=True, eq=False)
class EvidenceGapEstimate:
    r"""The gap of a guide: 0-dim tensors in nats, of the whole data set.

    Args:
        evidence: The evidence.
        elbo: The ELBO, as the loosest bound of it.
        simulated: Both bounds of the evidence of simulated data, where asked for.

    Where the evidence is a lower bound, so is the gap.
    """

    evidence: EvidenceEstimate
    elbo: EvidenceEstimate
    simulated: EvidenceInterval | None = None

    @property
    def value(self) -> Tensor:
        """Evidence minus ELBO."""
        return self.evidence.value - self.elbo.value

    @property
    def standard_error(self) -> Tensor:
        """The errors of the two, whose samples are independent, together.

        Of a minibatch that both are scaled up from, it is that of its gaps: how far the data
        themselves are apart is on both sides.
        """
        minibatch = self.evidence.minibatch
        if minibatch is not None and minibatch == self.elbo.minibatch and not self._why_no_datum:
            return minibatch.standard_error(self.per_datum.value, self.per_datum.standard_error)
        return torch.hypot(self.evidence.standard_error, self.elbo.standard_error)

    @property
    def per_datum(self) -> DatumGap:
        """The gap of each datum.

        Raises:
            ValueError: The data are dependent.
        """
        if self._why_no_datum:
            raise ValueError(f"no datum has a gap of its own: {self._why_no_datum}")
        evidence, elbo = self.evidence.per_datum, self.elbo.per_datum
        assert evidence is not None and elbo is not None
        return DatumGap(
            elbo.plates,
            evidence.value - elbo.value,
            torch.hypot(evidence.standard_error, elbo.standard_error),
            elbo.indices,
        )

    @property
    def _why_no_datum(self) -> str:
        sides = self.evidence, self.elbo
        plates = [None if side.per_datum is None else side.per_datum.plates for side in sides]
        if None in plates:
            return next(side.why_no_datum for side in sides if side.per_datum is None)
        if plates[0] != plates[1]:
            return f"the evidence is of data in the plates {plates[0]}, the ELBO in {plates[1]}"
        return ""

    def __str__(self) -> str:
        sign = "=" if self.evidence.bound == "exact" else "≥"
        lines = [
            f"gap {sign} {self.value:.4f} ± {self.standard_error:.4f} nats",
            f"  {self.evidence}".replace("\n", "\n  "),
            f"  ELBO = {self.elbo.value:.4f} ± {self.elbo.standard_error:.4f} nats",
        ]
        if self.elbo.why_infinite:
            lines.append(f"  {self.elbo.why_infinite}")
        if self.simulated is not None:
            lines.append(f"  {self.simulated}")
        return "\n".join(lines)


def evidence_gap(
    model: Any,
    guide: Any,
    *args: Any,
    estimator: Any = None,
    num_samples: int = 1000,
    simulated: BidirectionalMonteCarlo | None = None,
    progress: bool = True,
    **kwargs: Any,
) -> EvidenceGapEstimate:
    r"""How far the ELBO of a guide is below the evidence.

    .. math:: \log p(x) - \mathrm{ELBO} = \mathrm{KL}(q(z) \,\|\, p(z \mid x)) \ge 0

    Both are of the model as it stands, at :math:`\beta = 1` and without scales. On given data the
    evidence is a lower bound (unless it is enumerated), and the gap at least what is printed. Of a
    minibatch beyond which the data cannot be reached, both are scaled up.

    Args:
        model: The model.
        guide: A guide with a density over each of its latents.
        *args: What both take.
        estimator: What estimates the evidence; :class:`~pyro_elbo.evidence.ImportanceWeighting`
            with ``num_samples`` by default.
        num_samples: Samples for the ELBO.
        simulated: How to bound the evidence of simulated data from both sides, to be shown beside.
        progress: Whether work of over a second shows a bar, where the estimator does.
        **kwargs: What both take.

    Returns:
        The gap, in total and per datum.

    Raises:
        ValueError: As the estimator.
        TypeError: ``estimator`` or ``simulated`` has no ``estimate``.
        UnsupportedSiteError: As the estimator.

    Law:
        With the exact evidence its mean is the KL of the guide to the posterior; with the posterior
        as guide it is 0 with every sample.

    Example:
        >>> import torch, pyro, pyro.distributions as dist
        >>> from pyro_elbo import diagnostics
        >>> _ = pyro.set_rng_seed(0)
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0., 1.))
        ...         pyro.sample("x", dist.Normal(z, 1.), obs=x)
        >>> def guide(x):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(x / 2, 1.))
        >>> gap = diagnostics.evidence_gap(model, guide, torch.tensor([0.5, -1.0]))
        >>> exact = 1 - torch.tensor(2.).log()  # two data of (2 - 1 - log 2) / 2 each
        >>> bool((gap.value - exact).abs() < 5 * gap.standard_error)
        True

    References:
        *Inference Suboptimality in Variational Autoencoders* (Cremer, Li & Duvenaud, 2018),
        arXiv 1801.03558.
    """
    if estimator is None:
        estimator = ImportanceWeighting(num_samples, progress=progress)
    for name, one in (("estimator", estimator), ("simulated", simulated)):
        if one is not None and not callable(getattr(one, "estimate", None)):
            raise TypeError(f"{name} must be one of pyro_elbo.evidence, not {one!r}")
    options: dict[str, Any] = {"plate": None, "chunk_size": None, "progress": True}
    options = {name: getattr(estimator, name, default) for name, default in options.items()}
    options["progress"] = progress and options["progress"]
    bound = MeanLogRatio(num_samples=num_samples, **options)
    elbo = bound.estimate(model, guide, *args, **kwargs)
    evidence = estimator.estimate(model, guide, *args, **kwargs)
    interval = None if simulated is None else simulated.estimate(model, guide, *args, **kwargs)
    return EvidenceGapEstimate(evidence, elbo, interval)
