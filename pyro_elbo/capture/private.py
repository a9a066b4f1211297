"""The private parts of torch that capturing and compiling rest on, in one file.

A test runs each of them on a small function, and fails loudly on a torch that changed it.
"""

from __future__ import annotations

import platform
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from contextvars import copy_context
from functools import cache, partial
from pathlib import Path
from shlex import quote
from shutil import which
from threading import Lock, Thread, get_ident
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, fx
from torch._guards import TracingContext, tracing
from torch._subclasses import FakeTensorMode
from torch.fx.experimental import proxy_tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import _disable_current_modes

from .aliases import is_functional
from .shapes import largest
from .tape import Outputs, Tape, Taped

__all__ = [
    "build_library",
    "compile_function",
    "compile_graph",
    "has_compiler",
    "load_library",
    "read_headers",
    "trace_operations",
]

Compiled = Callable[..., Outputs]

_CONFIG = {
    "fallback_random": True,  # the same random numbers as in eager
    "realize_opcount_threshold": 12,  # else a small vector is computed again for each datum
    "realize_reads_threshold": 1,  # else rows of a minibatch are gathered again, entry by entry
    "size_asserts": False,  # a program is kept by the shapes of its inputs
    "alignment_asserts": False,
}
_SCALAR = {"cpp.simdlen": 1}  # half of the code, for a step of few numbers that is hardly longer
_UNFUSED = {"max_fusion_size": 1}
"""Torch joins loops that read a tensor by its place in memory with those that write it, wrongly."""

_HEADERS = "#include <torch/csrc/inductor/cpp_prefix.h>\n"
_COMPILING = Lock()
READER = "pyro_elbo-headers"
_INCLUDE = str(Path(__file__).parent / "include")
_SMALL, _LOOPED, _LARGE = 2**10, 2**11, 2**15
_TIMES = 2
_PLAIN = (torch.float32, torch.float64, torch.int64, torch.int32, torch.bool)


def trace_operations(function: Callable[..., Any], *inputs: Tensor) -> fx.GraphModule:
    """The operations on tensors that a function runs, backward passes included, as a graph.

    The function is run once, on the inputs. Tensors that are neither inputs nor computed from them
    become attributes of the graph, the very objects.
    """
    one_for_all = TracingContext(FakeTensorMode(allow_fallback_kernels=True))
    described = patch.object(proxy_tensor, "extract_val", _described)
    with tracing(one_for_all), described:  # else torch makes a mode for each operation
        graph: fx.GraphModule = make_fx(function)(*inputs)
    return graph


def _described(value: Any, _describe: Any = proxy_tensor.extract_val, **options: Any) -> Any:
    """What torch notes of a tensor: for a small one another, as a fake one takes longer to make."""
    if type(value) is not Tensor or value.numel() > _SMALL or value.layout is not torch.strided:
        return _describe(value, **options)
    with _disable_current_modes():
        shape, strides = value.shape, value.stride()
        return torch.empty_strided(shape, strides, dtype=value.dtype, device=value.device)


def compile_graph(graph: fx.GraphModule, inputs: Sequence[Tensor]) -> Compiled:
    """Compile a graph without gradients for inputs of these shapes, random numbers as in eager.

    What was compiled is in torch's cache on disk, for this process and later ones.
    """
    return _for_this_processor(inputs, partial(_compiled, graph, inputs))


def _compiled(graph: fx.GraphModule, inputs: Sequence[Tensor]) -> Compiled:
    with torch.no_grad(), warnings.catch_warnings():
        _ignore_own_warnings()
        from torch._functorch import config as functorch_config
        from torch._inductor import config
        from torch._inductor.virtualized import V
        from torch.fx.experimental.symbolic_shapes import ShapeEnv

        own = {**dict(graph.named_parameters()), **dict(graph.named_buffers())}
        mode = FakeTensorMode(shape_env=ShapeEnv())
        like = [mode.from_tensor(t, static_shapes=True) for t in [*own.values(), *inputs]]
        with (
            tracing(TracingContext(mode)),  # else that cache is not asked
            V.set_fake_mode(mode),
            config.patch(_options(largest(graph, inputs)) | _for_places(graph)),
            functorch_config.patch(enable_autograd_cache=False),
            _large_products(),
            _headers_read_once(),
        ):
            code = _code_of(graph, [*own], like, mode)
            if code is None:
                code = _code_after_rewriting(graph, like[len(own) :])
    return _direct(code, [*own.values()])


def _ignore_own_warnings() -> None:
    """Torch's compiler calls parts of torch that are to go, which whoever compiles cannot mend."""
    warnings.simplefilter("ignore", DeprecationWarning)
    warnings.simplefilter("ignore", FutureWarning)


def _direct(code: Any, constants: Sequence[Tensor]) -> Compiled:
    """Code without what torch wraps around it: that takes as long as a small step."""
    record = partial(_tape_of, code, constants) if _calls_kernels_alone(code) else None
    return Taped(lambda inputs: code([*constants, *inputs]), record)


def _code_of(
    graph: fx.GraphModule, names: Sequence[str], like: Sequence[Tensor], mode: FakeTensorMode
) -> Any:
    """The code of a graph that need not be rewritten first; ``None`` where it has to be.

    Args:
        graph: The graph.
        names: What its constants are called.
        like: Tensors like them, and after them like its inputs; the code takes a list of such.
        mode: What those are of.
    """
    from torch._dispatch.python import enable_python_dispatcher
    from torch._inductor.compile_fx import _recursive_joint_graph_passes, compile_fx_inner
    from torch._inductor.decomposition import select_decomp_table

    def run(*tensors: Tensor) -> Any:
        constants = dict(zip(names, tensors, strict=False))
        return torch.func.functional_call(graph, constants, tensors[len(names) :])

    if not is_functional(graph.graph):
        return None
    with mode, enable_python_dispatcher():
        simple = make_fx(run, decomposition_table=select_decomp_table())(*like)
    if not is_functional(simple.graph):
        return None
    simple.graph.eliminate_dead_code()
    for copy in simple.graph.find_nodes(op="call_function", target=torch.ops.aten.copy_.default):
        simple.graph.output_node().prepend(copy)
    simple = _recursive_joint_graph_passes(simple, input_device=torch.device("cpu"))
    simple.graph.output_node().meta["user_visible_output_idxs"] = []
    fixed = [*range(len(names))]
    made: Any = compile_fx_inner(simple, like, static_input_idxs=fixed, is_inference=True)
    return made.current_callable


def _code_after_rewriting(graph: fx.GraphModule, like: Sequence[Tensor]) -> Any:
    """The code of a graph that torch rewrites first, so that it changes nothing in place."""
    from torch._inductor.compile_fx import compile_fx, compile_fx_inner

    found: list[Any] = []

    def inner(module: Any, examples: Any, **kwargs: Any) -> Any:
        found.append(compile_fx_inner(module, examples, **kwargs))
        return found[-1]

    compile_fx(graph, list(like), inner_compile=inner)
    (made,) = found
    return made.current_callable


_PRODUCTS = ("mm", "bmm", "addmm", "baddbmm")
_MAKES = ("empty_strided_cpu", "reinterpret_tensor")
_KERNEL = "cpp_fused_"
_NO_KERNELS = {
    "clear",
    "torch",
    *(str(t).removeprefix("torch.") for t in _PLAIN),
    "extern_kernels",
    *_PRODUCTS,
    *_MAKES,
}


def _calls_kernels_alone(call: Any) -> bool:
    """Whether compiled code makes tensors, and gives them to functions that fill them."""
    names = getattr(getattr(call, "__code__", None), "co_names", (None,))
    return all(n in _NO_KERNELS or (n or "").startswith(_KERNEL) for n in names)


def _tape_of(call: Any, constants: Sequence[Tensor], inputs: Sequence[Tensor]) -> Tape:
    """What compiled code would call on some inputs, and the memory that it would make."""
    calls: list[Callable[[], Any]] = []
    made: list[Tensor] = []

    def kept(function: Any) -> Any:
        return lambda *args, **kwargs: calls.append(partial(function, *args, **kwargs))

    def empty(*args: Any) -> Tensor:
        made.append(names["empty_strided_cpu"](*args))
        return made[-1]

    names = dict(call.__globals__)
    kernels = {name: kept(value) for name, value in names.items() if name.startswith(_KERNEL)}
    products = {name: kept(getattr(names["extern_kernels"], name)) for name in _PRODUCTS}
    stand_ins = {
        **kernels,
        "extern_kernels": SimpleNamespace(**products),
        "empty_strided_cpu": empty,
    }
    with patch.dict(call.__globals__, stand_ins):
        outputs = call([*constants, *inputs])
    return Tape(calls, sum(t.nbytes for t in made), [output.numpy() for output in outputs])


def compile_function(source: str, types: Sequence[str]) -> Callable[..., Any]:
    """Compile a C++ function that is called ``kernel`` and includes nothing of torch.

    Args:
        source: It.
        types: Of its arguments, in C++; a pointer is given as a tensor.
    """
    return _for_this_processor([], partial(_function, source, types))


def _function(source: str, types: Sequence[str]) -> Any:
    from torch._inductor import config
    from torch._inductor.codecache import CppPythonBindingsCodeCache

    with config.patch({"cpp_cache_precompile_headers": False}):
        return CppPythonBindingsCodeCache.load_pybinding(types, source)


def read_headers(inputs: Sequence[Tensor], size: int) -> None:
    """Have the C++ compiler read torch's headers, most of its work, for a graph to be compiled.

    Args:
        inputs: Some of its inputs.
        size: How many entries the largest of them has. The graph's largest tensor may have more,
            by which it will be compiled; where that is not clear nothing is read.
    """
    if size > _LOOPED or size * _TIMES <= _LOOPED:
        _for_this_processor(inputs, partial(_begun, size))


def _begun(size: int) -> None:
    from torch._inductor import config

    with config.patch(_options(size)):
        _begin_to_read()


def _options(size: int) -> dict[str, Any]:
    """How a graph is compiled whose largest tensor has so many entries."""
    return {**_CONFIG, **(_SCALAR if size <= _LOOPED else {})}


def _for_places(graph: fx.GraphModule) -> dict[str, Any]:
    """How a graph is compiled that asks where in memory an entry is."""
    places = (torch.ops.aten.as_strided.default, torch.ops.aten.as_strided_scatter.default)
    return _UNFUSED if any(node.target in places for node in graph.graph.nodes) else {}


def _begin_to_read() -> None:
    """Begin, in a thread, to precompile the headers of kernels."""
    from torch._inductor import codecache

    read = codecache._precompile_header

    def begin(*args: Any, **kwargs: Any) -> str:
        def job() -> None:
            with suppress(Exception):  # whoever compiles a kernel meets it too, and says so
                read(*args, **kwargs)

        run = copy_context().run
        Thread(target=run, args=(job,), name=READER, daemon=True).start()
        return ""

    if which("openssl") is None:  # torch takes their checksum with it
        return
    bindings = codecache.CppPythonBindingsCodeCache
    with suppress(Exception), patch.object(codecache, "_precompile_header", begin):
        bindings.load_pybinding_async(["float*"], _HEADERS, submit_fn=lambda job: None)


@contextmanager
def _headers_read_once() -> Iterator[None]:
    """Have the headers read while Python makes the code, and only once for all kernels."""
    from torch._inductor import codecache, config

    if which("openssl") is None:
        with config.patch({"cpp_cache_precompile_headers": False}):
            yield
        return
    with patch.object(codecache, "_precompile_header", cache(codecache._precompile_header)):
        _begin_to_read()
        yield


def build_library(graph: fx.GraphModule, inputs: Sequence[Tensor], path: Path) -> None:
    """Compile a graph without gradients into a file, random numbers as in eager."""
    _for_this_processor(inputs, partial(_built, graph, inputs, path))


def _built(graph: fx.GraphModule, inputs: Sequence[Tensor], path: Path) -> None:
    with torch.no_grad(), warnings.catch_warnings():
        _ignore_own_warnings()
        warnings.filterwarnings("ignore", module="torch")
        from torch._inductor import aoti_compile_and_package, config
        from torch._inductor.constant_folding import constant_fold

        constant_fold(graph)
        program = torch.export.export(graph, tuple(inputs))
        with config.patch(_CONFIG | _for_places(graph)), _large_products():
            aoti_compile_and_package(program, package_path=str(path))


def load_library(path: Path) -> Callable[..., Sequence[Tensor]]:
    """What :func:`build_library` made."""
    from torch._inductor import aoti_load_package

    loaded: Any = aoti_load_package(str(path))
    run = loaded.loader.run

    def flat(*inputs: Tensor) -> Sequence[Tensor]:
        with torch.no_grad():
            outputs: Sequence[Tensor] = run(list(inputs))
        return outputs

    return flat


def _for_this_processor(inputs: Sequence[Tensor], compiles: Callable[[], Any]) -> Any:
    """Compile for what the processor has; where the compiler does not know it, for what it does."""
    from torch._inductor.exc import CppCompileError, InductorError

    with _aside():
        try:
            with _few_instruction_sets(inputs):
                return compiles()
        except (CppCompileError, InductorError) as error:
            if not isinstance(getattr(error, "inner_exception", error), CppCompileError):
                raise
        return compiles()


@contextmanager
def _aside() -> Iterator[None]:
    """Compile one graph at a time, and leave the generators to who trains meanwhile.

    Torch's compiler puts them back, at its end, to where they were at its beginning: every number
    that was drawn while a thread compiles would be drawn again.
    """
    from torch._dynamo import utils
    from torch._functorch import aot_autograd

    own, preserved = get_ident(), utils.preserve_rng_state

    def preserve() -> AbstractContextManager[None]:
        return nullcontext() if get_ident() == own else preserved()

    in_utils = patch.object(utils, "preserve_rng_state", preserve)
    with _COMPILING, in_utils, patch.object(aot_autograd, "preserve_rng_state", preserve):
        yield


@contextmanager
def _few_instruction_sets(inputs: Sequence[Tensor]) -> Iterator[None]:
    """Take the largest instruction set that plain dtypes use, without a trial of the compiler.

    The compiler reads the intrinsics of no larger one.
    """
    from torch._inductor import config, cpu_vec_isa

    if platform.machine() not in ("x86_64", "AMD64") or any(t.dtype not in _PLAIN for t in inputs):
        yield
        return
    sets = patch.object(cpu_vec_isa, "valid_vec_isa_list", _plain_instruction_sets)
    with (
        sets,
        config.patch({"cpp.vec_isa_ok": True, **_few_intrinsics()}),
        # Torch's cache has what was compiled by such options, and not by the instruction set.
        config.patch({"cpp.simdlen": cpu_vec_isa.pick_vec_isa().bit_width()}),
    ):
        yield


def _few_intrinsics() -> dict[str, Any]:
    """Have the compiler find a header of ours, beside the flag for the processor that it has."""
    from torch._inductor import config

    if sys.platform != "linux" or config.cpp.march is not None:
        return {}
    return {"cpp.march": f"native -I{quote(_INCLUDE)}"}


@cache
def _plain_instruction_sets() -> list[Any]:
    from torch._inductor.cpu_vec_isa import VecAVX2, VecAVX512, x86_isa_checker

    supported = x86_isa_checker()
    return [isa for isa in (VecAVX512(), VecAVX2()) if str(isa) in supported]


@contextmanager
def _large_products() -> Iterator[None]:
    """Leave a large matrix times a vector to the library that is made for it, not to a loop."""
    from torch._inductor.decomposition import decompositions

    mv: Any = torch.ops.aten.mv.default
    as_loop: Any = decompositions[mv]

    def product(matrix: Tensor, vector: Tensor) -> Any:
        if matrix.numel() < _LARGE:
            return as_loop(matrix, vector)
        return torch.mm(matrix, vector.unsqueeze(-1)).squeeze(-1)

    with patch.dict(decompositions, {mv: product}):
        yield


def has_compiler() -> bool:
    """Whether there is a C++ compiler."""
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        return False
    return True
