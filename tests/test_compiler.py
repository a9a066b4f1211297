"""What is asked of torch's compiler beside compiling: headers, and to leave generators alone."""

import threading

import pytest
import torch
from torch._inductor import codecache

from pyro_elbo.capture import private

pytestmark = pytest.mark.skipif(not private.has_compiler(), reason="there is no C++ compiler")
X = torch.linspace(-1.0, 1.0, 7)


LARGE = torch.linspace(-1.0, 1.0, 1400)


def compiled(number, x=X):
    """A graph that no cache has yet."""
    graph = private.trace_operations(lambda x: [(x * number).sin() + x], x)
    return private.compile_graph(graph, [x.clone()])


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """The headers that torch is asked to precompile, with their flags."""
    found = []
    build = codecache._precompile_header

    def precompile(*args, **kwargs):
        found.append((args, tuple(kwargs.items())))
        return build(*args, **kwargs)

    monkeypatch.setattr(codecache, "_precompile_header", precompile)
    monkeypatch.setattr(codecache.CppPythonBindingsCodeCache, "cache", {})  # what tests before left
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    return found


def test_the_headers_that_are_read_meanwhile_are_those_of_the_kernels(asked):
    (found,) = compiled(1.25)(X)
    assert torch.allclose(found, (X * 1.25).sin() + X)
    assert 1 <= len(asked) <= 2
    assert len(set(asked)) == 1


def test_headers_are_read_before_there_is_a_graph(asked):
    for x, number in ((X, 1.375), (LARGE, 1.625)):
        asked.clear()
        private.read_headers([x], x.numel())
        for thread in reader_threads():
            thread.join()
        assert len(asked) == 1
        (found,) = compiled(number, x)(x)
        assert torch.allclose(found, (x * number).sin() + x)
        assert len(asked) > 1
        assert len(set(asked)) == 1


def test_no_headers_are_read_where_it_is_not_clear_which(asked):
    before = reader_threads()
    private.read_headers([X], 400)
    assert set(reader_threads()) <= set(before)


def reader_threads():
    return [thread for thread in threading.enumerate() if thread.name == private.READER]


def counted():
    from torch._dynamo.utils import counters

    found = counters["inductor"]
    return found["fxgraph_cache_hit"], found["fxgraph_cache_miss"], found["fxgraph_cache_bypass"]


def compiled_with(constant, x=LARGE):
    graph = private.trace_operations(lambda x: [(x * constant).sin() + x], x)
    return private.compile_graph(graph, [x.clone()])


def test_what_was_compiled_once_is_found_in_torchs_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    before = counted()
    first, again = compiled(1.1875, LARGE), compiled(1.1875, LARGE)
    hits, misses, bypassed = (now - then for now, then in zip(counted(), before, strict=True))
    assert (hits, misses, bypassed) == (1, 1, 0)
    for run in (first, again, again, again):
        (found,) = run(LARGE)
        assert torch.allclose(torch.as_tensor(found), (LARGE * 1.1875).sin() + LARGE)
    assert again._tape is not None


@pytest.mark.parametrize("size", [(), (1,), (1400,)])
def test_another_constant_is_another_graph(monkeypatch, tmp_path, size):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    for constant in (torch.full(size, 1.5), torch.full(size, 2.5)):
        (found,) = compiled_with(constant)(LARGE)
        assert torch.allclose(torch.as_tensor(found), (LARGE * constant).sin() + LARGE)


def test_another_shape_or_dtype_is_another_graph(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    for x in (
        LARGE,
        LARGE[:1200].clone(),
        LARGE.double(),
        LARGE.view(140, 10),
        LARGE.view(10, 140).T,
    ):
        (found,) = compiled(1.3125, x)(x)
        assert found.shape == x.shape
        assert torch.allclose(torch.as_tensor(found), (x * 1.3125).sin() + x)


def test_another_instruction_set_is_another_graph(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    before = counted()
    for capability in ("default", ""):
        monkeypatch.setenv("ATEN_CPU_CAPABILITY", capability)
        (found,) = compiled(1.4375, LARGE)(LARGE)
        assert torch.allclose(torch.as_tensor(found), (LARGE * 1.4375).sin() + LARGE)
    assert [now - then for now, then in zip(counted(), before, strict=True)] == [0, 2, 0]


def test_without_openssl_no_header_is_precompiled(asked, monkeypatch):
    monkeypatch.setattr(private, "which", lambda name: None)
    (found,) = compiled(1.5)(X)
    assert torch.allclose(found, (X * 1.5).sin() + X)
    assert not asked


def test_a_header_that_cannot_be_read_early_stops_no_compilation(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    load, refused = codecache.CppPythonBindingsCodeCache.load_pybinding_async, []

    def load_kernels(argtypes, code, *args, **kwargs):
        if code == private._HEADERS:
            refused.append(code)
            raise OSError("no room on the disk")
        return load(argtypes, code, *args, **kwargs)

    monkeypatch.setattr(codecache.CppPythonBindingsCodeCache, "load_pybinding_async", load_kernels)
    (found,) = compiled(1.75)(X)
    assert torch.allclose(found, (X * 1.75).sin() + X)
    assert refused


def test_a_thread_that_compiles_leaves_the_generator_to_who_draws_meanwhile(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch.manual_seed(0)
    job = threading.Thread(target=compiled, args=(2.25,))
    job.start()
    drawn = [torch.randn(2)]
    while job.is_alive():
        drawn.append(torch.randn(2))
        job.join(0.05)
    drawn.append(torch.randn(2))
    torch.manual_seed(0)
    assert len(drawn) > 3
    assert all(torch.equal(value, torch.randn(2)) for value in drawn)
