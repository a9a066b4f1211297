"""Is the guide any good: each function takes a model and a guide, and returns a frozen result."""

from .amortisation import AmortisationGap, amortisation_gap
from .collapse import CollapseReport, posterior_collapse
from .gap import DatumGap, EvidenceGapEstimate, evidence_gap
from .surgery import SurgeryReport, elbo_surgery

__all__ = [
    "AmortisationGap",
    "CollapseReport",
    "DatumGap",
    "EvidenceGapEstimate",
    "SurgeryReport",
    "amortisation_gap",
    "elbo_surgery",
    "evidence_gap",
    "posterior_collapse",
]
