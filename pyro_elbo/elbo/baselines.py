"""Pyro's baselines of a site: what is subtracted from its costs to lower the score's variance."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro.distributions.util import detach
from torch import Tensor

from ..errors import UnsupportedSiteError

__all__ = ["Baseline", "averages", "averages_kept", "check_averages"]

_PREFIX = "__baseline_avg_downstream_cost_"


def averages() -> dict[str, Tensor]:
    """The decaying averages in Pyro's parameter store, by their names there."""
    store = pyro.get_param_store()
    return {name: store[name].detach() for name in store if name.startswith(_PREFIX)}


@contextmanager
def averages_kept() -> Iterator[None]:
    """What happens inside does not move the decaying averages."""
    before = averages()
    try:
        yield
    finally:
        store = pyro.get_param_store()
        for name in averages().keys() - before.keys():
            del store[name]
        for name, value in before.items():
            store[name] = value


def check_averages(guide: Mapping[str, Any]) -> None:
    """Check that no site of a guide that enumerates in sequence has a decaying average.

    Raises:
        UnsupportedSiteError: One has. The average of one value's costs would be taken from those
            of the next, at the same sample, on which a baseline must not depend.
    """
    for name, site in guide.items():
        baseline = Baseline.of(site)
        if baseline is not None and baseline.use_decaying_avg_baseline:
            raise UnsupportedSiteError(
                name,
                "its baseline is a decaying average, and the guide enumerates in sequence: the "
                "average over one value's costs would depend on the sample that the next one sees",
                "use infer={'enumerate': 'parallel'} there, or a baseline without the average",
            )


@dataclass(frozen=True, eq=False)
class Baseline:
    """The options that ``infer={"baseline": {...}}`` gives a guide site.

    A baseline leaves the gradient's mean as it is, since a score's mean is 0. The decaying average
    lives in Pyro's parameter store, under the name that :class:`pyro.infer.TraceGraph_ELBO` uses.

    Args:
        site: Name of the site.
        nn_baseline: A network, trained to predict the cost.
        nn_baseline_input: Its input; no gradient flows back through it.
        baseline_value: The prediction itself, in place of a network.
        use_decaying_avg_baseline: Whether the cost's decaying average is subtracted.
        baseline_beta: The share of the past in that average.

    References:
        *Neural Variational Inference and Learning in Belief Networks* (Mnih & Gregor, 2014),
        arXiv 1402.0030.
    """

    site: str
    nn_baseline: Callable[[Any], Tensor] | None = None
    nn_baseline_input: Any = None
    baseline_value: Tensor | None = None
    use_decaying_avg_baseline: bool = False
    baseline_beta: float = 0.90

    @classmethod
    def of(cls, site: Any) -> Baseline | None:
        """The baseline of a traced site, if it asks for one.

        Raises:
            ValueError: An option is unknown, or two of them exclude each other.
        """
        if not site["infer"].get("baseline"):
            return None
        name, options = site["name"], dict(site["infer"]["baseline"])
        unknown = options.keys() - cls.__dataclass_fields__.keys() | (options.keys() & {"site"})
        if unknown:
            raise ValueError(
                f"site {name!r}: unknown baseline options {sorted(unknown)}; the options are "
                f"{sorted(cls.__dataclass_fields__.keys() - {'site'})}"
            )
        baseline = cls(name, **options)
        if baseline.nn_baseline is not None and baseline.baseline_value is not None:
            raise ValueError(
                f"site {name!r}: nn_baseline and baseline_value exclude each other; give one"
            )
        return baseline if baseline._learns or baseline.use_decaying_avg_baseline else None

    def subtract_from(self, cost: Tensor) -> tuple[Tensor, Any]:
        """The cost less the baseline, and the loss that trains the baseline.

        Raises:
            ValueError: The baseline has another shape than the cost.
        """
        average = self._decaying_average(cost) if self.use_decaying_avg_baseline else 0.0
        if not self._learns:
            return cost - average, 0.0
        predicted = torch.as_tensor(self._prediction())
        if predicted.shape != cost.shape:
            raise ValueError(
                f"site {self.site!r}: the baseline has shape {tuple(predicted.shape)}, and the "
                f"site's cost has {tuple(cost.shape)}; give it one value for each entry of the "
                "site's plates"
            )
        rest = cost - average - predicted
        return rest.detach(), (rest**2).sum()

    @property
    def _learns(self) -> bool:
        return self.nn_baseline is not None or self.baseline_value is not None

    def _prediction(self) -> Any:
        if self.nn_baseline is None:
            return self.baseline_value
        return self.nn_baseline(detach(self.nn_baseline_input))

    def _decaying_average(self, cost: Tensor) -> Tensor:
        store, name = pyro.get_param_store(), _PREFIX + self.site
        old = store[name].detach() if name in store else torch.zeros_like(cost)
        old = old if old.shape == cost.shape else old.mean().expand(cost.shape)
        new = (1 - self.baseline_beta) * cost + self.baseline_beta * old
        store[name] = torch.where(new.isfinite(), new, old)
        return old
