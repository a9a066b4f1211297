"""Messengers that every site of every step passes, so that they handle what they need only.

Pyro's own look a method up by name for each message, on its way in and on its way out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pyro.poutine.messenger import Messenger
from pyro.poutine.replay_messenger import ReplayMessenger
from pyro.poutine.trace_messenger import TraceHandler, TraceMessenger
from torch import Tensor

__all__ = ["ParamCapture", "replayed", "traced"]


def traced(program: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """The trace of one run."""
    tracer = _Tracer()
    TraceHandler(tracer, program)(*args, **kwargs)
    return tracer.trace


def replayed(program: Callable[..., Any], trace: Any) -> Callable[..., Any]:
    """A program that takes its samples from a trace."""
    return _Replayer(trace=trace)(program)


class _Tracer(TraceMessenger):
    def _process_message(self, msg: Any) -> None:
        pass

    def _postprocess_message(self, msg: Any) -> None:
        kind = msg["type"]
        if kind == "param" or (kind == "sample" and not msg["infer"].get("_do_not_trace")):
            self.trace.add_node(msg["name"], **msg)


class _Replayer(ReplayMessenger):
    def _process_message(self, msg: Any) -> None:
        if msg["type"] == "sample":
            self._pyro_sample(msg)

    def _postprocess_message(self, msg: Any) -> None:
        pass


class ParamCapture(Messenger):
    """Keeps the unconstrained leaves behind the parameters that a program asks for, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.parameters: dict[str, Tensor] = {}

    def _process_message(self, msg: Any) -> None:
        pass

    def _postprocess_message(self, msg: Any) -> None:
        if msg["type"] == "param":
            value = msg["value"]
            self.parameters[msg["name"]] = (
                value.unconstrained() if hasattr(value, "unconstrained") else value
            )
