"""Training: the loop, what it remembers, and what watches it."""

from .checkpoint import Checkpoint
from .collapse_monitor import CollapseMonitor
from .early_stopping import EarlyStopping
from .evaluate import evaluate
from .evaluate_on import EvaluateOn
from .fit import fit
from .gradients import ClipGradients, GradientVariance
from .history import History
from .learning_rate import LearningRate
from .run import Run
from .stop_rules import Plateau, RelativeChange, StopRule
from .tensorboard import TensorBoard
from .track_evidence import TrackEvidence

__all__ = [
    "Checkpoint",
    "ClipGradients",
    "CollapseMonitor",
    "EarlyStopping",
    "EvaluateOn",
    "GradientVariance",
    "History",
    "LearningRate",
    "Plateau",
    "RelativeChange",
    "Run",
    "StopRule",
    "TensorBoard",
    "TrackEvidence",
    "evaluate",
    "fit",
]
