"""ELBO surgery: the mixtures behind the estimators against dense matrices, and their biases."""

import math
from itertools import permutations

import pytest
import torch
from dense_mixtures import column_weights, dense, diagonal_weights, drawn, parts_of_draw
from per_datum import THRESHOLD, gaussians, normals, parts_of
from support import assert_close

from pyro_elbo.diagnostics import aggregate, elbo_surgery
from pyro_elbo.diagnostics.aggregate import (
    Draw,
    log_aggregate,
    minibatch_weights,
    progress_bar,
)

BATCH = 50


def test_both_minibatch_estimators_are_biased_as_documented():
    """The weighted by about log N for each log-density, the stratified by Jensen's inequality."""
    loc, exact = gaussians()
    model, guide = normals(loc)
    log_size = math.log(729)
    keywords = {"batch_size": BATCH, "num_samples": 20}
    weighted, _ = parts_of(elbo_surgery(model, guide, estimator="weighted", **keywords))
    stratified, errors = parts_of(elbo_surgery(model, guide, estimator="stratified", **keywords))
    bias, biased = stratified - exact, weighted - exact
    assert (bias * torch.tensor([1.0, -1.0, -1.0]) > THRESHOLD * errors).all(), (bias, errors)
    assert math.log(BATCH) < biased[0] < log_size
    assert 4 * log_size < biased[1] < 6 * log_size and -7 * log_size < biased[2] < -5 * log_size
    assert (biased.abs() > 5 * bias.abs()).all()


@pytest.mark.parametrize("estimator", ["weighted", "stratified"])
def test_the_standard_error_of_minibatches_is_not_too_small(estimator):
    model, guide = normals(gaussians()[0][:240])
    keywords = {"estimator": estimator, "batch_size": 40, "num_samples": 1}
    runs = [parts_of(elbo_surgery(model, guide, **keywords)) for _ in range(60)]
    means, errors = (torch.stack(each) for each in zip(*runs, strict=True))
    assert ((errors**2).mean(0) > means.var(0) / 2).all()


def test_the_bias_of_the_stratified_estimator_vanishes_with_the_batch():
    loc, exact = gaussians()
    model, guide = normals(loc)
    biases = []
    for batch_size in (20, 80, 320):
        report = elbo_surgery(
            model, guide, estimator="stratified", batch_size=batch_size, num_samples=4
        )
        biases.append(float(report.mutual_information - exact[0]))
    assert biases[0] > 2 * biases[1] > 4 * biases[2] > 0


def test_stratified_weights_are_on_the_diagonal():
    """Equal to a dense matrix; with a column for the diagonal, the parts differ."""
    loc, exact = gaussians()
    guides, draw = drawn(loc)
    batches = torch.randperm(729)[:700].reshape(-1, BATCH)
    weights = diagonal_weights(BATCH, 729)
    log_weights = minibatch_weights(draw.log_prob, "stratified", BATCH)
    joint, alone = log_aggregate(guides, draw, batches, log_weights, progress_bar(0, False))
    right, wrong = [], []
    for batch in batches:
        part = Draw([draw.values[0][batch]], draw.log_prob[batch])
        expected = dense(loc[batch], part, weights)
        assert_close(joint[batch], expected[0], scale=10.0, ulps=256)
        assert_close(alone[batch], expected[1], scale=10.0, ulps=256)
        right.append(parts_of_draw(part, *expected))
        wrong.append(parts_of_draw(part, *dense(loc[batch], part, column_weights(BATCH, 729))))
    right, wrong = torch.cat(right), torch.cat(wrong)
    assert_close(right.sum(-1), wrong.sum(-1), scale=100.0)
    difference = wrong - right
    error = difference.std(0) / len(difference) ** 0.5
    assert (difference.mean(0).abs() > THRESHOLD * error).all()
    bias, biased = right.mean(0) - exact, wrong.mean(0) - exact
    assert bias[0] > 0 > bias[1] and biased[0] < 0 < biased[1]


def test_the_stratified_density_is_unbiased():
    """Over all ordered batches of 3 of 5 data, at a draw of one of the batch."""
    loc = torch.tensor([[-1.0], [0.0], [0.3], [1.0], [2.5]])
    guides, draw = drawn(loc)
    log_weights = minibatch_weights(draw.log_prob, "stratified", 3)
    bar = progress_bar(0, False)
    totals, counts = torch.zeros(5), torch.zeros(5)
    for order in permutations(range(5), 3):
        batch = torch.tensor([order])
        joint, _ = log_aggregate(guides, draw, batch, log_weights, bar)
        totals[batch[0]] += joint[batch[0]].exp()
        counts[batch[0]] += 1
    exact, _ = dense(loc, draw, torch.full((5, 5), 1 / 5))
    assert_close(totals / counts, exact.exp())


def test_the_exact_aggregate_is_the_dense_one_however_it_is_chunked(monkeypatch):
    loc, _ = gaussians()
    guides, draw = drawn(loc[:60])
    weights = aggregate.exact_weights(draw.log_prob)
    expected = dense(loc[:60], draw, torch.full((60, 60), 1 / 60))
    for chunk in (1, 60 * 6 * 7, 2**20):
        monkeypatch.setattr(aggregate, "CHUNK", chunk)
        found = log_aggregate(guides, draw, *weights, progress_bar(0, False))
        assert_close(found[0], expected[0], scale=10.0)
        assert_close(found[1], expected[1], scale=10.0)
