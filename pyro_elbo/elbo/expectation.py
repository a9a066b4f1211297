r"""Guide-side enumeration: every cost as its exact expectation, :math:`\sum_c q(c)\,f(c)`.

Each enumerated site of the guide weighs the costs in its plates, and in plates inside of them, by
the probability of its value. A site that is sampled once for each value of an enumerated one enters
the weights by its score. Other sites' scores see the expected costs.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any

import torch
from pyro.ops import packed
from pyro.ops.rings import LinearRing
from pyro.poutine.util import site_is_factor

from ..errors import UnsupportedSiteError
from .baselines import Baseline
from .cost import Cost
from .costs import SiteCosts
from .densities import score_function, unscaled_log_prob
from .dependencies import Order
from .scores import plates_that_tell
from .symbols import Packed, is_enumerated, ordinal, pack, unpack

__all__ = ["GuideExpectation", "expected_costs"]


def expected_costs(
    sites: Sequence[SiteCosts], guide: Mapping[str, Any], order: Order
) -> list[SiteCosts]:
    """The costs as expectations over what the guide enumerates.

    Args:
        sites: The costs of the sites, with enumerated dims.
        guide: The guide's sites by name, their dims named.
        order: What depends on what.

    Raises:
        UnsupportedSiteError: A cost breaks the rules of enumeration, or a site that is sampled for
            each value of an enumerated one asks for a baseline.
    """
    expectation = GuideExpectation(guide, order)
    enumerated = {name for name, site in guide.items() if is_enumerated(site)}
    for site in sites:
        expectation.check_sequential(site, order)
    return [_expected(site, expectation, enumerated) for site in sites]


def _expected(site: SiteCosts, expectation: GuideExpectation, enumerated: set[str]) -> SiteCosts:
    changed = site.map(lambda cost: expectation.of(site.name, cost, cost is site.closed))
    for score in site.scores:
        if expectation.weighs(score.name) and Baseline.of(score.site) is not None:
            raise UnsupportedSiteError(
                score.name,
                "it has a baseline, and its score is part of an enumeration",
                "remove the baseline: an exact sum needs none",
            )
    scores = tuple(score for score in site.scores if not expectation.weighs(score.name))
    if not enumerated.intersection(site.members):
        return replace(changed, scores=scores)
    how = dict.fromkeys(site.how, "enumerated")
    return replace(changed, scores=scores, how=how, gradient="enumerated")


@dataclass(frozen=True, eq=False)
class _Factor:
    """What a guide site weighs the costs in its plates by.

    Args:
        name: The site.
        plates: Symbols of its plates.
        weight: Probability, packed; its gradient is that of the site's density.
        symbol: The symbol of its own dim, if it has one.
        total: In how many branches of sequential enumeration the site's other costs are counted.
        is_enumerated: Whether the weight is a probability.
        is_density: Whether the mean of the weight is 1, gradient and all; not that of a
            ``pyro.factor``.
    """

    name: str
    plates: frozenset[str]
    weight: Packed
    symbol: str | None
    total: int
    is_enumerated: bool = False
    is_density: bool = True

    @property
    def enumerated_dims(self) -> frozenset[str]:
        return frozenset(self.weight._pyro_dims) - self.plates

    @property
    def is_score(self) -> bool:
        """Whether the site is sampled once for each value of others: its weight is 1."""
        return self.symbol is None and self.total == 1 and not self.is_enumerated

    def over(self, plates: Set[str]) -> _Factor:
        """The factor of a cost in some plates, that may depend on all entries of the others."""
        dims = self.weight._pyro_dims
        outside = [at for at, symbol in enumerate(dims) if symbol in self.plates - plates]
        if not outside:
            return self
        weight: Packed = self.weight.log().sum(outside).exp()
        weight._pyro_dims = "".join(s for s in dims if s not in self.plates - plates)
        return replace(self, plates=self.plates & plates, weight=weight)


class GuideExpectation:
    """Turns costs into their expectations over the guide's enumerated sites.

    Args:
        guide: The guide's sites by name, their dims named.
        order: What depends on what.

    Law:
        Value and gradient of an expectation are those of the finite sum.

    References:
        *DiCE: The Infinitely Differentiable Monte Carlo Estimator* (Foerster et al., 2018),
        arXiv 1802.05098.
        *Tensor Variable Elimination for Plated Factor Graphs* (Obermeyer et al., 2019),
        arXiv 1902.03210.
    """

    def __init__(self, guide: Mapping[str, Any], order: Order) -> None:
        self._factors = [
            _told(factor, site, guide, order)
            for site in guide.values()
            for factor in _factors(site)
        ]
        self._owners = {factor.symbol: factor for factor in self._factors if factor.symbol}
        self._weights: dict[Any, Packed] = {}

    def weighs(self, name: str) -> bool:
        """Whether a site's score is part of the weights."""
        return any(factor.name == name for factor in self._factors)

    def of(self, site: str, cost: Cost, closed: bool = False) -> Cost:
        """The expectation of a cost, over the plates of its stack.

        Args:
            site: The site of the cost.
            cost: The cost, packed or not.
            closed: Whether the cost is a closed form of the site's own density.

        Raises:
            UnsupportedSiteError: It depends on an enumerated site inside a plate that it is not in.
        """
        places = _places(cost)
        value: Packed = cost.value
        if not hasattr(value, "_pyro_dims"):
            if not self._factors:
                return cost
            value = pack(site, value, _dims(cost))
        plates = ordinal(cost.stack, cost.dims)
        self._check_plates(site, value, plates)
        upstream = [f.over(plates) for f in self._factors if self._may_weigh(f, plates)]
        branches = math.prod(f.total for f in self._factors if not f.plates <= plates)
        factors = _ancestors(upstream, value, site if closed else None)
        value = self._weigh(value, places.keys(), factors) if factors else value
        expected = unpack(value, places)
        return cost.with_value(expected / branches if branches != 1 else expected)

    def check_sequential(self, site: SiteCosts, order: Order) -> None:
        """Check that no cost outside the plate of what is enumerated in sequence depends on it.

        Raises:
            UnsupportedSiteError: One does, or may.
        """
        for cost in site.costs:
            plates = ordinal(cost.stack, cost.dims)
            for factor in self._factors:
                outside = factor.total > 1 and not factor.plates <= plates
                if outside and order.may_depend(site.members, factor.name):
                    raise _outside(site.name, factor)

    def _may_weigh(self, factor: _Factor, plates: frozenset[str]) -> bool:
        """Whether a cost in some plates may depend on a factor's sample.

        A sample from other plates may reach it where there is one for each value of sites in its
        own: for each value of another the cost would have that site's dim.
        """
        if factor.plates <= plates or not factor.is_score:
            return factor.plates <= plates
        owners = [self._owners[s] for s in factor.enumerated_dims if s in self._owners]
        return all(owner.plates <= plates for owner in owners)

    def _check_plates(self, site: str, value: Packed, plates: frozenset[str]) -> None:
        for symbol in value._pyro_dims:
            owner = self._owners.get(symbol)
            if owner is not None and not owner.plates <= plates:
                raise _outside(site, owner)

    def _weigh(self, value: Packed, stays: Set[str], factors: Sequence[_Factor]) -> Packed:
        kept = frozenset(stays | set(value._pyro_dims))
        key = frozenset((factor.name, factor.plates) for factor in factors), kept
        if key not in self._weights:
            self._weights[key] = _product([factor.weight for factor in factors], kept)
        value, weight = packed.broadcast_all(value, self._weights[key])
        dims = value._pyro_dims
        product = weight * torch.where(weight > 0, value, value.new_zeros(()))
        summed = [place for place, symbol in enumerate(dims) if symbol not in stays]
        result = product.sum(summed) if summed else product
        result._pyro_dims = "".join(symbol for symbol in dims if symbol in stays)
        return result


def _outside(site: str, owner: _Factor) -> UnsupportedSiteError:
    return UnsupportedSiteError(
        site,
        f"its cost depends on the enumerated site {owner.name!r} and is outside of "
        "that site's plate (or comes to be, where the model sums out a site outside "
        "of it), so the sum over values would be one over all entries at once",
        f"put it into the plates of {owner.name!r}, or sample {owner.name!r} "
        "(without infer={'enumerate': ...}), or use a sequential plate",
    )


def _dims(cost: Cost) -> dict[int, str]:
    """The symbol of every dim of a cost's value, those of an event included."""
    event = {dim: chr(sys.maxunicode + 1 + dim) for dim in range(-cost.event_dim, 0)}
    return {dim - cost.event_dim: symbol for dim, symbol in cost.dims.items()} | event


def _places(cost: Cost) -> dict[str, int]:
    """Where the symbols that an expectation keeps have their dims: plates and the event."""
    plates = ordinal(cost.stack, cost.dims)
    event = range(-cost.event_dim, 0)
    return {symbol: dim for dim, symbol in _dims(cost).items() if symbol in plates or dim in event}


def _factors(site: Any) -> list[_Factor]:
    infer, dims = site["infer"], site["dim_to_symbol"]
    plates = ordinal(site["cond_indep_stack"], dims)
    symbol = dims.get(infer.get("_enumerate_dim"))
    if infer.get("num_samples") and symbol is not None:
        return [_Factor(site["name"], plates, _sampled_weight(site, symbol), symbol, 1)]
    if is_enumerated(site):
        weight = pack(site["name"], unscaled_log_prob(site).exp(), dims)
        return [_Factor(site["name"], plates, weight, symbol, infer.get("_enum_total", 1), True)]
    score = score_function(site)
    if score is None:
        return []
    weight = pack(site["name"], (score - score.detach()).exp(), dims)
    factor = _Factor(site["name"], plates, weight, None, 1, is_density=not site_is_factor(site))
    return [factor] if factor.enumerated_dims else []


def _told(factor: _Factor, site: Any, guide: Mapping[str, Any], order: Order) -> _Factor:
    """A score's factor over the plates in which an entry's sample reaches its own costs alone."""
    if not factor.is_score:
        return factor
    return factor.over(ordinal(plates_that_tell(site, guide, order), site["dim_to_symbol"]))


def _sampled_weight(site: Any, symbol: str) -> Packed:
    log_prob = pack(site["name"], unscaled_log_prob(site), site["dim_to_symbol"])
    plates = ordinal(site["cond_indep_stack"], site["dim_to_symbol"])
    size = site["infer"]["num_samples"]
    if set(log_prob._pyro_dims) - plates - {symbol} and not site["infer"].get("expand"):
        raise UnsupportedSiteError(
            site["name"],
            "its num_samples samples are shared by the values of an enumerated parent, each of "
            "which needs samples of its own",
            "set infer={'expand': True} beside num_samples",
        )
    score = score_function(site)
    if score is None:
        weight = log_prob.new_full((size,), 1 / size)
        weight._pyro_dims = symbol
    else:
        weight = pack(site["name"], (score - score.detach()).exp() / size, site["dim_to_symbol"])
    return weight


def _ancestors(upstream: Sequence[_Factor], value: Packed, without: str | None) -> list[_Factor]:
    """The factors that a cost's expectation needs: the rest, all of them densities, sums to 1."""
    needed = set(value._pyro_dims)
    chosen = {f.name: f for f in upstream if f.total > 1 or not f.is_density}
    for factor in chosen.values():
        needed |= factor.enumerated_dims
    grown = True
    while grown:
        grown = False
        for factor in upstream:
            own = factor.symbol in needed if factor.symbol else factor.enumerated_dims & needed
            if own and factor.name not in chosen and factor.name != without:
                chosen[factor.name] = factor
                needed |= factor.enumerated_dims
                grown = True
    return list(chosen.values())


def _product(weights: Sequence[Packed], kept: Set[str]) -> Packed:
    return LinearRing().sumproduct(weights, set().union(*(w._pyro_dims for w in weights)) - kept)
