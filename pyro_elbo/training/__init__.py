"""What goes with training: callbacks, each a plain callable of the step."""

from .track_evidence import TrackEvidence

__all__ = ["TrackEvidence"]
