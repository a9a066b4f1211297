"""A loss with its model and guide as one :class:`torch.nn.Module`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pyro.infer.elbo import ELBOModule
from torch import Tensor, nn

from .nonfinite import drop_gradients, nonfinite_gradients
from .shards import ddp_group, own_subsamples
from .tracers import ParamCapture

__all__ = ["BetaELBOModule"]


class BetaELBOModule(ELBOModule):
    """Computes the differentiable loss of a fixed model and guide.

    Guides that create their parameters when they first run (AutoGuides) are initialised by one
    call, ``module(*args)`` under ``torch.no_grad()``, before an optimiser reads ``parameters()``.
    In train mode with gradients enabled each call counts as one step of the loss's schedule, and a
    loss that is not finite is met as ``on_nonfinite`` says. The gradients are not seen here: call
    :meth:`check_gradients` between ``backward()`` and the optimiser's step.

    Args:
        model: A module, or a function without parameters.
        guide: A module.
        elbo: The loss.

    Raises:
        TypeError: The guide is a plain function, or the loss has no ``differentiable_loss``.
        ValueError: On the first call: ``pyro.param`` made a parameter that no module holds.
    """

    elbo: Any

    def __init__(self, model: Any, guide: Any, elbo: Any) -> None:
        if not isinstance(guide, nn.Module):
            raise TypeError(
                "elbo(model, guide) needs a guide that is a torch.nn.Module, or its parameters "
                "would not be found; write it as a pyro.nn.PyroModule, or train it with SVI"
            )
        if not hasattr(elbo, "differentiable_loss"):
            raise TypeError(f"{type(elbo).__name__} has no differentiable_loss; train it with SVI")
        super().__init__(model, guide, elbo)
        self._checked = False

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """The loss in nats, a 0-dim tensor with a graph."""
        with own_subsamples():
            if self._checked:
                loss: Tensor = super().forward(*args, **kwargs)
            else:
                loss = self._checked_forward(super().forward, *args, **kwargs)
        if self.training and torch.is_grad_enabled():
            loss = self.elbo._admitted(loss)
            self.elbo._count_evaluation()
        return loss

    def check_gradients(self) -> bool:
        """Whether every gradient is finite; else no parameter has one any more.

        Raises:
            NonFiniteError: One is not, it is named, and ``on_nonfinite`` is ``"raise"``.
            StopTraining: The same where it is ``"stop"``.
        """
        parameters = dict(self.named_parameters())
        bad = nonfinite_gradients(parameters)
        if bad:
            drop_gradients(parameters.values())
            name, kind = next(iter(bad.items()))
            self.elbo._refuse(f"the gradient of parameter {name!r} is {kind}")
        return not bad

    def get_extra_state(self) -> dict[str, int]:
        """The loss's step count, which ``state_dict()`` stores."""
        state: dict[str, int] = self.elbo.state_dict()
        return state

    def set_extra_state(self, state: dict[str, int]) -> None:
        """Restore the loss's step count."""
        self.elbo.load_state_dict(state)

    def _checked_forward(self, forward: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        before = {id(parameter) for parameter in self.parameters()}
        with ParamCapture() as captured:
            loss = forward(*args, **kwargs)
        held = {id(parameter) for parameter in self.parameters()}
        if ddp_group() is not None and not held <= before:
            raise ValueError(
                "parameters were made (or taken from the param store) inside of "
                "DistributedDataParallel, which does not know them; "
                "call elbo(model, guide)(*args) under torch.no_grad() before it is wrapped"
            )
        for name, parameter in captured.parameters.items():
            if id(parameter) not in held:
                raise ValueError(
                    f"parameter {name!r} belongs to no module, so module.parameters() lacks it; "
                    "make it a PyroParam of a PyroModule; if it is one, Pyro's store has an older "
                    "parameter of that name: call pyro.clear_param_store() first"
                )
        self._checked = True
        return loss
