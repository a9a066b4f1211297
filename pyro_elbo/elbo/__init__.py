"""The losses: one base, three views."""

from .base import ViewELBO
from .beta import BetaELBOMixin
from .entropy import TraceEntropy_ELBO
from .gap import TraceGap_ELBO
from .kl import TraceKL_ELBO
from .plan import Plan, SitePlan
from .sites import LatentSite

__all__ = [
    "BetaELBOMixin",
    "LatentSite",
    "Plan",
    "SitePlan",
    "TraceEntropy_ELBO",
    "TraceGap_ELBO",
    "TraceKL_ELBO",
    "ViewELBO",
]
