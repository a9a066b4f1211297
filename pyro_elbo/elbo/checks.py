"""What a weight may be, and which latents may have one."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any

from torch import Tensor

from ..errors import UnsupportedSiteError
from ..weighting import WeightedPrograms

__all__ = ["check_marginalised", "is_count", "weight_at"]


def is_count(value: Any, least: int) -> bool:
    """Whether a value is an integer that is large enough (a truth value is none)."""
    is_integer = isinstance(value, Integral) and not isinstance(value, bool)
    return is_integer and int(value) >= least


def weight_at(value: Any, step: int, name: str) -> float:
    """The weight that a number or a schedule gives at a step.

    Raises:
        ValueError: It is negative, nan or infinite.
        TypeError: It is no real number.
    """
    weight = value(step) if callable(value) else value
    if type(weight) is float and 0.0 <= weight < math.inf:
        return weight
    if isinstance(weight, Tensor) and weight.dim() == 0:
        weight = float(weight.detach())
    if not isinstance(weight, Real) or isinstance(weight, bool):
        raise TypeError(
            f"{name} must be a number, a schedule (int -> number) or a mapping from site names to "
            f"either; at step {step} it is {weight!r}"
        )
    try:
        number = float(weight)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number) or number < 0:
        source = f", from {value!r}" if callable(value) else ""
        raise ValueError(f"{name} must be finite and >= 0; at step {step} it is {number!r}{source}")
    return number


def check_marginalised(programs: WeightedPrograms, model_trace: Any, guide_trace: Any) -> None:
    """Refuse latents that the guide lacks, but for those that the loss marginalises unweighted.

    Raises:
        ValueError: The loss does not marginalise such a site.
        UnsupportedSiteError: It does, and the site's weight is not 1.
    """
    for name in sorted(programs.on_model.unguided - guide_trace.nodes.keys()):
        if model_trace.nodes[name]["infer"].get("_enumerate_dim") is None:
            raise ValueError(
                f"the model's latent {name!r} is not sampled by the guide, and this loss does not "
                "enumerate it; sample it in the guide, or use a loss that enumerates, such as "
                "those of this package"
            )
        if programs.weights.of(name) != 1.0:
            raise UnsupportedSiteError(
                name,
                "the model marginalises it, so its prior cannot be weighted by beta != 1",
                f"sample or enumerate it in the guide, or weigh it by 1, beta={{{name!r}: 1}}",
            )
