"""The base of the three losses: it owns the algorithm, a view is its hooks."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..errors import UnsupportedSiteError
from ..terms import ELBOTerms
from ..weighting import is_zero, sum_of, times
from .at_once import check_at_once
from .checks import is_count
from .dependencies import Program
from .minibatches import MinibatchWatch
from .nonfinite import nonfinite_terms
from .plan import Plan, plan_of
from .recording import Particle, Record, record
from .step import StepELBO
from .traces import Pair, is_enumerating, sample_sites
from .tracing import trace_pair

__all__ = ["ViewELBO"]


class ViewELBO(StepELBO):
    r"""Base of the losses: :math:`-(E_q[\log p(x \mid z)] - \sum_s \beta_s \mathrm{KL}_s)`.

    It traces the guide, replays the model, and turns each site into costs; every term follows from
    the same trace pair. A subclass overrides two hooks, :meth:`closed_form` and :meth:`objective`,
    and nothing else.

    Reparameterised sites of the guide have pathwise gradients; other sites score-function ones,
    with Pyro's baselines, ``infer={"baseline": {...}}``. A site with ``infer={"enumerate": ...}``
    is summed out: in the guide as an exact expectation (``"parallel"`` or ``"sequential"``), in the
    model as an exact marginal (``"parallel"``, the site not in the guide).

    Args:
        num_particles: Samples of the guide in one evaluation.
        max_plate_nesting: The most plates in one another; by default found by a run of both.
        vectorize_particles: Whether the particles are drawn at once, in a plate. The first
            evaluation of a program checks two of them against runs with each alone.
        beta: The KL weight: a number, a schedule, or a mapping from latent sites to either; see
            :class:`~pyro_elbo.BetaELBOMixin`.
        on_nonfinite: What a training step does where a term or gradient is nan or infinite:
            ``"raise"`` an error that names it; ``"skip"`` the step, its gradients ``None``, so that
            no optimiser moves, with one warning; or ``"stop"`` by
            :class:`~pyro_elbo.StopTraining`. Buffers that a module moves as it runs (the running
            statistics of batch norm) are not put back. ``elbo(model, guide)`` sees the terms only;
            its ``check_gradients()`` looks at the gradients.
        **kwargs: What else :class:`pyro.infer.ELBO` takes.

    Raises:
        TypeError: ``num_particles`` is no integer >= 1, ``max_plate_nesting`` neither one >= 0 nor
            infinity, or ``vectorize_particles`` no truth value.
        ValueError: A latent is on one side only, or ``beta`` names an unknown site.
        UnsupportedSiteError: A site asks for what would be a wrong number; it says what to change.
        NonFiniteError: In training, a term or a gradient is not finite; no parameter has moved.

    Law:
        ``-loss == terms.objective``, and the mean of every term and gradient is its closed form.

    A note on design: one loss with ``kl=``, ``entropy=`` and ``form=`` flags was rejected. Flags
    multiply, each estimator would be a branch of one method, and a new objective would edit the
    heart. Multiplying a whole loss by a weight, instead of scaling the sites, was rejected too: it
    would weigh the score function of a sampled site together with its cost.
    """

    log_evidence: Tensor | None = None
    _checks_at_once = True

    def __init__(
        self,
        num_particles: int = 1,
        max_plate_nesting: float = math.inf,
        *,
        vectorize_particles: bool = False,
        beta: Any = 1.0,
        on_nonfinite: str = "raise",
        **kwargs: Any,
    ) -> None:
        if not is_count(num_particles, 1):
            raise TypeError(
                f"num_particles must be an integer >= 1, not {num_particles!r}; the weight is beta="
            )
        if max_plate_nesting != math.inf and not is_count(max_plate_nesting, 0):
            raise TypeError(
                f"max_plate_nesting must be an integer >= 0, the number of nested plates, or "
                f"infinity, where it is found out; not {max_plate_nesting!r}"
            )
        if not isinstance(vectorize_particles, bool):
            raise TypeError(
                f"vectorize_particles must be True or False, not {vectorize_particles!r}"
            )
        super().__init__(
            num_particles,
            max_plate_nesting,
            vectorize_particles=vectorize_particles,
            beta=beta,
            on_nonfinite=on_nonfinite,
            **kwargs,
        )
        self._terms: ELBOTerms | Callable[[], ELBOTerms] | None = None
        self._minibatches: MinibatchWatch = MinibatchWatch()

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_terms": None if self._terms is None else self.terms}

    def objective(self, reconstruction: Tensor, kl_by_site: Mapping[str, Tensor]) -> Tensor:
        """Hook: what is maximised, from differentiable 0-dim tensors, in nats.

        Args:
            reconstruction: The expected log-likelihood.
            kl_by_site: The KL of each latent, its weight in it; latents of weight 0 are left out.
        """
        return reconstruction - sum_of(kl_by_site.values())

    @property
    def terms(self) -> ELBOTerms:
        """The terms of the last evaluation, detached.

        Raises:
            RuntimeError: Nothing was evaluated yet.
        """
        if callable(self._terms):
            self._terms = self._terms()
        if self._terms is None:
            raise RuntimeError(
                "no terms before the first evaluation; take a step (SVI.step), or call "
                "elbo.decompose(model, guide, *args)"
            )
        return self._terms

    def differentiable_loss(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Tensor:
        """Minus the objective: a 0-dim tensor in nats, whose gradient is the estimator's."""
        objective, kept = self._evaluate(model, guide, args, kwargs)
        self._terms = kept.terms
        return -objective

    def loss(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> float:
        """Minus the objective, in nats."""
        self._warn_if_unfinished()
        with torch.no_grad():
            loss = self.differentiable_loss(model, guide, *args, **kwargs)
        return self._checked(float(loss))

    def decompose(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> ELBOTerms:
        """The terms at these arguments: no gradient, no step of a schedule."""
        with torch.no_grad():
            self.differentiable_loss(model, guide, *args, **kwargs)
        return self.terms

    def plan(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Plan:
        """How each site is computed, and why, as a frozen record that prints as a table."""
        with torch.no_grad():
            return plan_of(self._evaluate(model, guide, args, kwargs)[1].terms())

    def _evaluate(self, model: Any, guide: Any, args: Any, kwargs: Any) -> tuple[Tensor, Record]:
        particles = self._particles(Program(model, guide, args, kwargs))
        objective = self._objective(particles)
        return objective, record(particles, objective, self._weights().default, self.log_evidence)

    def _particles(self, program: Program) -> list[Particle]:
        particles: list[Particle] = []
        for branches in self._get_branches(
            program.model, program.guide, program.args, program.kwargs
        ):
            if not particles and torch.is_grad_enabled() and not self._minibatches.done:
                self._watch_minibatches(branches[0][0])
            self._check_at_once(program, branches)
            particles.append(self._particle(branches, program))
        return particles

    def _check_at_once(self, program: Program, branches: Sequence[Any]) -> None:
        is_due = self.vectorize_particles and self.num_particles > 1 and self._is_new
        if is_due and self._checks_at_once:
            sampled = None if any(map(is_enumerating, branches)) else branches[0]
            check_at_once(program, sampled, partial(self._pair_at_once, program))
        self._is_new = False

    def _pair_at_once(self, program: Program) -> Pair:
        model, guide = map(self._vectorized_num_particles, (program.model, program.guide))
        return trace_pair(model, guide, program.args, program.kwargs)

    def _watch_minibatches(self, model_trace: Any) -> None:
        for name, plate in self._minibatches.see(sample_sites(model_trace), self._weights()):
            self._warn_once(
                name,
                f"it is outside of plate {plate!r}, whose data changed from one step (or process) "
                "to the next, and the likelihood has no scale. If these are minibatches, its KL "
                f"counts once for each of them; use pyro.plate({plate!r}, size=N, "
                "subsample_size=B), or "
                "poutine.scale(scale=N / B) around what is inside the plate, or "
                f"beta={{{name!r}: B / N}}",
            )

    def _objective(self, particles: list[Particle]) -> Tensor:
        likelihoods: list[Tensor] = []
        kls: dict[str, list[Tensor]] = {}
        branches = [branch for particle in particles for branch in particle.branches]
        for site in (site for branch in branches for site in branch.sites.values()):
            if site.beta is None:
                likelihoods.append(site.total())
            elif not is_zero(site.beta):
                kls.setdefault(site.name, []).append(times(site.kl(), site.beta))
        objective = self.objective(
            torch.as_tensor(self._average(likelihoods)),
            {name: self._average(kl) for name, kl in kls.items()},
        )
        if not isinstance(objective, Tensor) or objective.dim():
            raise TypeError(
                f"{type(self).__name__}.objective must return a 0-dim tensor, not {objective!r}"
            )
        surrogates = [branch.surrogate for branch in branches if branch.surrogate is not None]
        return objective + self._average(surrogates) if surrogates else objective

    def _average(self, values: Sequence[Tensor]) -> Any:
        total = sum_of(values)
        return total if self.num_particles == 1 else total / self.num_particles

    def _check_affine(self, site: str) -> None:
        if type(self).objective is not ViewELBO.objective:
            raise UnsupportedSiteError(
                site,
                f"{type(self).__name__} has an objective of its own, under which the gradient that "
                "this site takes would be biased",
                "use a reparameterised distribution, or enumerate the site in the guide",
            )

    def _checked(self, loss: float) -> float:
        if math.isnan(loss):
            warnings.warn(
                f"the loss is nan: {nonfinite_terms(self.terms)}; check parameters and data there",
                UserWarning,
                stacklevel=3,
            )
        return loss
