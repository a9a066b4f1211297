"""What a compiled graph calls, kept with the memory that it works in.

Much of a small step is the making of tensors for its kernels. Where a graph is run on the same
inputs again, its kernels are called as they were, in the same memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import is_, methodcaller
from typing import Any, NamedTuple

import torch
from numpy import ndarray
from torch import Tensor

__all__ = ["Outputs", "Tape", "Taped"]

MOST_BYTES = 2**25
"""The most memory that is kept from one run to the next."""

_address = methodcaller("data_ptr")

Run = Callable[[Sequence[Tensor]], Sequence[Tensor]]
Outputs = Sequence[Tensor] | Sequence[ndarray]
"""Tensors, or arrays: to copy one and to read a number of it takes less than half as long."""


class Tape(NamedTuple):
    """The calls of one run.

    Args:
        calls: What is called, in order, its arguments in it.
        num_bytes: The memory that it holds beside that of the inputs.
        outputs: What the run returned.
    """

    calls: Sequence[Callable[[], Any]]
    num_bytes: int
    outputs: Sequence[ndarray]


class Taped:
    """A compiled graph, run from its tape where its inputs are those of the run before.

    Args:
        run: The graph, a function of its inputs.
        record: The tape of a run on some inputs, made without running it; ``None`` where there is
            none, because something beside kernels is called.
    """

    def __init__(self, run: Run, record: Callable[[Sequence[Tensor]], Tape] | None) -> None:
        self._run, self._record = run, record
        self._inputs: Sequence[Tensor] = ()
        self._addresses: Sequence[int] = ()
        self._tape: Tape | None = None

    def __call__(self, *inputs: Tensor) -> Outputs:
        """The outputs, in memory of their own; no gradient is taken."""
        tape = self._tape_of(inputs)
        if tape is None:
            with torch.no_grad():
                return self._run(inputs)
        for function in tape.calls:
            function()
        return [output.copy() for output in tape.outputs]

    def _tape_of(self, inputs: Sequence[Tensor]) -> Tape | None:
        if self._record is None:
            return None
        addresses = [*map(_address, inputs)]
        if addresses != self._addresses or not all(map(is_, inputs, self._inputs)):
            self._inputs, self._addresses, self._tape = inputs, addresses, None
        elif self._tape is None:
            self._tape = self._recorded(self._record, inputs)
            if self._tape is None:
                self._record, self._inputs = None, ()
        return self._tape

    @staticmethod
    def _recorded(record: Callable[[Sequence[Tensor]], Tape], inputs: Sequence[Tensor]) -> Any:
        try:
            tape = record([*map(Tensor.detach, inputs)])  # else its products would be of a gradient
        except Exception:  # whatever the compiled code does that no tape holds: it is run
            return None
        return tape if tape.num_bytes <= MOST_BYTES else None
