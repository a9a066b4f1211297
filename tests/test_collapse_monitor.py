"""Collapse while training: when it is said, and when it is not."""

import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoDelta
from pyro.optim import Adam

from pyro_elbo import TraceGap_ELBO, TraceKL_ELBO, fit, schedules
from pyro_elbo.demo.vae import VAE
from pyro_elbo.training import Checkpoint, CollapseMonitor


class Scripted:
    """A model and guide whose KL per datum follows a script: loc**2 / 2 at scale 1."""

    def __init__(self, kl, num_data=4, subsample_size=None):
        self.kl, self.step = kl, 0
        self.plate = {"size": num_data, "subsample_size": subsample_size}

    def model(self):
        with pyro.plate("data", **self.plate) as indices:
            pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            free = pyro.param("free", torch.zeros(()))
            pyro.sample("x", dist.Normal(free, 1.0), obs=torch.zeros(len(indices)))

    def guide(self):
        loc = torch.tensor((2 * self.kl(self.step)) ** 0.5)
        self.step += 1
        with pyro.plate("data", **self.plate):
            pyro.sample("z", dist.Normal(loc, 1.0))


def watch(program, monitor, num_steps, beta=1.0, loss=None, lr=0.01, callbacks=(), **kwargs):
    """Train quietly; what was said about a collapse."""
    pyro.set_rng_seed(0)
    pyro.clear_param_store()
    svi = SVI(program.model, program.guide, Adam({"lr": lr}), loss or TraceKL_ELBO(beta=beta))
    callbacks = [monitor, *callbacks]
    with warnings.catch_warnings(record=True, action="always") as said:
        fit(svi, num_steps=num_steps, callbacks=callbacks, progress=False, **kwargs)
    return [str(w.message) for w in said if "collapsed" in str(w.message)]


def monitor(**kwargs):
    return CollapseMonitor(**{"window": 40, "every": 10, **kwargs})


def test_a_kl_that_falls_is_said_once_after_the_window():
    it = monitor()
    said = watch(Scripted(lambda step: 1.0 if step < 25 else 1e-3), it, 200)
    assert it.collapsed == {"z": 70}
    assert len(said) == 1
    for words in ("site 'z'", "0.001 nats per datum", "step 70", "beta=schedules", "free bits"):
        assert words in said[0]


@pytest.mark.parametrize(
    ("name", "kl"),
    [
        ("it stays above", lambda step: 0.011),
        ("it rises, if slowly, from nothing", lambda step: 1e-12 * 1.05**step),
        ("it rises in a line from nothing", lambda step: 1.2e-4 * step),
        ("it falls, but not for long", lambda step: 1e-3 if step % 50 < 35 else 1.0),
    ],
)
def test_what_is_no_collapse(name, kl):
    it = monitor()
    assert watch(Scripted(kl), it, 400) == [], name
    assert it.collapsed == {}


def test_a_kl_that_is_flat_at_the_start_is_a_collapse_after_the_window():
    it = monitor()
    assert len(watch(Scripted(lambda step: 1e-5), it, 100)) == 1
    assert it.collapsed == {"z": 40}


def test_the_threshold_is_per_datum():
    """Of the whole data set, also where the plate is subsampled."""
    for size in (None, 2):
        it = monitor(threshold=0.02)
        watch(Scripted(lambda step: 0.019, num_data=10, subsample_size=size), it, 40)
        assert it.collapsed == {"z": 40}
        it = monitor(threshold=0.018)
        watch(Scripted(lambda step: 0.019, num_data=10, subsample_size=size), it, 40)
        assert it.collapsed == {}


def test_a_warm_up_is_not_counted_while_the_weight_is_zero():
    """The steps 0 to 59 have weight 0, and the window begins after them."""
    it = monitor()
    beta = schedules.Piecewise([(0, 0.0), (59, 0.0), (60, 1.0)])
    watch(Scripted(lambda step: 1e-3), it, 200, beta=beta)
    assert it.collapsed == {"z": 100}


def test_a_weight_that_will_fall_is_not_counted_while_it_is_above_one():
    it = monitor()
    beta = schedules.Piecewise([(0, 4.0), (60, 1.0)])
    watch(Scripted(lambda step: 1e-3 if step < 60 else 0.5), it, 200, beta=beta)
    assert it.collapsed == {}
    watch(Scripted(lambda step: 1e-3), it, 200, beta=4.0)
    assert it.collapsed == {"z": 40}


def test_a_site_that_comes_back_is_taken_out_and_said_no_second_time():
    it, seen = monitor(), []
    program = Scripted(lambda step: 1.0 if 100 <= step < 150 else 1e-3)
    said = watch(program, it, 250, callbacks=[lambda run: seen.append(dict(it.collapsed))])
    assert seen[99] == {"z": 40} and seen[109] == {}
    assert it.collapsed == {"z": 190} and len(said) == 1


def test_a_sampled_kl_is_averaged():
    """Of one draw at a KL of 0.1 nats, two in five are negative."""
    it = monitor()
    program = Scripted(lambda step: 0.1, num_data=1)
    assert watch(program, it, 400, loss=TraceGap_ELBO()) == []


class TwoLatents:
    """A global latent that has learned, and one of each datum that has not."""

    def model(self):
        w = pyro.sample("w", dist.Normal(torch.zeros(()), 1.0))
        with pyro.plate("data", 1000), pyro.plate("parts", 2):
            pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            pyro.sample("x", dist.Normal(w, 1.0), obs=torch.zeros(2, 1000))

    def guide(self):
        loc = pyro.param("loc", torch.tensor(1.0))
        pyro.sample("w", dist.Normal(loc.detach(), 1.0))
        with pyro.plate("data", 1000), pyro.plate("parts", 2):
            pyro.sample("z", dist.Normal(0.05 + 0 * loc, 1.0))


def test_the_site_is_named_and_a_global_latent_is_judged_by_its_whole_kl():
    """0.5 nats are 0.0005 for each of 1,000 data; and a datum of two parts has both their KLs."""
    it = monitor()
    said = watch(TwoLatents(), it, 60)
    assert it.collapsed == {"z": 40} and len(said) == 1
    it = monitor(threshold=0.0024)
    assert watch(TwoLatents(), it, 60) == []


def test_a_point_mass_has_no_kl():
    program = Scripted(lambda step: 0.0)
    program.guide = AutoDelta(pyro.poutine.block(program.model, hide=["x"]))
    it = monitor()
    assert watch(program, it, 60) == [] and it.collapsed == {}


class Linear:
    """A linear VAE with a fixed noise: it collapses where the noise exceeds the data's."""

    def __init__(self, noise, slope=0.3, scale=1.0):
        self.noise, self.slope, self.scale = noise, slope, scale
        generator = torch.Generator().manual_seed(0)
        self.data = torch.randn(200, 1, generator=generator).expand(-1, 3)
        self.data = self.data + 0.1 * torch.randn(200, 3, generator=generator)

    def model(self):
        weight = pyro.param("weight", torch.full((1, 3), self.slope))
        with pyro.plate("data", 200):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ weight, self.noise).to_event(1), obs=self.data)

    def guide(self):
        slope = pyro.param("slope", torch.full((3, 1), self.slope))
        scale = pyro.param("scale", torch.tensor(self.scale), dist.constraints.positive)
        with pyro.plate("data", 200):
            pyro.sample("z", dist.Normal(self.data @ slope, scale).to_event(1))


@pytest.mark.parametrize(("noise", "collapses"), [(0.5, False), (3.0, True)])
def test_a_linear_vae_collapses_where_its_noise_exceeds_the_data(noise, collapses):
    """The largest eigenvalue of the data's covariance is 3, between 0.25 and 9."""
    it = CollapseMonitor(window=100, every=20)
    assert len(watch(Linear(noise), it, 300, lr=0.05)) == collapses
    assert list(it.collapsed) == ["z"] * collapses


def test_a_linear_vae_that_begins_at_the_prior_and_leaves_it_is_not_said():
    kl = []
    it = CollapseMonitor(window=40, every=10)
    program = Linear(1.0, slope=1e-4)
    said = watch(program, it, 400, callbacks=[lambda run: kl.append(float(run.terms.kl) / 200)])
    assert kl[0] < 1e-6 and max(kl[:40]) < kl[-1] and kl[-1] > 0.5
    assert said == []


class Pictures(VAE):
    """A VAE of bars, on data of its own."""

    def __init__(self):
        super().__init__(num_pixels=16, num_units=2, num_hidden=16)
        bars = torch.eye(4).repeat_interleave(16, 0).reshape(64, 1, 4).expand(-1, 4, -1)
        self.bars = bars.reshape(64, 16)

    def make(self):
        return type(
            "Program",
            (),
            {
                "model": staticmethod(lambda: self.model(self.bars)),
                "guide": staticmethod(lambda: self.guide(self.bars)),
            },
        )


@pytest.mark.parametrize(("beta", "collapses"), [(1.0, False), (50.0, True)])
def test_a_vae_collapses_under_a_large_weight(beta, collapses):
    torch.manual_seed(0)
    it = CollapseMonitor(window=100, every=20)
    said = watch(Pictures().make(), it, 250, lr=0.03, beta=beta)
    assert len(said) == collapses and list(it.collapsed) == ["z"] * collapses


class KilledError(RuntimeError):
    pass


def test_it_resumes_where_it_was(tmp_path):
    path = tmp_path / "run.ckpt"

    def kill(run):
        if run.step == 67:
            raise KilledError

    def program(step=0):
        made = Scripted(lambda step: 1.0 if step < 25 else 1e-3)
        made.step = step
        return made

    whole = monitor()
    watch(program(), whole, 95)
    with pytest.raises(KilledError):
        watch(program(), monitor(), 95, callbacks=[Checkpoint(path, every=67), kill])
    resumed = monitor()
    said = watch(program(step=66), resumed, 95, resume=path)
    assert resumed.collapsed == whole.collapsed == {"z": 70} and len(said) == 1
    assert resumed.state_dict() == whole.state_dict()


def test_a_new_run_begins_anew():
    it = monitor()
    for _ in range(2):
        assert len(watch(Scripted(lambda step: 1e-3), it, 40)) == 1


def test_a_step_that_is_not_finite_counts_for_nothing():
    it = monitor()
    program = Scripted(lambda step: float("nan") if step == 15 else 1e-3)
    with pyro.validation_enabled(False):
        watch(program, it, 60, loss=TraceKL_ELBO(on_nonfinite="skip"))
    assert it.collapsed == {"z": 50}


def test_a_loss_without_terms_is_refused_before_the_first_step():
    with pytest.raises(TypeError, match="the KL of each site is not known"):
        watch(Scripted(lambda step: 1.0), monitor(), 5, loss=Trace_ELBO())
    assert not list(pyro.get_param_store())


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"threshold": 0.0}, "threshold must be positive and finite"),
        ({"threshold": float("nan")}, "threshold must be positive and finite"),
        ({"every": 0}, "every must be an integer >= 1"),
        ({"window": 19}, "window must be an integer >= 20"),
        ({"window": 0}, "window must be an integer >= 20"),
    ],
)
def test_bad_input(kwargs, match):
    with pytest.raises(ValueError, match=match):
        monitor(**kwargs)
