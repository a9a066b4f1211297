"""Is the guide any good: each function takes a model and a guide, and returns a frozen result."""

from .gap import DatumGap, EvidenceGapEstimate, evidence_gap

__all__ = ["DatumGap", "EvidenceGapEstimate", "evidence_gap"]
