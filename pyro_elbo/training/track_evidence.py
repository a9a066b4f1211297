"""The gap while a guide is being trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..diagnostics import EvidenceGapEstimate, evidence_gap
from ..evidence.checks import check_count
from ..evidence.modes import check_made, forgetting, in_eval_mode
from .run import Run
from .streams import OwnStream

__all__ = ["TrackEvidence"]

COLUMNS = ("log_evidence", "log_evidence_error", "elbo")


class TrackEvidence:
    """Measures evidence and ELBO now and then, and leaves training as it would have been.

    Its random numbers are a stream of their own, and modules are in eval mode. Parameters that
    training has not made yet are made for the measurement alone. ``steps``, ``log_evidence``,
    ``log_evidence_error``, ``elbo`` and ``gap`` hold what was measured; ``estimates`` the whole
    records of this process, which a checkpoint does not keep.

    Args:
        method: An estimator of :mod:`pyro_elbo.evidence`.
        every: At steps that are multiples of this.
        model: The model.
        guide: The guide.
        *args: What both take.
        num_samples: Samples for the ELBO.
        seed: Of its random numbers.
        **kwargs: What both take.

    Raises:
        ValueError: ``every`` or ``num_samples`` is too small.

    Law:
        Training with it and without it ends at the same parameters, bit for bit.

    Example:
        >>> import torch, pyro, pyro.distributions as dist
        >>> from pyro.infer import SVI
        >>> from pyro_elbo import TraceKL_ELBO, evidence
        >>> from pyro_elbo.training import TrackEvidence
        >>> def model(x):
        ...     pyro.sample("x", dist.Normal(pyro.sample("z", dist.Normal(0., 1.)), 1.), obs=x)
        >>> def guide(x):
        ...     pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.)), 0.7))
        >>> x = torch.tensor(2.0)
        >>> svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.1}), TraceKL_ELBO())
        >>> track = TrackEvidence(evidence.ImportanceWeighting(500), 10, model, guide, x)
        >>> for step in range(21):
        ...     track(step)
        ...     _ = svi.step(x)
        >>> track.steps, bool(track.gap[0] > track.gap[-1])
        ([0, 10, 20], True)
    """

    def __init__(
        self,
        method: Any,
        every: int,
        model: Any,
        guide: Any,
        *args: Any,
        num_samples: int = 100,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        check_count("every", every, 1)
        check_count("num_samples", num_samples, 2)
        self._method, self._every, self._num_samples = method, every, num_samples
        self._program = model, guide, *args
        self._kwargs = kwargs
        self._stream = OwnStream(seed)
        self._columns: dict[str, list[float]] = {name: [] for name in COLUMNS}
        self.steps: list[int] = []
        self.estimates: list[EvidenceGapEstimate] = []

    def start(self, run: Run) -> None:
        """Forget what was measured in an earlier run, unless this one goes on from it."""
        if not run.step:
            self._columns = {name: [] for name in COLUMNS}
            self.steps, self.estimates = [], []
            self._stream.restart()

    def __call__(self, run: Run | int) -> None:
        """Measure, where it is time.

        Args:
            run: The run of :func:`~pyro_elbo.fit`, or the number of steps that were taken.

        Raises:
            ValueError: The guide is an AutoGuide that has not run yet.
        """
        step = run if isinstance(run, int) else run.step
        if step % self._every:
            return
        model, guide, *args = self._program
        settings = {"estimator": self._method, "num_samples": self._num_samples}
        check_made(guide)
        with self._stream.on(), forgetting(), in_eval_mode(model, guide):
            estimate = evidence_gap(model, guide, *args, **settings, **self._kwargs)
        self.steps.append(step)
        self.estimates.append(estimate)
        evidence = estimate.evidence
        values = (evidence.value, evidence.standard_error, estimate.elbo.value)
        for name, value in zip(COLUMNS, values, strict=True):
            self._columns[name].append(float(value))

    @property
    def log_evidence(self) -> Tensor:
        """The evidence at each step measured, in nats."""
        return self._column("log_evidence")

    @property
    def log_evidence_error(self) -> Tensor:
        """Its standard error."""
        return self._column("log_evidence_error")

    @property
    def elbo(self) -> Tensor:
        """The ELBO at each step measured, in nats."""
        return self._column("elbo")

    @property
    def gap(self) -> Tensor:
        """The one minus the other."""
        return self.log_evidence - self.elbo

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs: what was measured, and the stream."""
        return {"steps": self.steps, "columns": self._columns, "stream": self._stream.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore :meth:`state_dict`."""
        self.steps = list(state["steps"])
        self._columns = {name: list(values) for name, values in state["columns"].items()}
        self._stream.load_state_dict(state["stream"])

    def _column(self, name: str) -> Tensor:
        return torch.tensor(self._columns[name], dtype=torch.float64)
