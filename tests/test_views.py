"""Tensors that lie in memory in unusual ways, draws that look alike, and what is held in slots."""

from collections import UserDict, deque
from dataclasses import dataclass
from itertools import product

import pyro
import pyro.distributions as dist
import pytest
import torch
from as_svi import X, assert_as_svi, guide
from pyro.infer import SVI
from pyro.infer.autoguide import AutoLowRankMultivariateNormal
from pyro.optim import SGD, Adam

from pyro_elbo import CompiledSVI, TraceKL_ELBO
from pyro_elbo.capture import private

needs_compiler = pytest.mark.skipif(not private.has_compiler(), reason="there is no C++ compiler")
TABLE = torch.linspace(-1.0, 1.0, 4 * 6, dtype=torch.float64).view(4, 6)
VIEWS = {
    "a column": lambda: TABLE[:, 3],
    "some columns": lambda: TABLE[:, :3],
    "every second column": lambda: TABLE[:, ::2],
    "one number": lambda: TABLE[0, 0].expand(4),
    "one row": lambda: TABLE[0, :3].expand(4, 3),
    "transposed": lambda: TABLE[:, :4].T,
    "windows": lambda: TABLE.view(-1).unfold(0, 3, 2)[:4],
}


def of_w(x):
    loc = pyro.param("loc", torch.tensor(0.3, dtype=torch.float64))
    pyro.sample("w", dist.Normal(loc, 0.5))


def regression(held):
    """A model of data that are an argument, or held; in one dim or two."""

    def model(x):
        x = x if held is None else held
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            mean = w * x if x.dim() == 1 else (w * x).sum(-1)
            pyro.sample("y", dist.Normal(mean, 1.0), obs=x if x.dim() == 1 else x[:, 0])

    return model, of_w


def losses(make, view, is_held, num_steps=6, **options):
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    programs = regression(view if is_held else None)
    svi = make(*programs, Adam({"lr": 0.05}), TraceKL_ELBO(), **options)
    found = []
    for _ in range(num_steps):
        found.append(svi.step(view))
        for program in getattr(svi, "_programs", ()):
            if program.compilation._job is not None:
                program.compilation._job.join()
    return [*found, float(pyro.param("loc").detach())], svi


@pytest.mark.parametrize("is_held", [False, True], ids=["an argument", "held"])
@pytest.mark.parametrize("name", VIEWS)
def test_views_are_replayed_as_they_are(name, is_held):
    found, svi = losses(CompiledSVI, VIEWS[name](), is_held, compiles=False)
    assert found == pytest.approx(losses(SVI, VIEWS[name](), is_held)[0], rel=1e-12)
    assert "replayed" in svi.explain()


QUICK = {("a column", False), ("one row", True), ("one number", False)}


@needs_compiler
@pytest.mark.parametrize(
    ("name", "background"),
    [
        pytest.param(*case, marks=[] if case in QUICK else pytest.mark.slow)
        for case in product(VIEWS, (False, True))
    ],
)
def test_views_are_compiled_as_they_lie_in_memory(name, background):
    found, svi = losses(CompiledSVI, VIEWS[name](), background, background=background)
    assert found == pytest.approx(losses(SVI, VIEWS[name](), background)[0], rel=1e-9)
    assert "compiled in" in svi.explain()


@needs_compiler
def test_no_memory_is_read_beyond_one_number_that_stands_for_many():
    many = torch.ones(1, dtype=torch.float64).expand(1_000_000)
    found, svi = losses(CompiledSVI, many, False, num_steps=3)
    assert found == pytest.approx(losses(SVI, many, False, num_steps=3)[0], rel=1e-9)
    assert "compiled in" in svi.explain()


def test_a_view_that_negates_is_not_read_as_what_it_is_a_view_of():
    plain = TABLE[:, 1].clone()

    def case(make):
        svi = make(*regression(None), Adam({"lr": 0.05}), TraceKL_ELBO())
        yield from (svi.step(plain) for _ in range(4))
        yield from (svi.step(torch._neg_view(plain)) for _ in range(4))

    assert_as_svi(case, says="resolve_neg")


DRAWS = {
    "beta": lambda a: dist.Beta(a, a).sample() - dist.Beta(a, a).sample(),
    "gamma": lambda a: dist.Gamma(a, 1.0).sample() - dist.Gamma(a, 1.0).sample(),
    "poisson": lambda a: torch.poisson(a) - torch.poisson(a),
    "normal": lambda a: torch.normal(a, 0.1) - torch.normal(a, 0.1),
}


@needs_compiler
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n == "beta" else pytest.mark.slow) for n in DRAWS]
)
def test_two_draws_that_look_alike_are_two(name):
    def model(x):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        shift = DRAWS[name](w.exp())
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(w + shift, 1.0), obs=x)

    found = []
    for make in (SVI, CompiledSVI):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        svi = make(model, of_w, Adam({"lr": 0.05}), TraceKL_ELBO())
        found.append([svi.step(X) for _ in range(12)])
        found[-1].append(float(torch.rand(())))
    assert found[1] == pytest.approx(found[0], rel=1e-9)
    assert "compiled in" in svi.explain()


@needs_compiler
@pytest.mark.parametrize(
    "dtype", [pytest.param(torch.float32, marks=pytest.mark.slow), torch.float64]
)
def test_gradients_through_places_in_memory_are_compiled_right(dtype):
    """A low-rank guide adds to a diagonal in place; torch joins such loops wrongly."""

    def model(x):
        shift = pyro.sample("c", dist.LKJCholesky(3, 1.0)).sum()
        shift = shift + pyro.sample("b", dist.Normal(torch.zeros(2), 1.0).to_event(1)).sum()
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(shift, 1.0), obs=x)

    torch.set_default_dtype(dtype)
    found, x = [], torch.linspace(-2.0, 2.0, 40)
    for make in (SVI, CompiledSVI):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        low_rank = AutoLowRankMultivariateNormal(model)
        svi = make(model, low_rank, SGD({"lr": 1e-3}), TraceKL_ELBO())
        losses = torch.tensor([svi.step(x) for _ in range(20)])
        found.append([losses, *(p.detach().clone() for p in low_rank.parameters())])
    assert "compiled in" in svi.explain()
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(
            one, other, rtol=1e-4 if dtype == torch.float32 else 1e-9, atol=1e-5
        )


def test_an_argument_that_the_steps_of_a_call_move():
    def model(x):
        with pyro.plate("data", 4):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z + x.exp(), 1.0), obs=X)

    def case(make):
        is_svi = make is SVI
        svi = make(model, guide, SGD({"lr": 0.05}), TraceKL_ELBO(), **({} if is_svi else THREE))
        for call in range(4):
            x = pyro.param("loc").detach() if call else torch.zeros(4)
            yield [svi.step(x) for _ in range(3 if is_svi else 1)][-1]

    assert_as_svi(case, says="shares memory with parameter 'loc'")


THREE = {"steps_per_call": 3}


class Slotted:
    __slots__ = ("rest", "scale")


@dataclass(slots=True)
class Settings:
    scale: float = 1.0


def slotted():
    held = Slotted()
    held.scale = 1.0
    return lambda: held.scale, lambda: setattr(held, "scale", 3.0)


def of_dataclass():
    held = Settings()
    return lambda: held.scale, lambda: setattr(held, "scale", 3.0)


def of_deque():
    held = deque([1.0])
    return lambda: held[0], lambda: held.append(held.popleft() + 2.0)


def of_user_dict():
    held = UserDict(scale=1.0)
    return lambda: held["scale"], lambda: held.update(scale=3.0)


def of_defaults():
    def held(scale=1.0):
        return scale

    return lambda: held(), lambda: setattr(held, "__defaults__", (3.0,))


@pytest.mark.parametrize("make_held", [slotted, of_dataclass, of_deque, of_user_dict, of_defaults])
def test_a_change_of_what_is_held_is_seen_at_the_next_step(make_held):
    def case(make):
        read, change = make_held()

        def model(x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(0.0, read()))
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

        svi = make(model, guide, Adam({"lr": 0.05}), TraceKL_ELBO())
        yield from (svi.step(X) for _ in range(12))
        change()
        yield from (svi.step(X) for _ in range(4))

    assert_as_svi(case)


class Weighed(TraceKL_ELBO):
    def objective(self, reconstruction, kl_by_site):
        return super().objective(reconstruction, kl_by_site) * getattr(self, "factor", 1.0)


def test_a_setting_that_a_loss_gets_later_is_seen():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def case(make):
        elbo = Weighed()
        svi = make(model, guide, Adam({"lr": 0.05}), elbo)
        yield from (svi.step(X) for _ in range(12))
        elbo.factor = 3.0
        yield from (svi.step(X) for _ in range(4))

    assert_as_svi(case)
