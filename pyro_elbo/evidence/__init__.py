r"""How large :math:`\log p(x)` is, and how sure that is."""

from .annealed import AnnealedImportance
from .bidirectional import BidirectionalMonteCarlo, EvidenceInterval
from .estimate import DatumEvidence, EvidenceEstimate, Minibatch
from .exact import Enumeration
from .importance import ImportanceWeighting

__all__ = [
    "AnnealedImportance",
    "BidirectionalMonteCarlo",
    "DatumEvidence",
    "Enumeration",
    "EvidenceEstimate",
    "EvidenceInterval",
    "ImportanceWeighting",
    "Minibatch",
]
