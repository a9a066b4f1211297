"""Which parameters are the guide's and which the model's: whoever reads one has it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Set
from contextlib import contextmanager
from typing import Any

import pyro
from pyro import poutine
from pyro.poutine.guide import GuideMessenger
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

__all__ = ["Sides", "Witness", "new_parameters_forgotten_on_error"]

SHOWN = 3


class Witness(Messenger):
    """Records the unconstrained parameters that run under it, each with its name."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[Tensor, str] = {}

    def _pyro_post_param(self, msg: Any) -> None:
        value = msg["value"]
        leaf = value.unconstrained() if hasattr(value, "unconstrained") else value
        self.seen[leaf] = msg["name"]


class Sides:
    """A model and a guide that are watched, and so the parameters of each.

    What neither reads, such as what a loss trains for its own gradients, is the guide's. A guide
    that runs the model inside its own call (a ``GuideMessenger``) has the parameters of its module.

    Args:
        model: The model.
        guide: The guide.

    Raises:
        TypeError: The guide is a ``GuideMessenger``, and no module.

    ``model`` and ``guide`` are what to run in their place.
    """

    def __init__(self, model: Callable[..., Any], guide: Callable[..., Any]) -> None:
        self._witnesses = {"e": Witness(), "m": Witness()}
        self.model, self.guide = model, guide
        self._runner: Any = None
        if isinstance(runner := poutine.unwrap(guide), GuideMessenger):
            self._runner = _module(runner)
        else:
            self.model, self.guide = self._witnesses["m"](model), self._witnesses["e"](guide)

    def split(self, seen: Mapping[Tensor, str]) -> dict[str, list[Tensor]]:
        """The parameters of one evaluation, the guide's as ``"e"`` and the model's as ``"m"``.

        Those that another has replaced in Pyro's store, as an AutoGuide's first call does, are out.

        Args:
            seen: All of them, with their names.

        Raises:
            ValueError: Both read a parameter; it is named.
        """
        in_guide, in_model = (self._witnesses[side].seen for side in ("e", "m"))
        if self._runner is not None:
            own = set(self._runner.parameters())
            in_model.update((p, name) for p, name in seen.items() if p not in own)
        shared = [p for p in seen if p in in_guide and p in in_model]
        if shared:
            raise ValueError(_shared({w.seen[p] for p in shared for w in self._witnesses.values()}))
        split: dict[str, list[Tensor]] = {"e": [], "m": []}
        stored = dict(pyro.get_param_store().named_parameters())
        for parameter, name in seen.items():
            if stored.get(name, parameter) is parameter:
                split["m" if parameter in in_model else "e"].append(parameter)
        return split


@contextmanager
def new_parameters_forgotten_on_error() -> Iterator[None]:
    """An error takes the parameters out of Pyro's store that were made on the way to it."""
    store: Any = pyro.get_param_store()
    before = set(store.keys())
    try:
        yield
    except BaseException:
        if set(store.keys()) != before:
            state = store.get_state()
            store.clear()
            store.set_state({part: _only(before, named) for part, named in state.items()})
        raise


def _only(names: Set[str], named: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in named.items() if name in names}


def _module(runner: Any) -> nn.Module:
    if not isinstance(runner, nn.Module):
        raise TypeError(
            f"{type(runner).__name__} runs the model inside its own call and is no module, so that "
            "its parameters cannot be told from the model's; make it a pyro.nn.PyroModule too"
        )
    return runner


def _shared(names: set[str]) -> str:
    shown = ", ".join(map(repr, sorted(names)[:SHOWN]))
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return (
        f"both the model and the guide read parameter {shown}{more}, so that neither step may move "
        "it; nothing was moved. Give each side its own, under a name of its own, or train both at "
        "once with pyro.infer.SVI"
    )
