"""AutoGuides on sites of every support: plates, minibatches, particles, masks, where fits end."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from auto_guides import (
    DELTAS,
    GUIDES,
    LAPLACE,
    BetaTrace_ELBO,
    assert_same,
    assert_same_mean,
    evaluate,
    make,
    of_samples,
)
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import (
    AutoDelta,
    AutoHierarchicalNormalMessenger,
    AutoNormal,
    AutoNormalMessenger,
    init_to_value,
)
from support import LOSSES, assert_close, assert_mean

from pyro_elbo import TraceEntropy_ELBO, TraceGap_ELBO, TraceKL_ELBO

loss_classes = pytest.mark.parametrize("cls", LOSSES, ids=lambda cls: cls.__name__)
guides = pytest.mark.parametrize("name", GUIDES)
particles = pytest.mark.parametrize("vectorize", [False, True], ids=["sequential", "vectorised"])
DATA = torch.tensor([0.3, -1.0, 0.7], dtype=torch.float64)
MINIBATCHED = torch.linspace(-1.0, 1.0, 6, dtype=torch.float64)


def supports():
    """No site is real, so that nothing has a closed form."""
    rate = pyro.sample("rate", dist.LogNormal(0.0, 1.0))
    simplex = pyro.sample("simplex", dist.Dirichlet(torch.full((3,), 2.0)))
    scale = pyro.sample("scale", dist.HalfCauchy(1.0))
    tril = pyro.sample("tril", dist.LKJCholesky(3, torch.tensor(2.0)))
    with pyro.plate("data", 3):
        gamma = pyro.sample("gamma", dist.Gamma(2.0, rate))
        beta = pyro.sample("beta", dist.Beta(2.0, 1.0 + scale))
        weights = pyro.sample("weights", dist.Dirichlet(torch.ones(2)))
        loc = gamma + beta * weights[..., 0] + simplex[..., 0] + tril[..., 2, 0]
        pyro.sample("x", dist.Normal(loc, 0.5 + scale), obs=DATA)


def hierarchy():
    m = pyro.sample("m", dist.Normal(0.0, 1.0))
    scale = pyro.sample("scale", dist.LogNormal(0.0, 0.5))
    with pyro.plate("data", 3):
        z = pyro.sample("z", dist.Normal(m, scale))
        v = pyro.sample("v", dist.MultivariateNormal(torch.zeros(2), torch.eye(2) + 0.5))
        pyro.sample("x", dist.Normal(z + v.sum(-1), 0.5), obs=DATA.to(m.dtype))


def minibatches():
    m = pyro.sample("m", dist.Normal(0.0, 1.0))
    scale = pyro.sample("scale", dist.Gamma(2.0, 1.0))
    with pyro.plate("data", 6, subsample_size=2) as indices:
        z = pyro.sample("z", dist.Normal(m, scale))
        weight = pyro.sample("weight", dist.Beta(2.0, 2.0))
        pyro.sample("x", dist.Normal(z * weight, 0.5), obs=MINIBATCHED[indices])


def kwargs_of(vectorize, nesting=1):
    size = {"num_particles": 3 if vectorize else 2}
    return size | {"vectorize_particles": vectorize, "max_plate_nesting": nesting}


@guides
@particles
@pytest.mark.parametrize("beta", [1.0, 4.0])
def test_nothing_closed_is_trace_elbo_in_every_view(name, vectorize, beta):
    guide = make(GUIDES[name], supports)
    kwargs = kwargs_of(vectorize) | {"beta": beta}
    expected = evaluate(BetaTrace_ELBO(**kwargs), supports, guide, 1)
    assert expected.isfinite().all()
    for cls in LOSSES:
        elbo = cls(**kwargs)
        assert_same(evaluate(elbo, supports, guide, 1), expected)
        terms = elbo.terms
        scale = terms.reconstruction.abs() + beta * terms.kl.abs()
        assert_close(terms.objective, terms.reconstruction - beta * terms.kl, scale)


@guides
@loss_classes
def test_weight_0_drops_no_jacobian_from_the_terms(name, cls):
    guide = make(GUIDES[name], supports)
    kls = []
    for beta in (0.0, 1.0):
        pyro.set_rng_seed(2)
        kls.append(cls(beta=beta).decompose(supports, guide).kl)
    assert_same(*kls)


@guides
@of_samples
@pytest.mark.parametrize("cls", [TraceEntropy_ELBO, TraceKL_ELBO], ids=lambda cls: cls.__name__)
def test_closed_forms_have_the_mean_of_samples(name, vectorize, cls):
    """In a hierarchy, and for a prior that correlates what the guide keeps apart."""
    guide = make(GUIDES[name], hierarchy)
    kwargs = kwargs_of(vectorize) | {"beta": 0.5}
    losses = cls(**kwargs), TraceGap_ELBO(**kwargs)
    plan = losses[0].plan(hierarchy, guide)
    if any("exact" in (site.kl, site.entropy) for site in plan.sites if site.role != "map"):
        assert_same_mean(losses, hierarchy, guide)
    else:
        assert_same(*(evaluate(elbo, hierarchy, guide, 1) for elbo in losses))


def test_a_prior_of_another_shape_of_normal_is_recognised():
    guide = make(AutoNormal, hierarchy)
    plan = TraceKL_ELBO().plan(hierarchy, guide)
    assert plan["v"].kl == "exact"
    assert "MultivariateNormal" in plan["v"].why
    assert plan["scale"].kl == "sampled"


LOCAL = {
    "AutoNormal": AutoNormal,
    "AutoDelta": AutoDelta,
    "AutoNormalMessenger": AutoNormalMessenger,
    "AutoHierarchicalNormalMessenger": AutoHierarchicalNormalMessenger,
    "amortised": lambda model: AutoNormalMessenger(model, amortized_plates=("data",)),
    "create_plates": lambda model: AutoNormal(
        model, create_plates=lambda: pyro.plate("data", 6, subsample_size=2)
    ),
}


@pytest.mark.parametrize("name", LOCAL)
@of_samples
def test_subsampled_latents(name, vectorize):
    guide = make(LOCAL[name], minibatches)
    kwargs = kwargs_of(vectorize)
    elbo = TraceGap_ELBO(**kwargs)
    assert_same(
        evaluate(elbo, minibatches, guide, 1), evaluate(Trace_ELBO(**kwargs), minibatches, guide, 1)
    )
    elbo = TraceKL_ELBO(num_particles=3, vectorize_particles=True)
    terms = elbo.decompose(minibatches, guide)
    local, kl = terms.per_datum("data"), terms.sites["m"].kl + terms.sites["scale"].kl
    assert local.scale == 3
    assert_close(local.scale * local.kl.sum() + kl, terms.kl, terms.kl.abs())
    losses = TraceKL_ELBO(**kwargs), Trace_ELBO(**kwargs)
    assert_same_mean(losses, minibatches, guide)


@pytest.mark.parametrize("name", [name for name in GUIDES if name not in DELTAS])
def test_the_path_derivative_keeps_the_mean(name):
    guide = make(GUIDES[name], hierarchy)
    kwargs = kwargs_of(vectorize=True)
    losses = TraceGap_ELBO(path_derivative=True, **kwargs), TraceGap_ELBO(**kwargs)
    assert_same_mean(losses, hierarchy, guide)


@guides
@loss_classes
def test_float32(name, cls):
    torch.set_default_dtype(torch.float32)
    guide = make(GUIDES[name], hierarchy)
    elbo = cls(num_particles=2, beta=0.5)
    grads = evaluate(elbo, hierarchy, guide, 1)
    assert grads.dtype == elbo.terms.objective.dtype == elbo.terms.kl.dtype == torch.float32
    if cls is TraceGap_ELBO:
        assert_same(grads, evaluate(BetaTrace_ELBO(num_particles=2, beta=0.5), hierarchy, guide, 1))


@guides
def test_a_module_finds_the_parameters_and_trains_them(name):
    pyro.set_rng_seed(0)
    guide = GUIDES[name](hierarchy)
    module = TraceKL_ELBO(num_particles=2)(hierarchy, guide)
    with torch.no_grad():
        module()
    before = [parameter.detach().clone() for parameter in module.parameters()]
    assert {id(p) for p in module.parameters()} == {id(p) for p in guide.parameters()}
    optimizer = torch.optim.SGD(module.parameters(), lr=1e-3)
    module().backward()
    optimizer.step()
    pairs = zip(module.parameters(), before, strict=True)
    assert any(not torch.equal(after, start) for after, start in pairs)


class MaskSites(poutine.messenger.Messenger):
    """Masks the guide's sites of what is partly observed, as the model does."""

    def __init__(self, mask):
        super().__init__()
        self.mask = mask

    def _pyro_sample(self, msg):
        if "_unobserved" in msg["name"]:
            msg["mask"] = self.mask


@particles
@pytest.mark.parametrize("beta", [1.0, 4.0])
def test_obs_mask_on_a_constrained_site(vectorize, beta):
    """The same as with Pyro's loss where the user masks the guide by hand, Jacobian included."""
    observed = torch.tensor([True, False, True])

    def model():
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 3):
            pyro.sample("x", dist.Gamma(2.0, m.exp()), obs=DATA.abs(), obs_mask=observed)

    guide = make(AutoNormal, model)
    kwargs = kwargs_of(vectorize) | {"beta": beta}
    pyro.set_rng_seed(1)
    loss = TraceGap_ELBO(**kwargs).loss(model, guide)
    pyro.set_rng_seed(1)
    masked = MaskSites(~observed)(guide)
    assert loss == pytest.approx(BetaTrace_ELBO(**kwargs).loss(model, masked), rel=1e-12)


@loss_classes
def test_autonormal_on_a_gamma_is_at_rest_at_the_closed_form(cls):
    """The log-normal nearest to Gamma(a, b): variance 1 / a, location log(a / b) - 1 / (2 a)."""
    a, b = 3.0, 2.0

    def model():
        pyro.sample("z", dist.Gamma(a, b))

    median = torch.tensor(a / b).mul(math.exp(-0.5 / a))
    guide = AutoNormal(model, init_loc_fn=init_to_value(values={"z": median}), init_scale=a**-0.5)
    guide()
    elbo = cls(num_particles=20, vectorize_particles=True, max_plate_nesting=0)
    rows = [evaluate(elbo, model, guide, seed)[1:] for seed in range(100)]
    assert_mean(torch.stack(rows), torch.zeros(2))
    guide.locs.z.data += 0.3
    with pytest.raises(AssertionError, match="standard errors"):
        assert_mean(
            torch.stack([evaluate(elbo, model, guide, seed)[1:] for seed in range(100)]),
            torch.zeros(2),
        )


@loss_classes
@pytest.mark.parametrize(
    "prior",
    [
        dist.LogNormal(0.0, 1.0),
        dist.Gamma(3.0, 2.0),
        dist.Beta(2.0, 3.0),
        dist.Dirichlet(torch.tensor([1.0, 2.0, 3.0])),
    ],
    ids=lambda prior: type(prior).__name__,
)
def test_fits_on_constrained_sites_end_where_those_of_trace_elbo_end(cls, prior):
    ends = []
    for elbo in (cls(), Trace_ELBO()):
        guide = make(AutoNormal, lambda: pyro.sample("z", prior))
        svi = SVI(guide.model, guide, pyro.optim.SGD({"lr": 0.02}), elbo)
        for _ in range(150):
            svi.step()
        ends.append(guide.median()["z"])
    assert_close(ends[0], ends[1], ends[1].abs().max(), ulps=150 * 64)


@loss_classes
def test_the_laplace_guide_has_no_parameters_and_is_trace_elbo(cls):
    training = make(GUIDES[LAPLACE], hierarchy)
    svi = SVI(hierarchy, training, pyro.optim.Adam({"lr": 0.05}), cls())
    for _ in range(150):
        svi.step()
    guide = training.laplace_approximation()
    assert not list(guide.parameters())
    losses = []
    for elbo in (cls(num_particles=2), Trace_ELBO(num_particles=2)):
        pyro.set_rng_seed(1)
        losses.append(elbo.loss_and_grads(hierarchy, guide))
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)


@loss_classes
@pytest.mark.parametrize("made", [AutoNormalMessenger, AutoHierarchicalNormalMessenger])
def test_a_messenger_that_first_runs_in_particles_has_parameters_of_one_guide(made, cls):
    """In Pyro's own losses they have a dim for the particles."""
    pyro.set_rng_seed(0)
    pyro.clear_param_store()
    guide = made(hierarchy)
    elbo = cls(num_particles=5, vectorize_particles=True, max_plate_nesting=1)
    elbo.loss(hierarchy, guide)
    shapes = {name: value.shape for name, value in guide.named_parameters()}
    pyro.clear_param_store()
    alone = made(hierarchy)
    alone()
    assert shapes == {name: value.shape for name, value in alone.named_parameters()}
    assert cls(num_particles=3).decompose(hierarchy, guide).elbo.isfinite()
