r"""Which sites depend on which: what a closed-form KL needs to know.

A KL of :math:`q(z \mid a)` to :math:`p(z \mid b)` in closed form is right where no parent :math:`b`
of the site in the model is a descendant of the site in the guide. The order of the sites proves
that in most programs; where it does not, one run of both with tracked values decides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.ops.provenance import (
    ProvenanceTensor,
    detach_provenance,
    extract_provenance,
    get_provenance,
)
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode

from .descent import Descent, EscapeError
from .traces import sample_sites
from .tracing import is_messenger

__all__ = ["Memory", "Order", "Parents", "Program", "aside"]

Parents = Mapping[str, frozenset[str]]
_ESCAPES = {
    *("item", "numpy", "tolist", "equal", "allclose", "is_nonzero"),
    *("__bool__", "__int__", "__float__", "__complex__", "__index__", "__array__"),
    *("__contains__", "__setitem__", "__iter__", "__format__", "__reduce_ex__", "__dlpack__"),
}


@dataclass(frozen=True)
class Memory:
    """What may be kept from one run to the next of programs with the same sites.

    A later run may have other dependencies (a flag, an argument): that a closed form is right is
    found out anew each time, that it is not costs no more than a sampled one where it is.

    Args:
        refuted: Pairs of a prior and a guide's site that are not mean field.
        descents: Whether a site of the guide may be computed from others.
    """

    refuted: set[tuple[str, str]] = field(default_factory=set)
    descents: dict[tuple[str, ...], bool] = field(default_factory=dict)


@dataclass(frozen=True)
class Order:
    """The latents in the order in which model and guide sample them.

    Args:
        model: Names of the model's latents.
        guide: Names of the guide's sites.
        trace_parents: Finds the direct parents of each site, in the model and in the guide; asked
            only where the order proves nothing.
        memory: What earlier runs found.
    """

    model: Sequence[str]
    guide: Sequence[str]
    trace_parents: Callable[[], tuple[Parents, Parents]]
    memory: Memory

    def proves_mean_field(self, prior: str, guide: str) -> bool:
        """Whether no parent of a site in the model is a descendant of it in the guide.

        Args:
            prior: The site in the model.
            guide: The guide's site that holds its density.
        """
        before = self.model[: self.model.index(prior)]
        after = self.guide[self.guide.index(guide) + 1 :]
        if set(before).isdisjoint(after):
            return True
        if (prior, guide) in self.memory.refuted:
            return False
        in_model, in_guide = self.trace_parents()
        known = prior in in_model and guide in in_guide
        proven = known and in_model[prior].isdisjoint(_descendants(guide, in_guide))
        if not proven:
            self.memory.refuted.add((prior, guide))
        return proven

    def may_descend(self, name: str, ancestors: Sequence[str]) -> bool:
        """Whether a site of the guide may be computed from some of its others."""
        key = (name, *ancestors)
        if key not in self.memory.descents:
            in_guide = self.trace_parents()[1]
            found = (name in _descendants(ancestor, in_guide) for ancestor in ancestors)
            self.memory.descents[key] = name not in in_guide or any(found)
        return self.memory.descents[key]

    def may_depend(self, sites: Sequence[str], name: str) -> bool:
        """Whether densities of some sites, on either side, may depend on a site of the guide."""
        key = ("densities", *sites, name)
        if key not in self.memory.descents:
            in_model, in_guide = self.trace_parents()
            reached = {name} | _descendants(name, {**in_model, **in_guide})
            known = all(site in in_model or site in in_guide for site in sites)
            found = any(site in reached or in_model.get(site, set()) & reached for site in sites)
            self.memory.descents[key] = not known or found
        return self.memory.descents[key]


def _descendants(name: str, parents: Parents) -> set[str]:
    found: set[str] = set()
    grown = {name}
    while grown:
        found |= grown
        grown = {site for site, ups in parents.items() if ups & found} - found
    return found - {name}


@dataclass(frozen=True, eq=False)
class Program:
    """A model, a guide and their arguments."""

    model: Any
    guide: Any
    args: Any
    kwargs: Any

    def trace_parents(self, model_trace: Any, guide_trace: Any) -> tuple[Parents, Parents]:
        """The direct parents of each site, by name, in the model and in the guide.

        Args:
            model_trace: A trace of the model, whose minibatches are taken.
            guide_trace: A trace of the guide, whose minibatches are taken.

        Empty where a sample leaves the tracked tensors (``z.item()``, ``if z > 0``, ``y[0] = z``).

        References:
            *Nonstandard Interpretations of Probabilistic Programs for Efficient Inference*
            (Wingate, Goodman, Stuhlmüller & Siskind, 2011).
        """
        if is_messenger(self.guide):
            return {}, {}
        plates = {
            name: site["value"]
            for trace in (guide_trace, model_trace)
            for name, site in trace.nodes.items()
            if site_is_subsample(site)
        }
        try:
            with aside(), Descent() as descent, _Watch(descent):
                track = partial(_Track, plates, descent)
                program = track()(self.guide)
                guide = poutine.trace(program).get_trace(*self.args, **self.kwargs)
                model = track()(poutine.replay(self.model, trace=guide))
                trace = poutine.trace(model).get_trace(*self.args, **self.kwargs)
                return _parents(trace, descent), _parents(guide, descent)
        except Exception:  # whatever a program does that cannot be tracked, nothing is proven then
            return {}, {}


class _Track(Messenger):
    """Marks each sample with its site's name, in given minibatches."""

    def __init__(self, plates: Mapping[str, Any], descent: Descent) -> None:
        super().__init__()
        self.plates, self.descent = plates, descent

    def _pyro_sample(self, msg: Any) -> None:
        if site_is_subsample(msg) and msg["name"] in self.plates:
            msg["value"], msg["done"] = self.plates[msg["name"]], True

    def _pyro_post_sample(self, msg: Any) -> None:
        value = msg["value"]
        if isinstance(value, Tensor) and not msg["is_observed"] and not site_is_subsample(msg):
            own, names = detach_provenance(value).clone(), frozenset({msg["name"]})
            self.descent.mark(own, names)
            msg["value"] = ProvenanceTensor(own, names)


class _Watch(TorchFunctionMode):
    """Raises where a sample's value leaves the tracked tensors, so that its trace would be lost."""

    def __init__(self, descent: Descent) -> None:
        super().__init__()
        self._descent = descent

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with self._descent.watched():
            result = func(*args, **(kwargs or {}))
        names = get_provenance([args, kwargs or {}])
        if names and _escapes(func.__name__, args, result):
            raise EscapeError(func.__name__)
        self._descent.add(extract_provenance(result)[0], names, [args, kwargs])
        return result


def _escapes(name: str, args: Any, result: Any) -> bool:
    if isinstance(result, Tensor):
        in_place = name.endswith("_") and not name.endswith("__")
        return not get_provenance(result) or (in_place and not get_provenance(args[0]))
    return name in _ESCAPES


@contextmanager
def aside() -> Iterator[None]:
    """Inside, a program runs for itself: what is outside is kept, from generators to buffers."""
    with (
        torch.random.fork_rng(),
        torch.no_grad(),
        pyro.validation_enabled(False),
        poutine.block(),
        _on_copies_of_buffers(),
    ):
        yield


@contextmanager
def _on_copies_of_buffers() -> Iterator[None]:
    """Inside, a module that runs moves copies of its buffers (running averages, counts)."""
    own: dict[tuple[nn.Module, str], Tensor] = {}

    def copy(module: nn.Module, args: Any) -> None:
        if isinstance(module, torch.jit.ScriptModule):
            return
        for name, buffer in module._buffers.items():
            if buffer is not None and (module, name) not in own:
                own[module, name] = buffer
                module._buffers[name] = buffer.clone()

    handle = register_module_forward_pre_hook(copy)
    try:
        yield
    finally:
        handle.remove()
        for (module, name), buffer in own.items():
            module._buffers[name] = buffer


def _parents(trace: Any, descent: Descent) -> Parents:
    found: dict[str, frozenset[str]] = {}
    for name, site in sample_sites(trace).items():
        density = [site["fn"].log_prob(site["value"]), site["mask"], site["scale"]]
        found[name] = get_provenance(density) - {name}
        if not descent.of(density) <= found[name] | {name}:
            raise EscapeError(name)
    return found
