"""What may happen to parameters between two steps, beside being moved by them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from operator import attrgetter, is_
from typing import Any

import pyro
from torch import Tensor

__all__ = ["Watch"]

_SHAPE, _GRAD, _NEEDS_GRAD = attrgetter("shape"), attrgetter("grad"), attrgetter("requires_grad")
_VERSION = attrgetter("_version")
_HOOKS = attrgetter("_backward_hooks"), attrgetter("_post_accumulate_grad_hooks")


class Watch:
    """Parameters as they are now.

    Args:
        asked: The leaf tensors that a program asks for, by name.
        moved: Those of them that its steps move.
    """

    def __init__(self, asked: Mapping[str, Tensor], moved: Sequence[Tensor]) -> None:
        self._names, self._asked, self._moved = list(asked), list(asked.values()), list(moved)
        own = {id(parameter) for parameter in moved}
        self._others = [parameter for parameter in self._asked if id(parameter) not in own]
        self._in_store = self._stored()
        self._needs_grad = [*map(_NEEDS_GRAD, self._asked)]
        self._shapes, self._strides = [*map(_SHAPE, self._asked)], self._strides_now()
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
            if any(hooks(parameter) for hooks in _HOOKS):
                raise ValueError(f"a hook looks at the gradient of parameter {name!r}")

    @property
    def key(self) -> Any:
        """What a graph depends on: which tensors there are, and which of them have gradients."""
        ids = map(id, self._asked)
        return tuple(zip(self._names, ids, self._needs_grad, self._shapes, strict=True))

    @property
    def are_same(self) -> bool:
        """Whether the store has the same tensors, of the same shapes, with gradients or not."""
        return (
            all(map(is_, self._stored(), self._in_store))
            and [*map(_NEEDS_GRAD, self._asked)] == self._needs_grad
            and [*map(_SHAPE, self._asked)] == self._shapes
        )

    @property
    def holds(self) -> bool:
        """Whether nothing but their values has changed."""
        return (
            self.are_same
            and all(map(Tensor.is_contiguous, self._moved))
            and self._strides_now() == self._strides
            and not any(any(map(hooks, self._moved)) for hooks in _HOOKS)
        )

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

    def _strides_now(self) -> list[Any]:
        return [*map(Tensor.stride, self._others)]
