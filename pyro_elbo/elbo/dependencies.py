r"""Which sites depend on which: what a closed-form KL needs to know.

A KL of :math:`q(z \mid a)` to :math:`p(z \mid b)` in closed form is right where no parent :math:`b`
of the site in the model is a descendant of the site in the guide. The order of the sites proves
that in most programs; where it does not, one run of both with tracked values decides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

from pyro import poutine
from pyro.ops.provenance import (
    ProvenanceTensor,
    detach_provenance,
    extract_provenance,
    get_provenance,
)
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..decisions import decide
from .aside import aside
from .descent import Descent, EscapeError
from .traces import sample_sites
from .tracing import is_messenger

__all__ = ["Memory", "Order", "Parents", "Program"]

Parents = Mapping[str, frozenset[str]]
_ESCAPES = {
    *("item", "numpy", "tolist", "equal", "allclose", "is_nonzero"),
    *("__bool__", "__int__", "__float__", "__complex__", "__index__", "__array__"),
    *("__contains__", "__setitem__", "__iter__", "__format__", "__reduce_ex__", "__dlpack__"),
}


@dataclass(frozen=True)
class Memory:
    """What may be kept from one run to the next of programs with the same sites.

    A later run may have other dependencies (a flag, an argument): that one site does not hang on
    another is found out anew each time, that it may costs no more than a sampled form where there
    is a closed one, or a score of more costs than it needs.

    Args:
        refuted: Pairs of a prior and a guide's site that are not mean field.
        descended: Sites of the guide that may be computed from others, with these.
    """

    refuted: set[tuple[str, str]] = field(default_factory=set)
    descended: set[tuple[str, ...]] = field(default_factory=set)


class _Family:
    """The sites that are computed from others, at whatever remove.

    Args:
        parents: The direct parents of each site.
    """

    def __init__(self, parents: Parents) -> None:
        self.parents = parents
        self._children: dict[str, list[str]] = {}
        for site, ups in parents.items():
            for parent in ups:
                self._children.setdefault(parent, []).append(site)
        self._found: dict[str, frozenset[str]] = {}

    def descendants(self, name: str) -> frozenset[str]:
        """The sites that are computed from one, without itself."""
        if name not in self._found:
            found: set[str] = set()
            left = [name]
            while left:
                new = set(self._children.get(left.pop(), ())) - found
                found |= new
                left += new
            self._found[name] = frozenset(found - {name})
        return self._found[name]


@dataclass(frozen=True)
class Order:
    """The latents in the order in which model and guide sample them.

    Args:
        model: Names of the model's latents.
        guide: Names of the guide's sites.
        trace_parents: Finds the direct parents of each site, in the model and in the guide; asked
            once, and only where the order proves nothing.
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
        return decide(lambda: self._proves_mean_field(prior, guide))

    def may_descend(self, name: str, ancestors: Sequence[str]) -> bool:
        """Whether a site of the guide may be computed from some of its others."""
        return decide(lambda: self._may_descend(name, ancestors))

    def may_depend(self, sites: Sequence[str], name: str) -> bool:
        """Whether densities of some sites, on either side, may depend on a site of the guide."""
        return decide(lambda: self._may_depend(sites, name))

    def _proves_mean_field(self, prior: str, guide: str) -> bool:
        if (prior, guide) in self.memory.refuted:
            return False
        known = prior in self._in_model and guide in self._in_guide.parents
        descendants = self._in_guide.descendants(guide)
        proven = known and self._in_model[prior].isdisjoint(descendants)
        if not proven:
            self.memory.refuted.add((prior, guide))
        return proven

    def _may_descend(self, name: str, ancestors: Sequence[str]) -> bool:
        key = (name, *ancestors)
        if key in self.memory.descended:
            return True
        found = any(name in self._in_guide.descendants(ancestor) for ancestor in ancestors)
        if found or name not in self._in_guide.parents:
            self.memory.descended.add(key)
            return True
        return False

    def _may_depend(self, sites: Sequence[str], name: str) -> bool:
        reached = {name} | self._in_both.descendants(name)
        return any(
            site in reached
            or site not in self._in_both.parents
            or not reached.isdisjoint(self._in_model.get(site, ()))
            for site in sites
        )

    @cached_property
    def _parents(self) -> tuple[Parents, Parents]:
        return self.trace_parents()

    @property
    def _in_model(self) -> Parents:
        return self._parents[0]

    @cached_property
    def _in_guide(self) -> _Family:
        return _Family(self._parents[1])

    @cached_property
    def _in_both(self) -> _Family:
        in_model, in_guide = self._parents
        return _Family({**in_model, **in_guide})


@dataclass(frozen=True, eq=False)
class Program:
    """A model, a guide and their arguments."""

    model: Any
    guide: Any
    args: Any
    kwargs: Any

    @property
    def everything(self) -> tuple[Any, ...]:
        """The programs and their arguments."""
        return self.model, self.guide, *self.args, *self.kwargs.values()

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
            with aside(*self.everything), Descent() as descent, _Watch(descent):
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
        with self._descent.watched() as taken:
            result = func(*args, **(kwargs or {}))
        names = get_provenance([args, kwargs or {}])
        if names and _escapes(func.__name__, args, result):
            raise EscapeError(func.__name__)
        if taken and not _looks_up(func.__name__, args):
            raise EscapeError(f"the size of what {func.__name__} gives")
        self._descent.add(extract_provenance(result)[0], names, [args, kwargs])
        return result


def _escapes(name: str, args: Any, result: Any) -> bool:
    if isinstance(result, Tensor):
        in_place = name.endswith("_") and not name.endswith("__")
        return not get_provenance(result) or (in_place and not get_provenance(args[0]))
    return name in _ESCAPES


def _looks_up(name: str, args: Any) -> bool:
    """Whether a number says which entries are taken, and not how many."""
    return name == "__getitem__" and not any(_bounds(args[1]))


def _bounds(index: Any) -> Iterator[bool]:
    parts = index if isinstance(index, tuple | list) else (index,)
    slices = (part for part in parts if isinstance(part, slice))
    return (isinstance(at, Tensor) for own in slices for at in (own.start, own.stop, own.step))


def _parents(trace: Any, descent: Descent) -> Parents:
    found: dict[str, frozenset[str]] = {}
    for name, site in sample_sites(trace).items():
        density = [site["fn"].log_prob(site["value"]), site["mask"], site["scale"]]
        found[name] = get_provenance(density) - {name}
        if not descent.of(density) <= found[name] | {name}:
            raise EscapeError(name)
    return found
