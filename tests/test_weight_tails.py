"""What is said of the tails of importance weights: thresholds, shares, verdict and remedy."""

from __future__ import annotations

import pytest
import torch

from pyro_elbo.diagnostics import KhatReport, WeightTails

KHAT = torch.tensor([0.9, 0.5, torch.nan, 0.7, -0.2, 0.51, 0.68, 0.6])


def tails(num_samples=1000, khat=KHAT, count=50.0):
    ess = torch.full_like(khat, count)
    return WeightTails(num_samples, khat, ess, ("data",), torch.arange(10, 10 + len(khat)))


def test_each_datum_is_on_one_side_of_each_threshold():
    data = tails()
    groups = torch.stack([data.good, data.usable, data.bad, data.missing])
    assert (groups.sum(0) == 1).all()
    assert data.good.nonzero().flatten().tolist() == [1, 4]
    assert data.bad.nonzero().flatten().tolist() == [0]
    shares = data.shares
    assert (shares.good, shares.usable, shares.bad, shares.missing) == (2 / 8, 4 / 8, 1 / 8, 1 / 8)
    assert shares.above == 3 / 8


@pytest.mark.parametrize(("count", "threshold"), [(100, 0.5), (1000, 2 / 3), (10_000, 0.7)])
def test_fewer_samples_have_a_lower_threshold(count, threshold):
    assert tails(count).threshold == pytest.approx(threshold, rel=1e-15)


def test_reliable_is_what_the_samples_suffice_for():
    assert (~tails(1000).reliable).nonzero().flatten().tolist() == [0, 3, 6]
    assert (~tails(10_000).reliable).nonzero().flatten().tolist() == [0]
    assert 2 in (~tails(count=4.0).reliable).nonzero()


def test_the_verdict_names_the_data_and_what_to_do():
    joint = WeightTails(1000, torch.tensor(4.0), torch.tensor(1.1))
    report = KhatReport(joint, tails())
    assert "3 of 8 data have weights that cannot be used (data 10, 13, 16)" in report.verdict
    assert "AutoMultivariateNormal" in report.verdict
    assert "the joint k̂ is of the latents of all data at once" in report.verdict
    assert all(part in str(report) for part in ("4.00", "0.90", "12.5 %", "k̂ = 0.67"))
    assert max(map(len, str(report).splitlines())) <= 100


def test_more_samples_are_the_remedy_where_they_would_do():
    joint = WeightTails(1000, torch.tensor(0.1), torch.tensor(500.0))
    report = KhatReport(joint, tails(khat=torch.tensor([0.1, 0.69])))
    assert "(data 11): take num_samples=2155 or more" in report.verdict
    assert "joint" not in report.verdict
    assert KhatReport(joint, tails(2155, torch.tensor([0.1, 0.69]))).reliable


def test_many_bad_data_are_not_all_named():
    report = KhatReport(tails(khat=torch.ones(1)), tails(khat=torch.ones(50)))
    assert "18, 19, ...)" in report.verdict
