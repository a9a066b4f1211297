"""A guide whose distributions have parameters of their own for each datum."""

from __future__ import annotations

from collections.abc import Mapping
from inspect import getattr_static
from typing import Any

from pyro import poutine
from pyro.distributions import (
    Delta,
    ExpandedDistribution,
    Independent,
    MaskedDistribution,
    TransformedDistribution,
)
from pyro.poutine.messenger import Messenger
from torch import nn
from torch.distributions import (
    ExpTransform,
    PowerTransform,
    SigmoidTransform,
    SoftmaxTransform,
    StickBreakingTransform,
    transform_to,
)
from torch.distributions import Independent as TorchIndependent
from torch.distributions import TransformedDistribution as TorchTransformed

from ..elbo.dependencies import Program
from ..elbo.sites import has_base
from ..elbo.traces import sample_sites
from ..elbo.tracing import is_messenger
from ..errors import UnsupportedSiteError

__all__ = ["FreeFamilies"]

Constants = (
    ExpTransform,
    PowerTransform,
    SigmoidTransform,
    SoftmaxTransform,
    StickBreakingTransform,
)


class FreeFamilies(nn.Module):
    """Runs a guide with each distribution's parameters free, from where they are.

    A ``Delta`` that is computed from other sites stays so.

    Args:
        guide: The guide.
        args: What it takes.
        kwargs: What it takes.

    Raises:
        UnsupportedSiteError: A site's family has no parameters to free, as a flow has none for each
            datum; or its distribution depends on another site of the guide.
    """

    def __init__(self, guide: Any, args: Any, kwargs: Any) -> None:
        super().__init__()
        self._guide = guide
        trace = poutine.trace(guide).get_trace(*args, **kwargs)
        sites = {name: s for name, s in sample_sites(trace).items() if not _is_computed(s)}
        _check_independence(guide, args, kwargs, trace, sites)
        families = {name: _family(name, site["fn"]) for name, site in sites.items()}
        self._names = list(families)
        self.families = nn.ModuleList(families.values())

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the guide."""
        families = dict(zip(self._names, self.families, strict=True))
        with _Replace({name: family() for name, family in families.items()}):
            return self._guide(*args, **kwargs)


class _Replace(Messenger):
    def __init__(self, distributions: Mapping[str, Any]) -> None:
        super().__init__()
        self.distributions = distributions

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.distributions:
            msg["fn"] = self.distributions[msg["name"]]


class _Family(nn.Module):
    """Plain distributions of one class, one for each entry of a batch."""

    def __init__(self, fn: Any) -> None:
        super().__init__()
        self._class, self._transforms = type(fn), {}
        self.free = nn.ParameterDict()
        for name in _own_parameters(fn):
            constraint = fn.arg_constraints[name]
            value = getattr(fn, name).detach()
            event = value.shape[value.dim() - constraint.event_dim :]
            transform = transform_to(constraint)
            start = transform.inv(value.expand(fn.batch_shape + event))
            self._transforms[name] = transform
            self.free[name] = nn.Parameter(start.clone())

    def forward(self) -> Any:
        values = {name: self._transforms[name](raw) for name, raw in self.free.items()}
        return self._class(**values)


class _Wrapped(nn.Module):
    """A family inside of what reinterprets or transforms it."""

    def __init__(self, family: Any, wrap: Any) -> None:
        super().__init__()
        self.family, self._wrap = family, wrap

    def forward(self) -> Any:
        return self._wrap(self.family())


def _family(name: str, fn: Any) -> Any:
    if isinstance(fn, TorchIndependent):
        dims = fn.reinterpreted_batch_ndims
        return _Wrapped(_family(name, fn.base_dist), lambda base: Independent(base, dims))
    if isinstance(fn, MaskedDistribution):
        return _Wrapped(_family(name, fn.base_dist), lambda base: base.mask(fn._mask))
    if isinstance(fn, ExpandedDistribution):
        return _family(name, fn.base_dist.expand(fn.batch_shape))
    if isinstance(fn, TorchTransformed) and not fn.arg_constraints:
        transforms = fn.transforms
        if all(isinstance(transform, Constants) for transform in transforms):
            kind = TransformedDistribution
            return _Wrapped(_family(name, fn.base_dist), lambda base: kind(base, transforms))
        _refuse(name, fn)
    try:
        family = _Family(fn)
    except (NotImplementedError, TypeError):
        family = None
    if family is None or not len(family.free):
        _refuse(name, fn)
    return family


def _own_parameters(fn: Any) -> list[str]:
    """What it was made of; of several that say the same (probs and logits), one."""
    names = [name for name in fn.arg_constraints if _is_kept(fn, name)]
    for same in (("logits", "probs"), ("scale_tril", "covariance_matrix", "precision_matrix")):
        first = next((name for name in same if name in names), None)
        names = [name for name in names if name == first or name not in same]
    return names


def _is_kept(fn: Any, name: str) -> bool:
    return name in vars(fn) or isinstance(getattr_static(type(fn), name, None), property)


def _refuse(name: str, fn: Any) -> None:
    raise UnsupportedSiteError(
        name,
        f"its {type(fn).__name__} has no parameters that each datum could have for itself, so its "
        "family cannot be fitted datum by datum",
        "use a guide of plain distributions, such as Normal(...).to_event(1)",
    )


def _is_computed(site: Any) -> bool:
    return has_base(site["fn"], Delta)


def _check_independence(guide: Any, args: Any, kwargs: Any, trace: Any, sites: Any) -> None:
    if is_messenger(guide):
        raise UnsupportedSiteError(
            next(iter(sites)),
            "its guide runs the model inside of its own call",
            "use a guide of its own program, such as AutoNormal",
        )
    if len(sites) < 2:
        return
    parents = Program(_nothing, guide, args, kwargs).trace_parents(trace, trace)[1]
    for name in sites:
        if name not in parents or parents[name] & sites.keys():
            raise UnsupportedSiteError(
                name,
                "its distribution in the guide may depend on another site, and parameters of its "
                "own could not",
                "use a guide of independent sites",
            )


def _nothing(*args: Any, **kwargs: Any) -> None:
    """A model without sites."""
