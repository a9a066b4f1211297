"""ELBO surgery by minibatches: published figures, and the estimator that public code writes."""

import pytest
import torch
from dense_mixtures import column_weights, dense, drawn, parts_of_draw
from per_datum import normals, parts_of
from scipy.stats import t as student_t
from support import FAILURE_BUDGET, MAX_COMPARISONS

from pyro_elbo.diagnostics import elbo_surgery

SIZE, DIMS, BATCH, NUM_SETS = 2000, 5, 100, 20
SPREAD, CORRELATION, SCALE = 1.470, 0.511, 0.3063

# Mutual information, total correlation, KL by dimension: Gaussians, in nats, in batches of 100.
FIGURES = {
    "exact": (6.42, 1.52, 1.12),
    "weighted": (12.1, 33.7, -36.7),
    "stratified": (7.1, 1.2, 0.9),
    "as public code writes it": (4.5, 3.3, 1.3),
}


def correlated(generator):
    """Means of equal correlations, so that the parts are those of the figures on average."""
    noise = torch.randn(SIZE, DIMS, generator=generator)
    common = torch.randn(SIZE, 1, generator=generator)
    return SPREAD * ((1 - CORRELATION) ** 0.5 * noise + CORRELATION**0.5 * common)


def with_a_column_for_the_diagonal(loc, generator):
    _, draw = drawn(loc, SCALE)
    weights = column_weights(BATCH, SIZE)
    parts = []
    for batch in torch.randperm(SIZE, generator=generator).reshape(-1, BATCH):
        part = type(draw)([draw.values[0][batch]], draw.log_prob[batch])
        parts.append(parts_of_draw(part, *dense(loc[batch], part, weights, SCALE)))
    return torch.cat(parts).mean(0)


def estimates(loc, generator):
    programs = normals(loc, SCALE)
    options = {
        name: {} if name == "exact" else {"estimator": name, "batch_size": BATCH}
        for name in ("exact", "weighted", "stratified")
    }
    found = {
        name: parts_of(elbo_surgery(*programs, progress=False, **kwargs))[0]
        for name, kwargs in options.items()
    }
    found["as public code writes it"] = with_a_column_for_the_diagonal(loc, generator)
    return found


@pytest.mark.slow
def test_gaussians_have_the_figures_of_each_estimator():
    """Each figure is a likely one of another data set; all add up alike, which says little."""
    generator = torch.Generator().manual_seed(0)
    sets = [estimates(correlated(generator), generator) for _ in range(NUM_SETS)]
    quantile = student_t.isf(FAILURE_BUDGET / MAX_COMPARISONS / 2, NUM_SETS - 1)
    for name, figures in FIGURES.items():
        found = torch.stack([each[name] for each in sets])
        rounding = 0.05 if name != "exact" else 0.005
        width = quantile * found.std(0) * (1 + 1 / NUM_SETS) ** 0.5 + rounding
        assert ((found.mean(0) - torch.tensor(figures)).abs() < width).all(), (name, found.mean(0))
        assert (width < 2).all()
        total = found.sum(-1).mean()
        assert abs(total - sum(FIGURES["exact"])) < width.sum()
