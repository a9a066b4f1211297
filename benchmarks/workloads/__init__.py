"""Models to measure, each as a Pyro program and as hand-written PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from .eight_schools import eight_schools
from .gaussian_mixture import gaussian_mixture
from .hidden_markov import hidden_markov
from .logistic import logistic, logistic_subsampled
from .nested_plates import nested_plates
from .scalar_sites import scalar_sites
from .semi_supervised import semi_supervised
from .three_level import three_level
from .vae import vae, vae_wide
from .workload import ByHand, Workload

__all__ = ["ENUMERATED", "SIZED", "SMALL", "VAES", "WORKLOADS", "ByHand", "Workload"]

WORKLOADS: Mapping[str, Callable[..., Workload]] = {
    "vae": vae,
    "vae_wide": vae_wide,
    "eight_schools": eight_schools,
    "logistic": logistic,
    "logistic_subsampled": logistic_subsampled,
    "three_level": three_level,
    "scalar_sites": scalar_sites,
    "gaussian_mixture": gaussian_mixture,
    "hidden_markov": hidden_markov,
    "semi_supervised": semi_supervised,
}
"""The workloads that every variant is measured on."""

SMALL = ("eight_schools", "logistic_subsampled", "three_level")
VAES = ("vae", "vae_wide", "semi_supervised")
ENUMERATED = ("gaussian_mixture", "hidden_markov", "semi_supervised")

SIZED: Mapping[str, Callable[..., Workload]] = {**WORKLOADS, "nested_plates": nested_plates}
"""All of them; those that growth is measured on take a size."""
