"""Problems whose evidence, posterior, terms and gradients are known exactly.

Tests, notebooks and documentation share them: a loss is right where it agrees with these. ``ALL``
lists their constructors, each of which needs no argument and takes ``subsample_size``.
"""

from collections.abc import Callable

from .base import ExactSite, ExactTerms, ReferenceProblem
from .beta_bernoulli import BetaBernoulli
from .conjugate_normal import ConjugateNormal
from .gaussian_mixture import GaussianMixture
from .hierarchical_normal import HierarchicalNormal
from .linear_vae import LinearVAE

__all__ = [
    "ALL",
    "BetaBernoulli",
    "ConjugateNormal",
    "ExactSite",
    "ExactTerms",
    "GaussianMixture",
    "HierarchicalNormal",
    "LinearVAE",
    "ReferenceProblem",
]

ALL: tuple[Callable[..., ReferenceProblem], ...] = (
    ConjugateNormal,
    LinearVAE,
    BetaBernoulli,
    GaussianMixture,
    HierarchicalNormal,
)
