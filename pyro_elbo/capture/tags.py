"""What torch says of an operation beside what it computes."""

from __future__ import annotations

import torch
from torch import fx

__all__ = ["has_a_shape_of_values", "is_random"]


def has_a_shape_of_values(node: fx.Node) -> bool:
    """Whether the shape of what an operation gives depends on values."""
    return torch.Tag.dynamic_output_shape in getattr(node.target, "tags", ())


def is_random(node: fx.Node) -> bool:
    """Whether an operation draws from a generator."""
    tags = getattr(node.target, "tags", ())
    return node.op == "call_function" and torch.Tag.nondeterministic_seeded in tags
