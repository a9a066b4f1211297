"""What a graph cannot stand for: losses that are taken otherwise, shapes that hang on values."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.overrides import TorchFunctionMode

from .tags import has_a_shape_of_values, is_random

__all__ = ["NoValuesRead", "check_loss", "check_operations", "hold_to_counts"]

_ATEN = torch.ops.aten
_READERS = {"tolist", "numpy", "__array__", "data_ptr"}
_STEPS = ("loss_and_grads", "gradients", "_evaluate")


def check_loss(loss: Any) -> None:
    """Check that what is captured of a loss is what a step of SVI would take of it.

    Raises:
        NotImplementedError: It is not.
    """
    if getattr(loss, "path_derivative", False):
        raise NotImplementedError("path_derivative runs the guide twice with the same noise")
    if hasattr(loss, "decompose"):
        own = [name for name in ("differentiable_loss", *_STEPS) if not _is_ours(loss, name)]
    else:
        classes = type(loss).__mro__
        last = _place(classes, "differentiable_loss")
        own = [name for name in _STEPS if _place(classes, name) < last and not _is_ours(loss, name)]
    if own:
        raise NotImplementedError(f"{type(loss).__name__} has a {own[0]} of its own")


class NoValuesRead(TorchFunctionMode):
    """Inside, no number leaves a tensor unseen: what reads it would be as it was at the capture."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in _READERS:
            raise NotImplementedError(
                f"it reads the value of a tensor, by {func.__name__}; compute with the tensor"
            )
        return func(*args, **(kwargs or {}))


def check_operations(graph: fx.GraphModule) -> None:
    """Check that every operation takes tensors, and gives as many numbers at each step.

    Raises:
        NotImplementedError: One does not.
    """
    for node in graph.graph.nodes:
        if node.op == "get_attr" and not isinstance(getattr(graph, node.target), Tensor):
            takes = "generator" in {name for user in node.users for name in user.kwargs}
            what = (
                "a torch.Generator of the program's own" if takes else f"{node.target}, no tensor"
            )
            raise NotImplementedError(f"an operation takes {what}")
        if any(map(_may_change, _counted(node))):
            raise NotImplementedError(
                f"how many numbers {node.target} gives depends on values; mask what is left out, "
                "with poutine.mask, or pass places in place of truths"
            )


def hold_to_counts(graph: fx.Graph) -> None:
    """Make the objective nan, in place, where an index by truths has another number of them."""
    output = next(node for node in graph.nodes if node.op == "output")
    every: Any = output.args[0]
    objective = every[0]
    for node in list(graph.nodes):
        for truths in _counted(node) if node.target is _ATEN.index.Tensor else ():
            count = _count(node, truths)
            with graph.inserting_before(output):
                now = graph.call_function(_ATEN.sum.default, (truths,))
                is_same = graph.call_function(_ATEN.eq.Scalar, (now, count))
                held = graph.call_function(_ATEN.where.ScalarOther, (is_same, objective, math.nan))
            held.meta = dict(objective.meta)
            objective = held
    output.args = ((objective, *every[1:]),)


def _place(classes: Sequence[type], name: str) -> int:
    """The first class that defines something; past the last where none does."""
    return next((i for i, cls in enumerate(classes) if name in vars(cls)), len(classes))


def _is_ours(loss: Any, name: str) -> bool:
    module = getattr(getattr(type(loss), name, None), "__module__", "pyro")
    return module.split(".")[0] in ("pyro", "pyro_elbo")


def _counted(node: fx.Node) -> Iterator[fx.Node]:
    """What an operation counts the truths in; an index by places counts nothing."""
    if node.target is _ATEN.index.Tensor:
        indices: Any = node.args[1]
        truths = (torch.bool, torch.uint8)
        yield from (i for i in indices if i is not None and i.meta["val"].dtype in truths)
    elif has_a_shape_of_values(node):
        yield from node.all_input_nodes


def _count(index: fx.Node, truths: fx.Node) -> int:
    """How many truths there were."""
    source: Any = index.args[0]
    whole, taken = source.meta["val"].numel(), index.meta["val"].numel()
    return int(taken * truths.meta["val"].numel() // max(whole, 1))


def _may_change(node: fx.Node) -> bool:
    """Whether a tensor depends on arguments or on noise; what a program holds is as it was."""
    left, seen = [node], set()
    while left:
        at = left.pop()
        if at.op == "placeholder" or is_random(at):
            return True
        left += [source for source in at.all_input_nodes if source not in seen]
        seen.update(at.all_input_nodes)
    return False
