"""One run of the guide and one replay of the model, checked against each other."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from queue import LifoQueue
from typing import Any

import torch
from pyro import poutine
from pyro.infer import ELBO
from pyro.infer.enum import iter_discrete_escape, iter_discrete_extend
from pyro.infer.util import is_validation_enabled
from pyro.poutine.guide import GuideMessenger
from pyro.poutine.util import prune_subsample_sites, site_is_factor, site_is_subsample
from pyro.util import check_model_guide_match, check_site_shape, check_traceenum_requirements

from ..errors import UnsupportedSiteError
from .dims import DimMessenger
from .masks import lift_masks
from .same_minibatches import SameMinibatches
from .tracers import replayed, traced
from .traces import Pair, awaiting, awaits_enumeration, is_enumerating, sample_sites

__all__ = ["TracingELBO", "check_messenger", "check_sites", "is_messenger", "trace_pair"]

REMEDY = "sample it, without infer={'enumerate': ...}, or use a guide or a loss that can"


class TracingELBO(ELBO):
    """A Pyro ELBO that traces and checks, and leaves every log-density to be computed once.

    It enumerates as soon as a site asks for it. What it learns about a program, its deepest plate
    (where that is guessed) and whether it enumerates, belongs to the last (model, guide) pair.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._given_nesting = self.max_plate_nesting
        self._met: tuple[Any, Any] | None = None
        self._enumerates = False
        self._is_new = True

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_met": None}

    def _get_traces(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Iterator[Pair]:
        for branches in self._get_branches(model, guide, args, kwargs):
            yield from branches

    def _get_branches(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Iterator[list[Pair]]:
        """For each particle its trace pairs: one, or one for each sequentially enumerated value."""
        check_messenger(model, guide)
        self._meet(model, guide)
        if self.vectorize_particles:
            _make_parameters(guide, args, kwargs)
            if math.isinf(self.max_plate_nesting):
                self._guess_max_plate_nesting(model, guide, args, kwargs)
                self._enumerates = self._why_no_enumeration(guide) is None
            model, guide = map(self._vectorized_num_particles, (model, guide))
        for _ in range(1 if self.vectorize_particles else self.num_particles):
            yield self._run(model, guide, args, kwargs)

    def _meet(self, model: Any, guide: Any) -> None:
        if self._met != (model, guide):
            self._met = (model, guide)
            self._is_new = True
            self.max_plate_nesting = self._given_nesting
            finite = math.isfinite(self._given_nesting)
            self._enumerates = finite and self._why_no_enumeration(guide) is None

    def _run(self, model: Any, guide: Any, args: Any, kwargs: Any) -> list[Pair]:
        if not self._enumerates:
            pair = self._get_trace(model, guide, args, kwargs)
            if not awaits_enumeration(pair):
                return [pair]
            self._start_enumerating(guide, pair)
            guide = poutine.replay(guide, trace=_up_to_enumeration(pair[1]))
        branches = list(self._enumerate(model, guide, args, kwargs))
        self._enumerates = any(map(is_enumerating, branches))
        return branches

    def _why_no_enumeration(self, guide: Any) -> str | None:
        """Why nothing can be enumerated with this guide, if so."""
        return "a guide that is a messenger cannot enumerate" if is_messenger(guide) else None

    def _start_enumerating(self, guide: Any, pair: Pair) -> None:
        why = self._why_no_enumeration(guide)
        if why is not None:
            name = next(name for trace in pair for name in awaiting(trace))
            raise UnsupportedSiteError(name, f"it is to be enumerated, and {why}", REMEDY)
        self._enumerates = True
        if math.isinf(self.max_plate_nesting):
            self.max_plate_nesting = max(map(_nesting, pair))

    def _enumerate(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Iterator[Pair]:
        minibatches = SameMinibatches()
        model, guide = map(minibatches, self._in_parallel(model, guide))
        queue: LifoQueue[Any] = LifoQueue()
        queue.put(poutine.Trace())
        guide = poutine.queue(
            guide, queue, escape_fn=iter_discrete_escape, extend_fn=iter_discrete_extend
        )
        while not queue.empty():
            yield self._get_trace(model, guide, args, kwargs)

    def _in_parallel(self, model: Any, guide: Any) -> Pair:
        """Model and guide that enumerate in parallel; the model's dims come left of the guide's."""
        on_guide = DimMessenger(first_available_dim=-1 - int(self.max_plate_nesting))
        return DimMessenger(guide=on_guide)(model), on_guide(guide)

    def _get_trace(
        self, model: Callable[..., Any], guide: Callable[..., Any], args: Any, kwargs: Any
    ) -> Pair:
        pair = self._trace_pair(model, guide, args, kwargs)
        for trace in pair:
            lift_masks(trace)
        if self._enumerates or not awaits_enumeration(pair):
            self._check(*pair)
        return pair

    def _trace_pair(
        self, model: Callable[..., Any], guide: Callable[..., Any], args: Any, kwargs: Any
    ) -> Pair:
        return trace_pair(model, guide, args, kwargs)

    def _check(self, model_trace: Any, guide_trace: Any) -> None:
        pair = model_trace, guide_trace
        check_sites(*map(sample_sites, pair))
        enumerates = is_enumerating(pair)
        if enumerates:
            self._check_nesting(pair)
        if is_validation_enabled():
            check_model_guide_match(*pair, self.max_plate_nesting)
            if enumerates:
                check_traceenum_requirements(*map(prune_subsample_sites, pair))

    def _check_nesting(self, pair: Pair) -> None:
        for site in (site for trace in pair for site in sample_sites(trace).values()):
            for frame in site["cond_indep_stack"]:
                if frame.vectorized and -frame.dim > self.max_plate_nesting:
                    raise ValueError(
                        f"site {site['name']!r}: its plate {frame.name!r} has dim {frame.dim}, "
                        f"where max_plate_nesting={self.max_plate_nesting} has enumerated values; "
                        f"give max_plate_nesting={-frame.dim} or more, or none, to have it found"
                    )


def _up_to_enumeration(trace: Any) -> Any:
    """What a guide drew before the first site that it is to enumerate.

    Drawn again, these would be other samples just where the enumerated site is in the program:
    whether it is may depend on them.
    """
    first = next(awaiting(trace), None)
    kept = trace.copy()
    for name in reversed(list(trace.nodes)):
        if first is None:
            break
        kept.remove_node(name)
        if name == first:
            break
    return kept


def _make_parameters(guide: Any, args: Any, kwargs: Any) -> None:
    """Run a messenger that has no parameters yet by itself, or they would have a particles' dim."""
    runner: Any = poutine.unwrap(guide)
    is_module = isinstance(runner, GuideMessenger) and isinstance(runner, torch.nn.Module)
    if is_module and next(runner.parameters(), None) is None:
        with torch.no_grad(), poutine.block():
            guide(*args, **kwargs)


def trace_pair(model: Any, guide: Any, args: Any, kwargs: Any) -> Pair:
    """The traces of one run of the guide, and of the model at its samples."""
    runner = poutine.unwrap(guide)
    if isinstance(runner, GuideMessenger):
        guide(*args, **kwargs)
        model_trace, guide_trace = runner.get_traces()
        for name, site in runner.trace.nodes.items():
            if site_is_subsample(site):
                model_trace.nodes[name] = site
    else:
        guide_trace = traced(guide, args, kwargs)
        model_trace = traced(replayed(model, _to_replay(guide_trace)), args, kwargs)
    return model_trace, guide_trace


def _to_replay(trace: Any) -> Any:
    """A trace whose sites keep apart what a replay writes into the ``infer`` of enumerated ones."""
    sites = [site for site in trace.nodes.values() if site["type"] == "sample"]
    if not any("_dim_to_id" in site["infer"] for site in sites):
        return trace
    copied = trace.copy()
    for site in sites:
        copied.nodes[site["name"]] = {**site, "infer": dict(site["infer"])}
    return copied


def is_messenger(guide: Any) -> bool:
    """Whether a guide runs the model inside its own call."""
    return isinstance(poutine.unwrap(guide), GuideMessenger)


def check_messenger(model: Any, guide: Any) -> None:
    """Check that a guide that runs a model inside its own call runs this one.

    Raises:
        ValueError: It runs another, whose data and handlers would count in place of the model's.
    """
    runner: Any = poutine.unwrap(guide)
    if isinstance(runner, GuideMessenger) and runner.model is not model:
        name = type(runner).__name__
        raise ValueError(
            f"the guide, {name}, runs the model that it was made with, and that is not the model "
            f"of this loss, whose data and handlers would be ignored; make the guide anew, "
            f"{name}(model), with the very model that the loss is given"
        )


def _nesting(trace: Any) -> int:
    """The deepest plate of a trace in which nothing was enumerated; checks its shapes."""
    trace = prune_subsample_sites(trace)
    sites = [site for site in trace.nodes.values() if site["type"] == "sample"]
    if is_validation_enabled():
        with torch.no_grad():
            trace.compute_log_prob()
        for site in sites:
            check_site_shape(site, math.inf)  # type: ignore[arg-type]
    frames = (frame for site in sites for frame in site["cond_indep_stack"] if frame.vectorized)
    return max((-frame.dim for frame in frames), default=0)


def check_sites(model: dict[str, Any], guide: dict[str, Any]) -> None:
    """Check that guide and model have the same latents.

    Raises:
        ValueError: A latent is on one side only, and neither marked as auxiliary nor enumerated;
            a name means one thing in the guide and another in the model; or a factor of the guide
            does not say whether it comes from reparameterised samples.
        UnsupportedSiteError: A site is to be enumerated in sequence in the model.
    """
    latents = {name for name, site in model.items() if not site["is_observed"]}
    for name in sorted(latents - guide.keys()):
        _check_marginalised(name, model[name], guide)
    for name in sorted(model.keys() & guide.keys() - latents):
        if guide[name]["infer"].get("is_auxiliary"):
            raise ValueError(
                f"the guide's auxiliary site or factor {name!r} has the name of an observed site "
                "or factor of the model; rename one of them"
            )
    for name, site in guide.items():
        if name not in latents and not site["infer"].get("is_auxiliary"):
            where = "is observed by the model" if name in model else "does not appear in the model"
            raise ValueError(
                f"the guide samples {name!r}, which {where}; remove it from the guide, or mark it "
                "with infer={'is_auxiliary': True} if it is an auxiliary variable"
            )
        if site_is_factor(site) and "has_rsample" not in vars(site["fn"]):
            raise ValueError(
                f"the guide's factor {name!r} is missing specification of has_rsample; pass "
                "has_rsample=True if it depends on reparameterised samples only, and "
                "has_rsample=False otherwise"
            )


def _check_marginalised(name: str, site: Any, guide: dict[str, Any]) -> None:
    if site["infer"].get("_enumerate_dim") is not None:
        return
    if site["infer"].get("enumerate") == "sequential":
        raise UnsupportedSiteError(
            name,
            "model-side sequential enumeration is not implemented",
            "use infer={'enumerate': 'parallel'}, or enumerate it in the guide",
        )
    enumerate = "infer={'enumerate': 'parallel'}"
    if name.endswith("_unobserved"):
        enumerate = "config_enumerate(model) (obs_mask does not hand its infer to this site)"
    raise ValueError(
        f"the model's latent {name!r} is not sampled by the guide (which samples {sorted(guide)}); "
        "sample it in the guide, observe it in the model (obs=..., and not None), or, if it is "
        f"discrete, sum it out with {enumerate}"
    )
