"""What changes where nobody would look is looked at before each step, or refused with a reason."""

import argparse
import os
import random
import subprocess
import sys
import types

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from as_svi import X, assert_as_svi, changed, guide, leaf, model, outcome
from pyro import poutine
from pyro.infer import SVI, ReweightedWakeSleep
from pyro.infer.autoguide import AutoMultivariateNormal
from pyro.optim import SGD, Adam, DCTAdam
from torch import nn

from pyro_elbo import CompiledSVI, TraceEntropy_ELBO, TraceGap_ELBO, TraceKL_ELBO
from pyro_elbo.capture import private

ALL = torch.ones(4, dtype=torch.bool)
HALF = torch.tensor([True, True, False, False])


@pytest.fixture(autouse=True)
def in_double():
    torch.set_default_dtype(torch.float64)


def steps(*programs, args, optim=lambda: SGD({"lr": 0.01}), loss=TraceKL_ELBO):
    """A case of steps at the arguments of each."""

    def case(make):
        svi = make(*programs, optim(), loss())
        yield from (svi.step(*own) for own in args)

    return case


# Parameters, before the first capture and after it


def put(svi, folder):
    pyro.get_param_store()["loc"] = torch.full((4,), 5.0)


def put_constrained(svi, folder):
    pyro.get_param_store()["scale"] = torch.tensor(0.2)


def cleared(svi, folder):
    pyro.clear_param_store()


def loaded(svi, folder):
    pyro.get_param_store().save(folder / "parameters")
    svi.optim.save(folder / "optimiser")
    pyro.clear_param_store()
    pyro.get_param_store().load(folder / "parameters")
    svi.optim.load(folder / "optimiser")


def added_gradient(svi, folder):
    leaf("loc").grad = torch.full((4,), 10.0)


@pytest.mark.parametrize("after", [1, 2, 3, 8])
@pytest.mark.parametrize("change", [put, put_constrained, cleared, loaded, added_gradient])
def test_parameters_that_are_replaced_after_any_step_are_trained(change, after, tmp_path):
    def case(make):
        svi = make(model, guide, SGD({"lr": 0.01}), TraceKL_ELBO())
        yield from (svi.step(X) for _ in range(after))
        change(svi, tmp_path)
        yield from (svi.step(X) for _ in range(6))

    assert_as_svi(case)


# Questions about values that the package asks itself


def under(handler):
    """A model and a guide whose latent is under a handler of the last argument, in the model."""

    def changing(x, a):
        with pyro.plate("data", 4):
            with handler(a):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def constant(x, a):
        loc = pyro.param("loc", torch.zeros(4))
        with pyro.plate("data", 4), handler(torch.ones_like(a)):
            pyro.sample("z", dist.Normal(loc, 0.7))

    return changing, constant


@pytest.mark.filterwarnings("ignore:site 'z'")
@pytest.mark.parametrize("loss", [TraceKL_ELBO, TraceGap_ELBO, TraceEntropy_ELBO])
@pytest.mark.parametrize("handler", ["mask", "scale"])
@pytest.mark.parametrize("first", ["equal", "different"])
def test_masks_and_scales_that_part_or_meet(loss, handler, first):
    one, other = (ALL, HALF) if handler == "mask" else (torch.ones(4), torch.full((4,), 3.0))
    one, other = (one, other) if first == "equal" else (other, one)
    sides = under(lambda a: getattr(poutine, handler)(**{handler: a}))
    args = [(X, one)] * 7 + [(X, other)] * 5 + [(X, one)] * 3
    assert_as_svi(steps(*sides, args=args, loss=loss))


def test_weights_that_part_under_a_joint_guide_are_refused_at_the_same_step():
    def two():
        for name in ("a", "b"):
            z = pyro.sample(name, dist.Normal(0.0, 1.0))
            pyro.sample(f"x of {name}", dist.Normal(z, 1.0), obs=torch.tensor(0.3))

    for make in (SVI, lambda *parts: CompiledSVI(*parts, compiles=False)):
        pyro.clear_param_store()
        beta = {"a": lambda step: 1.0 if step < 6 else 0.5, "*": lambda step: 1.0}
        svi = make(two, AutoMultivariateNormal(two), Adam({"lr": 0.01}), TraceKL_ELBO(beta=beta))
        for _ in range(6):
            svi.step()
        with pytest.raises(ValueError, match="weight is ambiguous|beta differs inside"):
            svi.step()


# Numbers that are read, or counted


def counted(x, chosen):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    kept = x[chosen]
    with pyro.plate("data", len(kept)):
        pyro.sample("x", dist.Normal(mu, 1.0), obs=kept)


def of_mu(x, chosen):
    pyro.sample("mu", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 0.1))


def test_an_index_by_truths_of_an_argument_is_left_to_eager_steps():
    masks = [ALL] * 7 + [HALF, torch.tensor([False, False, False, True]), ALL]
    case = steps(counted, of_mu, args=[(X, mask) for mask in masks])
    assert_as_svi(case, says="depends on values; mask what is left out")


@pytest.mark.parametrize("later", [[True, False, False, False], [False, True, True, True]])
def test_an_index_by_truths_that_a_program_holds_may_count_others_later(later):
    def case(make):
        chosen = torch.tensor([True, True, True, False])
        svi = make(
            lambda x: counted(x, chosen),
            lambda x: of_mu(x, chosen),
            SGD({"lr": 0.01}),
            TraceKL_ELBO(),
        )
        yield from (svi.step(X) for _ in range(7))
        chosen.copy_(torch.tensor(later))
        yield from (svi.step(X) for _ in range(4))

    assert_as_svi(case)


READ = {
    "tolist": lambda k: k.tolist(),
    "numpy": lambda k: float(k.numpy()),
    "array": lambda k: torch.from_numpy(np.array(k)),
}


@pytest.mark.parametrize("read", READ.values(), ids=READ)
def test_values_that_leave_a_tensor_unseen_are_left_to_eager_steps(read):
    def reads(x, k):
        with pyro.plate("data", 4):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z * read(k), 1.0), obs=x)

    args = [(X, torch.tensor(2.0))] * 3 + [(X, torch.tensor(3.0))] * 3
    assert_as_svi(steps(reads, lambda x, k: guide(x), args=args), says="it reads the value of")


# What a program looks at


class Settings:
    offset = 0.0


class Special(Settings):
    """Has its offset from its base."""


def with_attribute(x):
    return model(x + with_attribute.offset)


CHOSEN = set()
SPACE, OPTIONS = types.SimpleNamespace(offset=0.0), argparse.Namespace(offset=0.0)
MODULE = types.ModuleType("a_module_of_ones_own")
LOOKED_AT = {
    "a base": (lambda x: model(x + Special.offset), lambda: setattr(Settings, "offset", 2.0)),
    "a class": (lambda x: model(x + Settings.offset), lambda: setattr(Settings, "offset", 2.0)),
    "a function": (with_attribute, lambda: setattr(with_attribute, "offset", 2.0)),
    "a set": (lambda x: model(x + len(CHOSEN)), lambda: CHOSEN.add(1)),
    "a namespace": (lambda x: model(x + SPACE.offset), lambda: setattr(SPACE, "offset", 2.0)),
    "options": (lambda x: model(x + OPTIONS.offset), lambda: setattr(OPTIONS, "offset", 2.0)),
    "a module": (lambda x: model(x + MODULE.offset), lambda: setattr(MODULE, "offset", 2.0)),
}


@pytest.mark.parametrize(("program", "change"), LOOKED_AT.values(), ids=LOOKED_AT)
def test_settings_that_change_anywhere(program, change):
    def start():
        CHOSEN.clear()
        for holder in (Settings, with_attribute, SPACE, OPTIONS, MODULE):
            holder.offset = 0.0
        return program, guide

    assert_as_svi(changed(lambda svi: change(), programs=start))


def test_gradients_that_a_setting_cuts_off():
    def cut(x):
        loc = pyro.param("loc", torch.zeros(4))
        with pyro.plate("data", 4):
            own = loc.detach() if SPACE.offset else loc
            pyro.sample("z", dist.Normal(own, pyro.param("scale", torch.ones(4))))

    def start():
        SPACE.offset = 0.0
        return model, cut

    assert_as_svi(changed(lambda svi: setattr(SPACE, "offset", 1.0), programs=start))


def test_a_change_in_a_small_term_is_seen_by_the_next_comparison():
    many, hidden = 1000 * torch.ones(3000), np.ones(1)  # its entries are not looked at

    def large(x):
        mu = pyro.sample("mu", dist.Normal(0.0, float(hidden[0])))
        with pyro.plate("data", len(many)):
            pyro.sample("x", dist.Normal(mu, 1.0), obs=many)

    def case(make):
        hidden[0] = 1.0
        svi = make(large, lambda x: of_mu(x, None), SGD({"lr": 1e-12}), TraceKL_ELBO())
        yield from (svi.step(X) for _ in range(9))
        hidden[0] = 3.0  # before the step that is the ninth of its graph
        yield from (svi.step(X) for _ in range(3))

    assert_as_svi(case, says="something that changed unseen")


# Losses, optimisers and generators of another kind


class Penalised(TraceKL_ELBO):
    def differentiable_loss(self, *args, **kwargs):
        return super().differentiable_loss(*args, **kwargs) + 10 * leaf("loc").square().sum()


class Shrunk(TraceKL_ELBO):
    def loss_and_grads(self, *args, **kwargs):
        loss = super().loss_and_grads(*args, **kwargs)
        leaf("loc").grad.mul_(0.1)
        return loss


@pytest.mark.parametrize("loss", [Penalised, Shrunk])
def test_a_loss_that_is_taken_in_its_own_way(loss):
    assert_as_svi(steps(model, guide, args=[(X,)] * 6, loss=loss), says="of its own")


def test_an_optimiser_that_looks_at_minibatches():
    def sampled(x):
        with pyro.plate("data", 4, subsample_size=2) as index:
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[index])

    def own(x):
        with pyro.plate("data", 4, subsample_size=2):
            loc = pyro.param("loc", torch.zeros(4), event_dim=0)
            pyro.sample("z", dist.Normal(loc, 1.0))

    optim = lambda: DCTAdam({"lr": 0.1, "subsample_aware": True})  # noqa: E731
    case = steps(sampled, own, args=[(X,)] * 20, optim=optim)
    assert_as_svi(case, says="looks at the minibatch of each step")


@pytest.mark.parametrize("draw", [lambda: np.random.randint(4), lambda: random.randrange(4)])
def test_a_program_that_draws_from_another_generator(draw):
    def draws(x):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(mu, 1.0), obs=x[draw()])

    case = steps(draws, lambda x: of_mu(x, None), args=[(X,)] * 8)
    assert_as_svi(case, says="the generators of Python or numpy")


def test_a_graph_that_cannot_be_run_is_left_to_eager_steps():
    def case(make):
        net = nn.LSTM(4, 4).float()

        def recurrent(x):
            pyro.module("net", net)
            loc = net(x.float().view(1, 1, 4))[0].view(4).double()
            with pyro.plate("data", 4):
                pyro.sample("z", dist.Normal(loc, 1.0))

        svi = make(model, recurrent, SGD({"lr": 0.01}), TraceKL_ELBO())
        yield from (svi.step(X) for _ in range(5))

    assert_as_svi(case, says="it cannot be captured: RuntimeError")


def test_a_sparse_argument_without_strides():
    def weighted(x, a):
        with pyro.plate("data", 4):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(a.to_dense() @ z, 1.0), obs=x)

    with pytest.warns(UserWarning, match="beta state"):
        torch.eye(4).to_sparse_csr()
    args = [(X, torch.eye(4).to_sparse_csr())] * 4
    case = steps(weighted, lambda x, a: guide(x), args=args)
    assert_as_svi(case, says="a tensor of layout torch.sparse_csr")


def test_a_loss_that_is_two_numbers():
    def case(make):
        svi = make(model, guide, SGD({"lr": 0.01}), ReweightedWakeSleep(num_particles=2))
        for _ in range(4):
            yield from svi.step(X)

    assert_as_svi(case, says="it cannot be captured")


@pytest.mark.parametrize("size", [1, 3, 4])
def test_a_schedule_that_ends_loses_no_step_before_its_end(size):
    def beta(step):
        if step >= 10:
            raise ValueError("there is no weight after step 9")
        return 1.0

    def take(make):
        pyro.clear_param_store()
        svi = make(model, guide, SGD({"lr": 0.01}), TraceKL_ELBO(beta=beta))
        with pytest.raises(ValueError, match="no weight after step 9"):
            for _ in range(20):
                svi.step(X)
        return svi.loss.__self__.step_count

    assert take(SVI) == 10
    assert take(lambda *parts: CompiledSVI(*parts, compiles=False, steps_per_call=size)) == 10


PROGRAM = """
import torch, pyro, pyro.distributions as dist
from pyro_elbo import CompiledSVI, TraceKL_ELBO
def model():
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    pyro.sample("x", dist.Normal(z, 1.0), obs=torch.tensor(0.3))
def guide():
    pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0))
svi = CompiledSVI(model, guide, pyro.optim.Adam({"lr": 0.01}), TraceKL_ELBO(), background=True)
for _ in range(4):
    svi.step()
torch.manual_seed(0)
print(svi.explain())
"""


@pytest.mark.slow
@pytest.mark.skipif(not private.has_compiler(), reason="there is no C++ compiler")
def test_a_process_that_ends_while_a_thread_compiles_ends_well(tmp_path):
    environment = {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    for number in range(3):
        script = PROGRAM + f"import time; time.sleep({number})\n"
        command = [sys.executable, "-W", "ignore", "-c", script]
        done = subprocess.run(
            command, env={**os.environ, **environment}, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert "of a graph" in done.stdout


def scattered(x):
    with torch.random.fork_rng():
        offset = torch.randn(4, dtype=x.dtype)
    model(x + 0.1 * offset)


def scattered_steps(make, number, **options):
    svi = make(scattered, guide, Adam({"lr": 0.05}), TraceKL_ELBO(), **options)
    return [svi.step(X) for _ in range(number)]


def test_a_program_that_puts_the_generator_back():
    says = "leaves the random number generator elsewhere"
    assert_as_svi(lambda make: scattered_steps(make, 5), says)
    right, ends, _ = outcome(lambda make: scattered_steps(make, 10), SVI)
    options = {"compiles": False, "steps_per_call": 2}
    own, own_ends, said = outcome(lambda make: scattered_steps(make, 5, **options), CompiledSVI)
    assert own == pytest.approx(right[1::2], rel=1e-12)
    torch.testing.assert_close(own_ends, ends, rtol=1e-12, atol=1e-12)
    assert any(says in line for line in said)


class Normalised(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(1)


@pytest.mark.parametrize("at_once", [False, True], ids=["in turn", "at once"])
def test_running_averages_are_moved_by_each_particle(at_once):
    found = []

    def case(make):
        net = Normalised().double()

        def normalised(x):
            pyro.module("net", net)
            with pyro.plate("data", 4):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                loc = net.norm(x.unsqueeze(-1)).squeeze(-1)
                pyro.sample("x", dist.Normal(z + loc, 1.0), obs=x)

        elbo = TraceKL_ELBO(num_particles=2, vectorize_particles=at_once, max_plate_nesting=1)
        svi = make(normalised, guide, Adam({"lr": 0.05}), elbo)
        yield from (svi.step(X) for _ in range(6))
        found.append([buffer.clone() for buffer in net.buffers()])
        yield from (float(buffer.sum()) for buffer in net.buffers())

    assert_as_svi(case)
    for buffers in found[1:]:
        assert all(map(torch.equal, buffers, found[0]))


def test_outcomes_are_compared():
    """The cases above could not fail if the stepper were not asked."""
    numbers, ends, _ = outcome(steps(model, guide, args=[(X,)] * 3), SVI)
    assert len(numbers) == 3
    assert ends.keys() == {"loc", "scale"}
