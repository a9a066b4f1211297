"""Law 8: each term by the definition, with its own side's mask and scale; and what is refused."""

from __future__ import annotations

import math
import pickle
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.infer import SVI
from pyro.nn import PyroModule, PyroParam
from support import LOSSES, assert_close, assert_mean

from pyro_elbo import (
    TraceEntropy_ELBO,
    TraceGap_ELBO,
    TraceKL_ELBO,
    schedules,
)

KL = math.log(2) + (0.25 + 1) / 2 - 0.5
MASK = torch.tensor([True, True, True, False, False])
E_LOG_P = -0.5 * math.log(2 * math.pi) - 0.5 * (0.25 + 1)
E_LOG_Q = -0.5 * math.log(2 * math.pi * math.e) - math.log(0.5)

loss_classes = pytest.mark.parametrize("cls", LOSSES, ids=lambda cls: cls.__name__)


def model():
    with pyro.plate("data", 5):
        pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))


def guide():
    with pyro.plate("data", 5):
        pyro.sample("z", dist.Normal(torch.ones(()), 0.5))


def mean_loss(cls, model, guide, exact, **kwargs):
    elbo = cls(num_particles=20, vectorize_particles=True, **kwargs)
    losses = torch.tensor([elbo.loss(model, guide) for _ in range(100)])
    assert_mean(losses, torch.tensor(exact))
    return elbo


@loss_classes
def test_factors_on_both_sides_and_auxiliary_sites(cls):
    def with_factor():
        z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
        pyro.factor("up", 0.7 * z)
        pyro.sample("x", dist.Normal(z, 1.0), obs=torch.tensor(3.0))

    def with_auxiliary():
        u = pyro.sample("u", dist.Normal(torch.zeros(()), 0.5), infer={"is_auxiliary": True})
        pyro.sample("z", dist.Normal(1.0 + 0.0 * u, 0.5))
        pyro.factor("down", 0.2 * u + 0.1, has_rsample=True)

    likelihood = -0.5 * math.log(2 * math.pi) - 0.5 * (4 + 0.25)
    exact = likelihood + 0.7 - KL - E_LOG_Q - 0.1
    elbo = mean_loss(cls, with_factor, with_auxiliary, -exact)
    terms = elbo.terms
    assert terms.sites["up"].role == terms.sites["down"].role == "factor"
    assert_close(terms.factors, terms.sites["up"].log_likelihood)
    together = terms.sites["x"].log_likelihood + terms.factors
    assert_close(terms.reconstruction, together)


@loss_classes
def test_events_outside_of_plates_and_nested_plates(cls):
    def nested(side):
        with pyro.plate("rows", 3, dim=-2):
            a = pyro.sample("a", dist.Normal(side(0.0, 1.0), side(1.0, 0.5)))
            with pyro.plate("columns", 2, dim=-1):
                value = dist.Normal(0 * a[..., None] + side(0.0, 1.0), side(1.0, 0.5))
                pyro.sample("b", value.expand((*a.shape[:-1], 2, 4)).to_event(1))

    terms = cls(num_particles=3).decompose(
        lambda: nested(lambda p, q: torch.tensor(p)), lambda: nested(lambda p, q: torch.tensor(q))
    )
    assert terms.sites["a"].plates == ("rows",)
    assert terms.sites["a"].kl.shape == (3,)
    assert terms.sites["b"].plates == ("rows", "columns")
    assert terms.sites["b"].kl.shape == (3, 2)
    if cls is TraceKL_ELBO:
        assert_close(terms.kl, torch.tensor(3 * KL + 24 * KL))
        assert_close(terms.per_datum("columns").kl, torch.full((2,), 12 * KL))


@loss_classes
def test_programs_without_latents_or_observations(cls):
    data = torch.tensor([0.0, 1.0])

    def no_latents():
        with pyro.plate("data", 2):
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=data)

    terms = cls().decompose(no_latents, lambda: None)
    assert terms.kl == terms.entropy == 0
    assert_close(terms.elbo, dist.Normal(0.0, 1.0).log_prob(data).sum())
    terms = cls().decompose(model, guide)
    assert terms.reconstruction == 0
    assert cls().loss(lambda: None, lambda: None) == 0
    assert cls(beta=3.0).decompose(no_latents, lambda: None).beta == 3.0


@loss_classes
def test_importance_bound_is_the_log_mean_weight_of_each_datum(cls):
    data = torch.tensor([0.3, -1.0, 2.0])
    draws = []

    def local_model():
        with pyro.plate("data", 3):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=data)

    def local_guide():
        with pyro.plate("data", 3):
            draws.append(pyro.sample("z", dist.Normal(data / 2 + 0.1, 0.8)))

    elbo = cls(num_particles=50, beta=4.0)
    terms = elbo.decompose(local_model, local_guide)
    z = torch.stack(draws)
    log_weight = dist.Normal(0.0, 1.0).log_prob(z) + dist.Normal(z, 1.0).log_prob(data)
    log_weight = log_weight - dist.Normal(data / 2 + 0.1, 0.8).log_prob(z)
    exact = (log_weight.logsumexp(0) - math.log(50)).sum()
    assert_close(terms.importance_bound, exact)
    assert terms.importance_bound > terms.elbo
    one = cls().decompose(local_model, local_guide)
    assert one.importance_bound.isnan()
    with pytest.raises(ValueError, match="log_evidence"):
        one.evidence_gap()
    scaled = [poutine.scale(program, 0.5) for program in (local_model, local_guide)]
    terms = cls(num_particles=5).decompose(*scaled)
    assert terms.importance_bound.isnan()
    with pytest.raises(ValueError, match="site 'x' has a scale of its own"):
        terms.evidence_gap()


@loss_classes
def test_importance_bound_under_subsampling(cls):
    """Right where all sites are in the subsampled plate; refused where one is outside of it."""
    data = torch.linspace(-1.0, 1.0, 6)

    def local(is_model, global_latent=False):
        def program():
            if global_latent:
                pyro.sample("m", dist.Normal(torch.zeros(()), 1.0))
            with pyro.plate("data", 6, subsample_size=2) as i:
                z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0 if is_model else 0.8))
                if is_model:
                    pyro.sample("x", dist.Normal(z, 1.0), obs=data[i])

        return program

    many = {"num_particles": 4, "vectorize_particles": True, "max_plate_nesting": 1}
    terms = cls(**many).decompose(local(True), local(False))
    parts = ("log_likelihood", "log_prior_sample", "log_guide_sample")
    total = sum(
        (-1 if part.startswith("log_guide") else 1) * site.per_particle(part, ("data",))
        for site in terms.sites.values()
        for part in parts
    )
    exact = 3 * ((total / 3).logsumexp(0) - math.log(4)).sum()
    assert_close(terms.importance_bound, exact)
    terms = cls(**many).decompose(local(True, True), local(False, True))
    with pytest.raises(ValueError, match="'data' is subsampled, and not all sites are inside"):
        terms.evidence_gap()
    terms = cls(num_particles=4).decompose(local(True), local(False))
    with pytest.raises(ValueError, match="different minibatches of 'data'"):
        terms.evidence_gap()


def test_deterministic_sites_are_no_part_of_the_bound():
    def with_deterministic():
        pyro.deterministic("k", torch.tensor(1.0))
        with pyro.plate("data", 5, subsample_size=2):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            pyro.deterministic("twice", 2 * z)

    def local():
        with pyro.plate("data", 5, subsample_size=2):
            z = pyro.sample("z", dist.Normal(torch.ones(()), 0.5))
            pyro.deterministic("thrice", 3 * z)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        terms = TraceKL_ELBO(num_particles=2, vectorize_particles=True).decompose(
            with_deterministic, local
        )
    assert list(terms.sites) == ["z"]
    assert not terms.importance_bound.isnan()


def test_indices_are_a_record():
    chosen = torch.tensor([3, 1])

    def subset(scale):
        def program():
            with pyro.plate("data", 5, subsample=chosen):
                pyro.sample("z", dist.Normal(torch.zeros(()), scale))

        return program

    data = TraceKL_ELBO(num_particles=2).decompose(subset(1.0), subset(0.5)).per_datum("data")
    chosen[0] = 0
    assert data.indices.tolist() == [3, 1]
    orders = iter([torch.tensor([0, 1]), torch.tensor([1, 0])] * 2)

    def shuffled(order):
        with pyro.plate("data", 2, subsample=order):
            pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))

    class Shuffled:
        def __call__(self):
            self.order = next(orders)
            shuffled(self.order)

    guide = Shuffled()
    terms = TraceKL_ELBO(num_particles=2).decompose(lambda: shuffled(guide.order), guide)
    with pytest.raises(ValueError, match="different minibatches"):
        terms.per_datum("data")


def test_standard_errors_are_those_of_the_mean_over_particles():
    elbo = TraceGap_ELBO(num_particles=200, vectorize_particles=True)
    terms = elbo.decompose(model, guide)
    samples = terms.sites["z"].per_particle("kl", ())
    assert samples.shape == (200,)
    assert_close(terms.standard_error["kl"], samples.std() / 200**0.5)
    assert_close(terms.standard_error["elbo"], samples.std() / 200**0.5)
    assert TraceGap_ELBO().decompose(model, guide).standard_error["kl"].isnan()


def test_terms_are_a_record_of_the_step_that_made_them():
    loc = torch.tensor(0.3, requires_grad=True)

    def latent():
        z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
        pyro.factor("f", loc)
        pyro.sample("x", dist.Normal(z, 1.0), obs=torch.tensor(1.0))

    def moving():
        pyro.sample("z", dist.Normal(loc, 1.0))

    elbo = TraceKL_ELBO()
    elbo.loss_and_grads(latent, moving)
    terms = elbo.terms
    with torch.no_grad():
        loc.add_(10.0)
    assert_close(terms.kl, torch.tensor(0.5 * 0.09))
    assert_close(terms.factors, torch.tensor(0.3))
    assert not terms.elbo.requires_grad


class Guide(PyroModule):
    def __init__(self):
        super().__init__()
        self.loc = PyroParam(torch.tensor(1.0))
        self.scale = PyroParam(torch.tensor(0.5), constraints.positive)

    def forward(self):
        pyro.sample("z", dist.Normal(self.loc, self.scale))


def latent():
    z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
    pyro.sample("x", dist.Normal(z, 1.0), obs=torch.tensor(1.0))


def test_the_module_holds_the_step_count():
    elbo = TraceKL_ELBO(beta=schedules.Linear(0.0, 1.0, num_steps=10))
    module = elbo(latent, Guide())
    module().backward()
    module.eval()
    module()
    module.train()
    with torch.no_grad():
        module()
    assert elbo.step_count == 1
    other = TraceKL_ELBO(beta=schedules.Linear(0.0, 1.0, num_steps=10))
    other(latent, Guide()).load_state_dict(module.state_dict())
    assert (other.step_count, other.beta) == (1, 0.1)


def assert_refused(elbo, model, guide, error, match):
    """The error comes before anything was changed."""
    module = Guide() if guide is None else guide
    svi = SVI(model, module, pyro.optim.Adam({"lr": 0.1}), elbo)
    parameters = dict(module.named_parameters()) if isinstance(module, Guide) else {}
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    with pytest.raises(error, match=match):
        svi.step()
    assert all(torch.equal(parameters[name], value) for name, value in before.items())


@loss_classes
def test_bad_input_is_refused_and_changes_nothing(cls):
    elbo = cls(beta=lambda step: 1.0 if step < 5 else -1.0)
    elbo.load_state_dict({"step_count": 5})
    assert_refused(elbo, latent, None, ValueError, "at step 5 it is -1.0")
    assert_refused(cls(beta={"y": 2.0}), latent, None, ValueError, "'y'.*latents are: 'z'")

    def extra():
        pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("w", dist.Normal(0.0, 1.0))

    assert_refused(cls(), latent, extra, ValueError, "guide samples 'w'.*is_auxiliary")
    assert_refused(cls(), extra, None, ValueError, "latent 'w' is not sampled by the guide")
    observed = poutine.condition(latent, data={"z": torch.tensor(0.0)})
    assert_refused(cls(), observed, None, ValueError, "'z', which is observed by the model")


@loss_classes
def test_a_guides_factor_says_where_it_comes_from(cls):
    def factor_guide():
        pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.factor("f", torch.tensor(0.1))

    for validation in (True, False):
        pyro.enable_validation(validation)
        assert_refused(cls(), latent, factor_guide, ValueError, "factor 'f'.*has_rsample=True")


def test_terms_before_the_first_evaluation():
    with pytest.raises(RuntimeError, match="decompose"):
        _ = TraceKL_ELBO().terms


def test_a_plain_function_as_guide_of_the_module():
    with pytest.raises(TypeError, match="PyroModule"):
        TraceKL_ELBO()(latent, lambda: None)

    def with_param():
        pyro.param("p", torch.tensor(1.0))
        latent()

    with pytest.raises(ValueError, match="'p' belongs to no module"):
        TraceKL_ELBO()(with_param, Guide())()


def test_per_datum_errors_say_why():
    terms = TraceKL_ELBO().decompose(model, guide)
    with pytest.raises(ValueError, match=r"no site is inside a plate 'rows'.*'data'"):
        terms.per_datum("rows")

    def subsampled(program):
        def inner():
            with pyro.plate("data", 5, subsample_size=2):
                pyro.sample("z", dist.Normal(0.0, program))

        return inner

    terms = TraceKL_ELBO(num_particles=2).decompose(subsampled(1.0), subsampled(0.5))
    with pytest.raises(ValueError, match="different minibatches"):
        terms.per_datum("data")


@loss_classes
def test_a_guide_without_the_models_plate_is_refused(cls):
    def plateless():
        pyro.sample("z", dist.Normal(torch.ones(5), 0.5))

    with pytest.raises(ValueError, match="invalid log_prob shape"), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        cls().loss(model, plateless)


@loss_classes
def test_one_name_means_one_thing(cls):
    def with_factor(scale):
        def program():
            z = pyro.sample("z", dist.Normal(torch.zeros(()), scale))
            pyro.factor("f", -(z**2), has_rsample=True)

        return program

    with pytest.raises(ValueError, match="'f' has the name of an observed site or factor"):
        cls().loss(with_factor(1.0), with_factor(0.5))


@loss_classes
def test_the_kl_of_folded_distributions_is_not_that_of_their_bases(cls):
    def folded(loc):
        return lambda: pyro.sample("z", dist.FoldedDistribution(dist.Normal(loc, 1.0)))

    values = torch.tensor([cls().loss(folded(-1.0), folded(1.0)) for _ in range(50)])
    assert_mean(values, torch.tensor(0.0))

    def half(scale):
        return lambda: pyro.sample("z", dist.HalfNormal(torch.tensor(scale)))

    terms = cls().decompose(half(1.0), half(0.5))
    assert terms.sites["z"].how["kl"] == ("exact" if cls is TraceKL_ELBO else "sampled")


@loss_classes
def test_a_closed_kl_never_broadcasts_the_guide(cls):
    def wide():
        pyro.sample("z", dist.Normal(torch.zeros(3), 1.0))

    def narrow():
        pyro.sample("z", dist.Normal(torch.ones(()), 0.5))

    with pyro.validation_enabled(False):
        terms = cls().decompose(wide, narrow)
    assert terms.sites["z"].how["kl"] == "sampled"


@loss_classes
def test_the_importance_bound_refuses_what_is_no_density_ratio(cls):
    data = torch.zeros(5)

    def observed(mask=None):
        def program():
            with pyro.plate("data", 5):
                with poutine.mask(mask=torch.tensor(True) if mask is None else mask):
                    z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
                pyro.sample("x", dist.Normal(z, 1.0), obs=data)

        return program

    def with_factor():
        guide()
        pyro.factor("f", torch.tensor(-50.0), has_rsample=True)

    elbo = cls(num_particles=3)
    terms = elbo.decompose(observed(MASK), poutine.mask(guide, MASK))
    with pytest.raises(ValueError, match="site 'z' is masked, and not all sites are"):
        terms.evidence_gap()
    padded = [poutine.mask(program, MASK) for program in (observed(MASK), guide)]
    assert elbo.decompose(*padded).no_bound is None
    unmasked = [poutine.mask(program, torch.tensor(True)) for program in (observed(), with_factor)]
    terms = elbo.decompose(*unmasked)
    with pytest.raises(ValueError, match="site 'f' has no prior in the model"):
        terms.evidence_gap()


def test_plates_that_change_their_size_over_particles():
    sizes = iter([2, 3, 2, 3])

    class Changing:
        def __call__(self):
            self.size = next(sizes)
            with pyro.plate("data", self.size):
                pyro.sample("z", dist.Normal(torch.ones(()), 0.5))

    changing = Changing()

    def follows():
        with pyro.plate("data", changing.size):
            pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))

    terms = TraceKL_ELBO(num_particles=2).decompose(follows, changing)
    assert_close(terms.kl, torch.tensor(2.5 * KL))
    assert f"{2.5 * KL:.3f}" in str(terms)
    with pytest.raises(ValueError, match=r"site 'z'.*differ over particles"):
        _ = terms.sites["z"].kl


def test_state_that_is_none_is_refused():
    elbo = TraceKL_ELBO()
    for state in (None, {}, {"step_count": -1}, {"step_count": True}, {"step_count": 1.0}):
        with pytest.raises(ValueError, match="step_count"):
            elbo.load_state_dict(state)
    with pytest.raises(ValueError, match="finite and >= 0"):
        TraceKL_ELBO(beta=10**400)
    elbo.loss(lambda: None, lambda: None)
    assert pickle.loads(pickle.dumps(elbo)).step_count == 0


def test_arguments_and_hooks_of_the_wrong_kind():
    with pytest.raises(TypeError, match="the weight is beta="):
        TraceKL_ELBO(4.0)
    with pytest.raises(TypeError, match="integer >= 1"):
        TraceKL_ELBO(num_particles=0)

    class Floats(TraceKL_ELBO):
        def objective(self, reconstruction, kl_by_site):
            return 1.0

    class Odd(TraceKL_ELBO):
        def closed_form(self, site):
            return "exact"

    with pytest.raises(TypeError, match="Floats.objective must return a 0-dim tensor"):
        Floats().loss(latent, Guide())
    with pytest.raises(ValueError, match="'kl', 'entropy' or None"):
        Odd().loss(latent, Guide())


def test_an_observed_site_has_no_weight():
    with pytest.raises(ValueError, match="'x', but that site is observed"):
        TraceKL_ELBO(beta={"x": 2.0}).loss(latent, Guide())


def test_the_loss_says_what_it_is():
    text = repr(TraceKL_ELBO(beta=schedules.Linear(4.0, 1.0, num_steps=3)))
    assert text.startswith("TraceKL_ELBO(beta=Linear(")


def test_a_nan_is_named():
    def broken():
        pyro.sample("z", dist.Normal(torch.tensor(float("nan")), 1.0))

    with (
        pyro.validation_enabled(False),
        pytest.warns(UserWarning, match=r"loss is nan, from the sites \['x', 'z'\]"),
    ):
        assert math.isnan(TraceKL_ELBO().loss(latent, broken))


class FreeBits_ELBO(TraceKL_ELBO):
    def objective(self, reconstruction, kl_by_site):
        return reconstruction - sum(kl.clamp(min=2.0) for kl in kl_by_site.values())


def test_a_new_loss_is_one_hook():
    module = Guide()
    elbo = FreeBits_ELBO()
    loss = elbo.loss_and_grads(latent, module)
    assert_close(torch.tensor(-loss), elbo.terms.reconstruction - 2.0)
    assert -loss == elbo.terms.objective
    assert_close(elbo.terms.kl, torch.tensor(KL))


def test_plan_says_how_and_why():
    text = str(TraceKL_ELBO(beta=4.0).plan(model, guide))
    assert "KL(Normal || Normal)" in text
    plan = TraceEntropy_ELBO().plan(model, guide)["z"]
    assert (plan.kl, plan.entropy, plan.gradient) == ("sampled", "exact", "pathwise")
    assert plan.plates == ("data",)


def test_terms_print_totals_and_per_datum_values():
    data = torch.zeros(4)

    def observed():
        with pyro.plate("data", 4):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=data)

    def local():
        with pyro.plate("data", 4):
            pyro.sample("z", dist.Normal(torch.ones(()), 0.5))

    text = str(TraceKL_ELBO(beta=2.0).decompose(observed, local))
    assert "per datum (of 4)" in text
    assert "weighted KL (beta = 2)" in text
    assert f"{4 * KL:.3f}" in text and f"{KL:.4f}" in text


def test_float32_stays_float32():
    torch.set_default_dtype(torch.float32)
    terms = TraceKL_ELBO(num_particles=2).decompose(model, guide)
    assert terms.elbo.dtype == terms.importance_bound.dtype == torch.float32
