"""An E-step and an M-step in turn, each by its own optimiser."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from pyro.infer import ELBO, ReweightedWakeSleep
from pyro.optim import PyroOptim
from torch import Tensor

from ..elbo.nonfinite import drop_gradients
from .ascent import AscentWatch
from .partition import Sides, Witness, new_parameters_forgotten_on_error
from .rules import StopRule, rule_of

__all__ = ["VariationalEM"]


class VariationalEM:
    r"""Variational EM: a drop-in for :class:`pyro.infer.SVI` that moves one side at a time.

    .. math::
        \text{E-step: } \phi \leftarrow \arg\max_\phi F(\phi, \theta), \qquad
        \text{M-step: } \theta \leftarrow \arg\max_\theta F(\phi, \theta), \qquad
        F = E_{q_\phi}[\log p_\theta(x, z)] + H[q_\phi]

    The E-step moves what the guide reads, the M-step what the model reads, found by watching both
    run. Each is a number of moves of its optimiser, or runs until a rule says that it is done. With
    a guide that is enumerated or ``Delta`` there is no noise, and a rule finds the optimum: with a
    free guide for each datum, that is EM. One step is one of a schedule of the loss.

    Args:
        model: The model.
        guide: The guide.
        e_optim: A Pyro optimiser, for the guide's parameters.
        m_optim: Another, for the model's.
        loss: Any :class:`pyro.infer.ELBO`.
        e_steps: Moves in an E-step, or a :class:`~pyro_elbo.steppers.StopRule`:
            :class:`~pyro_elbo.steppers.UntilConverged`,
            :class:`~pyro_elbo.steppers.UntilMutualInformationStopsRising`.
        m_steps: The same for the M-step.

    Raises:
        TypeError: An optimiser, the loss or a rule is of the wrong kind.
        ValueError: A number of steps is below 1; or, in a step and before anything moves, a
            parameter is both the model's and the guide's: it is named.

    Warns:
        UserWarning: Once, where a step lowered the objective by more than its Monte Carlo error (of
            several particles, or without noise): a learning rate is too high.

    Law:
        The E-step leaves the model's parameters as they are, bit for bit, the M-step the guide's.

    Example:
        >>> import torch, pyro, pyro.distributions as dist
        >>> from pyro.infer import config_enumerate
        >>> from pyro_elbo import TraceEntropy_ELBO, VariationalEM
        >>> from pyro_elbo.steppers import UntilConverged
        >>> x = torch.tensor([-2.1, -1.9, -2.0, 1.8, 2.2])
        >>> def model(x):
        ...     loc = pyro.param("loc", torch.tensor([-1., 1.]))
        ...     with pyro.plate("data", len(x)):
        ...         k = pyro.sample("k", dist.Categorical(torch.tensor([0.5, 0.5])))
        ...         pyro.sample("x", dist.Normal(loc[k], 1.), obs=x)
        >>> @config_enumerate
        ... def guide(x):
        ...     logits = pyro.param("logits", torch.zeros(len(x), 2))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("k", dist.Categorical(logits=logits))
        >>> adam = lambda: pyro.optim.Adam({"lr": 0.1})
        >>> done = UntilConverged(tolerance=1e-4)
        >>> em = VariationalEM(model, guide, adam(), adam(), TraceEntropy_ELBO(), done, done)
        >>> losses = [em.step(x) for _ in range(5)]
        >>> losses[-1] < losses[0], pyro.param("loc").detach().round(decimals=1)
        (True, tensor([-2.,  2.]))

    References:
        *A View of the EM Algorithm that Justifies Incremental, Sparse, and other Variants* (Neal &
        Hinton, 1998).
        *Lagging Inference Networks and Posterior Collapse in Variational Autoencoders* (He et al.,
        2019), arXiv 1901.05534.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        e_optim: PyroOptim,
        m_optim: PyroOptim,
        loss: ELBO,
        e_steps: int | StopRule = 1,
        m_steps: int | StopRule = 1,
    ) -> None:
        _check(e_optim, m_optim, loss)
        self.model, self.guide = model, guide
        self.loss: Any = loss
        self.optims: Mapping[str, PyroOptim] = {"e": e_optim, "m": m_optim}
        self.rules: Mapping[str, StopRule] = {
            "e": rule_of("e_steps", e_steps),
            "m": rule_of("m_steps", m_steps),
        }
        self._sides = Sides(model, guide)
        self._ascent = AscentWatch()

    def step(self, *args: Any, **kwargs: Any) -> float:
        """An E-step, then an M-step, at these arguments.

        Args:
            *args: Of model and guide.
            **kwargs: Of both too.

        Returns:
            The loss in nats at the last move of the M-step, before it, as ``loss.terms`` shows it.
        """
        self._ascent.begin(args, kwargs)
        with self._held():
            losses = [self._optimise(side, args, kwargs) for side in ("e", "m")]
        self._ascent.end()
        if hasattr(self.loss, "advance"):
            self.loss.advance()
        return losses[-1]

    @torch.no_grad()
    def evaluate_loss(self, *args: Any, **kwargs: Any) -> float:
        """The loss in nats at these arguments; nothing moves."""
        return float(self.loss.loss(self._sides.model, self._sides.guide, *args, **kwargs))

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs beside the optimisers: the states of rules that have one."""
        return {
            side: rule.state_dict()
            for side, rule in self.rules.items()
            if hasattr(rule, "state_dict")
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore :meth:`state_dict`.

        Raises:
            ValueError: It is the state of other rules.
        """
        own = self.state_dict().keys()
        if state.keys() != own:
            raise ValueError(
                f"the state has rules for the steps {sorted(state)}, here are {sorted(own)}"
            )
        for side, saved in state.items():
            rule: Any = self.rules[side]
            rule.load_state_dict(saved)

    def _optimise(self, side: str, args: Any, kwargs: Any) -> float:
        enough = self.rules[side].start()
        while True:
            loss = self._move(side, args, kwargs)
            if enough(loss):
                return loss

    def _move(self, side: str, args: Any, kwargs: Any) -> float:
        model, guide = self._sides.model, self._sides.guide
        with _gradients() as seen:
            with new_parameters_forgotten_on_error():
                loss, named = self._gradients(model, guide, args, kwargs)
                parameters = self._sides.split(seen)[side]
            self._ascent.see(self.loss)
            if named:
                moved = set(parameters)
                self.loss.show_gradients({name: p for name, p in named.items() if p in moved})
            self.optims[side](parameters)
        return loss

    def _gradients(
        self, model: Any, guide: Any, args: Any, kwargs: Any
    ) -> tuple[float, Mapping[str, Tensor]]:
        """The loss, and the parameters by name where it has hooks that see their gradients."""
        if hasattr(self.loss, "show_gradients"):
            return self.loss.gradients(model, guide, *args, **kwargs)
        return float(self.loss.loss_and_grads(model, guide, *args, **kwargs)), {}

    def _held(self) -> AbstractContextManager[Any]:
        return self.loss.hold() if hasattr(self.loss, "hold") else nullcontext()


@contextmanager
def _gradients() -> Iterator[Mapping[Tensor, str]]:
    """The parameters that are met inside, with their names; outside none has a gradient."""
    with Witness() as witness:
        try:
            yield witness.seen
        finally:
            drop_gradients(witness.seen)


def _check(e_optim: Any, m_optim: Any, loss: Any) -> None:
    for name, optim in (("e_optim", e_optim), ("m_optim", m_optim)):
        if not isinstance(optim, PyroOptim):
            raise TypeError(
                f"{name} must be an optimiser of Pyro's, such as pyro.optim.Adam({{'lr': 0.01}}), "
                f"not {optim!r}"
            )
    if not isinstance(loss, ELBO):
        raise TypeError(f"loss must be a pyro.infer.ELBO, such as TraceKL_ELBO(), not {loss!r}")
    if isinstance(loss, ReweightedWakeSleep):
        raise TypeError(
            "ReweightedWakeSleep has an objective for each side, and no bound that both raise; "
            "train it with pyro.infer.SVI"
        )
