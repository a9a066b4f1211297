"""One run of the guide and one replay of the model, checked against each other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pyro import poutine
from pyro.infer import ELBO
from pyro.infer.util import is_validation_enabled
from pyro.poutine.guide import GuideMessenger
from pyro.poutine.util import site_is_subsample
from pyro.util import check_model_guide_match
from torch import Tensor

from ..errors import UnsupportedSiteError

__all__ = ["TracingELBO", "plate_indices", "sample_sites"]


class TracingELBO(ELBO):
    """A Pyro ELBO that traces and checks, and leaves every log-density to be computed once.

    ``max_plate_nesting``, where it is guessed, belongs to the last (model, guide) pair.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._given_nesting = self.max_plate_nesting
        self._guessed_for: tuple[Any, Any] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_guessed_for": None}

    def _get_traces(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Any:
        if self._guessed_for != (model, guide):
            self.max_plate_nesting = self._given_nesting
            self._guessed_for = (model, guide)
        return super()._get_traces(model, guide, args, kwargs)

    def _get_trace(
        self, model: Callable[..., Any], guide: Callable[..., Any], args: Any, kwargs: Any
    ) -> tuple[Any, Any]:
        runner = poutine.unwrap(guide)
        if isinstance(runner, GuideMessenger):
            guide(*args, **kwargs)
            model_trace, guide_trace = runner.get_traces()
            for name, site in runner.trace.nodes.items():
                if site_is_subsample(site):
                    model_trace.nodes[name] = site
        else:
            guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
            replayed = poutine.replay(model, trace=guide_trace)
            model_trace = poutine.trace(replayed).get_trace(*args, **kwargs)
        check_sites(sample_sites(model_trace), sample_sites(guide_trace))
        if is_validation_enabled():
            check_model_guide_match(model_trace, guide_trace, self.max_plate_nesting)
        return model_trace, guide_trace


def sample_sites(trace: Any) -> dict[str, Any]:
    """The sites that have a density, in order: no plate subsampling, no ``pyro.deterministic``."""
    return {name: site for name, site in trace.nodes.items() if _has_density(site)}


def _has_density(site: Any) -> bool:
    return (
        site["type"] == "sample"
        and not site_is_subsample(site)
        and not site["infer"].get("_deterministic")
    )


def plate_indices(trace: Any) -> dict[str, Tensor]:
    """A copy of the indices of each plate's data, by plate name."""
    return {
        name: torch.as_tensor(site["value"]).clone()
        for name, site in trace.nodes.items()
        if site_is_subsample(site)
    }


def check_sites(model: dict[str, Any], guide: dict[str, Any]) -> None:
    """Check that guide and model have the same latents.

    Raises:
        ValueError: A latent is on one side only, and not marked as auxiliary; or a name means one
            thing in the guide and another in the model.
        UnsupportedSiteError: A site is configured for enumeration.
    """
    for sites in (guide, model):
        for name, site in sites.items():
            if site["infer"].get("enumerate") and not site["is_observed"]:
                raise UnsupportedSiteError(
                    name,
                    "it is configured for enumeration",
                    "train with BetaELBOMixin over pyro.infer.TraceEnum_ELBO",
                )
    latents = {name for name, site in model.items() if not site["is_observed"]}
    for name in sorted(latents - guide.keys()):
        raise ValueError(
            f"the model's latent {name!r} is not sampled by the guide (which samples "
            f"{sorted(guide)}); sample it in the guide, or observe it in the model (obs=...)"
        )
    for name in sorted(model.keys() & guide.keys() - latents):
        if guide[name]["infer"].get("is_auxiliary"):
            raise ValueError(
                f"the guide's auxiliary site or factor {name!r} has the name of an observed site "
                "or factor of the model; rename one of them"
            )
    for name, site in guide.items():
        if name not in latents and not site["infer"].get("is_auxiliary"):
            where = "is observed by the model" if name in model else "does not appear in the model"
            raise ValueError(
                f"the guide samples {name!r}, which {where}; remove it from the guide, or mark it "
                "with infer={'is_auxiliary': True} if it is an auxiliary variable"
            )
