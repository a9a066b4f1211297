"""What a history keeps of a step is what its terms sum to, also where a graph has summed it."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI
from pyro.optim import Adam

from pyro_elbo import CompiledSVI, TraceGap_ELBO, TraceKL_ELBO, fit, schedules
from pyro_elbo.summary import TERMS, summary_of

X = torch.tensor([0.3, -1.2, 2.0])
BETAS = {
    "a number": 0.3,
    "a schedule": schedules.Linear(0.0, 1.0, num_steps=5),
    "by site": {"mu": schedules.Linear(3.0, 0.1, num_steps=4), "*": 0.7},
}


def model(x):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", 30, subsample_size=3):
        z = pyro.sample("z", dist.Normal(mu, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def guide(x):
    loc = pyro.param("loc", torch.tensor(0.1))
    mu = pyro.sample("mu", dist.Normal(loc, 0.3))
    with pyro.plate("data", 30, subsample_size=3):
        pyro.sample("z", dist.Normal((x + mu) / 2, 0.5))


def history(kind, loss, dtype, **options):
    torch.set_default_dtype(dtype)
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    svi = kind(model, guide, Adam({"lr": 0.05}), loss(), **options)
    return fit(svi, X.to(dtype), num_steps=12, progress=False), svi


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("loss", [TraceKL_ELBO, TraceGap_ELBO])
@pytest.mark.parametrize("beta", BETAS)
def test_the_history_of_captured_steps_is_that_of_svi_to_the_bit(beta, loss, dtype):
    right, _ = history(SVI, lambda: loss(beta=BETAS[beta]), dtype)
    own, svi = history(CompiledSVI, lambda: loss(beta=BETAS[beta]), dtype, compiles=False)
    assert "of a graph" in svi.explain()
    assert list(own.columns) == list(right.columns)
    for name in set(right.columns) - {"seconds"}:
        torch.testing.assert_close(own[name], right[name], rtol=0, atol=0, equal_nan=True)


def test_a_summary_is_what_its_terms_say():
    pyro.clear_param_store()
    terms = TraceKL_ELBO(beta={"mu": 2.0}).decompose(model, guide, X)
    summary = summary_of(terms)
    kls = [terms.sites[name].total("kl") for name in ("mu", "z")]
    assert summary.totals.tolist() == [float(getattr(terms, n)) for n in TERMS] + [*map(float, kls)]
    assert summary.betas == {"mu": 2.0, "z": 1.0} and summary.num_data == 30


@pytest.mark.filterwarnings("ignore:CompiledSVI. a graph is replayed")
def test_each_step_of_a_call_has_its_own():
    def loss():
        return TraceKL_ELBO(beta=BETAS["a schedule"])

    right, _ = history(SVI, loss, torch.float64)
    options = {"compiles": True, "max_nodes": 1, "steps_per_call": 3}
    own, svi = history(CompiledSVI, loss, torch.float64, **options)
    assert len(svi.last_summaries) == 3
    bound = 1e-12 * abs(right["elbo"]).max()
    torch.testing.assert_close(own["weighted_kl"], right["weighted_kl"], rtol=0, atol=bound)
    torch.testing.assert_close(own["beta"], right["beta"], rtol=0, atol=0)


class Bare(TraceKL_ELBO):
    decompose = property()

    def differentiable_loss(self, *args, **kwargs):
        return -self._evaluate(args[0], args[1], args[2:], kwargs)[0]


def test_a_loss_without_terms_has_none():
    right, _ = history(SVI, Bare, torch.float64)
    found, svi = history(CompiledSVI, Bare, torch.float64, compiles=False)
    assert "of a graph" in svi.explain()
    assert svi.last_summaries == [None] and svi.last_terms == []
    assert found["objective"].tolist() == right["objective"].tolist()
