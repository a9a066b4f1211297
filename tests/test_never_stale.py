"""Whatever changes between two steps, a captured step is the step that SVI would take."""

import copy
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from as_svi import (
    CHANGED_AFTER,
    KINDS,
    X,
    assert_as_svi,
    changed,
    guide,
    leaf,
    model,
    optimizers,
    outcome,
)
from pyro import poutine
from pyro.infer import SVI
from pyro.optim import SGD, Adam, ClippedAdam, OneCycleLR
from torch import nn

from pyro_elbo import CompiledSVI, TraceKL_ELBO

OFFSET = torch.tensor(0.5)


@pytest.fixture(autouse=True)
def in_double():
    torch.set_default_dtype(torch.float64)


# Optimisers


def in_a_handler(svi):
    with poutine.scale(scale=2.0):
        svi.step(X)


def on_a_smaller_batch(svi):
    svi.step(X[:3])


def by_another_stepper(svi):
    SVI(svi.model, svi.guide, svi.optim, svi.loss.__self__).step(X)


@pytest.mark.parametrize("optim", [Adam, ClippedAdam, SGD])
@pytest.mark.parametrize("step", [in_a_handler, on_a_smaller_batch, by_another_stepper])
def test_an_eager_step_in_between_counts(optim, step):
    def case(make):
        svi = make(model, guide, optim({"lr": 0.01}), TraceKL_ELBO())
        yield from (svi.step(X) for _ in range(CHANGED_AFTER))
        step(svi)
        yield from (svi.step(X) for _ in range(5))
        count = sum(program.num_steps for program in getattr(svi, "_programs", ()))
        yield svi.step(X)
        assert make is SVI or sum(p.num_steps for p in svi._programs) == count + 1

    assert_as_svi(case)


def test_epochs_whose_last_batch_is_smaller():
    def case(make):
        svi = make(model, guide, Adam({"lr": 0.05}), TraceKL_ELBO())
        for _ in range(8):
            yield from (svi.step(batch) for batch in (X, X + 1.0, X[:3]))

    assert_as_svi(case)


def test_two_shapes_in_turn_are_both_captured():
    def case(make):
        svi = make(model, guide, Adam({"lr": 0.05}), TraceKL_ELBO())
        yield from (svi.step(X[:3] if number % 2 else X) for number in range(20))
        if isinstance(svi, CompiledSVI):
            assert len(svi.explain().splitlines()) == 2

    assert_as_svi(case)


def test_two_steppers_of_one_optimiser():
    def case(make):
        optim, elbo = Adam({"lr": 0.05}), TraceKL_ELBO()
        one, other = (make(model, guide, optim, elbo) for _ in range(2))
        yield from ((one, other)[number % 3 == 2].step(X) for number in range(16))

    assert_as_svi(case)


@pytest.mark.parametrize("option", ["betas", "weight_decay", "eps", "lr"])
def test_options_that_change(option):
    values = {"betas": (0.5, 0.9), "weight_decay": 0.3, "eps": 0.1, "lr": 0.2}

    def change(svi):
        for optimizer in optimizers(svi):
            optimizer.param_groups[0][option] = values[option]

    assert_as_svi(changed(change))


def test_a_list_of_options_that_changes_in_one_optimiser():
    def case(make):
        svi = make(model, guide, Adam({"lr": 0.05}), TraceKL_ELBO())
        yield from (svi.step(X) for _ in range(5))
        for optimizer in optimizers(svi):
            optimizer.param_groups[0]["betas"] = [0.9, 0.99]
        yield from (svi.step(X) for _ in range(5))
        optimizers(svi)[-1].param_groups[0]["betas"][0] = 0.2
        yield from (svi.step(X) for _ in range(6))

    numbers, _, _ = outcome(case, SVI)
    own, _, _ = outcome(case, partial(CompiledSVI, **KINDS["its optimiser inside"]))
    assert own == pytest.approx(numbers, rel=1e-12)


def test_a_schedule_of_rate_and_momentum():
    def case(make):
        settings = {"max_lr": 0.1, "total_steps": 30}
        options = {"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.01}, **settings}
        optim = OneCycleLR(options)
        svi = make(model, guide, optim, TraceKL_ELBO())
        for _ in range(20):
            yield svi.step(X)
            optim.step()

    assert_as_svi(case)


def test_a_decaying_rate_in_calls_of_several_steps():
    def case(make):
        optim = ClippedAdam({"lr": 0.1, "lrd": 0.9})
        more = {} if make is SVI else {"steps_per_call": 5}
        svi = make(model, guide, optim, TraceKL_ELBO(), **more)
        for _ in range(20 if make is SVI else 4):
            loss = svi.step(X)
            yield from [loss] if make is SVI else svi.last_losses

    assert_as_svi(case)


def test_states_that_are_cleared():
    def change(svi):
        for optimizer in optimizers(svi):
            optimizer.state.clear()

    assert_as_svi(changed(change))


# Parameters


def put(svi):
    pyro.get_param_store()["loc"] = torch.full((4,), 3.0)


def clear(svi):
    pyro.clear_param_store()


def freeze(svi):
    leaf("loc").requires_grad_(False)


def transpose(svi):
    weight = leaf("weight")
    weight.data = weight.data.t()


def add_gradients(svi):
    svi.loss_and_grads(svi.model, svi.guide, X)


@pytest.mark.parametrize("change", [put, clear, freeze, add_gradients])
def test_parameters_that_are_put_cleared_frozen_or_have_gradients(change):
    assert_as_svi(changed(change))


def test_a_parameter_that_is_transposed_in_place():
    def square(x):
        weight = pyro.param("weight", torch.arange(16.0).reshape(4, 4) / 16)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(weight @ x, 0.5))

    assert_as_svi(changed(transpose, programs=lambda: (model, square)))


def test_the_store_of_another_scope():
    def case(make):
        svi = make(model, guide, Adam({"lr": 0.05}), TraceKL_ELBO())
        yield from (svi.step(X) for _ in range(CHANGED_AFTER))
        with pyro.get_param_store().scope():
            yield from (svi.step(X) for _ in range(6))
        yield from (svi.step(X) for _ in range(6))

    assert_as_svi(case)


@pytest.mark.parametrize("when", ["before a capture", "after it", "after one that was removed"])
def test_hooks_on_gradients_run(when):
    def case(make):
        svi, seen = make(model, guide, Adam({"lr": 0.05}), TraceKL_ELBO()), []
        yield svi.step(X)
        if when == "after one that was removed":
            leaf("loc").register_hook(lambda grad: grad).remove()
        if when != "before a capture":
            yield from (svi.step(X) for _ in range(5))
        leaf("loc").register_hook(lambda grad: seen.append(grad.sum()) or grad * 0.5)
        yield from (svi.step(X) for _ in range(6))
        yield from seen
        assert len(seen) == 6

    assert_as_svi(case, says="a hook looks at the gradient of parameter 'loc'")


def test_parameters_that_share_memory():
    def tied(x):
        a, b = pyro.param("a", torch.zeros(4)), pyro.param("b", torch.zeros(4))
        b.data = a.data
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(a + b, 0.5))

    assert_as_svi(changed(lambda svi: None, programs=lambda: (model, tied)), says="share memory")


# Arguments


def pair(x, y):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        pyro.sample("y", dist.Normal(z, 2.0), obs=y)


def test_one_tensor_given_twice_and_then_two():
    def case(make):
        svi = make(pair, lambda x, y: guide(x), Adam({"lr": 0.05}), TraceKL_ELBO())
        yield from (svi.step(X, X) for _ in range(CHANGED_AFTER))
        yield from (svi.step(X, X + 1.0) for _ in range(6))

    assert_as_svi(case)


def test_an_argument_that_the_program_holds_too():
    def case(make):
        held = X.clone()

        def shifted(x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(held, 1.0))
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

        svi = make(shifted, guide, Adam({"lr": 0.05}), TraceKL_ELBO())
        yield from (svi.step(held) for _ in range(CHANGED_AFTER))
        yield from (svi.step(X + 1.0) for _ in range(6))

    assert_as_svi(case)


def test_an_argument_that_takes_gradients():
    def case(make):
        x = X.clone().requires_grad_()
        svi = make(model, guide, Adam({"lr": 0.05}), TraceKL_ELBO())
        yield from (svi.step(x) for _ in range(6))
        yield x.grad.sum()

    assert_as_svi(case, says="an argument takes gradients")


def test_a_function_that_is_an_argument_and_reads_what_changes():
    def case(make):
        shift = [torch.tensor(0.0)]
        svi = make(
            lambda f, x: model(f(x)), lambda f, x: guide(x), Adam({"lr": 0.05}), TraceKL_ELBO()
        )
        shifted = lambda x: x + shift[0]  # noqa: E731
        yield from (svi.step(shifted, X) for _ in range(CHANGED_AFTER))
        shift[0] = torch.tensor(1.0)
        yield from (svi.step(shifted, X) for _ in range(6))

    assert_as_svi(case)


# What the program reads beside them


def test_a_global_in_a_function_inside(monkeypatch):
    def shifted(x):
        model((lambda: x + OFFSET)())

    def programs():
        monkeypatch.setitem(globals(), "OFFSET", torch.tensor(0.5))
        return shifted, guide

    def change(svi):
        monkeypatch.setitem(globals(), "OFFSET", torch.tensor(2.0))

    assert_as_svi(changed(change, programs=programs))


def test_an_entry_that_goes_from_one_list_to_the_next():
    given, taken = [0, 1], [2]
    lists = given, taken

    def weighted(x):
        model(x * (1.0 + len(lists[0])))

    def change(svi):
        taken.append(given.pop(0))

    def programs():
        given[:], taken[:] = [0, 1], [2]
        return weighted, guide

    assert_as_svi(changed(change, programs=programs))


def test_an_entry_that_gets_another_name():
    options = {"shift": 2.0}

    def shifted(x):
        model(x + options.get("shift", 0.0))

    def change(svi):
        options["unused"] = options.pop("shift")

    def programs():
        options.clear()
        options["shift"] = 2.0
        return shifted, guide

    assert_as_svi(changed(change, programs=programs))


class Shift(nn.Module):
    by = torch.tensor(0.5)

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(1)

    def forward(self, x):
        model(self.normal(x) + OFFSET + self.by)

    def normal(self, x):
        return self.norm(x.unsqueeze(-1)).squeeze(-1)


@pytest.mark.parametrize("what", ["a global", "an attribute of the class"])
def test_what_the_forward_of_a_module_reads(monkeypatch, what):
    def change(svi):
        if what == "a global":
            monkeypatch.setitem(globals(), "OFFSET", torch.tensor(2.0))
        else:
            monkeypatch.setattr(Shift, "by", torch.tensor(3.0))

    def programs():
        pyro.set_rng_seed(1)
        monkeypatch.setitem(globals(), "OFFSET", torch.tensor(0.5))
        monkeypatch.setattr(Shift, "by", torch.tensor(0.5))
        return Shift(), guide

    assert_as_svi(changed(change, programs=programs))


class Holder:
    def __init__(self, shift):
        self.shift, self.factor = shift, 1.0

    def model(self, x):
        model(self.factor * self.shift.normal(x))


@pytest.mark.parametrize("how", ["held by an object", "given as an argument"])
def test_buffers_and_modes_of_a_module(how):
    """Buffers move once for each step, and eval() is seen, wherever the module is."""

    def case(make):
        pyro.set_rng_seed(1)
        shift = Shift()
        if how == "held by an object":
            svi = make(Holder(shift).model, guide, Adam({"lr": 0.05}), TraceKL_ELBO())
            given = (X,)
        else:
            programs = lambda net, x: model(net.normal(x)), lambda net, x: guide(x)
            svi = make(*programs, Adam({"lr": 0.05}), TraceKL_ELBO())
            given = (shift, X)
        yield from (svi.step(*given) for _ in range(CHANGED_AFTER))
        yield shift.norm.num_batches_tracked
        shift.eval()
        yield from (svi.step(*given) for _ in range(6))
        yield from (float(buffer.sum()) for buffer in shift.norm.buffers())

    assert_as_svi(case)


def test_an_attribute_of_an_object(monkeypatch):
    monkeypatch.setattr(Shift, "by", torch.tensor(0.5))
    holder = Holder(Shift())

    def case(make):
        holder.factor = 1.0
        svi = make(holder.model, guide, Adam({"lr": 0.05}), TraceKL_ELBO())
        yield from (svi.step(X) for _ in range(CHANGED_AFTER))
        holder.factor = 2.0
        yield from (svi.step(X) for _ in range(6))

    holder.shift.eval()
    assert_as_svi(case)


def test_arrays_and_distributions_that_are_rebound():
    def case(make):
        data, prior = X.numpy().copy(), dist.Normal(0.0, 1.0)

        def rebound(x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", prior)
                pyro.sample("x", dist.Normal(z, 1.0), obs=torch.as_tensor(data))

        svi = make(rebound, guide, Adam({"lr": 0.05}), TraceKL_ELBO())
        yield from (svi.step(X) for _ in range(CHANGED_AFTER))
        data = data + 1.0
        yield from (svi.step(X) for _ in range(5))
        prior = dist.Normal(2.0, 1.0)
        yield from (svi.step(X) for _ in range(6))

    assert_as_svi(case)


def test_a_tensor_that_is_transposed_behind_the_program():
    held = torch.arange(16.0).reshape(4, 4) / 16

    def turned(x):
        model(held @ x)

    def change(svi):
        held.data = held.data.t()

    def case(make):
        held.data = torch.arange(16.0).reshape(4, 4) / 16
        yield from changed(change, programs=lambda: (turned, guide))(make)

    assert_as_svi(case)


@pytest.mark.parametrize("attribute", ["num_particles", "model"])
def test_settings_of_loss_and_stepper(attribute):
    def change(svi):
        if attribute == "model":
            svi.model = lambda x: model(x + 1.0)
        else:
            svi.loss.__self__.num_particles = 3

    assert_as_svi(changed(change))


def test_autocast_from_a_step_on():
    def case(make):
        svi = make(lambda x: model(torch.outer(x, x) @ x), guide, Adam({}), TraceKL_ELBO())
        yield from (svi.step(X) for _ in range(CHANGED_AFTER))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            yield from (svi.step(X) for _ in range(5))
        yield from (svi.step(X) for _ in range(5))

    assert_as_svi(case)


def test_a_step_that_takes_no_gradients():
    def case(make):
        svi = make(model, guide, Adam({"lr": 0.05}), TraceKL_ELBO())
        yield from (svi.step(X) for _ in range(CHANGED_AFTER))
        with torch.no_grad():
            yield svi.step(X)
        yield from (svi.step(X) for _ in range(5))

    assert_as_svi(case)


def test_a_skipped_step_moves_buffers_once():
    def case(make):
        pyro.set_rng_seed(1)
        shift = Shift()
        elbo = TraceKL_ELBO(on_nonfinite="skip")
        svi = make(
            lambda y: model(shift.normal(X) + y), lambda y: guide(X), Adam({"lr": 0.05}), elbo
        )
        with pyro.validation_enabled(False):
            numbers = [0.0] * 7 + [float("inf")] + [0.0] * 4
            losses = [svi.step(torch.tensor(number)) for number in numbers]
        yield from (loss for loss in losses if abs(loss) < 1e6)
        yield from (float(buffer.sum()) for buffer in shift.norm.buffers())

    assert_as_svi(case)


# What the program does to tensors


def test_a_program_that_changes_its_argument():
    def counts(x):
        x.add_(1.0)
        model(x)

    def case(make):
        x = X.clone()
        svi = make(counts, guide, Adam({"lr": 0.05}), TraceKL_ELBO())
        yield from (svi.step(x) for _ in range(9))
        yield x.sum()

    assert_as_svi(case, says="the program changes a tensor in place")


def test_a_generator_of_ones_own():
    def case(make):
        generator = torch.Generator().manual_seed(3)

        def drawn(x):
            model(x[torch.randperm(4, generator=generator)])

        svi = make(drawn, guide, Adam({"lr": 0.05}), TraceKL_ELBO())
        yield from (svi.step(X) for _ in range(9))

    assert_as_svi(case, says="a torch.Generator of the program's own")


def test_a_copy_trains_by_itself():
    def case(make):
        svi = make(model, guide, Adam({"lr": 0.05}), TraceKL_ELBO())
        yield from (svi.step(X) for _ in range(CHANGED_AFTER))
        copied = copy.deepcopy(svi)
        assert copied.loss.__self__.terms.kl == svi.loss.__self__.terms.kl
        yield from (svi.step(X) for _ in range(5))

    assert_as_svi(case)
