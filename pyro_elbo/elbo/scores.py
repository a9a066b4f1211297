r"""Score-function gradients: :math:`E_q[f] \to E_q[f\, \nabla \log q]`, plate by plate.

A site's score multiplies the costs that may depend on its sample, summed to its plates: an entry of
a plate does not depend on the samples of the other entries, unless a later site of the guide,
outside of the plate, collects them. A closed-form cost of the site itself is an expectation over
the sample, and does not depend on it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pyro.infer.util import MultiFrameTensor
from torch import Tensor

from ..errors import UnsupportedSiteError
from ..weighting import times
from .baselines import Baseline
from .cost import Cost
from .densities import score_function
from .dependencies import Order
from .supports import moves
from .symbols import vectorised

__all__ = ["Score", "WeightedCost", "plates_that_tell", "score_surrogate", "scores_of"]

WeightedCost = tuple[Any, Cost]


@dataclass(frozen=True, eq=False)
class Score:
    """The score of one guide site.

    Args:
        site: The traced site.
        log_prob: The log-density whose gradient is the score, unscaled and unmasked.
    """

    site: Any
    log_prob: Tensor

    @property
    def name(self) -> str:
        """The site's name."""
        return str(self.site["name"])


def scores_of(sites: Iterable[Any]) -> tuple[Score, ...]:
    """The scores of those guide sites that are not reparameterised.

    Raises:
        UnsupportedSiteError: Parameters move a site's support, so that its score is biased.
    """
    scores = ((site, score_function(site)) for site in sites)
    found = tuple(Score(site, score) for site, score in scores if score is not None)
    for score in found:
        if moves(score.site["fn"]):
            raise UnsupportedSiteError(
                score.name,
                "it is not reparameterised, and parameters move its support, where a score "
                "function is biased",
                "reparameterise it, or use a distribution whose support stays",
            )
    return found


def plates_that_tell(site: Any, guide: Mapping[str, Any], order: Order) -> tuple[Any, ...]:
    """The plates of a guide's site in which an entry's sample reaches the costs of its own alone.

    It reaches those of other entries through a later site of the guide that is outside of the plate
    and computed from the samples in it.
    """
    names = list(guide)
    name = site["name"]
    later = names[names.index(name) + 1 :]
    stack = site["cond_indep_stack"]
    plates = {other: {f.name for f in guide[other]["cond_indep_stack"]} for other in later}
    collected = {
        frame.name
        for frame in vectorised(stack)
        if any(
            frame.name not in plates[other] and order.may_descend(other, (name,)) for other in later
        )
    }
    return tuple(frame for frame in stack if frame.name not in collected)


def score_surrogate(
    scores: Sequence[tuple[Score, WeightedCost | None]],
    costs: Sequence[WeightedCost],
    told: Callable[[Any], tuple[Any, ...]],
) -> Tensor:
    """A sum that is 0, and whose gradient is that of the score functions.

    Args:
        scores: The scores of the sites that are not reparameterised, each with the closed-form cost
            of its site, where that has one.
        costs: All costs with their weights.
        told: The plates of a site in which an entry's sample reaches its own costs alone.

    References:
        *Automated Variational Inference in Probabilistic Programming* (Wingate & Weber, 2013),
        arXiv 1301.1299.
        *Black Box Variational Inference* (Ranganath, Gerrish & Blei, 2014), arXiv 1401.0118.
    """
    downstream = MultiFrameTensor(*map(_weighted, costs))
    sums: dict[Any, Tensor] = {}
    total: Any = 0.0
    for score, closed in scores:
        frames = told(score.site)
        if frames not in sums:
            sums[frames] = torch.as_tensor(downstream.sum_to(frames), device=score.log_prob.device)
        cost = sums[frames]
        if closed is not None:
            cost = cost - MultiFrameTensor(_weighted(closed)).sum_to(frames)
        baseline = Baseline.of(score.site)
        if baseline is not None:
            cost, loss = baseline.subtract_from(cost)
            total = total - loss
        total = total + (cost * score.log_prob).sum()
    surrogate: Tensor = total - total.detach()
    return surrogate


def _weighted(cost: WeightedCost) -> tuple[tuple[Any, ...], Tensor]:
    weight, of = cost
    return of.stack, times(of.value.detach(), weight)
