"""Callbacks that see the gradients: clipping them, and how noisy they are."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..diagnostics import gradient_signal
from ..errors import NonFiniteError
from ..evidence.checks import check_count
from ..evidence.modes import in_eval_mode
from .run import Run
from .streams import OwnStream

__all__ = ["ClipGradients", "GradientVariance"]


class ClipGradients:
    """Scales the gradients of all parameters down to a common norm, before the optimiser.

    Pyro's ``clip_args`` clip each parameter by itself, which turns the gradient's direction.

    Args:
        max_norm: The largest Euclidean norm over all parameters.

    Raises:
        ValueError: ``max_norm`` is not above 0.
        TypeError: At the start: the loss is none of this package's.

    Attributes: ``num_clipped``, the steps at which the norm was larger.

    References:
        *On the difficulty of training Recurrent Neural Networks* (Pascanu, Mikolov & Bengio, 2013),
        arXiv 1211.5063.
    """

    def __init__(self, max_norm: float) -> None:
        if not max_norm > 0 or math.isinf(max_norm):
            raise ValueError(f"max_norm must be finite and above 0, got {max_norm!r}")
        self.max_norm = max_norm
        self._handle: Any = None
        self._clipped: Tensor | int = 0

    @property
    def num_clipped(self) -> int:
        """The steps at which the norm was larger."""
        return int(self._clipped)

    def start(self, run: Run) -> None:
        """Have the loss show its gradients."""
        if not hasattr(run.loss, "register_gradient_hook"):
            raise TypeError(
                f"{type(run.loss).__name__} does not show its gradients; use a loss of this "
                "package, or clip_args of the optimiser"
            )
        self._handle = run.loss.register_gradient_hook(self._clip)

    def __call__(self, run: Run) -> None:
        """Nothing: the gradients were clipped within the step."""

    def finish(self, run: Run) -> None:
        """Have the loss forget it."""
        self._handle.remove()

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs."""
        return {"num_clipped": self.num_clipped}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore :meth:`state_dict`."""
        self._clipped = state["num_clipped"]

    def _clip(self, parameters: Mapping[str, Tensor]) -> None:
        norm = torch.nn.utils.clip_grad_norm_(parameters.values(), self.max_norm)
        self._clipped = self._clipped + (norm > self.max_norm).int()


class GradientVariance:
    r"""Measures the noise of each parameter's gradient now and then, where training stands.

    As :func:`~pyro_elbo.diagnostics.gradient_signal`, at the arguments of the step, with modules in
    eval mode and a stream of random numbers of its own; training stays as it would have been.

    Args:
        every: At steps that are multiples of this.
        num_samples: Evaluations each time, at least 2.
        seed: Of its random numbers.

    Raises:
        ValueError: A count is too small.

    Attributes: ``steps``; ``variance`` and ``ratio``, by parameter, lists of
    :math:`E|g - E[g]|^2` and of the signal-to-noise ratio, nan where a gradient is not finite.
    """

    def __init__(self, every: int = 100, num_samples: int = 30, seed: int = 0) -> None:
        check_count("every", every, 1)
        check_count("num_samples", num_samples, 2)
        self._every, self._num_samples = every, num_samples
        self._stream = OwnStream(seed)
        self.steps: list[int] = []
        self.variance: dict[str, list[float]] = {}
        self.ratio: dict[str, list[float]] = {}

    def start(self, run: Run) -> None:
        """Forget what was measured in an earlier run, unless this one goes on from it."""
        if not run.step:
            self.steps, self.variance, self.ratio = [], {}, {}
            self._stream.restart()

    def __call__(self, run: Run) -> None:
        """Measure, where it is time."""
        if run.step % self._every:
            return
        for series, found in zip((self.variance, self.ratio), self._measure(run), strict=True):
            for name in found.keys() - series.keys():
                series[name] = [math.nan] * len(self.steps)
            for name, values in series.items():
                values.append(float(found.get(name, math.nan)))
        self.steps.append(run.step)

    def _measure(self, run: Run) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor]]:
        model, guide = run.stepper.model, run.stepper.guide
        options: Any = {"elbo": run.loss, "num_samples": self._num_samples}
        try:
            with self._stream.on(), in_eval_mode(model, guide):
                signal = gradient_signal(model, guide, *run.args, **options, **run.kwargs)
        except NonFiniteError:
            return {}, {}
        return signal.variance, signal.ratio

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs."""
        measured = {"steps": self.steps, "variance": self.variance, "ratio": self.ratio}
        return {**measured, "stream": self._stream.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore :meth:`state_dict`."""
        self.steps, self.variance, self.ratio = state["steps"], state["variance"], state["ratio"]
        self._stream.load_state_dict(state["stream"])
