r"""Annealed importance sampling: from the guide, or the prior, to the posterior by small steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from pyro import poutine
from pyro.distributions import ImproperUniform
from tqdm import tqdm

from ..elbo.sites import has_base
from ..errors import UnsupportedSiteError
from .annealing import Annealing
from .checks import check_count
from .estimate import EvidenceEstimate
from .modes import in_eval_mode
from .results import of_data, of_joint
from .weigher import Batch, Weigher
from .weights import LogWeights

__all__ = ["AnnealedImportance", "check_continuous", "prior_of"]


@dataclass(frozen=True)
class AnnealedImportance:
    r"""A lower bound of the evidence that tightens with the number of temperatures.

    Particles start at the guide's (or the prior's) samples and move by Hamiltonian Monte Carlo
    through :math:`\pi_t \propto q(z)^{1-t} p(x, z)^t`:

    .. math::
        \log w = \sum_{k=1}^K (t_k - t_{k-1}) \log \frac{p(x, z_{k-1})}{q(z_{k-1})},
        \quad z_k \sim \mathrm{HMC}_{t_k}(z_{k-1}),
        \qquad \log p(x) \ge E\Big[\log \frac1S \sum_s w_s\Big].

    Coordinates are unconstrained, and each datum moves, and is accepted, on its own where data are
    independent. Step sizes are found by a pilot run and then held, so that the weights stay
    unbiased. As everywhere here, scales are left out and masks hold.

    Args:
        num_samples: Particles.
        num_temperatures: Steps from the start to the posterior.
        num_leapfrog_steps: Length of each trajectory.
        start: ``"guide"`` or ``"prior"``.
        plate: The plate whose data are independent; by default it is found.
        progress: Whether work of over a second shows a bar.

    Raises:
        ValueError: Fewer than two samples; a weight is nan or infinite.
        UnsupportedSiteError: A latent is discrete and not summed out; the guide has no density over
            one; or data share a latent and the plate is subsampled.

    Law:
        ``exp`` of the estimate is unbiased for :math:`p(x)`. With the posterior as guide it is
        exact; with one temperature it is importance weighting.

    Example:
        >>> import torch, pyro, pyro.distributions as dist
        >>> from pyro_elbo import evidence
        >>> _ = pyro.set_rng_seed(0)
        >>> def model(x):
        ...     z = pyro.sample("z", dist.Normal(0., 1.))
        ...     pyro.sample("x", dist.Normal(z, 0.1), obs=x)
        >>> ais = evidence.AnnealedImportance(num_samples=20, num_temperatures=30, start="prior")
        >>> estimate = ais.estimate(model, None, torch.tensor(1.0))
        >>> exact = dist.Normal(0., 1.01 ** 0.5).log_prob(torch.tensor(1.0))
        >>> bool((estimate.value - exact).abs() < 5 * estimate.standard_error)
        True

    References:
        *Annealed Importance Sampling* (Neal, 2001), arXiv physics/9803008.
        *On the Quantitative Analysis of Decoder-Based Generative Models* (Wu et al., 2017),
        arXiv 1611.04273.
    """

    num_samples: int = 100
    num_temperatures: int = 200
    num_leapfrog_steps: int = 5
    start: Literal["guide", "prior"] = "guide"
    plate: str | None = None
    progress: bool = True

    def __post_init__(self) -> None:
        check_count("num_samples", self.num_samples, 2)
        check_count("num_temperatures", self.num_temperatures, 1)
        check_count("num_leapfrog_steps", self.num_leapfrog_steps, 1)
        if self.start not in ("guide", "prior"):
            raise ValueError(f"start must be 'guide' or 'prior', not {self.start!r}")

    def estimate(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> EvidenceEstimate:
        """Estimate the evidence of a program's data.

        Args:
            model: The model.
            guide: A guide with a density over each latent; unused with ``start="prior"``.
            *args: What both take.
            **kwargs: What both take.
        """
        with in_eval_mode(model, guide):
            return self._annealed(model, guide, args, kwargs)

    def _annealed(self, model: Any, guide: Any, args: Any, kwargs: Any) -> EvidenceEstimate:
        start = guide if self.start == "guide" else prior_of(model)
        weigher = Weigher(model, start, args, kwargs, self.plate)
        check_continuous(weigher)
        batches = weigher.batches()
        if weigher.layout.shared and len(batches) > 1:
            raise UnsupportedSiteError(
                min(weigher.layout.shared),
                "all data share it, and every move of it needs all of them",
                "give the model the full data (subsample_size=None)",
            )
        weights = []
        with self.bar(2 * len(batches)) as bar:
            for batch in batches:
                log_weights = self.run(weigher, batch, bar).forward(self.num_samples)
                weights.append(LogWeights(self.num_samples))
                weights[-1].add(batch.keep(log_weights))
        if weigher.layout.shared:
            return of_joint(weigher.layout, weights[0])
        return of_data(weigher.layout, batches, weights, weigher.constant(batches[0]))

    def run(self, weigher: Weigher, batch: Batch, bar: Any) -> Annealing:
        """The annealing of one set of data."""
        return Annealing(weigher, batch, self.num_temperatures, self.num_leapfrog_steps, bar)

    def bar(self, num_runs: int) -> Any:
        """A progress bar for so many runs through the temperatures."""
        return tqdm(
            total=num_runs * self.num_temperatures,
            desc="annealing",
            delay=1.0,
            leave=False,
            disable=not self.progress,
        )


def prior_of(model: Any) -> Any:
    """The model's latents alone, as a guide.

    Raises:
        UnsupportedSiteError: When it runs: the model sums a latent out, or has an improper prior.
    """

    def is_hidden(msg: Any) -> bool:
        if msg["type"] == "sample" and not msg["is_observed"] and msg["infer"].get("enumerate"):
            raise UnsupportedSiteError(
                msg["name"],
                "the model sums it out, so that the prior of the others cannot be evaluated at "
                "its samples",
                "give a guide of the others, and start='guide'",
            )
        if msg["type"] == "sample" and has_base(msg["fn"], ImproperUniform):
            raise UnsupportedSiteError(
                msg["name"],
                "its prior is improper, so that no sample of it can be drawn",
                "give a guide, and start='guide'",
            )
        return bool(msg["type"] == "sample" and msg["is_observed"])

    return poutine.block(model, hide_fn=is_hidden)


def check_continuous(weigher: Weigher) -> None:
    """Check that particles can move along gradients, many at once.

    Raises:
        UnsupportedSiteError: The guide samples a discrete latent.
        ValueError: The program mixes samples up that are run at once, or has no latents.
    """
    if not weigher.guide_sites:
        raise ValueError(
            "there is no latent to move, so that log p(x) is the sum of the model's log-densities; "
            "evidence.ImportanceWeighting computes that"
        )
    if not weigher.at_once:
        raise ValueError(
            "annealing runs all particles at once, and this program mixes them up: it indexes or "
            "sums from the left (w[0], z.sum(0)); count dims from the right, as in w[..., 0], or "
            "use evidence.ImportanceWeighting"
        )
    for name in sorted(weigher.layout.shared | weigher.layout.local):
        if weigher.guide_sites[name]["fn"].support.is_discrete:
            raise UnsupportedSiteError(
                name,
                "it is discrete, and annealing moves along gradients",
                "leave it out of the guide and sum it out in the model (infer={'enumerate': "
                "'parallel'}), or use evidence.ImportanceWeighting",
            )
