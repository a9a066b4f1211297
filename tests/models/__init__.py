"""Small ordinary programs of many kinds, each guide away from prior and posterior.

`PROGRAMS` maps a name to a function that builds the program, in the default dtype of the moment.
"""

from collections.abc import Callable
from functools import partial

from . import (
    change_point,
    deep_gaussian,
    factor_analysis,
    hierarchical_regression,
    hmm,
    item_response,
    mixture,
    poisson_effects,
    semi_supervised,
    sparse_gp,
    survival,
    topics,
)
from .program import Program

__all__ = ["PROGRAMS", "Program"]

PROGRAMS: dict[str, Callable[[], Program]] = {
    "mixture": mixture.build,
    "mixture, subsampled": partial(mixture.build, subsample_size=3),
    "mixture, parallel": partial(mixture.build, "parallel"),
    "mixture, sequential": partial(mixture.build, "sequential"),
    "mixture, marginalised": partial(mixture.build, "model"),
    "mixture, guide factor": mixture.with_guide_factor,
    "hmm": partial(hmm.build, "sampled"),
    "hmm, parallel": partial(hmm.build, "parallel"),
    "hmm, marginalised": partial(hmm.build, "model"),
    "hmm, all marginalised": hmm.marginal,
    "hierarchical regression": hierarchical_regression.build,
    "semi-supervised VAE": semi_supervised.build,
    "semi-supervised VAE, parallel": partial(semi_supervised.build, "parallel"),
    "semi-supervised VAE, sequential": partial(semi_supervised.build, "sequential"),
    "topic model": topics.build,
    "topic model, parallel": partial(topics.build, "parallel"),
    "topic model, score, parallel": partial(topics.build, "parallel", False),
    "topic model, marginalised": partial(topics.build, "model"),
    "item response": item_response.build,
    "sparse GP": sparse_gp.build,
    "Poisson random effects": partial(poisson_effects.build, True),
    "Poisson random effects, score": partial(poisson_effects.build, False),
    "change point": change_point.build,
    "change point, parallel": partial(change_point.build, "parallel"),
    "change point, marginalised": partial(change_point.build, "model"),
    "change point, score, marginalised": partial(change_point.build, "model", False),
    "change point, discrete": change_point.discrete,
    "change point, all parallel": partial(change_point.discrete, "parallel"),
    "change point, auxiliary": change_point.with_auxiliary,
    "factor analysis": factor_analysis.build,
    "survival": survival.build,
    "deep Gaussian, bottom-up": partial(deep_gaussian.build, deep_gaussian.BottomUp),
    "deep Gaussian, top-down": partial(deep_gaussian.build, deep_gaussian.TopDown),
}
