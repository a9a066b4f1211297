"""The one place that imports ArviZ: labelled results, and the Pareto shape of weights."""

from .arrays import psis_khat, to_dataset, why_no_khat
from .export import to_inference_data

__all__ = ["psis_khat", "to_dataset", "to_inference_data", "why_no_khat"]
