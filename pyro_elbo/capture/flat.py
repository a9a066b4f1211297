"""Parameters and optimiser states in a few long vectors, of which each is a part."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from operator import attrgetter, is_, itemgetter
from typing import Any

import torch
from torch import Tensor

from .parameters import Watch
from .updates import INPUTS, update_of

__all__ = ["FlatGroup", "FlatParameters"]

_state_of = attrgetter("state")


class FlatGroup:
    """Parameters that are moved in the same way, in one vector; each parameter is a view of it.

    Args:
        parameters: Leaf tensors of one dtype, by name.
        optimizers: The torch optimiser of each.
        update: Their common update; ``None`` where their optimisers run outside of the graph.
    """

    def __init__(
        self, parameters: Mapping[str, Tensor], optimizers: Sequence[Any], update: Any
    ) -> None:
        self.names, self.parameters = list(parameters), list(parameters.values())
        self.optimizers, self.update = list(optimizers), update
        self.value = self._joined(self.parameters)
        for parameter, part in zip(self.parameters, self.parts(self.value), strict=True):
            parameter.data = part
        names = () if update is None else update.names
        self.state = {name: self._adopted(name) for name in names}
        self._steps = self._adopted_steps()
        self._pointers = [*map(Tensor.data_ptr, self.parameters)]
        self._states = [optimizer.state for optimizer in self.optimizers]
        self._sizes = [*map(len, self._states)]
        self._options = [optimizer.param_groups[0] for optimizer in self.optimizers]
        self._inputs_of = _getter(self._options[0], lambda name: name in INPUTS)
        self._static_of = _getter(self._options[0], _is_static)
        self._values_of = _getter(self._options[0], lambda name: name != "params")
        self._static = [*map(self._static_of, self._options)]
        self._values = [*map(self._values_of, self._options)]

    @property
    def key(self) -> Any:
        """What a graph that moves the group depends on."""
        options = None if self.update is None else _static(self.update.options)
        shapes = [(id(p), p.shape, p.dtype) for p in self.parameters]
        return type(self.update), options, tuple(shapes)

    @property
    def is_bound(self) -> bool:
        """Whether every parameter and state is still the part that it was made."""
        return (
            [*map(Tensor.data_ptr, self.parameters)] == self._pointers
            and all(map(is_, map(_state_of, self.optimizers), self._states))
            and [*map(len, self._states)] == self._sizes
            and (self.update is None or self._moves_as_before)
        )

    @property
    def _moves_as_before(self) -> bool:
        """Whether the optimisers have the options that the group's update has."""
        values = [*map(self._values_of, self._options)]
        if values == self._values:
            return True
        inputs = [*map(self._inputs_of, self._options)]
        if inputs.count(inputs[0]) < len(inputs):
            return False
        is_same = [*map(self._static_of, self._options)] == self._static
        has_lists = any(isinstance(value, list) for own in values for value in own)
        if is_same and not has_lists:  # which are changed in place, and equal to themselves then
            self._values = values
        return is_same

    @property
    def num_steps(self) -> int:
        """The steps that were taken, as the first optimiser counts them."""
        if self._steps is not None:
            return int(self._steps[0])
        state: Any = self._states[0].get(self.parameters[0], {})
        return int(state.get("step", 0))

    def parts(self, vector: Tensor) -> Iterator[Tensor]:
        """The parts of a vector, shaped like the parameters."""
        sizes = [parameter.numel() for parameter in self.parameters]
        for part, parameter in zip(vector.split(sizes), self.parameters, strict=True):
            yield part.view(parameter.shape)

    def numbers(self, ahead: int = 0) -> list[float]:
        """What the update needs to know of the next step, or of one some steps ahead of it."""
        if self.update is None:
            return []
        step = self.num_steps + 1 + ahead
        numbers: list[float] = self.update.numbers(self._options[0], step, ahead)
        return numbers

    def count(self) -> None:
        """Count a step in the books of the optimisers."""
        if self.update is None:
            return
        if isinstance(self._steps, Tensor):
            self._steps += 1
        elif self._steps is not None:
            self._steps.fill(self._steps[0] + 1)
        if self.update.counts:
            for options, optimizer, parameter in zip(
                self._options, self.optimizers, self.parameters, strict=True
            ):
                self.update.count(options, optimizer.state[parameter])

    def _joined(self, tensors: Sequence[Tensor]) -> Tensor:
        return torch.cat([tensor.detach().reshape(-1) for tensor in tensors])

    def _states_of(self, name: str) -> list[Any]:
        pairs = zip(self.optimizers, self.parameters, strict=True)
        return [optimizer.state[parameter].get(name) for optimizer, parameter in pairs]

    def _adopted(self, name: str) -> Tensor:
        vector = self._joined(self._states_of(name))
        triples = zip(self.optimizers, self.parameters, self.parts(vector), strict=True)
        for optimizer, parameter, part in triples:
            optimizer.state[parameter][name] = part
        return vector

    def _adopted_steps(self) -> Any:
        """The optimisers' own counts, all one number, where those are tensors."""
        steps: list[Any] = self._states_of("step") if self.update is not None else [None]
        if not isinstance(steps[0], Tensor):
            return None
        vector = torch.stack(steps)
        triples = zip(self.optimizers, self.parameters, vector, strict=True)
        for optimizer, parameter, step in triples:
            optimizer.state[parameter]["step"] = step
        return vector.numpy() if vector.device.type == "cpu" else vector


class FlatParameters:
    """All parameters that a step moves, in groups.

    Args:
        parameters: The leaf tensors that a step moves, by name.
        asked: Those that the program asks for, by name, these among them.
        optim: The optimiser, after a step with them.
        inside: Whether optimisers of which the update is known are to be part of a graph.

    Raises:
        ValueError: Two parameters share memory, a hook looks at a gradient, or an optimiser at the
            indices of a minibatch.
    """

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        asked: Mapping[str, Tensor],
        optim: Any,
        inside: bool,
    ) -> None:
        self._optim, self._objects, self.inside = optim, dict(optim.optim_objs), inside
        kinds: dict[Any, dict[str, Tensor]] = {}
        updates: dict[Any, Any] = {}
        Watch.check(parameters)
        for name, parameter in parameters.items():
            if self._optimizer(parameter).param_groups[0].get("subsample_aware"):
                raise ValueError(f"the optimiser of {name!r} looks at the minibatch of each step")
        for name, parameter in parameters.items():
            update = self._update(parameter) if inside else None
            kind = self._kind(parameter, update)
            updates.setdefault(kind, update)
            kinds.setdefault(kind, {})[name] = parameter
        self.groups = [
            FlatGroup(group, [self._optimizer(p) for p in group.values()], updates[kind])
            for kind, group in kinds.items()
        ]
        self.parameters = [parameter for group in self.groups for parameter in group.parameters]
        self.outside = [group for group in self.groups if group.update is None]
        self.vectors = [vector for g in self.groups for vector in (g.value, *g.state.values())]
        self.watch = Watch(asked, self.parameters)
        self.key = (self.watch.key, *(group.key for group in self.groups))

    def is_bound(self, optim: Any, inside: bool) -> bool:
        """Whether parameters, states and optimisers are still those that were adopted."""
        return (
            optim is self._optim
            and inside == self.inside
            and optim.optim_objs == self._objects
            and self.watch.holds
            and all(group.is_bound for group in self.groups)
        )

    def _optimizer(self, parameter: Tensor) -> Any:
        optimizer = self._objects[parameter]
        return getattr(optimizer, "optimizer", optimizer)

    def _update(self, parameter: Tensor) -> Any:
        clips = self._optim.grad_clip.get(parameter) is not None
        return None if clips else update_of(self._optimizer(parameter))

    def _kind(self, parameter: Tensor, update: Any) -> Any:
        kind = (parameter.dtype, parameter.device, type(update))
        if update is None:
            return kind
        optimizer = self._optimizer(parameter)
        options = optimizer.param_groups[0]
        step = optimizer.state[parameter].get("step", 0)
        inputs = tuple(options[name] for name in INPUTS if name in options)
        return (*kind, _static(update.options), float(step), inputs)


def _is_static(name: str) -> bool:
    return name not in (*INPUTS, "params")


def _static(options: Mapping[str, Any]) -> Any:
    return tuple((name, repr(value)) for name, value in options.items() if _is_static(name))


def _getter(options: Mapping[str, Any], chosen: Any) -> Any:
    """What gets the chosen options of one like these, in a tuple."""
    names = [name for name in options if chosen(name)]
    return itemgetter(*names) if names else lambda options: ()
