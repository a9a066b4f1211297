"""Sites that collect what a plate holds, and other programs in which two features meet.

Means are exact: every joint value of what the guide samples is forced in turn, and weighed by its
probability, so that nothing here hangs on a seed.
"""

from __future__ import annotations

import itertools
import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from support import LOSSES, ForcedGuide, assert_close
from torch.distributions import AffineTransform

from pyro_elbo import TraceGap_ELBO, TraceKL_ELBO, UnsupportedSiteError

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*possibly invalid dependency:RuntimeWarning:pyro"),
    pytest.mark.filterwarnings("ignore:site .* depends on it in the guide:UserWarning"),
]
loss_classes = pytest.mark.parametrize("cls", LOSSES, ids=lambda cls: cls.__name__)
DATA = torch.tensor([1.5, -0.5, 2.0], dtype=torch.float64)


class Programs(ForcedGuide):
    """A model and a guide of coins, and their exact bound.

    ``shapes`` has the shape of every coin of the guide.
    """

    def __init__(self, model, guide, shapes, parameters):
        self.model, self.make_guide, self.shapes = model, guide, shapes
        self.parameters = {
            name: torch.tensor(value, dtype=torch.float64, requires_grad=True)
            for name, value in parameters.items()
        }

    def _guide(self):
        self.make_guide(**self.parameters)

    def values(self):
        sizes = [math.prod(shape) for shape in self.shapes.values()]
        for bits in itertools.product([0.0, 1.0], repeat=sum(sizes)):
            parts = torch.tensor(bits, dtype=torch.float64).split(sizes)
            shapes = self.shapes.items()
            yield {n: part.reshape(shape) for (n, shape), part in zip(shapes, parts, strict=True)}

    def force(self, values):
        self.forced = poutine.trace(poutine.condition(self._guide, values)).get_trace()
        for name in values:
            self.forced.nodes[name]["is_observed"] = False

    def exact(self):
        bound = 0.0
        for values in self.values():
            guide = poutine.trace(poutine.condition(self._guide, values)).get_trace()
            model = poutine.trace(poutine.condition(self.model, values)).get_trace()
            log_q = guide.log_prob_sum()
            bound = bound + log_q.exp() * (model.log_prob_sum() - log_q)
        return bound, torch.autograd.grad(bound, list(self.parameters.values()))

    def mean(self, elbo):
        """The mean of an estimator and of its gradient, over all that the guide may sample."""
        total, gradients = 0.0, [torch.zeros_like(p) for p in self.parameters.values()]
        for values in self.values():
            self.force(values)
            share = self.forced.log_prob_sum().detach().exp()
            loss = elbo.differentiable_loss(self.model, self.guide)
            found = torch.autograd.grad(-loss, list(self.parameters.values()))
            total = total - share * loss.detach()
            for sum_, gradient in zip(gradients, found, strict=True):
                sum_ += share * gradient
        self.forced = None
        return total, gradients


def check(programs, cls, **options):
    value, gradients = programs.mean(cls(max_plate_nesting=2, **options))
    bound, exact = programs.exact()
    assert_close(value, bound.detach(), bound.detach().abs(), ulps=256)
    for name, own, right in zip(programs.parameters, gradients, exact, strict=True):
        assert own.abs().max() > 1e-3, name
        assert_close(own, right, right.abs().max() + bound.detach().abs(), ulps=256)


def collected(z):
    return z.sum(-1, keepdim=True) if z.dim() > 1 else z.sum(-1)


def collected_model():
    w = pyro.sample("w", dist.Bernoulli(0.3))
    with pyro.plate("d", 3):
        z = pyro.sample("z", dist.Bernoulli(0.2 + 0.5 * w))
        pyro.sample("x", dist.Normal(z + 2 * w, 1.0), obs=DATA)


def collecting_guide(coins, slope):
    with pyro.plate("d", 3):
        z = pyro.sample("z", dist.Bernoulli(logits=coins))
    pyro.sample("w", dist.Bernoulli(logits=slope * (collected(z) - 1.0)))


@loss_classes
def test_a_guide_that_collects_a_plate_has_the_gradient_of_its_bound(cls):
    shapes, parameters = {"z": (3,), "w": ()}, {"coins": [0.3, -0.4, 0.1], "slope": 0.7}
    check(Programs(collected_model, collecting_guide, shapes, parameters), cls)


@loss_classes
def test_a_guide_that_collects_a_plate_by_a_slice_has_the_gradient_of_its_bound(cls):
    weights = torch.tensor([1.0, 0.5, -1.5], dtype=torch.float64)

    def guide(coins, slope):
        with pyro.plate("d", 3):
            z = pyro.sample("z", dist.Bernoulli(logits=coins))
        pyro.sample("w", dist.Bernoulli(logits=slope * (weights[: z.sum().long()].sum() - 0.5)))

    shapes, parameters = {"z": (3,), "w": ()}, {"coins": [0.3, -0.4, 0.1], "slope": 0.7}
    check(Programs(collected_model, guide, shapes, parameters), cls)


@loss_classes
def test_a_plate_that_nothing_collects_still_takes_noise_out_of_the_score(cls):
    def guide(coins):
        with pyro.plate("d", 3):
            pyro.sample("z", dist.Bernoulli(logits=coins))
        pyro.sample("w", dist.Bernoulli(0.4))

    programs = Programs(collected_model, guide, {"z": (3,), "w": ()}, {"coins": [0.3, -0.4, 0.1]})
    check(programs, cls)
    elbo, gradients = cls(max_plate_nesting=1), []
    for last in (0.0, 1.0):  # the other entries' costs do not reach the first one's gradient
        values = {"z": torch.tensor([1.0, 0.0, last]), "w": torch.tensor(1.0)}
        programs.force(values)
        loss = elbo.differentiable_loss(programs.model, programs.guide)
        gradients.append(torch.autograd.grad(loss, programs.parameters["coins"])[0][0])
    assert gradients[0] == gradients[1]


def summed_model():
    c = pyro.sample("c", dist.Bernoulli(0.3))
    with pyro.plate("d", 3):
        w = pyro.sample("w", dist.Bernoulli(0.3 + 0.4 * c))
    pyro.sample("y", dist.Normal(collected(w), 0.7), obs=torch.tensor(2.3))


class CoinsOfValues(poutine.messenger.Messenger):
    """Gives ``w`` a row of coins for each value of ``c``."""

    def __init__(self, coins):
        super().__init__()
        self.coins = coins

    def _pyro_post_sample(self, msg):
        if msg["name"] == "c":
            self.values = msg["value"]

    def _pyro_sample(self, msg):
        if msg["name"] == "w":
            rows = self.coins[self.values.long()]
            msg["fn"].sample = lambda *shape: rows.reshape(*rows.shape[:-2], 3)


@loss_classes
@pytest.mark.parametrize("how", ["parallel", "sequential"])
def test_coins_for_each_enumerated_value_reach_a_cost_outside_of_their_plate(cls, how):
    def guide(weight, coins):
        c = pyro.sample("c", dist.Bernoulli(logits=weight), infer={"enumerate": how})
        with pyro.plate("d", 3):
            pyro.sample("w", dist.Bernoulli(logits=torch.where(c.bool(), coins[1], coins[0])))

    parameters = {"weight": 0.4, "coins": [[0.3, -0.4, 0.1], [-1.0, 0.5, 0.8]]}
    programs = Programs(summed_model, guide, {"c": (), "w": (3,)}, parameters)
    bound, right = programs.exact()
    elbo, leaves = cls(max_plate_nesting=1), list(programs.parameters.values())
    value, gradients = 0.0, [torch.zeros_like(leaf) for leaf in leaves]
    for bits in itertools.product([0.0, 1.0], repeat=6):
        coins = torch.tensor(bits, dtype=torch.float64).reshape(2, 3)
        share = dist.Bernoulli(logits=leaves[1].detach()).log_prob(coins).sum().exp()
        loss = elbo.differentiable_loss(summed_model, CoinsOfValues(coins)(programs.guide))
        value = value - share * loss.detach()
        for sum_, own in zip(gradients, torch.autograd.grad(-loss, leaves), strict=True):
            sum_ += share * own
    assert_close(value, bound.detach(), bound.detach().abs(), ulps=256)
    for own, other in zip(gradients, right, strict=True):
        assert_close(own, other, other.abs().max() + bound.detach().abs(), ulps=512)


@loss_classes
@pytest.mark.parametrize("how", ["parallel", "sequential"])
def test_a_cost_outside_the_plate_of_an_enumerated_site_is_refused(cls, how):
    def guide():
        with pyro.plate("d", 3):
            pyro.sample("w", dist.Bernoulli(0.4), infer={"enumerate": how})

    def model():
        with pyro.plate("d", 3):
            w = pyro.sample("w", dist.Bernoulli(0.3))
        pyro.sample("y", dist.Normal(collected(w), 0.7), obs=torch.tensor(2.3))

    with pytest.raises(UnsupportedSiteError, match="'y'.*'w'"):
        cls(max_plate_nesting=1).loss(model, guide)


def test_a_cost_outside_of_the_plate_that_does_not_depend_on_it_is_not():
    def guide():
        with pyro.plate("d", 3):
            pyro.sample("w", dist.Bernoulli(0.4), infer={"enumerate": "sequential"})

    def model():
        with pyro.plate("d", 3):
            pyro.sample("w", dist.Bernoulli(0.3))
        pyro.sample("y", dist.Normal(0.0, 0.7), obs=torch.tensor(2.3))

    kl = 3 * torch.distributions.kl_divergence(dist.Bernoulli(0.4), dist.Bernoulli(0.3))
    right = dist.Normal(0.0, 0.7).log_prob(torch.tensor(2.3)) - kl
    assert -TraceGap_ELBO(max_plate_nesting=1).loss(model, guide) == pytest.approx(float(right))


@loss_classes
@pytest.mark.parametrize("nesting", [math.inf, 0])
def test_whether_a_site_is_enumerated_does_not_choose_the_samples_above_it(cls, nesting):
    def model():
        c = pyro.sample("c", dist.Bernoulli(0.3))
        w = pyro.sample("w", dist.Bernoulli(0.2)) if c == 1 else 0.0
        pyro.sample("x", dist.Normal(4.0 * w, 0.8), obs=torch.tensor(1.3))

    def guide():
        if pyro.sample("c", dist.Bernoulli(0.6)) == 1:
            pyro.sample("w", dist.Bernoulli(0.5), infer={"enumerate": "parallel"})

    elbo = cls(max_plate_nesting=nesting)
    seen = [float("w" in elbo.decompose(model, guide).sites) for _ in range(600)]
    assert abs(sum(seen) / 600 - 0.6) < 5 * math.sqrt(0.6 * 0.4 / 600)


def test_whether_the_model_enumerates_does_not_choose_the_guides_samples():
    def model():
        c = pyro.sample("c", dist.Bernoulli(0.3))
        if c == 1:
            pyro.sample("w", dist.Bernoulli(0.2), infer={"enumerate": "parallel"})

    def guide():
        pyro.sample("c", dist.Bernoulli(0.6))

    elbo, ones = TraceGap_ELBO(), 0.0
    for _ in range(600):
        how = elbo.decompose(model, guide).sites["c"].log_prior
        ones += float(torch.isclose(how, torch.tensor(0.3, dtype=how.dtype).log()))
    assert abs(ones / 600 - 0.6) < 5 * math.sqrt(0.6 * 0.4 / 600)


@loss_classes
def test_masked_entries_of_an_event_have_a_score(cls):
    mask = torch.tensor([True, False])

    def model():
        w = pyro.sample("w", dist.Bernoulli(0.3 * torch.ones(2)).mask(mask).to_event(1))
        pyro.sample("y", dist.Normal(w.sum(-1), 0.7), obs=torch.tensor(2.3))

    logits = torch.tensor([0.3, -0.4], dtype=torch.float64, requires_grad=True)

    def guide():
        pyro.sample("w", dist.Bernoulli(logits=logits).mask(mask).to_event(1))

    bound, gradient = 0.0, 0.0
    for bits in itertools.product([0.0, 1.0], repeat=2):
        w = torch.tensor(bits, dtype=torch.float64)
        log_q = dist.Bernoulli(logits=logits).log_prob(w)
        log_p = dist.Bernoulli(torch.full((2,), 0.3)).log_prob(w)
        reached = dist.Normal(w.sum(), 0.7).log_prob(torch.tensor(2.3))
        bound = bound + log_q.sum().exp() * (((log_p - log_q) * mask).sum() + reached)
        forced = poutine.trace(poutine.condition(guide, {"w": w})).get_trace()
        forced.nodes["w"]["is_observed"] = False
        loss = cls().differentiable_loss(model, poutine.replay(guide, trace=forced))
        own = torch.autograd.grad(-loss, logits)[0]
        gradient = gradient + log_q.sum().exp().detach() * own
    right = torch.autograd.grad(bound, logits)[0]
    assert right.abs().min() > 0.1
    assert_close(gradient, right, bound.detach().abs(), ulps=2**32)


@pytest.mark.parametrize("sign", [1, -1])
def test_learnt_transforms_that_are_equal_now_have_their_gradient(sign):
    shift = torch.tensor(0.0, dtype=torch.float64, requires_grad=True)
    loc = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)

    def moved_by(by, base):
        transform = AffineTransform(by, 1.0)
        return dist.TransformedDistribution(base, [transform if sign == 1 else transform.inv])

    def model():
        pyro.sample("z", moved_by(torch.zeros((), dtype=torch.float64), dist.Normal(0.0, 1.0)))

    def guide():
        pyro.sample("z", moved_by(shift, dist.Normal(loc, 1.0)))

    pyro.set_rng_seed(0)
    elbo = TraceKL_ELBO(num_particles=600, vectorize_particles=True, max_plate_nesting=0)
    loss = elbo.differentiable_loss(model, guide)
    by_shift, by_loc = torch.autograd.grad(loss, [shift, loc])
    assert_close(sign * by_shift, by_loc, torch.tensor(1.0), ulps=2**30)
    assert abs(float(by_loc) - 1.0) < 5 / math.sqrt(600)

    def fixed():
        pyro.sample("z", moved_by(torch.zeros((), dtype=torch.float64), dist.Normal(loc, 1.0)))

    assert TraceKL_ELBO().plan(model, fixed)["z"].kl == "exact"


@loss_classes
@pytest.mark.parametrize("kind", [dist.Categorical, dist.OneHotCategorical])
def test_impossible_categories_leave_the_gradient_finite(cls, kind):
    logits = torch.tensor([0.2, 0.5], dtype=torch.float64, requires_grad=True)

    def model():
        pyro.sample("z", kind(torch.tensor([0.3, 0.3, 0.4], dtype=torch.float64)))

    def guide():
        none = torch.full((1,), -math.inf, dtype=torch.float64)
        pyro.sample("z", kind(logits=torch.cat([logits, none])))

    probs = logits.softmax(-1)
    kl = (probs * (probs.log() - math.log(0.3))).sum()
    right = torch.autograd.grad(kl, logits)[0]
    loss = cls().differentiable_loss(model, guide)
    own = torch.autograd.grad(loss, logits)[0]
    assert own.isfinite().all()
    if cls is TraceKL_ELBO:
        assert_close(loss.detach(), kl.detach(), kl.detach(), ulps=256)
        assert_close(own, right, kl.detach(), ulps=256)

    def impossible():
        pyro.sample("z", kind(logits=torch.tensor([0.0, -math.inf, 0.0])))

    def everywhere():
        pyro.sample("z", kind(torch.tensor([0.3, 0.3, 0.4])))

    assert TraceKL_ELBO().decompose(impossible, everywhere).kl == math.inf


def test_counts_of_categories_have_no_kl_of_categories():
    def model():
        pyro.sample("z", dist.Multinomial(5, torch.tensor([0.3, 0.3, 0.4])))

    def guide():
        pyro.sample("z", dist.Multinomial(5, torch.tensor([0.2, 0.2, 0.6])))

    assert TraceKL_ELBO().plan(model, guide)["z"].kl == "sampled"


def test_branches_of_an_enumeration_see_one_minibatch():
    data = torch.arange(10.0)

    def model():
        c = pyro.sample("c", dist.Bernoulli(0.3))
        with pyro.plate("d", 10, subsample_size=3) as indices:
            pyro.sample("x", dist.Normal(c, 1.0), obs=data[indices])

    def guide():
        pyro.sample("c", dist.Bernoulli(0.4), infer={"enumerate": "sequential"})

    for seed in range(5):
        pyro.set_rng_seed(seed)
        terms = TraceGap_ELBO().decompose(model, guide)
        x = data[terms.indices["d"]]
        one, zero = (dist.Normal(loc, 1.0).log_prob(x) for loc in (1.0, 0.0))
        right = 0.4 * one + 0.6 * zero
        assert torch.allclose(terms.sites["x"].log_likelihood.sum(), right.sum() * 10 / 3)


def test_a_decaying_average_beside_sequential_enumeration_is_refused():
    def guide(how):
        options = {"use_decaying_avg_baseline": True}
        pyro.sample("w", dist.Bernoulli(0.4), infer={"baseline": options})
        pyro.sample("c", dist.Bernoulli(0.4), infer={"enumerate": how})

    def model(how):
        pyro.sample("w", dist.Bernoulli(0.4))
        pyro.sample("c", dist.Bernoulli(0.3))

    TraceGap_ELBO(max_plate_nesting=0).loss(model, guide, "parallel")
    with pytest.raises(UnsupportedSiteError, match="'w'.*decaying average"):
        TraceGap_ELBO(max_plate_nesting=0).loss(model, guide, "sequential")


@loss_classes
@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_a_mask_around_the_loss_hides_the_same_at_every_weight(cls, beta):
    mask = torch.tensor([True, False, True])

    def model():
        with pyro.plate("d", 3):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    def guide():
        with pyro.plate("d", 3):
            pyro.sample("z", dist.Normal(DATA, 0.5))

    pyro.set_rng_seed(0)
    with poutine.mask(mask=mask):
        outside = cls(beta=beta).decompose(model, guide)
    pyro.set_rng_seed(0)
    masked = [poutine.mask(program, mask=mask) for program in (model, guide)]
    inside = cls(beta=1.0).decompose(*masked)
    assert torch.equal(outside.kl, inside.kl)
    assert torch.equal(outside.elbo, inside.elbo)
    assert outside.objective == pytest.approx(float(-beta * inside.kl))


@pytest.mark.parametrize("form", ["kl", "entropy", None])
def test_the_path_derivative_keeps_the_gradient_of_a_closed_form(form):
    class Wanted(TraceGap_ELBO):
        def closed_form(self, site):
            return form

    scale = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)

    def model():
        pyro.sample("z", dist.Normal(0.0, 1.0))

    def guide():
        pyro.sample("z", dist.Normal(torch.tensor(0.7, dtype=torch.float64), scale))

    pyro.set_rng_seed(1)
    elbo = Wanted(
        path_derivative=True, num_particles=20_000, vectorize_particles=True, max_plate_nesting=0
    )
    loss = elbo.differentiable_loss(model, guide)
    own = torch.autograd.grad(loss, scale)[0]
    z_squared = 20_000**-0.5 * 3.0
    assert abs(float(own) - (0.4 - 1 / 0.4)) < 5 * z_squared


@loss_classes
def test_mixed_up_samples_are_refused_where_something_is_enumerated(cls):
    def model():
        with pyro.plate("d", 3):
            a = pyro.sample("a", dist.Normal(0.0, 1.0))
        c = pyro.sample("c", dist.Bernoulli(0.3), infer={"enumerate": "parallel"})
        pyro.sample("x", dist.Normal(a.sum() + c, 1.0), obs=torch.tensor(0.5))

    def guide():
        with pyro.plate("d", 3):
            pyro.sample("a", dist.Normal(0.1, 0.6))

    elbo = cls(num_particles=20, vectorize_particles=True, max_plate_nesting=1)
    with pytest.raises(UnsupportedSiteError, match="many samples at once"):
        elbo.loss(model, guide)


def factor_of(logits):
    pyro.factor("g", logits, has_rsample=False)


def coin_of(logits):
    pyro.sample("g", dist.Bernoulli(logits=logits), infer={"is_auxiliary": True})


@loss_classes
@pytest.mark.parametrize("scored", [factor_of, coin_of])
def test_what_is_scored_for_values_inside_of_a_plate_weighs_no_cost_outside_of_it(cls, scored):
    probs, prior = torch.tensor([0.2, 0.3, 0.5]), torch.tensor([0.6, 0.3, 0.1])

    def model():
        pyro.sample("k", dist.Categorical(prior))
        with pyro.plate("d", 2):
            pyro.sample("w", dist.Categorical(torch.ones(3) / 3))
        pyro.sample("x", dist.Normal(0.0, 1.0), obs=torch.tensor(0.7))

    def guide():
        k = pyro.sample("k", dist.Categorical(probs), infer={"enumerate": "parallel"})
        with pyro.plate("d", 2):
            w = pyro.sample("w", dist.Categorical(probs), infer={"enumerate": "parallel"})
            scored(0.3 * k + 0.5 * w)

    terms = cls(max_plate_nesting=1).decompose(model, guide)
    exact = (probs * (probs / prior).log()).sum()
    torch.testing.assert_close(terms.sites["k"].kl.sum(), exact)
    torch.testing.assert_close(
        terms.reconstruction, dist.Normal(0.0, 1.0).log_prob(torch.tensor(0.7))
    )


@loss_classes
@pytest.mark.parametrize("first", [False, True])
def test_what_a_guide_collects_is_found_out_at_each_evaluation(cls, first):
    collects = first

    def guide(coins, slope):
        with pyro.plate("d", 3):
            z = pyro.sample("z", dist.Bernoulli(logits=coins))
        by = collected(z) - 1.0 if collects else slope.new_ones(())
        pyro.sample("w", dist.Bernoulli(logits=slope * by))

    shapes, parameters = {"z": (3,), "w": ()}, {"coins": [0.3, -0.4, 0.1], "slope": 0.7}
    programs, elbo = Programs(collected_model, guide, shapes, parameters), cls(max_plate_nesting=1)
    programs.force(next(programs.values()))
    elbo.differentiable_loss(programs.model, programs.guide)
    collects = not first
    _, gradients = programs.mean(elbo)
    bound, exact = programs.exact()
    for own, right in zip(gradients, exact, strict=True):
        assert_close(own, right, right.abs().max() + bound.detach().abs(), ulps=256)


@loss_classes
def test_whether_a_cost_depends_on_a_sequential_site_is_found_out_at_each_evaluation(cls):
    def model(depends):
        with pyro.plate("d", 2):
            s = pyro.sample("s", dist.Bernoulli(0.3))
        pyro.sample("x", dist.Normal(3 * s.sum() if depends else 1.0, 1.0), obs=torch.tensor(0.3))

    def guide(depends):
        with pyro.plate("d", 2):
            pyro.sample("s", dist.Bernoulli(0.6), infer={"enumerate": "sequential"})

    elbo = cls(max_plate_nesting=1)
    for _ in range(2):
        right = dist.Normal(1.0, 1.0).log_prob(torch.tensor(0.3))
        torch.testing.assert_close(elbo.decompose(model, guide, False).reconstruction, right)
        with pytest.raises(UnsupportedSiteError, match="depends on the enumerated site 's'"):
            elbo.loss(model, guide, True)


def coins_of(k, size):
    logits = torch.linspace(-1.0, 1.0, size)
    return dist.Bernoulli(0.6), dist.Bernoulli(logits=logits * (k + 1.0))


def shares_of(k, size):
    return dist.Uniform(0.0, 1.0), dist.Beta(1.0 + k, torch.full((size,), 2.0))


def rates_of(k, size):
    return dist.Poisson(2.0), dist.Poisson(torch.linspace(1.0, 2.0, size) + k)


def impossible_coins_of(k, size):
    never = torch.tensor([0.0] + [0.5] * (size - 1))
    own = torch.tensor([0.0] + [0.3] * (size - 1))
    return dist.Bernoulli(never), dist.Bernoulli(own * (1.0 + k))


def points_of(k, size):
    own = torch.linspace(-1.0, 1.0, size).unsqueeze(-1) + k.reshape((*k.shape, 1)) + torch.zeros(2)
    return dist.Normal(torch.zeros(2), 1.0).to_event(1), dist.Normal(own, 0.7).to_event(1)


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("pair", [coins_of, shares_of, rates_of, impossible_coins_of, points_of])
def test_a_closed_kl_for_each_value_above_it_has_the_dims_of_both_sides(pair, size):
    def model():
        k = pyro.sample("k", dist.Bernoulli(0.3))
        with pyro.plate("d", size):
            pyro.sample("u", pair(k, size)[0])

    def guide():
        k = pyro.sample("k", dist.Bernoulli(0.4), infer={"enumerate": "parallel"})
        with pyro.plate("d", size):
            pyro.sample("u", pair(k, size)[1])

    site = TraceKL_ELBO(max_plate_nesting=1).decompose(model, guide).sites["u"]
    assert site.how["kl"] == "exact" or site.how["kl"] == "enumerated"
    exact = torch.zeros(size)
    for k, share in ((0.0, 0.6), (1.0, 0.4)):
        prior, own = pair(torch.tensor(k), size)
        kl = dist.kl.kl_divergence(own, prior.expand(own.batch_shape))
        exact += share * kl
    torch.testing.assert_close(site.kl, exact)


@pytest.mark.parametrize(
    "cls, enumerates", [(TraceGap_ELBO, False), *((cls, True) for cls in LOSSES)]
)
def test_a_learnt_factor_weighs_every_cost_whether_or_not_its_parent_is_enumerated(cls, enumerates):
    prior, data = torch.tensor(0.3, dtype=torch.float64), torch.tensor(0.3, dtype=torch.float64)

    def model():
        t = pyro.sample("t", dist.Bernoulli(prior))
        pyro.sample("x", dist.Normal(3 * t, 1.0), obs=data)
        pyro.sample("y", dist.Normal(1.0, 1.0), obs=data)

    def guide(logit, height):
        infer = {"enumerate": "parallel"} if enumerates else {}
        t = pyro.sample("t", dist.Bernoulli(logits=logit), infer=infer)
        pyro.factor("g", height * t, has_rsample=False)

    logit, height = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (0.4, 0.5))
    bound = torch.zeros((), dtype=torch.float64)
    for t in torch.tensor([0.0, 1.0], dtype=torch.float64):
        log_q = dist.Bernoulli(logits=logit).log_prob(t)
        weight = (height * t - (height * t).detach()).exp()
        cost = dist.Bernoulli(prior).log_prob(t) + dist.Normal(3 * t, 1.0).log_prob(data)
        cost = cost + dist.Normal(1.0, 1.0).log_prob(data) - log_q - (height * t).detach()
        bound = bound + log_q.exp() * weight * cost
    exact = torch.autograd.grad(bound, [logit, height])
    value = torch.zeros((), dtype=torch.float64)
    for t in [None] if enumerates else torch.tensor([0.0, 1.0], dtype=torch.float64):
        drawn = partial(guide, logit, height)
        if t is not None:
            replayed = poutine.trace(poutine.condition(drawn, {"t": t})).get_trace()
            replayed.nodes["t"]["is_observed"] = False
            drawn = poutine.replay(drawn, trace=replayed)
        share = 1.0 if t is None else dist.Bernoulli(logits=logit).log_prob(t).exp().detach()
        value = value - share * cls(max_plate_nesting=0).differentiable_loss(model, drawn)
    assert_close(value.detach(), bound.detach(), bound.detach().abs(), ulps=256)
    gradients = torch.autograd.grad(value, [logit, height])
    for own, right in zip(gradients, exact, strict=True):
        assert_close(own, right, bound.detach().abs(), ulps=256)


CHANCES = [0.0, 1e-30, 0.3, 1.0]


@pytest.mark.parametrize("by", ["probs", "logits"])
def test_the_closed_kl_of_coins_is_torchs(by):
    values = torch.tensor(CHANCES if by == "probs" else [-30.0, -1.0, 0.2, 30.0])
    for own, prior in itertools.product(values.double(), values.double()):
        parameter = own.clone().requires_grad_()

        def model(prior=prior):
            pyro.sample("z", dist.Bernoulli(**{by: prior}))

        def guide(parameter=parameter):
            pyro.sample("z", dist.Bernoulli(**{by: parameter}))

        elbo = TraceKL_ELBO()
        terms = elbo.decompose(model, guide)
        right = dist.kl.kl_divergence(
            dist.Bernoulli(**{by: parameter}), dist.Bernoulli(**{by: prior})
        )
        assert terms.sites["z"].how["kl"] == "exact"
        torch.testing.assert_close(terms.kl, right.detach(), rtol=1e-12, atol=0.0)
        if right.isfinite():
            loss = elbo.differentiable_loss(model, guide)
            (found,) = torch.autograd.grad(loss, parameter)
            (exact,) = torch.autograd.grad(right, parameter)
            torch.testing.assert_close(found, exact, rtol=1e-12, atol=0.0)


@pytest.mark.parametrize("dtype, logit", [(torch.float32, 20.0), (torch.float64, 800.0)])
def test_a_prior_whose_probability_rounds_to_0_or_1_leaves_coins_possible(dtype, logit):
    logits = logit * torch.tensor([1.0, -1.0], dtype=dtype)
    own = torch.tensor([0.2, -0.3], dtype=dtype, requires_grad=True)
    assert dist.Bernoulli(logits=logits).probs[0] == 1

    def model():
        with pyro.plate("d", 2):
            pyro.sample("z", dist.Bernoulli(logits=logits))

    def guide():
        with pyro.plate("d", 2):
            pyro.sample("z", dist.Bernoulli(logits=own))

    elbo, heads = TraceKL_ELBO(), own.double().sigmoid()
    q, p = ([-torch.nn.functional.softplus(s * t.double()) for s in (-1, 1)] for t in (own, logits))
    right = (heads * (q[0] - p[0]) + (1 - heads) * (q[1] - p[1])).sum()
    loss = elbo.differentiable_loss(model, guide)
    found, exact = (torch.autograd.grad(value, own)[0] for value in (loss, right))
    assert elbo.terms.sites["z"].how["kl"] == "exact"
    assert_close(loss.detach(), right.detach().to(dtype))
    assert_close(found, exact, exact.abs().max())


def categories(size, by):
    shares = torch.arange(size) + 1.0
    return dist.Categorical(**{by: shares if by == "probs" else shares.log()})


@pytest.mark.parametrize("by", ["probs", "logits"])
@pytest.mark.parametrize("size", [1, 3])
def test_categories_of_which_the_prior_has_more_have_no_closed_kl(size, by):
    elbo, prior, own = TraceKL_ELBO(), categories(4, by), categories(size, by)
    terms = elbo.decompose(lambda: pyro.sample("z", prior), lambda: pyro.sample("z", own))
    assert terms.sites["z"].how["kl"] == "sampled"
    rights = (own.logits - prior.logits[:size]).double()
    assert terms.kl in rights


def test_a_category_that_the_prior_does_not_have_is_refused():
    own = dist.Categorical(torch.tensor([0.0, 0.0, 1.0]))
    with pytest.raises(ValueError, match="at site 'z'"):
        TraceKL_ELBO().loss(
            lambda: pyro.sample("z", categories(1, "probs")), lambda: pyro.sample("z", own)
        )
