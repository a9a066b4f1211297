"""What is refused, and what it leaves as it was."""

from __future__ import annotations

import math
import pickle
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions import constraints, transforms
from pyro.infer import SVI
from pyro.infer.autoguide import AutoNormalizingFlow
from pyro.nn import PyroModule, PyroParam
from support import LOSSES, assert_close

from pyro_elbo import TraceGap_ELBO, TraceKL_ELBO, UnsupportedSiteError

KL = math.log(2) + (0.25 + 1) / 2 - 0.5
loss_classes = pytest.mark.parametrize("cls", LOSSES, ids=lambda cls: cls.__name__)


def model():
    with pyro.plate("data", 5):
        pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))


def guide():
    with pyro.plate("data", 5):
        pyro.sample("z", dist.Normal(torch.ones(()), 0.5))


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
    with pytest.raises(TypeError, match="num_particles must be an integer >= 1"):
        TraceKL_ELBO(num_particles=True)
    for nesting in (-1, 1.5, True, math.nan):
        with pytest.raises(TypeError, match="max_plate_nesting must be an integer >= 0"):
            TraceKL_ELBO(max_plate_nesting=nesting)
    with pytest.raises(TypeError, match="vectorize_particles must be True or False"):
        TraceKL_ELBO(vectorize_particles="no")

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


def test_a_plate_has_no_weight():
    def plated(x=None):
        with pyro.plate("data", 2):
            latent()

    def plated_guide(x=None):
        with pyro.plate("data", 2):
            Guide()()

    with pytest.raises(ValueError, match="'data', but that is a plate"):
        TraceKL_ELBO(beta={"data": 2.0}).loss(plated, plated_guide)


def test_an_error_of_a_density_names_its_site():
    class Wrong(dist.Normal):
        def log_prob(self, value):
            raise RuntimeError("result type Float can't be cast to Long")

    def model():
        latent()
        pyro.sample("y", Wrong(0.0, 1.0), obs=torch.tensor(1.0))

    with pytest.raises(RuntimeError, match="at site 'y': result type Float"):
        TraceKL_ELBO().loss(model, Guide())


@pytest.mark.parametrize("validates", [True, False])
@pytest.mark.parametrize("side", ["model", "guide"])
def test_a_plate_deeper_than_was_said_is_refused_beside_enumeration(validates, side):
    summed = {"enumerate": "parallel"}

    def deep():
        with pyro.plate("outer", 2, dim=-2), pyro.plate("inner", 3, dim=-1):
            k = pyro.sample("k", dist.Bernoulli(0.3), infer=summed if side == "model" else {})
            pyro.sample("x", dist.Normal(k, 1.0), obs=torch.zeros(2, 3))

    def deep_guide():
        if side == "guide":
            with pyro.plate("outer", 2, dim=-2), pyro.plate("inner", 3, dim=-1):
                pyro.sample("k", dist.Bernoulli(0.6), infer=summed)

    elbo = TraceKL_ELBO(max_plate_nesting=1)
    with pyro.validation_enabled(validates):
        with pytest.raises(
            ValueError, match="'outer' has dim -2.*give max_plate_nesting=2 or more"
        ):
            elbo.loss(deep, deep_guide)
        TraceKL_ELBO(max_plate_nesting=2).loss(deep, deep_guide)


def test_enumeration_by_one_sample_is_refused():
    def coin(infer):
        return pyro.sample("k", dist.Bernoulli(0.3), infer=infer)

    one = {"enumerate": "parallel", "num_samples": 1}
    with pytest.raises(UnsupportedSiteError, match="'k'.*num_samples=1.*leave enumerate"):
        TraceKL_ELBO().loss(lambda: coin({}), lambda: coin(one))


def test_a_batch_dim_that_no_plate_declares_is_named_beside_enumeration():
    def coins():
        pyro.sample("k", dist.Bernoulli(torch.tensor([0.2, 0.3])), infer={"enumerate": "parallel"})

    with pytest.raises(UnsupportedSiteError, match="'k'.*no plate declares.*pyro.plate"):
        TraceKL_ELBO(max_plate_nesting=0).loss(coins, lambda: None)


@pytest.mark.parametrize("flow", [transforms.planar, transforms.radial])
def test_path_derivatives_of_a_flow_without_an_inverse_are_refused(flow):
    def latent():
        pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))

    guide = AutoNormalizingFlow(latent, lambda size: flow(size))
    with pytest.raises(UnsupportedSiteError, match="own samples alone.*path_derivative=False"):
        TraceGap_ELBO(path_derivative=True).loss_and_grads(latent, guide)
    TraceGap_ELBO().loss_and_grads(latent, guide)
