"""What optimisers do to a parameter, as functions of flat tensors, to be part of a graph.

Each takes its learning rate and what depends on the step as inputs, so that a schedule of either
changes no graph.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from pyro.optim.clipped_adam import ClippedAdam
from torch import Tensor

__all__ = ["INPUTS", "Update", "update_of"]

State = Mapping[str, Tensor]
Options = Mapping[str, Any]


class Update(Protocol):
    """The update of one kind of optimiser.

    Args:
        options: Its options that do not change, from ``param_groups``.
    """

    names: Sequence[str]
    counts: bool

    def numbers(self, options: Options, step: int, ahead: int = 0) -> list[float]:
        """What changes from step to step.

        Args:
            options: The options of the next step.
            step: The number of the step, the first being 1.
            ahead: How many steps after the next one it is.
        """

    def __call__(
        self, value: Tensor, grad: Tensor, state: State, numbers: Sequence[Tensor]
    ) -> tuple[Tensor, State]:
        """The new value and the new state."""

    def count(self, options: dict[str, Any], state: dict[str, Any]) -> None:
        """Count a step in the optimiser's own books, where those hold Python numbers."""


INPUTS = ("lr", "betas")
"""The options that are inputs of a graph, and may change from step to step."""


def _parts(*betas: float) -> list[float]:
    """What each average keeps of itself, and what it takes of the new."""
    return [part for beta in betas for part in (beta, 1 - beta)]


class _Update:
    names: Sequence[str] = ()
    counts = False

    def __init__(self, options: Options) -> None:
        self.options = options

    def count(self, options: dict[str, Any], state: dict[str, Any]) -> None:
        pass

    def decayed(self, value: Tensor, grad: Tensor) -> Tensor:
        grad = -grad if self.options.get("maximize") else grad
        decay = self.options["weight_decay"]
        return grad + decay * value if decay else grad


class _Adam(_Update):
    def __init__(self, options: Options) -> None:
        super().__init__(options)
        largest = ("max_exp_avg_sq",) if options["amsgrad"] else ()
        self.names = ("exp_avg", "exp_avg_sq", *largest)
        self.decouples = bool(options["weight_decay"] and options["decoupled_weight_decay"])

    def numbers(self, options: Options, step: int, ahead: int = 0) -> list[float]:
        beta1, beta2 = options["betas"]
        rate = float(options["lr"])
        kept = 1.0 - rate * self.options["weight_decay"]
        return [rate / (1 - beta1**step), math.sqrt(1 - beta2**step), kept, *_parts(beta1, beta2)]

    def __call__(
        self, value: Tensor, grad: Tensor, state: State, numbers: Sequence[Tensor]
    ) -> tuple[Tensor, State]:
        rate, root, kept, _, own1, beta2, own2 = numbers
        if self.decouples:
            grad, value = (-grad if self.options["maximize"] else grad), value * kept
        else:
            grad = self.decayed(value, grad)
        first = torch.lerp(state["exp_avg"], grad, own1.to(grad.dtype))
        second = beta2 * state["exp_avg_sq"] + own2 * grad * grad
        new = {"exp_avg": first, "exp_avg_sq": second}
        if self.options["amsgrad"]:
            new["max_exp_avg_sq"] = second = torch.maximum(state["max_exp_avg_sq"], second)
        return value - rate * first / (second.sqrt() / root + self.options["eps"]), new


class _ClippedAdam(_Update):
    names = ("exp_avg", "exp_avg_sq")
    counts = True

    def numbers(self, options: Options, step: int, ahead: int = 0) -> list[float]:
        beta1, beta2 = options["betas"]
        rate = float(options["lr"]) * self.options["lrd"] ** (1 + ahead)
        return [rate * math.sqrt(1 - beta2**step) / (1 - beta1**step), *_parts(beta1, beta2)]

    def __call__(
        self, value: Tensor, grad: Tensor, state: State, numbers: Sequence[Tensor]
    ) -> tuple[Tensor, State]:
        rate, beta1, own1, beta2, own2 = numbers
        bound = self.options["clip_norm"]
        grad = self.decayed(value, grad.clamp(-bound, bound))
        first = beta1 * state["exp_avg"] + own1 * grad
        varying = grad - first if self.options["centered_variance"] else grad
        second = beta2 * state["exp_avg_sq"] + own2 * varying * varying
        value = value - rate * first / (second.sqrt() + self.options["eps"])
        return value, {"exp_avg": first, "exp_avg_sq": second}

    def count(self, options: dict[str, Any], state: dict[str, Any]) -> None:
        options["lr"] *= options["lrd"]
        state["step"] += 1


class _SGD(_Update):
    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.names = ("momentum_buffer",) if options["momentum"] else ()

    def numbers(self, options: Options, step: int, ahead: int = 0) -> list[float]:
        return [float(options["lr"])]

    def __call__(
        self, value: Tensor, grad: Tensor, state: State, numbers: Sequence[Tensor]
    ) -> tuple[Tensor, State]:
        (rate,) = numbers
        grad, momentum = self.decayed(value, grad), self.options["momentum"]
        if not momentum:
            return value - rate * grad, {}
        new = momentum * state["momentum_buffer"] + (1 - self.options["dampening"]) * grad
        move = grad + momentum * new if self.options["nesterov"] else new
        return value - rate * move, {"momentum_buffer": new}


class _Adagrad(_Update):
    names = ("sum",)

    def numbers(self, options: Options, step: int, ahead: int = 0) -> list[float]:
        return [float(options["lr"]) / (1 + (step - 1) * self.options["lr_decay"])]

    def __call__(
        self, value: Tensor, grad: Tensor, state: State, numbers: Sequence[Tensor]
    ) -> tuple[Tensor, State]:
        (rate,) = numbers
        grad = self.decayed(value, grad)
        total = state["sum"] + grad * grad
        return value - rate * grad / (total.sqrt() + self.options["eps"]), {"sum": total}


class _RMSprop(_Update):
    def __init__(self, options: Options) -> None:
        super().__init__(options)
        momentum = ("momentum_buffer",) if options["momentum"] else ()
        centre = ("grad_avg",) if options["centered"] else ()
        self.names = ("square_avg", *momentum, *centre)

    def numbers(self, options: Options, step: int, ahead: int = 0) -> list[float]:
        return [float(options["lr"])]

    def __call__(
        self, value: Tensor, grad: Tensor, state: State, numbers: Sequence[Tensor]
    ) -> tuple[Tensor, State]:
        (rate,) = numbers
        alpha, momentum = self.options["alpha"], self.options["momentum"]
        grad = self.decayed(value, grad)
        square = alpha * state["square_avg"] + (1 - alpha) * grad * grad
        new, variance = {"square_avg": square}, square
        if self.options["centered"]:
            mean = new["grad_avg"] = torch.lerp(state["grad_avg"], grad, 1 - alpha)
            variance = square - mean * mean
        move = grad / (variance.sqrt() + self.options["eps"])
        if momentum:
            move = new["momentum_buffer"] = momentum * state["momentum_buffer"] + move
        return value - rate * move, new


_UPDATES: Mapping[type, type[_Update]] = {
    torch.optim.Adam: _Adam,
    torch.optim.AdamW: _Adam,
    ClippedAdam: _ClippedAdam,
    torch.optim.SGD: _SGD,
    torch.optim.Adagrad: _Adagrad,
    torch.optim.RMSprop: _RMSprop,
}


def update_of(optimizer: torch.optim.Optimizer) -> Any:
    """The update of an optimiser of one parameter; ``None`` where there is none in a graph."""
    kind = _UPDATES.get(type(optimizer))
    if kind is None or len(optimizer.param_groups) != 1:
        return None
    options = optimizer.param_groups[0]
    if options.get("differentiable") or any(isinstance(v, Tensor) for v in options.values()):
        return None
    return kind(dict(options))
