"""A graph that is run operation by operation until it is compiled, and where it cannot be."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, fx

from .library import library_path, load_or_build
from .merging import merged
from .private import compile_graph, has_compiler, read_headers
from .shapes import unfilled
from .tape import Outputs

__all__ = ["Compilation", "Compiler"]

SECONDS, SECONDS_PER_NODE = 20.0, 0.02
"""What a library takes, roughly: whatever is in it, and for each operation; 25 s for 269."""

ATTEMPTS = 3
"""Rounding can put a step on the other side of a kink, but hardly so often in a row."""


@contextmanager
def _no_garbage_collected() -> Iterator[None]:
    """Spare the looks through all that torch's compiler has made: a tenth of a compilation."""
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@dataclass(frozen=True)
class Compiler:
    """How graphs are compiled.

    Args:
        max_nodes: The largest graph that is compiled.
        background: Whether to compile in a thread.
        folder: Where libraries that are compiled ahead of time are kept; ``None`` to compile for
            this process alone.
        say: What tells the user.
    """

    max_nodes: int
    background: bool
    folder: Path | None
    say: Callable[[str], Any]

    def why_not(self, num_nodes: int, library: Path | None) -> str:
        """Why a graph is not to be compiled, if so."""
        if num_nodes > self.max_nodes:
            return (
                f"the graph has {num_nodes} operations, and more than max_nodes={self.max_nodes} "
                "would take long to compile"
            )
        is_there = library is not None and library.exists()
        return "" if is_there or has_compiler() else "there is no C++ compiler"

    def prepare(self, inputs: Sequence[Tensor], num_particles: int) -> None:
        """Begin what takes long whatever the graph is, before it is there.

        Args:
            inputs: Some of its inputs.
            num_particles: How many particles it evaluates side by side.
        """
        if self.folder is None and not self.background and has_compiler():
            size = max((tensor.numel() for tensor in inputs), default=0)
            read_headers(inputs, num_particles * size)


class Compilation:
    """A graph, compiled now or in a while, or not at all.

    Args:
        graph: The graph.
        inputs: Tensors like those of its inputs.
        compiler: How to compile it; ``None`` not to.

    The attributes: ``run``, the graph or what it was compiled to; ``unproven``, what it was
    compiled to and is not run yet; ``why_not``, why it is not run compiled, where it was to be.
    """

    def __init__(
        self, graph: fx.GraphModule, inputs: Sequence[Tensor], compiler: Compiler | None
    ) -> None:
        self.run: Callable[..., Outputs] = torch.no_grad()(graph.forward)
        self.unproven: Callable[..., Outputs] | None = None
        self.why_not = ""
        self._failures = 0
        self._seconds = 0.0
        self._library: Path | None = None
        self._job: Thread | None = None
        if compiler is None:
            return
        if compiler.folder is not None:
            self._library = library_path(graph, inputs, compiler.folder)
        self.why_not = compiler.why_not(len(graph.graph.nodes), self._library)
        if not self.why_not:
            self._begin(graph, [*map(unfilled, inputs)], compiler)

    def _begin(self, graph: fx.GraphModule, inputs: Sequence[Tensor], compiler: Compiler) -> None:
        try:
            own = merged(graph, inputs)
        except Exception as error:
            self._fail(error)
            return
        if self._library is not None and not self._library.exists():
            num_nodes = len(own.graph.nodes)
            compiler.say(
                f"compiling {num_nodes} operations ahead of time takes about "
                f"{SECONDS + SECONDS_PER_NODE * num_nodes:.0f} s; the library is kept in "
                f"{self._library}"
            )
        if compiler.background:
            self._job = Thread(target=self._compile, args=(own, inputs))
            self._job.start()
        else:
            with torch.random.fork_rng(), _no_garbage_collected():
                self._compile(own, inputs)

    def prove(self, proves: Callable[[Callable[..., Outputs]], bool]) -> None:
        """Run what was compiled from now on where it proves right, in one of a few attempts.

        Args:
            proves: Whether it does.
        """
        assert self.unproven is not None
        if proves(self.unproven):
            self.run, self.unproven = self.unproven, None
            return
        self._failures += 1
        if self._failures == ATTEMPTS:
            self.why_not = "its compiled form gives other numbers"
            self.unproven = None

    @property
    def explanation(self) -> str:
        """How the graph is run, in words."""
        if self._seconds and not self.why_not:
            where = "" if self._library is None else f", as the library {self._library.name}"
            return f"compiled in {self._seconds:.1f} s{where}"
        if self._job is not None and self._job.is_alive():
            return "replayed while it is compiled"
        return "replayed" + (f", since {self.why_not}" if self.why_not else "")

    def _compile(self, graph: fx.GraphModule, inputs: Sequence[Tensor]) -> None:
        start = perf_counter()
        try:
            if self._library is None:
                compiled = compile_graph(graph, inputs)
            else:
                compiled = load_or_build(graph, inputs, self._library)
        except Exception as error:
            self._fail(error)
            return
        self._seconds, self.unproven = perf_counter() - start, compiled

    def _fail(self, error: Exception) -> None:
        """Whatever cannot be compiled can be replayed."""
        line = next(iter(str(error).strip().splitlines()), "")
        self.why_not = f"it did not compile: {type(error).__name__}: {line}"
