"""A nan is named, moves nothing, and does what was asked."""

import math
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI
from pyro.optim import Adam, ClippedAdam
from support import LOSSES

from pyro_elbo import NonFiniteError, StopTraining, TraceGap_ELBO, TraceKL_ELBO, schedules

loss_classes = pytest.mark.parametrize("cls", LOSSES)
X = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
BAD = torch.tensor([0.5, math.nan, 2.0], dtype=torch.float64)


def model(x):
    scale = pyro.param("scale", torch.ones(()), constraint=dist.constraints.positive)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
        pyro.sample("x", dist.Normal(z, scale, validate_args=False), obs=x)


def guide(x):
    loc = pyro.param("loc", torch.zeros(3))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(loc, 0.5))


def root_of_zero(x):
    """A finite term with an infinite gradient."""
    loc = pyro.param("loc", torch.zeros(3))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        pyro.factor("root", -loc.abs().sqrt())


def values():
    return {name: value.detach().clone() for name, value in pyro.get_param_store().items()}


def assert_unmoved(before):
    after = values()
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    leaves = [pyro.param(name).unconstrained() for name in before]
    assert all(leaf.grad is None for leaf in leaves)


def quietly(step, *args):
    with pyro.validation_enabled(False):
        return step(*args)


@loss_classes
@pytest.mark.parametrize("vectorize", [False, True])
def test_a_term_that_is_nan_is_named_and_moves_nothing(cls, vectorize):
    elbo = cls(num_particles=2, vectorize_particles=vectorize, max_plate_nesting=1)
    svi = SVI(model, guide, Adam({"lr": 0.1}), elbo)
    svi.step(X)
    before = values()
    with pytest.raises(NonFiniteError, match=r"at step 1 the log likelihood of site 'x' is nan in"):
        quietly(svi.step, BAD)
    assert_unmoved(before)
    assert elbo.step_count == 1
    assert math.isfinite(svi.step(X))


@loss_classes
def test_a_gradient_that_is_not_finite_is_named_and_moves_nothing(cls):
    svi = SVI(root_of_zero, guide, Adam({"lr": 0.1}), cls())
    before_rng = torch.get_rng_state()
    with pytest.raises(NonFiniteError, match=r"gradient of parameter 'loc' is nan, .*\['root'\]"):
        svi.step(X)
    drawn = torch.get_rng_state()
    torch.set_rng_state(before_rng)
    cls().decompose(root_of_zero, guide, X)
    assert torch.equal(torch.get_rng_state(), drawn)
    assert_unmoved({"loc": torch.zeros(3)})


def test_an_infinite_score_is_said_to_be_one():
    def flip():
        z = pyro.sample("z", dist.Bernoulli(0.5))
        pyro.factor("f", z)

    def flip_guide():
        logit = pyro.param("logit", torch.zeros(()))
        pyro.sample("z", dist.Bernoulli(logits=logit + (logit * 0).sqrt()))

    with pytest.raises(NonFiniteError, match="gradient of parameter 'logit' is nan"):
        SVI(flip, flip_guide, Adam({"lr": 0.1}), TraceGap_ELBO()).step()


@loss_classes
@pytest.mark.parametrize("optim", [Adam, ClippedAdam])
def test_a_skipped_step_moves_nothing_by_momentum_in_a_bare_loop(cls, optim):
    elbo = cls(on_nonfinite="skip", beta=schedules.Linear(0.0, 1.0, num_steps=100))
    svi = SVI(model, guide, optim({"lr": 0.1}), elbo)
    for _ in range(5):
        svi.step(X)
    before = values()
    with pytest.warns(UserWarning, match="skipped: at step 5 the log likelihood of site 'x'"):
        assert math.isnan(quietly(svi.step, BAD))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quietly(svi.step, BAD)
    assert_unmoved(before)
    assert (elbo.num_skipped, elbo.step_count) == (2, 7)
    svi.step(X)
    assert not torch.equal(values()["loc"], before["loc"])


@loss_classes
def test_training_stops_where_that_is_asked(cls):
    svi = SVI(model, guide, Adam({"lr": 0.1}), cls(on_nonfinite="stop"))
    svi.step(X)
    before = values()
    with pytest.raises(StopTraining, match="site 'x'"):
        quietly(svi.step, BAD)
    assert_unmoved(before)


@loss_classes
def test_an_unknown_policy_is_refused(cls):
    with pytest.raises(ValueError, match="on_nonfinite must be one of"):
        cls(on_nonfinite="ignore")


def test_an_infinite_kl_of_weight_0_is_no_fault():
    def outside(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Uniform(torch.zeros(()), 1.0, validate_args=False))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    elbo = TraceKL_ELBO(beta=0.0)
    assert math.isfinite(SVI(outside, guide, Adam({"lr": 0.1}), elbo).step(X))


def test_a_sum_that_overflows_is_no_fault():
    """Finite gradients, even where their sum is not."""

    def steep(x):
        pyro.factor("steep", 3e38 * pyro.param("a", torch.zeros(2)).sum())
        model(x)

    torch.set_default_dtype(torch.float32)
    svi = SVI(steep, guide, Adam({"lr": 0.1}), TraceKL_ELBO())
    assert math.isfinite(svi.step(X.float()))


class Guide(pyro.nn.PyroModule):
    def __init__(self):
        super().__init__()
        self.loc = torch.nn.Parameter(torch.zeros(3))

    def forward(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.loc, 0.5))


def plain(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0, validate_args=False), obs=x)


def test_the_module_raises_before_backward_and_skips_without_gradients():
    with pytest.raises(NonFiniteError, match="site 'x'"):
        quietly(TraceKL_ELBO()(plain, trained := Guide()), BAD)
    module = TraceKL_ELBO(on_nonfinite="skip")(plain, trained)
    with pytest.warns(UserWarning, match="skipped"):
        quietly(module, BAD).backward()
    assert all(parameter.grad is None for parameter in module.parameters())
    assert quietly(module.eval(), BAD).isnan()


def test_gradients_can_be_seen_and_changed_before_the_optimiser():
    elbo, seen = TraceKL_ELBO(), []
    svi = SVI(model, guide, pyro.optim.SGD({"lr": 0.1}), elbo)

    def clip(parameters):
        seen.append(sorted(parameters))
        torch.nn.utils.clip_grad_norm_(parameters.values(), 1e-3)

    handle = elbo.register_gradient_hook(clip)
    svi.step(X)
    moved = torch.cat([values()["loc"], values()["scale"].log()[None]]).norm()
    assert torch.isclose(moved, torch.tensor(1e-4), rtol=1e-3)
    handle.remove()
    svi.step(X)
    assert seen == [["loc", "scale"]]


def test_enumerated_programs_have_the_same_guard():
    def mixture(x):
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(torch.ones(2)), infer={"enumerate": "parallel"})
            loc = torch.stack([x.new_tensor(-1.0), pyro.param("right", torch.ones(()))])[k]
            pyro.sample("x", dist.Normal(loc, 1.0, validate_args=False), obs=x)

    svi = SVI(mixture, lambda x: None, Adam({"lr": 0.1}), TraceKL_ELBO(max_plate_nesting=1))
    svi.step(X)
    before = values()
    with pytest.raises(NonFiniteError, match="is nan"):
        quietly(svi.step, BAD)
    assert_unmoved(before)


@pytest.mark.parametrize("policy", ["raise", "skip", "stop"])
def test_the_module_looks_at_its_gradients_when_asked(policy):
    module = TraceKL_ELBO(on_nonfinite=policy)(plain, Guide())
    quietly(module, X).backward()
    assert module.check_gradients()
    first = next(iter(module.parameters()))
    first.grad.fill_(math.inf)
    if policy == "skip":
        with pytest.warns(UserWarning, match="gradient of parameter .* is infinite"):
            assert not module.check_gradients()
    else:
        error = NonFiniteError if policy == "raise" else StopTraining
        with pytest.raises(error, match="gradient of parameter .* is infinite"):
            module.check_gradients()
    assert all(parameter.grad is None for parameter in module.parameters())


def test_a_nan_does_not_stay_in_a_decaying_baseline():
    def labels(x):
        decaying = {"baseline": {"use_decaying_avg_baseline": True}}
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(logits=pyro.param("a", torch.zeros(3))), infer=decaying)

    def labelled(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.3)))
            pyro.sample("x", dist.Normal(z, 1.0, validate_args=False), obs=x)

    elbo = TraceKL_ELBO(on_nonfinite="skip")
    svi = SVI(labelled, labels, pyro.optim.SGD({"lr": 0.1}), elbo)
    with pyro.validation_enabled(False), pytest.warns(UserWarning, match="skipped"):
        losses = [svi.step(x) for x in (X[:3], X[:3] * math.nan, X[:3], X[:3])]
    assert [math.isfinite(loss) for loss in losses] == [True, False, True, True]
    assert elbo.num_skipped == 1
