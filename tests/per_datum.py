"""Programs with one latent for each datum, and what is known of them."""

import math
from itertools import product

import pyro
import pyro.distributions as dist
import torch
from scipy.stats import norm
from support import FAILURE_BUDGET, MAX_COMPARISONS

THRESHOLD = float(norm.isf(FAILURE_BUDGET / MAX_COMPARISONS / 2))
PARTS = ("mutual_information", "total_correlation", "dimensionwise_kl")
NUM_DATA = 12
LOCS = torch.linspace(-2.0, 3.0, NUM_DATA, dtype=torch.float64)
SCALE = 0.45


def program(prior, posterior, size):
    """A model and a guide with one latent for each datum, whatever its distributions."""

    def model():
        with pyro.plate("data", size):
            pyro.sample("z", prior())
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=torch.zeros(size))

    def guide():
        with pyro.plate("data", size):
            pyro.sample("z", posterior())

    return model, guide


def normals(loc, scale=SCALE):
    size, dims = loc.shape
    return program(
        lambda: dist.Normal(torch.zeros(dims), 1.0).to_event(1),
        lambda: dist.Normal(loc, scale).to_event(1),
        size,
    )


def two_units():
    """The first unit's mean follows the data, the second's does not."""
    loc = torch.stack([LOCS, torch.full_like(LOCS, 0.7)], -1)
    return loc, torch.tensor([0.5, 0.8])


def normal_program():
    """The first unit follows the data, the second does not."""
    loc, scale = two_units()
    return normals(loc, scale)


def auto_program(autoguide):
    """A linear model of two units, and an AutoGuide of it that has run once."""

    def model():
        with pyro.plate("data", NUM_DATA):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=LOCS)

    guide = autoguide(model)
    guide()
    return model, guide


def exact_kl(loc, scale):
    """To the standard normal, averaged over data."""
    return ((loc**2 + scale**2 - 1) / 2 - scale.log()).mean(0)


def mixture_information(loc, scale):
    """I(n; z) of normals in one dim, by quadrature."""
    grid = torch.linspace(float(loc.min()) - 12, float(loc.max()) + 12, 40_001)
    each = dist.Normal(loc.unsqueeze(-1), scale).log_prob(grid)
    mixture = each.logsumexp(0) - math.log(len(loc))
    return torch.trapezoid((each.exp() * (each - mixture)).mean(0), grid)


def pair_of_units(values):
    """The parts for data whose two means are both ``values``, by quadrature in two dims."""
    grid = torch.linspace(float(values.min()) - 4, float(values.max()) + 4, 601)
    step = grid[1] - grid[0]
    each = dist.Normal(values.unsqueeze(-1), SCALE).log_prob(grid)
    joint = (each.unsqueeze(-1) + each.unsqueeze(-2)).logsumexp(0) - math.log(len(values))
    alone = each.logsumexp(0) - math.log(len(values))
    prior = dist.Normal(0.0, 1.0).log_prob(grid)
    entropy = -(joint.exp() * joint).sum() * step**2
    entropy_alone = -(alone.exp() * alone).sum() * step
    cross = -(alone.exp() * prior).sum() * step
    given = 2 * dist.Normal(0.0, SCALE).entropy()
    return torch.stack([entropy - given, 2 * entropy_alone - entropy, 2 * (cross - entropy_alone)])


def parts_of(report):
    values = torch.stack([getattr(report, name) for name in PARTS])
    return values, torch.stack([report.standard_error[name] for name in PARTS])


def assert_right(report, exact):
    values, errors = parts_of(report)
    assert ((values - exact).abs() < THRESHOLD * errors).all(), (values, exact, errors)


def gaussians():
    """729 Gaussians in 6 dims with known parts: three pairs of units, each with its own index."""
    values = 1.2 * dist.Normal(0.0, 1.0).icdf((torch.arange(9.0) + 0.5) / 9)
    loc = torch.stack(
        [torch.stack(index).repeat_interleave(2) for index in product(values, repeat=3)]
    )
    return loc, 3 * pair_of_units(values)
