r"""How :math:`\beta` enters a trace: one messenger, outermost, on the guide and on the model.

The messenger scales the log-density of latent sites, so that every Pyro loss sees
:math:`\log p(x \mid z) + \beta\,(\log p(z) - \log q(z))` and no model or guide takes a weight as an
argument. Scaling one side only is not a weighted KL: the two densities must carry the same weight.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from dataclasses import dataclass
from functools import partial
from operator import eq
from typing import Any, NamedTuple

from pyro import poutine
from pyro.distributions import Delta
from pyro.distributions.util import scale_and_mask
from pyro.poutine.block_messenger import BlockMessenger
from pyro.poutine.guide import GuideMessenger
from pyro.poutine.mask_messenger import MaskMessenger
from pyro.poutine.messenger import Messenger
from pyro.poutine.reparam_messenger import ReparamMessenger
from pyro.poutine.runtime import _PYRO_STACK
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from .decisions import decide_values

__all__ = [
    "WeightMessenger",
    "WeightedPrograms",
    "Weights",
    "factor_of",
    "is_zero",
    "sum_of",
    "times",
    "unweighted",
    "weigh",
    "weighed",
]

Site = dict[str, Any]

_AUXILIARY_SUFFIX = "_unconstrained"


def is_zero(weight: Any) -> bool:
    """Whether a weight is the Python number 0 (a tensor never is: its value is not looked at)."""
    return isinstance(weight, (int, float)) and weight == 0


def same(a: Any, b: Any) -> bool:
    """Whether two scales or two masks are equal."""
    return decide_values(lambda: _same(a, b))


def _same(a: Any, b: Any) -> Any:
    if a is b:
        return True
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and (a == b).all()
    return not isinstance(a, Tensor) and not isinstance(b, Tensor) and bool(a == b)


def constrained_name(name: str) -> str:
    """The site whose auxiliary ``name`` is (``z`` for ``z_unconstrained``), else ``name``."""
    return name.removesuffix(_AUXILIARY_SUFFIX)


class Weights(NamedTuple):
    """The weight of every latent site at one step.

    Args:
        default: Weight of the sites that ``by_site`` does not name.
        by_site: Weight by site name.

    Example:
        >>> weights = Weights(1.0, {"z": 4.0})
        >>> weights.of("z"), weights.of("z_unconstrained"), weights.of("w")
        (4.0, 4.0, 1.0)
    """

    default: Any = 1.0
    by_site: Mapping[str, Any] = {}

    def names(self, site: str) -> bool:
        """Whether the mapping names the site, or the site whose auxiliary it is."""
        return site in self.by_site or constrained_name(site) in self.by_site

    def of(self, site: str) -> Any:
        """The weight of a site; an auxiliary site ``z_unconstrained`` follows ``z``."""
        if not self.by_site:
            return self.default
        return self.by_site.get(site, self.by_site.get(constrained_name(site), self.default))

    @property
    def equal(self) -> bool:
        """Whether all sites share one weight."""
        questions = (partial(eq, weight, self.default) for weight in self.by_site.values())
        return all(decide_values(question, "if yes") for question in questions)


class WeightMessenger(Messenger):
    """Scales the log-densities of latent sites by their weights.

    In a guide it weighs every sample site (auxiliary sites and ``pyro.factor`` included), in a
    model the latents that the guide sampled. A :class:`~pyro.poutine.guide.GuideMessenger` runs
    the model inside the guide's call: ``role="both"`` weighs what is not observed. Where
    ``poutine.reparam`` puts a latent's prior into an observed ``Delta(log_density=...)``, that is
    weighed too (not the likelihood, where it splits an observed site). Other observed sites,
    ``pyro.deterministic`` and plate subsampling are never touched.

    A weight of 0 drops the term by masking it out, since 0 times minus infinity is nan; the
    incoming mask is kept beside it for :func:`unweighted`.

    Args:
        weights: The weights.
        role: ``"guide"``, ``"model"`` or ``"both"``.
        latents: Names of the sites that the guide sampled (read when the model runs).
    """

    def __init__(self, weights: Weights, role: str, latents: set[str]) -> None:
        super().__init__()
        self.weights, self.role, self.latents = weights, role, latents
        self.weighed: set[str] = set()
        self.observed: set[str] = set()
        self.unguided: set[str] = set()

    def _process_message(self, msg: Any) -> None:
        if msg["type"] == "sample" and not site_is_subsample(msg):
            self._weigh(msg)

    def _postprocess_message(self, msg: Any) -> None:
        pass

    def _weigh(self, msg: Site) -> None:
        if not self._weighs(msg):
            (self.observed if msg["is_observed"] else self.unguided).add(msg["name"])
            return
        self.weighed.add(msg["name"])
        msg["beta"] = weight = self.weights.of(msg["name"])
        if is_zero(weight):
            msg["unweighted_mask"], msg["mask"] = self._mask_in_the_end(msg), False
        else:
            scale = msg["scale"]
            msg["scale"] = weight * scale
            msg["scales"] = scale, msg["scale"]

    def _mask_in_the_end(self, msg: Any) -> Any:
        """The mask that a site will have once the handlers around this one have seen it."""
        mask = msg["mask"]
        for frame in reversed(_PYRO_STACK[: _PYRO_STACK.index(self)]):
            if isinstance(frame, BlockMessenger) and frame.hide_fn(msg):
                break
            if isinstance(frame, MaskMessenger):
                mask = frame.mask if mask is None else frame.mask & mask
        return mask

    def _weighs(self, msg: Site) -> bool:
        if self.role == "guide":
            return not msg["infer"].get("_deterministic")
        if msg["is_observed"]:
            return self._holds_prior(msg)
        return self.role == "both" or msg["name"] in self.latents

    def _holds_prior(self, msg: Site) -> bool:
        if type(msg["fn"]) is not Delta or not _is_reparameterised(msg["name"]):
            return False
        return f"{msg['name']}_split_0" not in self.observed


def _is_reparameterised(name: str) -> bool:
    configs = [frame.config for frame in _PYRO_STACK if isinstance(frame, ReparamMessenger)]
    return any(not isinstance(config, dict) or name in config for config in configs)


@dataclass(frozen=True)
class WeightedPrograms:
    """A model and a guide under their messengers; the checks follow after both have run."""

    model: Callable[..., Any]
    guide: Callable[..., Any]
    weights: Weights
    on_model: WeightMessenger
    on_guide: WeightMessenger

    @property
    def latents(self) -> set[str]:
        """Names of the latents that appeared."""
        return self.on_guide.weighed | self.on_model.weighed | self.on_model.unguided

    def check_known(self, known: Set[str], model_trace: Any) -> None:
        """Check the names of a mapping against the sites that ever appeared.

        Raises:
            ValueError: A name that no latent has.
        """
        for name in self.weights.by_site:
            if name not in known:
                raise ValueError(_unknown_name(name, sorted(self.latents), model_trace))

    def check_one_sided(self) -> None:
        """Check that every site that is on one side only has a weight of its own, or of another.

        Raises:
            ValueError: A weight is ambiguous.
        """
        if self.weights.equal or self.on_model is self.on_guide:
            return
        for name in sorted(self.on_guide.weighed ^ self.on_model.weighed):
            followed = constrained_name(name)
            if not self.weights.names(name) and (followed == name or followed not in self.latents):
                raise ValueError(
                    f"beta: site {name!r} appears on one side only, and the weights differ, so its "
                    f"weight is ambiguous; name it in the mapping, beta={{{name!r}: ...}}. But if "
                    "it holds the joint density of several latents (AutoMultivariateNormal), they "
                    "share one weight, beta={'*': ...}; a guide with a site for each latent, such "
                    "as AutoNormal, takes any weights"
                )

    @staticmethod
    def differing_scales(model_trace: Any, guide_trace: Any) -> Iterator[tuple[str, Any, Any]]:
        """The latents whose scales differ between the sides, with both scales."""
        for name, guide in guide_trace.nodes.items():
            model = model_trace.nodes.get(name, {})
            if "beta" in guide and "beta" in model and not same(model["scale"], guide["scale"]):
                yield name, model["scale"], guide["scale"]


def weigh(
    model: Callable[..., Any], guide: Callable[..., Any], weights: Weights
) -> WeightedPrograms:
    """Put the weights, outermost, on a model and a guide; neither is changed."""
    if isinstance(poutine.unwrap(guide), GuideMessenger):
        both = WeightMessenger(weights, "both", set())
        return WeightedPrograms(model, both(guide), weights, both, both)
    on_guide = WeightMessenger(weights, "guide", set())
    on_model = WeightMessenger(weights, "model", on_guide.weighed)
    return WeightedPrograms(on_model(model), on_guide(guide), weights, on_model, on_guide)


def unweighted(site: Site) -> tuple[Any, Any]:
    """The scale and the mask that a traced site has without its weight."""
    weight = site.get("beta", 1.0)
    if is_zero(weight):
        return site["scale"], site["unweighted_mask"]
    if isinstance(weight, float) and weight == 1.0:
        return site["scale"], site["mask"]
    own, weighted = site["scales"]
    is_last = site["scale"] is weighted
    return own if is_last else site["scale"] / weight, site["mask"]


def factor_of(value: Tensor, number: Any) -> Any:
    """A number as a factor of a tensor, in that one's precision, also where it is a tensor."""
    return number.to(value.dtype) if isinstance(number, Tensor) and not number.dim() else number


def weighed(value: Tensor, scale: Any, mask: Any) -> Tensor:
    """A log-density under a scale and a mask; itself where there is neither."""
    if mask is None and isinstance(scale, float) and scale == 1.0:
        return value
    scaled: Tensor = scale_and_mask(value, factor_of(value, scale), mask)
    return scaled


def times(value: Tensor, weight: Any) -> Tensor:
    """A tensor times a weight, in the tensor's precision; the tensor itself where that is 1."""
    is_one = isinstance(weight, float) and weight == 1.0
    product: Tensor = value if is_one else factor_of(value, weight) * value
    return product


def sum_of(values: Iterable[Any]) -> Any:
    """The sum of some tensors; of none, the number 0."""
    first, *others = tuple(values) or (0.0,)
    return sum(others, start=first)


def _unknown_name(name: str, latents: list[str], model_trace: Any) -> str:
    successors = [latent for latent in latents if latent.startswith(f"{name}_")]
    site = model_trace.nodes.get(name)
    if site is not None and successors:
        return (
            f"beta names site {name!r}, which is no latent here (it was reparameterised); "
            f"name {', '.join(map(repr, successors))} instead"
        )
    own = [n for n in latents if constrained_name(n) == n or constrained_name(n) not in latents]
    found = ", ".join(map(repr, own)) or "none"
    what = "but no latent has that name"
    if site is not None:
        what = "but that is a plate" if site_is_subsample(site) else "but that site is observed"
    return f"beta names site {name!r}, {what}; the latents are: {found}"
