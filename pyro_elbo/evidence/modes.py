"""Programs and losses at rest: what is measured is left as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pyro
from pyro.infer.autoguide import AutoGuide
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from ..elbo.baselines import averages_kept

__all__ = ["at_rest", "check_made", "forgetting", "in_eval_mode", "modules_of"]


def modules_of(*programs: Any) -> list[nn.Module]:
    """The programs that are modules, or methods of one, each once."""
    owners = [getattr(program, "__self__", program) for program in programs]
    return list({id(o): o for o in owners if isinstance(o, nn.Module)}.values())


@contextmanager
def in_eval_mode(*programs: Any) -> Iterator[None]:
    """Every module that runs inside is in eval mode; outside each is as it was.

    Args:
        *programs: Models and guides, which are put there first, where they are modules.
    """
    changed: dict[int, nn.Module] = {}

    def to_eval(module: nn.Module, args: Any = None) -> None:
        if module.training:
            changed[id(module)] = module
            module.training = False

    for owner in modules_of(*programs):
        for module in owner.modules():
            to_eval(module)
    handle = register_module_forward_pre_hook(to_eval)
    try:
        yield
    finally:
        handle.remove()
        for module in changed.values():
            module.training = True


@contextmanager
def at_rest(loss: Any) -> Iterator[None]:
    """The loss counts no step and learns no baseline, and then shows its terms from before."""
    terms = getattr(loss, "_terms", None)
    try:
        with averages_kept(), loss.hold() if hasattr(loss, "hold") else nullcontext():
            yield
    finally:
        if hasattr(loss, "_terms"):
            loss._terms = terms


@contextmanager
def forgetting() -> Iterator[None]:
    """Parameters that are made inside are forgotten."""
    store = pyro.get_param_store()
    before = set(store.keys())
    try:
        yield
    finally:
        for name in set(store.keys()) - before:
            del store[name]


def check_made(guide: Any) -> None:
    """Refuse an AutoGuide that has not run.

    Raises:
        ValueError: It has no parameters yet.
    """
    if isinstance(guide, AutoGuide) and guide.prototype_trace is None:
        raise ValueError(
            f"{type(guide).__name__} has no parameters before its first step, and measuring would "
            "make others than training does; measure after a step, as fit does"
        )
