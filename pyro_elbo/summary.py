"""What a history keeps of a step: its totals, and nothing of what they were summed from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from .terms import ELBOTerms

__all__ = ["TERMS", "Summary", "summary_of", "totals_of"]

TERMS = (
    *("objective", "elbo", "reconstruction", "kl", "weighted_kl"),
    *("entropy", "expected_log_joint", "expected_log_prior"),
)


class Summary(NamedTuple):
    """The totals of one evaluation, in nats, still on their device: a row of a history to be.

    Args:
        totals: A vector: objective, ELBO, reconstruction, KL, weighted KL, entropy, expected log
            joint and expected log prior, then the KL of each latent.
        betas: The weight of each latent, by name, in their order.
        default_beta: The weight of a program without latents.
        num_data: How many data there are; 0 where that is not clear.
    """

    totals: Tensor
    betas: Mapping[str, float]
    default_beta: float
    num_data: int


def summary_of(terms: ELBOTerms) -> Summary:
    """The summary of some terms."""
    betas = {name: float(s.beta) for name, s in terms.sites.items() if s.beta is not None}
    return Summary(totals_of(terms), betas, float(terms.default_beta), terms.num_data)


def totals_of(terms: ELBOTerms) -> Tensor:
    """The totals of some terms as a vector: first :data:`TERMS`, then the KL of each latent."""
    values = [getattr(terms, name) for name in TERMS]
    values += [site.total("kl") for site in terms.sites.values() if site.beta is not None]
    return torch.stack([value.to(terms.objective) for value in values])
