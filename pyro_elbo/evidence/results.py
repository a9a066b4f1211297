"""From log weights to an estimate of the evidence."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .estimate import DatumEvidence, EvidenceEstimate, Minibatch
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
    minibatch = None if len(batches) > 1 else _minibatch(layout)
    scale = 1.0 if minibatch is None else layout.scale
    khats = datum.khat[~datum.khat.isnan()]
    return EvidenceEstimate(
        constant + scale * datum.value.sum(),
        _standard_error(datum, minibatch),
        "lower",
        weights[0].num_samples,
        datum.ess.min(),
        khats.max() if khats.numel() else datum.khat.new_tensor(torch.nan),
        datum,
        minibatch=minibatch,
    )


def _minibatch(layout: Layout) -> Minibatch | None:
    if layout.subsampled is None:
        return None
    frame = layout.frames[layout.subsampled]
    dim = layout.plates.index(layout.subsampled)
    return Minibatch(frame.name, dim, frame.size, frame.full_size)


def _standard_error(datum: DatumEvidence, minibatch: Minibatch | None) -> Tensor:
    """Monte Carlo error, and that of a simple random sample of the data where it is one."""
    if minibatch is None:
        return datum.standard_error.square().sum().sqrt()
    if minibatch.size == 1:
        warnings.warn(
            f"the minibatch of plate {minibatch.plate!r} is one datum, which does not show how far "
            "the others are from it: the error of the evidence of all data is nan; give two data "
            "or more",
            UserWarning,
            stacklevel=2,
        )
    return minibatch.standard_error(datum.value, datum.standard_error)


def _indices(layout: Layout, batches: Sequence[Batch]) -> Tensor | None:
    if len(layout.plates) != 1:
        return None
    (plate,) = layout.plates
    if plate in batches[0].indices:
        return torch.cat([batch.indices[plate][: batch.kept] for batch in batches])
    return layout.indices.get(plate)
