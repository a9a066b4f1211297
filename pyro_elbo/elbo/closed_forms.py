r"""Closed-form KLs and entropies, used only where they are right.

An entropy in closed form is always right. A KL in closed form is right where no parent of the site
in the model is a descendant of it in the guide (the expectation over the site is then taken with
its parents held), and where both sides have the same plates, scale and mask.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pyro.distributions import Delta, Independent, MaskedDistribution
from pyro.distributions.util import sum_rightmost
from torch import Tensor
from torch.distributions import (
    Bernoulli,
    Categorical,
    HalfCauchy,
    HalfNormal,
    OneHotCategorical,
    kl_divergence,
)
from torch.nn.functional import softplus

from ..weighting import unweighted, weighed
from .cost import Cost
from .dependencies import Order
from .sites import LatentSite, has_base, same_mask, same_scale
from .supports import flat, takes_gradient
from .symbols import is_enumerated

__all__ = ["Choice", "Form", "choose", "closed_entropy"]

Form = Literal["kl", "entropy"] | None


@dataclass(eq=False)
class Choice:
    """The form that was chosen for a latent.

    Args:
        form: The form; ``None`` for samples.
        why: The reason, in words.
        cost: The closed form, where that was chosen.
        cost_per_dimension: The closed form of each dim of the event, where it has independent ones.
        warns: Whether the choice may surprise.
    """

    form: Form
    why: str
    cost: Cost | None = None
    cost_per_dimension: Cost | None = None
    warns: bool = False


def choose(site: LatentSite, wanted: Form, order: Order) -> Choice:
    """Take the wanted closed form where it exists and is right, the sampled form otherwise.

    Raises:
        ValueError: ``wanted`` is no form.
    """
    if wanted not in ("kl", "entropy", None):
        raise ValueError(f"closed_form must return 'kl', 'entropy' or None, not {wanted!r}")
    if wanted is None:
        return Choice(None, "the view samples it")
    if site.role == "map":
        return Choice(None, "a point mass: the sample is the expectation")
    if any(is_enumerated(guide) for guide in site.guide_sites.values()):
        return Choice(None, "the sum over its values is exact")
    if wanted == "kl" and site.marginal is not None:
        return Choice(None, "a marginal prior has no closed form")
    if wanted == "kl" and not site.prior_sites:
        return Choice(None, "it has no prior in the model")
    if site.density is None or (wanted == "kl" and site.prior is None):
        return Choice(None, "its density is split over several sites")
    if has_base(site.guide, (Delta, MaskedDistribution)):
        return Choice(None, f"{_kind(site.guide)} has no {wanted} in closed form")
    return _choose_kl(site, order) if wanted == "kl" else _choose_entropy(site)


def _choose_kl(site: LatentSite, order: Order) -> Choice:
    prior, guide = site.prior, site.density
    pair = f"KL({_kind(site.guide)} || {_kind(prior['fn'])})"
    hidden = has_base(prior["fn"], (Delta, MaskedDistribution))
    if hidden or _folds(site.guide) or _folds(prior["fn"]):
        return Choice(None, f"{pair} has no closed form")
    if _are_learnt(_transforms(site.guide), _transforms(prior["fn"])):
        return Choice(None, f"the transforms of {pair} take gradients")
    if _dims_clash(prior, guide):
        return Choice(None, "pyro.markov gives one dim two meanings in model and guide")
    if not order.proves_mean_field(prior["name"], guide["name"]):
        why = "a parent of it in the model depends on it in the guide"
        return Choice(None, why, warns=True)
    if not _same_plates(prior, guide):
        return Choice(None, "its plates differ between model and guide", warns=True)
    if not same_scale(prior, guide):
        return Choice(None, "its scale differs between model and guide")
    if not same_mask(prior, guide):
        return Choice(None, "its mask differs between model and guide", warns=True)
    costs = _closed_kl(site)
    if not costs:
        return Choice(None, f"{pair} is not registered with torch.distributions")
    return Choice("kl", pair, costs[0], costs[1] if len(costs) > 1 else None)


def _choose_entropy(site: LatentSite) -> Choice:
    cost = closed_entropy(site)
    if cost is None:
        return Choice(None, f"{_kind(site.guide)} has no entropy in closed form")
    return Choice("entropy", f"H[{_kind(site.guide)}]", cost)


def _closed_kl(site: LatentSite) -> tuple[Cost, ...]:
    """Minus the KL, and minus that of each dim of the event where both sides factorise over it."""
    guide, prior = site.guide, site.prior["fn"]
    event_dim = _independent_dims(guide, prior)
    try:
        if event_dim:
            kl_per_dimension = _divergence(guide.base_dist, prior.base_dist)
            kl = sum_rightmost(kl_per_dimension, event_dim)
        else:
            kl = _divergence(guide, prior)
    except NotImplementedError:
        return ()
    dims = site.prior.get("dim_to_symbol", {}) | site.density.get("dim_to_symbol", {})
    enumerating = "dim_to_symbol" in site.density
    shape = guide.batch_shape
    shape = torch.broadcast_shapes(shape, prior.batch_shape) if enumerating else shape
    if kl.shape != shape or guide.event_shape != prior.event_shape:
        return ()
    cost = _cost(site.density, kl, dims).negated()
    if not event_dim:
        return (cost,)
    return cost, _cost(site.density, kl_per_dimension, dims, event_dim).negated()


def _divergence(guide: Any, prior: Any) -> Tensor:
    """The KL as torch has it; of categories also where some are impossible, gradients included.

    Several of torch's are right for distributions of one batch shape only.
    """
    guide, prior = (
        fn._categorical if isinstance(fn, OneHotCategorical) else fn for fn in (guide, prior)
    )
    if isinstance(guide, Bernoulli) and isinstance(prior, Bernoulli):
        return _of_coins(guide, prior)
    if not isinstance(guide, Categorical) or not isinstance(prior, Categorical):
        return kl_divergence(*_alike(guide, prior))
    if guide.probs.shape[-1] != prior.probs.shape[-1]:
        raise NotImplementedError("of other categories: as of other distributions")
    nothing, possible = guide.logits.new_zeros(()), guide.probs > 0
    own, other = (torch.where(possible, fn.logits, nothing) for fn in (guide, prior))
    return (guide.probs * (own - other)).sum(-1)


def _of_coins(guide: Any, prior: Any) -> Tensor:
    """Torch's KL of coins, which looks at the value of a single one, and so is in no graph.

    Torch's is infinite also beside a prior whose probability only rounds to 0 or 1.
    """
    nothing, infinite = guide.probs.new_zeros(()), guide.probs.new_full((), math.inf)
    never, always = _certain(prior)
    heads = guide.probs * (softplus(-prior.logits) - softplus(-guide.logits))
    heads = torch.where(never, infinite, heads)
    tails = (1 - guide.probs) * (softplus(prior.logits) - softplus(guide.logits))
    tails = torch.where(always, infinite, tails)
    return torch.where(guide.probs == 0, nothing, heads) + torch.where(
        guide.probs == 1, nothing, tails
    )


def _certain(coin: Any) -> tuple[Tensor, Tensor]:
    """Where a coin never, and where it always, shows heads: given so, or by an infinite logit.

    Torch gives a coin whose probability is 0 or 1 a logit that is not.
    """
    probs, logits = coin.probs, coin.logits
    rounded = logits.sigmoid()
    never = (probs == 0) & ((rounded > 0) | (logits == -math.inf))
    always = (probs == 1) & ((rounded < 1) | (logits == math.inf))
    return never, always


def _alike(guide: Any, prior: Any) -> tuple[Any, Any]:
    """Two distributions in one batch shape: either may have a dim for each enumerated value."""
    if guide.batch_shape == prior.batch_shape:
        return guide, prior
    shape = torch.broadcast_shapes(guide.batch_shape, prior.batch_shape)
    return guide.expand(shape), prior.expand(shape)


def _transforms(fn: Any) -> list[Any]:
    """The transforms of a distribution, at whatever depth."""
    inner = _transforms(fn.base_dist) if hasattr(fn, "base_dist") else []
    return [*flat(getattr(fn, "transforms", ())), *inner]


def _are_learnt(guide: Sequence[Any], prior: Sequence[Any]) -> bool:
    """Whether gradients flow into transforms that are not the same on both sides.

    Torch takes the KL of the bases where the transforms are equal now, which leaves these out.
    """
    same = len(guide) == len(prior) and all(map(operator.is_, guide, prior))
    return not same and any(map(takes_gradient, (*guide, *prior)))


def _independent_dims(guide: Any, prior: Any) -> int:
    """How many dims of the event both sides factorise over; 0 unless those are the whole event."""
    sides = (guide, prior)
    if not all(isinstance(fn, Independent) and not fn.base_dist.event_shape for fn in sides):
        return 0
    size = int(guide.reinterpreted_batch_ndims)
    return size if prior.reinterpreted_batch_ndims == size else 0


def closed_entropy(site: LatentSite) -> Cost | None:
    """The guide's entropy, if its distribution has one in closed form."""
    try:
        entropy = site.guide.entropy()
    except NotImplementedError:
        return None
    if entropy.shape != site.guide.batch_shape:
        return None
    return _cost(site.density, entropy, site.density.get("dim_to_symbol", {}))


def _cost(site: Any, value: Tensor, dims: Mapping[int, str], event_dim: int = 0) -> Cost:
    scale, mask = unweighted(site)
    on_event = (..., *(None,) * event_dim)
    mask_of_each = mask[on_event] if isinstance(mask, Tensor) else mask
    scale_of_each = scale[on_event] if isinstance(scale, Tensor) and scale.dim() else scale
    value = weighed(value, scale_of_each, mask_of_each)
    return Cost(value, site["cond_indep_stack"], scale, mask is not None, dims, event_dim)


def _folds(fn: Any) -> bool:
    """Whether a transform maps two values to one, where the KL is not that of the bases."""
    if isinstance(fn, HalfNormal | HalfCauchy):
        return False
    transforms = getattr(fn, "transforms", ())
    folds = not all(transform.bijective for transform in transforms)
    return folds or (hasattr(fn, "base_dist") and _folds(fn.base_dist))


def _dims_clash(prior: Any, guide: Any) -> bool:
    """Whether an enumeration dim stands for one site in the model and another in the guide."""
    symbols = prior.get("dim_to_symbol", {})
    return any(
        symbols.get(dim, symbol) != symbol for dim, symbol in guide.get("dim_to_symbol", {}).items()
    )


def _same_plates(prior: Any, guide: Any) -> bool:
    plates = [
        {(frame.name, frame.dim) for frame in site["cond_indep_stack"] if frame.vectorized}
        for site in (prior, guide)
    ]
    return plates[0] == plates[1]


def _kind(fn: Any) -> str:
    while type(fn).__name__ in ("Independent", "ExpandedDistribution"):
        fn = fn.base_dist
    return type(fn).__name__
