"""Is the guide any good: one page."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..errors import NonFiniteError, UnsupportedSiteError
from ..evidence.modes import in_eval_mode
from ..evidence.weights import tail_length
from ..interop.arrays import MIN_SAMPLES
from ..tables import table
from .collapse import CollapseReport, posterior_collapse
from .gap import EvidenceGapEstimate, evidence_gap
from .latents import NoLatentPerDatumError
from .signal import GradientSignal, gradient_signal
from .tails import USABLE, WeightTails, wrapped

__all__ = ["Finding", "GuideReport", "guide_report"]

MAX_GAP = 0.1
MAX_SHARE = 0.01
MIN_SIGNAL = 0.1


@dataclass(frozen=True)
class Finding:
    """One line of a report.

    Args:
        what: What was measured.
        value: The number, with its error where it has one.
        threshold: What it is held to; empty where there is nothing to hold it to.
        is_good: Whether it passes; ``None`` where that cannot be said.
        advice: What to do, or why nothing can be said; empty where it passes.
    """

    what: str
    value: str
    threshold: str = ""
    is_good: bool | None = None
    advice: str = ""

    @property
    def mark(self) -> str:
        """``ok``, ``look``, or ``?``, or nothing where there is no threshold."""
        if not self.threshold:
            return ""
        return {True: "ok", False: "look", None: "?"}[self.is_good]


@dataclass(frozen=True, eq=False)
class GuideReport:
    """What is known of a guide; ``print`` shows a page, the fields hold the numbers.

    Args:
        gap: Evidence, ELBO and their difference.
        collapse: The latent units; ``None`` where there are none inside a data plate.
        signal: The gradients; ``None`` where nothing has parameters.
        findings: The lines of the page.
    """

    gap: EvidenceGapEstimate
    collapse: CollapseReport | None
    signal: GradientSignal | None
    findings: tuple[Finding, ...]

    @property
    def passes(self) -> bool:
        """Whether nothing was found that needs a look."""
        return all(finding.is_good is not False for finding in self.findings)

    def __str__(self) -> str:
        rows = [["", "value", "threshold", ""]]
        rows += [[f.what, f.value, f.threshold, f.mark] for f in self.findings]
        advice = [wrapped(f"{f.what}: {f.advice}") for f in self.findings if f.advice]
        lines = table(rows, text=("value", "threshold"))
        return "\n".join([lines, *([""] if advice else []), *advice])


def guide_report(
    model: Any,
    guide: Any,
    *args: Any,
    estimator: Any = None,
    elbo: Any = None,
    num_samples: int = 1000,
    plate: str | None = None,
    progress: bool = True,
    **kwargs: Any,
) -> GuideReport:
    r"""Ask of a guide what a person should know before using it.

    How far its ELBO is below the evidence, whether its importance weights have a mean that can be
    estimated (:math:`\hat k`), which latent units say nothing about the data, and which gradients
    are mostly noise. Thresholds: a gap of 0.1 nats for each factor of the evidence (by Pinsker's
    inequality the guide's probabilities are then off by at most 0.23); 0.7 for :math:`\hat k`; an
    activity of 0.01; a signal of 0.1 of the noise.

    Args:
        model: The model.
        guide: A guide with a density over each of its latents.
        *args: What both take.
        estimator: What estimates the evidence, as in :func:`evidence_gap`.
        elbo: The loss whose gradients are looked at; as in :func:`gradient_signal`.
        num_samples: Samples for evidence and ELBO.
        plate: Name of the plate whose units are looked at; as in :func:`posterior_collapse`.
        progress: Whether work of over a second shows a bar, where the estimator does.
        **kwargs: What both take.

    Raises:
        ValueError: As :func:`evidence_gap`.
        UnsupportedSiteError: As :func:`evidence_gap`.

    Example:
        >>> import torch, pyro, pyro.distributions as dist
        >>> from pyro_elbo import diagnostics
        >>> _ = pyro.set_rng_seed(0)
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0., 1.))
        ...         pyro.sample("x", dist.Normal(z, 1.), obs=x)
        >>> def narrow(x):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(x / 2, 0.2))
        >>> report = diagnostics.guide_report(model, narrow, torch.tensor([3., -2., 0.5]))
        >>> report.passes
        False
        >>> [finding.what for finding in report.findings if finding.is_good is False]
        ['gap per datum, worst', 'Pareto k > 0.7']

    References:
        *Yes, but Did It Work?: Evaluating Variational Inference* (Yao, Vehtari, Simpson & Gelman,
        2018), arXiv 1802.02538.
    """
    settings = {"estimator": estimator, "num_samples": num_samples, "progress": progress}
    with in_eval_mode(model, guide):
        gap = evidence_gap(model, guide, *args, **settings, **kwargs)
        collapse, why_no_units = _units(model, guide, args, {**kwargs, "plate": plate})
        signal, why_no_signal = _signal(model, guide, args, kwargs, elbo)
    findings = (
        *_of_evidence(gap),
        _of_gap(gap),
        _of_weights(gap),
        _of_units(collapse, why_no_units),
        *_of_gradients(signal, why_no_signal),
    )
    return GuideReport(gap, collapse, signal, findings)


def _units(model: Any, guide: Any, args: Any, kwargs: Any) -> tuple[CollapseReport | None, str]:
    try:
        return posterior_collapse(model, guide, *args, **kwargs), ""
    except NoLatentPerDatumError:
        return None, ""
    except (ValueError, UnsupportedSiteError) as error:
        return None, str(error)


def _signal(
    model: Any, guide: Any, args: Any, kwargs: Any, elbo: Any
) -> tuple[GradientSignal | None, str]:
    try:
        return gradient_signal(model, guide, *args, elbo=elbo, **kwargs), ""
    except (ValueError, NonFiniteError, UnsupportedSiteError) as error:
        return None, str(error)


def _of_evidence(gap: EvidenceGapEstimate) -> tuple[Finding, ...]:
    sign = "" if gap.evidence.bound == "exact" else "≥ "
    return (
        Finding("ELBO", _number(gap.elbo.value, gap.elbo.standard_error)),
        Finding("log p(x)", sign + _number(gap.evidence.value, gap.evidence.standard_error)),
    )


def _of_gap(gap: EvidenceGapEstimate) -> Finding:
    try:
        datum = gap.per_datum
        worst = datum.value.argmax()
        value = datum.value.flatten()[worst]
        error = datum.standard_error.flatten()[worst]
        name, many = "gap per datum, worst", f" (mean {float(datum.value.mean()):.3f})"
    except ValueError:
        value, error, name, many = gap.value, gap.standard_error, "gap", ""
    is_good = bool(value <= MAX_GAP + 2 * error)
    advice = (
        "the posterior has a shape that the guide lacks, or training has not ended: train on, use "
        "a richer family (AutoMultivariateNormal, a flow), or see diagnostics.amortisation_gap"
    )
    advice = gap.elbo.why_infinite or advice
    sign = "" if gap.evidence.bound == "exact" else "≥ "
    text = f"{sign}{_number(value, error)}{many}"
    return Finding(name, text, f"{MAX_GAP} nats", is_good, "" if is_good else advice)


def _of_weights(gap: EvidenceGapEstimate) -> Finding:
    estimate, what = gap.evidence, f"Pareto k > {USABLE}"
    if estimate.bound == "exact":
        return Finding(what, "not needed: the evidence is exact")
    count, limit = estimate.num_samples, "no"
    if count < MIN_SAMPLES:
        why = f"there are {count} samples, fewer than {MIN_SAMPLES}"
        return Finding(what, "not known", limit, None, why)
    of = estimate.per_datum or estimate
    tails = WeightTails(count, of.khat, of.ess)
    unusable = tails.unusable
    if tails.missing.all() and not unusable.any():
        return Finding(what, "not needed: the weights have no tail")
    worst, error = float(estimate.khat), _khat_error(float(estimate.khat), count)
    text = "none fits" if tails.missing.all() else f"{worst:.2f}"
    if estimate.per_datum is None and not tails.missing.all():
        text = f"{worst:.2f} ± {error:.2f}"
        if abs(worst - USABLE) < error:
            why = f"it is within its error of {USABLE}: take more samples, num_samples=..."
            return Finding(what, text, limit, None, why)
    if estimate.per_datum is not None:
        limit = f"{MAX_SHARE:.0%} of data"
        text = f"{int(unusable.sum()):,} of {unusable.numel():,} data, worst {text}"
    share = float(unusable.double().mean())
    is_good = share <= MAX_SHARE
    advice = (
        "the guide is too narrow somewhere, so that its weights, the evidence above and any "
        "expectation by reweighting cannot be trusted: widen it, or estimate the evidence by "
        "evidence.AnnealedImportance"
    )
    return Finding(what, text, limit, is_good, "" if is_good else advice)


def _khat_error(khat: float, num_samples: int) -> float:
    """The error of a maximum-likelihood fit of a Pareto tail's shape.

    References:
        *Maximum Likelihood Estimation in a Class of Nonregular Cases* (Smith, 1985).
    """
    return float((1.0 + max(khat, 0.0)) / tail_length(num_samples) ** 0.5)


def _of_units(collapse: CollapseReport | None, why: str) -> Finding:
    if collapse is None and not why:
        return Finding("dead units", "no latent per datum")
    if collapse is None:
        return Finding("dead units", "not known", "none", None, why)
    dead = int((~collapse.active).sum())
    text = f"{dead} of {len(collapse.units)}"
    return Finding("dead units", text, "none", dead == 0, collapse.verdict if dead else "")


def _of_gradients(signal: GradientSignal | None, why_none: str) -> tuple[Finding, ...]:
    if signal is None:
        return (Finding("gradient signal / noise, least", "not known", "", None, why_none),)
    ratios = {name: float(ratio) for name, ratio in signal.ratio.items() if not ratio.isnan()}
    if not ratios:
        return ()
    weakest = min(ratios, key=lambda name: ratios[name])
    is_good = ratios[weakest] >= MIN_SIGNAL
    advice = (
        "its gradient is mostly noise: either training has ended there, or it needs more particles "
        "or a loss with closed forms"
    )
    text = f"{ratios[weakest]:.2g} ({weakest})"
    return (
        Finding(
            "gradient signal / noise, least",
            text,
            f"{MIN_SIGNAL}",
            is_good or None,
            "" if is_good else advice,
        ),
    )


def _number(value: Tensor, error: Tensor) -> str:
    return f"{float(value):.3f} ± {float(error):.3f}"
