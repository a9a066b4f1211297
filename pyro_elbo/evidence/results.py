"""From log weights to an estimate of the evidence."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .estimate import DatumEvidence, EvidenceEstimate
from .layout import Layout
from .weigher import Batch
from .weights import LogWeights

__all__ = ["of_data", "of_joint"]


def of_joint(layout: Layout, weights: LogWeights) -> EvidenceEstimate:
    """The estimate of one weight for all data."""
    shared = f"all data share {', '.join(sorted(layout.shared))}"
    return EvidenceEstimate(
        weights.log_mean,
        weights.standard_error,
        "lower",
        weights.num_samples,
        weights.ess,
        weights.khat,
        None,
        f"{layout.why_joint or shared}, so that no datum has an evidence of its own",
    )


def of_data(
    layout: Layout, batches: Sequence[Batch], weights: Sequence[LogWeights], constant: Any
) -> EvidenceEstimate:
    """The estimate of data that each have their own weights."""
    dim = batches[0].dim - 1

    def joined(name: str) -> Tensor:
        parts = [getattr(part, name) for part in weights]
        return torch.cat(parts, dim) if len(parts) > 1 else parts[0]

    datum = DatumEvidence(
        layout.plates,
        joined("log_mean"),
        joined("standard_error"),
        joined("ess"),
        joined("khat"),
        _indices(layout, batches),
    )
    whole = len(batches) > 1
    scale = 1.0 if whole else layout.scale
    khats = datum.khat[~datum.khat.isnan()]
    return EvidenceEstimate(
        constant + scale * datum.value.sum(),
        _standard_error(layout, datum, 1.0 if whole else layout.scale),
        "lower",
        weights[0].num_samples,
        datum.ess.min(),
        khats.max() if khats.numel() else datum.khat.new_tensor(torch.nan),
        datum,
    )


def _standard_error(layout: Layout, datum: DatumEvidence, scale: float) -> Tensor:
    """Monte Carlo error, and that of a simple random sample of the data where it is one."""
    variance = scale**2 * datum.standard_error.square().sum()
    if scale != 1.0 and layout.subsampled is not None:
        dim = layout.plates.index(layout.subsampled)
        others = [at for at in range(datum.value.dim()) if at != dim]
        totals = datum.value.sum(others) if others else datum.value
        drawn = layout.frames[layout.subsampled]
        unseen = 1.0 - drawn.size / drawn.full_size
        spread = totals.var() if drawn.size > 1 else _unknown_spread(totals, drawn.name)
        variance = variance + drawn.full_size**2 * unseen * spread / drawn.size
    return variance.sqrt()


def _unknown_spread(totals: Tensor, plate: str) -> Tensor:
    warnings.warn(
        f"the minibatch of plate {plate!r} is one datum, which does not show how far the others "
        "are from it: the error of the evidence of all data is nan; give two data or more",
        UserWarning,
        stacklevel=2,
    )
    return totals.new_full((), torch.nan)


def _indices(layout: Layout, batches: Sequence[Batch]) -> Tensor | None:
    if len(layout.plates) != 1:
        return None
    (plate,) = layout.plates
    if plate in batches[0].indices:
        return torch.cat([batch.indices[plate][: batch.kept] for batch in batches])
    return layout.indices.get(plate)
