"""AutoGuides of several parts: who owns which site, one weight inside a group, what is refused."""

from __future__ import annotations

import math
import warnings

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
    listed,
    make,
    of_samples,
)
from pyro import poutine
from pyro.infer.autoguide import (
    AutoDelta,
    AutoDiagonalNormal,
    AutoMultivariateNormal,
    AutoNormal,
    AutoStructured,
)
from pyro.nn import PyroModule
from support import LOSSES, assert_close
from torch import nn

from pyro_elbo import TraceGap_ELBO, TraceKL_ELBO, UnsupportedSiteError

loss_classes = pytest.mark.parametrize("cls", LOSSES, ids=lambda cls: cls.__name__)
DATA = torch.tensor([0.3, -1.0, 0.7], dtype=torch.float64)


OWN_SITES = {"AutoNormal", "AutoNormalMessenger", "AutoHierarchicalNormalMessenger"}
OWN_SITES |= {"AutoRegressiveMessenger", "AutoDelta"}


def hierarchy():
    m = pyro.sample("m", dist.Normal(0.0, 1.0))
    scale = pyro.sample("scale", dist.LogNormal(0.0, 0.5))
    with pyro.plate("data", 3):
        z = pyro.sample("z", dist.Normal(m, scale))
        pyro.sample("x", dist.Normal(z, 0.5), obs=DATA)


class HandWritten(PyroModule):
    """A part for ``m`` and ``scale``, the one depending on the other."""

    def __init__(self):
        super().__init__()
        self.loc = nn.Parameter(torch.tensor(0.3))
        self.slope = nn.Parameter(torch.tensor(0.4))

    def forward(self):
        m = pyro.sample("m", dist.Normal(self.loc, 0.6))
        pyro.sample("scale", dist.LogNormal(self.slope * m, 0.3))


def roles(terms):
    sites = (site for site in terms.sites.values() if site.beta is not None)
    return {site.name: (site.role, site.how["kl"], site.members) for site in sites}


@pytest.mark.parametrize("name", GUIDES)
@loss_classes
def test_groups_and_roles(name, cls):
    terms = cls(num_particles=2).decompose(hierarchy, make(GUIDES[name], hierarchy))
    groups = [site for site in terms.sites.values() if site.beta is not None]
    if name in OWN_SITES:
        assert {group.name for group in groups} == {"m", "scale", "z"}
        assert {group.role for group in groups} == {"map" if name == "AutoDelta" else "latent"}
        assert terms.per_datum("data").kl.shape == (3,)
    elif name == "AutoStructured of deltas":
        assert {group.role for group in groups} == {"map"}
    else:
        (group,) = groups
        assert group.role == "joint"
        assert {"m", "scale", "z"} < set(group.members)
    if name in DELTAS:
        assert terms.entropy == 0
        assert_close(terms.kl, -terms.expected_log_prior)
    massless = name not in (*DELTAS, LAPLACE)
    assert terms.importance_bound.isfinite() == massless
    assert (terms.no_bound is None) == massless


def pair(name, kl):
    return "latent", kl, (f"{name}_unconstrained", name)


FIRST, SECOND = "_AutoGuideList.0_latent", "_AutoGuideList.1_latent"
LISTS = {
    "reversed": (
        ((AutoNormal, ["z"]), (AutoNormal, ["scale"]), (AutoNormal, ["m"])),
        {"z": pair("z", "exact"), "scale": pair("scale", "sampled"), "m": pair("m", "exact")},
    ),
    "joint and local": (
        ((AutoMultivariateNormal, ["m", "scale"]), (AutoNormal, ["z"])),
        {FIRST: ("joint", "sampled", (FIRST, "m", "scale")), "z": pair("z", "exact")},
    ),
    "two joint": (
        ((AutoDiagonalNormal, ["m"]), (AutoDiagonalNormal, ["scale", "z"])),
        {
            FIRST: ("joint", "sampled", (FIRST, "m")),
            SECOND: ("joint", "sampled", (SECOND, "scale", "z")),
        },
    ),
    "structured and mean field": (
        ((AutoStructured, ["m", "scale"]), (AutoNormal, ["z"])),
        {
            "m_aux": ("joint", "sampled", ("m_aux", "scale_aux", "m", "scale")),
            "z": pair("z", "exact"),
        },
    ),
    "point mass first": (
        ((AutoDelta, ["scale"]), (AutoNormal, ["m", "z"])),
        {
            "scale": ("map", "exact", ("scale",)),
            "m": pair("m", "exact"),
            "z": pair("z", "exact"),
        },
    ),
    "point mass after mean field": (
        ((AutoNormal, ["m", "z"]), (AutoDelta, ["scale"])),
        {
            "m": pair("m", "exact"),
            "z": pair("z", "exact"),
            "scale": ("map", "exact", ("scale",)),
        },
    ),
    "hand-written": (
        (HandWritten, (AutoNormal, ["z"])),
        {
            "m": ("latent", "exact", ("m",)),
            "scale": ("latent", "exact", ("scale",)),
            "z": pair("z", "exact"),
        },
    ),
}


def build_list(name):
    parts = (part() if part is HandWritten else part for part in LISTS[name][0])
    return make(listed(*parts), hierarchy)


@pytest.mark.parametrize("name", LISTS)
def test_each_part_of_a_list_keeps_its_sites(name):
    guide = build_list(name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        terms = TraceKL_ELBO(num_particles=2).decompose(hierarchy, guide)
    assert roles(terms) == LISTS[name][1]


@pytest.mark.parametrize("name", LISTS)
@of_samples
def test_lists_have_the_value_and_the_mean_of_trace_elbo(name, vectorize):
    guide = build_list(name)
    kwargs = {"num_particles": 2, "vectorize_particles": vectorize, "max_plate_nesting": 1}
    kwargs |= {"beta": 4.0}
    losses = [cls(**kwargs) for cls in (TraceKL_ELBO, TraceGap_ELBO, BetaTrace_ELBO)]
    assert_same(*(evaluate(elbo, hierarchy, guide, 1) for elbo in losses[1:]))
    assert_same_mean(losses[:2], hierarchy, guide)


@loss_classes
def test_an_auxiliary_follows_the_weight_of_its_site(cls):
    guide = make(AutoNormal, hierarchy)
    terms = cls(beta={"m": 2.0, "z": 3.0}).decompose(hierarchy, guide)
    betas = {"m": 2.0, "scale": 1.0, "z": 3.0}
    assert {name: terms.sites[name].beta for name in betas} == betas
    weighted = sum(beta * terms.sites[name].kl.sum() for name, beta in betas.items())
    assert_close(terms.weighted_kl, weighted, terms.kl.abs())
    with pytest.raises(ValueError, match=r"terms.sites\[name\].beta"):
        _ = terms.beta
    with pytest.raises(ValueError, match="beta differs inside the joint group of 'm'"):
        cls(beta={"m": 2.0, "m_unconstrained": 3.0}).loss(hierarchy, guide)


JOINT = {
    "AutoDiagonalNormal": "_AutoDiagonalNormal_latent",
    "AutoStructured of mvn": "m_aux",
    "AutoGaussian": "_AutoGaussianDense_latent",
    "AutoLaplaceApproximation": "_AutoLaplaceApproximation_latent",
}


def guide_only(guide):
    """The guide's sites without a prior, each with weight 1."""
    nodes = poutine.trace(guide).get_trace().nodes
    samples = {name: site for name, site in nodes.items() if site["type"] == "sample"}
    return {name: 1.0 for name, site in samples.items() if site["infer"].get("is_auxiliary")}


@pytest.mark.parametrize("name", JOINT)
@loss_classes
def test_a_joint_density_has_one_weight_and_no_data(name, cls):
    guide, joint = make(GUIDES[name], hierarchy), JOINT[name]
    with pytest.raises(ValueError, match=rf"'{joint}'.*ambiguous.*name it in the mapping"):
        cls(beta={"m": 2.0}).loss(hierarchy, guide)
    with pytest.raises(ValueError, match=f"beta differs inside the joint group of '{joint}'"):
        cls(beta={"m": 2.0, **guide_only(guide)}).loss(hierarchy, guide)
    terms = cls(beta={"m": 2.0, "*": 2.0}).decompose(hierarchy, guide)
    assert terms.sites[joint].beta == 2.0
    with pytest.raises(ValueError, match=rf"per_datum\('data'\).*joint site '{joint}'"):
        terms.per_datum("data")


@pytest.mark.parametrize("name", [*JOINT, "AutoIAFNormal"])
def test_obs_mask_needs_a_site_for_each_latent(name):
    def model():
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 3):
            observed = torch.tensor([True, False, True])
            pyro.sample("x", dist.Normal(m, 1.0), obs=DATA, obs_mask=observed)

    with pytest.raises(UnsupportedSiteError, match="'x_unobserved'.*AutoNormal"):
        TraceGap_ELBO().loss(model, make(GUIDES[name], model))


def added():
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    b = pyro.sample("b", dist.Normal(1.0, 2.0))
    pyro.sample("x", dist.Normal(a + b, 1.0), obs=torch.tensor(0.3))


def doubled_beside_a_point():
    """The density of ``a`` is that of ``u``; ``b`` has none of its own and takes none from it."""
    u = pyro.sample("u", dist.Normal(0.4, 0.7), infer={"is_auxiliary": True})
    pyro.sample("a", dist.Delta(2 * u, log_density=-torch.tensor(2.0).log()))
    pyro.sample("b", dist.Delta(torch.tensor(0.2)))


@loss_classes
def test_a_point_beside_a_draw_is_no_part_of_its_density(cls):
    pyro.set_rng_seed(0)
    terms = cls().decompose(added, doubled_beside_a_point)
    pyro.set_rng_seed(0)
    u = dist.Normal(0.4, 0.7).rsample()
    groups = {name: (site.role, site.members) for name, site in terms.sites.items()}
    assert groups["u"] == ("joint", ("u", "a")) and groups["b"] == ("map", ("b",))
    assert_close(terms.sites["b"].kl, -dist.Normal(1.0, 2.0).log_prob(torch.tensor(0.2)))
    assert_close(terms.entropy, math.log(2.0) - dist.Normal(0.4, 0.7).log_prob(u))
