"""CompiledSVI: several steps in one call, and a compiler that works in the background."""

from __future__ import annotations

import threading
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI
from pyro.infer.autoguide import AutoNormal
from test_compiled_svi import X, assert_equal, leaves, start, twenty

from pyro_elbo import NonFiniteError, TraceKL_ELBO, fit, schedules
from pyro_elbo.capture import compilation, private
from pyro_elbo.capture.permutation import THREAD
from pyro_elbo.errors import StopTraining
from pyro_elbo.steppers.compiled import CompiledSVI
from pyro_elbo.training import Checkpoint

CALLS, SIZE = 4, 5


@pytest.fixture
def without_compiling(monkeypatch):
    """The optimiser is a part of the graph, and the graph is replayed."""
    monkeypatch.setattr(compilation, "compile_graph", lambda graph, inputs: graph)


def calls(svi, x=X):
    losses, kls = [], []
    for _ in range(CALLS):
        svi.step(x)
        losses += svi.last_losses
        kls += [terms.kl for terms in svi.last_terms]
    return losses, kls


def steps(svi, x=X):
    losses, kls = [], []
    for _ in range(CALLS * SIZE):
        losses.append(svi.step(x))
        kls.append(svi.loss.__self__.terms.kl)
    return losses, kls


def assert_close(some, others):
    for one, other in zip(some, others, strict=True):
        one, other = torch.as_tensor(one), torch.as_tensor(other)
        assert torch.allclose(one, other, rtol=1e-6, atol=1e-6), (one, other)


@pytest.mark.parametrize("beta", [1.0, schedules.Linear(4.0, 1.0, num_steps=12), {"z": 0.5}])
def test_the_steps_of_a_call_are_those_of_svi(without_compiling, beta):
    right = steps(start(SVI, loss=TraceKL_ELBO(beta=beta)))
    expected = leaves()
    svi = start(loss=TraceKL_ELBO(beta=beta), compiles=True, steps_per_call=SIZE)
    ours = calls(svi)
    assert f"{SIZE} steps a call" in svi.explain()
    for own, one in zip(ours, right, strict=True):
        assert_close(own, one)
    assert_close(leaves().values(), expected.values())
    assert svi.loss.__self__.step_count == CALLS * SIZE


def test_a_weight_that_leaves_zero_within_a_call(without_compiling):
    def loss():
        return TraceKL_ELBO(beta=schedules.Piecewise([(0, 0.0), (7, 0.0), (8, 1.0)]))

    right = steps(start(SVI, loss=loss()))
    assert_close(
        calls(start(loss=loss(), compiles=True, steps_per_call=SIZE))[0],
        right[0],
    )


def test_where_one_graph_cannot_take_several_steps_a_call_takes_them_one_by_one():
    right = steps(start(SVI))
    expected = leaves()
    svi = start(steps_per_call=SIZE)
    assert calls(svi) == right
    assert_equal(leaves(), expected)
    assert "one step a call, since an optimiser is not a part of the graph" in svi.explain()


def fails_later():
    """A program whose guide is not finite once its parameter has moved far enough."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        loc = pyro.param("loc", lambda: torch.zeros(4))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc + (loc - 0.2).clamp(min=0).mul(1e30).exp(), 1.0))

    return model, guide


@pytest.mark.parametrize("policy", ["raise", "skip", "stop"])
def test_a_step_that_is_not_finite_within_a_call(without_compiling, policy):
    ends = []
    for kind, kwargs in ((SVI, {}), (None, {"compiles": True, "steps_per_call": SIZE})):
        model, guide = fails_later()
        made = {"model": model, "guide": guide, "loss": TraceKL_ELBO(on_nonfinite=policy)}
        svi = start(**({"kind": kind} if kind else {}), **made, **kwargs)
        count = CALLS if kind is None else CALLS * SIZE
        said = ""
        with warnings.catch_warnings(), pyro.validation_enabled(False):
            warnings.simplefilter("ignore")
            try:
                for _ in range(count):
                    svi.step(X)
            except (NonFiniteError, StopTraining) as error:
                said = str(error)
        ends.append((said, svi.loss.__self__.step_count, leaves(), torch.get_rng_state()))
    (right, count, expected, state), (said, own_count, own, own_state) = ends
    assert said == right and bool(said) == (policy != "skip")
    assert own_count == count
    if policy != "skip":
        assert count > SIZE and count % SIZE, "it is to fail within a captured call"
    assert_close(own.values(), expected.values())
    assert torch.equal(own_state, state)


def test_fit_has_a_row_for_each_step(without_compiling):
    right = fit(start(SVI), X, num_steps=20, progress=False)
    steps_seen = []
    svi = start(compiles=True, steps_per_call=SIZE)
    history = fit(
        svi, X, num_steps=20, progress=False, callbacks=[lambda run: steps_seen.append(run.step)]
    )
    assert steps_seen == [5, 10, 15, 20]
    assert history["step"].tolist() == right["step"].tolist()
    for name in ("elbo", "kl", "beta", "objective"):
        assert_close(history[name], right[name])


def test_a_run_that_goes_on_from_a_checkpoint_ends_where_a_call_does(tmp_path):
    path, calls = tmp_path / "run.ckpt", []
    whole = fit(start(SVI), X, num_steps=20, progress=False)
    fit(start(SVI), X, num_steps=10, progress=False, callbacks=[Checkpoint(path)])
    svi = start(steps_per_call=SIZE)
    found = fit(svi, X, num_steps=20, progress=False, resume=path, callbacks=[calls.append])
    assert len(calls) == 2
    assert found["epoch"].tolist() == whole["epoch"].tolist() == [*range(20)]
    assert_close(found["objective"], whole["objective"])

    fit(start(SVI), X, num_steps=12, progress=False, callbacks=[Checkpoint(path)])
    for end in ("num_steps", "num_epochs"):
        svi = start(steps_per_call=SIZE)
        with pytest.raises(ValueError, match=f"{end}=20 leaves 8 steps, which is no multiple"):
            fit(svi, X, **{end: 20}, progress=False, resume=path)
        assert not leaves()
    found = fit(start(steps_per_call=SIZE), X, num_steps=22, progress=False, resume=path)
    assert found["step"].tolist() == [*range(1, 23)]
    assert found["epoch"].tolist() == [*range(22)]
    back = tmp_path / "back.ckpt"
    svi = start(steps_per_call=SIZE)
    fit(svi, X, num_epochs=10, progress=False, callbacks=[Checkpoint(back)])
    found = fit(start(SVI), X, num_epochs=13, progress=False, resume=back)
    assert found["epoch"].tolist() == [*range(13)]
    assert_close(found["objective"], whole["objective"][:13])


def test_a_number_of_steps_that_is_no_multiple_and_one_that_is_none():
    with pytest.raises(ValueError, match=r"num_epochs=7 is no multiple .* steps_per_call=5"):
        fit(start(steps_per_call=SIZE), X, num_epochs=7)
    with pytest.raises(ValueError, match=r"num_steps=7 is no multiple .* steps_per_call=5"):
        fit(start(steps_per_call=SIZE), X, num_steps=7)
    for name in ("steps_per_call", "max_nodes"):
        for number in (0, 1.5, -3, None):
            with pytest.raises(ValueError, match=f"{name} must be an integer >= 1"):
                start(**{name: number})


def test_a_compiler_in_the_background_takes_over(monkeypatch):
    right = twenty(start(SVI))
    expected = leaves()
    may_go, is_done = threading.Event(), threading.Event()

    def compile_graph(graph, inputs):
        may_go.wait(60)
        is_done.set()
        return graph

    monkeypatch.setattr(compilation, "compile_graph", compile_graph)
    svi = start(compiles=True, background=True)
    losses = [svi.step(X) for _ in range(10)]
    assert "replayed while it is compiled" in svi.explain()
    may_go.set()
    assert is_done.wait(60)
    svi._programs[0].compilation._job.join(60)
    losses += [svi.step(X) for _ in range(10)]
    assert "compiled in" in svi.explain()
    assert_close(losses, right)
    assert_close(leaves().values(), expected.values())


def test_a_compiler_in_the_background_that_fails_is_told_of_once(monkeypatch):
    def compile_graph(graph, inputs):
        raise RuntimeError("no room on the disk")

    monkeypatch.setattr(compilation, "compile_graph", compile_graph)
    svi = start(compiles=True, background=True)
    with pytest.warns(UserWarning, match="did not compile: RuntimeError: no room") as said:
        svi.step(X), svi.step(X)
        svi._programs[0].compilation._job.join(60)
        twenty(svi)
    assert len(said) == 1


@pytest.mark.slow
@pytest.mark.skipif(not private.has_compiler(), reason="there is no C++ compiler")
def test_a_compiler_in_the_background_moves_no_generator():
    svi = start(compiles=True, background=True)
    losses = [svi.step(X), svi.step(X)]
    job = svi._programs[0].compilation._job
    while job.is_alive():
        losses.append(svi.step(X))
        job.join(0.1)
    losses += [svi.step(X) for _ in range(10)]
    state = torch.get_rng_state()
    assert "compiled in" in svi.explain()
    eager = start(SVI)
    assert_close(losses, [eager.step(X) for _ in losses])
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("size", [1, 2, 7])
def test_draws_that_are_made_at_once_are_those_of_eager(size):
    def model():
        for name in "abc":
            pyro.sample(name, dist.Normal(0.0, 1.0).expand([size]).to_event(1))
        pyro.sample("d", dist.Normal(torch.zeros(40), 1.0).to_event(1))
        pyro.sample("e", dist.Normal(0.0, 1.0))

    ends = []
    for kind in (SVI, None):
        guide = AutoNormal(model)
        svi = start(**({"kind": kind} if kind else {}), model=model, guide=guide)
        losses = [svi.step() for _ in range(10)]
        ends.append((losses, leaves(), torch.get_rng_state()))
    assert ends[0][0] == ends[1][0]
    assert_equal(ends[0][1], ends[1][1])
    assert torch.equal(ends[0][2], ends[1][2])


@pytest.mark.slow
@pytest.mark.skipif(not private.has_compiler(), reason="there is no C++ compiler")
@pytest.mark.parametrize("background", [False, True])
def test_a_compiled_call_of_several_steps(background):
    right = steps(start(SVI))
    svi = start(compiles=True, steps_per_call=SIZE, background=background)
    assert_close(calls(svi)[0], right[0])
    if background:
        svi._programs[0].compilation._job.join(300)
    assert "compiled in" in svi.explain()


@pytest.mark.skipif(not private.has_compiler(), reason="there is no C++ compiler")
@pytest.mark.parametrize("size", [1, pytest.param(SIZE, marks=pytest.mark.slow)])
def test_minibatches_drawn_by_compiled_code_are_those_of_eager(size):
    def model(x):
        z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
        with pyro.plate("data", len(x), subsample_size=7) as index:
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[index])

    x, ends = torch.linspace(-1.0, 1.0, 3000, dtype=X.dtype), []
    for kind, options in ((SVI, {}), (CompiledSVI, {"compiles": True, "steps_per_call": size})):
        svi = start(kind, model=model, guide=AutoNormal(model), **options)
        losses = []
        for _ in range(CALLS * SIZE if kind is SVI else CALLS * SIZE // size):
            loss = svi.step(x)
            losses += svi.last_losses if kind is CompiledSVI else [loss]
            for thread in threading.enumerate():  # it waits for the compiler
                if thread.name == THREAD:
                    thread.join()
        ends.append((losses, leaves(), torch.get_rng_state()))
    (draw,) = {fill._draw for fill in svi._programs[0]._noise._fills if hasattr(fill, "_draw")}
    assert draw.__name__ != "_drawn_by_torch"
    assert_close(ends[0][0], ends[1][0])
    assert ends[0][1].keys() == ends[1][1].keys()
    assert_close([*ends[0][1].values()], [*ends[1][1].values()])
    assert torch.equal(ends[0][2], ends[1][2])
