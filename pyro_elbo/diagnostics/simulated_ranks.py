"""Where the truth lies among a guide's samples, at data that the model simulates."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pyro
import torch
from torch import Tensor
from tqdm import tqdm

from ..elbo.at_once import check_at_once
from ..elbo.dependencies import Program
from ..evidence.checks import check_count
from ..evidence.modes import in_eval_mode, modules_of
from ..evidence.ratios import RatioELBO, sampled
from ..evidence.simulation import Simulation, simulate

__all__ = ["Refit", "simulated_ranks"]

Refit = Callable[..., Any]


def simulated_ranks(
    model: Any,
    guide: Any,
    args: Any,
    kwargs: Any,
    refit: Refit | None,
    arguments: Any,
    num_simulations: int,
    num_samples: int,
    progress: bool,
) -> tuple[tuple[str, ...], Tensor]:
    """The names of the scalar latents, and the share of the guide's samples below each.

    The arguments are those of :func:`~pyro_elbo.diagnostics.vsbc`; the shares have shape
    ``[simulations, scalars]``. Scalars that a mask hides are left out: nothing is said of them.

    Raises:
        ValueError: Without ``refit``, no argument holds the data; a plate is subsampled; there
            are fewer than 10 simulations, or samples; or masks hide every latent.
    """
    check_count("num_simulations", num_simulations, 10)
    check_count("num_samples", num_samples, 10)
    rows: list[Tensor] = []
    names: tuple[str, ...] = ()
    steps = range(num_simulations)
    for _ in tqdm(steps, desc="simulations", delay=1.0, leave=False, disable=not progress):
        with in_eval_mode(model, guide):
            drawn = simulate(model, args, kwargs, arguments)
        if refit is None and drawn.unseen:
            raise ValueError(
                f"no argument of the guide equals what {', '.join(map(repr, drawn.unseen))} "
                "observes, so that it cannot see the simulated data; pass arguments=, from the "
                "data to the arguments, or refit="
            )
        with _put_back(model, guide):
            fitted = guide
            if refit is not None:
                fitted = refit(drawn.model, guide, *drawn.args, **drawn.kwargs)
            with in_eval_mode(model, fitted):
                found = _ranks(drawn, fitted, num_samples, not rows)
        names = tuple(name for site, rank in found.items() for name in _scalars(site, rank))
        rows.append(torch.cat([rank.flatten() for rank in found.values()]))
    return _seen(names, torch.stack(rows))


def _ranks(drawn: Simulation, guide: Any, num_samples: int, is_first: bool) -> dict[str, Tensor]:
    """The share of the guide's samples below each true value; nan for those that a mask hides."""
    probe = RatioELBO(1, float("inf"))
    probe.ratios(drawn.model, sampled(guide), drawn.args, drawn.kwargs)
    frames = [f for site in probe.pair[0].nodes.values() for f in site.get("cond_indep_stack", ())]
    if any(frame.full_size not in (None, frame.size) for frame in frames):
        raise ValueError("a plate is subsampled; simulate with the full data (subsample_size=None)")
    nesting = max((-(frame.dim or 0) for frame in frames), default=0)
    elbo = RatioELBO(num_samples, nesting)
    program = Program(drawn.model, sampled(guide), drawn.args, drawn.kwargs)
    elbo.ratios(program.model, program.guide, program.args, program.kwargs)
    if is_first:
        check_at_once(program, elbo.pair, partial(elbo._pair_at_once, program))
    sites = elbo.pair[0].nodes
    return {
        name: _rank(sites[name], truth)
        for name, truth in drawn.latents.items()
        if name in sites and name in elbo.pair[1].nodes
    }


def _rank(site: Any, truth: Tensor) -> Tensor:
    samples = site["value"]
    below = (samples < truth).double().sum(0) + torch.zeros_like(truth, dtype=torch.double)
    ties = (samples == truth).double().sum(0) + torch.zeros_like(truth, dtype=torch.double)
    below, ties = (count.reshape(truth.shape) for count in (below, ties))
    chance = torch.rand_like(below) * (ties + 1)
    return ((below + chance) / (len(samples) + 1)).masked_fill(~_is_seen(site, truth), math.nan)


def _is_seen(site: Any, truth: Tensor) -> Tensor:
    """Which scalars of a latent no mask hides."""
    mask = torch.as_tensor(True if site["mask"] is None else site["mask"])
    mask = mask.expand(site["fn"].batch_shape)
    by_scalar = mask.reshape(mask.shape + (1,) * site["fn"].event_dim).expand_as(site["value"])
    return by_scalar.all(0).reshape(truth.shape)


def _seen(names: tuple[str, ...], ranks: Tensor) -> tuple[tuple[str, ...], Tensor]:
    """Without the scalars that a mask hid in a simulation."""
    seen = ~ranks.isnan().any(0)
    if names and not seen.any():
        raise ValueError(
            "masks hide every latent, so that there is nothing to calibrate; give data that have "
            "some"
        )
    return tuple(itertools.compress(names, seen.tolist())), ranks[:, seen]


def _scalars(site: str, rank: Tensor) -> list[str]:
    if not rank.dim():
        return [site]
    places = torch.cartesian_prod(*map(torch.arange, rank.shape)).reshape(-1, rank.dim())
    return [f"{site}[{', '.join(map(str, place))}]" for place in places.tolist()]


@contextmanager
def _put_back(model: Any, guide: Any) -> Iterator[None]:
    """Undo what a fit does to model, guide and Pyro's store: to values, buffers and train flags."""
    store = pyro.get_param_store()
    state = store.get_state()
    values = {name: value.detach().clone() for name, value in state["params"].items()}
    modules = modules_of(model, guide)
    kept = [{n: v.detach().clone() for n, v in one.state_dict().items()} for one in modules]
    flags = [(part, part.training) for one in modules for part in one.modules()]
    try:
        yield
    finally:
        with torch.no_grad():
            for one, before in zip(modules, kept, strict=True):
                for name, value in one.state_dict().items():
                    if name in before:
                        value.copy_(before[name])
            for name, value in values.items():
                state["params"][name].copy_(value)
        store.clear()
        store.set_state(state)
        for part, is_training in flags:
            part.training = is_training
