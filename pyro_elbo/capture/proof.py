"""Whether a compiled step does what the graph does that it was compiled from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from .flat import FlatParameters
from .shapes import copied
from .step import StepGraph
from .tape import Outputs

__all__ = ["proves"]

RELATIVE = 10.0

Run = Callable[..., Outputs]
Families = Mapping[str, Sequence[Tensor]]
"""Tensors by what they are: terms, gradients, states of one name."""


def proves(compiled: Run, step: StepGraph, inputs: Sequence[Tensor], flat: FlatParameters) -> bool:
    """Whether a compiled step gives and moves what its graph gives and moves, up to rounding.

    Each entry may be off by ten times the root of its precision, of its own size; by ten times the
    precision to the power 3/4, of the largest entry of its tensor (a latent's part of a vector of
    all is none the less compared); and by that power, of the largest of its family: a gradient that
    is 0 beside one that is not is rounding alone. A move counts by the size of the state that it
    came from.

    Args:
        compiled: What the graph was compiled to.
        step: The graph.
        inputs: Its inputs, which are left as they are.
        flat: The parameters, whose vectors follow the first of the inputs.
    """
    found = _families(compiled, step, inputs, flat)
    right = _families(step.graph, step, inputs, flat)
    return all(_are_alike(tensors, found[name]) for name, tensors in right.items())


def _families(
    run: Run, step: StepGraph, inputs: Sequence[Tensor], flat: FlatParameters
) -> dict[str, list[Tensor]]:
    own = [*map(copied, inputs)]
    with torch.random.fork_rng(), torch.no_grad():
        steps = [[*map(torch.as_tensor, given)] for given in step.steps(run(*own))]
    vectors = iter(own[1 : 1 + len(flat.vectors)])
    families = {
        "objectives": [one[step.num_gradients][:1] for one in steps],
        "terms": [tensor for one in steps for tensor in step.tensors(one)[:-1]],
        "totals": [tensor for one in steps for tensor in step.tensors(one)[-1:]],
        "buffers": own[1 + len(flat.vectors) :],
    }
    outside = iter(steps[0][: step.num_gradients])
    for number, group in enumerate(flat.groups):
        move = next(vectors) - group.value
        states = {name: next(vectors) for name in group.state}
        families |= {f"{name} {number}": list(group.parts(v)) for name, v in states.items()}
        sizes = next(iter(states.values()), move).abs()
        families[f"moves {number}"] = list(group.parts(move * sizes))
        if group.update is None:
            families[f"gradients {number}"] = list(group.parts(next(outside)))
    return families


def _are_alike(right: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    most = max(map(_largest, right), default=0.0)
    return all(_is_near(a, b, most) for a, b in zip(right, others, strict=True))


def _is_near(right: Tensor, other: Tensor, most: float) -> bool:
    if not right.is_floating_point():
        return torch.equal(right, other)
    eps = torch.finfo(right.dtype).eps
    bound = eps**0.75 * (RELATIVE * _largest(right) + most)
    return torch.allclose(other, right, rtol=RELATIVE * eps**0.5, atol=bound, equal_nan=True)


def _largest(tensor: Tensor) -> float:
    if not tensor.is_floating_point():
        return 0.0
    finite = tensor[tensor.isfinite()]
    return float(finite.abs().max()) if finite.numel() else 0.0
