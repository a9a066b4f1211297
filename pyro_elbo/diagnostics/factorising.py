"""Which latents' KL to the prior can be taken apart, and why the others are refused."""

from __future__ import annotations

import torch

from ..errors import UnsupportedSiteError
from .aggregate import PerDatum
from .latents import Latent, Run

__all__ = ["check_factorising"]


def check_factorising(run: Run, latent: Latent) -> PerDatum:
    """Check that a latent's KL can be taken apart, and return its prior.

    Raises:
        UnsupportedSiteError: The plate is subsampled; the guide or the prior depends on other
            latents, or does not factorise over dims; or the prior differs between data.
    """
    refusal = _subsampled(latent) or _entangled(run, latent) or _joint(latent) or _varying(latent)
    if refusal is not None:
        raise UnsupportedSiteError(latent.name, *refusal)
    assert latent.prior is not None
    return latent.prior


def _subsampled(latent: Latent) -> tuple[str, str] | None:
    frame = latent.terms.frame(latent.plate)
    if frame.full_size in (None, frame.size):
        return None
    why = f"plate {latent.plate!r} is subsampled ({frame.size} of {frame.full_size})"
    return why, "run it in full; minibatches are for estimator= and batch_size="


def _entangled(run: Run, latent: Latent) -> tuple[str, str] | None:
    why = run.why_dependent(latent) or run.why_prior_dependent(latent)
    remedy = "use a guide whose latents depend on the data alone, and a prior of parameters alone"
    return None if why is None else (why, remedy)


def _joint(latent: Latent) -> tuple[str, str] | None:
    if not latent.is_direct:
        why = "the guide samples it through a transform of an auxiliary site"
        return why, "sample it itself, from a distribution on its support, such as LogNormal"
    assert latent.prior is not None
    for side, pieces in (("guide", latent.guide), ("prior", latent.prior)):
        if not pieces.factorises:
            kind = type(pieces.fn).__name__
            why = f"its {side}, {kind}, is not known to factorise over its dims"
            return why, "use independent dims, such as Normal(loc, scale).to_event(1)"
    return None


def _varying(latent: Latent) -> tuple[str, str] | None:
    assert latent.prior is not None
    rows = latent.prior.rows(latent.density["value"])
    densities = latent.prior.log_prob(rows[:1].expand_as(rows).unsqueeze(0))[0]
    rounding = 100 * torch.finfo(densities.dtype).eps * densities.abs().amax()
    same = (densities == densities[0]) | ((densities - densities[0]).abs() <= rounding)
    if bool(same.all()):
        return None
    return "its prior differs between data", "use a prior that is the same for all data"
