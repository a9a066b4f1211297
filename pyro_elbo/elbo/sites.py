"""A latent as a view sees it: one site, or several that belong together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property, partial
from operator import eq
from typing import Any

from pyro.distributions import Delta
from torch.distributions import ComposeTransform, IndependentTransform, TransformedDistribution

from ..decisions import decide, decide_values
from ..weighting import constrained_name, same, unweighted
from .cost import Cost
from .marginals import Marginal

__all__ = ["LatentSite", "has_base", "same_mask", "same_scale"]


@dataclass(eq=False)
class LatentSite:
    """A latent as a view sees it: one site, or a group whose density cannot be split.

    Args:
        name: The site; in a joint group, the guide's auxiliary site.
        role: ``"latent"``, ``"joint"``, ``"map"`` or ``"factor"``.
        prior_sites: The model's sites of the group, by name.
        guide_sites: The guide's sites of the group, by name.
        marginal: The group of marginalised sites that the latent hangs on in the model, if any;
            its prior is then not among ``prior_sites``.
        is_density: Whether the guide has a density over all dimensions of the group; it has none
            over a point mass.
    """

    name: str
    role: str
    prior_sites: Mapping[str, Any]
    guide_sites: Mapping[str, Any]
    marginal: Marginal | None = None
    is_density: bool = True

    @property
    def members(self) -> tuple[str, ...]:
        """Names of the sites of the group, the guide's first."""
        summed = () if self.marginal is None else self.marginal.enumerated
        return tuple(dict.fromkeys([*self.guide_sites, *self.prior_sites, *summed]))

    @property
    def marginal_prior(self) -> tuple[Cost, ...]:
        """The log prior that is left when the model's enumerated sites are summed out."""
        return () if self.marginal is None else self.marginal.prior

    @cached_property
    def beta(self) -> Any:
        """The weight that the group's sites share.

        Raises:
            ValueError: Their weights differ.
        """
        sites = {**self.prior_sites, **self.guide_sites}
        betas = {name: site["beta"] for name, site in sites.items()}
        first = next(iter(betas.values()))
        questions = (partial(eq, beta, first) for beta in betas.values())
        if not all(decide_values(question, "if yes") for question in questions):
            raise ValueError(
                f"beta differs inside the joint group of {self.name!r} ({betas}), whose density "
                "cannot be split; give its sites one weight"
            )
        return first

    @property
    def prior(self) -> Any:
        """The model's site, where the group has one, and it names the group; else ``None``."""
        return self.prior_sites[self.name] if self.prior_sites.keys() == {self.name} else None

    @cached_property
    def density(self) -> Any:
        """The one guide site that holds the latent's density; ``None`` where several share it.

        An auxiliary site holds that of ``z`` too, where ``z`` is its sample unchanged.
        """
        others = [name for name in self.guide_sites if name != self.name]
        if self.guide_sites.keys() == {self.name}:
            return self.guide_sites[self.name]
        if len(others) == 1 and constrained_name(others[0]) == self.name:
            auxiliary = self.guide_sites[others[0]]
            return auxiliary if _is_copy(self.guide_sites[self.name], auxiliary) else None
        return None

    @property
    def guide(self) -> Any:
        """The distribution of :attr:`density`, without transforms that change nothing."""
        return without_identities(self.density["fn"])


def _is_copy(site: Any, auxiliary: Any) -> bool:
    """Whether a Delta repeats an auxiliary's sample, with no Jacobian, and counts as often."""
    fn = site["fn"]
    if not is_kind(type(fn), Delta) or fn.batch_shape != auxiliary["fn"].batch_shape:
        return False
    return (
        decide(lambda: site["value"].is_set_to(auxiliary["value"]) and not fn.log_density.any())
        and same_scale(site, auxiliary)
        and same_mask(site, auxiliary)
    )


def same_scale(a: Any, b: Any) -> bool:
    """Whether two sites have equal scales, their weights left out."""
    return same(unweighted(a)[0], unweighted(b)[0])


def same_mask(a: Any, b: Any) -> bool:
    """Whether two sites have equal masks."""
    return same(unweighted(a)[1], unweighted(b)[1])


def without_identities(fn: Any) -> Any:
    """A distribution without the outer transforms that are the identity."""
    while isinstance(fn, TransformedDistribution) and all(map(_is_identity, fn.transforms)):
        fn = fn.base_dist
    return fn


def _is_identity(transform: Any) -> bool:
    if isinstance(transform, IndependentTransform):
        return _is_identity(transform.base_transform)
    return isinstance(transform, ComposeTransform) and not transform.parts


def has_base(fn: Any, kinds: Any) -> bool:
    """Whether a distribution, or one that it wraps, is of one of the kinds."""
    while fn is not None:
        if is_kind(type(fn), kinds):
            return True
        fn = getattr(fn, "base_dist", None)
    return False


def _is_kind(cls: Any, kinds: Any) -> bool:
    return issubclass(cls, kinds)


is_kind: Callable[[Any, Any], bool] = cache(_is_kind)
"""Whether a class is one of some kinds; asking its metaclass each time would be slow."""
