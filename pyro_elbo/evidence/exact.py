r"""The evidence itself, where the model's latents can be summed out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from pyro import poutine
from pyro.infer import config_enumerate

from ..elbo.traces import sample_sites
from ..errors import UnsupportedSiteError
from .estimate import EvidenceEstimate
from .modes import in_eval_mode
from .results import of_data
from .weigher import Weigher
from .weights import LogWeights

__all__ = ["Enumeration"]


@dataclass(frozen=True)
class Enumeration:
    r"""The exact evidence of a model whose latents are all discrete and finite.

    .. math:: \log p(x) = \log \sum_z p(x, z)

    The sum goes by the model's structure (plates, ``pyro.markov``), as in
    :class:`pyro.infer.TraceEnum_ELBO`. Scales are left out, masks hold.

    Args:
        plate: The plate whose data are independent; by default it is found.

    Raises:
        UnsupportedSiteError: A latent cannot be enumerated; or data share a latent, and the plate
            is subsampled by arguments, so that one run does not see them all.

    Law:
        No sample is drawn: the standard error is 0, but where only a minibatch can be seen.

    Example:
        >>> import torch, pyro, pyro.distributions as dist
        >>> from pyro_elbo import evidence
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         c = pyro.sample("c", dist.Bernoulli(0.5))
        ...         pyro.sample("x", dist.Normal(2 * c, 1.), obs=x)
        >>> print(evidence.Enumeration().estimate(model, None, torch.tensor([0., 2.])))
        log p(x) = -2.9703 nats (exact)

    References:
        *Tensor Variable Elimination for Plated Factor Graphs* (Obermeyer et al., 2019),
        arXiv 1902.03210.
    """

    plate: str | None = None

    @torch.no_grad()
    def estimate(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> EvidenceEstimate:
        """Sum the latents out.

        Args:
            model: The model.
            guide: Unused; every estimator takes one.
            *args: What the model takes.
            **kwargs: What the model takes.
        """
        _check_discrete(model, args, kwargs)
        enumerated = config_enumerate(model, default="parallel")
        with in_eval_mode(model):
            return self._summed(Weigher(enumerated, _nothing, args, kwargs, self.plate))

    def _summed(self, weigher: Weigher) -> EvidenceEstimate:
        batches = weigher.batches()
        weights = []
        constant: Any = 0.0
        for batch in batches:
            outside, inside = weigher.run(1, 1, batch)
            weights.append(LogWeights(1))
            weights[-1].add(batch.keep(inside[:, 0]))
            constant = outside[0]
        estimate = of_data(weigher.layout, batches, weights, constant)
        return replace(estimate, bound="exact")


def _nothing(*args: Any, **kwargs: Any) -> None:
    """The guide of a model without latents that are left."""


def _check_discrete(model: Any, args: Any, kwargs: Any) -> None:
    trace = poutine.trace(model).get_trace(*args, **kwargs)
    for name, site in sample_sites(trace).items():
        if not site["is_observed"] and not site["fn"].has_enumerate_support:
            raise UnsupportedSiteError(
                name,
                "it has no finite support to enumerate",
                "use evidence.ImportanceWeighting or evidence.AnnealedImportance",
            )
