"""One training step: its gradients, what they are held to, and who sees them."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from pyro.infer.util import torch_backward
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from ..errors import NonFiniteError
from ..weighting import is_zero
from .baselines import averages_kept
from .costing import CostingELBO
from .dependencies import Program
from .nonfinite import (
    NonFinitePolicy,
    drop_gradients,
    nonfinite_gradients,
    nonfinite_terms,
    sites_to_blame,
)
from .recording import Particle
from .shards import ddp_group
from .tracers import ParamCapture

__all__ = ["StepELBO"]

GradientHook = Callable[[Mapping[str, Tensor]], None]


class StepELBO(CostingELBO):
    """Takes gradients only where every term and every gradient is finite."""

    terms: Any
    differentiable_loss: Callable[..., Tensor]
    _particles: Callable[[Program], Sequence[Particle]]

    def __init__(self, *args: Any, on_nonfinite: str = "raise", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._nonfinite = NonFinitePolicy(on_nonfinite)
        self._gradient_hooks: OrderedDict[int, GradientHook] = OrderedDict()

    def loss_and_grads(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> float:
        """Minus the objective, in nats; adds its gradients to the parameters, and counts a step."""
        value, parameters = self.gradients(model, guide, *args, **kwargs)
        self.show_gradients(parameters)
        self._count_evaluation()
        return value

    def gradients(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> tuple[float, Mapping[str, Tensor]]:
        """Minus the objective, and the parameters that have its gradients now, by name.

        There are none where the step is refused. No hook sees them, and no step is counted.
        """
        state = torch.get_rng_state()
        with ParamCapture() as captured:
            loss = self.differentiable_loss(model, guide, *args, **kwargs)
        value, parameters = float(loss.detach()), captured.parameters
        if math.isfinite(value):
            torch_backward(loss, retain_graph=self.retain_graph)
        bad = nonfinite_gradients(parameters)
        if bad or not math.isfinite(value):
            drop_gradients(parameters.values())
            program = Program(model, guide, args, kwargs)
            self._refuse(self._blame(bad, parameters, program, state))
            return value, {}
        return value, parameters

    def show_gradients(self, parameters: Mapping[str, Tensor]) -> None:
        """Have every hook see the gradients that an optimiser is about to be given."""
        for hook in tuple(self._gradient_hooks.values()) if parameters else ():
            hook(parameters)

    def register_gradient_hook(self, hook: GradientHook) -> RemovableHandle:
        """Have a function see, or change, the gradients of every ``loss_and_grads``.

        Args:
            hook: Called with the unconstrained parameters by name, their ``.grad`` finite, before
                the optimiser sees them; not where the step is skipped.

        Returns:
            A handle whose ``remove()`` takes the hook away.
        """
        handle = RemovableHandle(self._gradient_hooks)
        self._gradient_hooks[handle.id] = hook
        return handle

    @property
    def num_skipped(self) -> int:
        """Training steps skipped so far, under ``on_nonfinite="skip"``."""
        return self._nonfinite.num_skipped

    def _admitted(self, loss: Tensor) -> Tensor:
        if not math.isfinite(loss.detach()):
            what = nonfinite_terms(self.terms)
            self._refuse(what)
            if (group := ddp_group()) is not None and group.size() > 1:
                raise NonFiniteError(
                    f"{what}; on_nonfinite='skip' cannot skip a step on one rank, while the others "
                    "wait for its gradients; use 'raise' or 'stop'"
                )
            return torch.zeros_like(loss, requires_grad=True)
        return loss

    def _refuse(self, what: str) -> None:
        self._nonfinite.meet(f"at step {self.step_count} {what}")

    def _blame(
        self,
        bad: Mapping[str, str],
        parameters: Mapping[str, Tensor],
        program: Program,
        state: Tensor,
    ) -> str:
        """What is not finite, from the terms, or from the same evaluation once more."""
        if not bad:
            return nonfinite_terms(self.terms)
        name, kind = next(iter(bad.items()))
        if not self._nonfinite.is_shown:
            return f"the gradient of parameter {name!r} is {kind}"
        with torch.random.fork_rng(devices=[]), averages_kept():
            torch.set_rng_state(state)
            particles = self._particles(program)
        sites = sites_to_blame(_totals(particles), parameters[name])
        source = f"the terms of the sites {sites}" if sites else "the score function of its sites"
        return f"the gradient of parameter {name!r} is {kind}, through {source}"


def _totals(particles: Sequence[Particle]) -> dict[str, Any]:
    """The total of each site that the objective has."""
    totals: dict[str, Any] = {}
    branches = [branch for particle in particles for branch in particle.branches]
    for site in (site for branch in branches for site in branch.sites.values()):
        if site.beta is None or not is_zero(site.beta):
            totals[site.name] = totals.get(site.name, 0.0) + site.total()
    return totals
