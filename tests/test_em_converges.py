"""Where variational EM ends: beside scikit-learn's EM, and beside a posterior that collapses."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import config_enumerate
from pyro.optim import Adam, Rprop
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from torch import nn

from pyro_elbo import TraceEntropy_ELBO, TraceKL_ELBO, VariationalEM
from pyro_elbo.diagnostics import posterior_collapse
from pyro_elbo.steppers import UntilConverged, UntilMutualInformationStopsRising

NUM_COMPONENTS = 3
PER_DATUM = 1e-4


def clusters(size):
    """Three overlapping clusters in the plane, from which EM takes its time."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.tensor([[0.0, 0.0], [2.0, 1.5], [-1.5, 2.0]])
    noise = torch.randn(3, size, 2, generator=generator, dtype=torch.float64)
    return (centres[:, None] + torch.tensor([1.0, 0.7, 0.5])[:, None, None] * noise).flatten(0, 1)


class Start:
    """The start of both: equal weights, data as means, unit covariances."""

    def __init__(self, x):
        self.weights = torch.full((NUM_COMPONENTS,), 1 / NUM_COMPONENTS)
        self.means = x[[len(x) // 12, len(x) // 2, 3 * len(x) // 4]].clone()
        self.scale_tril = torch.eye(2).repeat(NUM_COMPONENTS, 1, 1)

    def model(self, x):
        weights, means, scale_tril = self.parameters()
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(weights))
            pyro.sample("x", dist.MultivariateNormal(means[k], scale_tril=scale_tril[k]), obs=x)

    @config_enumerate
    def guide(self, x):
        logits = pyro.param("logits", torch.zeros(len(x), NUM_COMPONENTS))
        with pyro.plate("data", len(x)):
            pyro.sample("k", dist.Categorical(logits=logits))

    def parameters(self):
        return (
            pyro.param("weights", self.weights.clone(), constraint=dist.constraints.simplex),
            pyro.param("means", self.means.clone()),
            pyro.param(
                "scale_tril", self.scale_tril.clone(), constraint=dist.constraints.lower_cholesky
            ),
        )

    @torch.no_grad()
    def log_likelihood(self, x):
        weights, means, scale_tril = self.parameters()
        components = dist.MultivariateNormal(means, scale_tril=scale_tril)
        return float((weights.log() + components.log_prob(x[:, None])).logsumexp(-1).mean())

    def scikit_learn(self, num_iterations, x):
        mixture = GaussianMixture(
            NUM_COMPONENTS,
            tol=0.0,
            reg_covar=0.0,
            max_iter=num_iterations,
            weights_init=self.weights.numpy(),
            means_init=self.means.numpy(),
            precisions_init=np.stack([np.eye(2)] * NUM_COMPONENTS),
        )
        with pytest.warns(ConvergenceWarning):
            return float(mixture.fit(x.numpy()).score(x.numpy()))


def to_the_optimum():
    """Rprop finds the optimum of a noise-free step in some hundred moves."""
    rule = UntilConverged(tolerance=1e-7, window=5, max_steps=400)
    return Rprop({"lr": 0.05, "step_sizes": (1e-12, 2.0)}), rule


@pytest.mark.parametrize(
    ("size", "num_iterations"), [(10, 3), pytest.param(40, 12, marks=pytest.mark.slow)]
)
def test_it_follows_scikit_learns_em_iteration_by_iteration(size, num_iterations):
    x = clusters(size)
    start = Start(x)
    (e_optim, e_rule), (m_optim, m_rule) = to_the_optimum(), to_the_optimum()
    em = VariationalEM(
        start.model, start.guide, e_optim, m_optim, TraceEntropy_ELBO(), e_rule, m_rule
    )
    before = start.log_likelihood(x)
    for iteration in range(1, num_iterations + 1):
        em.step(x)
        after = start.log_likelihood(x)
        assert abs(after - start.scikit_learn(iteration, x)) < PER_DATUM
        assert after > before
        before = after


def circle(size, turn):
    """Points on a circle: no line through them explains more than another."""
    angles = (torch.arange(size) + turn) * (2 * torch.pi / size)
    return torch.stack([angles.cos(), angles.sin()], -1)


class CircleVAE:
    """A decoder that learns the noise thirty times as fast as the encoder learns the latents."""

    def __init__(self):
        self.encoder = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 4))
        self.decoder = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 2))

    def model(self, x):
        decoder = pyro.module("decoder", self.decoder)
        noise = pyro.param("noise", torch.tensor(0.3), constraint=dist.constraints.positive)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), noise).to_event(1), obs=x)

    def guide(self, x):
        encoder = pyro.module("encoder", self.encoder)
        with pyro.plate("data", len(x)):
            loc, log_scale = encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    def collapse(self):
        held_out = circle(50, 0.5)
        return posterior_collapse(self.model, self.guide, held_out, threshold=0.1, progress=False)

    def train(self, num_steps, e_steps):
        """Take the steps; how many moves they had."""
        moves, loss = [], TraceKL_ELBO()
        loss.register_gradient_hook(lambda parameters: moves.append(1))
        optims = Adam({"lr": 3e-4}), Adam({"lr": 1e-2})
        em = VariationalEM(self.model, self.guide, *optims, loss, e_steps)
        for _ in range(num_steps):
            em.step(circle(50, 0.0))
        return len(moves)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_lagging_encoder_rule_keeps_what_plain_training_loses(seed):
    """Plain training has as many moves; the rule's own ends in plain training too."""
    pyro.set_rng_seed(seed)
    kept = CircleVAE()
    rule = UntilMutualInformationStopsRising(
        lambda: kept.collapse().mutual_information, every=5, until=UntilConverged(max_steps=50)
    )
    num_moves = kept.train(300, rule)
    found = kept.collapse()
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    plain = CircleVAE()
    plain.train(num_moves // 2, 1)
    lost = plain.collapse()
    assert not rule.is_rising and num_moves < 300 * 51 / 3
    assert lost.dead_share == 1.0 and lost.kl.sum() < 0.1
    assert found.dead_share == 0.0 and found.kl.sum() > 1.0
