"""The private parts of torch that capturing and compiling rest on, in one file.

A test runs each of them on a small function, and fails loudly on a torch that changed it.
"""

from __future__ import annotations

import platform
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

__all__ = [
    "build_library",
    "compile_graph",
    "has_compiler",
    "is_random",
    "load_library",
    "trace_operations",
]

Compiled = Callable[..., Sequence[Tensor]]

_CONFIG = {
    "fallback_random": True,  # the same random numbers as in eager
    "realize_opcount_threshold": 12,  # else a small vector is computed again for each datum
    "size_asserts": False,  # a program is kept by the shapes of its inputs
    "alignment_asserts": False,
    "cpp_cache_precompile_headers": False,  # seconds that a graph or two do not repay
}
_PLAIN = (torch.float32, torch.float64, torch.int64, torch.int32, torch.bool)


def trace_operations(function: Callable[..., Any], *inputs: Tensor) -> fx.GraphModule:
    """The operations on tensors that a function runs, backward passes included, as a graph.

    The function is run once, on the inputs. Tensors that are neither inputs nor computed from them
    become attributes of the graph, the very objects.
    """
    graph: fx.GraphModule = make_fx(function)(*inputs)
    return graph


def compile_graph(graph: fx.GraphModule, inputs: Sequence[Tensor]) -> Compiled:
    """Compile a graph without gradients for inputs of these shapes, random numbers as in eager."""
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch's own, of parts of itself
        from torch._inductor import config
        from torch._inductor.compile_fx import compile_fx

        with config.patch(_CONFIG), _few_instruction_sets(inputs):
            compiled: Any = compile_fx(graph, list(inputs))
    run: Compiled = compiled
    return run


def build_library(graph: fx.GraphModule, inputs: Sequence[Tensor], path: Path) -> None:
    """Compile a graph without gradients into a file, random numbers as in eager."""
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, of parts of itself
        from torch._inductor import aoti_compile_and_package, config
        from torch._inductor.constant_folding import constant_fold

        constant_fold(graph)
        program = torch.export.export(graph, tuple(inputs))
        with config.patch(_CONFIG), _few_instruction_sets(inputs):
            aoti_compile_and_package(program, package_path=str(path))


def load_library(path: Path) -> Compiled:
    """What :func:`build_library` made."""
    from torch._inductor import aoti_load_package

    loaded: Any = aoti_load_package(str(path))
    run = loaded.loader.run

    def flat(*inputs: Tensor) -> Sequence[Tensor]:
        outputs: Sequence[Tensor] = run(list(inputs))
        return outputs

    return flat


@contextmanager
def _few_instruction_sets(inputs: Sequence[Tensor]) -> Iterator[None]:
    """Try the instruction sets alone that plain dtypes use: each trial is a run of the compiler."""
    from torch._inductor import cpu_vec_isa

    if platform.machine() not in ("x86_64", "AMD64") or any(t.dtype not in _PLAIN for t in inputs):
        yield
        return
    with patch.object(cpu_vec_isa, "valid_vec_isa_list", _plain_instruction_sets):
        yield


@cache
def _plain_instruction_sets() -> list[Any]:
    from torch._inductor.cpu_vec_isa import VecAVX2, VecAVX512, VecISA, x86_isa_checker

    supported, code = x86_isa_checker(), VecISA._avx_code
    sets = (isa for isa in (VecAVX512(), VecAVX2()) if str(isa) in supported)
    found = next((isa for isa in sets if isa.check_build(code)), None)
    return [] if found is None else [found]


def has_compiler() -> bool:
    """Whether there is a C++ compiler."""
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        return False
    return True


def is_random(node: fx.Node) -> bool:
    """Whether an operation draws from a generator."""
    tags = getattr(node.target, "tags", ())
    return node.op == "call_function" and torch.Tag.nondeterministic_seeded in tags
