"""Is the guide any good: each function takes a model and a guide, and returns a frozen result."""

from .amortisation import AmortisationGap, amortisation_gap
from .calibration import Calibration, sbc, vsbc
from .collapse import CollapseReport, posterior_collapse
from .gap import DatumGap, EvidenceGapEstimate, evidence_gap
from .psis import khat
from .rate import RateDistortion, rate_distortion
from .report import Finding, GuideReport, guide_report
from .signal import GradientSignal, gradient_signal
from .surgery import SurgeryReport, elbo_surgery
from .tails import KhatReport, KhatShares, WeightTails

__all__ = [
    "AmortisationGap",
    "Calibration",
    "CollapseReport",
    "DatumGap",
    "EvidenceGapEstimate",
    "Finding",
    "GradientSignal",
    "GuideReport",
    "KhatReport",
    "KhatShares",
    "RateDistortion",
    "SurgeryReport",
    "WeightTails",
    "amortisation_gap",
    "elbo_surgery",
    "evidence_gap",
    "gradient_signal",
    "guide_report",
    "khat",
    "posterior_collapse",
    "rate_distortion",
    "sbc",
    "vsbc",
]
