"""Training: the loop, what it remembers, and what watches it."""

from .checkpoint import Checkpoint
from .evaluate import evaluate
from .evaluate_on import EvaluateOn
from .fit import fit
from .gradients import ClipGradients, GradientVariance
from .history import History
from .learning_rate import LearningRate
from .run import Run
from .tensorboard import TensorBoard
from .track_evidence import TrackEvidence

__all__ = [
    "Checkpoint",
    "ClipGradients",
    "EvaluateOn",
    "GradientVariance",
    "History",
    "LearningRate",
    "Run",
    "TensorBoard",
    "TrackEvidence",
    "evaluate",
    "fit",
]
