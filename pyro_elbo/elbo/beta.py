r"""The KL weight as a mixin: a schedule, a step count, and the one seam of every Pyro ELBO."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from numbers import Integral
from typing import Any

import torch
from pyro import poutine
from pyro.util import get_rng_state, set_rng_state
from torch import Tensor

from ..schedules import ends_at
from ..weighting import WeightedPrograms, Weights, weigh
from .checks import check_marginalised, weight_at
from .module import BetaELBOModule

__all__ = ["BetaELBOMixin"]

OTHERS = "*"
LOOKS = 100


class BetaELBOMixin:
    r"""Gives any Pyro loss a KL weight: :math:`E_q[\log p(x \mid z)] - \beta\,\mathrm{KL}`.

    Put it before the loss, ``class Mine(BetaELBOMixin, TraceGraph_ELBO): pass``. The weight enters
    in ``_get_trace``, through which every Pyro ELBO passes; model and guide stay as they are.

    Args:
        *args: What the loss takes.
        beta: A number >= 0; a schedule (a callable from the step to such a number); or a mapping
            from latent sites to either, where ``"*"`` names the default of the others (1 if
            absent). A site's auxiliary (``z_unconstrained``) follows the site. A named site may
            come and go; one that is not there at the first step is looked for in 100 runs.
        **kwargs: What the loss takes.

    Raises:
        ValueError: The weight, now or at a later step, is negative, nan or infinite.
        TypeError: The weight is neither number, schedule nor mapping; or, at class creation, the
            loss is one of Pyro's ``Jit`` losses, which freeze a Python number at its first value.

    At the first step, a ``ValueError`` names a site of the mapping that never appears, and a
    ``UserWarning`` a latent whose scale differs between model and guide. Another says, once, that
    ``loss`` is evaluated while a schedule is under way (not inside :meth:`hold`).

    A schedule advances by one after ``loss_and_grads`` and after ``forward`` of
    ``elbo(model, guide)`` in train mode with gradients enabled, and nowhere else. Code that calls
    either more than once per optimiser step (gradient accumulation, LBFGS closures) does so inside
    :meth:`hold` and calls :meth:`advance` once per step.

    Law:
        On a fixed seed the objective is affine in the weight, wherever the loss is linear in its
        log-ratios (:class:`pyro.infer.RenyiELBO` is not: it averages weighted log-ratios).

    Example:
        >>> from pyro.infer import TraceGraph_ELBO
        >>> class BetaTraceGraph_ELBO(BetaELBOMixin, TraceGraph_ELBO):
        ...     pass
        >>> from pyro_elbo import schedules
        >>> elbo = BetaTraceGraph_ELBO(beta=schedules.Linear(4.0, 1.0, num_steps=3))
        >>> elbo.beta
        4.0
        >>> elbo.advance()
        >>> elbo.beta, elbo.step_count
        (3.0, 1)

    References:
        *beta-VAE: Learning Basic Visual Concepts with a Constrained Variational Framework*
        (Higgins et al., 2017).
        *Generating Sentences from a Continuous Space* (Bowman et al., 2016), arXiv 1511.06349.
    """

    def __init__(self, *args: Any, beta: Any = 1.0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._beta = dict(beta) if isinstance(beta, Mapping) else beta
        self._step_count = 0
        self._holding = 0
        self._given_weights: Weights | None = None
        self._known: set[str] = set()
        self._compared: set[str] = set()
        self._warned: set[str] = set()
        self._weights()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for parent in cls.__mro__:
            if parent.__name__.startswith("Jit") and parent.__module__.startswith("pyro."):
                raise TypeError(
                    f"{cls.__name__}: {parent.__name__} compiles its first call and would freeze "
                    f"beta there; subclass {parent.__name__.removeprefix('Jit')} instead"
                )

    @property
    def beta(self) -> Any:
        """The weight now; a dict where weights are by site."""
        weights = self._weights()
        if not isinstance(self._beta, dict):
            return weights.default
        return {**weights.by_site, OTHERS: weights.default}

    def __repr__(self) -> str:
        return f"{type(self).__name__}(beta={self._beta!r}, step_count={self._step_count})"

    @property
    def step_count(self) -> int:
        """Training steps taken, the argument of the schedules."""
        return self._step_count

    def advance(self) -> None:
        """Count one optimiser step."""
        self._step_count += 1

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Inside, no evaluation counts as a step; an explicit :meth:`advance` still does."""
        self._holding += 1
        try:
            yield
        finally:
            self._holding -= 1

    def state_dict(self) -> dict[str, int]:
        """What a checkpoint needs: the step count."""
        return {"step_count": self._step_count}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Restore :meth:`state_dict`.

        Raises:
            ValueError: The state has no step count that is a non-negative integer.
        """
        count = state.get("step_count") if isinstance(state, Mapping) else None
        if not isinstance(count, Integral) or isinstance(count, bool) or count < 0:
            raise ValueError(f"expected a step_count >= 0, as state_dict() gives; got {state!r}")
        self._step_count = int(count)

    def loss_and_grads(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        """Evaluate the loss, add its gradients to the parameters, and count a step."""
        loss = super().loss_and_grads(model, guide, *args, **kwargs)  # type: ignore[misc]
        self._count_evaluation()
        return loss

    def loss(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        """Evaluate the loss: no gradient, no step of a schedule."""
        self._warn_if_unfinished()
        return super().loss(model, guide, *args, **kwargs)  # type: ignore[misc]

    def __call__(self, model: Any, guide: Any) -> BetaELBOModule:
        """The loss as a :class:`torch.nn.Module` whose ``state_dict`` holds the step count."""
        return BetaELBOModule(model, guide, self)

    def _admitted(self, loss: Tensor) -> Tensor:
        """Hook: what a training call of the module returns in place of its loss."""
        return loss

    def _count_evaluation(self) -> None:
        if not self._holding:
            self.advance()

    def _weights(self, ahead: int = 0) -> Weights:
        """The weights now, or so many steps ahead."""
        if self._given_weights is not None:
            return self._given_weights
        step = self._step_count if self._holding else self._step_count + ahead
        if not isinstance(self._beta, dict):
            return Weights(weight_at(self._beta, step, "beta"))
        values = {
            name: weight_at(value, step, f"beta[{name!r}]") for name, value in self._beta.items()
        }
        return Weights(values.pop(OTHERS, 1.0), values)

    def _get_trace(
        self, model: Callable[..., Any], guide: Callable[..., Any], args: Any, kwargs: Any
    ) -> tuple[Any, Any]:
        programs = weigh(model, guide, self._weights())
        traces: tuple[Any, Any] = super()._get_trace(  # type: ignore[misc]
            programs.model, programs.guide, args, kwargs
        )
        self._known |= programs.latents
        if not self._known.issuperset(programs.weights.by_site):
            self._look_for_names(programs.weights, model, guide, args, kwargs)
        programs.check_known(self._known, traces[0])
        programs.check_one_sided()
        self._check_marginalised(programs, *traces)
        self._warn_about_scales(programs, *traces)
        return traces

    def _look_for_names(
        self, weights: Weights, model: Any, guide: Any, args: Any, kwargs: Any
    ) -> None:
        state = get_rng_state()
        try:
            for _ in range(LOOKS):
                again = weigh(model, guide, weights)
                with torch.no_grad(), poutine.block():
                    super()._get_trace(again.model, again.guide, args, kwargs)  # type: ignore[misc]
                self._known |= again.latents
                if self._known.issuperset(weights.by_site):
                    return
        except Exception:  # the names are then unknown, which is what will be said
            return
        finally:
            set_rng_state(state)

    def _warn_about_scales(
        self, programs: WeightedPrograms, model_trace: Any, guide_trace: Any
    ) -> None:
        if self._compared >= guide_trace.nodes.keys():
            return
        self._compared |= guide_trace.nodes.keys()
        for name, model, guide in programs.differing_scales(model_trace, guide_trace):
            self._warn_once(
                name,
                f"its scale is {model} in the model and {guide} in the guide, so its densities do "
                "not make a KL; each side keeps its own. Put poutine.scale around both sides, or "
                "weigh the KL with beta",
            )

    def _warn_once(self, site: str, what: str) -> None:
        if site not in self._warned:
            self._warned.add(site)
            warnings.warn(f"site {site!r}: {what}", UserWarning, stacklevel=2)

    @property
    def unfinished_schedules(self) -> dict[str, int]:
        """The step at which each schedule ends that is not at its end yet, by what it weighs."""
        ends = {name: ends_at(schedule) for name, schedule in self._schedules().items()}
        return {name: end for name, end in ends.items() if end and self._step_count < end}

    def _warn_if_unfinished(self) -> None:
        if not self._step_count or self._holding:
            return
        for name, end in self.unfinished_schedules.items():
            if name not in self._warned:
                self._warned.add(name)
                weight = weight_at(self._schedules()[name], self._step_count, name)
                warnings.warn(
                    f"{name} is {weight:g} at step {self._step_count}, and its schedule goes on to "
                    f"step {end}: a loss from here is no bound of the schedule's end. Train on, "
                    "shorten the schedule, or read terms.elbo, the bound at weight 1",
                    UserWarning,
                    stacklevel=3,
                )

    def _schedules(self) -> dict[str, Any]:
        if not isinstance(self._beta, dict):
            return {"beta": self._beta}
        return {f"beta[{site!r}]": value for site, value in self._beta.items()}

    def _check_marginalised(
        self, programs: WeightedPrograms, model_trace: Any, guide_trace: Any
    ) -> None:
        check_marginalised(programs, model_trace, guide_trace)
