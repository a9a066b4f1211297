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
        self._in_store = self._stored()
        self._needs_grad = [*map(_NEEDS_GRAD, self._asked)]
        self._shapes, self._strides = self._forms()
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
    def holds(self) -> bool:
        """Whether nothing but their values has changed."""
        return (
            all(map(is_, self._stored(), self._in_store))
            and [*map(_NEEDS_GRAD, self._asked)] == self._needs_grad
            and self._forms() == (self._shapes, self._strides)
            and not any(any(map(hooks, self._moved)) for hooks in _HOOKS)
        )

    @property
    def has_gradients(self) -> bool:
        """Whether gradients were added to since they were remembered."""
        now = [*map(_GRAD, self._moved)]
        return not all(map(is_, now, self._grads)) or self._versions(now) != self._seen

    def remember_gradients(self) -> None:
        """Take the gradients that there are for what the last step left behind."""
        self._grads = [*map(_GRAD, self._moved)]
        self._seen = self._versions(self._grads)

    def _stored(self) -> list[Any]:
        return [*map(pyro.get_param_store()._params.get, self._names)]

    def _forms(self) -> tuple[Any, Any]:
        return [*map(_SHAPE, self._asked)], [*map(Tensor.stride, self._asked)]

    @staticmethod
    def _versions(grads: Sequence[Any]) -> list[Any]:
        return [None if grad is None else _VERSION(grad) for grad in grads]
