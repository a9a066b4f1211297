r"""Bidirectional Monte Carlo: an interval that holds :math:`\log p(x)`, on simulated data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from ..errors import UnsupportedSiteError
from .annealed import AnnealedImportance, check_continuous, prior_of
from .estimate import EvidenceEstimate
from .modes import in_eval_mode
from .results import of_data, of_joint
from .simulation import Arguments, Values, simulate
from .weigher import Weigher
from .weights import LogWeights

__all__ = ["BidirectionalMonteCarlo", "EvidenceInterval"]


@dataclass(frozen=True, eq=False)
class EvidenceInterval:
    r"""Two bounds of the evidence of one simulated data set, in nats.

    Args:
        lower: Annealed from the start to the posterior.
        upper: Annealed from the exact posterior sample back to the start; its error is given that
            one sample, from which all particles start.
        data: The simulated data, by observed site.
    """

    lower: EvidenceEstimate
    upper: EvidenceEstimate
    data: Mapping[str, Tensor]

    @property
    def width(self) -> Tensor:
        """How loose the two bounds are together."""
        return self.upper.value - self.lower.value

    def contains(self, log_evidence: float | Tensor, num_standard_errors: float = 2.0) -> bool:
        """Whether a value lies between the bounds, each moved out by its error."""
        low = self.lower.value - num_standard_errors * self.lower.standard_error
        high = self.upper.value + num_standard_errors * self.upper.standard_error
        return bool((low <= log_evidence) & (log_evidence <= high))

    def __str__(self) -> str:
        return (
            f"{self.lower.value:.4f} ± {self.lower.standard_error:.4f} ≤ log p(x) ≤ "
            f"{self.upper.value:.4f} ± {self.upper.standard_error:.4f} nats, on simulated data"
        )


@dataclass(frozen=True)
class BidirectionalMonteCarlo:
    r"""How far annealing is from the truth, on data that the model itself simulates.

    A run of the model gives data and an exact sample of their posterior. Annealing from the prior
    bounds their evidence from below; annealing from that sample back bounds it from above:

    .. math::
        E\Big[\log \frac1S \sum_s w_s\Big] \le \log p(x) \le
        E\Big[-\log \frac1S \sum_s w_s'^{-1}\Big].

    On given data there is no exact posterior sample, and so no upper bound: the interval says how
    loose the lower bound is on data like them, where the model is right.

    Args:
        annealing: How to anneal.
        arguments: From the simulated data, by observed site, to the arguments of model and guide;
            by default an argument that equals an observed value is replaced by what was simulated.

    Raises:
        UnsupportedSiteError: As in :class:`AnnealedImportance`; or a factor in the model, which no
            data follow; or a guide with auxiliary sites.
        ValueError: A plate is subsampled; or the model uses its data for more than it observes.

    Law:
        The upper bound minus the lower is at least 0 in expectation, and goes to 0 with the number
        of temperatures.

    Example:
        >>> import torch, pyro, pyro.distributions as dist
        >>> from pyro_elbo import evidence
        >>> _ = pyro.set_rng_seed(0)
        >>> def model(x):
        ...     z = pyro.sample("z", dist.Normal(0., 1.))
        ...     pyro.sample("x", dist.Normal(z, 0.1), obs=x)
        >>> annealing = evidence.AnnealedImportance(20, num_temperatures=30, start="prior")
        >>> bidirectional = evidence.BidirectionalMonteCarlo(annealing)
        >>> interval = bidirectional.estimate(model, None, torch.tensor(1.0))
        >>> exact = dist.Normal(0., 1.01 ** 0.5).log_prob(interval.data["x"])
        >>> interval.contains(exact, num_standard_errors=5)
        True

    References:
        *Sandwiching the marginal likelihood using bidirectional Monte Carlo* (Grosse, Ghahramani &
        Adams, 2015), arXiv 1511.02543.
    """

    annealing: AnnealedImportance = field(default_factory=lambda: AnnealedImportance(start="prior"))
    arguments: Callable[[Values], Arguments] | None = None

    def estimate(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> EvidenceInterval:
        """Bound the evidence of data that are simulated at the given arguments.

        Args:
            model: The model.
            guide: A guide; unused where annealing starts at the prior.
            *args: What both take.
            **kwargs: What both take.
        """
        with in_eval_mode(model, guide):
            return self._estimate(model, guide, args, kwargs)

    def _estimate(self, model: Any, guide: Any, args: Any, kwargs: Any) -> EvidenceInterval:
        drawn = simulate(model, args, kwargs, self.arguments)
        start = guide if self.annealing.start == "guide" else prior_of(drawn.model)
        weigher = Weigher(drawn.model, start, drawn.args, drawn.kwargs, self.annealing.plate)
        _check(weigher, drawn.latents)
        num_samples = self.annealing.num_samples
        with self.annealing.bar(3) as bar:
            run = self.annealing.run(weigher, weigher.batches()[0], bar)
            lower, upper = run.forward(num_samples), run.backward(drawn.latents, num_samples)
        below, above = _estimate(weigher, lower, 1), _estimate(weigher, -upper, -1)
        return EvidenceInterval(below, _negated(above), drawn.data)


def _check(weigher: Weigher, latents: Values) -> None:
    layout = weigher.layout
    check_continuous(weigher)
    if layout.subsampled is not None:
        raise ValueError(
            f"plate {layout.subsampled!r} is subsampled; simulate with the full data "
            "(subsample_size=None)"
        )
    for name in sorted((layout.shared | layout.local) - latents.keys()):
        raise UnsupportedSiteError(
            name,
            "it is no latent of the model, so that its value at the posterior sample is not known",
            "anneal from the prior, AnnealedImportance(start='prior')",
        )


def _estimate(weigher: Weigher, log_weights: Tensor, sign: int) -> EvidenceEstimate:
    """A lower bound; with sign -1 that of minus the evidence."""
    weights = LogWeights(len(log_weights))
    weights.add(log_weights)
    if weigher.layout.shared:
        return of_joint(weigher.layout, weights)
    batches = weigher.batches()
    constant = sign * weigher.constant(batches[0])
    return of_data(weigher.layout, batches, [weights], constant)


def _negated(estimate: EvidenceEstimate) -> EvidenceEstimate:
    """An upper bound, from one of the log of the mean inverse weight."""
    datum = estimate.per_datum
    datum = None if datum is None else replace(datum, value=-datum.value)
    return replace(estimate, value=-estimate.value, bound="upper", per_datum=datum)
