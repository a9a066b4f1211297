"""What may happen to parameters between two steps, beside being moved by them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from operator import attrgetter, is_
from typing import Any

import pyro
import torch
from torch import Tensor

__all__ = ["Watch", "check_alone"]

_GRAD, _VERSION = attrgetter("grad"), attrgetter("_version")
_HOOKS = attrgetter("_backward_hooks", "_post_accumulate_grad_hooks")
_KIND = attrgetter("requires_grad", "shape")


def check_alone(tensors: Sequence[Tensor]) -> None:
    """Check that tensors, which several steps are to take, are not moved by the steps.

    Raises:
        TypeError: One shares memory with a parameter of the store.
    """
    dense = [tensor for tensor in tensors if tensor.layout is torch.strided]
    places = {tensor.untyped_storage().data_ptr() for tensor in dense}
    for name, parameter in pyro.get_param_store()._params.items():
        if parameter.untyped_storage().data_ptr() in places:
            raise TypeError(
                f"an argument shares memory with parameter {name!r}, so that each step of a call "
                "changes it; pass a copy of it, or take one step a call"
            )


class Watch:
    """Parameters as they are now.

    Args:
        asked: The leaf tensors that a program asks for, by name.
        moved: Those of them that its steps move.
    """

    def __init__(self, asked: Mapping[str, Tensor], moved: Sequence[Tensor]) -> None:
        self._names, self._asked, self._moved = list(asked), list(asked.values()), list(moved)
        self._in_store = self._stored()
        self._kinds, self._strides = [*map(_KIND, self._asked)], [*map(Tensor.stride, self._asked)]
        self._no_hooks = [(None, None)] * len(self._moved)
        self.remember_gradients()

    @staticmethod
    def check(parameters: Mapping[str, Tensor]) -> None:
        """Check that parameters can be joined in one vector, and their gradients be left out.

        Raises:
            ValueError: Two share memory, or a hook looks at a gradient.
        """
        places = sorted((p.data_ptr(), p.data_ptr() + p.nbytes, n) for n, p in parameters.items())
        for (_, end, name), (start, _, other) in pairwise(places):
            if start < end:
                raise ValueError(f"parameters {name!r} and {other!r} share memory")
        for name, parameter in parameters.items():
            if any(_HOOKS(parameter)):
                raise ValueError(f"a hook looks at the gradient of parameter {name!r}")

    @property
    def key(self) -> Any:
        """What a graph depends on: which tensors there are, and which of them have gradients."""
        ids = map(id, self._asked)
        return tuple(zip(self._names, ids, self._kinds, strict=True))

    @property
    def are_same(self) -> bool:
        """Whether the store has the same tensors, of the same shapes, with gradients or not."""
        return (
            all(map(is_, self._stored(), self._in_store))
            and [*map(_KIND, self._asked)] == self._kinds
        )

    @property
    def holds(self) -> bool:
        """Whether nothing but their values has changed."""
        return (
            self.are_same
            and [*map(Tensor.stride, self._asked)] == self._strides
            and not self._have_hooks
        )

    @property
    def _have_hooks(self) -> bool:
        hooks = [*map(_HOOKS, self._moved)]
        return hooks != self._no_hooks and any(map(any, hooks))

    @property
    def has_gradients(self) -> bool:
        """Whether gradients were added to since they were remembered."""
        is_same = all(map(is_, map(_GRAD, self._moved), self._grads))
        return not is_same or [*map(_VERSION, self._live)] != self._seen

    @property
    def has_no_gradient(self) -> bool:
        """Whether every gradient is 0, as a step leaves it."""
        return not any(grad is not None and grad.any() for grad in map(_GRAD, self._moved))

    def remember_gradients(self) -> None:
        """Take the gradients that there are for what the last step left behind."""
        self._grads = [*map(_GRAD, self._moved)]
        self._live = [grad for grad in self._grads if grad is not None]
        self._seen = [*map(_VERSION, self._live)]

    def _stored(self) -> list[Any]:
        return [*map(pyro.get_param_store()._params.get, self._names)]
