r"""Model-side enumeration: latents that the model sums out, :math:`\log \sum_c p(c)\,p(x \mid c)`.

The sum is taken with unweighted log-densities, the masks inside of it and the scale outside, and is
then one log-density: a prior where only latents hang on the enumerated sites, a likelihood where
only observed sites do. Where both do, :math:`p(z) = \sum_c p(c)\,p(z \mid c)` is the prior and
:math:`p(x \mid z) = p(x, z) / p(z)` the likelihood.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import compress
from typing import Any

from pyro.distributions.util import scale_and_mask
from pyro.ops.contract import contract_tensor_tree
from pyro.ops.rings import LogRing
from torch import Tensor

from ..errors import UnsupportedSiteError
from ..weighting import unweighted
from .cost import Cost
from .densities import check_shape, unscaled_log_prob
from .symbols import Packed, ordinal, pack, scaled, vectorised

__all__ = ["Marginal", "marginals_of"]


@dataclass(frozen=True, eq=False)
class Marginal:
    """What one connected group of marginalised sites adds to the bound.

    Args:
        enumerated: Names of the sites that are summed out.
        latents: Names of the guide's latents that hang on them.
        observed: Names of the observed sites that hang on them.
        prior: The log prior of the latents.
        likelihood: The log-likelihood of the observed sites, given the latents.
    """

    enumerated: tuple[str, ...]
    latents: tuple[str, ...]
    observed: tuple[str, ...]
    prior: tuple[Cost, ...]
    likelihood: tuple[Cost, ...]

    @property
    def members(self) -> tuple[str, ...]:
        """Names of all its sites."""
        return (*self.enumerated, *self.latents, *self.observed)

    @property
    def why(self) -> str:
        """How its numbers were had, in words."""
        return f"marginalised over {', '.join(self.enumerated)}"


def marginals_of(
    model: Mapping[str, Any], guide: Mapping[str, Any], max_plate_nesting: float
) -> list[Marginal]:
    """Sum out the sites that the model enumerates.

    Args:
        model: The model's sites by name, their dims named.
        guide: The guide's sites by name.
        max_plate_nesting: The deepest plate, for the check of shapes.

    Raises:
        UnsupportedSiteError: Latents and observed sites hang on one enumerated site, and the weight
            of the latents is not 1; or scales differ inside a group.
    """
    enumerated = {
        name: site["infer"]["_enumerate_symbol"]
        for name, site in model.items()
        if name not in guide and not site["is_observed"] and _names_own_dim(site)
    }
    if not enumerated:
        return []
    groups = _groups(model, frozenset(enumerated.values()), max_plate_nesting)
    return [_marginal(terms, enumerated, model, guide) for terms in groups]


def _names_own_dim(site: Any) -> bool:
    dim = site["infer"].get("_enumerate_dim")
    if dim is None:
        return False
    if site["infer"].get("num_samples"):
        raise UnsupportedSiteError(
            site["name"],
            "the model marginalises it by samples (num_samples), and the log of a mean of samples "
            "is biased",
            "enumerate it (without num_samples), or sample it in the guide",
        )
    site["infer"]["_enumerate_symbol"] = site["dim_to_symbol"][dim]
    return True


def _groups(
    model: Mapping[str, Any], summed: frozenset[str], max_plate_nesting: float
) -> list[dict[str, Packed]]:
    """The packed log-densities that share an enumerated dim, directly or by others, by site."""
    groups: list[dict[str, Packed]] = []
    for name, site in model.items():
        log_prob = site["log_prob"] = _masked(site)
        if not summed & {symbol for dim, symbol in _symbols(site) if _has(log_prob, dim)}:
            continue
        check_shape(site, max_plate_nesting)
        term = pack(name, log_prob, site["dim_to_symbol"])
        touched = [_touches(group, summed & set(term._pyro_dims)) for group in groups]
        joined = [member for group in compress(groups, touched) for member in group.items()]
        groups = [group for group, touches in zip(groups, touched, strict=True) if not touches]
        groups.append(dict(joined) | {name: term})
    return groups


def _symbols(site: Any) -> Iterable[tuple[int, str]]:
    symbols: Mapping[int, str] = site["dim_to_symbol"]
    return symbols.items()


def _touches(group: Mapping[str, Any], symbols: Set[str]) -> bool:
    return any(not symbols.isdisjoint(term._pyro_dims) for term in group.values())


def _has(value: Tensor, dim: int) -> bool:
    return value.dim() >= -dim and value.shape[dim] > 1


def _masked(site: Any) -> Tensor:
    """The unscaled log-density; a mask is in it, but for the sites that are summed out."""
    log_prob = unscaled_log_prob(site)
    if not site["is_observed"] and "beta" not in site:
        return log_prob
    masked: Tensor = scale_and_mask(log_prob, 1.0, unweighted(site)[1])
    return masked


def _marginal(
    terms: Mapping[str, Packed],
    enumerated: Mapping[str, str],
    model: Mapping[str, Any],
    guide: Mapping[str, Any],
) -> Marginal:
    names = [name for name in model if name in terms]
    latents = tuple(name for name in names if name in guide)
    summed = tuple(name for name in names if name in enumerated)
    observed = tuple(name for name in names if name not in guide and name not in enumerated)
    sites = [model[name] for name in names]
    joint = _contract(sites, terms, enumerated.values())
    _refuse_sequences(sites, joint, summed[0], guide)
    if not latents:
        return Marginal(summed, latents, observed, (), joint)
    if not observed:
        return Marginal(summed, latents, observed, joint, ())
    _refuse_weights(sites, summed, latents, observed)
    on_latents = [site for site in sites if site["name"] not in observed]
    prior = _contract(on_latents, terms, enumerated.values())
    likelihood = (*joint, *(cost.negated() for cost in prior))
    return Marginal(summed, latents, observed, prior, likelihood)


def _refuse_sequences(
    sites: Sequence[Any], joint: Sequence[Cost], summed: str, guide: Mapping[str, Any]
) -> None:
    """Sequential enumeration gives all entries of a plate one value: no sum may couple them."""
    inside = [ordinal(site["cond_indep_stack"], site["dim_to_symbol"]) for site in sites]
    outside = [ordinal(cost.stack, cost.dims) for cost in joint]
    for name, site in guide.items():
        plates = ordinal(site["cond_indep_stack"], site["dim_to_symbol"])
        coupled = any(plates <= deep for deep in inside) and not all(plates <= o for o in outside)
        if site["infer"].get("_enum_total", 1) > 1 and coupled:
            raise UnsupportedSiteError(
                name,
                f"it is enumerated in sequence, inside a plate over which the model sums out "
                f"{summed!r}, so the entries of the plate would share its value",
                f"sample {name!r} (without infer={{'enumerate': ...}}), put {summed!r} into its "
                "plates, or use a sequential plate",
            )


def _refuse_weights(
    sites: Sequence[Any], summed: Sequence[str], latents: Sequence[str], observed: Sequence[str]
) -> None:
    for site in sites:
        if site.get("beta", 1.0) != 1.0:
            raise UnsupportedSiteError(
                summed[0],
                f"the model marginalises it out of the latents {sorted(latents)} and the observed "
                f"sites {sorted(observed)} together, and a part of that cannot be weighted by "
                f"beta = {site['beta']!r}",
                f"sample or enumerate {summed[0]!r} in the guide, or weigh {sorted(latents)} by 1",
            )


def _contract(
    sites: Sequence[Any], terms: Mapping[str, Packed], summed: Iterable[str]
) -> tuple[Cost, ...]:
    tree: OrderedDict[frozenset[str], list[Packed]] = OrderedDict()
    frames: dict[str, Any] = {}
    for site in sites:
        dims = site["dim_to_symbol"]
        frames |= {dims[frame.dim]: frame for frame in vectorised(site["cond_indep_stack"])}
        plates = ordinal(site["cond_indep_stack"], dims)
        tree.setdefault(plates, []).append(terms[site["name"]])
    contracted = contract_tensor_tree(tree, set(summed), ring=LogRing())
    scale, masked = _common_scale(sites), any(unweighted(site)[1] is not None for site in sites)
    return tuple(
        Cost(
            scaled(term, scale),
            tuple(frames[symbol] for symbol in plates),
            scale,
            masked,
            {frames[symbol].dim: symbol for symbol in plates},
        )
        for plates, group in contracted.items()
        for term in group
    )


def _common_scale(sites: Sequence[Any]) -> Any:
    scales = {site["name"]: unweighted(site)[0] for site in sites}
    first, *others = scales.values()
    for scale in scales.values():
        if isinstance(scale, Tensor) and scale.dim():
            _refuse_scales(scales)
    if any(not math.isclose(float(scale), float(first), rel_tol=1e-9) for scale in others):
        _refuse_scales(scales)
    return first


def _refuse_scales(scales: Mapping[str, Any]) -> None:
    raise UnsupportedSiteError(
        next(iter(scales)),
        "sites that are marginalised together need to share a common poutine.scale, a number, and "
        "theirs differ: "
        f"{ {name: str(scale) for name, scale in scales.items()} }",
        "put them into the same poutine.scale and the same subsampled plates",
    )
