"""What is asked of torch's compiler beside compiling: headers, and to leave generators alone."""

import gc
import platform
import shlex
import subprocess
import sys
import threading

import pytest
import torch
from torch._inductor import codecache

from pyro_elbo.capture import compilation, private

pytestmark = pytest.mark.skipif(not private.has_compiler(), reason="there is no C++ compiler")
X = torch.linspace(-1.0, 1.0, 7)
LARGE = torch.linspace(-1.0, 1.0, 4200)


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
    private.read_headers([X], 1400)
    assert set(reader_threads()) <= set(before)


@pytest.mark.skipif(platform.machine() != "x86_64" or sys.platform != "linux", reason="not x86")
@pytest.mark.parametrize("x", [X, LARGE])
def test_intrinsics_that_the_processor_lacks_are_not_read(x, monkeypatch, tmp_path):
    commands = []
    run = codecache._worker_compile_cpp
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))

    def worker(lock, builders):
        commands.extend(builder.get_command_line() for builder in builders)
        run(lock, builders)

    monkeypatch.setattr(codecache, "_worker_compile_cpp", worker)
    (found,) = compiled(1.6875, x)(x)
    assert torch.allclose(found, (x * 1.6875).sin() + x)
    assert commands
    own, source = f"-I{private._INCLUDE}", tmp_path / "source.cpp"
    source.write_text("#include <x86intrin.h>\n")
    for command in map(shlex.split, commands):
        assert own in command
        flags = [command[0], *(part for part in command if part.startswith("-m")), "-E", source]
        few, all_of_them = (
            subprocess.run([*flags, *more], capture_output=True, check=True, text=True).stdout
            for more in ([own], [])
        )
        assert len(few) <= len(all_of_them)
        assert "_mm256_fmadd_ps" in few
        if not torch.cpu._is_avx512_supported():
            assert ("_mm512_add_ps" in few) == ("clang" in command[0])


def test_a_compiler_of_other_intrinsics_compiles_by_its_own(asked, monkeypatch, tmp_path):
    (tmp_path / "immintrin.h").write_text("#error unknown\n")
    monkeypatch.setattr(private, "_INCLUDE", str(tmp_path))
    (found,) = compiled(1.8125)(X)
    assert torch.allclose(found, (X * 1.8125).sin() + X)


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


@pytest.mark.parametrize("size", [(), (1,), (4200,)])
def test_another_constant_is_another_graph(monkeypatch, tmp_path, size):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    for constant in (torch.full(size, 1.5), torch.full(size, 2.5)):
        (found,) = compiled_with(constant)(LARGE)
        assert torch.allclose(torch.as_tensor(found), (LARGE * constant).sin() + LARGE)


def test_another_shape_or_dtype_is_another_graph(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    for x in (
        LARGE,
        LARGE[:3600].clone(),
        LARGE.double(),
        LARGE.view(420, 10),
        LARGE.view(10, 420).T,
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


def changes_at_the_end(x, y):
    new = x + y
    x.copy_(new)
    return [new * 2, y.sin()]


def copies_first(x, y):
    old = x * 3
    x.copy_(y)
    return [old + y.sin(), y * 2]


def reads_what_it_changed(x, y):
    x.copy_(y)
    return [x * 2 + y]


def changes_a_view(x, y):
    x[1:3].copy_(y[:2])
    return [x * 2 + y]


def changes_what_it_made(x, y):
    made = x * 2
    made[2:].mul_(y[2:])
    return [made + y]


def changes_twice(x, y):
    x.copy_(x + y)
    x.copy_(x * y)
    return [y + 1]


def gives_what_it_changed(x, y):
    x.copy_(x + y)
    return [y + 1, x]


WAYS = {
    changes_at_the_end: True,
    copies_first: True,
    reads_what_it_changed: False,
    changes_a_view: False,
    changes_what_it_made: False,
    changes_twice: False,
    gives_what_it_changed: False,
}


@pytest.mark.parametrize("function", WAYS)
def test_a_graph_that_changes_tensors_is_rewritten_only_where_it_has_to_be(
    function, monkeypatch, tmp_path
):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    rewrite, rewritten = private._code_after_rewriting, []
    monkeypatch.setattr(
        private, "_code_after_rewriting", lambda *args: rewritten.append(1) or rewrite(*args)
    )
    x, y = torch.linspace(-1.0, 1.0, 7), torch.linspace(2.0, 3.0, 7)
    graph = private.trace_operations(function, x.clone(), y)
    run = private.compile_graph(graph, [x.clone(), y])
    eager, own = x.clone(), x.clone()
    for _ in range(4):  # of which the last ones are from a tape
        expected, found = function(eager, y), run(own, y)
        for one, other in zip(expected, found, strict=True):
            assert torch.allclose(one, torch.as_tensor(other))
        assert torch.allclose(eager, own)
    assert not torch.equal(own, x) or function is changes_what_it_made
    assert bool(rewritten) is not WAYS[function]


def test_a_constant_that_a_graph_holds_twice_is_found_in_both_places(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    weight = torch.linspace(1.0, 2.0, 7)
    graph = private.trace_operations(lambda x: [x * weight], X)
    (held,) = [node for node in graph.graph.nodes if node.op == "get_attr"]
    graph.register_buffer("again", getattr(graph, held.target))
    with graph.graph.inserting_after(held):
        other = graph.graph.get_attr("again")
    (product,) = held.users
    with graph.graph.inserting_after(product):
        total = graph.graph.call_function(torch.ops.aten.add.Tensor, (product, other))
    graph.graph.output_node().args = ([total],)
    graph.recompile()
    (found,) = private.compile_graph(graph, [X])(X)
    assert torch.allclose(torch.as_tensor(found), X * weight + weight)


@pytest.mark.parametrize("was_on", [True, False])
def test_no_garbage_is_collected_while_a_graph_is_compiled(was_on, monkeypatch):
    seen = []

    def compile_graph(graph, inputs):
        seen.append(gc.isenabled())
        raise RuntimeError("no")

    monkeypatch.setattr(compilation, "compile_graph", compile_graph)
    graph = private.trace_operations(lambda x: [x * 2], X)
    compiler = compilation.Compiler(100, background=False, folder=None, say=print)
    monkeypatch.setattr(compilation, "has_compiler", lambda: True)
    (gc.enable if was_on else gc.disable)()
    try:
        assert "no" in compilation.Compilation(graph, [X], compiler).why_not
        assert gc.isenabled() is was_on
    finally:
        gc.enable()
    assert seen == [False]


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
