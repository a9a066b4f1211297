"""The mixtures behind ELBO surgery, each by a dense matrix of weights."""

import pyro.distributions as dist
import torch
from per_datum import SCALE

from pyro_elbo.diagnostics.aggregate import Draw, PerDatum


def drawn(loc, scale=SCALE):
    """The guide's distributions, and one draw of each datum."""
    guides = [PerDatum.of(dist.Normal(loc, scale).to_event(1), -1)]
    return guides, Draw.of(guides)


def dense(loc, draw, weights, scale=SCALE):
    """The log-mixtures by a matrix of weights, shape ``(draws, data)``."""
    each = dist.Normal(loc, scale).log_prob(draw.values[0].unsqueeze(1))
    log_weights = weights.log()
    joint = (each.sum(-1) + log_weights).logsumexp(1)
    return joint, (each + log_weights.unsqueeze(-1)).logsumexp(1)


def diagonal_weights(batch_size, size):
    others = batch_size - 1
    weights = torch.full((batch_size, batch_size), 1 / others)
    rows = torch.arange(batch_size)
    weights[rows, rows] = 1 / size
    weights[rows, (rows - 1) % batch_size] = (size - others) / (size * others)
    return weights


def column_weights(batch_size, size):
    """As public implementations write them: the stride is one too short for the diagonal."""
    others = batch_size - 1
    stratum = (size - others) / (size * others)
    weights = torch.full((batch_size, batch_size), 1 / others)
    weights.view(-1)[:: others + 1] = 1 / size
    weights.view(-1)[1 :: others + 1] = stratum
    weights[others - 1, 0] = stratum
    return weights


def parts_of_draw(draw, joint, alone):
    prior = dist.Normal(0.0, 1.0).log_prob(draw.values[0]).sum(-1)
    apart = alone.sum(-1)
    return torch.stack([draw.log_prob.sum(-1) - joint, joint - apart, apart - prior], -1)
