"""Training: the loop, what it remembers, and what watches it."""

from .checkpoint import Checkpoint
from .evaluate import evaluate
from .fit import fit
from .history import History
from .run import Run
from .track_evidence import TrackEvidence

__all__ = ["Checkpoint", "History", "Run", "TrackEvidence", "evaluate", "fit"]
